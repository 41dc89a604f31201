"""LeRobot datasets, v3.0 and v2.1: an episode's numbers, tasks and pictures, without reading more
than that episode. Nothing of LeRobot, torch or `datasets` is needed.

n frames of an episode, D dimensions of a feature.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from playground.assets import ASSETS
from playground.datasets import episodes
from playground.datasets.info import NAME, Feature, Info, read_info
from playground.datasets.source import Folder, Hub, Source, is_repository
from playground.datasets.tables import Table, numbers
from playground.datasets.video import FrameError, Video
from playground.robots.transforms import check_scans

BUNDLED = "episodes_tabletop"
_STATS = "meta/stats.json"
_EPISODE_STATS = "meta/episodes_stats.jsonl"
# Columns that every dataset has. Numbers of a robot must be finite; a reward may be missing.
_FRAME_COLUMNS = ("timestamp", "frame_index", "episode_index", "task_index")
_FINITE = ("observation", "action", "state", "timestamp")


def open_dataset(word: str, revision: str | None = None, *, public: bool = False) -> "Dataset":
    """A dataset by its folder, by its name on the Hub ("owner/name"; `./owner/name` is always a
    folder), or the bundled one by its name, `BUNDLED`.

    revision: of the Hub. public: strangers choose the word, so that no folder is opened, and of the
    Hub only what everybody may read. Raises ValueError that names file and field.
    """
    return Dataset(source_of(word, revision, public=public))


def source_of(word: str, revision: str | None = None, *, public: bool = False) -> Source:
    """Where the files of that dataset come from; of it, nothing is read. As `open_dataset`."""
    if word == BUNDLED and revision is None:
        return Folder(ASSETS / BUNDLED)
    if public:
        # Before any look at the disk: the answer must not tell which folders there are.
        if not is_repository(word):
            raise ValueError(
                f"{word!r:.80} cannot be opened here: a page that others than its owner can reach "
                f"opens the bundled {BUNDLED} and datasets of the Hub (owner/name), no folders. "
                "Start the page on your own machine to open a folder"
            )
        return Hub(word, revision, public=True)
    if Path(word).is_dir():
        if revision is not None:
            raise ValueError(f"{word} is a folder here: a revision belongs to a name of the Hub")
        return Folder(word)
    if word.startswith((".", "/", "~")) or word.count("/") != 1:
        raise ValueError(
            f"there is no folder {word}; a name of the Hub is owner/name, the bundled one {BUNDLED}"
        )
    return Hub(word, revision)


class Dataset:
    """An open dataset: `len` episodes, which are read when they are asked for.

    title, revision: what it is called, and the commit on the Hub ("" for a folder); info: what
    meta/info.json says; tasks: texts by number.
    """

    def __init__(self, source: Source):
        self.title, self.revision = source.title, source.revision
        self._source = source
        self.info: Info = read_info(source.path(NAME))
        self.tasks = episodes.read_tasks(source, self.info)
        kind = episodes.RowsV30 if self.info.is_v3 else episodes.RowsV21
        self._rows = kind(source, self.info)

    def __len__(self) -> int:
        return self.info.total_episodes

    @property
    def cameras(self) -> dict[str, Feature]:
        return self.info.cameras

    def episode(self, index: int) -> "Episode":
        """Reads an episode's numbers; its pictures are read when they are asked for.

        Raises ValueError that names file and field: not there, other rows than meta/episodes says,
        values that are not finite, an unknown task.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"{self.title} has episodes 0 to {len(self) - 1}; {index} was asked")
        row = self._rows.row(index)
        return Episode(row, self.info, self.tasks, self._source)

    def recorded_stats(self) -> dict[str, dict[str, np.ndarray]]:
        """The statistics that the dataset brings, by feature and name (mean, std, min, max, count,
        and quantiles if it has them). v2.1's are those of the episodes, joined.

        LeRobot's quantiles are averages of the episodes', not the data's. Raises ValueError where
        they are missing or no statistics.
        """
        try:
            if self.info.is_v3:
                path = self._source.path(_STATS)
                return _stats(json.loads(path.read_text("utf-8")), _STATS)
            found = episodes.lines(self._source, _EPISODE_STATS)
            return _joined([_stats(line["stats"], where) for where, line in found])
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the dataset's statistics cannot be read: {error!r}") from error


class Episode:
    """One episode in memory.

    index, length; listed_tasks: as meta/episodes has them; tasks: the text of each frame;
    values: by feature, [n, D] in the stored type; times: float64 [n], seconds from the start.
    """

    def __init__(self, row: episodes.Row, info: Info, tasks: dict[int, str], source: Source):
        self.index, self.length, self.listed_tasks = row.index, row.length, row.tasks
        self._row, self._info, self._source = row, info, source
        self._videos: dict[str, Video] = {}
        self._encoded: dict[str, list] = {}
        table = Table(source.path(row.data), row.data)
        features = info.numbers
        columns = table.read(list(dict.fromkeys([*features, *_FRAME_COLUMNS])), row.rows)
        where = {name: f"{row.data}: {name}" for name in columns}
        plain = {name: numbers(columns[name], where[name]) for name in _FRAME_COLUMNS}
        self._check_rows(plain)
        self.values = {
            name: numbers(columns[name], where[name], feature.shape[0])
            for name, feature in features.items()
        }
        self.times = plain["timestamp"].astype(np.float64)
        for name in (*self.values, "timestamp"):
            self._check_finite(name, self.values.get(name, self.times))
        self.tasks = tuple(self._task(i, int(t), tasks) for i, t in enumerate(plain["task_index"]))

    @property
    def fps(self) -> float:
        return self._info.fps

    def picture(self, camera: str, frame: int) -> np.ndarray:
        """uint8 [rows, columns, 3]. Raises FrameError where this one picture cannot be had."""
        if camera not in self._info.cameras:
            raise ValueError(f"no camera {camera!r}; there are {', '.join(self._info.cameras)}")
        if not 0 <= frame < self.length:
            raise ValueError(f"the episode has frames 0 to {self.length - 1}; {frame} was asked")
        feature = self._info.cameras[camera]
        if feature.dtype == "image":
            return self._decoded(camera, frame, feature)
        clip = self._row.clips[camera]
        if camera not in self._videos:
            try:
                path = self._source.path(clip.file)
            except ValueError as error:
                raise FrameError(f"{camera}: {error}") from error
            self._videos[camera] = Video(path, clip.file, feature.picture_size)
        return self._videos[camera].frame(clip.begins_s + self.times[frame])

    def pictures(self, camera: str, frames: Iterable[int]) -> Iterator[np.ndarray | FrameError]:
        """Of several frames; one that cannot be had costs itself only."""
        for frame in frames:
            try:
                yield self.picture(camera, frame)
            except FrameError as error:
                yield error

    def chunk(self, feature: str, frame: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """(the next values [horizon, D] from a frame on, which of them lie past the end, bool
        [horizon]). Past the end the last one is repeated, as LeRobot does."""
        steps = frame + np.arange(horizon)
        beyond = steps >= self.length
        return self.values[feature][np.minimum(steps, self.length - 1)], beyond

    def close(self) -> None:
        """Closes its videos."""
        for video in self._videos.values():
            video.close()

    def _check_rows(self, plain: dict[str, np.ndarray]) -> None:
        row, count = self._row, len(plain["timestamp"])
        if count != row.length:
            raise ValueError(
                f"{row.described_by} says that episode {row.index} has length {row.length}; "
                f"{row.data} has {count} rows of it"
            )
        if (plain["episode_index"] != row.index).any():
            other = int(plain["episode_index"][plain["episode_index"] != row.index][0])
            raise ValueError(
                f"{row.data}: episode_index is {other} in rows that {row.described_by} gives to "
                f"episode {row.index}"
            )
        if (plain["frame_index"] != np.arange(count)).any():
            raise ValueError(
                f"{row.data}: frame_index does not count 0 to {count - 1} in episode {row.index}"
            )

    def _check_finite(self, name: str, values: np.ndarray) -> None:
        if not name.startswith(_FINITE) or np.isfinite(values).all():
            return
        frame, *dims = (int(x) for x in np.argwhere(~np.isfinite(values))[0])
        place = "".join(f"[{dim}]" for dim in dims)
        value = values[(frame, *dims)]
        raise ValueError(
            f"{self._row.data}: {name}{place} is {value} at frame {frame} of episode {self.index}"
        )

    def _task(self, frame: int, number: int, tasks: dict[int, str]) -> str:
        if number not in tasks:
            file = episodes.TASKS_V30 if self._info.is_v3 else episodes.TASKS_V21
            raise ValueError(
                f"{self._row.data}: task_index is {number} at frame {frame} of episode "
                f"{self.index}; {file} has {sorted(tasks)[:20]}"
            )
        return tasks[number]

    def _decoded(self, camera: str, frame: int, feature: Feature) -> np.ndarray:
        where = f"{self._row.data}: {camera} at frame {frame} of episode {self.index}"
        if camera not in self._encoded:
            table = Table(self._source.path(self._row.data), self._row.data)
            self._encoded[camera] = table.read([camera], self._row.rows)[camera].to_pylist()
        stored = self._encoded[camera][frame]
        data = stored.get("bytes") if isinstance(stored, dict) else stored
        if not isinstance(data, bytes):
            raise FrameError(f"{where} holds no picture")
        try:
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            check_scans(picture, data)
            if picture.size[::-1] != tuple(feature.picture_size):
                raise FrameError(
                    f"{where} is {picture.height} x {picture.width} (rows x columns), {NAME} says "
                    f"{feature.picture_size[0]} x {feature.picture_size[1]}"
                )
            return np.asarray(picture.convert("RGB"))
        except FrameError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FrameError(f"{where} is damaged: {error}") from error


# --- statistics that a dataset brings -----------------------------------------------------------


def _stats(tree: dict, where: str) -> dict[str, dict[str, np.ndarray]]:
    try:
        found = {
            feature: {name: np.asarray(value, np.float64) for name, value in stats.items()}
            for feature, stats in tree.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} holds no statistics: {error}") from error
    for feature, stats in found.items():
        for name, value in stats.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{where}: {feature}.{name} holds values that are not finite")
    return found


def _joined(parts: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of several episodes as those of all their rows (LeRobot's way)."""
    return {
        feature: _join([part[feature] for part in parts if feature in part]) for feature in parts[0]
    }


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    count = np.sum([part["count"] for part in parts], axis=0)

    def weighted(values: list[np.ndarray]) -> np.ndarray:
        shares = [part["count"] / count for part in parts]
        terms = [
            share.reshape((-1,) + (1,) * (value.ndim - 1)) * value
            for share, value in zip(shares, values, strict=True)
        ]
        return np.sum(terms, axis=0)

    mean = weighted([part["mean"] for part in parts])
    variance = weighted([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "count": count,
    }
