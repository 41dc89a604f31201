"""The process that owns the device, and the line to it.

`Process` is the end of the line that `playground.serving.worker` holds, in the page's process,
which never imports JAX. `Engine` is the other end: it loads every policy once and runs jobs in the
order they come. Every message from it says within how many seconds the next one follows; staying
silent for longer is being hung. Its main thread does all the work and sends all the messages, so
that one that arrives is proof of a working loop; a second thread only listens.

    to the engine      setup (first), job, cancel
    from the engine    loading, refused, ready, beat, event, exhausted, ended

"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib
import logging
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator

from playground import codec
from playground.serving.events import Done, Event, Failed, Finished, Job, Phase
from playground.serving.messages import (
    Beat,
    Cancel,
    Ended,
    Exhausted,
    Happened,
    Loading,
    Message,
    Outcome,
    Ready,
    Refused,
    Setup,
    Start,
)

_TICK_S = 1.0  # how often a silent process is looked at: an exit is noticed within this
_STALL_S = 15.0  # for a frame to move on
_BEAT_S = 1.0
_IDLE_DEADLINE_S = 10.0
_JOB_DEADLINE_S = 60.0  # for the first event of a policy's run

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_logger = logging.getLogger(__name__)


class Lost(Exception):
    """The process is gone, or as good as gone."""


class Process:
    """The page's end: starts the process, talks to it, ends it. `wake`: a socket whose bytes end
    a wait early."""

    def __init__(self, wake: socket.socket):
        self._wake = wake
        self._line, theirs = socket.socketpair()
        self._line.settimeout(_STALL_S)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._line, selectors.EVENT_READ)
        self._selector.register(wake, selectors.EVENT_READ)
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
        """Raises OSError if the process is gone or does not listen."""
        self._line.sendall(frame)

    def receive(self, until: float) -> Message | None:
        """Its next message, or None where there is none by `until`, after a tick, or when woken.
        Raises Lost."""
        wait_s = min(until - time.monotonic(), _TICK_S)
        readable = [key.fileobj for key, _ in self._selector.select(max(wait_s, 0.0))]
        if self._wake in readable:
            self._wake.recv(4096)
        if self._line not in readable:
            # Its own children may hold the line open after it is gone.
            if self._process.poll() is not None:
                raise Lost(self._how_it_ended())
            return None
        try:
            return codec.receive(self._line)
        except TimeoutError as error:
            raise Lost(f"it hung in the middle of a message for {_STALL_S} s") from error
        except (EOFError, OSError) as error:
            raise Lost(self._how_it_ended()) from error
        except ValueError as error:
            raise Lost(f"it sent something unreadable: {error}") from error

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        code = self._process.returncode
        if code is None:
            return "it closed its line"
        name = signal.Signals(-code).name if code < 0 else ""
        return f"it was killed by {name}" if code < 0 else f"it exited with status {code}"

    def show_stacks(self) -> None:
        """Has a hung process write where it hangs to the log (stderr)."""
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)

    def end(self) -> None:
        """The end of the line ends it; what does not listen is killed, with all it started."""
        self._selector.close()
        self._line.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Engine:
    """One line, the policies behind it, and the loop that serves them."""

    def __init__(self, line: socket.socket):
        self._line = line
        self._deadline_s = _IDLE_DEADLINE_S
        self._jobs: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._cancelled = ""  # only the running job is ever cancelled here
        self._policies = {}
        self._kinds: dict[str, Callable[..., Generator[Event]]] = {}

    def run(self) -> None:
        """Loads, then serves until the other side closes the line, which ends the process."""
        setup: Setup = codec.receive(self._line)
        threading.Thread(target=self._listen, daemon=True).start()
        self._deadline_s = setup.deadline_s
        try:
            self._kinds = {kind: _named(name) for kind, name in setup.kinds.items()}
            self._policies = self._load(_named(setup.factory)(**setup.arguments))
        except ValueError as error:
            self._send(Refused(str(error), traceback.format_exc()))
            return
        self._deadline_s = _IDLE_DEADLINE_S
        self._send(Ready({name: policy.info for name, policy in self._policies.items()}))
        while True:
            try:
                job = self._jobs.get(timeout=_BEAT_S)
            except queue.Empty:
                self._send(Beat())
            else:
                self._serve(job)

    def _load(self, loading) -> dict:
        """The policies; a factory that is a generator announces its phases on the way to them."""
        if not isinstance(loading, Generator):
            return loading
        while True:
            try:
                phase = next(loading)
            except StopIteration as stop:
                return stop.value
            self._deadline_s = phase.deadline_s
            self._send(Loading(phase))

    def _serve(self, job: Start) -> None:
        policies = job.request.policies if job.kind == "infer" else (None,)
        outcome: Outcome = "done"
        for policy in policies:
            self._deadline_s = _JOB_DEADLINE_S
            self._send(Beat())
            result = "cancelled" if job.job_id == self._cancelled else self._run_one(job, policy)
            outcome = outcome if result == "done" else result
            if outcome == "cancelled":
                break
        if outcome == "done" or (outcome == "failed" and None not in policies):
            self._send(Happened(Finished()))
        self._deadline_s = _IDLE_DEADLINE_S
        self._send(Ended(outcome))

    def _run_one(self, job: Start, policy: str | None) -> Outcome:
        """Sends the events of one policy (None: of a job of another kind) and how it ended."""
        try:
            with contextlib.closing(self._events(job, policy)) as events:
                for event in events:
                    if isinstance(event, Phase):
                        self._deadline_s = event.deadline_s
                    self._send(Happened(event))
                    if job.job_id == self._cancelled:
                        return "cancelled"
            return "done"
        except Exception as error:
            if _is_exhausted(error):
                self._send(Exhausted())
            failed = Failed(policy, _for_visitor(error, job.job_id), job.job_id)
            self._send(Happened(failed, traceback.format_exc()))
            return "failed"

    def _events(self, job: Start, policy: str | None) -> Generator[Event]:
        if policy is None:
            return self._kinds[job.kind](self._policies, job.request)
        if policy not in self._policies:
            raise ValueError(f"no policy is called {policy!r}; loaded: {', '.join(self._policies)}")
        return self._infer(job.request, policy)

    def _infer(self, job: Job, policy: str) -> Generator[Event]:
        """A policy's run; where the device has no memory for all samples, that of the first."""
        observation, options = job.observation, job.options
        infer = self._policies[policy].infer
        try:
            yield from infer(observation, options)
            return
        except Exception as error:
            if not (_is_exhausted(error) and options.num_samples > 1):
                raise
        # Outside of `except`: the error is gone, and with it what its frames held of the device.
        self._send(Exhausted())
        warning = (
            f"The device ran out of memory with {options.num_samples} samples at once: this is the "
            "first of them. Fewer samples, or no attention weights, need less."
        )
        for event in infer(observation, dataclasses.replace(options, num_samples=1)):
            if isinstance(event, Done):
                warnings = (*event.trace.warnings, warning)
                event = Done(policy, dataclasses.replace(event.trace, warnings=warnings))
            yield event

    def _send(self, body) -> None:
        self._line.sendall(codec.encode(Message(body, self._deadline_s)))

    def _listen(self) -> None:
        """Takes jobs and cancellations; the end of the line is the end of this process, whatever
        it is busy with, since nobody is left to tell."""
        try:
            while True:
                message = codec.receive(self._line)
                if isinstance(message, Cancel):
                    self._cancelled = message.job_id
                else:
                    self._jobs.put(message)
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException:
            _logger.exception("the line broke")
            os._exit(1)


def _named(name: str) -> Callable:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    return vars(importlib.import_module(module))[function]


def _for_visitor(error: Exception, job_id: str) -> str:
    """A ValueError was written to be read; whatever else happened is told without its details."""
    if isinstance(error, ValueError):
        return str(error)
    if _is_exhausted(error):
        return (
            "The device ran out of memory. Fewer samples or noises, or no attention weights, need "
            "less."
        )
    return f"Something went wrong inside the worker. If you report it, quote job {job_id}."


def _is_exhausted(error: Exception) -> bool:
    """Whether the host or, as XLA says it, the device had no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def main() -> None:
    """Entry point of the process; its argument is the file descriptor of the line."""
    if sys.platform == "linux":  # elsewhere the end of the line has to do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    # A supervisor or a terminal may signal every process of the group; the page's one decides.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)  # asked for before a hung process is killed
    logging.basicConfig(level=logging.WARNING)
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    Engine(line).run()


if __name__ == "__main__":
    main()
