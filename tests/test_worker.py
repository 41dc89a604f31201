"""The worker seen from the page: order, isolation, and what happens when things break.

The policies here are scripts, not models: what is tested is who gets which answer, and when. A
policy's prompt is its script, so that a test decides what happens inside the worker's process.
"""

import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from playground import codec
from playground.serving import health, queue
from playground.serving.events import Done, Failed, Finished, Job, Phase, Queued, Result, Step
from playground.serving.messages import Loading, Setup
from playground.serving.process import Process
from playground.serving.queue import Busy
from playground.serving.worker import Down, Worker
from playground.trace import Options, RawObservation
from tests.support import scripted
from tests.support.scripted import KINDS, Given
from tests.support.traces import pi0_trace

LIMIT_S = 30  # how long a test waits for what must happen, on however slow a machine
ROOT = Path(__file__).resolve().parents[1]


# --- what the tests share -----------------------------------------------------------------------


@contextlib.contextmanager
def engines_of_a_program():
    """Makes engines, as `Worker` takes it. tests/test_ray.py runs these tests with another one."""
    yield Process


@pytest.fixture(scope="module")
def engines():
    with engines_of_a_program() as make:
        yield make


@pytest.fixture
def start(engines):
    """Starts workers, and ends them when the test is over."""
    workers = []

    def start(factory="policies", arguments=None, queue_size=16, replicas=(1, 1), idle_s=600.0):
        named = factory if ":" in factory else f"{scripted.__name__}:{factory}"
        how = {"kinds": KINDS, "queue_size": queue_size, "replicas": replicas, "idle_s": idle_s}
        workers.append(Worker(named, arguments or {}, start=engines, **how))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close(drain_s=0.0)


def job(script, *names, state=0.0, leaves=None, samples=1):
    images = {} if leaves is None else {"leaves": np.frombuffer(str(leaves).encode(), np.uint8)}
    observation = RawObservation("ALOHA", images, {}, script, np.full(3, state))
    return Job(names or ("pi0",), observation, Options(num_samples=samples))


def until(condition):
    """Waits for what must become true."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def of(events, *classes):
    return [event for event in events if isinstance(event, classes)]


def in_time(function):
    """What it returns; a failure instead of a test that never ends."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert results, "it did not come to an end"
    return results[0]


def answer(stream):
    """All its events."""
    return in_time(lambda: list(stream))


def read_until(stream, wanted):
    """Reads on to the first event of that class."""
    return in_time(lambda: next(event for event in stream if isinstance(event, wanted)))


def held(worker, tmp_path, name="gate"):
    """A job that runs, and goes on once the file it hands back is made."""
    gate = tmp_path / name
    stream = worker.infer(job(f"gate={gate}"))
    read_until(stream, Phase)
    return stream, gate


def pid_of(worker):
    (result,) = of(answer(worker.call("process_id", Given())), Result)  # to its end: now it is idle
    return result.value[0]


def alive(pid):
    """A zombie that waits for whoever should reap it is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- answers ------------------------------------------------------------------------------------


def test_a_job_is_queued_runs_and_finishes(start):
    worker = start()
    assert set(worker.metadata(LIMIT_S)) == {"pi0", "fast"}
    assert worker.metadata()["fast"].title == "fast"
    events = answer(worker.infer(job("step step", "pi0", "fast", state=3.0)))
    assert isinstance(events[0], Queued)
    *runs, last = (event for event in events if not isinstance(event, Queued))
    assert [type(event) for event in runs] == [Step, Step, Done] * 2
    assert [event.policy for event in runs] == ["pi0"] * 3 + ["fast"] * 3
    assert isinstance(last, Finished)
    np.testing.assert_array_equal(runs[0].actions, np.full(3, 3.0))
    assert worker.ready()
    assert worker.live()


def test_first_come_first_served_and_everybody_sees_their_place(start, tmp_path):
    worker = start()
    first, gate = held(worker, tmp_path)
    notes = tmp_path / "notes"
    waiting = [worker.infer(job(f"note={notes}", state=float(i))) for i in range(4)]
    assert [next(stream).position for stream in waiting] == [1, 2, 3, 4]
    waiting[1].close()
    in_time(lambda: next(event for event in waiting[3] if event == Queued(3, None)))
    gate.touch()
    assert isinstance(answer(first)[-1], Finished)
    for i in (0, 2, 3):
        assert isinstance(answer(waiting[i])[-1], Finished)
    assert notes.read_text().split("\n")[:-1] == ["pi0 0", "pi0 2", "pi0 3"]


def test_the_expected_wait_comes_from_jobs_of_the_same_kind(start, tmp_path):
    worker = start()
    worker.metadata(LIMIT_S)
    first, gate = held(worker, tmp_path)
    assert next(worker.infer(job("step"))).expected_wait_s is None
    gate.touch()
    answer(first)
    second, gate = held(worker, tmp_path, "second")
    ahead = worker.infer(job("step"))
    behind = worker.infer(job("step"))
    assert 0 <= next(ahead).expected_wait_s < next(behind).expected_wait_s
    gate.touch()
    answer(second)


def test_no_visitor_gets_another_ones_answer(start):
    worker = start(queue_size=64)
    answers = {}

    def visit(visitor):
        for round_ in range(5):
            state = visitor * 100.0 + round_
            answers[state] = answer(worker.infer(job("step step", "fast", "pi0", state=state)))

    threads = [threading.Thread(target=visit, args=(visitor,)) for visitor in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(answers) == 30
    for state, events in answers.items():
        assert isinstance(events[-1], Finished)
        given_state = np.full(3, state)
        for step in of(events, Step):
            np.testing.assert_array_equal(step.actions, given_state)
        done = of(events, Done)
        assert [event.policy for event in done] == ["fast", "pi0"]
        for event in done:
            assert event.trace.versions["state"] == given_state.tobytes().hex()


def test_a_full_queue_says_busy_and_when_to_come_again(start, tmp_path):
    worker = start(queue_size=2)
    first, gate = held(worker, tmp_path)
    second, third = worker.infer(job("step")), worker.infer(job("step"))
    with pytest.raises(Busy) as busy:
        worker.infer(job("step"))
    assert busy.value.retry_s >= 1
    assert str(busy.value.retry_s) in str(busy.value)
    third.close()  # which makes a place at once
    fourth = worker.infer(job("step"))
    gate.touch()
    for stream in (first, second, fourth):
        assert isinstance(answer(stream)[-1], Finished)
    assert worker.status().completed == 3


def ticket_of(owner):
    """All of this is used with the lock held."""
    lock = threading.RLock()
    lock.acquire()
    return queue.Ticket(lock, "infer", job("step"), owner=owner)


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
        queue.Ticket(threading.Lock(), "infer", Job(("pi0",), job("step").observation, how)).label
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


def test_a_visitor_s_short_job_does_not_wait_for_another_s_long_one(start):
    """In the engine, too, which then goes on with that one."""
    worker = start()
    for owner in "bc":
        answer(worker.infer(job("step"), owner=owner))
    long = worker.infer(job("endless", samples=32), owner="a")
    read_until(long, Step)
    for owner in "bcb":
        events = answer(worker.infer(job("step", state=2.0), owner=owner))
        assert isinstance(events[-1], Finished)
        np.testing.assert_array_equal(of(events, Step)[0].actions, np.full(3, 2.0))
    read_until(long, Step)
    long.close()


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


def test_a_job_that_gave_way_ends_and_is_logged(start, tmp_path, caplog):
    caplog.set_level(logging.INFO, "playground.serving")
    worker = start(queue_size=12)
    _, gate = held(worker, tmp_path)
    *_, last = [worker.infer(job("step"), owner=owner) for owner in "bbccddeefaaa"]
    streams = [worker.infer(job("step"), owner="g")]
    assert "Others came" in answer(last)[-1].message
    assert any('"gave way"' in message for message in caplog.messages)
    gate.touch()
    assert isinstance(answer(streams[0])[-1], Finished)


def test_what_cannot_run_is_refused_before_the_queue(start):
    worker = start()
    worker.metadata(LIMIT_S)
    with pytest.raises(ValueError, match=r"no policy is called pi9; loaded: pi0, fast"):
        worker.infer(job("step", "pi0", "pi9"))
    with pytest.raises(ValueError, match="names no policy"):
        worker.infer(Job((), job("step").observation, Options()))
    with pytest.raises(ValueError, match="no kind of job is called 'rollout'"):
        worker.call("rollout", Given())
    with pytest.raises(TypeError, match="cannot pack"):
        worker.call("echo", Given(object()))


# --- replicas ------------------------------------------------------------------------------------


def pair(worker, tmp_path):
    """Two jobs that run at once, their gates, and their processes."""
    streams, gates, pids = [], [], []
    for name in ("one", "two"):
        notes, gate = tmp_path / f"{name}-pid", tmp_path / name
        stream = worker.infer(job(f"pid={notes} gate={gate}"))
        read_until(stream, Phase)
        until(notes.exists)
        streams, gates = [*streams, stream], [*gates, gate]
        pids.append(int(notes.read_text()))
    return streams, gates, pids


def test_two_replicas_run_two_jobs_at_once_and_the_death_of_one_costs_only_its_own(start, tmp_path):
    worker = start(replicas=(2, 2))
    until(lambda: worker.status().replicas == 2)
    streams, gates, pids = pair(worker, tmp_path)
    assert len(set(pids)) == 2
    third, fourth = worker.infer(job("step")), worker.infer(job("step"))
    assert [next(stream).position for stream in (third, fourth)] == [1, 2]
    os.kill(pids[0], signal.SIGKILL)
    failed = answer(streams[0])[-1]
    assert isinstance(failed, Failed)
    assert streams[0].job_id in failed.message
    for stream in (third, fourth):  # by the replica's successor, while the other one is held
        assert isinstance(answer(stream)[-1], Finished)
    gates[1].touch()
    assert isinstance(answer(streams[1])[-1], Finished)
    until(lambda: worker.status().replicas == 2)
    assert worker.ready()


def test_more_replicas_run_while_many_wait(start, tmp_path):
    worker = start(replicas=(1, 2), idle_s=0.0)
    first, gate = held(worker, tmp_path)
    waiting = [worker.infer(job("step")) for _ in range(3)]
    for stream in waiting:  # while the first replica is held
        assert isinstance(answer(stream)[-1], Finished)
    gate.touch()
    assert isinstance(answer(first)[-1], Finished)
    until(lambda: worker.status().replicas == 1)
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)


def asked_where(worker, *names):
    """(the process, what it holds by then), and what was loaded for it."""
    events = answer(worker.call("where", Given(policies=names)))
    (result,) = of(events, Result)
    return result.value, [event.policy for event in of(events, Phase)]


def test_what_is_not_held_is_loaded_in_place_of_what_was_used_last(start):
    worker = start("shelf", {"most": 2})
    assert set(worker.metadata(LIMIT_S)) == {"a", "b", "c"}
    (pid, held_), loaded = asked_where(worker, "a", "b")
    assert (held_, loaded) == (("a", "b"), ["a", "b"])
    assert asked_where(worker, "a") == ((pid, ("b", "a")), [])
    assert asked_where(worker, "c") == ((pid, ("a", "c")), ["c"])
    events = answer(worker.infer(job("step", "b", "c")))
    assert [event.policy for event in of(events, Phase)] == ["b"]
    assert [event.policy for event in of(events, Done)] == ["b", "c"]
    (failed,) = of(answer(worker.call("where", Given(policies=("a", "b", "c")))), Failed)
    assert "a, b, c do not fit into memory together" in failed.message
    with pytest.raises(ValueError, match="no policy is called d; loaded: a, b, c"):
        worker.infer(job("step", "d"))


def test_a_job_goes_where_its_weights_are(start):
    worker = start("shelf", {"most": 1}, replicas=(2, 2))
    until(lambda: worker.status().replicas == 2)
    places = {name: asked_where(worker, name)[0][0] for name in ("a", "b")}
    assert len(set(places.values())) == 2
    for name in ("b", "a", "a", "b"):
        assert asked_where(worker, name) == ((places[name], (name,)), [])


def placed(*held, size=64):
    """A queue before replicas that hold these."""
    waiting = queue.Queue(size)
    waiting.slots += [queue.Slot(up=True, held=frozenset(names)) for names in held]
    return waiting


def ticket_for(policy, digest=b"", urgent=False):
    lock = threading.RLock()
    lock.acquire()
    return queue.Ticket(lock, "infer", job("step", policy), digest=digest, urgent=urgent)


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


# --- robots -------------------------------------------------------------------------------------


def test_an_urgent_job_waits_for_no_visitor(start, tmp_path):
    """It runs inside the running job, at its next event, and that one goes on."""
    worker = start()
    notes = tmp_path / "notes"
    first = worker.infer(job("endless"))
    read_until(first, Step)
    behind = worker.infer(job(f"note={notes}", state=1.0))
    for state in (2.0, 3.0):
        urgent = answer(worker.infer(job(f"note={notes}", "fast", state=state), urgent=True))
        assert isinstance(urgent[-1], Finished)
        assert [event.policy for event in of(urgent, Done)] == ["fast"]
    given_up = worker.infer(job("endless", "fast"), urgent=True)
    read_until(given_up, Step)
    given_up.close()
    read_until(first, Step)
    assert notes.read_text().split() == ["fast", "2", "fast", "3"]
    first.close()
    assert isinstance(answer(behind)[-1], Finished)
    assert notes.read_text().split()[-2:] == ["pi0", "1"]


def test_both_jobs_of_a_killed_worker_fail_and_urgent_ones_have_places_of_their_own(start):
    worker = start(queue_size=1)
    first = worker.infer(job("endless"))
    read_until(first, Step)
    behind = worker.infer(job("step"))
    with pytest.raises(Busy):
        worker.infer(job("step"))
    urgent = worker.infer(job("step die", "fast"), urgent=True)
    for stream in (first, urgent):
        assert stream.job_id in answer(stream)[-1].message
    assert isinstance(answer(behind)[-1], Finished)


# --- leaving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "cancel", "drop"])
def test_a_visitor_who_leaves_frees_the_worker_at_the_next_event(start, tmp_path, way):
    worker = start()
    notes = tmp_path / "notes"
    stream = worker.infer(job("endless", "pi0", "fast", leaves=notes))
    read_until(stream, Step)
    job_id = stream.job_id
    if way == "close":
        stream.close()
    elif way == "cancel":
        worker.cancel(job_id)
        assert of(answer(stream), Finished, Failed) == []
    else:
        del stream
        gc.collect()
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)
    assert notes.read_text() == "left\n"  # once: the job's second policy never ran


def test_a_visitor_who_leaves_the_queue_costs_nothing(start, tmp_path):
    worker = start()
    first, gate = held(worker, tmp_path)
    notes = tmp_path / "notes"
    with worker.infer(job(f"note={notes}")) as second:
        next(second)
    assert answer(second) == []
    until(lambda: worker.status().waiting == 0)
    gate.touch()
    assert isinstance(answer(first)[-1], Finished)
    assert answer(first) == []
    answer(worker.infer(job("step")))
    assert not notes.exists()


def test_a_visitor_who_stops_reading_holds_nobody_up(start):
    worker = start()
    unread = worker.call("flood", Given(100_000))
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)
    left = answer(unread)
    assert len(left) == 1
    assert isinstance(left[0], Failed)


# --- faults -------------------------------------------------------------------------------------


def test_a_failing_policy_fails_alone(start, caplog):
    worker = start()
    refused = answer(worker.infer(job("step refuse", "pi0", "fast")))
    assert [(e.policy, e.message) for e in of(refused, Failed)] == [
        (name, "the state has 3 values, expected 14") for name in ("pi0", "fast")
    ]
    assert isinstance(refused[-1], Finished)

    stream = worker.infer(job("break_"))
    (failed,) = of(answer(stream), Failed)
    assert failed.job_id == stream.job_id
    assert stream.job_id in failed.message
    assert "secret" not in failed.message
    lines = [json.loads(r.message) for r in caplog.records if stream.job_id in r.message]
    (line,) = [line for line in lines if line["event"] == "failed"]
    assert "a secret in /etc/passwd" in line["traceback"]
    assert "in break_\n" in line["traceback"]

    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)
    assert worker.status().crashes == 0


def test_without_memory_for_all_samples_the_first_is_answered(start):
    worker = start()
    pid = pid_of(worker)
    events = answer(worker.infer(job("exhaust=1", "pi0", "fast", samples=8)))
    assert of(events, Failed) == []
    assert isinstance(events[-1], Finished)
    for done in of(events, Done):
        (warning,) = done.trace.warnings
        assert "ran out of memory with 8 samples at once: this is the first of them" in warning
    assert [event.policy for event in of(events, Done)] == ["pi0", "fast"]
    assert worker.status().exhausted == 2

    (failed,) = of(answer(worker.infer(job("exhaust=0", samples=8))), Failed)
    assert "ran out of memory. Fewer samples" in failed.message
    assert "RESOURCE" not in failed.message
    assert worker.status().exhausted == 4  # with all samples, and with one
    assert answer(worker.infer(job("step")))[-2].trace.warnings == pi0_trace().warnings
    assert pid_of(worker) == pid
    assert worker.status().crashes == 0


def test_a_job_is_one_line_of_the_log(start, caplog):
    """With its id, its times, each policy's stages and what came from caches; nothing private."""
    caplog.set_level("INFO")
    worker = start()
    stream = worker.infer(job("step note=/dev/null", "pi0", "fast"))
    answer(stream)
    until(lambda: any(stream.job_id in record.message for record in caplog.records))
    (line,) = [json.loads(r.message) for r in caplog.records if stream.job_id in r.message]
    assert (line["event"], line["kind"], line["outcome"]) == ("ended", "infer", "done")
    assert line["ran_s"] >= 0 <= line["waited_s"]
    trace = pi0_trace()
    logged = {"timings_ms": trace.timings_ms, "reused": list(trace.reused)}
    assert line["policies"] == {"pi0": logged, "fast": logged}
    assert logged["timings_ms"]
    assert "note=" not in caplog.text


def test_a_killed_worker_comes_back_and_the_queue_stands(start, tmp_path):
    door = tmp_path / "door"
    door.touch()
    worker = start("policies_behind", {"door": str(door)})
    pid = pid_of(worker)
    first, _ = held(worker, tmp_path)
    second = worker.infer(job("step"))
    door.unlink()
    os.kill(pid, signal.SIGKILL)
    *_, last = first
    assert isinstance(last, Failed)
    assert last.policy is None
    assert first.job_id in last.message
    assert read_until(second, Phase).phase == "loading"
    assert not worker.ready()
    assert worker.live()
    door.touch()
    assert isinstance(answer(second)[-1], Finished)
    assert worker.ready()
    assert pid_of(worker) != pid
    assert not alive(pid)


def test_an_idle_worker_that_is_killed_comes_back(start):
    worker = start()
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker.status().crashes == 1)
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)


def test_a_hang_ends_at_the_announced_deadline(start, caplog):
    worker = start()
    pid = pid_of(worker)
    first, second = worker.infer(job("hang", "pi0", "fast")), worker.infer(job("step"))
    assert isinstance(answer(first)[-1], Failed)
    assert isinstance(answer(second)[-1], Finished)
    assert not alive(pid)
    (line,) = [json.loads(r.message) for r in caplog.records if '"lost"' in r.message]
    assert line["jobs"] == [first.job_id]
    assert "hung" in line["reason"]


def test_a_deadline_ends_with_the_run_of_its_policy(start):
    """The second policy is silent for longer than the first one's last phase might have been."""
    events = answer(start().infer(job("silent", "pi0", "fast")))
    assert [event.policy for event in of(events, Done)] == ["pi0", "fast"]
    assert isinstance(events[-1], Finished)


def test_ready_is_the_heartbeat_of_the_loop_that_runs_the_jobs(start):
    worker = start()
    pid = pid_of(worker)
    assert worker.ready()
    os.kill(pid, signal.SIGSTOP)  # alive, its connection open, and silent
    until(lambda: not worker.ready())
    until(worker.ready)
    assert pid_of(worker) != pid
    until(lambda: not alive(pid))


def test_three_crashes_in_a_row_and_it_stays_down(start):
    worker = start()
    jobs = [worker.infer(job("die")) for _ in range(3)]
    late = worker.infer(job("step"))
    for stream in jobs:
        assert "quote job" in answer(stream)[-1].message
    assert "crashed 3 times" in answer(late)[-1].message
    with pytest.raises(Down, match="crashed 3 times"):
        worker.infer(job("step"))
    assert not worker.live()
    assert not worker.ready()
    assert worker.status().state == "down"


def test_a_completed_job_between_crashes_counts_them_anew(start):
    worker = start()
    scripts = ["die", "die", "refuse", "step", "die", "die", "step"]
    ends = [answer(worker.infer(job(script)))[-1] for script in scripts]
    assert [type(end) for end in ends] == [
        Failed, Failed, Finished, Finished, Failed, Failed, Finished
    ]  # fmt: skip
    assert worker.live()


def test_a_factory_that_refuses_is_not_asked_again(start, caplog):
    worker = start("refusing")
    waiting = worker.infer(job("step"))
    with pytest.raises(Down, match=r"needs 12\.3 GB"):
        worker.metadata(LIMIT_S)
    assert "needs 12.3 GB" in answer(waiting)[-1].message
    assert worker.status().crashes == 0
    assert not worker.live()
    # The terminal says why, and nothing more.
    (logged,) = [r.getMessage() for r in caplog.records if "12.3 GB" in r.getMessage()]
    assert "Traceback" not in logged


@pytest.mark.parametrize("factory", ["broken", "loading_hangs"])
def test_a_factory_that_breaks_is_tried_three_times(start, factory):
    worker = start(factory)
    with pytest.raises(Down, match="crashed 3 times"):
        worker.metadata(LIMIT_S)


# --- the process and its end --------------------------------------------------------------------

PAGE = """
import importlib, signal, sys, threading
from playground.serving import health, queue
from playground.serving.events import Finished
from playground.serving.worker import Worker
from tests import test_worker as t
from tests.support.scripted import KINDS, Given

def say(*words):  # once a signal means the end
    t.until(lambda: signal.getsignal(signal.SIGTERM) is not before)
    print(*words, flush=True)

_, gate, module = sys.argv
with importlib.import_module(module).engines_of_a_program() as make:
    worker = Worker("tests.support.scripted:with_jax", {}, kinds=KINDS, start=make)
    pid, has_jax = t.read_until(worker.call("process_id", Given()), t.Result).value
    stream = worker.infer(t.job(f"gate={gate}"))
    t.read_until(stream, t.Phase)
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=say, args=(pid, has_jax)).start()
    health.wait_for_signal()
    worker.close(drain_s=60.0)
    print(type(list(stream)[-1]).__name__, "jax" in sys.modules, flush=True)
"""


@pytest.fixture
def page(engines, tmp_path, request):
    """A program that runs a worker with one job held by the gate; the program and the gate."""
    gate = tmp_path / "gate"
    command = [sys.executable, "-c", PAGE, str(gate), request.module.__name__]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        yield program, gate
        program.kill()


def test_sigterm_drains_and_exits_with_0_and_only_the_worker_imports_jax(page):
    program, gate = page
    pid, has_jax = program.stdout.readline().split()
    assert has_jax == "True"
    program.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0.5)  # it waits for the job
    gate.touch()
    assert program.stdout.readline().split() == ["Finished", "False"]
    assert program.wait(LIMIT_S) == 0
    until(lambda: not alive(int(pid)))


def test_a_killed_page_leaves_no_orphan(page):
    program, _ = page
    pid = int(program.stdout.readline().split()[0])
    assert alive(pid)
    program.kill()
    program.wait(LIMIT_S)
    until(lambda: not alive(pid))


def test_a_closed_connection_ends_the_process_whatever_it_does(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "playground.serving.engine", str(theirs.fileno())]
        with subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()]) as process:
            try:
                arguments = {"door": str(tmp_path / "never")}
                setup = Setup(f"{scripted.__name__}:policies_behind", arguments, {}, 60.0)
                ours.sendall(codec.encode(setup))
                assert isinstance(in_time(lambda: codec.receive(ours)).body, Loading)
                ours.shutdown(socket.SHUT_WR)
                assert process.wait(LIMIT_S) == 0
            finally:
                process.kill()


def test_closing_turns_new_jobs_away_and_gives_up_what_takes_too_long(start, tmp_path):
    worker = start()
    pid = pid_of(worker)
    running, _ = held(worker, tmp_path)
    waiting = worker.infer(job("step"))
    worker.close(drain_s=0.1)
    for stream in (running, waiting):
        assert "shutting down" in answer(stream)[-1].message
    with pytest.raises(Down, match="shutting down"):
        worker.infer(job("step"))
    until(lambda: not alive(pid))


def test_health_routes_follow_the_worker(start, tmp_path):
    door = tmp_path / "door"
    worker = start("policies_behind", {"door": str(door)})
    app = FastAPI()
    app.include_router(health.routes(worker))
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        door.touch()
        worker.metadata(LIMIT_S)
        assert client.get("/readyz").status_code == 200
        answer(worker.infer(job("exhaust=0")))
        status = client.get("/readyz").json()
        assert (status["state"], status["exhausted"]) == ("up", 1)
        worker.close(drain_s=0.0)
        assert client.get("/healthz").status_code == 503
        assert client.get("/readyz").status_code == 503


# --- the wire -----------------------------------------------------------------------------------


def travelled(value):
    """What comes out at the other end of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: ours.sendall(codec.encode(value)))
        sender.start()
        received = codec.receive(theirs)
        sender.join()
    return received


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


DTYPES = st.one_of(
    st_np.boolean_dtypes(),
    st_np.integer_dtypes(endianness="?"),
    st_np.unsigned_integer_dtypes(endianness="?"),
    st_np.floating_dtypes(endianness="?"),
    st_np.complex_number_dtypes(endianness="?"),
)


@given(st_np.arrays(DTYPES, st_np.array_shapes(min_dims=0, min_side=0, max_dims=4)))
@settings(max_examples=200)
def test_arrays_travel_bit_for_bit(array):
    assert same_bits(travelled({"x": array})["x"], array)
    assert same_bits(travelled((array.T,))[0], np.asarray(array.T))


def test_large_arrays_go_through_the_worker_and_back(start):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (2160, 3840, 3), np.uint8),
        "x_t": rng.normal(size=(11, 8, 50, 32)).astype(np.float32),
        "half": rng.normal(size=(64, 64)).astype(np.float16),
        "long": rng.integers(-(2**63), 2**63 - 1, (1000,), np.int64),
        "mask": rng.random((816, 867)) < 0.5,
        "strided": rng.normal(size=(100, 100))[::3, ::-2],
        "empty": np.empty((0, 14), np.float32),
        "scalar": np.array(2.5, np.float64),
        "bits": np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32),
    }
    value = read_until(
        start().call("echo", Given({"arrays": arrays, "of": (1, "two", None)})), Result
    ).value
    assert value["of"] == (1, "two", None)
    assert list(value["arrays"]) == list(arrays)
    for name, array in arrays.items():
        assert same_bits(value["arrays"][name], array), name


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.array(["text"]), np.zeros(2, "i4,f4"), np.zeros(2, "M8[s]")],
    ids=["objects", "text", "records", "dates"],
)
def test_arrays_of_anything_but_numbers_do_not_travel(array):
    with pytest.raises(TypeError, match="arrays of numbers travel"):
        codec.encode(array)


def frame(header, body=b""):
    header = json.dumps(header).encode()
    return len(header).to_bytes(4, "little") + header + body


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x80\x04N.",  # a pickle
        frame([]),
        frame({"tree": None}),
        frame({"tree": None, "arrays": [["a0", "|O", [1]]]}, bytes(8)),
        frame({"tree": None, "arrays": [["a0", "<f4", [1 << 40]]]}),
        frame({"tree": None, "arrays": [["a0", "<f4", [-1]]]}),
        frame({"tree": {"$array": "a7"}, "arrays": []}),
        frame({"tree": {"$class": "Popen", "args": "true"}, "arrays": []}),
    ],
)
def test_what_is_no_frame_is_a_value_error(sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(sent)
        with pytest.raises(ValueError, match="not a"):
            codec.receive(theirs)


@settings(max_examples=100)
@given(st.data())
def test_a_frame_cut_short_is_the_end_of_the_stream(data):
    sent = codec.encode({"x": np.arange(10), "y": "text"})
    cut = data.draw(st.integers(0, len(sent) - 1))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent[:cut])
        with pytest.raises(EOFError):
            codec.receive(theirs)
