"""The queue by itself: places, shares, who goes first and where, without an engine."""

import re
import threading
import time

import numpy as np
import pytest

from playground.serving import queue
from playground.serving.events import Job
from playground.trace import Options, RawObservation


def job(*names):
    """One that is never run."""
    observation = RawObservation("ALOHA", {}, {}, "step", np.zeros(3))
    return Job(names or ("pi0",), observation, Options())


def ticket_of(owner):
    """All of this is used with the lock held."""
    lock = threading.RLock()
    lock.acquire()
    return queue.Ticket(lock, "infer", job(), owner=owner)


def queued(*owners, size=64):
    """A queue that these visitors' jobs joined in this order, and their tickets."""
    waiting = queue.Queue(size)
    waiting.slots.append(queue.Slot(up=True))
    tickets = [ticket_of(owner) for owner in owners]
    for ticket in tickets:
        waiting.join(ticket)
    return waiting, tickets


def test_who_sends_many_jobs_holds_others_up_by_two():
    waiting, tickets = queued("a", "a", "a", "a", "b", "c", "b", "b", "", "", "")
    served = []
    (slot,) = waiting.slots
    while ticket := waiting.next(slot):
        served.append(ticket)
        waiting.end(slot, ticket, done=True)
    assert "".join(ticket.owner or "-" for ticket in served) == "aabcb---aba"
    own = [ticket for ticket in served if ticket.owner == "a"]
    assert own == [ticket for ticket in tickets if ticket.owner == "a"]


def test_who_came_long_before_is_not_overtaken():
    waiting, (*_, third) = queued("a", "a", "a")
    third.due -= 3600.0  # s ago
    late = ticket_of("b")
    waiting.join(late)
    assert list(waiting.waiting).index(third) < list(waiting.waiting).index(late)


def ran(waiting, ticket, seconds):
    """The one replica runs this job, which is next, for so long."""
    (slot,) = waiting.slots
    assert waiting.next(slot) is ticket
    ticket.started -= seconds
    waiting.end(slot, ticket, done=True)


def test_who_took_much_time_goes_behind_who_had_little():
    waiting, (first, again, little) = queued("a", "a", "b")
    ran(waiting, first, 30.0)
    assert list(waiting.waiting) == [little, again]
    assert 0 < again.due - again.queued <= 30.0
    waiting.join(ticket_of("c"))
    waiting.join(more := ticket_of("a"))  # now there are two who had less
    assert 30.0 < more.due - more.queued <= 60.0
    more.queued -= queue.LATEST_S + 1  # nobody waits for ever, whatever they took
    waiting.used["a"] = 1e6, time.monotonic()
    waiting.order("a")
    assert waiting.waiting[0] is more


def test_who_took_as_much_as_the_others_keeps_their_place():
    waiting, tickets = queued("a", "b", "a", "b", "c")
    ran(waiting, tickets[0], 30.0)
    waiting.used["b"] = waiting.used["c"] = 20.0, time.monotonic()
    waiting.order("a")
    assert list(waiting.waiting) == tickets[1:]
    waiting.next(waiting.slots[0])
    waiting.used.clear()
    waiting.join(last := ticket_of("a"))  # what runs counts, too, and nothing that was long ago
    assert last.due == last.queued
    waiting.end(waiting.slots[0], tickets[1], done=True)
    waiting.used["a"] = 30.0, time.monotonic() - 10 * queue.HALF_LIFE_S
    waiting.order("a")
    assert last.due == last.queued


def long_run(seconds, *owners):
    """A queue whose replica has run a job of "a" for so long, and the tickets of these visitors,
    whose jobs take a second."""
    waiting, (running,) = queued("a")
    (slot,) = waiting.slots
    assert waiting.next(slot) is running
    running.started -= seconds
    tickets = [ticket_of(owner) for owner in owners]
    for ticket in tickets:
        ticket.label = "short"
        waiting.join(ticket)
    waiting.typical_s["short"] = 1.0
    return waiting, slot, running, tickets


def test_short_jobs_pass_a_long_one_which_keeps_a_quarter_of_the_time():
    waiting, slot, running, tickets = long_run(10.0, *"bcdefghijk" * 4)
    passed = 0
    while ticket := waiting.next(slot):
        assert ticket is tickets[passed]  # in their order
        assert slot.active() == [ticket, running]
        assert waiting.next(slot) is None  # one at a time
        ticket.started -= 1.0
        running.started -= 1.0
        waiting.end(slot, ticket, done=True)
        passed += 1
    assert passed == queue.PASSING * 10
    assert waiting.next(slot) is None
    running.started -= 1.0  # it goes on
    assert waiting.next(slot) is tickets[passed]
    assert waiting.end(slot, tickets[passed], done=True) < 1
    assert 11 <= waiting.end(slot, running, done=True) < 12  # without those that passed
    assert waiting.next(slot) is tickets[passed + 1]


def test_only_another_s_short_job_passes_and_only_a_long_one():
    waiting, slot, running, (own, nobodys) = long_run(10.0, "a", "")
    assert waiting.next(slot) is None
    waiting.join(unknown := ticket_of("b"))
    unknown.label = "unknown"
    assert waiting.next(slot) is None
    unknown.label = "short"
    assert waiting.next(slot) is unknown
    assert list(waiting.waiting) == [own, nobodys]
    robot = ticket_for("pi0", urgent=True)  # passes both
    waiting.join(robot)
    assert waiting.next(slot) is robot
    assert slot.active() == [robot, unknown, running]
    robot.started -= 2.0
    unknown.started -= 2.0
    waiting.end(slot, robot, done=True)
    assert waiting.end(slot, unknown, done=True) < 1
    waiting, slot, running, _ = long_run(3.0, "b")  # not four times as long as the other takes
    assert waiting.next(slot) is None
    waiting, slot, running, _ = long_run(10.0, "b")
    waiting.typical_s[running.label] = 3.0  # nor is it as a rule
    assert waiting.next(slot) is None
    waiting.typical_s[running.label] = 4.0
    assert waiting.next(slot)
    waiting, slot, running, _ = long_run(3.0, "b")
    waiting.slots.append(other := queue.Slot(up=True))
    running.started -= 10.0
    assert waiting.next(slot) is None  # it goes where nothing runs
    assert waiting.next(other)


def test_what_waited_for_the_event_at_which_it_begins_did_not_run():
    waiting, slot, running, (short,) = long_run(10.0, "b")
    assert waiting.next(slot) is short
    short.started -= 5.0
    waiting.spoke(slot, short)
    assert short.ran_s(time.monotonic()) >= 5.0
    waiting.spoke(slot, running)
    assert waiting.end(slot, short, done=True) < 5.0


def test_jobs_of_different_lengths_are_told_apart():
    labels = {
        queue.Ticket(threading.Lock(), "infer", Job(("pi0",), job().observation, how)).label
        for how in (
            Options(),
            Options(num_samples=32),
            Options(num_steps=100),
            Options(max_tokens=8),
            Options(attention=True),
            Options(seed=3),
        )
    }
    assert len(labels) == 5


def test_a_visitor_holds_a_quarter_of_the_places(monkeypatch):
    with pytest.raises(queue.Busy, match=r"^16 of your runs are waiting already. .* in \d+ s\.$"):
        queued(*["a"] * 17)
    waiting, tickets = queued(*["a"] * 15, *[""] * 49)
    waiting.check("a")
    last = ticket_of("a")
    waiting.join(last)
    with pytest.raises(queue.Busy, match=r"^16 of your runs are waiting already"):
        waiting.check("a")
    for owner in ("b", ""):
        waiting.check(owner)
    assert waiting.count() == 65  # one of them is next
    tickets[0].closed = True  # who left holds none
    waiting.join(ticket_of("a"))
    assert waiting.count() == 65
    size = tickets[0].payload.size
    monkeypatch.setattr(queue, "MAX_WAITING_BYTES", 12 * size)
    with pytest.raises(queue.Busy, match="3 of your runs"):
        queued("b", *["a"] * 4)
    with pytest.raises(queue.Busy, match="All places"):
        queued(*[""] * 13)


def test_the_last_job_of_who_has_most_gives_way_to_who_has_fewer(monkeypatch):
    waiting, tickets = queued(*"aaaabbb", *[""] * 10, size=16)
    last = tickets[3]
    assert waiting.join(ticket_of("c")) == [last]
    assert (last.ended, last in waiting.waiting, waiting.count()) == (True, False, 17)
    assert re.search(r"Others came .* try again in \d+ s", last.events[-1].message)
    assert waiting.join(ticket_of("c")) == [tickets[2]]  # of equals, of whoever comes first
    assert waiting.join(ticket_of("")) == [tickets[6]]
    # Two are what one request makes; neither those nor the page's own jobs give way.
    with pytest.raises(queue.Busy, match="All places"):
        waiting.join(ticket_of("d"))
    assert [t.owner for t in waiting.waiting].count("c") == 2

    size = tickets[0].payload.size
    monkeypatch.setattr(queue, "MAX_WAITING_BYTES", 12 * size)
    waiting, tickets = queued("a", "b", *["a"] * 2, *[""] * 8)  # full by their bytes
    assert waiting.join(ticket_of("c")) == [tickets[3]]


def test_who_has_most_pushes_nobody_out():
    waiting, _ = queued(*"aaabb", *[""] * 12, size=16)
    with pytest.raises(queue.Busy, match="All places"):
        waiting.join(ticket_of("b"))  # with it, both would have three
    with pytest.raises(queue.Busy):
        waiting.join(ticket_of("a"))
    assert waiting.count() == 17


def placed(*held, size=64):
    """A queue before replicas that hold these."""
    waiting = queue.Queue(size)
    waiting.slots += [queue.Slot(up=True, held=frozenset(names)) for names in held]
    return waiting


def ticket_for(policy, digest=b"", urgent=False):
    lock = threading.RLock()
    lock.acquire()
    return queue.Ticket(lock, "infer", job(policy), digest=digest, urgent=urgent)


def test_a_job_waits_for_its_weights_no_longer_than_they_take_to_load():
    waiting = placed({"a"}, {"b"})
    with_a, with_b = waiting.slots
    waiting.join(first := ticket_for("a"))
    waiting.join(second := ticket_for("a"))
    waiting.join(third := ticket_for("b"))
    waiting.load_s["a"] = 1000.0
    assert waiting.next(with_b) is third  # overtakes none: the others are not to come here
    assert waiting.next(with_a) is first
    waiting.end(with_b, third, done=True)
    assert waiting.next(with_b) is None
    second.queued -= 1000.0
    assert waiting.next(with_b) is second


def test_a_job_goes_where_its_picture_was_seen_if_that_one_is_free():
    waiting = placed({"a"}, {"a"})
    one, other = waiting.slots
    waiting.join(first := ticket_for("a", b"picture"))
    assert waiting.next(other) is first
    waiting.end(other, first, done=True)
    waiting.join(again := ticket_for("a", b"picture"))
    assert waiting.next(one) is None
    waiting.join(another := ticket_for("a", b"other"))
    assert waiting.next(one) is another
    assert waiting.next(other) is again
    waiting.end(one, another, done=True)
    waiting.join(last := ticket_for("a", b"picture"))
    assert waiting.next(one) is last  # the other one is busy


def test_a_robot_s_job_interrupts_only_where_nothing_is_free_and_nothing_is_loaded():
    waiting = placed({"a"}, {"b"}, {"a"})
    first, with_b, second = waiting.slots
    for slot in (first, with_b):
        waiting.join(ticket_for(*slot.held))
        assert waiting.next(slot)
    waiting.join(robot := ticket_for("a", urgent=True))
    assert waiting.next(first) is None  # the third is free
    assert waiting.next(second) is robot
    waiting.join(robot := ticket_for("a", urgent=True))
    assert waiting.next(with_b) is None
    assert waiting.next(second) is None  # at a robot's job itself
    assert waiting.next(first) is robot
    assert first.passing is robot


def test_a_place_is_how_many_must_end_before():
    waiting = placed({"a"}, {"a"})
    waiting.join(earlier := ticket_for("a"))
    assert waiting.next(waiting.slots[0]) is earlier
    earlier.started -= 10.0
    waiting.end(waiting.slots[0], earlier, done=True)
    tickets = [ticket_for("a") for _ in range(5)]
    for slot, ticket in zip(waiting.slots, tickets, strict=False):
        waiting.join(ticket)
        waiting.next(slot)
    for ticket in tickets[2:]:
        waiting.join(ticket)
    events = [ticket.events[-1] for ticket in tickets[2:]]
    assert [event.position for event in events] == [1, 2, 3]
    assert [round(event.expected_wait_s) for event in events] == [10, 10, 20]
