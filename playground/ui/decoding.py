"""Pictures and run files of visitors, taken apart in processes of their own.

A file can be made to take long, or much memory, to read; and the libraries that read pictures have
had faults. So each is read by one of a few processes with bounds of its own, which is ended when it
exceeds them; the page goes on. What comes back is no pickle but a frame of `playground.codec`.
"""

import atexit
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from playground import codec, run_file
from playground.robots import transforms
from playground.run_file import Opened

PROCESSES = 2
CPU_S = 10.0  # for one file; 16 million pixels take one
MEMORY = 1 << 30  # bytes beside what the process takes by itself
_WAIT_S = 300.0  # however busy the machine is
_ROOT = Path(__file__).resolve().parents[2]
_READ: dict[str, Callable[[bytes], object]] = {
    "picture": transforms.load_image,
    "read_size": transforms.read_size,
    "run_file": run_file.read,
}


def picture(data: bytes) -> np.ndarray:
    """As `transforms.load_image`; raises ValueError also where that takes too long or too much."""
    found = _shared.read("picture", data)
    assert isinstance(found, np.ndarray)
    return found


def read_size(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """As `transforms.read_size`."""
    size, read = _shared.read("read_size", data)
    return size, read


def opened(data: bytes) -> Opened:
    """As `run_file.read`; raises ValueError also where that takes too long or too much."""
    found = _shared.read("run_file", data)
    assert isinstance(found, Opened)
    return found


class Decoders:
    """At most so many processes, each started when it is first needed. Safe from any thread."""

    def __init__(self, processes: int = PROCESSES, cpu_s: float = CPU_S, memory: int = MEMORY):
        self._bounds = (cpu_s, memory)
        self._places = threading.Semaphore(processes)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []

    def read(self, kind: str, data: bytes) -> object:
        """What the process made of a file; its ValueErrors are raised here."""
        with self._places:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            process = process or _Process(*self._bounds)
            try:
                well, value = process.ask(kind, data)
            except BaseException as error:
                process.end()
                if isinstance(error, (OSError, EOFError)):  # it exceeded its bounds
                    raise ValueError("this file takes too long, or too much memory, to read") from (
                        error
                    )
                raise
            with self._lock:
                self._idle.append(process)
        if not well:
            raise ValueError(value)
        return value

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
                [sys.executable, "-m", __name__, str(other.fileno()), str(cpu_s), str(memory)],
                cwd=_ROOT,
                # A thread for each core would take memory that the files are to have.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def ask(self, kind: str, data: bytes) -> tuple[bool, object]:
        self._connection.sendall(codec.encode((kind, np.frombuffer(data, np.uint8))))
        well, value = codec.receive(self._connection)
        return well, value

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


_shared = Decoders()
atexit.register(_shared.close)


# --- in the process -----------------------------------------------------------------------------


def serve(connection: socket.socket, cpu_s: float, memory: int) -> None:
    """Answers until the other side closes the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what it held is a visitor's
    _bound_memory(memory)
    while True:
        try:
            kind, data = codec.receive(connection)
        except EOFError:
            return
        # Of CPU time, whatever else the machine does; the signal at its end ends the process.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            answer = True, _READ[kind](data.tobytes())
        except ValueError as error:
            answer = False, str(error)
        except MemoryError:
            return  # the other side sees the end of it
        connection.sendall(codec.encode(answer))


def _bound_memory(memory: int) -> None:
    """Beside what is mapped already, which only Linux tells; elsewhere there is no bound."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    number, seconds, size = sys.argv[1:]
    with socket.socket(fileno=int(number)) as own:
        serve(own, float(seconds), int(size))
