"""What owns a device: it loads policies, then runs jobs one by one.

The page's end of the connection is `playground.serving.process`, which says what crosses it, or
`playground.serving.ray`. One thread does all the work and sends all the messages, so that one that
arrives is proof of a working loop; a second thread only listens.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any

from playground import codec
from playground.serving import logs
from playground.serving.events import Done, Event, Failed, Finished, Job, Phase
from playground.serving.messages import (
    Beat,
    Cancel,
    Ended,
    Exhausted,
    Happened,
    Holding,
    Loading,
    Message,
    Outcome,
    Ready,
    Refused,
    Setup,
    Start,
)
from playground.serving.shelf import Shelf

_BEAT_S = 1.0
_IDLE_DEADLINE_S = 10.0
_JOB_DEADLINE_S = 60.0  # for the first event of a policy's run

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_logger = logging.getLogger(__name__)


class Engine:
    """A connection, the policies behind it, and the loop that serves them."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._deadline_s = _IDLE_DEADLINE_S
        self._jobs: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._cancelled: set[str] = set()  # only running jobs are ever cancelled here
        self._policies: Mapping[str, Any] = {}
        self._kinds: dict[str, Callable[..., Generator[Event]]] = {}

    def run(self) -> None:
        """Loads, then serves until the other side closes the connection, which ends the process."""
        setup: Setup = codec.receive(self._connection)
        threading.Thread(target=self._listen, daemon=True).start()
        self._deadline_s = setup.deadline_s
        try:
            factory = self._import(setup)
            self._policies = self._load(factory(**setup.arguments))
        except ValueError as error:
            self._send(Refused(str(error), traceback.format_exc()))
            return
        self._deadline_s = _IDLE_DEADLINE_S
        if isinstance(self._policies, Shelf):
            self._send(Holding(tuple(self._policies), self._policies.load_s))
            infos = self._policies.infos
        else:
            infos = {name: policy.info for name, policy in self._policies.items()}
        self._send(Ready(infos, os.getpid()))
        while True:
            try:
                job = self._jobs.get(timeout=_BEAT_S)
            except queue.Empty:
                self._send(Beat())
            else:
                self._serve(job)

    def _import(self, setup: Setup) -> Callable:
        """The factory; keeps what else `setup` names. Modules live as long as the process: Python's
        garbage collector need not go through them, neither now nor in the middle of an answer,
        where that took 0.1 s. What is loaded later is collected as ever."""
        gc.disable()
        try:
            self._kinds = {kind: _named(name) for kind, name in setup.kinds.items()}
            return _named(setup.factory)
        finally:
            gc.freeze()
            gc.enable()

    def _load(self, loading) -> Mapping[str, Any]:
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
            result = "cancelled" if job.job_id in self._cancelled else self._run_one(job, policy)
            outcome = outcome if result == "done" else result
            if outcome == "cancelled":
                break
        if outcome == "done" or (outcome == "failed" and None not in policies):
            self._send(Happened(job.job_id, Finished()))
        self._cancelled.discard(job.job_id)
        self._deadline_s = _IDLE_DEADLINE_S
        self._send(Ended(job.job_id, outcome))

    def _let_pass(self) -> None:
        """Serves the job that came while another one runs, if there is any: an urgent one, or a
        short one of a visitor's. An urgent one may come while that runs, too."""
        try:
            passing = self._jobs.get_nowait()
        except queue.Empty:
            return
        deadline_s = self._deadline_s
        self._serve(passing)
        self._deadline_s = deadline_s
        self._send(Beat())

    def _run_one(self, job: Start, policy: str | None) -> Outcome:
        """Sends the events of one policy (None: of a job of another kind) and how it ended."""
        try:
            with contextlib.closing(self._events(job, policy)) as events:
                for event in events:
                    if isinstance(event, Phase):
                        self._deadline_s = event.deadline_s
                    self._send(Happened(job.job_id, event))
                    self._let_pass()
                    if job.job_id in self._cancelled:
                        return "cancelled"
            return "done"
        except Exception as error:
            if _is_exhausted(error):
                self._send(Exhausted(job.job_id))
            failed = Failed(policy, _for_visitor(error, job.job_id), job.job_id)
            self._send(Happened(job.job_id, failed, traceback.format_exc()))
            return "failed"

    def _events(self, job: Start, policy: str | None) -> Generator[Event]:
        yield from self._obtain(job.request.policies if policy is None else (policy,))
        if policy is None:
            yield from self._kinds[job.kind](self._policies, job.request)
            return
        if policy not in self._policies:
            raise ValueError(f"no policy is called {policy!r}; loaded: {', '.join(self._policies)}")
        yield from self._infer(job, policy)

    def _obtain(self, names: Collection[str]) -> Generator[Event]:
        """Loads what a job needs, where not everything is held."""
        shelf = self._policies
        if not isinstance(shelf, Shelf):
            return
        held = tuple(shelf)
        yield from shelf.obtain(names)
        self._deadline_s = _JOB_DEADLINE_S
        if tuple(shelf) != held:
            self._send(Holding(tuple(shelf), shelf.load_s))

    def _infer(self, job: Start, policy: str) -> Generator[Event]:
        """A policy's run; where the device has no memory for all samples, that of the first."""
        request = job.request
        assert isinstance(request, Job)
        observation, options = request.observation, request.options
        infer = self._policies[policy].infer
        try:
            yield from infer(observation, options)
            return
        except Exception as error:
            if not (_is_exhausted(error) and options.num_samples > 1):
                raise
        # Outside of `except`: the error is gone, and with it what its frames held of the device.
        self._send(Exhausted(job.job_id))
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
        self._connection.sendall(codec.encode(Message(body, self._deadline_s)))

    def _listen(self) -> None:
        """Takes jobs and cancellations. A closed connection is the end of this process, whatever it
        is busy with: nobody waits for the result any more."""
        try:
            while True:
                message = codec.receive(self._connection)
                if isinstance(message, Cancel):
                    self._cancelled.add(message.job_id)
                else:
                    self._jobs.put(message)
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException:
            _logger.exception("the connection broke")
            os._exit(1)


def _named(name: str) -> Callable:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    return vars(importlib.import_module(module))[function]


def _for_visitor(error: Exception, job_id: str) -> str:
    """A ValueError was written to be read; of anything else the details stay in the log."""
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
    """Entry point of the process; its argument is the file descriptor of the connection."""
    if sys.platform == "linux":  # elsewhere the closed connection has to do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    # A supervisor or a terminal may signal every process of the group; the page's one decides.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)  # asked for before a hung process is killed
    logs.configure_process()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    Engine(connection).run()


if __name__ == "__main__":
    main()
