"""The worker: one process that owns the device, one line of jobs before it, events back.

    worker = Worker("playground.policy:load", {"names": ["pi0", "pi0_fast"]})
    with worker.infer(Job(("pi0",), observation, options)) as events:
        for event in events:
            ...

This side never imports JAX. Handlers of any number of threads put tickets into the queue; one
dispatcher thread owns everything else: it starts the process (`playground.engine`), hands it one
job at a time, passes its events on, and replaces it when it exits or stays silent for longer than
it announced. A job that its process dies under fails; the jobs behind it keep their places.

        loading --ready--> up --exit, hang--> loading      (third time with no job done between,
           |                |                   |           or a factory that refuses: down)
           +----------------+---close()---------+--> closed

Needs a POSIX system (Linux, macOS).
"""

import collections
import contextlib
import dataclasses
import json
import logging
import math
import secrets
import socket
import threading
import time
from typing import Literal

from playground import wire
from playground.engine import Lost, Process
from playground.events import Done, Event, Failed, Job, Queued, from_plain
from playground.trace import PolicyInfo

QUEUE_SIZE = 64  # jobs that wait while one runs
_POSITION_EVERY_S = 2.0  # waiting clients hear this often, so that a closed page is noticed too
_MAX_CRASHES = 3  # without a completed job between
_MAX_UNREAD = 2000  # events; a client this far behind has stopped reading
_MAX_WAITING_BYTES = 1 << 30
_UNKNOWN_RETRY_S = 10
_SHUTTING_DOWN = "The playground is shutting down. Please try again in a minute."

State = Literal["loading", "up", "down", "closed"]

_logger = logging.getLogger(__name__)


class Busy(RuntimeError):
    """The queue is full; retry_s: seconds after which a place is likely to be free."""

    def __init__(self, retry_s: int):
        super().__init__(f"All places in the line are taken. Please try again in {retry_s} s.")
        self.retry_s = retry_s


class Down(RuntimeError):
    """The worker takes no jobs: it is shutting down, or it has stopped and stays so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """waiting: jobs in line, without the running one. crashes: since the last completed job.
    loading: what is being done in that state, say "compiling pi0", else ""."""

    state: State
    running: bool
    waiting: int
    crashes: int
    completed: int
    loading: str


class Worker:
    """Owns the device through a process of its own. Safe to use from any thread.

    factory: "module:function", called in that process with `arguments` (JSON values, by name); it
    returns the policies by name, each with `.info` (PolicyInfo) and `.infer(observation, options)`
    (a generator of events). It may be a generator itself that yields a Phase before each part of
    loading and returns the policies. A ValueError from it is a refusal: no second try.
    kinds: further kinds of jobs, each "module:function", called with (policies, arguments of the
    job) and giving a generator of events.
    queue_size: jobs that may wait while one runs. load_deadline_s: until the factory's first
    Phase, or its return.
    """

    def __init__(
        self,
        factory: str,
        arguments: dict,
        *,
        kinds: dict[str, str] | None = None,
        queue_size: int = QUEUE_SIZE,
        load_deadline_s: float = 600.0,
    ):
        self._setup = {
            "factory": factory,
            "arguments": arguments,
            "kinds": kinds or {},
            "deadline_s": load_deadline_s,
        }
        self._queue_size = queue_size
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # of the state
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # Guarded by the lock; but for the queue, only the dispatcher writes.
        self._state: State = "loading"
        self._reason = _SHUTTING_DOWN
        self._closing_at = math.inf
        self._due = time.monotonic() + load_deadline_s
        self._queue: collections.deque[_Ticket] = collections.deque()
        self._running: _Ticket | None = None
        self._metadata: dict[str, PolicyInfo] | None = None
        self._typical_s: dict[str, float] = {}
        self._crashes = 0
        self._completed = 0
        self._loading = ""
        self._thread = threading.Thread(target=self._dispatch, name="worker", daemon=True)
        self._thread.start()

    # --- for the page's threads -----------------------------------------------------------------

    def infer(self, job: Job) -> "Stream":
        """The events of one or more policies on one observation; raises as `call` does."""
        if not job.policies:
            raise ValueError("the job names no policy; name at least one")
        if self._metadata is not None and (unknown := set(job.policies) - set(self._metadata)):
            known = ", ".join(self._metadata)
            raise ValueError(f"no policy is called {', '.join(sorted(unknown))}; loaded: {known}")
        arguments = {
            "policies": job.policies,
            "observation": job.observation,
            "options": job.options,
        }
        return self.call("infer", arguments)

    def call(self, kind: str, arguments: dict) -> "Stream":
        """Puts a job in line and gives its events. `arguments`: by name, whatever
        `playground.trace.pack` takes. Raises Busy, Down, and ValueError for an unknown kind."""
        if kind != "infer" and kind not in self._setup["kinds"]:
            raise ValueError(f"no kind of job is called {kind!r}")
        ticket = _Ticket(self._lock, kind, arguments)
        with self._lock:
            if self._state in ("down", "closed") or self._closing_at < math.inf:
                raise Down(self._reason)
            waiting = [t for t in self._queue if not t.closed]
            size = sum(len(t.payload) for t in waiting)
            if len(waiting) + (self._running is not None) > self._queue_size or (
                waiting and size + len(ticket.payload) > _MAX_WAITING_BYTES
            ):
                raise Busy(self._retry_s())
            self._queue.append(ticket)
            self._tell_positions()
        self._wake()
        return Stream(self, ticket)

    def cancel(self, job_id: str) -> None:
        """Ends a job, waiting or running; the worker is free at the job's next event."""
        with self._lock:
            for ticket in (*self._queue, self._running):
                if ticket is not None and ticket.id == job_id:
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
            waiting = sum(not ticket.closed for ticket in self._queue)
            busy = self._running is not None
            loading = self._loading if self._state == "loading" else ""
            return Status(self._state, busy, waiting, self._crashes, self._completed, loading)

    def close(self, drain_s: float = 30.0) -> None:
        """Takes no more jobs, lets those in line finish for up to `drain_s`, ends the process."""
        with self._lock:
            self._closing_at = min(self._closing_at, time.monotonic() + drain_s)
        self._wake()
        self._thread.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close(drain_s=0.0)

    def _wake(self) -> None:
        """Takes no lock: a garbage collection that drops a stream may come at any point."""
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
            self._due = time.monotonic() + self._setup["deadline_s"]
            process = Process(self._wake_in)
            _log(logging.INFO, "started", {"process": process.pid})
            process.send(wire.encode(self._setup))
            self._serve(process)
            self._become("closed")
        except _Refused as refusal:
            _log(logging.ERROR, "refused", {"reason": str(refusal)})
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
                self._due = time.monotonic() + message["deadline_s"]
                self._take(message)
            elif time.monotonic() > self._due:
                process.show_stacks()
                raise Lost("it hung: it did not speak within the time it had announced")
            if time.monotonic() >= self._closing_at:
                return
            self._drop_cancelled(process)
            if self._state == "up" and self._running is None and self._queue:
                process.send(self._start_next())
            if self._closing_at < math.inf and self._running is None and not self._queue:
                return

    def _drop_cancelled(self, process: Process) -> None:
        with self._lock:
            closed = [t for t in (*self._queue, self._running) if t is not None and t.closed]
            fresh = [ticket for ticket in closed if not ticket.ended]
            for ticket in fresh:
                ticket.end()
                if ticket is not self._running:
                    self._queue.remove(ticket)
            self._tell_positions()
        for ticket in fresh:
            if ticket is self._running:  # the process is free at this job's next event
                process.send(wire.encode({"do": "cancel", "id": ticket.id}))
            else:
                _log(logging.INFO, "ended", {"job": ticket.id, "outcome": "cancelled in line"})

    def _start_next(self) -> bytes:
        """Makes the next ticket in line the running one, and gives what to send."""
        with self._lock:
            self._running = ticket = self._queue.popleft()
            ticket.started = time.monotonic()
            payload, ticket.payload = ticket.payload, b""
            self._tell_positions()
        return payload

    def _take(self, message: dict) -> None:
        match message["say"]:
            case "loading":
                phase = from_plain(message["event"])
                with self._lock:
                    self._loading = f"{phase.phase} {phase.policy}"
                    for ticket in self._queue:  # who waits may know what for
                        ticket.put(phase)
            case "ready":
                self._metadata = message["metadata"]
                self._loading = ""
                self._become("up")
                _log(logging.INFO, "ready", {"policies": list(self._metadata)})
            case "refused":
                _logger.error(message["traceback"])
                raise _Refused(message["message"])
            case "event":
                self._pass_on(from_plain(message["event"]), message)
            case "ended":
                self._end_running(message["outcome"])

    def _pass_on(self, event: Event, message: dict) -> None:
        ticket = self._running
        match event:
            case Failed(policy=policy):
                fields = {"job": ticket.id, "policy": policy, "traceback": message["traceback"]}
                _log(logging.ERROR, "failed", fields)
            case Done(policy=policy, trace=trace):
                stages = {stage: round(ms, 2) for stage, ms in trace.timings_ms.items()}
                ticket.done[policy] = {"timings_ms": stages, "reused": list(trace.reused)}
        with self._lock:
            ticket.put(event)

    def _end_running(self, outcome: str) -> None:
        """The running job's stream ends, and its duration counts for those who wait."""
        ticket = self._running
        ran_s = time.monotonic() - ticket.started
        with self._lock:
            self._running = None
            ticket.end()
            if outcome == "done":
                self._completed += 1
                self._crashes = 0
                typical = self._typical_s.setdefault(ticket.label, ran_s)
                self._typical_s[ticket.label] = 0.7 * typical + 0.3 * ran_s
        fields = {"job": ticket.id, "kind": ticket.kind, "outcome": outcome}
        times = {"waited_s": round(ticket.started - ticket.queued, 3), "ran_s": round(ran_s, 3)}
        _log(logging.INFO, "ended", fields | times | {"policies": ticket.done})

    def _after_loss(self, lost: Exception) -> None:
        """The process died: so did the job it ran; the rest of the line waits for the next one."""
        self._crashes += 1
        job = None if self._running is None else self._running.id
        _log(logging.ERROR, "lost", {"reason": str(lost), "job": job, "crashes": self._crashes})
        if self._running is not None:
            message = (
                "The worker stopped in the middle of this job and is being restarted. Please try "
                f"again; if it happens again, report it and quote job {job}."
            )
            with self._lock:
                self._running.put(Failed(None, message, job))
            self._end_running("lost")
        if self._crashes < _MAX_CRASHES:
            self._become("loading")
        else:
            reason = f"The worker has stopped: it crashed {_MAX_CRASHES} times without a job done."
            self._become("down", reason)

    def _give_up_jobs(self) -> None:
        """At the very end: whoever still waits is told why."""
        with self._lock:
            tickets = [ticket for ticket in (self._running, *self._queue) if ticket is not None]
            for ticket in tickets:
                ticket.put(Failed(None, self._reason, ticket.id))
                ticket.end()
            self._running = None
            self._queue.clear()
        for ticket in tickets:
            _log(logging.WARNING, "ended", {"job": ticket.id, "outcome": "given up"})

    def _become(self, state: State, reason: str = _SHUTTING_DOWN) -> None:
        with self._changed:
            self._state = state
            self._reason = reason
            self._changed.notify_all()

    # --- the line; called with the lock held ----------------------------------------------------

    def _tell_positions(self) -> None:
        """Tells everyone in line their place: all whose place changed, or who heard nothing for a
        while."""
        now = time.monotonic()
        ahead = int(self._running is not None)
        wait_s = self._remaining_s(now)
        for ticket in self._queue:
            if ticket.closed:
                continue
            if ticket.position != ahead or now - ticket.told >= _POSITION_EVERY_S:
                ticket.position, ticket.told = ahead, now
                ticket.put(Queued(ahead, wait_s))
            typical = self._typical_s.get(ticket.label)
            wait_s = None if wait_s is None or typical is None else wait_s + typical
            ahead += 1

    def _remaining_s(self, now: float) -> float | None:
        """Seconds until the running job is likely to end; None if there is nothing to go by."""
        if self._state != "up":
            return None
        if self._running is None:
            return 0.0
        typical = self._typical_s.get(self._running.label)
        return None if typical is None else max(0.0, self._running.started + typical - now)

    def _retry_s(self) -> int:
        remaining = self._remaining_s(time.monotonic())
        return _UNKNOWN_RETRY_S if remaining is None else max(1, math.ceil(remaining))


class Stream:
    """The events of one job, in order. Iterate it in one thread; `close` it from any, or use it
    as a context manager: an abandoned job makes room for the next one."""

    def __init__(self, worker: Worker, ticket: "_Ticket"):
        self._worker = worker
        self._ticket = ticket
        self._open = True
        self.job_id = ticket.id

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Event:
        ticket = self._ticket
        with ticket.news:
            ticket.news.wait_for(lambda: ticket.events or ticket.ended or not self._open)
            if not (self._open and ticket.events):
                raise StopIteration
            return ticket.events.popleft()

    def close(self) -> None:
        """Cancels the job unless it has ended. Takes no lock, see `Worker._wake`."""
        self._open = False
        if not self._ticket.ended:
            self._ticket.closed = True
            self._worker._wake()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Refused(Exception):
    """The factory raised a ValueError: trying again would not help."""


class _Ticket:
    """A job's place in line and its mailbox. `closed`: nobody wants its events any more; `ended`:
    no more will come. All but `closed` is guarded by the worker's lock."""

    def __init__(self, lock: threading.Lock, kind: str, arguments: dict):
        self.id = secrets.token_hex(8)  # not to be guessed: it cancels
        self.kind = kind
        self.label = " ".join([kind, *arguments.get("policies", ())])
        self.payload = wire.encode(
            {"do": "job", "id": self.id, "kind": kind, "arguments": arguments}
        )
        self.news = threading.Condition(lock)
        self.events: collections.deque[Event] = collections.deque()
        self.done: dict[str, dict] = {}  # by policy, what the log tells of its run
        self.closed = False
        self.ended = False
        self.position = -1
        self.told = 0.0
        self.queued = self.started = time.monotonic()

    def put(self, event: Event) -> None:
        """Of several unread Queued in a row only the newest is kept. A client that does not read
        is cut off: the worker waits for nobody."""
        if self.closed or self.ended:
            return
        if isinstance(event, Queued) and self.events and isinstance(self.events[-1], Queued):
            self.events.pop()
        self.events.append(event)
        if len(self.events) > _MAX_UNREAD:
            self.events.clear()
            self.events.append(Failed(None, "Too many events lay unread.", self.id))
            self.closed = True
        self.news.notify_all()

    def end(self) -> None:
        self.ended = True
        self.news.notify_all()


def _log(level: int, what: str, fields: dict) -> None:
    """One JSON line. Prompts and images are private and never part of it."""
    _logger.log(level, "%s", json.dumps({"event": what, **fields}))
