"""What runs left behind, for as long as a page may ask for it; and their way out as files."""

import collections
import io
import secrets
import threading
import time
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response

from playground import codec, run_file
from playground import trace as traces
from playground.trace import PolicyInfo, Trace
from playground.views import report


class Results:
    """Traces by run. A run's key is random, so whoever holds it may see the run and nobody else.

    Bounded three ways: runs, bytes of arrays, and seconds since the run. Safe from any thread.
    """

    def __init__(self, runs: int = 256, size: int = 1 << 30, age_s: float = 3600.0):
        self._limits = (runs, size, age_s)
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, _Run] = collections.OrderedDict()

    def keep(self, found: dict[str, Trace], pictures: Sequence[np.ndarray] = ()) -> str:
        """Keeps the traces (by policy) of one run, with the pictures as they were given, and gives
        the run's key."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            self._kept[key] = _Run(found, pictures)
            self._forget()
        return key

    def find(self, key: str | None) -> dict[str, Trace]:
        """The traces of a run by policy; {} once they are gone."""
        with self._lock:
            self._forget()
            return self._kept[key].traces if key in self._kept else {}

    def pictures(self, key: str | None) -> list[np.ndarray]:
        """What was given to a run, each picture once; [] once it is gone."""
        with self._lock:
            self._forget()
            return self._kept[key].pictures if key in self._kept else []

    def drop(self, key: str | None) -> None:
        with self._lock:
            self._kept.pop(key, None)

    def _forget(self) -> None:
        """Oldest first, until the rest is within the limits."""
        runs, size, age_s = self._limits
        total = sum(run.size for run in self._kept.values())
        while self._kept:
            oldest = next(iter(self._kept.values()))
            old = time.monotonic() - oldest.made > age_s
            if not old and len(self._kept) <= runs and (total <= size or len(self._kept) == 1):
                return
            total -= self._kept.popitem(last=False)[1].size


class _Run:
    def __init__(self, found: dict[str, Trace], pictures: Sequence[np.ndarray]):
        self.traces = found
        self.pictures = list({traces.image_digest(p): p for p in pictures}.values())
        self.made = time.monotonic()
        arrays = [a for trace in found.values() for a in codec.pack(trace)[1].values()]
        self.size = sum(array.nbytes for array in (*arrays, *self.pictures))


def routes(results: Results) -> APIRouter:
    """/trace/<run>/<policy>: a trace as `playground.trace.save` writes it; /run/<run>: all of a
    run, as `playground.run_file.write` does. 404 once it is gone."""
    router = APIRouter()

    @router.get("/trace/{key}/{policy}")
    def one(key: str, policy: str) -> Response:
        trace = results.find(key).get(policy)
        if trace is None:
            return _gone()
        file = io.BytesIO()
        traces.save(trace, file)
        return _download(file, f"{filename(trace.info)}.npz")

    @router.get("/run/{key}")
    def whole(key: str) -> Response:
        found, pictures = results.find(key), results.pictures(key)
        if not found:
            return _gone()
        file = io.BytesIO()
        figures = {"figures.html": report.page(list(found.values()))}
        run_file.write(file, found, pictures, figures)
        return _download(file, f"{run_name(found)}.zip")

    return router


def _gone() -> Response:
    return Response("This result is no longer kept here: run again.", status_code=404)


def _download(file: io.BytesIO, name: str) -> Response:
    return Response(
        file.getvalue(),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "private, no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


def link(key: str, policy: str) -> str:
    """Relative to the page, so that it holds behind any proxy."""
    return f"trace/{key}/{policy}"


def run_link(key: str) -> str:
    """Of a whole run, in the same way."""
    return f"run/{key}"


def filename(info: PolicyInfo) -> str:
    """Without a suffix; the badge is part of it, wherever the file may end up."""
    return run_file.filename(info.name, info.badge)


def run_name(found: dict[str, Trace]) -> str:
    """The same of a whole run."""
    return "-".join(filename(trace.info) for trace in found.values())
