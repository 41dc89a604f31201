"""Demonstrations at the simulated table: `python -m playground.training.demonstrations`.

Half of the work is starts: a random scene, looked at once. The other half are disturbed episodes:
the expert acts on wrong beliefs of where the cube is, now and then changes its mind, and is looked
at every few steps, so that the data also shows how to go on after a mistake. In later shards these
beliefs are off by a hand's width: a policy that learned from the first kind alone took the cube to
be wherever its gripper had gone. Each look keeps
picture, measured state and where the cubes are; the expert's chunk for every colour and verb
follows from these (`labels`), so one picture serves all six requests.

Work is cut into shards, each seeded by its number: a stopped run goes on where it stopped, and the
same command makes the same files on any number of cores.
"""

import argparse
import dataclasses
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from playground.tabletop import expert
from playground.tabletop.render import render
from playground.tabletop.scene import COLOURS, Table, random_scene
from playground.tabletop.tasks import VERBS, Task

FOLDER = Path("runs/demonstrations")
IMAGE_SIZE = 112
STARTS, EPISODES = 40, 40
# A believed cube is off by this much (m), in this share of the looks; from shard LOST_FROM on by
# the second amount.
_BELIEF_SPREAD, _BELIEF_WRONG = np.array([0.018, 0.018, 0.006]), 0.7
_LOST_SPREAD, LOST_FROM = np.array([0.06, 0.06, 0.03]), 80
_CHANGE_OF_MIND = 0.15
_MOST_LOOKS = {"touch": 4, "pick": 8}


@dataclasses.dataclass(frozen=True, slots=True)
class Looks:
    """n looks at the table. images uint8 [n, size, size, 3]; states float32 [n, 14], measured;
    cubes float32 [n, 3, 3], centres in the order of COLOURS; holders int8 [n, 3], the arm that
    holds each (0 left, 1 right, -1 none); starts bool [n], the arms near home and nothing done."""

    images: np.ndarray
    states: np.ndarray
    cubes: np.ndarray
    holders: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def look(table: Table) -> tuple[np.ndarray, ...]:
    """(image, state, cubes, holders) of a table now; the image as a policy's model gets it."""
    image = _soften(render(table, IMAGE_SIZE))
    cubes = np.stack([table.cube(colour) for colour in COLOURS])
    holders = np.array([table.holder(colour) for colour in COLOURS])
    return image, table.state(), cubes, holders


def _soften(image: np.ndarray) -> np.ndarray:
    """What shrinking a picture of twice the size (bilinear, four source pixels a side with weights
    1 3 3 1) does beyond averaging 2 x 2: a fifth of the rays for nearly the same picture."""
    soft = image.astype(np.float32)
    for axis in (0, 1):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        wide = np.moveaxis(np.pad(soft, pad, mode="edge"), axis, 0)
        soft = np.moveaxis(0.75 * wide[1:-1] + 0.125 * (wide[:-2] + wide[2:]), 0, axis)
    return (soft + 0.5).astype(np.uint8)


def labels(looks: Looks, rows: np.ndarray, colours: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The expert's chunks, float64 [B, horizon, 14], for looks `rows` [B], the cube's number in
    COLOURS [B] and pick up rather than touch, bool [B]."""
    return expert.chunk(
        looks.states[rows], looks.cubes[rows, colours], looks.holders[rows, colours], picks
    )


def make_shard(seed: int, shard: int) -> Looks:
    """STARTS scenes and EPISODES disturbed episodes; the same for the same numbers."""
    rng = np.random.default_rng([seed, shard])
    found = []
    for _ in range(STARTS):
        found.append((*look(Table(random_scene(rng))), True))
    for _ in range(EPISODES):
        found += _episode(rng, _BELIEF_SPREAD if shard < LOST_FROM else _LOST_SPREAD)
    images, states, cubes, holders, starts = map(np.stack, zip(*found, strict=True))
    return Looks(
        images, states.astype(np.float32), cubes.astype(np.float32), holders.astype(np.int8), starts
    )


def _episode(rng: np.random.Generator, spread: np.ndarray) -> list[tuple]:
    table = Table(random_scene(rng))
    task = _any_task(rng)
    found = []
    for index in range(_MOST_LOOKS[task.verb]):
        seen = look(table)
        found.append((*seen, index == 0))
        if index and rng.random() < _CHANGE_OF_MIND:
            task = _any_task(rng)
        which = COLOURS.index(task.colour)
        cube = seen[2][which]
        if rng.random() < _BELIEF_WRONG:
            cube = cube + spread * rng.standard_normal(3)
        chunk = expert.chunk(seen[1], cube, np.array(seen[3][which]), np.array(task.verb == "pick"))
        for action in chunk[: rng.integers(8, 51)]:
            table.step(action)
    return found


def _any_task(rng: np.random.Generator) -> Task:
    return Task(VERBS[rng.integers(len(VERBS))], COLOURS[rng.integers(len(COLOURS))], "{}")


def load(folder: Path = FOLDER) -> Looks:
    """Every finished shard, in order. Raises ValueError when there is none."""
    files = sorted(Path(folder).glob("shard_*.npz"))
    if not files:
        raise ValueError(
            f"no demonstrations in {folder}: run python -m playground.training.demonstrations"
        )
    parts = {field.name: [] for field in dataclasses.fields(Looks)}
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            for name, values in parts.items():
                values.append(arrays[name])
    return Looks(**{name: np.concatenate(values) for name, values in parts.items()})


def _write_shard(job: tuple[Path, int, int]) -> int:
    folder, seed, shard = job
    looks = make_shard(seed, shard)
    part = folder / f"part_{shard:05}.npz"
    np.savez(
        part, **{field.name: getattr(looks, field.name) for field in dataclasses.fields(looks)}
    )
    part.rename(folder / f"shard_{shard:05}.npz")
    return len(looks)


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Makes demonstrations; resumes where it stopped.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--shards", type=int, default=120, help=f"{STARTS} + {EPISODES} each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser


def main() -> None:
    args = settings().parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    todo = [
        (args.folder, args.seed, shard)
        for shard in range(args.shards)
        if not (args.folder / f"shard_{shard:05}.npz").exists()
    ]
    print(f"{args.shards - len(todo)} of {args.shards} shards are there", flush=True)
    start, looks = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for done, count in enumerate(pool.imap_unordered(_write_shard, todo), start=1):
            looks += count
            spent = time.monotonic() - start
            left = spent / done * (len(todo) - done)
            bar = "#" * (30 * done // len(todo))
            print(
                f"[{bar:<30}] {done}/{len(todo)} shards, {looks / spent:.1f} looks a second, "
                f"{left / 60:.1f} min left",
                flush=True,
            )


if __name__ == "__main__":
    main()
