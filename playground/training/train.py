"""Trains a bundled policy: `python -m playground.training.train pi0` (or pi0_fast).

The same command after a stop goes on from the last checkpoint, with whatever demonstrations there
are by then. On a machine that is shared, one thread a process is fastest: prefix `taskset -c 0`.
"""

import argparse
import csv
import dataclasses
import functools
import gc
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
from flax import nnx

from models.checkpoints.bundled import load_bundled
from models.compiled import options
from models.config import (
    PI0_FAST_TABLETOP,
    PI0_TABLETOP,
    PI05_TABLETOP,
    Pi0FastConfig,
)
from models.fast_tokenizer import FastActionTokenizer
from models.tokenizer import NUM_SEG
from playground.robots.norm_stats import read_norm_stats, write_norm_stats
from playground.training import batches, commands, demonstrations, losses
from playground.training.curves import draw

RUNS = Path("runs")
FIGURES = (
    "loss",
    "policy",
    "cube patch right",
    "cube place off",
    "named patch right",
    "named place off",
    "named place off in words",
    "other patch right",
    "other place off",
    "other place off in words",
    "state off",
    "state dimension right",
    "upcoming off",
    "count right",
    "gradient",
)
CONFIGS = {
    "pi0": PI0_TABLETOP,
    "pi05": PI05_TABLETOP,
    "pi0_fast": PI0_FAST_TABLETOP,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """How a policy is trained. steps: length of the cosine schedule; sight: how many of them, at
    first, train sight alone; images x prompts rows a step; draws: of noise and time a row (pi0);
    eased: the share of the steps, at first, that are made easier for pi0-FAST (`losses.loss`)."""

    steps: int
    sight: int
    images: int
    prompts: int
    draws: int
    eased: float = 0.0
    peak: float = 1.5e-3
    warmup: int = 200
    final: float = 0.02
    clip: float = 1.0
    decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0


_FLOW = Schedule(steps=8_000, sight=1_000, images=16, prompts=2, draws=2)
SCHEDULES = {
    "pi0": _FLOW,
    "pi05": dataclasses.replace(_FLOW, steps=5_000, sight=0),
    "pi0_fast": Schedule(steps=16_000, sight=0, eased=0.6, images=8, prompts=2, draws=1, peak=1e-3),
}


@functools.cache  # one for equal schedules, so that their steps are one program
def optimiser(schedule: Schedule) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the layers, with steps of AdamW's usual size (Liu et
    al. 2025, arXiv:2502.16982), and AdamW with Nesterov's momentum (Dozat 2016) for all else, under
    a cosine schedule with warm-up; gradients clipped by their global norm."""
    warmup = min(schedule.warmup, schedule.steps // 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, schedule.peak, warmup, schedule.steps, schedule.peak * schedule.final
    )
    return optax.chain(
        optax.clip_by_global_norm(schedule.clip),
        optax.contrib.muon(
            rate,
            consistent_rms=0.2,
            weight_decay=schedule.decay,
            adam_b2=0.99,
            adam_weight_decay=schedule.decay,
            muon_weight_dimension_numbers=_layers_matrices,
        ),
    )


def _layers_matrices(params: optax.Params) -> optax.Params:
    """Which arrays Muon updates: those of the blocks that a vector is multiplied by."""
    matrix = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map_with_path(
        lambda path, x: matrix if "blocks" in jax.tree_util.keystr(path) and x.ndim == 2 else None,
        params,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Trainer:
    """The compiled step of a policy: graph and optimiser are fixed, `state` goes in and out. A
    state is a dict of step, params, ema (of the params) and optimiser."""

    schedule: Schedule
    graph: nnx.GraphDef
    tx: optax.GradientTransformation

    def begin(self, params: nnx.State) -> dict:
        return {
            "step": jnp.int32(0),
            "params": params,
            "ema": params,
            "optimiser": self.tx.init(params),
        }

    def step(
        self, state: dict, batch: batches.Batch, sight: bool, eased: bool = False
    ) -> tuple[dict, dict]:
        """One update, of sight alone or of everything: (the next state, figures). The state that
        came is used up."""
        return _compiled_step()(self, state, batch, sight, eased)

    def _step(self, state: dict, batch: batches.Batch, sight: bool, eased: bool):
        key = jax.random.fold_in(jax.random.key(self.schedule.seed), state["step"])

        def total(params):
            trainee = nnx.merge(self.graph, params)
            if sight:
                return losses.sight_loss(trainee, batch)
            return losses.loss(trainee, batch, key, self.schedule.draws, eased)

        (value, figures), gradients = jax.value_and_grad(total, has_aux=True)(state["params"])
        updates, optimiser = self.tx.update(gradients, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        # Early on the average is over what there is: no memory of the random start.
        keep = jnp.minimum(self.schedule.ema, (1.0 + state["step"]) / (10.0 + state["step"]))
        ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state["ema"], params)
        figures = {"loss": value, **figures, "gradient": optax.tree.norm(gradients)}
        state = {"step": state["step"] + 1, "params": params, "ema": ema, "optimiser": optimiser}
        return state, figures


@functools.cache
def _compiled_step():
    return jax.jit(
        Trainer._step,
        static_argnums=(0, 3, 4),
        donate_argnums=1,
        compiler_options=options(jax.devices()[0]),
    )


def is_fast(name: str) -> bool:
    return isinstance(CONFIGS[name], Pi0FastConfig)


def trainee_of(name: str, seed: int) -> losses.Trainee:
    return losses.Trainee(CONFIGS[name], rngs=nnx.Rngs(seed))


def checkpoints(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    return ocp.CheckpointManager((folder / "checkpoints").resolve(), options=options)


def restore(manager: ocp.CheckpointManager, like: dict, step: int | None = None) -> dict:
    """A training state as `like`. Raises ValueError if it is of another model or schedule."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    step = manager.latest_step() if step is None else step
    return dict(manager.restore(step, args=ocp.args.StandardRestore(abstract)))


def warm_start(state: dict, folder: Path, fast: Path | None = None) -> dict:
    """What an exported policy has learned, as far as this one has the same arrays: sight and
    language for pi0-FAST from a pi0 (both of whose real sizes begin from one vision-language
    model), everything but the training-only heads from a policy of its own kind.

    fast: this run's action tokenizer, whose tokens begin as those of the exported policy that tell
    nearly the same coefficients; so a finer scale need not be learned from nothing."""
    _, model = load_bundled(folder)
    if fast is not None and (folder / "fast").is_dir():
        old, new = (FastActionTokenizer.load(path) for path in (folder / "fast", fast))
        after = model.config.vocab_size - NUM_SEG - 1  # ids count down from here
        table = model.gemma.embedding[...]
        rows = table[after - batches.nearest_tokens(new, old)]
        model.gemma.embedding[...] = table.at[after - np.arange(new.vocab_size)].set(rows)
    learned: dict[tuple, Any] = {
        ("policy", *path): value for path, value in nnx.to_flat_state(nnx.state(model))
    }
    flat = nnx.to_flat_state(state["params"])
    if unlike := [path for path, x in flat if path in learned and learned[path].shape != x.shape]:
        names = ", ".join(".".join(map(str, path)) for path in unlike[:3])
        raise ValueError(f"{folder} is a policy of other sizes: {names} and others differ")
    params = nnx.from_flat_state([(path, learned.get(path, value)) for path, value in flat])
    return {**state, "params": params, "ema": jax.tree.map(jnp.copy, params)}


def prepare(name: str, looks: demonstrations.Looks, folder: Path) -> dict:
    """Norm stats and, for pi0-FAST, the fitted tokenizer: made once a run, then kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "norm_stats.json"
    if not path.exists():
        stats = batches.norm_stats(looks)
        if is_fast(name):
            print(batches.fit_fast(looks, stats, folder / "fast"), flush=True)
        write_norm_stats(path, stats)
    return read_norm_stats(path)


def train(
    name: str,
    schedule: Schedule,
    folder: Path,
    data: Path,
    start_from: Path | None = None,
    command: Sequence[str] = (),
) -> None:
    """Trains until the schedule's last step; prints and logs every 50 steps, saves every few
    minutes. `command` is noted in the folder as what the run goes on by."""
    looks = demonstrations.load(data)
    stats = prepare(name, looks, folder)
    batcher = batches.Batcher(looks, CONFIGS[name], stats, folder / "fast", schedule.seed)
    graph, params = nnx.split(trainee_of(name, schedule.seed))
    trainer = Trainer(schedule, graph, optimiser(schedule))
    state, manager = trainer.begin(params), checkpoints(folder)
    if manager.latest_step() is not None:
        state = restore(manager, state)
    elif start_from:
        state = warm_start(state, start_from, folder / "fast" if is_fast(name) else None)
    # Donated buffers must not be shared between the average and the parameters.
    state = jax.tree.map(jnp.copy, state)
    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]["policy"]))
    first = int(state["step"])
    print(f"{name}: {count:,} parameters, {len(looks):,} looks, from step {first}", flush=True)
    if command:
        commands.note(folder, command, first)
    where = {"device": jax.devices()[0].device_kind, "demonstrations": data.as_posix()}
    (folder / "schedule.json").write_text(
        json.dumps(dataclasses.asdict(schedule) | where, indent=1) + "\n"
    )

    gc.freeze()  # collections would go through all modules again and again
    # A polite stop (SIGTERM) saves first.
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    begun, saved, recent = time.monotonic(), time.monotonic(), []
    for step in range(first, schedule.steps):
        batch = batcher.batch(step, schedule.images, schedule.prompts)
        stage = step < schedule.sight, step < schedule.eased * schedule.steps
        state, figures = trainer.step(state, batch, *stage)
        recent.append(figures)
        if (step + 1) % 50 == 0 or step + 1 == schedule.steps:
            jax.block_until_ready(recent)  # steps are dispatched ahead of the device
            seconds = (time.monotonic() - begun) / len(recent)
            log_row(folder, step + 1, seconds, recent, len(looks))
            recent, begun = [], time.monotonic()
        if time.monotonic() - saved > 240 or step + 1 == schedule.steps or stopped.is_set():
            manager.save(step + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            saved = time.monotonic()
            draw(folder / "log.csv", folder / "curves.png", name)
        if stopped.is_set():
            print(f"stopped after step {step + 1}; the same command goes on", flush=True)
            return


def log_row(folder: Path, step: int, seconds: float, recent: list[dict], looks: int) -> None:
    # While sight is trained alone the other figures do not exist: NaN, empty in a plot.
    means = {
        key: float(np.mean([figures.get(key, np.nan) for figures in recent])) for key in FIGURES
    }
    print(
        f"step {step}, {seconds:.2f} s a step: "
        + ", ".join(f"{key} {value:.4g}" for key, value in means.items()),
        flush=True,
    )
    row = {"step": step, "looks": looks, "seconds_a_step": round(seconds, 3), **means}
    path = folder / "log.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def asked_for(schedule: Schedule, changes: dict) -> Schedule:
    """The schedule with a person's changes; a shorter schedule trains sight alone for its share."""
    changed = dataclasses.replace(schedule, **changes)
    return dataclasses.replace(changed, sight=schedule.sight * changed.steps // schedule.steps)


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Trains a bundled policy; resumes where it was.")
    parser.add_argument("policy", choices=CONFIGS)
    parser.add_argument("--steps", type=int, help="length of the schedule")
    parser.add_argument("--peak", type=float, help="highest learning rate")
    parser.add_argument("--images", type=int, help="looks in a step")
    parser.add_argument("--prompts", type=int, help="requests of each look in a step")
    parser.add_argument("--demonstrations", type=Path, help="default: runs/demonstrations")
    parser.add_argument("--run", type=Path, help="default: runs/<policy>")
    parser.add_argument(
        "--start-from", type=Path, help="an exported policy's folder, such as assets/pi0_tabletop"
    )
    return parser


def main() -> None:
    args = settings().parse_args()
    jax.config.update("jax_compilation_cache_dir", str(RUNS.resolve() / "compiled"))
    asked = {key: getattr(args, key) for key in ("steps", "peak", "images", "prompts")}
    schedule = asked_for(SCHEDULES[args.policy], {key: n for key, n in asked.items() if n})
    data = args.demonstrations or demonstrations.FOLDER
    run = args.run or RUNS / args.policy
    train(args.policy, schedule, run, data, args.start_from, commands.this_command())


if __name__ == "__main__":
    main()
