"""What runs left behind, for as long as a page may ask for it; and their way out as files."""

import collections
import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response

from playground import codec, run_file, spilled, summaries
from playground import trace as traces
from playground.serving.events import Job
from playground.trace import PolicyInfo, Trace
from playground.views import report

MAX_SIZE = 256 << 20  # in memory, of all that is kept; with it the process stays below 1 GB
MAX_SPILLED = 512 << 20  # of the pictures that lie in files, see `playground.spilled`
# What is said of a trace to programs, by what an address calls it.
SUMMARIES: dict[str, Callable[[Trace], dict[str, Any]]] = {
    "chunk": lambda trace: summaries.chunk(trace, arrays=True),
    "denoising": lambda trace: summaries.denoising(trace, arrays=True),
    "mask": summaries.attention_mask,
    "attention-suffix": lambda trace: summaries.attention(trace, "suffix", arrays=True),
    "attention-prefix": lambda trace: summaries.attention(trace, "prefix", arrays=True),
}


class Results:
    """Traces by run. A run's key is random, so whoever holds it may see the run and nobody else.

    Bounded four ways: runs, bytes of memory, bytes on disk, and seconds since the run. Where there
    is no room, the oldest run of whoever has most gives way, so nobody's runs push out those of
    others who keep less. Safe from any thread.
    """

    def __init__(
        self,
        runs: int = 256,
        size: int = MAX_SIZE,
        age_s: float = 3600.0,
        on_disk: int = MAX_SPILLED,
    ):
        self._bounds = {"size": size, "on_disk": on_disk, "count": runs}
        self._age_s = age_s
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, Run] = collections.OrderedDict()

    def keep(self, found: dict[str, Trace], jobs: Sequence[Job] = (), owner: str = "") -> str:
        """Keeps the traces (by policy) of one run, with what was asked for, and gives the run's
        key. owner: whose share it counts against."""
        key = secrets.token_urlsafe(18)
        run = Run(found, jobs, owner)
        with self._lock:
            self._kept[key] = run
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

    def jobs(self, key: str | None) -> list[Job]:
        """What a run was asked for; [] once it is gone."""
        with self._lock:
            self._forget()
            return self._kept[key].jobs if key in self._kept else []

    def add(self, key: str | None, files: Mapping[str, str]) -> None:
        """Further files of a run, texts by name: what was measured about it. Nothing once it is
        gone."""
        with self._lock:
            if (run := self._kept.get(key or "")) is not None:
                run.size -= sum(len(run.files.get(name, "")) for name in files)
                run.files |= files
                run.size += sum(map(len, files.values()))
                self._forget()

    def files(self, key: str | None) -> dict[str, str]:
        """The files that were added to a run; {} once it is gone."""
        with self._lock:
            self._forget()
            return dict(self._kept[key].files) if key in self._kept else {}

    def drop(self, key: str | None) -> None:
        with self._lock:
            self._kept.pop(key or "", None)

    def _forget(self) -> None:
        """What is too old, then until the rest is within the bounds; the newest run stays."""
        for key, run in list(self._kept.items()):
            if time.monotonic() - run.made > self._age_s:
                del self._kept[key]
        while len(self._kept) > 1 and (exceeded := self._exceeded()) is not None:
            self._drop_oldest(exceeded)

    def _exceeded(self) -> collections.Counter[str] | None:
        """Of the first bound that what is kept exceeds, each owner's share."""
        for name, most in self._bounds.items():
            shares: collections.Counter[str] = collections.Counter()
            for run in self._kept.values():
                shares[run.owner] += getattr(run, name)
            if shares.total() > most:
                return shares
        return None

    def _drop_oldest(self, shares: collections.Counter[str]) -> None:
        """Of the owner with the largest share; of equal ones, of who has the oldest run."""
        *older, _ = self._kept
        del self._kept[max(older, key=lambda key: shares[self._kept[key].owner])]


class Run:
    """size: bytes of memory that it takes; on_disk: bytes of files."""

    count = 1

    def __init__(self, found: dict[str, Trace], jobs: Sequence[Job], owner: str):
        self.traces = found
        self.jobs = list(jobs)
        pictures = [p for job in jobs for p in job.observation.images.values()]
        self.pictures = list({traces.image_digest(p): p for p in pictures}.values())
        self.files: dict[str, str] = {}
        self.owner = owner
        self.made = time.monotonic()
        packed = [codec.pack(trace) for trace in found.values()]
        arrays = [array for _, held in packed for array in held.values()]
        # Values of Python take some four times the memory of their JSON.
        others = sum(4 * len(json.dumps(tree)) for tree, _ in packed)
        apart = [picture for picture in self.pictures if spilled.is_spilled(picture)]
        self.on_disk = sum(picture.nbytes for picture in apart)
        held = sum(array.nbytes for array in (*arrays, *self.pictures)) - self.on_disk
        self.size = held + others
        spilled.let_go()


def routes(results: Results) -> APIRouter:
    """/trace/<run>/<policy>: a trace as `playground.trace.save` writes it; /run/<run>: all of a
    run, as `playground.run_file.write` does; /arrays/<run>/<policy>/<summary>: the arrays of one of
    `playground.summaries`, by name, as `numpy.savez` does. 404 once it is gone."""
    router = APIRouter()

    @router.get("/arrays/{key}/{policy}/{summary}")
    def arrays(key: str, policy: str, summary: str) -> Response:
        trace, make = results.find(key).get(policy), SUMMARIES.get(summary)
        if trace is None or make is None:
            return _gone()
        try:
            found = make(trace)
        except ValueError:  # this run measured no attention
            return _gone()
        file = io.BytesIO()
        arrays: dict[str, Any] = summaries.arrays_of(found)
        np.savez_compressed(file, **arrays)
        return _download(file, f"{filename(trace.info)}-{summary}.npz")

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
        run_file.write(file, found, pictures, figures | results.files(key))
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


def arrays_link(key: str, policy: str, summary: str) -> str:
    """Of a summary's arrays, in the same way."""
    return f"arrays/{key}/{policy}/{summary}"


def run_link(key: str) -> str:
    """Of a whole run, in the same way."""
    return f"run/{key}"


def filename(info: PolicyInfo) -> str:
    """Without a suffix; the badge is part of it, wherever the file may end up."""
    return run_file.filename(info.name, info.badge)


def run_name(found: Mapping[str, Trace]) -> str:
    """The same of a whole run."""
    return "-".join(filename(trace.info) for trace in found.values())
