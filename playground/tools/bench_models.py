"""The bundled policies and mid-size models by `python -m playground.tools.bench`.

CPU-seconds count all threads of the process; the least of several warm calls whose result was
awaited, since other work on a machine only ever adds. Wall seconds are their median: what a person
waits. The floor is what the counted work takes at the rates of one float32 matrix product and one
sum over a large array, measured on this machine just before.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from models.checkpoints.assembly import random_model
from models.config import (
    Config,
    DType,
    ExpertConfig,
    Pi0Config,
    Pi0FastConfig,
    VisionConfig,
)
from models.decoding import DecodeOptions
from models.observation import Observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from playground import process_memory
from playground.checkpoints import memory_plan
from playground.checkpoints.catalog import BUNDLED
from playground.checkpoints.load import open_policy
from playground.policies.base import Policy, sample_noise
from playground.robots.builtin import TABLETOP
from playground.serving.compile_cache import keep_compiled_programs
from playground.serving.events import Done, Job
from playground.serving.worker import Worker
from playground.tools import floors, optimizations
from playground.tools.floors import Rates, Work
from playground.trace import Options, PolicyInfo, RawObservation, Trace

TOKENS, STEPS, SEEDS = 50, 10, 8
PROMPT = "pick up the red cube"
VISITORS = (1, 4)
SIGLIP_S = VisionConfig(
    width=384, depth=12, mlp_dim=1536, num_heads=6, patch_size=14, image_size=224
)


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One line: least CPU-seconds and median wall seconds of a call; the counted work's floor in
    CPU-seconds, where there is one; and what else there is to say."""

    subject: str
    what: str
    cpu_s: float | None
    wall_s: float
    floor_s: float | None = None
    note: str = ""


def measure(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(least CPU-seconds, median wall seconds) of `repeats` calls after one that is not counted."""
    jax.block_until_ready(call())
    cpus, walls = zip(*(once(call) for _ in range(repeats)), strict=True)
    return min(cpus), statistics.median(walls)


def once(call: Callable[[], object]) -> tuple[float, float]:
    """(CPU-seconds, wall seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(call())
    return time.process_time() - cpu, time.perf_counter() - wall


def calibrate(repeats: int) -> tuple[list[Figure], Rates]:
    """What this machine gives in a CPU-second, measured by a float32 product of two 1024 x 1024
    matrices and by a sum over 256 MB."""
    square = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024), np.float32))
    large = jnp.ones(1 << 26, jnp.float32)
    product, total = jax.jit(lambda a: a @ a), jax.jit(jnp.sum)
    product_s = measure(lambda: product(square), 3 * repeats)
    total_s = measure(lambda: total(large), repeats)
    rates = Rates(2 * 1024**3 / product_s[0], large.nbytes / total_s[0])
    gflop, gigabytes = f"{rates.flop / 1e9:.0f} GFLOP", f"{rates.read / 1e9:.1f} GB"
    return [
        Figure("machine", "matrix product", *product_s, note=f"{gflop} a CPU-second"),
        Figure("machine", "sum over an array", *total_s, note=f"{gigabytes} a CPU-second"),
    ], rates


# --- what is measured ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A policy of the page (without config), or a model with random weights: its sizes, and which
    of its cameras are seen, how many text tokens there are, the weights' type and the seed."""

    name: str
    config: Config | None = None
    cameras_seen: tuple[bool, ...] = ()
    text_valid: int = 20
    storage: DType = "float32"
    seed: int = 0

    @property
    def sizes(self) -> Config:
        """Of the model with random weights. Raises ValueError for a policy of the page."""
        if self.config is None:
            raise ValueError(f"{self.name} is a policy of the page: it has its own weights")
        return self.config


def mid_subject(name: str, case: dict) -> Subject:
    """What a case of the mid-size file describes."""
    if case["siglip_variant"] != "S/14":
        raise ValueError(f"siglip_variant is {case['siglip_variant']!r}; expected 'S/14'")
    shared = {
        "vision": SIGLIP_S,
        "language": ExpertConfig(**case["llm"]),
        "vocab_size": case["vocab"],
        "action_dim": case["action_dim"],
        "action_horizon": case["action_horizon"],
        "max_token_len": case["text_len"],
        "dtype": case["dtype"],
        "image_slots": tuple(case["cameras"]),
    }
    if case["model"] == "pi0_fast":
        config = Pi0FastConfig(**shared)
    else:
        expert, pi05 = ExpertConfig(**case["expert"]), case["model"] == "pi05"
        config = Pi0Config(**shared, action_expert=expert, pi05=pi05)
    seen = tuple(case["camera_mask"])
    return Subject(name, config, seen, case["text_valid"], case["params_dtype"], case["seed"])


def random_observation(subject: Subject) -> Observation:
    """Random pictures and prompt tokens; masked cameras are left out (pi0, pi0.5)."""
    config, rng = subject.sizes, np.random.default_rng(subject.seed)
    size, length = config.vision.image_size, config.max_token_len
    slots = [s for s, seen in zip(config.image_slots, subject.cameras_seen, strict=True) if seen]
    row = lambda values: jnp.asarray(values)[None]  # noqa: E731
    return Observation(
        images={s: row(rng.uniform(-1, 1, (size, size, 3)).astype(np.float32)) for s in slots},
        image_masks={s: jnp.ones(1, bool) for s in slots},
        state=row(rng.standard_normal(config.action_dim, np.float32)),
        tokens=row(rng.integers(3, config.vocab_size, length, np.int32)),
        token_mask=row(np.arange(length) < subject.text_valid),
        token_ar_mask=row(np.zeros(length, np.int32)),
    )


def whole(subject: Subject) -> tuple[Pi0 | Pi0Fast, Observation]:
    """The model and what it is shown."""
    model = random_model(subject.sizes, subject.seed, subject.storage)
    if isinstance(model, Pi0Fast):
        optimizations.let_write_actions(model)
    return model, random_observation(subject)


def opened(subject: Subject) -> tuple[Pi0 | Pi0Fast, Observation]:
    """The same as a policy shows it: without the text's padding."""
    model, observation = whole(subject)
    return model, optimizations.trimmed(observation)


def whole_chunk(subject: Subject) -> Callable[[], object]:
    """A call that goes all the way from pictures that were not seen before to a chunk."""
    if subject.config is None:
        policy, rng = open_policy(subject.name), np.random.default_rng(0)
        return lambda: answer(policy, observe(policy.info, rng), Options()).timings_ms
    model, observation = opened(subject)
    if isinstance(model, Pi0):
        noise = sample_noise(0, 1, model.config.action_horizon, model.config.action_dim)
        run = Pi0Programs(model)
        return lambda: run.sample_actions(observation, noise, num_steps=STEPS)
    run = Pi0FastPrograms(model)
    options = DecodeOptions(draft_ids=optimizations.action_ids(model.config))
    return lambda: run.sample_actions(observation, None, options, max_decoding_steps=TOKENS)


def bench(subject: Subject, repeats: int, rates: Rates) -> Iterator[Figure]:
    """The whole chunk, its parts, and what is left of it when something is known already."""
    if subject.config is None:
        yield from bench_policy(open_policy(subject.name), repeats)
        return
    model, observation = opened(subject)
    if isinstance(model, Pi0):
        calls, works = flow_calls(model, observation), flow_works(model.config, observation)
    else:
        calls, works = fast_calls(model, observation), fast_works(model.config, observation)
    for what, call in calls.items():
        floor_s = rates.seconds(works[what]) if what in works else None
        yield Figure(subject.name, what, *measure(call, repeats), floor_s)


def flow_works(config: Pi0Config, observation: Observation) -> dict[str, Work]:
    """The least work of the calls of the same name, on a CPU: arithmetic in float32."""
    tokens = prefix_tokens(config, observation)
    vision = floors.vision(config, len(observation.images), 4)
    prefix, step = floors.prefix(config, tokens, 4), floors.euler_step(config, tokens, 4)
    loop = step.times(STEPS)
    seeds = Work(SEEDS * loop.flop, loop.read)
    return {
        f"chunk, {STEPS} steps": vision + prefix + loop,
        "vision": vision,
        "prefix": prefix,
        "loop = new seed or state": loop,
        "new prompt, same images": prefix + loop,
        f"{SEEDS} seeds, all of it": vision + prefix + seeds,
        "stepwise, every step awaited": loop,
    }


def fast_works(config: Pi0FastConfig, observation: Observation) -> dict[str, Work]:
    """The same for pi0-FAST, each token by logits of the whole vocabulary."""
    tokens = prefix_tokens(config, observation)
    vision = floors.vision(config, len(observation.images), 4)
    prefix = floors.prefix(config, tokens, 4)
    loop = floors.token(config, tokens + TOKENS // 2, 4).times(TOKENS)
    return {
        f"chunk of {TOKENS} tokens": vision + prefix + loop,
        "vision": vision,
        "prefix": prefix,
        f"loop of {TOKENS} tokens": loop,
        "stepwise, every token awaited": loop,
    }


def prefix_tokens(config: Config, observation: Observation) -> int:
    return len(observation.images) * config.vision.num_tokens + observation.tokens.shape[1]


def flow_calls(model: Pi0, observation: Observation) -> dict[str, Callable[[], object]]:
    config, run = model.config, Pi0Programs(model)
    noises = jnp.asarray(sample_noise(0, SEEDS, config.action_horizon, config.action_dim))
    noise = noises[:1]
    known = optimizations.embedded(run, observation)
    prefix = jax.block_until_ready(run.prefill(observation, known))

    def loop(prefix, draw):
        given = jax.tree.map(lambda x: jnp.repeat(x, len(draw), axis=0), observation)
        return run.denoise_all(prefix, given, draw, num_steps=STEPS)

    return {
        f"chunk, {STEPS} steps": lambda: run.sample_actions(observation, noise, num_steps=STEPS),
        "vision": lambda: optimizations.embedded(run, observation),
        "prefix": lambda: run.prefill(observation, known),
        "loop = new seed or state": lambda: loop(prefix, noise),
        "new prompt, same images": lambda: loop(run.prefill(observation, known), noise),
        f"{SEEDS} seeds, all of it": lambda: loop(
            run.prefill(observation, optimizations.embedded(run, observation)), noises
        ),
        "stepwise, every step awaited": lambda: [
            jax.block_until_ready(step) for step in run.denoise(prefix, observation, noise, STEPS)
        ],
    }


def fast_calls(model: Pi0Fast, observation: Observation) -> dict[str, Callable[[], object]]:
    """TOKENS tokens, whatever they are: random weights do not stop."""
    run = Pi0FastPrograms(model)
    how = {"max_decoding_steps": TOKENS}
    options = DecodeOptions(draft_ids=optimizations.action_ids(model.config))
    known = optimizations.embedded(run, observation)
    state = jax.block_until_ready(run.prefill(observation, known, **how))
    return {
        f"chunk of {TOKENS} tokens": lambda: run.sample_actions(observation, None, options, **how),
        "vision": lambda: optimizations.embedded(run, observation),
        "prefix": lambda: run.prefill(observation, known, **how),
        f"loop of {TOKENS} tokens": lambda: run.decode_all(state, None, options),
        "stepwise, every token awaited": lambda: list(run.decode(state)),
    }


# --- the page's policies ------------------------------------------------------------------------


def observe(info: PolicyInfo, rng: np.random.Generator) -> RawObservation:
    """Pictures that were not seen before, one for each camera, and the resting state."""
    images = {
        slot.name: rng.integers(0, 256, (224, 224, 3), np.uint8)
        for slot in info.slots
        if slot.required
    }
    return RawObservation(info.robot, images, {}, PROMPT, np.array(TABLETOP.resting_state))


def answer(policy: Policy, raw: RawObservation, options: Options) -> Trace:
    *_, done = policy.infer(raw, options)
    assert isinstance(done, Done)
    return done.trace


def bench_policy(policy: Policy, repeats: int) -> list[Figure]:
    """What a visitor waits for, every step and token recorded; its stages, and what was kept."""
    info, rng = policy.info, np.random.default_rng(0)
    name, options = f"{info.title} ({info.badge})", Options()
    seen, numbers = observe(info, rng), itertools.count(10)
    fresh = [answer(policy, observe(info, rng), options) for _ in range(repeats + 1)][1:]
    stages = {
        stage: statistics.median(trace.timings_ms[stage] for trace in fresh) / 1e3
        for stage in fresh[0].timings_ms
    }

    def reworded():
        return dataclasses.replace(seen, prompt=f"touch cube {next(numbers)}")

    calls = {
        "answer, new picture": lambda: answer(policy, observe(info, rng), options),
        "answer, new prompt": lambda: answer(policy, reworded(), options),
        "answer, nothing new": lambda: answer(policy, seen, options),
        "chunk alone, new picture": lambda: policy.actions(observe(info, rng), options),
    }
    figures = []
    for what, call in calls.items():
        cpu, wall = measure(call, repeats)
        kept = ", ".join(call().reused) if what.startswith("answer") else ""
        figures.append(Figure(name, what, cpu, wall, note=f"kept: {kept}" if kept else ""))
    return figures + [Figure(name, f"stage {s}", None, wall) for s, wall in stages.items()]


def bench_visitors(names: Sequence[str], repeats: int) -> list[Figure]:
    """One worker, as the page has it, asked by several at once, a new picture each time."""
    figures = []
    with Worker("playground.checkpoints.load:load", {"policies": list(names)}) as worker:
        infos = worker.metadata(timeout_s=600)
        for visitors in VISITORS:
            waits, began = [], time.perf_counter()
            threads = [
                threading.Thread(target=_visit, args=(worker, infos, i, repeats, waits))
                for i in range(visitors)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - began
            note = f"{len(waits) / took:.1f} answers of both policies a second"
            what = f"{visitors} visitor{'s' * (visitors > 1)} at once, wait for an answer"
            figures.append(Figure("worker", what, None, statistics.median(waits), note=note))
    return figures


def _visit(worker: Worker, infos, seed: int, repeats: int, waits: list[float]) -> None:
    rng = np.random.default_rng(seed)
    raw = next(iter(infos.values()))
    for _ in range(repeats):
        began = time.perf_counter()
        with worker.infer(Job(tuple(infos), observe(raw, rng), Options())) as events:
            done = sum(isinstance(event, Done) for event in events)
        if done != len(infos):
            raise RuntimeError(f"{done} of {len(infos)} policies answered")
        waits.append(time.perf_counter() - began)


# --- a process of its own -----------------------------------------------------------------------


def bench_start(subject: Subject, arguments: argparse.Namespace) -> Iterator[Figure]:
    """The first call, with an empty compile cache and with the one it left; and a warm one where
    freed memory goes back to the kernel each time. Each in a process of its own, whose peak memory
    is reported."""
    with tempfile.TemporaryDirectory() as cache:
        for what in ("empty", "filled"):
            measured = _in_child(subject, arguments, cache, kept=True)
            peak = f"peak memory {measured['peak_mb']:.0f} MB"
            what = f"first call, {what} compile cache"
            yield Figure(subject.name, what, *measured["first"], note=peak)
        measured = _in_child(subject, arguments, cache, kept=False)
        yield Figure(subject.name, "chunk, freed memory handed back", *measured["warm"])


def _in_child(subject: Subject, arguments, cache: str, kept: bool) -> dict:
    command = [sys.executable, "-m", "playground.tools.bench", "--child", subject.name]
    command += ["--repeats", str(arguments.repeats)] + ["--hand-back"] * (not kept)
    command += ["--mid", str(arguments.mid)] if arguments.mid else []
    done = subprocess.run(
        command,
        env={**os.environ, "PI0_PLAYGROUND_CACHE": cache},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(subject: Subject, repeats: int) -> dict:
    """Runs in the process that `_in_child` starts."""
    gc.freeze()  # as the worker does: else a collection of all modules falls into some figure
    keep_compiled_programs()
    call = whole_chunk(subject)
    first = once(call)
    warm = measure(call, repeats)
    return {"first": first, "warm": warm, "peak_mb": process_memory.peak_bytes() / 1e6}


# --- from the command line ----------------------------------------------------------------------


def subjects(arguments: argparse.Namespace) -> dict[str, Subject]:
    if arguments.mid:
        cases = json.loads(arguments.mid.read_text())
        found = {name: mid_subject(name, case) for name, case in cases.items()}
    else:
        found = {name: Subject(name) for name in BUNDLED}
    if arguments.only and arguments.only not in found:
        raise ValueError(f"--only is {arguments.only!r}; expected one of {', '.join(found)}")
    return {arguments.only: found[arguments.only]} if arguments.only else found


def main(arguments: argparse.Namespace) -> None:
    """arguments: of `playground.tools.bench`."""
    if not arguments.hand_back:
        memory_plan.prepare()
    chosen = subjects(arguments)
    if arguments.child:
        print(json.dumps(child(chosen[arguments.child], arguments.repeats)))
        return
    print(f"{'':74}{'CPU s':>9}{'floor':>9}{'wall s':>9}")
    calibrated, rates = calibrate(arguments.repeats)
    figures, compared = printed(calibrated), []
    if arguments.optimizations:
        print(f"\n{'CPU-seconds':74}{'without':>9}{'with':>9}{'saved':>8}", flush=True)
    for subject in chosen.values():
        if arguments.optimizations:
            found = optimizations.compare(subject.name, *whole(subject), TOKENS, arguments.repeats)
            compared += shown(found)
        else:
            figures += printed(bench_start(subject, arguments))
            figures += printed(bench(subject, arguments.repeats, rates))
    if not arguments.mid:
        figures += printed(bench_visitors(list(chosen), arguments.repeats))
    if arguments.json:
        record = {
            "device": jax.devices()[0].device_kind,
            "cores": len(os.sched_getaffinity(0)),
            "jax": jax.__version__,
            "a_cpu_s": {"flop": rates.flop, "bytes": rates.read},
            "figures": [dataclasses.asdict(figure) for figure in figures],
            "optimizations": [dataclasses.asdict(found) for found in compared],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def printed(figures: Iterable[Figure]) -> list[Figure]:
    """All of them, each printed as it comes: together they take minutes."""
    kept = []
    for figure in figures:
        both = figure.cpu_s, figure.floor_s
        cpu = "".join(f"{'' if seconds is None else f'{seconds:.3f}':>9}" for seconds in both)
        label = f"{figure.subject}: {figure.what}"
        print(f"{label:74}{cpu}{figure.wall_s:9.3f}  {figure.note}", flush=True)
        kept.append(figure)
    return kept


def shown(compared: Iterable[optimizations.Trick]) -> list[optimizations.Trick]:
    """All of them, each printed as it comes."""
    kept = []
    for trick in compared:
        label = f"{trick.subject}: {trick.name} ({trick.what})"
        saved = 1 - trick.with_s / trick.without_s
        print(f"{label:74}{trick.without_s:9.3f}{trick.with_s:9.3f}{saved:8.0%}", flush=True)
        kept.append(trick)
    return kept
