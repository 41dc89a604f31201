"""The process that owns the device, as the page's process holds it: started, spoken to, ended.

The other end of the connection is `playground.serving.engine`. This side never imports JAX.

    to the engine      Setup (first), Start, Cancel
    from the engine    Message: Loading, Refused, Ready, Beat, Happened, Exhausted, Ended

Every message says within how many seconds the next one follows; staying silent for longer is being
hung.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Protocol

from playground import codec
from playground.serving.messages import Message

_TICK_S = 1.0  # how often a silent process is checked: an exit is noticed within this
_STALL_S = 15.0  # for a frame to move on


class Lost(Exception):
    """The process is gone, or as good as gone."""


class Link(Protocol):
    """A started engine, wherever it runs.

    pid: the number of its process on this machine; None elsewhere. begun: whether it has a place
    to run, so that it can be held to its deadlines.
    """

    @property
    def pid(self) -> int | None: ...

    @property
    def begun(self) -> bool: ...

    def send(self, frame: bytes) -> None:
        """Raises OSError if the engine is gone or does not listen."""

    def receive(self, until: float) -> Message | None:
        """Its next message, or None where there is none by `until`, after a tick, or when woken.
        Raises Lost."""

    def show_stacks(self) -> None:
        """Has a hung engine write where it hangs to the log (stderr)."""

    def end(self) -> None:
        """Ends it, whatever it does."""


class Inbox:
    """Reads an engine's messages from a socket. `wake`: a socket whose bytes end a wait early."""

    def __init__(self, connection: socket.socket, wake: socket.socket):
        self._connection, self._wake = connection, wake
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)

    def receive(self, until: float) -> Message | None:
        """The next message, or None where there is none by `until`, after a tick, or when woken.
        Raises EOFError or OSError where the connection ended, Lost for what is no message."""
        wait_s = min(until - time.monotonic(), _TICK_S)
        readable = [key.fileobj for key, _ in self._selector.select(max(wait_s, 0.0))]
        if self._wake in readable:
            self._wake.recv(4096)
        if self._connection not in readable:
            return None
        try:
            return codec.receive(self._connection)
        except TimeoutError as error:
            raise Lost(f"it hung in the middle of a message for {_STALL_S} s") from error
        except ValueError as error:
            raise Lost(f"it sent something unreadable: {error}") from error

    def close(self) -> None:
        self._selector.close()
        self._connection.close()


def connection_pair() -> tuple[socket.socket, socket.socket]:
    """(ours, theirs). Whoever stops in the middle of a frame is given up on our side."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_STALL_S)
    return ours, theirs


class Process:
    """A `Link` to a process on this machine. `wake`: a socket whose bytes end a wait early."""

    begun = True

    def __init__(self, wake: socket.socket):
        self._connection, theirs = connection_pair()
        self._inbox = Inbox(self._connection, wake)
        # -P and PYTHONPATH: names resolve there as they do here. A session of its own: Ctrl-C in
        # the terminal is this side's matter.
        python = [sys.executable, "-P", "-X", "faulthandler"]
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [*python, "-m", "playground.serving.engine", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: bytes) -> None:
        self._connection.sendall(frame)

    def receive(self, until: float) -> Message | None:
        try:
            message = self._inbox.receive(until)
        except (EOFError, OSError) as error:
            raise Lost(self._how_it_ended()) from error
        # Its own children may hold the connection open after it is gone.
        if message is None and self._process.poll() is not None:
            raise Lost(self._how_it_ended())
        return message

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        code = self._process.returncode
        if code is None:
            return "it closed its connection"
        name = signal.Signals(-code).name if code < 0 else ""
        return f"it was killed by {name}" if code < 0 else f"it exited with status {code}"

    def show_stacks(self) -> None:
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)

    def end(self) -> None:
        """A closed connection ends it; what does not listen is killed, with all it started."""
        self._inbox.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
