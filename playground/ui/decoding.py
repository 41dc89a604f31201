"""Pictures, run files and datasets of visitors, taken apart in processes of their own.

A file can be made to take long, or much memory, to read; and the libraries that read pictures have
had faults. So each is read by one of a few processes with bounds of its own, which is ended when it
exceeds them; the page goes on. What it runs is `playground.ui.decoder`.
"""

import atexit
import collections
import contextlib
import dataclasses
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from playground import codec, spilled
from playground.run_file import Opened
from playground.ui.guard import visitors

PROCESSES = 2
CPU_S = 10.0  # for one file; 16 million pixels take one
MEMORY = 1 << 30  # bytes beside what the process takes by itself
# The same for what is read of a dataset that a stranger chose. Libraries take 200 MB of it.
RECORDED_CPU_S, RECORDED_MEMORY = 20.0, 1 << 30
_WAIT_S = 300.0  # however busy the machine is
_PROCESS = "playground.ui.decoder"
_ROOT = Path(__file__).resolve().parents[2]
_logger = logging.getLogger(__name__)

# What a file holds, or what reads it, once its turn has come.
Source = bytes | Callable[[], bytes]


def picture(source: Source) -> np.ndarray:
    """As `transforms.load_image`; raises ValueError also where that takes too long or too much, and
    where too many are being read. A large picture lies in a file, see `playground.spilled`."""
    found = _shared.read("picture", source, visitors.current())
    assert isinstance(found, np.ndarray)
    return _spilled(found)


def read_size(source: Source) -> tuple[tuple[int, int], tuple[int, int]]:
    """As `transforms.read_size`."""
    found = _shared.read("read_size", source, visitors.current())
    assert isinstance(found, tuple)
    return found


def opened(source: Source) -> Opened:
    """As `run_file.read`; raises ValueError as `picture` does."""
    found = _shared.read("run_file", source, visitors.current())
    assert isinstance(found, Opened)
    pictures = {digest: _spilled(one) for digest, one in found.pictures.items()}
    return dataclasses.replace(found, pictures=pictures)


def recorded(question: bytes) -> tuple[str, object]:
    """As `playground.datasets.apart.read`; raises ValueError as `picture` does."""
    found = _recordings.read("recorded", question, visitors.current())
    assert isinstance(found, tuple)
    return found


def _spilled(found: np.ndarray) -> np.ndarray:
    try:
        return spilled.array(found)
    except OSError as error:
        raise ValueError("there is no room here for so large a picture: scale it down") from error


class Places:
    """Who may have a file read now. One visitor has at most all but one of the `processes`, so that
    others' files never wait for the slowest of theirs. Safe from any thread.

    each, all: how many may wait or be read, of one visitor and of all together.
    """

    def __init__(self, processes: int, each: int = 16, all: int = 48):
        self._most, self._each, self._all = max(1, processes - 1), each, all
        self._free = processes
        self._changed = threading.Condition()
        self._waiting: list[tuple[str, object]] = []  # visitors in line, each file apart
        self._read: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def one(self, visitor: str) -> Iterator[None]:
        """visitor: "" where all are one. Raises ValueError where too many are waiting."""
        with self._changed:
            own = [one for one, _ in self._waiting if one == visitor]
            every = len(self._waiting) + self._read.total()
            if (visitor and len(own) + self._read[visitor] >= self._each) or every >= self._all:
                raise ValueError("too many files are being read: try again in a minute")
            file = visitor, object()
            self._waiting.append(file)
            self._changed.wait_for(lambda: self._is_next(file))
            self._waiting.remove(file)
            self._read[visitor] += 1
            self._free -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._read[visitor] -= 1
                self._free += 1
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many files are in line."""
        with self._changed:
            return len(self._waiting)

    def _is_next(self, file: tuple[str, object]) -> bool:
        """The first in line of a visitor who has not all of theirs already."""
        able = (one for one in self._waiting if not one[0] or self._read[one[0]] < self._most)
        return self._free > 0 and next(able, None) is file


class Decoders:
    """At most so many processes, each started when it is first needed. Safe from any thread."""

    def __init__(self, processes: int = PROCESSES, cpu_s: float = CPU_S, memory: int = MEMORY):
        self._bounds = (cpu_s, memory)
        self.places = Places(processes)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def read(self, kind: str, source: Source, visitor: str = "") -> object:
        """What the process made of a file; its ValueErrors are raised here. visitor: whose it
        is."""
        with self.places.one(visitor):
            data = source if isinstance(source, bytes) else source()
            with self._lock:
                process = self._idle.pop() if self._idle else None
            process = process or _Process(*self._bounds)
            try:
                well, value = process.ask(kind, data)
            except BaseException as error:
                process.end()
                if isinstance(error, (OSError, EOFError)):  # it exceeded its bounds
                    _logger.warning("a file exceeded the bounds of its reader: %s", kind)
                    raise ValueError("this file takes too long, or too much memory, to read") from (
                        error
                    )
                raise
            with self._lock:
                self._idle.append(process)
        if not well:
            raise ValueError(value)
        return value

    def pids(self) -> list[int]:
        """Of the processes that wait for a file."""
        with self._lock:
            return [process.pid for process in self._idle]

    def close(self) -> None:
        """Ends the processes that wait; a later `read` starts others."""
        with self._lock:
            ended, self._idle = self._idle, []
        for process in ended:
            process.end()


class _Process:
    def __init__(self, cpu_s: float, memory: int):
        self._connection, other = socket.socketpair()
        self._connection.settimeout(_WAIT_S)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _PROCESS, str(other.fileno()), str(cpu_s), str(memory)],
                cwd=_ROOT,
                # A thread for each core would take memory that the files are to have.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, kind: str, data: bytes) -> tuple[bool, object]:
        for piece in codec.pieces((kind, np.frombuffer(data, np.uint8))):
            self._connection.sendall(piece)
        well, value = codec.receive(self._connection)
        return well, value

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


_shared = Decoders()
_recordings = Decoders(cpu_s=RECORDED_CPU_S, memory=RECORDED_MEMORY)
atexit.register(_shared.close)
atexit.register(_recordings.close)
