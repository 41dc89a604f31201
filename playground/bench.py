"""How fast it is: `python -m playground.bench`.

    --mid CONFIG.json   random weights at the mid sizes that openpi was measured at
    --full-size         random weights at the 3B sizes, one model at a time
    --json FILE         the figures for programs
    (none of these)     the policies that the page opens

CPU-seconds count all threads of the process and are what compares between machines; wall seconds
are what a person waits. Every figure is the median of several warm calls whose result was awaited,
after a float32 matrix product of known size that says what this machine gave at that time.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from models.checkpoint import random_model
from models.compiled import compiled
from models.config import (
    PI0,
    PI0_FAST,
    Config,
    ExpertConfig,
    Pi0Config,
    Pi0FastConfig,
    VisionConfig,
)
from models.observation import Observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from playground.catalog import BUNDLED_PAIR
from playground.loading import open_policy
from playground.policy import Policy, sample_noise
from playground.trace import Options, RawObservation

TOKENS = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One line: median CPU-seconds and wall seconds of a call."""

    subject: str
    what: str
    cpu_s: float
    wall_s: float


def measure(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median (CPU-seconds, wall seconds) of `repeats` calls after one that is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(call())
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpus, walls = zip(*times, strict=True)
    return statistics.median(cpus), statistics.median(walls)


def first_call(call: Callable[[], object]) -> tuple[float, float]:
    """(CPU-seconds, wall seconds) of one call, compiling included."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(call())
    return time.process_time() - cpu, time.perf_counter() - wall


def calibrate(repeats: int) -> Figure:
    """A float32 product of two 1024 x 1024 matrices: 2.1 GFLOP."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((1024, 1024), np.float32))
    product = jax.jit(lambda a: a @ a)
    cpu, wall = measure(lambda: product(a), repeats)
    return Figure("machine", f"matrix product, {2.147 / wall:.0f} GFLOP/s", cpu, wall)


# --- models with random weights -----------------------------------------------------------------


def mid_config(case: dict) -> Config:
    """The config that a case of the mid-size file describes. S/14 is width 384, depth 12, 6 heads
    of a vision transformer with MLP 1536."""
    if case["siglip_variant"] != "S/14":
        raise ValueError(f"siglip_variant is {case['siglip_variant']!r}; expected 'S/14'")
    vision = VisionConfig(
        width=384, depth=12, mlp_dim=1536, num_heads=6, patch_size=14, image_size=224
    )
    shared = {
        "vision": vision,
        "language": ExpertConfig(**case["llm"]),
        "vocab_size": case["vocab"],
        "action_dim": case["action_dim"],
        "action_horizon": case["action_horizon"],
        "max_token_len": case["text_len"],
        "dtype": case["dtype"],
        "image_slots": tuple(case["cameras"]),
    }
    if case["model"] == "pi0_fast":
        return Pi0FastConfig(**shared)
    return Pi0Config(**shared, action_expert=ExpertConfig(**case["expert"]), pi05=False)


def random_observation(config: Config, masked: tuple[str, ...], valid: int, seed: int):
    """Random pictures and `valid` prompt tokens; masked cameras are left out (pi0, pi0.5)."""
    rng = np.random.default_rng(seed)
    size, length = config.vision.image_size, config.max_token_len
    slots = [slot for slot in config.image_slots if slot not in masked]
    row = lambda values: jnp.asarray(values)[None]  # noqa: E731
    return Observation(
        images={s: row(rng.uniform(-1, 1, (size, size, 3)).astype(np.float32)) for s in slots},
        image_masks={s: jnp.ones(1, bool) for s in slots},
        state=row(rng.standard_normal(config.action_dim, np.float32)),
        tokens=row(rng.integers(3, config.vocab_size, length, np.int32)),
        token_mask=row(np.arange(length) < valid),
        token_ar_mask=row(np.zeros(length, np.int32)),
    )


def bench_flow(name: str, model: Pi0, observation: Observation, repeats: int) -> list[Figure]:
    """A chunk, and what is left of it when something is known already."""
    config, run = model.config, Pi0Programs(model)
    shape = (config.action_horizon, config.action_dim)
    noise = jnp.asarray(sample_noise(0, 1, *shape))
    chunk = lambda: run.sample_actions(observation, noise, num_steps=10)  # noqa: E731
    figures = [Figure(name, "chunk, first call", *first_call(chunk))]
    embed = compiled(model, Pi0.embed_images)
    images = jnp.concatenate(list(observation.images.values()))
    known = dict(zip(observation.images, jnp.split(embed(images), len(images)), strict=True))
    prefix = jax.block_until_ready(run.prefill(observation, known))
    many = jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), (prefix, observation))
    noises = jnp.asarray(sample_noise(0, 8, *shape))

    def prompt():
        return run.denoise_all(run.prefill(observation, known), observation, noise, num_steps=10)

    calls = {
        "chunk, 10 steps": chunk,
        "vision alone": lambda: embed(images),
        "prefix alone": lambda: run.prefill(observation, known),
        "new prompt, same images": prompt,
        "new seed or state": lambda: run.denoise_all(prefix, observation, noise, num_steps=10),
        "8 seeds": lambda: run.denoise_all(*many, noises, num_steps=10),
        "stepwise, every step awaited": lambda: [
            jax.block_until_ready(step) for step in run.denoise(prefix, observation, noise, 10)
        ],
    }
    return figures + [Figure(name, what, *measure(call, repeats)) for what, call in calls.items()]


def bench_fast(name: str, model: Pi0Fast, observation: Observation, repeats: int) -> list[Figure]:
    """TOKENS tokens, whatever they are (random weights do not stop), and the parts."""
    run = Pi0FastPrograms(model)
    how = {"max_decoding_steps": TOKENS}
    chunk = lambda: run.sample_actions(observation, **how)  # noqa: E731
    figures = [Figure(name, f"{TOKENS} tokens, first call", *first_call(chunk))]
    embed = compiled(model, Pi0Fast.embed_images)
    images = jnp.concatenate(list(observation.images.values()))
    known = dict(zip(observation.images, jnp.split(embed(images), len(images)), strict=True))
    state = jax.block_until_ready(run.prefill(observation, known, **how))
    calls = {
        f"chunk of {TOKENS} tokens": chunk,
        "vision alone": lambda: embed(images),
        "prefix alone": lambda: run.prefill(observation, known, **how),
        f"{TOKENS} tokens alone": lambda: run.decode_all(state),
        "stepwise, every token awaited": lambda: list(run.decode(state, **how)),
    }
    return figures + [Figure(name, what, *measure(call, repeats)) for what, call in calls.items()]


def bench_random(name: str, config: Config, case: dict, repeats: int) -> list[Figure]:
    """Of a model with random weights from a seed."""
    seen = dict(zip(case["cameras"], case["camera_mask"], strict=True))
    masked = tuple(slot for slot, here in seen.items() if not here)
    observation = random_observation(config, masked, case["text_valid"], case["seed"])
    model = random_model(config, case["seed"], case["params_dtype"])
    bench = bench_flow if isinstance(config, Pi0Config) else bench_fast
    return bench(name, model, observation, repeats)


def full_size_cases() -> dict[str, tuple[Config, dict]]:
    """pi0 with three views and pi0-FAST, bfloat16 weights."""
    common = {"camera_mask": (True, True, True), "text_valid": 20, "seed": 0}
    return {
        name: (config, {**common, "cameras": config.image_slots, "params_dtype": "bfloat16"})
        for name, config in {"pi0 3B": PI0, "pi0-FAST 3B": PI0_FAST}.items()
    }


# --- the page's policies ------------------------------------------------------------------------


def bench_policy(policy: Policy, repeats: int) -> list[Figure]:
    """What a visitor waits for, every step and token recorded, with and without caches."""
    info, rng = policy.info, np.random.default_rng(0)
    state = np.array(policy.robot.resting_state)

    def observe(fresh: bool) -> RawObservation:
        pixels = rng.integers(0, 256, (224, 224, 3), np.uint8) if fresh else grey
        images = {slot.name: pixels for slot in info.slots if slot.required}
        return RawObservation(info.robot, images, {}, "pick up the red cube", state)

    grey = np.full((224, 224, 3), 128, np.uint8)
    answer = lambda fresh: [0 for _ in policy.infer(observe(fresh), Options())]  # noqa: E731
    name = f"{info.title} ({info.badge})"
    return [
        Figure(name, "first answer", *first_call(lambda: answer(True))),
        Figure(name, "answer, new picture", *measure(lambda: answer(True), repeats)),
        Figure(name, "answer, same picture", *measure(lambda: answer(False), repeats)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mid", type=Path, help="JSON file of mid-size cases")
    parser.add_argument("--full-size", action="store_true", help="3B shapes, random weights")
    parser.add_argument("--repeats", type=int, default=5, help="warm calls a figure (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    figures = [calibrate(arguments.repeats)]
    if arguments.mid:
        for name, case in json.loads(arguments.mid.read_text()).items():
            figures += bench_random(name, mid_config(case), case, arguments.repeats)
    elif arguments.full_size:
        for name, (config, case) in full_size_cases().items():
            figures += bench_random(name, config, case, arguments.repeats)
    else:
        for name in BUNDLED_PAIR:
            figures += bench_policy(open_policy(name), arguments.repeats)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show(figures, peak_mb)
    if arguments.json:
        record = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "peak_memory_mb": peak_mb,
            "figures": [dataclasses.asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def show(figures: list[Figure], peak_mb: float) -> None:
    """A table for people."""
    print(f"{'':58}{'CPU s':>10}{'wall s':>10}")
    for figure in figures:
        label = f"{figure.subject}: {figure.what}"
        print(f"{label:58}{figure.cpu_s:10.3f}{figure.wall_s:10.3f}")
    print(f"{'peak memory':58}{peak_mb:10.0f} MB  ({jax.devices()[0].device_kind})")


if __name__ == "__main__":
    main()
