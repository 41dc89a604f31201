"""The 3B models on this machine: `python -m playground.tools.bench --full-size`.

pi0 and pi0-FAST with random bfloat16 weights, by stage, beside the floor of each stage, and both in
memory at once. Three parts, each in a process of its own that is ended at its time limit; what it
had measured by then stays. `--tiny` runs the same at small sizes.

It needs JAX, flax, orbax-checkpoint, tensorstore, sentencepiece, tokenizers, safetensors and NumPy:
nothing of the page or of the simulated table. Random weights answer nonsense; time and memory are
those of real ones, except that no token ends a chunk early.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from models.checkpoints.assembly import abstract_model, fill, parameters_of
from models.config import PI0, PI0_FAST, Config, ExpertConfig, Pi0Config, Pi0FastConfig
from models.observation import Observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from playground import process_memory
from playground.tools import bench_answers, floors
from playground.tools.floors import Rates, Work

PAGE = "page of "
LIMITS_S = {"pi0": 120, "pi0-FAST": 120, "both": 100}
PAGE_LIMITS_S = {f"{PAGE}pi0": 150, f"{PAGE}pi0-FAST": 150}
TOKENS, STEPS = 50, 10
TEXT = {"pi0": 20, "pi0-FAST": 180}  # text tokens that are valid
BLOCK = 1 << 22  # numbers that one thread draws at a time
# (bfloat16 flop/s, bytes/s) by a word of the device's name; others are measured.
KNOWN = {"H200": Rates(790e12, 4.8e12), "H100": Rates(790e12, 3.35e12)}
_ROOT = Path(__file__).resolve().parents[2]
_TINY_EXPERT = ExpertConfig(64, depth=2, mlp_dim=128, num_heads=2, num_kv_heads=1, head_dim=16)


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One line. seconds: median of warm calls whose result was awaited, None for a size alone;
    floor_s: what the stage takes at least on this device; note: what else there is to say."""

    model: str
    what: str
    seconds: float | None
    floor_s: float | None = None
    note: str = ""


# --- models of random weights -------------------------------------------------------------------


def config_of(name: str, tiny: bool) -> Config:
    """Computes in bfloat16, on a CPU in float32."""
    config: Config = PI0 if name == "pi0" else PI0_FAST
    if tiny:
        sizes: dict = {"language": _TINY_EXPERT, "vocab_size": 4096}
        sizes["vision"] = dataclasses.replace(
            config.vision, width=48, depth=2, mlp_dim=96, num_heads=4
        )
        if name == "pi0":
            sizes["action_expert"] = dataclasses.replace(_TINY_EXPERT, width=32)
        config = dataclasses.replace(config, **sizes)
    on_cpu = jax.default_backend() == "cpu"
    return dataclasses.replace(config, dtype="float32" if on_cpu else "bfloat16")


def draw(shape: tuple[int, ...], deviation: float, seed: tuple[int, int], pool) -> np.ndarray:
    """bfloat16 normal numbers, block by block on all threads of the pool; each block has a seed of
    its own, so the number of threads changes nothing."""
    drawn = np.empty(int(np.prod(shape)), np.uint16)

    def block(start: int) -> None:
        rng = np.random.default_rng((*seed, start))
        part = drawn[start : start + BLOCK]
        noise = rng.standard_normal(len(part), np.float32)
        noise *= deviation
        # The upper half of a float32 is a bfloat16, rounded towards zero.
        np.right_shift(noise.view(np.uint32), 16, out=part, casting="unsafe")

    list(pool.map(block, range(0, drawn.size, BLOCK)))
    return drawn.view(ml_dtypes.bfloat16).reshape(shape)


def draw_model(config: Config, seed: int = 0) -> Pi0 | Pi0Fast:
    """Matrices keep the size of what passes through them; norms are near neutral."""
    abstract = abstract_model(config)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def values() -> Iterator[tuple[str, np.ndarray]]:
            for number, (name, parameter) in enumerate(parameters_of(abstract).items()):
                shape = parameter.shape
                fan_in = shape[1 if name.endswith("embedding") else 0]
                deviation = fan_in**-0.5 if len(shape) == 2 else 0.02
                array = draw(shape, deviation, (seed, number), pool)
                is_scale = name.startswith("vision") and name.endswith("scale")
                yield name, array + array.dtype.type(1) if is_scale else array

        return fill(abstract, values(), "bfloat16")


def observe(config: Config, text_valid: int, seed: int = 0) -> Observation:
    """Random pictures in all slots and random prompt tokens, a batch of one."""
    rng, size = np.random.default_rng(seed), config.vision.image_size
    length = config.max_token_len
    valid = np.arange(length) < text_valid
    picture = lambda: jnp.asarray(rng.uniform(-1, 1, (1, size, size, 3)), jnp.float32)  # noqa: E731
    return Observation(
        images={slot: picture() for slot in config.image_slots},
        image_masks={slot: jnp.ones(1, bool) for slot in config.image_slots},
        state=jnp.asarray(rng.standard_normal((1, config.action_dim)), jnp.float32),
        tokens=jnp.asarray(rng.integers(3, config.vocab_size, (1, length)), jnp.int32),
        token_mask=jnp.asarray(valid[None]),
        token_ar_mask=jnp.zeros((1, length), jnp.int32),
    )


# --- what the device can do ---------------------------------------------------------------------


def wall(call: Callable[[], object], repeats: int = 10, limit_s: float = 8.0) -> float:
    """Median seconds of warm calls, after one that may compile; fewer where they take long."""
    jax.block_until_ready(call())
    spent, began = [], time.perf_counter()
    while len(spent) < repeats and (not spent or time.perf_counter() - began < limit_s):
        start = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def measured_rates(tiny: bool) -> Rates:
    """One matrix product in the type that the models compute in, and one sum over a large array."""
    on_cpu = jax.default_backend() == "cpu"
    dtype, size = (jnp.float32, 1024) if on_cpu else (jnp.bfloat16, 8192)
    square = jnp.ones((size, size), dtype)
    large = jnp.ones((1 << (22 if tiny else 28),), dtype)
    product, total = jax.jit(lambda a: a @ a), jax.jit(jnp.sum)
    return Rates(
        2 * size**3 / wall(lambda: product(square)), large.nbytes / wall(lambda: total(large))
    )


def peak_bytes() -> int:
    """The most memory held so far: of the device, or of this process where it is a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", process_memory.peak_bytes())


# --- the parts ----------------------------------------------------------------------------------


def embed(run: Pi0Programs | Pi0FastPrograms, observation: Observation) -> dict[str, jax.Array]:
    """Image tokens by slot, all pictures in one call."""
    images = jnp.concatenate(list(observation.images.values()))
    tokens = jnp.split(run.embed_images(images), len(images))
    return dict(zip(observation.images, tokens, strict=True))


def flow_calls(run: Pi0Programs, config: Pi0Config) -> Iterator[tuple[str, Callable, Work]]:
    """What is measured of pi0, with the least work of each."""
    observation = observe(config, TEXT["pi0"])
    noise = jnp.asarray(
        np.random.default_rng(0).standard_normal(
            (1, config.action_horizon, config.action_dim), np.float32
        )
    )
    known = embed(run, observation)
    prefix = run.prefill(observation, known)
    count = len(config.image_slots)
    vision = floors.vision(config, count, 2)
    prefill = floors.prefix(config, config.prefix_len, 2)
    loop = floors.euler_step(config, config.prefix_len, 2).times(STEPS)

    def denoise(prefix):
        return run.denoise_all(prefix, observation, noise, num_steps=STEPS)

    def stepwise():
        for step in run.denoise(prefix, observation, noise, STEPS):
            jax.block_until_ready(step)

    yield (
        f"chunk of {STEPS} steps, one program",
        lambda: run.sample_actions(observation, noise, num_steps=STEPS),
        vision + prefill + loop,
    )
    yield f"vision, {count} pictures", lambda: embed(run, observation), vision
    picture = next(iter(observation.images.values()))
    yield "vision, one picture", lambda: run.embed_images(picture), floors.vision(config, 1, 2)
    yield "prefix", lambda: run.prefill(observation, known), prefill
    yield (
        "new prompt: prefix and loop",
        lambda: denoise(run.prefill(observation, known)),
        (prefill + loop),
    )
    yield f"new seed: loop of {STEPS} steps", lambda: denoise(prefix), loop
    yield "the same, every step awaited", stepwise, loop


def fast_calls(run: Pi0FastPrograms, config: Pi0FastConfig) -> Iterator[tuple[str, Callable, Work]]:
    """What is measured of pi0-FAST, with the least work of each."""
    observation = observe(config, TEXT["pi0-FAST"])
    known = embed(run, observation)
    state = run.prefill(observation, known, max_decoding_steps=TOKENS)
    count = len(config.image_slots)
    vision = floors.vision(config, count, 2)
    prefill = floors.prefix(config, config.prefix_len, 2)
    loop = floors.token(config, config.prefix_len + TOKENS // 2, 2).times(TOKENS)

    def fill_cache():
        return run.prefill(observation, known, max_decoding_steps=TOKENS)

    yield (
        f"chunk of {TOKENS} tokens, one program",
        lambda: run.sample_actions(observation, max_decoding_steps=TOKENS),
        vision + prefill + loop,
    )
    yield f"vision, {count} pictures", lambda: embed(run, observation), vision
    yield "prefix", fill_cache, prefill
    yield "new prompt: prefix and loop", lambda: run.decode_all(fill_cache()), prefill + loop
    yield f"loop of {TOKENS} tokens", lambda: run.decode_all(state), loop


def open_model(name: str, tiny: bool) -> tuple[Pi0Programs | Pi0FastPrograms, Config, Figure]:
    """The compiled entry points, the sizes, and how long drawing and placing the weights took."""
    config, began = config_of(name, tiny), time.perf_counter()
    model = draw_model(config)
    sizes = [parameter.size for parameter in parameters_of(model).values()]
    jax.block_until_ready(list(parameters_of(model).values()))
    took = time.perf_counter() - began
    note = f"{sum(sizes) / 1e6:,.1f} million parameters, {os.cpu_count()} cores"
    run = Pi0Programs(model) if isinstance(model, Pi0) else Pi0FastPrograms(model)
    return run, config, Figure(name, "weights drawn and placed", took, note=note)


def calls_of(
    run: Pi0Programs | Pi0FastPrograms, config: Config
) -> Iterator[tuple[str, Callable, Work]]:
    """What is measured of a model of either kind."""
    if isinstance(config, Pi0FastConfig):
        assert isinstance(run, Pi0FastPrograms)
        return fast_calls(run, config)
    assert isinstance(run, Pi0Programs)
    return flow_calls(run, config)


def page_part(name: str, tiny: bool) -> Iterator[Figure]:
    """What the page's answer takes, by one policy."""
    model = draw_model(config_of(name, tiny))
    policy, took = bench_answers.opened(model)
    how = policy.info.computation
    note = f"{how.device}, {how.dtype}; {how.loop}, a step {policy.step_ms:.2f} ms"
    yield Figure(name, "compiled, and a step measured", took, note=note)
    rates = next((r for word, r in KNOWN.items() if word in device()), None)
    rates = rates or measured_rates(tiny)
    for answer in bench_answers.answers(policy):
        seconds, stages = bench_answers.measured(answer)
        yield Figure(name, answer.what, seconds, rates.seconds(answer.work), stages)
    yield Figure(name, "peak memory", None, note=f"{peak_bytes() / 2**30:.2f} GiB")


def part(name: str, tiny: bool) -> Iterator[Figure]:
    """The figures of one part, each as soon as it is there."""
    if name.startswith(PAGE):
        yield from page_part(name.removeprefix(PAGE), tiny)
        return
    if name == "both":
        yield from both(tiny)
        return
    run, config, figure = open_model(name, tiny)
    yield figure
    measured = measured_rates(tiny)
    rates = next((r for word, r in KNOWN.items() if word in device()), measured)
    note = f"{measured.flop / 1e12:.3g} Tflop/s, {measured.read / 1e9:.0f} GB/s through JAX"
    yield Figure("device", "measured", None, note=note)
    for what, call, work in calls_of(run, config):
        began = time.perf_counter()
        jax.block_until_ready(call())
        first = time.perf_counter() - began
        seconds, floor = wall(call), rates.seconds(work)
        note = f"first call {first:.1f} s"
        if what.startswith("loop of"):
            note += f"; a token {1e3 * seconds / TOKENS:.2f} ms"
        yield Figure(name, what, seconds, floor, note)
    yield Figure(name, "peak memory", None, note=f"{peak_bytes() / 2**30:.2f} GiB")


def both(tiny: bool) -> Iterator[Figure]:
    """Both models in memory, asked in turn."""
    runs = {name: open_model(name, tiny)[:2] for name in TEXT}
    for name, (run, config) in runs.items():
        _, call, _ = next(calls_of(run, config))
        yield Figure(name, "chunk, with the other model in memory", wall(call))
    yield Figure("both", "peak memory", None, note=f"{peak_bytes() / 2**30:.2f} GiB")


def device() -> str:
    return jax.devices()[0].device_kind


# --- from the command line ----------------------------------------------------------------------


def child(name: str, tiny: bool) -> None:
    """Runs in the process of one part: a JSON line for each figure."""
    for figure in part(name, tiny):
        print(json.dumps(dataclasses.asdict(figure)), flush=True)


def run_part(name: str, limit_s: float, tiny: bool, programs: str) -> Iterator[Figure]:
    """The figures of a part as its process tells them; a line of its own where it ends early.
    programs: a folder where the parts keep what they compiled for each other."""
    kept = {"JAX_COMPILATION_CACHE_DIR": programs}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "playground.tools.bench", "--full-size", "--part", name]
    process = subprocess.Popen(
        [*command, *(["--tiny"] if tiny else [])],
        cwd=_ROOT,
        env={**os.environ, **kept},
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    began = time.perf_counter()
    with process:
        try:
            yield from figures_of(process.stdout)
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if status:
        late = time.perf_counter() - began >= limit_s
        why = f"ended at its limit of {limit_s:.0f} s" if late else f"failed with status {status}"
        yield Figure(name, "part", None, note=why)


def figures_of(lines: IO[str] | None) -> Iterator[Figure]:
    assert lines is not None
    for line in lines:
        if line.startswith("{"):
            yield Figure(**json.loads(line))


def row(figure: Figure) -> str:
    """For people: milliseconds, the floor's, and their ratio."""
    label = f"{figure.model}: {figure.what}"
    if figure.seconds is None:
        return f"{label:60}{'':30}  {figure.note}"
    times = f"{1e3 * figure.seconds:10.1f}"
    if figure.floor_s is not None:
        times += f"{1e3 * figure.floor_s:10.2f}{figure.seconds / figure.floor_s:10.1f}"
    return f"{label:60}{times:30}  {figure.note}".rstrip()


def main(arguments: argparse.Namespace) -> int:
    """All parts, or the one that `only` names; how many did not end well."""
    if arguments.part:
        child(arguments.part, arguments.tiny)
        return 0
    limits = PAGE_LIMITS_S if arguments.page else LIMITS_S
    names = [arguments.only] if arguments.only else list(limits)
    if unknown := [name for name in names if name not in limits]:
        raise ValueError(f"--only is {unknown[0]!r}; expected one of {', '.join(limits)}")
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}")
    print(f"{'':60}{'ms':>10}{'floor':>10}{'times':>10}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as programs:
        for name in names:
            for figure in run_part(name, limits[name], arguments.tiny, programs):
                print(row(figure), flush=True)
                figures.append(figure)
    if arguments.json:
        record = {"jax": jax.__version__, "figures": [dataclasses.asdict(f) for f in figures]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return sum(figure.what == "part" for figure in figures)
