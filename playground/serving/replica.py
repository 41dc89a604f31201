"""One replica: an engine somewhere, and the thread that hands it jobs and passes its events on.

The thread starts the engine, gives it one job at a time, and replaces it when it exits or stays
silent for longer than it announced. A job that its engine dies under fails; the jobs that wait keep
their places.

        loading --ready--> up --exit, hang--> loading      (third time with no job done between,
           |                |                   |           or a factory that refuses: down)
           +----------------+---close()---------+--> closed
"""

import contextlib
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Literal

from playground import codec
from playground.serving.events import Done, Event, Failed
from playground.serving.messages import (
    Cancel,
    Ended,
    Exhausted,
    Happened,
    Holding,
    Loading,
    Message,
    Ready,
    Refused,
    Setup,
)
from playground.serving.process import Link, Lost
from playground.serving.queue import Queue, Slot, Ticket
from playground.trace import PolicyInfo

SHUTTING_DOWN = "The playground is shutting down. Please try again in a minute."
_MAX_CRASHES = 3  # without a completed job between

State = Literal["loading", "up", "down", "closed"]

_logger = logging.getLogger("playground.serving.worker")  # one name for all that happens to jobs


class Shared:
    """What all replicas of a worker, and its callers, share. All but `setup`, `start` and `lock` is
    guarded by the lock.

    start: makes an engine, given the socket that ends its waits. changed: notified with every state
    of a replica. closing_at: when to give up what still runs. may_retire: whether a replica with
    nothing to do, for so many seconds, is one too many.
    """

    def __init__(self, setup: Setup, start: Callable[[socket.socket], Link], queue: Queue):
        self.setup, self.start, self.queue = setup, start, queue
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.closing_at = math.inf
        self.metadata: dict[str, PolicyInfo] | None = None
        self.completed = 0
        self.exhausted = 0
        self.observers: list[Callable[[dict], None]] = []
        self.may_retire: Callable[[Slot, float], bool] = lambda slot, idle_s: False

    def ended(self, fields: dict, level: int = logging.INFO) -> None:
        """A job has ended: into the log, and to whoever observes."""
        log(level, "ended", fields)
        for observer in self.observers:
            observer(fields)


class Replica:
    """See above. state, reason (of a state that takes no jobs), crashes (since its last completed
    job) and loading (what is being done, say "compiling pi0") are read by any thread."""

    def __init__(self, shared: Shared, number: int):
        self._shared = shared
        self._queue, self._lock = shared.queue, shared.lock
        self._number = number
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.slot = Slot()
        self.state: State = "loading"
        self.reason = SHUTTING_DOWN
        self.crashes = 0
        self.loading = ""
        self.pid: int | None = None
        self._due = time.monotonic() + shared.setup.deadline_s
        self._idle_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"replica {number}", daemon=True)

    def start(self) -> None:
        """With its slot in the queue."""
        self._thread.start()

    def wake(self) -> None:
        """Takes no lock, see `playground.serving.queue.Stream`."""
        with contextlib.suppress(OSError):  # full: it will wake; closed: nobody is left to wake
            self._wake_out.send(b"!")

    def join(self) -> None:
        self._thread.join()

    def alive(self) -> bool:
        """Whether it takes jobs, or will."""
        return self._thread.is_alive() and self.state in ("loading", "up")

    def ready(self) -> bool:
        """Whether its engine is loaded and spoke within the time that it last announced."""
        return self.alive() and self.state == "up" and time.monotonic() <= self._due

    # --- its own thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self.state == "loading":
                self._with_engine()
        except Exception:
            _logger.exception("the thread of a replica broke")
            self._become("down", "The worker has stopped after a fault of its own.")
        finally:
            self._leave()
            self._wake_in.close()
            self._wake_out.close()

    def _with_engine(self) -> None:
        """The life of one engine, from start to whatever ends it."""
        link = None
        try:
            self._due = time.monotonic() + self._shared.setup.deadline_s
            link = self._shared.start(self._wake_in)
            self.pid = link.pid
            log(logging.INFO, "started", {"replica": self._number, "process": link.pid})
            link.send(codec.encode(self._shared.setup))
            self._serve(link)
            self._become("closed")
        except _Refused as refusal:
            # For the person who asked; it may have several lines.
            _logger.error("cannot open what was asked for: %s", refusal)
            self._become("down", str(refusal))
        except (Lost, OSError) as lost:
            self._after_loss(lost)
        finally:
            if link is not None:
                link.end()

    def _serve(self, link: Link) -> None:
        """Returns when closing; raises Lost when the engine is gone or hangs."""
        shared = self._shared
        while True:
            if not link.begun:  # a cluster may have no place for it yet
                self._due = time.monotonic() + shared.setup.deadline_s
            message = link.receive(min(self._due, shared.closing_at))
            if message is not None:
                self._due = time.monotonic() + message.deadline_s
                self._take(message)
            elif time.monotonic() > self._due:
                link.show_stacks()
                raise Lost("it hung: it did not speak within the time it had announced")
            if time.monotonic() >= shared.closing_at:
                return
            self._drop_cancelled(link)
            if self.state == "up":
                self._hand_out(link)
                if self._is_one_too_many():
                    return
            if shared.closing_at < math.inf and not self._has_work():
                return

    def _has_work(self) -> bool:
        with self._lock:
            return bool(self.slot.active() or self._queue.waiting)

    def _hand_out(self, link: Link) -> None:
        with self._lock:
            ticket = self._queue.next(self.slot)
        if ticket is not None:
            link.send(ticket.payload.take())

    def _is_one_too_many(self) -> bool:
        if self.slot.active():
            self._idle_since = time.monotonic()
            return False
        return self._shared.may_retire(self.slot, time.monotonic() - self._idle_since)

    def _drop_cancelled(self, link: Link) -> None:
        with self._lock:
            fresh = self._queue.drop_closed(self.slot)
        for ticket in fresh:
            if ticket in self.slot.active():
                link.send(codec.encode(Cancel(ticket.id)))  # free at this job's next event
            else:
                self._shared.ended({"job": ticket.id, "outcome": "cancelled in queue"})

    def _take(self, message: Message) -> None:
        match message.body:
            case Loading(phase):
                with self._lock:
                    self.loading = f"{phase.phase} {phase.policy}"
                    if not any(slot.up for slot in self._queue.slots):
                        for ticket in self._queue.waiting:  # who waits may know what for
                            ticket.put(phase)
            case Ready(metadata, process):
                with self._lock:
                    self._shared.metadata = metadata
                self.loading = ""
                self._become("up")
                fields = {"replica": self._number, "process": process, "policies": list(metadata)}
                log(logging.INFO, "ready", fields)
            case Holding(policies, load_s):
                with self._lock:
                    self.slot.held = frozenset(policies)
                    self._queue.load_s.update(load_s)
            case Refused(text, traceback):
                _logger.debug(traceback)
                raise _Refused(text)
            case Happened(job_id, event, traceback):
                self._pass_on(self._running_as(job_id), event, traceback)
            case Exhausted(job_id):
                with self._lock:
                    self._shared.exhausted += 1
                log(logging.WARNING, "exhausted", {"job": job_id})
            case Ended(job_id, outcome):
                self._end(self._running_as(job_id), outcome)

    def _running_as(self, job_id: str) -> Ticket:
        return next(ticket for ticket in self.slot.active() if ticket.id == job_id)

    def _pass_on(self, ticket: Ticket, event: Event, traceback: str) -> None:
        match event:
            case Failed(policy=policy):
                fields = {"job": ticket.id, "policy": policy, "traceback": traceback}
                log(logging.ERROR, "failed", fields)
            case Done(policy=policy, trace=trace):
                stages = {stage: round(ms, 2) for stage, ms in trace.timings_ms.items()}
                ticket.done[policy] = {"timings_ms": stages, "reused": list(trace.reused)}
        with self._lock:
            self._queue.spoke(self.slot, ticket)
            ticket.put(event)

    def _end(self, ticket: Ticket, outcome: str) -> None:
        """A running job's stream ends, and its duration counts for those who wait."""
        with self._lock:
            ran_s = self._queue.end(self.slot, ticket, done=outcome == "done")
            if outcome == "done":
                self._shared.completed += 1
                self.crashes = 0
        fields = {"job": ticket.id, "kind": ticket.kind, "outcome": outcome}
        times = {"waited_s": round(ticket.started - ticket.queued, 3), "ran_s": round(ran_s, 3)}
        self._shared.ended(fields | times | {"policies": ticket.done})

    def _after_loss(self, lost: Exception) -> None:
        """The engine died, and so did the jobs it ran; the rest waits."""
        self.crashes += 1
        running = self.slot.active()
        jobs = [ticket.id for ticket in running]
        fields = {"replica": self._number, "reason": str(lost), "jobs": jobs}
        log(logging.ERROR, "lost", fields | {"crashes": self.crashes})
        with self._lock:  # before the next ticket: nothing is there any more
            self.slot.up = False
            self.slot.held = None if self.slot.held is None else frozenset()
            self.slot.recent.clear()
        for ticket in running:
            message = (
                "The worker stopped in the middle of this job and is being restarted. Please try "
                f"again; if it happens again, report it and quote job {ticket.id}."
            )
            with self._lock:
                ticket.put(Failed(None, message, ticket.id))
            self._end(ticket, "lost")
        if self.crashes < _MAX_CRASHES:
            self._become("loading")
        else:
            reason = f"The worker has stopped: it crashed {_MAX_CRASHES} times without a job done."
            self._become("down", reason)

    def _leave(self) -> None:
        """At the very end: whoever can no longer be served hears why."""
        with self._lock:
            tickets = self._queue.leave(self.slot, self.reason)
        for ticket in tickets:
            self._shared.ended({"job": ticket.id, "outcome": "given up"}, logging.WARNING)

    def _become(self, state: State, reason: str = SHUTTING_DOWN) -> None:
        with self._shared.changed:
            self.state = state
            self.reason = reason
            self.slot.up = state == "up"
            self._idle_since = time.monotonic()
            self._shared.changed.notify_all()


class _Refused(Exception):
    """The factory raised a ValueError: trying again would not help."""


def log(level: int, what: str, fields: dict) -> None:
    """One JSON line. Prompts and images are private and never part of it."""
    _logger.log(level, "%s", json.dumps({"event": what, **fields}))
