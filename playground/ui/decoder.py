"""What reads a visitor's picture, run file or dataset, in a process of its own.

`playground.ui.decoding` starts it. It imports no more than it needs, for what it takes by itself
is not bounded.

What goes and comes is no pickle but frames of `playground.codec`: (kind, the file's bytes), and
(True, what was read) or (False, why nothing was).
"""

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from playground import codec, run_file
from playground.robots import transforms

_NICE = 10  # the page's own work, which all visitors share, goes first


def _recorded(question: bytes) -> object:
    from playground.datasets import apart  # only the processes that read datasets need all that

    return apart.read(question)


_READ: dict[str, Callable[[bytes], object]] = {
    "picture": transforms.load_image,
    "read_size": transforms.read_size,
    "run_file": run_file.read,
    "recorded": _recorded,
}


def serve(connection: socket.socket, cpu_s: float, memory: int) -> None:
    """Answers until the other side closes the connection."""
    os.nice(_NICE)
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
        for piece in codec.pieces(answer):
            connection.sendall(piece)


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
