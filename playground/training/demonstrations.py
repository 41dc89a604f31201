"""Demonstrations at the simulated table: `python -m playground.training.demonstrations`.

Half of the work is starts: a random scene, looked at once. The other half are disturbed episodes:
the expert acts on wrong beliefs of where the cube is, now and then changes its mind, and is looked
at every few steps, so that the data also shows how to go on after a mistake. In later shards these
beliefs are off by a hand's width: a policy that learned from the first kind alone took the cube to
be wherever its gripper had gone. Each look keeps the pictures, the measured state and where the
cubes are; the expert's chunk for every request follows from these (`labels`), so one look serves
them all.

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

from playground.robots.builtin import TABLE_CAMERA
from playground.tabletop import expert
from playground.tabletop.kinematics import project
from playground.tabletop.render import render, view_of
from playground.tabletop.scene import (
    CAMERAS,
    COLOURS,
    WORKSPACE,
    Table,
    random_scene,
)
from playground.tabletop.tasks import VERBS, placement, requests
from playground.training import commands

FOLDER = Path("runs/demonstrations")
IMAGE_SIZE = 112
STARTS, EPISODES = 40, 40
# A believed cube is off by this much (m), in this share of the looks; from shard LOST_FROM on by
# the second amount.
_BELIEF_SPREAD, _BELIEF_WRONG = np.array([0.018, 0.018, 0.006]), 0.7
_LOST_SPREAD, LOST_FROM = np.array([0.06, 0.06, 0.03]), 80
_CHANGE_OF_MIND = 0.15
# Where a cube may be (m): at most this far beyond where scenes begin, to the sides and ahead, and
# neither fallen nor pressed into the table. One that was knocked away or fell would be reached for
# with all that a joint can turn, and such a chunk outweighs a whole step's other rows.
_BEYOND, _LOWEST = np.array([0.14, 0.08]), 0.01
_MOST_LOOKS = {"touch": 4, "pick": 8, "put_on": 12, "put_next": 12}


@dataclasses.dataclass(frozen=True, slots=True)
class Looks:
    """n looks at the table through its C cameras, in the order of CAMERAS.

    images: uint8 [n, C, size, size, 3]
    pixels: float32 [n, C, 3, 2], where (column, row) each picture has the cubes' centres, in sight
        or hidden; NaN behind the camera
    states: float32 [n, 14], measured
    cubes: float32 [n, 3, 3], centres in the order of COLOURS
    holders: int8 [n, 3], the arm that holds each (0 left, 1 right, -1 none)
    starts: bool [n], the arms near home and nothing done
    """

    images: np.ndarray
    pixels: np.ndarray
    states: np.ndarray
    cubes: np.ndarray
    holders: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def look(table: Table) -> tuple[np.ndarray, ...]:
    """(images, pixels, state, cubes, holders) of a table now, as in Looks; the images as a policy's
    model gets them."""
    cubes = np.stack([table.cube(colour) for colour in COLOURS])
    holders = np.array([table.holder(colour) for colour in COLOURS])
    images, pixels = [], []
    for camera in CAMERAS.values():
        image = render(table, IMAGE_SIZE, camera)
        # A person is shown the table's own picture in twice the size.
        images.append(_soften(image) if camera == TABLE_CAMERA else image)
        pixels.append(project(cubes, IMAGE_SIZE, view_of(table, camera)))
    return np.stack(images), np.stack(pixels), table.state(), cubes, holders


def _soften(image: np.ndarray) -> np.ndarray:
    """What shrinking a picture of twice the size (bilinear, four source pixels a side with weights
    1 3 3 1) does beyond averaging 2 x 2: a fifth of the rays for nearly the same picture."""
    soft = image.astype(np.float32)
    for axis in (0, 1):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        wide = np.moveaxis(np.pad(soft, pad, mode="edge"), axis, 0)
        soft = np.moveaxis(0.75 * wide[1:-1] + 0.125 * (wide[:-2] + wide[2:]), 0, axis)
    return (soft + 0.5).astype(np.uint8)


def requests_asked() -> np.ndarray:
    """All that can be asked, int [R, 3]: verb (its number in VERBS), cube and other cube
    (their numbers in COLOURS; -1 where no other is named)."""
    numbers = {"": -1} | {colour: number for number, colour in enumerate(COLOURS)}
    return np.array(
        [(VERBS.index(verb), numbers[colour], numbers[other]) for verb, colour, other in requests()]
    )


def labels(looks: Looks, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The expert's chunks, float64 [B, horizon, 14], for looks `rows` [B] and requests `asked`
    [B, 3] (see `requests_asked`)."""
    return _chunks(looks.states[rows], looks.cubes[rows], looks.holders[rows], asked)


def _chunks(
    states: np.ndarray, cubes: np.ndarray, holders: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    verbs, cube, other = asked.T
    row, put = np.arange(len(asked)), other >= 0
    pick = verbs != VERBS.index("touch")
    place = placed = None
    if put.any():
        on = verbs == VERBS.index("put_on")
        # The three numbers sum to 3; where no other cube is named, any will do.
        other = np.where(put, other, (cube + 1) % 3)
        place, placed = placement(
            on, cubes[row, cube], cubes[row, other], cubes[row, 3 - cube - other]
        )
        place[~put] = np.nan
    return expert.chunk(states, cubes[row, cube], holders[row, cube], pick, place, placed)


def make_shard(seed: int, shard: int) -> Looks:
    """STARTS scenes and EPISODES disturbed episodes; the same for the same numbers."""
    rng = np.random.default_rng([seed, shard])
    found = []
    for _ in range(STARTS):
        found.append((*look(Table(random_scene(rng))), True))
    for _ in range(EPISODES):
        found += _episode(rng, _BELIEF_SPREAD if shard < LOST_FROM else _LOST_SPREAD)
    images, pixels, states, cubes, holders, starts = map(np.stack, zip(*found, strict=True))
    return Looks(
        images=images,
        pixels=pixels.astype(np.float32),
        states=states.astype(np.float32),
        cubes=cubes.astype(np.float32),
        holders=holders.astype(np.int8),
        starts=starts,
    )


def _episode(rng: np.random.Generator, spread: np.ndarray) -> list[tuple]:
    table, every = Table(random_scene(rng)), requests_asked()
    asked = rng.choice(every)
    found = []
    for index in range(_MOST_LOOKS[VERBS[asked[0]]]):
        now = look(table)
        found.append((*now, index == 0))
        if index and rng.random() < _CHANGE_OF_MIND:
            asked = rng.choice(every)
        _, _, state, cubes, holders = now
        if rng.random() < _BELIEF_WRONG:
            cubes = cubes + spread * rng.standard_normal(cubes.shape)
        chunk = _chunks(state[None], cubes[None], holders[None], asked[None])[0]
        for action in chunk[: rng.integers(8, 51)]:
            table.step(action)
    return found


def load(folder: Path) -> Looks:
    """The looks of every finished shard, in order, but for those at a table from which a cube is
    gone (see `in_reach`). Raises ValueError when there is none, or when they do not hold what is
    kept of a look today."""
    files = sorted(Path(folder).glob("shard_*.npz"))
    if not files:
        raise ValueError(
            f"no demonstrations in {folder}: run python -m playground.training.demonstrations"
        )
    names = [field.name for field in dataclasses.fields(Looks)]
    usable, whole = [_usable(file, names) for file in files], {}
    counts = [int(rows.sum()) for rows in usable]
    for file, rows, end in zip(files, usable, np.cumsum(counts).tolist(), strict=True):
        with np.load(file, allow_pickle=False) as arrays:
            for name in names:
                part = arrays[name][rows]
                # The pictures fill most of the memory: they are there once.
                if name not in whole:
                    whole[name] = np.empty((sum(counts), *part.shape[1:]), part.dtype)
                whole[name][end - len(part) : end] = part
    return Looks(**whole)


def in_reach(cubes: np.ndarray) -> np.ndarray:
    """Whether all cubes, by their centres [n, 3, 3], are where arms may have to go: bool [n]."""
    low, high = np.array(WORKSPACE).T
    where, height = cubes[..., :2], cubes[..., 2]
    near = ((where >= low - _BEYOND) & (where <= high + _BEYOND)).all(-1)
    return (near & (height >= _LOWEST)).all(-1)


def _usable(file: Path, names: list[str]) -> np.ndarray:
    """Which looks of a shard training takes, bool [n]."""
    with np.load(file, allow_pickle=False) as arrays:
        if missing := set(names) - set(arrays.files):
            raise ValueError(
                f"{file} lacks {', '.join(sorted(missing))}: an older version made it. Remove "
                "the folder and make the demonstrations again"
            )
        return in_reach(arrays["cubes"])


def _write_shard(job: tuple[Path, int, int]) -> int:
    folder, seed, shard = job
    looks = make_shard(seed, shard)
    part = folder / f"part_{shard:05}.npz"
    np.savez_compressed(
        part, **{field.name: getattr(looks, field.name) for field in dataclasses.fields(looks)}
    )
    part.rename(folder / f"shard_{shard:05}.npz")
    return len(looks)


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Makes demonstrations; resumes where it stopped.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="(%(default)s)")
    parser.add_argument("--shards", type=int, default=120, help=f"{STARTS} + {EPISODES} each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser


def main() -> None:
    args = settings().parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    commands.note(args.folder, commands.this_command())
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
