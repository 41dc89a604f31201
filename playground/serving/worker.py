"""The worker: one process that owns the device, one queue of jobs before it, events back.

    worker = Worker("playground.checkpoints.load:load", {"policies": policies})
    with worker.infer(Job(("pi0_tabletop",), observation, options)) as events:
        for event in events:
            ...

This side never imports JAX. Handlers of any number of threads put tickets into the queue; one
dispatcher thread owns everything else: it starts the process (`playground.serving.process`), hands
it one job at a time, passes its events on, and replaces it when it exits or stays silent for longer
than it announced. A job that its process dies under fails; the jobs behind it keep their places.

        loading --ready--> up --exit, hang--> loading      (third time with no job done between,
           |                |                   |           or a factory that refuses: down)
           +----------------+---close()---------+--> closed

Needs a POSIX system (Linux, macOS).
"""

import contextlib
import dataclasses
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Literal

from playground import codec
from playground.serving import queue
from playground.serving.events import Done, Event, Failed, Job, Request
from playground.serving.messages import (
    Cancel,
    Ended,
    Exhausted,
    Happened,
    Loading,
    Message,
    Ready,
    Refused,
    Setup,
)
from playground.serving.process import Lost, Process
from playground.serving.queue import Queue, Stream, Ticket
from playground.trace import PolicyInfo

_MAX_CRASHES = 3  # without a completed job between
_SHUTTING_DOWN = "The playground is shutting down. Please try again in a minute."

State = Literal["loading", "up", "down", "closed"]

_logger = logging.getLogger(__name__)


class Down(RuntimeError):
    """The worker takes no jobs: it is shutting down, or it has stopped and stays so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """waiting: jobs in the queue, without the running one. crashes: since the last completed job.
    exhausted: how often memory did not suffice for a job. loading: what is being done in that
    state, say "compiling pi0", else ""."""

    state: State
    running: bool
    waiting: int
    crashes: int
    completed: int
    exhausted: int
    loading: str


class Worker:
    """Owns the device through a process of its own. Safe to use from any thread.

    factory: "module:function", called in that process with `arguments` (JSON values, by name); it
    returns the policies by name, each with `.info` (PolicyInfo) and `.infer(observation, options)`
    (a generator of events). It may be a generator itself that yields a Phase before each part of
    loading and returns the policies. A ValueError from it is a refusal: no second try.
    kinds: further kinds of jobs, each "module:function", called with (policies, the job's request)
    and giving a generator of events.
    queue_size: jobs that may wait while one runs. load_deadline_s: until the factory's first
    Phase, or its return.
    """

    def __init__(
        self,
        factory: str,
        arguments: dict,
        *,
        kinds: dict[str, str] | None = None,
        queue_size: int = queue.SIZE,
        load_deadline_s: float = 600.0,
    ):
        self._setup = Setup(factory, arguments, kinds or {}, load_deadline_s)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # of the state
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # Guarded by the lock; but for joining the queue, only the dispatcher writes.
        self._queue = Queue(queue_size)
        self._state: State = "loading"
        self._reason = _SHUTTING_DOWN
        self._closing_at = math.inf
        self._due = time.monotonic() + load_deadline_s
        self._metadata: dict[str, PolicyInfo] | None = None
        self._crashes = 0
        self._completed = 0
        self._exhausted = 0
        self._loading = ""
        self._process: int | None = None
        self._observers: list[Callable[[dict], None]] = []
        self._thread = threading.Thread(target=self._dispatch, name="worker", daemon=True)
        self._thread.start()

    # --- for the page's threads -----------------------------------------------------------------

    def infer(self, job: Job, *, urgent: bool = False, owner: str = "") -> Stream:
        """The events of one or more policies on one observation; raises as `call` does. urgent: for
        a robot, which waits for no visitor: it goes first, at the running job's next event. owner:
        the visitor who asks, of whom not too much may wait; "" for nobody's."""
        if not job.policies:
            raise ValueError("the job names no policy; name at least one")
        if self._metadata is not None and (unknown := set(job.policies) - set(self._metadata)):
            known = ", ".join(self._metadata)
            raise ValueError(f"no policy is called {', '.join(sorted(unknown))}; loaded: {known}")
        return self.call("infer", job, urgent=urgent, owner=owner)

    def call(self, kind: str, request: Request, *, urgent: bool = False, owner: str = "") -> Stream:
        """Queues a job and gives its events. Raises Busy, Down, ValueError for an unknown kind, and
        TypeError for what `playground.codec` cannot pack."""
        if kind != "infer" and kind not in self._setup.kinds:
            raise ValueError(f"no kind of job is called {kind!r}")
        ticket = Ticket(self._lock, kind, request, urgent=urgent, owner=owner)
        with self._lock:
            if self._state in ("down", "closed") or self._closing_at < math.inf:
                raise Down(self._reason)
            left = self._queue.join(ticket)
        for last in left:
            self._ended({"job": last.id, "outcome": "gave way"})
        self._wake()
        return Stream(ticket, self._wake)

    def cancel(self, job_id: str) -> None:
        """Ends a job, waiting or running; the worker is free at the job's next event."""
        with self._lock:
            for ticket in self._queue.tickets():
                if ticket.id == job_id:
                    ticket.closed = True
        self._wake()

    def metadata(self, timeout_s: float | None = None) -> dict[str, PolicyInfo]:
        """What was loaded, by name; waits for the first loading to end. Raises Down if it failed,
        TimeoutError if it takes longer than `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._metadata or self._state != "loading", timeout_s)
            if self._metadata is not None:
                return dict(self._metadata)
            if self._state == "loading":
                raise TimeoutError(f"the policies were not loaded within {timeout_s} s")
            raise Down(self._reason)

    def live(self) -> bool:
        """False once the worker has stopped for good."""
        return self._thread.is_alive() and self._state in ("loading", "up")

    def ready(self) -> bool:
        """True while jobs are taken, the policies are loaded and the process that runs them spoke
        within the time that it last announced."""
        return (
            self._thread.is_alive()
            and self._state == "up"
            and self._closing_at == math.inf
            and time.monotonic() <= self._due
        )

    def status(self) -> Status:
        with self._lock:
            running, waiting = bool(self._queue.active()), self._queue.count()
            loading = self._loading if self._state == "loading" else ""
            counts = (self._crashes, self._completed, self._exhausted)
            return Status(self._state, running, waiting, *counts, loading)

    def observe(self, observer: Callable[[dict], None]) -> None:
        """Has it called with what the log says of each job that ended: job, outcome, and of one
        that ran kind, waited_s, ran_s and policies. It must neither wait nor raise."""
        self._observers.append(observer)

    def process(self) -> int | None:
        """The number of the newest process that owns the device; None before the first."""
        return self._process

    def close(self, drain_s: float = 30.0) -> None:
        """Takes no more jobs, lets those queued finish for up to `drain_s`, ends the process."""
        with self._lock:
            self._closing_at = min(self._closing_at, time.monotonic() + drain_s)
        self._wake()
        self._thread.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close(drain_s=0.0)

    def _wake(self) -> None:
        """Takes no lock, see `playground.serving.queue.Stream`."""
        with contextlib.suppress(OSError):  # full: it will wake; closed: nobody is left to wake
            self._wake_out.send(b"!")

    # --- the dispatcher's thread ----------------------------------------------------------------

    def _dispatch(self) -> None:
        try:
            while self._state == "loading":
                self._with_process()
        except Exception:
            _logger.exception("the dispatcher broke")
            self._become("down", "The worker has stopped after a fault of its own.")
        finally:
            self._give_up_jobs()
            self._wake_in.close()
            self._wake_out.close()

    def _with_process(self) -> None:
        """The life of one process, from start to whatever ends it."""
        process = None
        try:
            self._due = time.monotonic() + self._setup.deadline_s
            process = Process(self._wake_in)
            self._process = process.pid
            _log(logging.INFO, "started", {"process": process.pid})
            process.send(codec.encode(self._setup))
            self._serve(process)
            self._become("closed")
        except _Refused as refusal:
            # For the person who asked; it may have several lines.
            _logger.error("cannot open what was asked for: %s", refusal)
            self._become("down", str(refusal))
        except (Lost, OSError) as lost:
            self._after_loss(lost)
        finally:
            if process is not None:
                process.end()

    def _serve(self, process: Process) -> None:
        """Returns when closing; raises Lost when the process is gone or hangs."""
        while True:
            message = process.receive(min(self._due, self._closing_at))
            if message is not None:
                self._due = time.monotonic() + message.deadline_s
                self._take(message)
            elif time.monotonic() > self._due:
                process.show_stacks()
                raise Lost("it hung: it did not speak within the time it had announced")
            if time.monotonic() >= self._closing_at:
                return
            self._drop_cancelled(process)
            if self._state == "up":
                with self._lock:
                    ticket = self._queue.next()
                if ticket is not None:
                    process.send(ticket.payload.take())
            if self._closing_at < math.inf and not self._queue.tickets():
                return

    def _drop_cancelled(self, process: Process) -> None:
        with self._lock:
            fresh = self._queue.drop_closed()
        for ticket in fresh:
            if ticket in self._queue.active():
                process.send(codec.encode(Cancel(ticket.id)))  # free at this job's next event
            else:
                self._ended({"job": ticket.id, "outcome": "cancelled in queue"})

    def _take(self, message: Message) -> None:
        match message.body:
            case Loading(phase):
                with self._lock:
                    self._loading = f"{phase.phase} {phase.policy}"
                    for ticket in self._queue.waiting:  # who waits may know what for
                        ticket.put(phase)
            case Ready(metadata):
                self._metadata = metadata
                self._loading = ""
                self._become("up")
                _log(logging.INFO, "ready", {"policies": list(self._metadata)})
            case Refused(text, traceback):
                _logger.debug(traceback)
                raise _Refused(text)
            case Happened(job_id, event, traceback):
                self._pass_on(self._queue.running_as(job_id), event, traceback)
            case Exhausted(job_id):
                self._exhausted += 1
                _log(logging.WARNING, "exhausted", {"job": job_id})
            case Ended(job_id, outcome):
                self._end(self._queue.running_as(job_id), outcome)

    def _pass_on(self, ticket: Ticket, event: Event, traceback: str) -> None:
        match event:
            case Failed(policy=policy):
                fields = {"job": ticket.id, "policy": policy, "traceback": traceback}
                _log(logging.ERROR, "failed", fields)
            case Done(policy=policy, trace=trace):
                stages = {stage: round(ms, 2) for stage, ms in trace.timings_ms.items()}
                ticket.done[policy] = {"timings_ms": stages, "reused": list(trace.reused)}
        with self._lock:
            ticket.put(event)

    def _end(self, ticket: Ticket, outcome: str) -> None:
        """A running job's stream ends, and its duration counts for those who wait."""
        with self._lock:
            ran_s = self._queue.end(ticket, done=outcome == "done")
            if outcome == "done":
                self._completed += 1
                self._crashes = 0
        fields = {"job": ticket.id, "kind": ticket.kind, "outcome": outcome}
        times = {"waited_s": round(ticket.started - ticket.queued, 3), "ran_s": round(ran_s, 3)}
        self._ended(fields | times | {"policies": ticket.done})

    def _ended(self, fields: dict, level: int = logging.INFO) -> None:
        _log(level, "ended", fields)
        for observer in self._observers:
            observer(fields)

    def _after_loss(self, lost: Exception) -> None:
        """The process died, and so did the jobs it ran; the rest waits for the next process."""
        self._crashes += 1
        running = self._queue.active()
        jobs = [ticket.id for ticket in running]
        _log(logging.ERROR, "lost", {"reason": str(lost), "jobs": jobs, "crashes": self._crashes})
        for ticket in running:
            message = (
                "The worker stopped in the middle of this job and is being restarted. Please try "
                f"again; if it happens again, report it and quote job {ticket.id}."
            )
            with self._lock:
                ticket.put(Failed(None, message, ticket.id))
            self._end(ticket, "lost")
        if self._crashes < _MAX_CRASHES:
            self._become("loading")
        else:
            reason = f"The worker has stopped: it crashed {_MAX_CRASHES} times without a job done."
            self._become("down", reason)

    def _give_up_jobs(self) -> None:
        """At the very end: whoever still waits hears why."""
        with self._lock:
            tickets = self._queue.give_up(self._reason)
        for ticket in tickets:
            self._ended({"job": ticket.id, "outcome": "given up"}, logging.WARNING)

    def _become(self, state: State, reason: str = _SHUTTING_DOWN) -> None:
        with self._changed:
            self._state = state
            self._reason = reason
            self._queue.moves = state == "up"
            self._changed.notify_all()


class _Refused(Exception):
    """The factory raised a ValueError: trying again would not help."""


def _log(level: int, what: str, fields: dict) -> None:
    """One JSON line. Prompts and images are private and never part of it."""
    _logger.log(level, "%s", json.dumps({"event": what, **fields}))
