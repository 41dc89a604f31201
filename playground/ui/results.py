"""What runs left behind, for as long as a page may ask for it; and their way out as files."""

import collections
import io
import secrets
import threading
import time

from fastapi import APIRouter
from fastapi.responses import Response

from playground import trace as traces
from playground.trace import PolicyInfo, Trace


class Results:
    """Traces by run. A run's key is random, so whoever holds it may see the run and nobody else.

    Bounded three ways: runs, bytes of arrays, and seconds since the run. Safe from any thread.
    """

    def __init__(self, runs: int = 256, size: int = 1 << 30, age_s: float = 3600.0):
        self._limits = (runs, size, age_s)
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, _Run] = collections.OrderedDict()

    def keep(self, found: dict[str, Trace]) -> str:
        """Keeps the traces (by policy) of one run and gives its key."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            self._kept[key] = _Run(found)
            self._forget()
        return key

    def find(self, key: str | None) -> dict[str, Trace]:
        """The traces of a run by policy; {} once they are gone."""
        with self._lock:
            self._forget()
            return self._kept[key].traces if key in self._kept else {}

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
    def __init__(self, found: dict[str, Trace]):
        self.traces = found
        self.made = time.monotonic()
        self.size = sum(
            array.nbytes for trace in found.values() for array in traces.pack(trace)[1].values()
        )


def routes(results: Results) -> APIRouter:
    """/trace/<run>/<policy>: a trace as `playground.trace.save` writes it; 404 once it is gone."""
    router = APIRouter()

    @router.get("/trace/{key}/{policy}")
    def download(key: str, policy: str) -> Response:
        trace = results.find(key).get(policy)
        if trace is None:
            return Response("This result is no longer kept here: run again.", status_code=404)
        file = io.BytesIO()
        traces.save(trace, file)
        return Response(
            file.getvalue(),
            media_type="application/zip",
            headers={
                "Content-Disposition": f'attachment; filename="{filename(trace.info)}.npz"',
                "Cache-Control": "private, no-store",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return router


def link(key: str, policy: str) -> str:
    """Relative to the page, so that it holds behind any proxy."""
    return f"trace/{key}/{policy}"


def filename(info: PolicyInfo) -> str:
    """Without a suffix; the badge is part of it, wherever the file may end up."""
    plain = f"{info.name}-{info.badge}".replace(" ", "-")
    return "".join(letter for letter in plain if letter.isalnum() or letter in "-_.")
