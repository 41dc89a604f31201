"""The worker: one queue of jobs, the engines behind it that own the devices, events back.

    worker = Worker("playground.checkpoints.load:load", {"policies": policies})
    with worker.infer(Job(("pi0_tabletop",), observation, options)) as events:
        for event in events:
            ...

This side never imports JAX. Handlers of any number of threads put tickets into the queue; each
replica (`playground.serving.replica`) takes them out again in a thread of its own and runs them in
an engine: a process of this machine, or an actor of a Ray cluster.

Needs a POSIX system (Linux, macOS).
"""

import dataclasses
import hashlib
import math
import socket
import time
from collections.abc import Callable

from playground.serving import queue
from playground.serving.events import Job, Request
from playground.serving.messages import Setup
from playground.serving.process import Link, Process
from playground.serving.queue import Queue, Slot, Stream, Ticket
from playground.serving.replica import SHUTTING_DOWN, Replica, Shared, State
from playground.trace import PolicyInfo

_CROWD = 2  # jobs waiting for each replica that make one more worth its start
_REPLACE_S = 60.0  # between two replacements of replicas that stay down


class Down(RuntimeError):
    """The worker takes no jobs: it is shutting down, or it has stopped and stays so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """state: that of the replica that is furthest. waiting: jobs in the queue, without running
    ones. crashes: of the replica with most, since its last completed job. exhausted: how often
    memory did not suffice for a job. loading: what is being done while none is up, say "compiling
    pi0", else "". replicas: how many are up."""

    state: State
    running: bool
    waiting: int
    crashes: int
    completed: int
    exhausted: int
    loading: str
    replicas: int


class Worker:
    """Owns the devices through its replicas. Safe to use from any thread.

    factory: "module:function", called in each engine with `arguments` (JSON values, by name); it
    returns the policies by name, each with `.info` (PolicyInfo) and `.infer(observation, options)`
    (a generator of events). It may be a generator itself that yields a Phase before each part of
    loading and returns the policies, or a `playground.serving.engine.Shelf` of more of them than
    are loaded. A ValueError from it is a refusal: no second try.
    kinds: further kinds of jobs, each "module:function", called with (policies, the job's request)
    and giving a generator of events.
    queue_size: jobs that may wait. load_deadline_s: until the factory's first Phase, or its return.
    start: makes an engine; a process of this machine by itself.
    replicas: (fewest, most); more than the fewest run while many wait, and go when they had no job
    for `idle_s`.
    """

    def __init__(
        self,
        factory: str,
        arguments: dict,
        *,
        kinds: dict[str, str] | None = None,
        queue_size: int = queue.SIZE,
        load_deadline_s: float = 600.0,
        start: Callable[[socket.socket], Link] = Process,
        replicas: tuple[int, int] = (1, 1),
        idle_s: float = 600.0,
    ):
        setup = Setup(factory, arguments, kinds or {}, load_deadline_s)
        self._shared = Shared(setup, start, Queue(queue_size))
        self._shared.may_retire = self._may_retire
        self._queue, self._lock = self._shared.queue, self._shared.lock
        (self._fewest, self._most), self._idle_s = replicas, idle_s
        self._added = 0
        self._last_added = time.monotonic()
        self._replicas: tuple[Replica, ...] = ()  # replaced as a whole, under the lock
        with self._lock:
            for _ in range(self._fewest):
                self._add()

    def infer(self, job: Job, *, urgent: bool = False, owner: str = "") -> Stream:
        """The events of one or more policies on one observation; raises as `call` does. urgent: for
        a robot, which waits for no visitor: it goes first, at a running job's next event. owner:
        the visitor who asks, of whom not too much may wait; "" for nobody's."""
        if not job.policies:
            raise ValueError("the job names no policy; name at least one")
        known = self._shared.metadata
        if known is not None and (unknown := set(job.policies) - set(known)):
            names = ", ".join(known)
            raise ValueError(f"no policy is called {', '.join(sorted(unknown))}; loaded: {names}")
        return self.call("infer", job, urgent=urgent, owner=owner)

    def call(self, kind: str, request: Request, *, urgent: bool = False, owner: str = "") -> Stream:
        """Queues a job and gives its events. Raises Busy, Down, ValueError for an unknown kind, and
        TypeError for what `playground.codec` cannot pack."""
        if kind != "infer" and kind not in self._shared.setup.kinds:
            raise ValueError(f"no kind of job is called {kind!r}")
        digest = _digest(request) if self._most > 1 else b""
        ticket = Ticket(self._lock, kind, request, urgent=urgent, owner=owner, digest=digest)
        with self._lock:
            if self._state() in ("down", "closed") or self._shared.closing_at < math.inf:
                raise Down(self._reason())
            left = self._queue.join(ticket)
            self._grow()
        for last in left:
            self._shared.ended({"job": last.id, "outcome": "gave way"})
        self._wake()
        return Stream(ticket, self._wake)

    def check(self, owner: str) -> None:
        """Raises Busy where a job of this visitor's would be turned away for how many of theirs
        wait: to be asked before pictures are read for one."""
        with self._lock:
            self._queue.check(owner)

    def cancel(self, job_id: str) -> None:
        """Ends a job, waiting or running; its replica is free at the job's next event."""
        with self._lock:
            for ticket in self._queue.tickets():
                if ticket.id == job_id:
                    ticket.closed = True
        self._wake()

    def metadata(self, timeout_s: float | None = None) -> dict[str, PolicyInfo]:
        """What can be run, by name; waits for the first loading to end. Raises Down if it failed,
        TimeoutError if it takes longer than `timeout_s`."""
        shared = self._shared
        with shared.changed:
            shared.changed.wait_for(
                lambda: shared.metadata or self._state() != "loading", timeout_s
            )
            if shared.metadata is not None:
                return dict(shared.metadata)
            if self._state() == "loading":
                raise TimeoutError(f"the policies were not loaded within {timeout_s} s")
            raise Down(self._reason())

    def live(self) -> bool:
        """False once the worker has stopped for good."""
        return any(replica.alive() for replica in self._replicas)

    def ready(self) -> bool:
        """True while jobs are taken, the policies are loaded and an engine that runs them spoke
        within the time that it last announced."""
        return self._shared.closing_at == math.inf and any(r.ready() for r in self._replicas)

    def status(self) -> Status:
        with self._lock:
            state, replicas = self._state(), self._replicas
            loading = next((r.loading for r in replicas if r.loading), "")
            return Status(
                state=state,
                running=bool(self._queue.active()),
                waiting=self._queue.count(),
                crashes=max(replica.crashes for replica in replicas),
                completed=self._shared.completed,
                exhausted=self._shared.exhausted,
                loading=loading if state == "loading" else "",
                replicas=sum(replica.state == "up" for replica in replicas),
            )

    def observe(self, observer: Callable[[dict], None]) -> None:
        """Has it called with what the log says of each job that ended: job, outcome, and of one
        that ran kind, waited_s, ran_s and policies. It must neither wait nor raise."""
        self._shared.observers.append(observer)

    def process(self) -> int | None:
        """The number of the newest process of this machine that owns a device; None before the
        first, and where engines run elsewhere."""
        return self._replicas[-1].pid

    def close(self, drain_s: float = 30.0) -> None:
        """Takes no more jobs, lets those queued finish for up to `drain_s`, ends the engines."""
        with self._lock:
            closing_at = time.monotonic() + drain_s
            self._shared.closing_at = min(self._shared.closing_at, closing_at)
        self._wake()
        for replica in self._replicas:
            replica.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close(drain_s=0.0)

    def _wake(self) -> None:
        """Takes no lock, see `playground.serving.queue.Stream`."""
        for replica in self._replicas:
            replica.wake()

    # --- the replicas, with the lock held -------------------------------------------------------

    def _state(self) -> State:
        states = {replica.state for replica in self._replicas}
        return next(s for s in ("up", "loading", "down", "closed") if s in states)

    def _reason(self) -> str:
        """Why no jobs are taken."""
        if self._shared.closing_at < math.inf:
            return SHUTTING_DOWN
        return self._replicas[-1].reason

    def _add(self) -> None:
        replica = Replica(self._shared, self._added)
        self._added += 1
        self._last_added = time.monotonic()
        self._queue.slots.append(replica.slot)
        gone = ("down", "closed")
        self._replicas = (*(r for r in self._replicas if r.state not in gone), replica)
        replica.start()

    def _grow(self) -> None:
        """One more replica where many wait, one at a time; and one for another that stays down, as
        long as some are up."""
        states = [r.state for r in self._replicas if r.state in ("loading", "up")]
        if "up" not in states:
            return
        crowded = len(states) < self._most and self._queue.count() > _CROWD * len(states)
        missing = time.monotonic() - self._last_added > _REPLACE_S and len(states) < self._fewest
        if missing or (crowded and "loading" not in states):
            self._add()

    def _may_retire(self, slot: Slot, idle_s: float) -> bool:
        """Asked by a replica of itself. Takes the lock, and the slot out of use."""
        if self._most == self._fewest or idle_s < self._idle_s:
            return False
        with self._lock:
            slot.up = sum(s.up for s in self._queue.slots) <= self._fewest
            return not slot.up


def _digest(request: Request) -> bytes:
    """Of the pictures that a job brings, which the costliest caches are of; b"" without any."""
    observation = getattr(request, "observation", None)
    observations = getattr(request, "observations", None) or {}
    found = hashlib.blake2b(digest_size=16)
    one = observation or next(iter(observations.values()), None)
    if one is None or not one.images:
        return b""
    for slot, image in one.images.items():
        found.update(slot.encode())
        found.update(image.tobytes())
    return found.digest()
