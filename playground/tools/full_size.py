"""The real 3B shapes on this machine: random weights in openpi's layout, opened as a user's folder.

    python -m playground.tools.full_size FOLDER                 # pi0, then pi0-FAST: 12 GB each
    python -m playground.tools.full_size FOLDER --small         # the same at small sizes, to try it
    python -m playground.tools.full_size FOLDER --layers 4 9 --loads 2
                                        # 4 of Gemma's 18 layers and 9 of SigLIP's 27; only opened
                                        # and asked, twice

For each policy, in processes of their own so that their memory is measured apart: the folder is
written, opened by the path that `app.py --checkpoint` takes, and asked; and a few stages are
computed with float32 weights and with bfloat16 weights, and compared. Answers of random weights
mean nothing; loading, memory, time and rounding are those of the real ones. Every process compiles
anew.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from models.checkpoints.assembly import abstract_model, load_openpi, parameters_of, random_parameter
from models.checkpoints.openpi import rows
from models.config import Config, DType
from models.observation import example_observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0FastPrograms
from playground import process_memory
from playground.checkpoints import memory_plan
from playground.checkpoints.load import TOKENIZER, load
from playground.checkpoints.schema import read_openpi_file
from playground.policies.base import sample_noise
from playground.robots.norm_stats import write_norm_stats
from playground.serving.events import Done
from playground.trace import Options, RawObservation, Stats
from playground.training.tokenizers import filled_up, fit_action_tokenizer

BASES = {"pi0": "pi0_droid", "pi0_fast": "pi0_fast_droid"}
TOKENS = 8  # that pi0-FAST is let write
_SMALL_EXPERT = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2, "head_dim": 16}
SMALL = {
    "vision": {"width": 48, "depth": 2, "mlp_dim": 96, "num_heads": 4},
    "language": _SMALL_EXPERT,
    "action_expert": {**_SMALL_EXPERT, "width": 32},
    "vocab_size": 4096,
}

# --- a folder of random weights -----------------------------------------------------------------


def layers(language: int, vision: int) -> dict:
    """Sizes for `write`: the real widths with fewer layers."""
    depth = {"depth": language}
    return {"vision": {"depth": vision}, "language": depth, "action_expert": depth}


def write(family: str, folder: Path, *, sizes: Mapping | None = None, seed: int = 0) -> Path:
    """A checkpoint folder as openpi's training leaves it, and the JSON config that opens it, whose
    path is returned. The host holds one array at a time, and its compressed bytes. sizes: what the
    config says of them, such as `SMALL`; the real ones without."""
    folder.mkdir(parents=True)
    fast = family == "pi0_fast"
    asked: dict = {"base": BASES[family], "name": f"random_{family}", "folder": "."}
    asked["text_tokenizer"] = "text.model"
    if fast:
        asked["action_tokenizer"] = "fast"
        chunks = np.random.default_rng(seed).normal(size=(64, 10, 8)).cumsum(axis=1) / 4
        fit_action_tokenizer(chunks, vocab_size=512).save(folder / "fast")
    given = sizes or {}
    asked |= {key: value for key, value in given.items() if key != "action_expert" or not fast}
    path = folder / "config.json"
    path.write_text(json.dumps(asked, indent=1) + "\n")
    entry = read_openpi_file(path)
    text = filled_up(TOKENIZER.read_bytes(), entry.config.vocab_size)
    (folder / "text.model").write_bytes(text)
    dims = {"state": len(entry.robot.state), "actions": len(entry.robot.actions)}
    stats = {x: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n) for x, n in dims.items()}
    place = folder / "assets" / entry.asset_id
    place.mkdir(parents=True)
    write_norm_stats(place / "norm_stats.json", stats)
    write_params(entry.config, folder / "params", seed)
    return path


def write_params(config: Config, params: Path, seed: int = 0) -> None:
    """Random float32 weights, array by array, in the database that Orbax writes: the same keys and
    zarr metadata, each array one chunk. Without Orbax's own notes, which nothing here reads."""
    shapes = {name: p.shape for name, p in parameters_of(abstract_model(config)).items()}
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params.absolute()}/"}}
    rng = np.random.default_rng(seed)
    for row in rows(config):
        array = np.empty((row.layers or 1, *row.stored_shape[row.layers is not None :]), np.float32)
        for index, layer in enumerate(array):
            names = row.module_paths(index)
            layer[...] = row.pack([random_parameter(n, shapes[n], rng) for n in names])
        array = array.reshape(row.stored_shape)
        name = f"params.{row.path.replace('/', '.')}.value"
        metadata = {
            "shape": list(array.shape),
            "chunks": list(array.shape),
            "dtype": "<f4",
            "compressor": {"id": "zstd", "level": 1},
        }
        spec = {
            "driver": "zarr",
            "kvstore": {**database, "path": f"{name}/"},
            "metadata": metadata,
            "create": True,
        }
        # Handed over without a copy, or the largest would be held three times.
        ts.open(spec).result().write(array, can_reference_source_data_indefinitely=True).result()
        del array, layer


# --- opened as a user's -------------------------------------------------------------------------


def peak_gb() -> float:
    """The most memory that this process has held so far."""
    return process_memory.peak_bytes() / 1e9


def serve(config: Path) -> dict:
    """Opens the folder as `app.py --checkpoint` does, and asks. Seconds, and GB of memory."""
    stored = sum(f.stat().st_size for f in (config.parent / "params").rglob("*") if f.is_file())
    report, began = {"stored_gb": stored / 1e9}, time.perf_counter()
    steps = load([{"checkpoint": str(config.parent), "config": str(config)}])
    while True:
        try:
            phase = next(steps)
        except StopIteration as stop:
            (policy,) = stop.value.values()
            break
        if phase.phase == "compiling":
            report |= {"load_s": time.perf_counter() - began, "peak_load_gb": peak_gb()}
    report["ready_s"] = time.perf_counter() - began
    info, size = policy.info, policy.info.image_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    images = {slot.name: picture for slot in info.slots if slot.required}
    state = np.array(policy.robot.resting_state)
    raw = RawObservation(info.robot, images, {}, "pick up the red cube", state)
    began = time.perf_counter()
    *_, done = policy.infer(raw, Options(max_tokens=TOKENS))
    report["answer_s"] = time.perf_counter() - began
    assert isinstance(done, Done)
    trace = done.trace
    finite = trace.tokens if trace.actions is None else np.isfinite(trace.actions).all()
    report["answered"] = bool(finite)
    used = {"cpu_s": time.process_time(), "peak_gb": peak_gb()}
    return report | used | {"device": jax.devices()[0].device_kind}


# --- stages in two precisions -------------------------------------------------------------------


def stages(config: Path, weights: DType, arithmetic: DType) -> dict[str, np.ndarray]:
    """What passes through the model on the way to an answer, float32, from one random picture and
    twenty tokens: the same in every precision."""
    memory_plan.prepare(narrow=True)
    entry = read_openpi_file(config)
    sizes = dataclasses.replace(entry.config, image_slots=("base_0_rgb",), dtype=arithmetic)
    model = load_openpi(config.parent, sizes, dtype=weights)
    rng, size = np.random.default_rng(0), sizes.vision.image_size
    picture = rng.uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, sizes.vocab_size, (1, sizes.max_token_len), np.int32)
    seen = dataclasses.replace(
        example_observation(sizes), tokens=tokens, token_mask=np.arange(tokens.size)[None] < 20
    )
    if isinstance(model, Pi0):
        run = Pi0Programs(model)
        image = run.embed_images(picture)
        prefix = run.prefill(seen, {"base_0_rgb": image})
        valid = np.asarray(prefix.input_mask)[0]
        noise = sample_noise(0, 1, sizes.action_horizon, sizes.action_dim)
        (step,) = run.denoise(prefix, seen, noise, num_steps=1)
        found = {"velocity": step.v_t[0], "chunk": step.x_t[-1]}
    else:
        run = Pi0FastPrograms(model)
        image = run.embed_images(picture)
        prefix = run.prefill(seen, {"base_0_rgb": image}, max_decoding_steps=1)
        valid = np.flatnonzero(prefix.visible[0])
        found = {"logits": prefix.logits}
    keys = [prefix.cache.k[layer] for layer in (0, -1)]
    found |= {
        "image tokens": image,
        "keys, first layer": keys[0][:, valid],
        "keys, last layer": keys[1][:, valid],
    }
    return {name: np.asarray(jnp.asarray(x, jnp.float32)) for name, x in found.items()}


def deviations(config: Path, exact: dict[str, np.ndarray], weights: DType, arithmetic: DType):
    """By stage, the root mean square difference from `exact`, as a share of its size."""
    rms = lambda x: math.sqrt(np.mean(np.square(x, dtype=np.float64)))  # noqa: E731
    found = stages(config, weights, arithmetic)
    return {name: rms(found[name] - exact[name]) / rms(exact[name]) for name in sorted(exact)}


# --- all of it ----------------------------------------------------------------------------------


def opened(folder: Path, family: str, *, sizes: Mapping, loads: int) -> list[dict]:
    """Writes the folder unless it is there, and opens and asks it so many times."""
    config = folder / family / "config.json"
    if not config.exists():
        _alone(write, family, folder / family, sizes=sizes)
    return [_alone(serve, config) for _ in range(loads)]


def measure(folder: Path, family: str, *, sizes: Mapping | None, keep: bool) -> dict:
    """Writes, opens, asks and compares; removes the folder unless it is to be kept."""
    place = folder / family
    began = time.perf_counter()
    config = _alone(write, family, place, sizes=sizes)
    report = {"write_s": time.perf_counter() - began, **_alone(serve, config)}
    exact = _alone(stages, config, "float32", "float32")
    report["deviations"] = {
        arithmetic: _alone(deviations, config, exact, "bfloat16", arithmetic)
        for arithmetic in ("float32", "bfloat16")
    }
    if not keep:
        shutil.rmtree(place)
    return report


def _alone(call: Callable, *arguments, **options):
    """The result of a call in a process of its own, whose memory ends with it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments, options)


def show(family: str, report: dict) -> None:
    """For people."""
    share = report["peak_load_gb"] / report["stored_gb"]
    print(f"\n{family} on {report['device']}")
    written = f", written in {report['write_s']:.0f} s" if "write_s" in report else ""
    print(f"  stored {report['stored_gb']:.1f} GB{written}")
    peak = f"{report['peak_load_gb']:.1f} GB ({share:.2f} x)"
    print(f"  loaded in {report['load_s']:.1f} s, peak {peak}")
    print(f"  ready after {report['ready_s']:.1f} s, which compile and run it once")
    used = f"{report['cpu_s']:.1f} CPU-seconds in all"
    print(f"  answered in {report['answer_s']:.1f} s, peak {report['peak_gb']:.1f} GB; {used}")
    for arithmetic, found in report.get("deviations", {}).items():
        line = ", ".join(f"{name} {share:.2%}" for name, share in found.items())
        print(f"  weights in bfloat16, arithmetic in {arithmetic}, against float32: {line}")


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write, 13 GB at a time")
    parser.add_argument("--families", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--small", action="store_true", help="small sizes")
    parser.add_argument(
        "--layers", nargs=2, type=int, metavar=("GEMMA", "SIGLIP"), help="so many, of full width"
    )
    parser.add_argument("--loads", type=int, help="only open and ask, so many times; keeps them")
    parser.add_argument("--keep", action="store_true", help="leave the folders there")
    return parser


def main() -> None:
    arguments = settings().parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sizes = layers(*arguments.layers) if arguments.layers else SMALL if arguments.small else {}
    found: dict = {}
    for family in arguments.families:
        if arguments.loads:
            found[family] = opened(arguments.folder, family, sizes=sizes, loads=arguments.loads)
        else:
            found[family] = measure(arguments.folder, family, sizes=sizes, keep=arguments.keep)
        for report in found[family] if arguments.loads else [found[family]]:
            show(family, report)
        (arguments.folder / "full_size.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
