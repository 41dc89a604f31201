"""`meta/info.json` of a LeRobot dataset, checked: what it holds, and where its files are."""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from playground.datasets.source import inside

NAME = "meta/info.json"
VERSIONS = ("v3.0", "v2.1")
NUMBERS = {"bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2}
NUMBERS |= {"uint32": 4, "uint64": 8, "float16": 2, "float32": 4, "float64": 8}
MAX_SIDE = 1 << 14  # pixels; larger pictures are a mistake or an attack

Count = Annotated[int, Field(ge=0, le=1 << 62, strict=True)]
Positive = Annotated[int, Field(ge=1, le=1 << 62, strict=True)]


class Feature(BaseModel):
    """One column: its type, shape without the frames, and what its dimensions are called."""

    model_config = ConfigDict(frozen=True)
    dtype: str
    shape: Annotated[tuple[Positive, ...], Field(min_length=1)]
    names: object = None

    @property
    def is_picture(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def dimension_names(self) -> tuple[str, ...] | None:
        """One name a dimension, where the dataset has them: a list, {"motors": [...]} with any one
        key, or {name: number}."""
        names = self.names
        if isinstance(names, dict) and all(isinstance(x, int) for x in names.values()):
            names = [name for name, _ in sorted(names.items(), key=lambda item: item[1])]
        elif isinstance(names, dict) and len(names) == 1:
            (names,) = names.values()
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return tuple(names) if len(names) == self.shape[-1] else None

    @property
    def picture_size(self) -> tuple[int, int]:
        """(rows, columns) of a picture, whose shape has its three colours first or last."""
        first = self.shape[0] == 3 and self.shape[-1] != 3
        if isinstance(self.names, list) and self.names:
            first = str(self.names[0]).startswith("channel")
        rows, columns = self.shape[1:] if first else self.shape[:2]
        return rows, columns


class Info(BaseModel):
    """What is used of info.json."""

    model_config = ConfigDict(frozen=True)
    codebase_version: Literal["v3.0", "v2.1"]
    fps: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
    total_episodes: Count
    total_frames: Count
    chunks_size: Positive = 1000
    data_path: str
    video_path: str | None = None
    robot_type: str | None = None
    features: dict[str, Feature]

    @property
    def is_v3(self) -> bool:
        return self.codebase_version == "v3.0"

    @property
    def cameras(self) -> dict[str, Feature]:
        return {name: f for name, f in self.features.items() if f.is_picture}

    @property
    def numbers(self) -> dict[str, Feature]:
        """Features that are plain numbers or vectors of them."""
        return {n: f for n, f in self.features.items() if f.dtype in NUMBERS and len(f.shape) == 1}

    def data_file(self, **fields: int) -> str:
        return _filled("data_path", self.data_path, fields)

    def video_file(self, camera: str, **fields: int) -> str:
        if self.video_path is None:
            raise ValueError(f"{NAME}: video_path is null, but {camera} is of dtype video")
        return _filled("video_path", self.video_path, {"video_key": camera, **fields})


def read_info(path: Path) -> Info:
    """Raises ValueError that names the field, what came, and what was expected."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{NAME} is not JSON, or was cut off: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{NAME}: expected an object, got a {type(data).__name__}")
    if data.get("codebase_version") not in VERSIONS:
        raise ValueError(
            f"{NAME}: codebase_version is {data.get('codebase_version')!r}; expected "
            f"{' or '.join(VERSIONS)}. LeRobot's own scripts convert older datasets"
        )
    try:
        info = Info.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{NAME}: {problems(error)}") from error
    _check(info)
    return info


def problems(error: ValidationError) -> str:
    """All problems of a validation in one line, by field."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r:.60})"
        for problem in error.errors()
    )


def _check(info: Info) -> None:
    """The rules that concern several fields; every template is tried once, so that a bad one shows
    when the dataset is opened."""
    for name, feature in info.cameras.items():
        if len(feature.shape) != 3 or 3 not in (feature.shape[0], feature.shape[-1]):
            raise ValueError(
                f"{NAME}: features.{name}.shape is {list(feature.shape)}; a picture is "
                "[rows, columns, 3] or [3, rows, columns]"
            )
        if max(feature.shape) > MAX_SIDE:
            raise ValueError(
                f"{NAME}: features.{name}.shape is {list(feature.shape)}; sides are at most "
                f"{MAX_SIDE}"
            )
    numbers = {"chunk_index": 0, "file_index": 0} if info.is_v3 else _numbers_v21(0, 1)
    info.data_file(**numbers)
    for name, feature in info.cameras.items():
        if feature.dtype == "video":
            info.video_file(name, **numbers)


def _numbers_v21(episode: int, chunks_size: int) -> dict[str, int]:
    return {"episode_chunk": episode // chunks_size, "episode_index": episode}


def numbers_v21(info: Info, episode: int) -> dict[str, int]:
    """What the templates of v2.1 are filled with."""
    return _numbers_v21(episode, info.chunks_size)


def _filled(field: str, template: str, values: Mapping[str, int | str]) -> str:
    """A template with its fields filled in. Only `{name}` and `{name:03d}` are known: Python's own
    formatting takes widths of any number of digits and reaches into attributes."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{NAME}: {field} {template!r}: {error}") from error
    found = ""
    for text, name, width, conversion in parts:
        found += text
        if name is None:
            continue
        digits = re.fullmatch(r"(?:0?([1-9])d)?", width or "")
        if name not in values or conversion is not None or digits is None:
            raise ValueError(
                f"{NAME}: {field} {template!r:.200} has a field it cannot have; expected "
                f"{', '.join(f'{{{n}}}' for n in values)}, numbers with at most 9 digits (:03d)"
            )
        found += str(values[name]).zfill(int(digits[1] or 0))
    try:
        return inside(found)
    except ValueError as error:
        raise ValueError(f"{NAME}: {field} {template!r:.200}: {error}") from error
