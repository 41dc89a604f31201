"""The queue before the replicas: who waits, in which place, for how long, and each one's mailbox.

First come, first served, but for whoever has several jobs waiting: from the third on, each counts
as if it had come a turn later than the one before. So a visitor who sends many at once holds others
up by two, and nobody waits for ever. One visitor holds at most a quarter of the places; and where
none is left, the last job of whoever has most of them gives way to one of who has fewer.

Jobs differ in length by more than a hundred times, so turns alone are not fair. Who took much more
of the replicas' time than the others who wait now counts as if they had come later, by up to two
minutes. And a job that has run for long lets short ones of others pass, each at its next event; it
keeps a quarter of the time, so that it takes at most four times as long as it would alone.
"""

import collections
import dataclasses
import heapq
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from playground import spilled
from playground.serving.events import Event, Failed, Queued, Request
from playground.serving.messages import Start

SIZE = 64  # jobs that wait while one runs
URGENT_SIZE = 16  # the same of urgent ones
_POSITION_EVERY_S = 2.0  # waiting clients hear this often, so that a closed page is noticed too
_MAX_UNREAD = 2000  # events; a client this far behind has stopped reading
MAX_WAITING_BYTES = 1 << 30  # on disk, but for small ones, see `playground.spilled`
_SHARE = 4  # a visitor's part of the places and bytes is one in so many
_AT_ONCE = 2  # jobs that one request may make
_TURN_S = 20.0
LATEST_S = 120.0  # how much later whoever took much time counts as come
_FREE_S = 4.0  # of a replica's time, which everybody may take
HALF_LIFE_S = 60.0  # of the time that somebody took
_MAX_OWNERS = 1000  # of whom that is known
_LONG_S = 1.0  # a job that ran for so long lets others pass, if it ran for
_TIMES = 4  # so many times as long as they take
PASSING = 3  # seconds of others for each of its own
_MAX_LABELS = 1000  # kinds of jobs of which it is known how long they take
_UNKNOWN_RETRY_S = 10
_RECENT = 8  # observations; a policy keeps caches of about as many


class Busy(RuntimeError):
    """The queue is full, or one visitor's part of it; retry_s: seconds after which a place is
    likely to be free."""

    def __init__(self, retry_s: int, what: str = "All places in the queue are taken."):
        super().__init__(f"{what} Please try again in {retry_s} s.")
        self.retry_s = retry_s


class Ticket:
    """A job's place in the queue and its mailbox. `payload`: what starts it. `urgent`: goes before
    all that are not. `owner`: the visitor whose job it is, "" for nobody's. `digest`: of its
    observation, b"" where it does not matter. `due`: when it counts as come. `turns_s`: by how
    much that is late for the others of its owner. `passed_s`: how long others ran within it.
    `closed`: nobody wants its events any more; `ended`: no more will come. All but `closed` is
    guarded by the worker's lock."""

    def __init__(
        self,
        lock: threading.Lock,
        kind: str,
        request: Request,
        *,
        urgent: bool = False,
        owner: str = "",
        digest: bytes = b"",
    ):
        self.id = secrets.token_hex(8)  # not to be guessed: it cancels
        self.kind = kind
        self.urgent = urgent
        self.owner = owner
        self.digest = digest
        self.policies = request.policies
        self.payload = _payload(Start(self.id, kind, request), urgent)
        self.label = " ".join([kind, *request.policies, _size(request)])
        self.news = threading.Condition(lock)
        self.events: collections.deque[Event] = collections.deque()
        self.done: dict[str, dict] = {}  # by policy, what is logged of its run
        self.closed = False
        self.ended = False
        self.position = -1
        self.announced = 0.0  # when its place was last sent
        self.queued = self.started = self.due = time.monotonic()
        self.turns_s = self.passed_s = 0.0

    def ran_s(self, now: float) -> float:
        """How long it has run, without those that passed."""
        return now - self.started - self.passed_s

    def place(self) -> tuple[bool, float]:
        """What those who wait are ordered by."""
        return not self.urgent, self.due

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


class Stream:
    """The events of one job, in order. Iterate it in one thread; `close` it from any, or use it
    as a context manager: an abandoned job makes room for the next one. wake: tells the worker of
    it, and takes no lock: a garbage collection that drops a stream may come at any point."""

    def __init__(self, ticket: Ticket, wake: Callable[[], None]):
        self._ticket = ticket
        self._wake = wake
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
        """Cancels the job unless it has ended."""
        self._open = False
        if not self._ticket.ended:
            self._ticket.closed = True
            self._wake()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclasses.dataclass(eq=False, slots=True)
class Slot:
    """One replica as the queue sees it.

    running: the job that it is at, no longer waiting. within: a visitor's short job that is run at
    that one's next event, and that it then waits for. passing: an urgent job, which is run at the
    next event of either. up: whether it takes jobs. held: the policies whose weights it has; None
    for all. recent: digests of observations whose caches it may have.
    """

    running: Ticket | None = None
    within: Ticket | None = None
    passing: Ticket | None = None
    up: bool = False
    held: frozenset[str] | None = None
    recent: collections.deque[bytes] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=_RECENT)
    )

    def active(self) -> list[Ticket]:
        """Each runs within those behind it."""
        jobs = (self.passing, self.within, self.running)
        return [ticket for ticket in jobs if ticket is not None]

    def has(self, ticket: Ticket) -> bool:
        """Whether nothing has to be loaded for the job."""
        return self.held is None or self.held.issuperset(ticket.policies)

    def fitness(self, ticket: Ticket) -> tuple[bool, int, bool]:
        """The largest is the best place: with the weights, else with few that may have to go; then
        with the observation's caches."""
        held = 0 if self.held is None or self.has(ticket) else len(self.held)
        return self.has(ticket), -held, ticket.digest in self.recent


class Queue:
    """Fair, see above; urgent jobs before all others. All of it is used with the worker's lock
    held.

    A job goes to a free replica that has the weights, if there is one, and among those to one that
    saw the observation lately. While the weights are on a busy one only, it waits for that one as
    long as loading them elsewhere would take.
    """

    def __init__(self, size: int):
        self._size = size
        self.typical_s: dict[str, float] = {}  # by label, what such jobs took
        self.used: dict[str, tuple[float, float]] = {}  # by owner, see `_used_s`, and when it was
        self.load_s: dict[str, float] = {}  # by policy, what loading it took
        self.waiting: collections.deque[Ticket] = collections.deque()
        self.slots: list[Slot] = []

    def tickets(self) -> list[Ticket]:
        """Those that run come first."""
        return [*self.active(), *self.waiting]

    def active(self) -> list[Ticket]:
        """Those that run."""
        return [ticket for slot in self.slots for ticket in slot.active()]

    def count(self) -> int:
        """How many wait and still want to."""
        return sum(not ticket.closed for ticket in self.waiting)

    def check(self, owner: str) -> None:
        """Raises Busy where so many jobs of a visitor's wait that another would be turned away,
        before any work is done for it."""
        own = [t for t in self.waiting if t.owner == owner and not (t.urgent or t.closed)]
        if owner and len(own) >= max(_AT_ONCE, self._size // _SHARE):
            raise self._has_many(len(own))

    def _has_many(self, own: int) -> Busy:
        return Busy(self._retry_s(), f"{own} of your runs are waiting already.")

    def join(self, ticket: Ticket) -> list[Ticket]:
        """Gives the tickets that gave way to it. Raises Busy."""
        alike = [t for t in self.waiting if t.urgent == ticket.urgent and not t.closed]
        active = [t for t in self.active() if t.urgent == ticket.urgent]
        limit = URGENT_SIZE if ticket.urgent else self._size
        free = max(0, len(self.slots) - len(active))
        own = [t for t in alike if t.owner == ticket.owner] if ticket.owner else []
        most = max(_AT_ONCE, limit // _SHARE)
        if len(own) >= most or _too_large(own, ticket, MAX_WAITING_BYTES // _SHARE):
            raise self._has_many(len(own))
        left: list[Ticket] = []
        while len(alike) >= limit + free or _too_large(alike, ticket, MAX_WAITING_BYTES):
            last = _last_of_most(alike, len(own))
            if last is None:
                raise Busy(self._retry_s())
            alike.remove(last)
            left.append(last)
        for last in left:
            busy = Busy(self._retry_s(), "Others came who have fewer runs waiting.")
            last.put(Failed(None, str(busy), last.id))
            last.end()
            self.waiting.remove(last)
        ticket.turns_s = _TURN_S * max(0, len(own) + 1 - _AT_ONCE)
        self.waiting.append(ticket)
        self.order(ticket.owner)
        self.announce()
        return left

    def next(self, slot: Slot) -> Ticket | None:
        """The ticket that this replica can run now, if any, which then counts as running."""
        if slot.running is not None:
            if self._may_pass(slot):
                slot.passing = ticket = self.waiting[0]
            elif short := self._short(slot, slot.running):
                slot.within = ticket = short
            else:
                return None
        else:
            found = next((t for t in self.waiting if self._suits(t, slot)), None)
            if found is None:
                return None
            slot.running = ticket = found
        self.waiting.remove(ticket)
        if ticket.digest:
            slot.recent.append(ticket.digest)
        ticket.started = time.monotonic()
        self.announce()
        return ticket

    def _may_pass(self, slot: Slot) -> bool:
        """Whether the first who waits is run inside the running job. Never where weights would have
        to be loaded: those of the running job might have to go."""
        if slot.passing is not None or not self.waiting:
            return False
        ticket, running = self.waiting[0], slot.running
        if not ticket.urgent or running is None or running.urgent or not slot.has(ticket):
            return False
        return not self._has_free(ticket)

    def _has_free(self, ticket: Ticket) -> bool:
        return any(s.up and s.running is None and s.has(ticket) for s in self.slots)

    def _short(self, slot: Slot, running: Ticket) -> Ticket | None:
        """The first of another visitor's jobs that is run within the running one, which has run
        for long; None where that one has waited enough."""
        own_s = running.ran_s(time.monotonic())
        if running.urgent or slot.within or slot.passing or own_s < _LONG_S:
            return None
        # One that is slow only today is not passed.
        long_s = min(own_s, self.typical_s.get(running.label, math.inf))
        left_s = min(long_s / _TIMES, PASSING * own_s - running.passed_s)
        for ticket in self.waiting:
            short = self.typical_s.get(ticket.label, math.inf) <= left_s
            other = ticket.owner not in ("", running.owner)
            waits = not (ticket.urgent or ticket.closed or self._has_free(ticket))
            if short and other and waits and slot.has(ticket):
                return ticket
        return None

    def _suits(self, ticket: Ticket, slot: Slot) -> bool:
        """Whether this free replica is to run the job, now."""
        fitness = lambda s: s.fitness(ticket)  # noqa: E731
        free = [s for s in self.slots if s.up and s.running is None]
        if any(fitness(other) > fitness(slot) for other in free):
            return False
        if slot.has(ticket) or not any(s.up and s.has(ticket) for s in self.slots):
            return True
        missing = set(ticket.policies) - (slot.held or set())
        loading_s = sum(self.load_s.get(policy, 0.0) for policy in missing)
        return time.monotonic() - ticket.queued >= loading_s

    def spoke(self, slot: Slot, ticket: Ticket) -> None:
        """An event of this job has come. What is to run within it begins at this event, unless it
        begins at the next one."""
        if slot.within is not None and ticket is slot.running:
            slot.within.started = time.monotonic()

    def end(self, slot: Slot, ticket: Ticket, *, done: bool) -> float:
        """A running job is over; gives how long it ran, in s, which counts for those who wait if it
        was done."""
        now = time.monotonic()
        for behind in slot.active()[slot.active().index(ticket) + 1 :][:1]:
            behind.passed_s += now - ticket.started
        if ticket is slot.passing:
            slot.passing = None
        elif ticket is slot.within:
            slot.within = None
        else:
            slot.running = None
        ticket.end()
        ran_s = ticket.ran_s(now)
        if done:
            typical = self.typical_s.pop(ticket.label, ran_s)
            self.typical_s[ticket.label] = 0.7 * typical + 0.3 * ran_s
            if len(self.typical_s) > _MAX_LABELS:
                del self.typical_s[next(iter(self.typical_s))]
        if ticket.owner:
            used_s = self._used_s(ticket.owner, now) + ran_s
            self.used.pop(ticket.owner, None)
            self.used[ticket.owner] = used_s, now
            if len(self.used) > _MAX_OWNERS:
                del self.used[next(iter(self.used))]
            self.order(ticket.owner)
        return ran_s

    def order(self, owner: str) -> None:
        """Puts everybody where they belong: a job of this owner has come or ended."""
        late_s = self._late_s(owner, time.monotonic())
        for ticket in self.waiting:
            if ticket.owner == owner and not ticket.urgent:
                ticket.due = ticket.queued + ticket.turns_s + late_s
        self.waiting = collections.deque(sorted(self.waiting, key=Ticket.place))

    def _late_s(self, owner: str, now: float) -> float:
        """How much later the jobs of who took much time count as come: by what they took beyond
        twice the others' share, once for each of those."""
        jobs = [t for t in self.tickets() if t.owner and not (t.urgent or t.closed)]
        others = {ticket.owner for ticket in jobs} - {owner}
        if not (owner and others):
            return 0.0
        mean_s = sum(self._used_s(other, now) for other in others) / len(others)
        own_s = self._used_s(owner, now)
        own_s += sum(t.ran_s(now) for t in self.active() if t.owner == owner and not t.urgent)
        return min(LATEST_S, len(others) * max(0.0, own_s - max(_FREE_S, 2 * mean_s)))

    def _used_s(self, owner: str, now: float) -> float:
        """What their jobs took of the replicas' time, less the longer ago it was."""
        used_s, then = self.used.get(owner, (0.0, now))
        return used_s * 0.5 ** ((now - then) / HALF_LIFE_S)

    def drop_closed(self, slot: Slot) -> list[Ticket]:
        """Ends the tickets that nobody wants any more, of this replica and of those who wait, and
        gives those that had not ended."""
        tickets = [*slot.active(), *self.waiting]
        fresh = [ticket for ticket in tickets if ticket.closed and not ticket.ended]
        for ticket in fresh:
            ticket.end()
            if ticket in self.waiting:
                self.waiting.remove(ticket)
        self.announce()
        return fresh

    def leave(self, slot: Slot, reason: str) -> list[Ticket]:
        """The replica is gone for good. Its jobs, and where it was the last one everybody's, get
        the reason why no result will come. Gives their tickets."""
        self.slots.remove(slot)
        tickets = slot.active() if self.slots else [*slot.active(), *self.waiting]
        for ticket in tickets:
            ticket.put(Failed(None, reason, ticket.id))
            ticket.end()
        slot.running = slot.within = slot.passing = None
        if not self.slots:
            self.waiting.clear()
        return tickets

    def announce(self) -> None:
        """Sends everyone who waits their place, if it changed, or if they heard nothing for a
        while. Place and wait are as if every replica took every job."""
        now = time.monotonic()
        up = [slot for slot in self.slots if slot.up]
        ahead = len(self.active()) - max(0, len(up) - 1)
        ends = [self._remaining_s(slot, now) for slot in up]
        known = [end for end in ends if end is not None]
        heapq.heapify(known)
        foreseen = bool(up) and len(known) == len(ends)
        for ticket in self.waiting:
            if ticket.closed:
                continue
            place = max(0, ahead)
            if ticket.position != place or now - ticket.announced >= _POSITION_EVERY_S:
                ticket.position, ticket.announced = place, now
                ticket.put(Queued(place, known[0] if foreseen else None))
            typical = self.typical_s.get(ticket.label)
            foreseen = foreseen and typical is not None
            if foreseen and typical is not None:
                heapq.heapreplace(known, known[0] + typical)
            ahead += 1

    def _retry_s(self) -> int:
        now = time.monotonic()
        ends = [self._remaining_s(slot, now) for slot in self.slots if slot.up]
        known = [end for end in ends if end is not None]
        return max(1, math.ceil(min(known))) if known else _UNKNOWN_RETRY_S

    def _remaining_s(self, slot: Slot, now: float) -> float | None:
        """Seconds until its running job is likely to end; None if there is nothing to go by."""
        if slot.running is None:
            return 0.0
        typical = self.typical_s.get(slot.running.label)
        return None if typical is None else max(0.0, typical - slot.running.ran_s(now))


def _size(request: Request) -> str:
    """What tells jobs of a kind apart by their length, roughly: powers of two of what is drawn."""
    options = getattr(request, "options", None)
    if options is None:
        return ""
    drawn = options.num_steps * options.num_samples * getattr(request, "noises", 1)
    attention = "attention" if options.attention else ""
    return f"{drawn.bit_length()} {options.max_tokens.bit_length()} {attention}"


def _payload(start: Start, urgent: bool) -> spilled.Frame:
    """Raises Busy where the disk is full, TypeError for what cannot travel."""
    try:
        return spilled.Frame(start, at_once=urgent)
    except OSError as error:
        raise Busy(_UNKNOWN_RETRY_S, "There is no room here for so large a question.") from error


def _last_of_most(waiting: Sequence[Ticket], own: int) -> Ticket | None:
    """The last job of the visitor with most waiting, who has more than one request makes, and than
    one who has `own` would have with another; None if there is nobody like that."""
    counts = collections.Counter(t.owner for t in waiting if t.owner)
    owner, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if most <= max(_AT_ONCE, own + 1):
        return None
    return [t for t in waiting if t.owner == owner][-1]


def _too_large(waiting: Sequence[Ticket], ticket: Ticket, most: int) -> bool:
    """Whether they would hold too many bytes with it; alone, each is taken."""
    size = sum(t.payload.size for t in waiting)
    return bool(size) and size + ticket.payload.size > most
