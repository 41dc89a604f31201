"""Who has jobs in line at the moment, so that Stop and a closed page can end them."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from playground.events import Job
from playground.line import Busy, Stream
from playground.worker import Down, Worker


def submit(worker: Worker, jobs: Sequence[Job]) -> list[Stream]:
    """Puts all jobs in line, or none: raises as `Worker.infer` does."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(worker.infer(job))
    except (Busy, Down, ValueError):
        _close(streams)
        raise
    return streams


class Runs:
    """The streams that are open now, by visitor, so that Stop and a closed page can end them. A
    visitor has one run of a kind at a time: a new one ends the one before. most: visitors whose
    page began a run and never said that it was closed."""

    def __init__(self, most: int = 2000):
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[str, list[Stream]] = {}
        self._begun: dict[str, None] = {}  # in order of their last beginning

    @contextlib.contextmanager
    def of(self, visitor: str, streams: list[Stream]) -> Iterator[None]:
        """Until the end of the block; whatever ends it, the streams are closed."""
        self.begin(visitor)
        with self._lock:
            before = self._open.get(visitor, [])
            self._open[visitor] = streams
        _close(before)
        try:
            yield
        finally:
            with self._lock:
                if self._open.get(visitor) is streams:
                    del self._open[visitor]
            _close(streams)

    def begin(self, visitor: str) -> None:
        """From now on the strip is this visitor's run's, not that of loading."""
        with self._lock:
            self._begun.pop(visitor, None)
            self._begun[visitor] = None
            if len(self._begun) > self._most:
                del self._begun[next(iter(self._begun))]

    def begun(self, visitor: str) -> bool:
        with self._lock:
            return visitor in self._begun

    def forget(self, visitor: str) -> None:
        """The visitor left."""
        self.stop(visitor)
        with self._lock:
            self._begun.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        with self._lock:
            streams = self._open.pop(visitor, [])
        _close(streams)

    def current(self, visitor: str) -> list[Stream] | None:
        """The visitor's run, None when there is none or it was stopped."""
        with self._lock:
            return self._open.get(visitor)


def _close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()
