"""A stranger's dataset, read where nothing is lost: in a process with bounds of its own.

A parquet file of a kilobyte can hold more numbers than there is memory, and the libraries that
read such files and videos have had faults. So the page reads a dataset that a stranger chose only
once a process that may be ended has read the same of it (`playground.ui.episodes.apart`), which
runs this. It fetches nothing: where a file is missing, it says which.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from playground import process_memory
from playground.datasets.lerobot import Dataset, Episode
from playground.datasets.source import inside


class Missing(Exception):
    """What has to be fetched first. kind: "file", or "folder" for its listing."""

    def __init__(self, kind: str, name: str):
        super().__init__(kind, name)
        self.kind, self.name = kind, name


class Fetched:
    """A dataset's `Source` that holds what has been fetched. files: where each is, by name;
    listings: names of files, by folder."""

    def __init__(self, title: str, revision: str):
        self.title, self.revision = title, revision
        self.files: Mapping[str, str] = {}
        self.listings: Mapping[str, Sequence[str]] = {}

    def path(self, name: str) -> Path:
        name = inside(name)
        if name not in self.files:
            raise Missing("file", name)
        return Path(self.files[name])

    def listing(self, folder: str) -> list[str]:
        if folder not in self.listings:
            raise Missing("folder", folder)
        return list(self.listings[folder])


@dataclasses.dataclass(slots=True)
class _Open:
    """The dataset that was asked about last, and its episode."""

    source: Fetched
    dataset: Dataset | None = None
    episode: Episode | None = None


_last: list[_Open] = []


def read(question: bytes) -> tuple[str, object]:
    """What `playground.ui.episodes.apart` asks, as JSON: title, revision, files and listings as
    `Fetched` has them, and episode, camera and frame, numbers or null.

    Returns ("file", its name) or ("folder", its name) for what has to be fetched first; else
    ("size", bytes of memory that reading took at most) or, for a frame, ("picture", uint8 [rows,
    columns, 3]). Raises ValueError as `Dataset` and `Episode` do.
    """
    asked = json.loads(question)
    opened = _opened(asked["title"], asked["revision"])
    opened.source.files, opened.source.listings = asked["files"], asked["listings"]
    try:
        if asked["frame"] is not None:
            return "picture", _picture(opened, asked)
        before = process_memory.begin_anew()
        _episode(opened, asked["episode"])
        return "size", process_memory.peak_bytes() - before
    except Missing as missing:
        return missing.kind, missing.name


def _opened(title: str, revision: str) -> _Open:
    if not (_last and (_last[0].source.title, _last[0].source.revision) == (title, revision)):
        if _last and _last[0].episode is not None:
            _last[0].episode.close()
        _last[:] = [_Open(Fetched(title, revision))]
    return _last[0]


def _episode(opened: _Open, index: int | None) -> Episode | None:
    """None where only what describes the dataset is asked for."""
    if opened.dataset is None:
        opened.dataset = Dataset(opened.source)
    if index is None:
        return None
    if opened.episode is None or opened.episode.index != index:
        if opened.episode is not None:
            opened.episode.close()
        opened.episode = None
        opened.episode = opened.dataset.episode(index)
    return opened.episode


def _picture(opened: _Open, asked: dict) -> np.ndarray:
    episode = _episode(opened, asked["episode"])
    assert episode is not None
    assert opened.dataset is not None
    return episode.picture(list(opened.dataset.cameras)[asked["camera"]], asked["frame"])
