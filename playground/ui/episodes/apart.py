"""Datasets that strangers choose: this process reads of them what another has read within bounds.

What a process needs is fetched here, by the same rules as ever. What it reads, and what is sent to
it, is in `playground.datasets.apart`.
"""

import json

import numpy as np

from playground.datasets.source import Source
from playground.datasets.video import FrameError
from playground.ui import decoding


class Apart:
    """A stranger's dataset. size: bytes of memory that what was read of it took at most."""

    def __init__(self, source: Source):
        self._source = source
        self._files: dict[str, str] = {}
        self._listings: dict[str, list[str]] = {}
        self.size = 0

    def check(self, episode: int | None = None) -> None:
        """Whether what describes the dataset, and an episode's numbers, can be read at no great
        cost. Raises ValueError as `Dataset` and `Episode` do, and where it takes too long or too
        much memory."""
        size = self._ask(episode)
        assert isinstance(size, int)
        self.size += size

    def picture(self, episode: int, camera: int, frame: int) -> np.ndarray:
        """uint8 [rows, columns, 3]; camera: its number in the dataset's order. Raises FrameError
        where it cannot be had."""
        try:
            found = self._ask(episode, camera, frame)
        except ValueError as error:
            raise FrameError(str(error)) from error
        assert isinstance(found, np.ndarray)
        return found

    def _ask(self, episode: int | None, camera: int | None = None, frame: int | None = None):
        """Fetches file by file what is needed, until the question is answered."""
        while True:
            question = {
                "title": self._source.title,
                "revision": self._source.revision,
                "files": self._files,
                "listings": self._listings,
                "episode": episode,
                "camera": camera,
                "frame": frame,
            }
            kind, found = decoding.recorded(json.dumps(question).encode())
            if kind == "file":
                self._files[str(found)] = str(self._source.path(str(found)))
            elif kind == "folder":
                self._listings[str(found)] = self._source.listing(str(found))
            else:
                return found
