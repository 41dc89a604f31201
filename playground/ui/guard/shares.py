"""How much one address may hold open, ask for, and leave here, so that there is room for others.

Where addresses tell nobody apart, only the bounds of all together count.
"""

import asyncio
import collections
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from starlette.types import Message, Receive

from playground.ui.guard.present import Present
from playground.ui.guard.refused import Refused

KEPT_S = 6 * 3600.0  # how long uploads are kept, see `ui.page`
_PART_S = 120.0  # a part of an upload that nobody has added to for so long was given up


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """each: of one address; all: of all together."""

    each: int
    all: int


STREAMS = Bounds(each=64, all=1024)  # a page holds up to three
UPLOADS = Bounds(each=8, all=32)  # at one time
DOWNLOADS = Bounds(each=2, all=8)  # each is made in memory, up to 64 MB, and lies there until read
# Of videos; a browser asks for six at a time. All of them wait in threads, of which there are 40.
FRAMES = Bounds(each=16, all=24)
# Two cores give some 12 answers a second, each for an upload and a message.
CALLS_S = 6.0  # calls of one address in a second, beyond a first CALLS_AT_ONCE
CALLS_AT_ONCE = 60
LATEST_S = 5.0  # that a call may have to wait until it is begun
KEPT_BYTES = Bounds(each=512 << 20, all=4 << 30)  # of uploads
FILES_BYTES = 8 << 30  # of uploads and of what the page makes for visitors, drawn scenes for one
_EVERY_S = 60.0  # how often these are looked at


class Open:
    """What is open at the moment, by address. Used on the event loop alone."""

    def __init__(self, bounds: Bounds, what: str):
        self._bounds, self._what = bounds, what
        self._open = Present()

    @contextlib.contextmanager
    def one(self, address: str) -> Iterator[None]:
        """Raises Refused where there is no room for one more."""
        own = self._open[address] if address else 0
        if own >= self._bounds.each or self._open.total() >= self._bounds.all:
            raise Refused(429, f"Too many {self._what} are open. Please try again in a minute.")
        with self._open.one(address):
            yield


class Pace:
    """How often an address may ask for work: whoever asks more often waits, and beyond LATEST_S is
    refused. Used on the event loop alone."""

    def __init__(self):
        self._due: collections.OrderedDict[str, float] = collections.OrderedDict()

    def wait_s(self, address: str, calls: float, now: float) -> float:
        """How long a request that counts as so many calls is to wait; now: in seconds. Raises
        Refused where that is too long."""
        if not address:
            return 0.0
        idle = now - CALLS_AT_ONCE / CALLS_S  # whoever asked for nothing since has all at once
        while self._due and next(iter(self._due.values())) < idle:
            self._due.popitem(last=False)
        due = max(self._due.get(address, idle), idle) + calls / CALLS_S
        if due - now > LATEST_S:
            raise Refused(429, "Too much is asked for from here. Please try again in a minute.")
        self._due[address] = due
        self._due.move_to_end(address)
        return max(0.0, due - now)

    async def turn(self, address: str, calls: float) -> None:
        """Waits for it. Raises Refused."""
        await asyncio.sleep(self.wait_s(address, calls, time.monotonic()))


class Uploaded:
    """Bytes that came as uploads in the last hours, by address. Used on the event loop alone."""

    def __init__(self, bounds: Bounds = KEPT_BYTES):
        self._bounds = bounds
        self._kept: collections.deque[tuple[float, str, int]] = collections.deque()
        self._sizes: collections.Counter[str] = collections.Counter()

    def check(self, address: str) -> None:
        """Raises Refused where there is no room for more."""
        while self._kept and self._kept[0][0] < time.monotonic() - KEPT_S:
            _, owner, size = self._kept.popleft()
            self._sizes[owner] -= size
        own = self._sizes[address] if address else 0
        if own >= self._bounds.each or self._sizes.total() >= self._bounds.all:
            raise Refused(429, "Too much was uploaded. Please try again in some hours.")

    def counted(self, receive: Receive, address: str) -> Receive:
        """`receive`, of an upload, whatever becomes of it."""

        async def received() -> Message:
            message = await receive()
            if size := len(message.get("body", b"")):
                self._kept.append((time.monotonic(), address, size))
                self._sizes[address] += size
            return message

        return received


def remove_parts(folder: str | Path) -> None:
    """Removes what uploads left that were broken off: Gradio (6.31) keeps their parts for ever. A
    whole upload lies in a folder of its own."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file() and time.time() - entry.stat().st_mtime > _PART_S:
                    os.unlink(entry)


class Folder:
    """The files of visitors, held to a size: the oldest go first. What a page made for a click is
    a file, too, and Gradio (6.31) removes files by their age alone. Of the files that the page
    knows; what it begins with stays."""

    def __init__(self, page: gr.Blocks, most: int = FILES_BYTES):
        self._page, self._most = page, most
        self._looked = -math.inf

    def is_due(self) -> bool:
        """At most once in a while."""
        if time.monotonic() - self._looked < _EVERY_S:
            return False
        self._looked = time.monotonic()
        return True

    def hold(self) -> None:
        """Reads and removes files, so in a thread of its own. Down to three quarters, so that it is
        seldom."""
        known = {path for paths in tuple(self._page.temp_file_sets) for path in tuple(paths)}
        own = {p for b in self._page.blocks.values() for p in getattr(b, "keep_in_cache", ())}
        found = []
        for path in known - own:
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                found.append((stat.st_mtime, stat.st_size, path))
        size = sum(size for _, size, _ in found)
        if size <= self._most:
            return
        for _, freed, path in sorted(found):
            if size <= 3 * self._most // 4:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                size -= freed
