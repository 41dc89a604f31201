"""Episodes of the scripted expert at the simulated table as a LeRobot v3.0 dataset:

    python -m playground.datasets.record assets/episodes_tabletop

Frame i holds the picture and the measured state just before action i is applied, as in recordings
of LeRobot's own. The bundled dataset is made so, at scenes that no policy was trained on.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from playground.robots.builtin import TABLETOP
from playground.robots.norm_stats import RunningStats
from playground.tabletop.render import render_cameras
from playground.tabletop.rollout import ask_expert
from playground.tabletop.scene import CONTROL_HZ, IMAGE_SIZE, Table, random_scene
from playground.tabletop.tasks import Referee, Task, parse

# By camera slot, the feature that holds its pictures.
CAMERAS = {slot: f"observation.images.{camera}" for slot, camera in TABLETOP.cameras("pi0").items()}
PROMPTS = ("touch the red cube", "pick up the blue cube", "pick up the green cube")
SEED = 9_000_011  # far from the scenes of training and of evaluation
# LeRobot's own settings: a key frame every 2 frames lets any frame be shown at once.
_ENCODER = ("libsvtav1", {"crf": "30", "preset": "8", "g": "2", "svtav1-params": "lp=1"})
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """n frames of one task. images: by feature, uint8 [n, height, width, 3]; states, actions
    float32 [n, 14]."""

    task: str
    images: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray


def perform(task: Task, seed: int) -> Recording:
    """The expert at a random scene until the referee is content. Raises ValueError if it fails."""
    table = Table(random_scene(seed))
    referee, outcome = Referee(table, task), None
    looks, states, actions = [], [], []
    while outcome is None:
        for action in ask_expert(table, task):
            looks.append(render_cameras(table))
            states.append(table.state())
            actions.append(action)
            table.step(action)
            if (outcome := referee.watch(table)) is not None:
                break
    if not outcome.success:
        raise ValueError(f"the expert failed at scene {seed}: {outcome.reason}")
    numbers = (np.asarray(rows, np.float32) for rows in (states, actions))
    images = {
        feature: np.stack([look[slot] for look in looks]) for slot, feature in CAMERAS.items()
    }
    return Recording(task.prompt, images, *numbers)


def write(folder: Path, recordings: Sequence[Recording], fps: int = CONTROL_HZ) -> None:
    """A dataset with all episodes in one parquet file and one mp4 a camera."""
    features = tuple(recordings[0].images)
    texts = sorted({recording.task for recording in recordings})
    lengths = [len(recording.states) for recording in recordings]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for name in (_data_name(), *map(_video_name, features), _EPISODES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / _data_name(), _SCHEMA) as writer:
        for number, recording in enumerate(recordings):
            task = texts.index(recording.task)
            writer.write_table(_rows(recording, number, int(starts[number]), task, fps))
    for feature in features:
        images = [recording.images[feature] for recording in recordings]
        _write_video(folder / _video_name(feature), images, fps)
    pq.write_table(_episode_rows(recordings, starts, fps), folder / _EPISODES)
    tasks = pa.table({"task_index": range(len(texts)), "task": texts})
    pq.write_table(tasks, folder / "meta/tasks.parquet")
    sizes = {feature: images.shape[1:] for feature, images in recordings[0].images.items()}
    _write_json(folder / "meta/info.json", _info(lengths, len(texts), sizes, fps))
    _write_json(folder / "meta/stats.json", _stats(recordings))


def _data_name() -> str:
    return _DATA.format(chunk_index=0, file_index=0)


def _video_name(feature: str) -> str:
    return _VIDEO.format(video_key=feature, chunk_index=0, file_index=0)


def _write_json(path: Path, tree: dict) -> None:
    path.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")


_VECTOR = pa.list_(pa.float32(), len(TABLETOP.state))
_COUNTS = ("frame_index", "episode_index", "index", "task_index")
_SCHEMA = pa.schema(
    [("observation.state", _VECTOR), ("action", _VECTOR), ("timestamp", pa.float32())]
    + [(name, pa.int64()) for name in _COUNTS]
)


def _rows(recording: Recording, number: int, start: int, task: int, fps: int) -> pa.Table:
    frames = np.arange(len(recording.states))

    def vectors(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])

    columns = [vectors(recording.states), vectors(recording.actions)]
    columns += [(frames / fps).astype(np.float32), frames, np.full_like(frames, number)]
    columns += [start + frames, np.full_like(frames, task)]
    return pa.table(columns, schema=_SCHEMA)


def _write_video(path: Path, episodes: Sequence[np.ndarray], fps: int) -> None:
    codec, options = _ENCODER
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = episodes[0].shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
        for images in episodes:
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _episode_rows(recordings: Sequence[Recording], starts: np.ndarray, fps: int) -> pa.Table:
    zeros = [0] * len(recordings)
    videos = {}
    for feature in recordings[0].images:
        videos |= {
            f"videos/{feature}/chunk_index": zeros,
            f"videos/{feature}/file_index": zeros,
            f"videos/{feature}/from_timestamp": (starts[:-1] / fps).tolist(),
            f"videos/{feature}/to_timestamp": (starts[1:] / fps).tolist(),
        }
    return pa.table(
        {
            "episode_index": list(range(len(recordings))),
            "tasks": [[recording.task] for recording in recordings],
            "length": [len(recording.states) for recording in recordings],
            "data/chunk_index": zeros,
            "data/file_index": zeros,
            "dataset_from_index": starts[:-1].tolist(),
            "dataset_to_index": starts[1:].tolist(),
            **videos,
            "meta/episodes/chunk_index": zeros,
            "meta/episodes/file_index": zeros,
        }
    )


def _info(lengths: list[int], tasks: int, sizes: dict[str, tuple[int, ...]], fps: int) -> dict:
    """sizes: by feature, of its pictures, [height, width, channels]."""
    names = [dimension.name.replace(" ", "_") for dimension in TABLETOP.state]
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    encoded = {"video.codec": "av1", "video.pix_fmt": "yuv420p", "video.fps": fps}
    axes = {"names": ["height", "width", "channels"], "info": encoded}
    pictures = {
        feature: {"dtype": "video", "shape": list(size), **axes} for feature, size in sizes.items()
    }
    plain = {name: {"dtype": "int64", "shape": [1], "names": None} for name in _COUNTS}
    return {
        "codebase_version": "v3.0",
        "robot_type": TABLETOP.name,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": tasks,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": {
            "observation.state": vector,
            "action": vector,
            **pictures,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **plain,
        },
    }


def _stats(recordings: Sequence[Recording]) -> dict:
    """Of all rows, quantiles too."""
    found = {}
    for feature, field in (("observation.state", "states"), ("action", "actions")):
        rows = np.concatenate([getattr(recording, field) for recording in recordings])
        running = RunningStats()
        running.update(rows)
        stats = dataclasses.asdict(running.stats())
        found[feature] = {name: list(value) for name, value in stats.items()}
        found[feature] |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        found[feature]["count"] = [len(rows)]
    return found


def settings() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Records the expert as a LeRobot dataset.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--prompt", action="append", help="one episode each; default: three")
    return parser


def main() -> None:
    parser = settings()
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} is there already")
    recordings = []
    for number, prompt in enumerate(args.prompt or PROMPTS):
        task = parse(prompt)
        if task is None:
            parser.error(f"{prompt!r} names no task of the table")
        recordings.append(perform(task, SEED + number))
        print(f"{prompt}: {len(recordings[-1].states)} frames of {IMAGE_SIZE} pixels", flush=True)
    write(args.folder, recordings)


if __name__ == "__main__":
    main()
