"""Datasets that visitors have open, their pictures, and reports on them, each by a random key."""

import collections
import io
import secrets
import threading
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from PIL import Image

from playground.datasets.job import Recorded
from playground.datasets.lerobot import BUNDLED, Dataset, Episode, open_dataset, source_of
from playground.datasets.matching import Choice
from playground.datasets.video import FrameError
from playground.tabletop import camera as table_camera
from playground.ui.episodes.apart import Apart

_MOST_OPEN, _MOST_REPORTS = 32, 64
_MOST_BYTES = 256 << 20  # that strangers' datasets take in memory
_MOST_EPISODES = 2  # of one dataset in memory
_LARGEST = 640  # pixels of the longer side that a browser is sent
_PUBLIC_SIDE = 2048  # pixels; a stranger's dataset must not cost much to decode
_QUALITY = 85  # of JPEG


class _Owned(Protocol):
    """owner: whose share it counts against; size: bytes of memory that it takes, where that is
    bounded."""

    owner: str

    @property
    def size(self) -> int: ...


Value = TypeVar("Value", bound=_Owned)


class _Kept(Generic[Value]):
    """The newest few, by key. Where there is no room, the one that was used longest ago goes of
    whoever has most. Safe from any thread."""

    def __init__(self, most: int, most_bytes: int = _MOST_BYTES):
        self._most, self._most_bytes, self._lock = most, most_bytes, threading.Lock()
        self._values: collections.OrderedDict[str, Value] = collections.OrderedDict()

    def put(self, key: str, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._make_room()

    def get(self, key: str | None) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            self._make_room()  # it may have grown since
            return self._values[key]

    def _make_room(self) -> None:
        while len(self._values) > 1:
            counts: collections.Counter[str] = collections.Counter()
            sizes: collections.Counter[str] = collections.Counter()
            for value in self._values.values():
                counts[value.owner] += 1
                sizes[value.owner] += value.size
            if counts.total() > self._most:
                shares = counts
            elif sizes.total() > self._most_bytes:
                shares = sizes
            else:
                return
            *older, _ = self._values
            del self._values[max(older, key=lambda key: shares[self._values[key].owner])]


class Opened:
    """One dataset as one visitor opened it. Safe from any thread: one reads at a time.

    key: names it; dataset: what it holds; owner: whose it is.
    """

    def __init__(self, word: str, public: bool, owner: str = ""):
        self.key, self.owner = secrets.token_urlsafe(18), owner
        self._apart: Apart | None = None
        if public and word != BUNDLED:
            source = source_of(word, public=True)
            self._apart = Apart(source)
            self._apart.check()
            self.dataset = Dataset(source)
        else:
            self.dataset = open_dataset(word, public=public)
        self._word, self._public = word, public
        self._lock = threading.Lock()
        self._episodes: collections.OrderedDict[int, Episode] = collections.OrderedDict()
        self._tables: dict[tuple[int, str], bool] = {}
        if public:
            _check_sizes(self.dataset)

    def episode(self, index: int) -> Episode:
        """Raises ValueError as `Dataset.episode` does."""
        with self._lock:
            return self._episode(index)

    def picture(self, index: int, camera: int, frame: int) -> bytes:
        """A frame as JPEG; camera: its number in the order of the dataset. Raises ValueError,
        FrameError for a picture that cannot be had."""
        with self._lock:
            names = list(self.dataset.cameras)
            if not 0 <= camera < len(names):
                raise ValueError(f"there are {len(names)} cameras")
            picture = self._picture(index, camera, frame)
        return _jpeg(picture)

    def shows_table(self, index: int, camera: str) -> bool:
        """Whether an episode's first picture is the simulated table's; looked at once."""
        with self._lock:
            if (index, camera) not in self._tables:
                try:
                    number = list(self.dataset.cameras).index(camera)
                    picture = self._picture(index, number, 0)
                    self._tables[index, camera] = table_camera.shows_table(picture)
                except FrameError:
                    self._tables[index, camera] = False
            return self._tables[index, camera]

    def recorded(self, index: int, choice: Choice) -> Recorded:
        """The episode, for a job of the worker."""
        dataset = (self._word, self.dataset.revision, self._public, self.key)
        return Recorded(*dataset, index, choice.model_dump_json())

    @property
    def size(self) -> int:
        """Bytes of memory that was taken to read it; 0 where that is its owner's own matter."""
        return self._apart.size if self._apart is not None else 0

    def _picture(self, index: int, camera: int, frame: int) -> np.ndarray:
        episode = self._episode(index)
        if self._apart is None:
            return episode.picture(list(self.dataset.cameras)[camera], frame)
        if not 0 <= frame < episode.length:
            raise ValueError(f"the episode has frames 0 to {episode.length - 1}; {frame} was asked")
        return self._apart.picture(index, camera, frame)

    def _episode(self, index: int) -> Episode:
        if index not in self._episodes:
            if self._apart is not None:
                self._apart.check(index)
            self._episodes[index] = self.dataset.episode(index)
            while len(self._episodes) > _MOST_EPISODES:
                self._episodes.popitem(last=False)[1].close()
        self._episodes.move_to_end(index)
        return self._episodes[index]


class _Report:
    """Texts by file name."""

    def __init__(self, files: dict[str, str], owner: str):
        self.files, self.owner = files, owner
        self.size = sum(map(len, files.values()))


class Recordings:
    """public: whether others than this machine's owner reach the page, and so open no folders."""

    def __init__(self, public: bool):
        self.public = public
        self._opened: _Kept[Opened] = _Kept(_MOST_OPEN)
        self._reports: _Kept[_Report] = _Kept(_MOST_REPORTS)

    def open(self, word: str, owner: str = "") -> Opened:
        """owner: whose share it counts against. Raises ValueError for what cannot be opened, or
        not here."""
        word = word.strip()
        if not word:
            raise ValueError("name a dataset of the Hub, like lerobot/aloha_sim_insertion_human")
        if not self.public and word.startswith("~"):
            word = str(Path(word).expanduser())
        opened = Opened(word, self.public, owner)
        self._opened.put(opened.key, opened)
        return opened

    def find(self, key: str | None) -> Opened:
        """Raises ValueError where it is no longer kept."""
        opened = self._opened.get(key)
        if opened is None:
            raise ValueError("open a dataset first; one opened long ago has to be opened again")
        return opened

    def keep_report(self, files: dict[str, str], owner: str = "") -> str:
        """Texts by file name; gives the key that they are served under."""
        key = secrets.token_urlsafe(18)
        self._reports.put(key, _Report(files, owner))
        return key

    def report(self, key: str, name: str) -> str | None:
        found = self._reports.get(key)
        return None if found is None else found.files.get(name)


def routes(recordings: Recordings) -> APIRouter:
    """/episode/<key>/<episode>/<camera>/<frame>: a recorded picture; /evaluation/<key>/<file>: a
    table or a report. 404 once they are gone."""
    router = APIRouter()

    @router.get("/episode/{key}/{episode}/{camera}/{frame}")
    def picture(key: str, episode: int, camera: int, frame: int) -> Response:
        try:
            found = recordings.find(key).picture(episode, camera, frame)
        except FrameError as error:
            return Response(str(error), status_code=410)
        except ValueError as error:
            return Response(str(error), status_code=404)
        # The key stands for this opening, and the picture does not change.
        kept = {"Cache-Control": "private, max-age=3600, immutable"}
        return Response(found, media_type="image/jpeg", headers=kept)

    @router.get("/evaluation/{key}/{name}")
    def report(key: str, name: str) -> Response:
        text = recordings.report(key, name)
        if text is None:
            return Response("This report is no longer kept here.", status_code=404)
        kind = "text/csv" if name.endswith(".csv") else "text/html"
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "private, no-store",
        }
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=headers)

    return router


def _jpeg(picture: np.ndarray) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _check_sizes(dataset: Dataset) -> None:
    for name, feature in dataset.cameras.items():
        if max(feature.picture_size) > _PUBLIC_SIDE:
            raise ValueError(
                f"{name} has pictures of {' x '.join(map(str, feature.picture_size))}; this page "
                f"opens sides of at most {_PUBLIC_SIDE}"
            )
