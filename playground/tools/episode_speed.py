"""What recorded episodes cost, on data made here: a 300-frame episode with two cameras evaluated,
pictures and answers while scrubbing, and a dataset of a million rows.

    python -m playground.tools.episode_speed
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from playground import process_memory
from playground.datasets import job, record
from playground.datasets.job import EpisodeRequest, Recorded
from playground.datasets.matching import Choice
from playground.tabletop.tasks import Task
from playground.trace import Options

POLICY = "pi0_tabletop"
FRAMES, EVERY, TIMES = 300, 10, 40
CAMERA = "observation.images.table"
SIDE = "observation.images.side"  # the second camera; the same pictures
ROWS_OF_AN_EPISODE = 300


# --- data ---------------------------------------------------------------------------------------


def two_cameras(folder: Path) -> None:
    """One episode of FRAMES frames: a demonstration over and over, seen twice."""
    done = record.perform(Task("pick", "red", "pick up the {} cube"), record.SEED)
    times = -(-FRAMES // len(done.states))
    images, states, actions = jax.tree.map(
        lambda values: np.concatenate([values] * times)[:FRAMES],
        (done.images, done.states, done.actions),
    )
    record.write(folder, [dataclasses.replace(done, images=images, states=states, actions=actions)])
    shutil.copytree(folder / "videos" / CAMERA, folder / "videos" / SIDE)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][SIDE] = info["features"][CAMERA]
    (folder / "meta/info.json").write_text(json.dumps(info))
    (path,) = (folder / "meta/episodes").rglob("*.parquet")
    rows = pq.read_table(path)
    for name in rows.column_names:
        if name.startswith(f"videos/{CAMERA}/"):
            rows = rows.append_column(name.replace(CAMERA, SIDE), rows[name])
    pq.write_table(rows, path)


def many_rows(folder: Path, rows: int) -> None:
    """Episodes of ROWS_OF_AN_EPISODE frames without pictures, in one file and one row group."""
    count = rows // ROWS_OF_AN_EPISODE
    rows = count * ROWS_OF_AN_EPISODE
    rng = np.random.default_rng(0)
    frame = np.tile(np.arange(ROWS_OF_AN_EPISODE), count)
    vectors = rng.standard_normal((rows, 14), np.float32)
    column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 14)
    data = folder / "data/chunk-000/file-000.parquet"
    meta = folder / "meta/episodes/chunk-000/file-000.parquet"
    for path in (data, meta):
        path.parent.mkdir(parents=True)
    pq.write_table(
        pa.table(
            {
                "observation.state": column,
                "action": column,
                "timestamp": (frame / 50).astype(np.float32),
                "frame_index": frame,
                "episode_index": np.repeat(np.arange(count), ROWS_OF_AN_EPISODE),
                "index": np.arange(rows),
                "task_index": np.zeros(rows, np.int64),
            }
        ),
        data,
        row_group_size=rows,
    )
    starts = np.arange(count) * ROWS_OF_AN_EPISODE
    zeros = np.zeros(count, np.int64)
    pq.write_table(
        pa.table(
            {
                "episode_index": np.arange(count),
                "tasks": [["touch the red cube"]] * count,
                "length": np.full(count, ROWS_OF_AN_EPISODE),
                "data/chunk_index": zeros,
                "data/file_index": zeros,
                "dataset_from_index": starts,
                "dataset_to_index": starts + ROWS_OF_AN_EPISODE,
            }
        ),
        meta,
    )
    tasks = {"task_index": [0], "task": ["touch the red cube"]}
    pq.write_table(pa.table(tasks), folder / "meta/tasks.parquet")
    vector = {"dtype": "float32", "shape": [14], "names": None}
    info = {
        "codebase_version": "v3.0",
        "fps": 50,
        "total_episodes": count,
        "total_frames": rows,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": {"observation.state": vector, "action": vector},
    }
    (folder / "meta/info.json").write_text(json.dumps(info))


# --- what is measured ---------------------------------------------------------------------------


def evaluation(folder: Path) -> tuple[float, float]:
    """(seconds, CPU-seconds) of predicting every EVERY-th frame in batches, once compiled."""
    policies, recorded = _policies(), _recorded(folder)
    frames = tuple(range(0, FRAMES, EVERY))
    spent = []
    for _ in range(3):
        # The dataset is opened anew each time, as on a first look.
        request = EpisodeRequest(
            (POLICY,), dataclasses.replace(recorded, opening=str(len(spent))), frames, 8, None,
            Options(),
        )  # fmt: skip
        began, cpu = time.perf_counter(), time.process_time()
        list(job.predict(policies, request))
        spent.append((time.perf_counter() - began, time.process_time() - cpu))
    return min(spent[1:])


def scrubbing(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of one frame's pictures from both cameras as JPEG, and of pi0's chunk there."""
    from playground.ui.episodes.store import Recordings

    policies, opened = _policies(), Recordings(public=False).open(str(folder))
    recorded = opened.recorded(0, _choice())
    rng = np.random.default_rng(0)
    pictures, answers = [], []
    for number in range(TIMES + 1):  # the first one opens, and compiles
        frame = int(rng.integers(FRAMES))
        began = time.perf_counter()
        for camera in (0, 1):
            opened.picture(0, camera, frame)
        seen = time.perf_counter()
        list(
            job.predict(policies, EpisodeRequest((POLICY,), recorded, (frame,), 1, None, Options()))
        )
        if number:
            pictures.append(1e3 * (seen - began))
            answers.append(1e3 * (time.perf_counter() - seen))
    return np.array(pictures), np.array(answers)


def reading(folder: Path) -> dict[str, float]:
    """Of a dataset: seconds to open it and to read its last episode, and how much the most memory
    ever held grew meanwhile, MB. To be run in a process of its own."""
    from playground.datasets.lerobot import open_dataset

    # What the process held before it began, and its parent's share, do not count (Linux).
    before = process_memory.begin_anew()
    began = time.perf_counter()
    dataset = open_dataset(str(folder))
    opened = time.perf_counter()
    episode = dataset.episode(len(dataset) - 1)
    assert episode.length == ROWS_OF_AN_EPISODE
    seconds = {"open_s": opened - began, "episode_s": time.perf_counter() - opened}
    return seconds | {"grown_mb": (process_memory.peak_bytes() - before) / (1 << 20)}


def _policies() -> dict:
    from playground.checkpoints.load import keep_compiled_programs, open_policy

    keep_compiled_programs()
    return {POLICY: open_policy(POLICY)}


def _choice() -> Choice:
    return Choice(cameras={"base_0_rgb": CAMERA, "left_wrist_0_rgb": SIDE})


def _recorded(folder: Path) -> Recorded:
    return Recorded(str(folder), "", False, "", 0, _choice().model_dump_json())


def settings() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="What recorded episodes cost.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large dataset")
    parser.add_argument("--reading", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = settings().parse_args()
    if args.reading is not None:
        print(json.dumps(reading(args.reading)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many_rows(folder / "many", args.rows)
        own = [sys.executable, "-m", "playground.tools.episode_speed", "--reading"]
        said = subprocess.run([*own, folder / "many"], capture_output=True, text=True, check=True)
        found = json.loads(said.stdout)
        print(
            f"{args.rows:,} rows: opened in {found['open_s']:.2f} s, the last episode read in "
            f"{found['episode_s']:.2f} s, {found['grown_mb']:.0f} MB more memory at most",
            flush=True,
        )
        two_cameras(folder / "two")
        seconds, cpu = evaluation(folder / "two")
        print(
            f"{FRAMES} frames, two cameras, every {EVERY}th frame: {seconds:.2f} s, {cpu:.2f} CPU-s"
        )
        for what, ms in zip(
            ("both pictures", "pi0's chunk"), scrubbing(folder / "two"), strict=True
        ):
            print(f"{what}: median {np.median(ms):.0f} ms, 95 % within {np.quantile(ms, 0.95):.0f}")


if __name__ == "__main__":
    main()
