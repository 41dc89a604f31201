"""Where each episode of a dataset is: `meta/episodes` of v3.0, `meta/episodes.jsonl` of v2.1."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from playground.datasets.info import Count, Info, Positive, numbers_v21, problems
from playground.datasets.source import Source
from playground.datasets.tables import Table, numbers, texts


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """Where an episode's pictures of one camera are: the mp4, and the second that it begins at."""

    file: str
    begins_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One episode. described_by: the file that says so; data: its parquet file; rows: [first, last)
    by the column `index`, None for a file of this episode alone; clips: by camera."""

    index: int
    length: int
    tasks: tuple[str, ...]
    described_by: str
    data: str
    rows: tuple[int, int] | None
    clips: dict[str, Clip]


class _Line(pydantic.BaseModel):
    episode_index: Count
    length: Positive
    tasks: tuple[str, ...] = ()


class RowsV21:
    """Of v2.1: one line an episode, all read at once. They are short."""

    _NAME = "meta/episodes.jsonl"

    def __init__(self, source: Source, info: Info):
        self._source, self._info = source, info
        self._lines: dict[int, _Line] | None = None

    def row(self, episode: int) -> Row:
        if self._lines is None:
            found = (_line(line, where, _Line) for where, line in lines(self._source, self._NAME))
            self._lines = {line.episode_index: line for line in found}
        line, fields = self._lines.get(episode), numbers_v21(self._info, episode)
        if line is None:
            raise ValueError(f"{self._NAME} has no line with episode_index {episode}")
        clips = {
            name: Clip(self._info.video_file(name, **fields), 0.0)
            for name, feature in self._info.cameras.items()
            if feature.dtype == "video"
        }
        data = self._info.data_file(**fields)
        return Row(episode, line.length, line.tasks, self._NAME, data, None, clips)


class RowsV30:
    """Of v3.0: parquet files in the order of their episodes. The file of an episode is found by
    bisection, so that of many files few are fetched; the last one used is kept."""

    _FOLDER = "meta/episodes"

    def __init__(self, source: Source, info: Info):
        self._source, self._info = source, info
        self._files: list[str] | None = None
        self._rows: tuple[str, dict[int, Row]] = ("", {})

    def row(self, episode: int) -> Row:
        if episode in self._rows[1]:
            return self._rows[1][episode]
        if self._files is None:
            listed = self._source.listing(self._FOLDER)
            self._files = [name for name in listed if name.endswith(".parquet")]
        low, high = 0, len(self._files)
        while low < high:
            middle = (low + high) // 2
            rows = self._read(self._files[middle])
            if episode in rows:
                return rows[episode]
            if rows and episode < min(rows):
                high = middle
            else:
                low = middle + 1
        raise ValueError(f"{self._FOLDER} has no row with episode_index {episode}")

    def _read(self, name: str) -> dict[int, Row]:
        if self._rows[0] != name:
            self._rows = (name, {row.index: row for row in self._all(name)})
        return self._rows[1]

    def _all(self, name: str) -> Iterator[Row]:
        videos = [n for n, f in self._info.cameras.items() if f.dtype == "video"]
        plain = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        plain += ["dataset_from_index", "dataset_to_index"]
        for camera in videos:
            parts = ("chunk_index", "file_index", "from_timestamp")
            plain += [f"videos/{camera}/{part}" for part in parts]
        table = Table(self._source.path(name), name)
        columns = table.read([*plain, "tasks"])
        values = {c: numbers(columns[c], f"{name}: {c}").tolist() for c in plain}
        tasks = texts(columns["tasks"], f"{name}: tasks")
        for i in range(len(tasks)):
            row = {column: values[column][i] for column in plain}
            yield self._row(row, tuple(tasks[i]), videos, f"{name}, row {i}")

    def _row(self, row: dict, tasks: tuple[str, ...], videos: list[str], where: str) -> Row:
        for column, value in row.items():
            whole = column.endswith("from_timestamp") or isinstance(value, int)
            if not whole or not 0 <= value < 1 << 62:
                raise ValueError(f"{where}: {column} is {value}")
        rows = (row["dataset_from_index"], row["dataset_to_index"])
        if rows[1] - rows[0] != row["length"] or not row["length"]:
            raise ValueError(
                f"{where}: length is {row['length']}, dataset_from_index to dataset_to_index are "
                f"{rows[0]} to {rows[1]}"
            )

        def file(kind: str) -> dict[str, int]:
            return {part: row[f"{kind}/{part}"] for part in ("chunk_index", "file_index")}

        clips = {
            camera: Clip(
                self._info.video_file(camera, **file(f"videos/{camera}")),
                row[f"videos/{camera}/from_timestamp"],
            )
            for camera in videos
        }
        data = self._info.data_file(**file("data"))
        return Row(row["episode_index"], row["length"], tasks, where, data, rows, clips)


# --- tasks --------------------------------------------------------------------------------------

TASKS_V30, TASKS_V21 = "meta/tasks.parquet", "meta/tasks.jsonl"
# LeRobot 0.6 has a column `task`; before, the text was the index of a pandas table without a name.
_TASK_COLUMNS = ("task", "__index_level_0__")


class _Task(pydantic.BaseModel):
    task_index: Count
    task: str


def read_tasks(source: Source, info: Info) -> dict[int, str]:
    """Task texts by number."""
    if not info.is_v3:
        found = (_line(line, where, _Task) for where, line in lines(source, TASKS_V21))
        return {task.task_index: task.task for task in found}
    table = Table(source.path(TASKS_V30), TASKS_V30)
    column = next((c for c in _TASK_COLUMNS if c in table.columns), None)
    if column is None:
        raise ValueError(
            f"{TASKS_V30} has no column {' or '.join(_TASK_COLUMNS)} with the tasks' texts; it has "
            f"{', '.join(table.columns)}"
        )
    columns = table.read(["task_index", column])
    indices = numbers(columns["task_index"], f"{TASKS_V30}: task_index").tolist()
    return dict(zip(indices, texts(columns[column], f"{TASKS_V30}: {column}"), strict=True))


# --- lines of JSON ------------------------------------------------------------------------------


def lines(source: Source, name: str) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line of a JSON lines file."""
    path: Path = source.path(name)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not JSON, or was cut off: {error}") from error


_Model = TypeVar("_Model", bound=pydantic.BaseModel)


def _line(value: object, where: str, kind: type[_Model]) -> _Model:
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {problems(error)}") from error
