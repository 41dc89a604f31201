"""The worker seen from the page: order, isolation, and what happens when things break. Every test
runs with engines that are processes of this machine, and again with actors of a real Ray cluster.

The policies here are scripts, not models: what is tested is who gets which answer, and when. A
policy's prompt is its script, so that a test decides what happens inside the engine. Last, both
bundled policies on two of Ray's engines that hold one each.
"""

import contextlib
import gc
import json
import logging
import os
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

from playground import codec
from playground.serving import health
from playground.serving.events import Done, Failed, Finished, Job, Phase, Queued, Result, Step
from playground.serving.messages import Loading, Setup
from playground.serving.process import Process
from playground.serving.queue import Busy
from playground.serving.ray import Cluster
from playground.serving.worker import Down, Worker
from playground.trace import Options, RawObservation
from tests.support import scripted
from tests.support.scripted import KINDS, Given
from tests.support.traces import pi0_trace

LIMIT_S = 180  # how long a test waits for what must happen, on however slow a machine
ROOT = Path(__file__).resolve().parents[1]
PLACES = 16
PI0, FAST = "pi0_tabletop", "pi0_fast_tabletop"


# --- both kinds of engines ----------------------------------------------------------------------


@contextlib.contextmanager
def processes():
    """Makes engines, as `Worker` takes it."""
    yield Process


@contextlib.contextmanager
def actors():
    """The same on a Ray cluster: that of RAY_ADDRESS."""
    with Cluster.join(replicas=2) as cluster:
        yield cluster.start


ENGINES = {"process": processes, "ray": actors}
only_processes = pytest.mark.parametrize("kind", ["process"], indirect=True)
only_ray = pytest.mark.parametrize(
    "kind", [pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="module", params=["process", pytest.param("ray", marks=pytest.mark.slow)])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engines(kind):
    with contextlib.ExitStack() as held:
        if kind == "ray":
            pytest.importorskip("ray")
            held.enter_context(ray_on_this_machine())
        yield held.enter_context(ENGINES[kind]())


# Ray forks as it starts, which a process in which other tests have loaded JAX had better not do.
HEAD = """
import sys
from playground.serving.ray import Cluster
with Cluster.join(replicas=3):  # that of all tests, and two of one test
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def ray_on_this_machine():
    """A cluster that another process has started, in RAY_ADDRESS, as where there are many
    machines."""
    environment = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_AUTH_MODE"] = "disabled"  # who joins by an address has no token
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HEAD]
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as head,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            patch.setenv("RAY_ADDRESS", head.stdout.readline().strip())
            yield
        finally:
            head.communicate()


def new_worker(
    engines, factory="policies", arguments=None, *, queue_size=PLACES, replicas=(1, 1), idle_s=600.0
):
    named = factory if ":" in factory else f"{scripted.__name__}:{factory}"
    how = {"kinds": KINDS, "queue_size": queue_size, "replicas": replicas, "idle_s": idle_s}
    return Worker(named, arguments or {}, start=engines, **how)


@pytest.fixture
def start(engines):
    """Starts workers, and ends them when the test is over."""
    with contextlib.ExitStack() as workers:

        def start(*args, **how):
            return workers.enter_context(new_worker(engines, *args, **how))

        yield start


@pytest.fixture(scope="module")
def shared(engines):
    """Gives the worker of all tests that leave it as it was."""
    with contextlib.ExitStack() as workers:
        started = []

        def shared():
            if not started or not comes_to_rest(started[-1]):
                started.append(workers.enter_context(new_worker(engines)))
            return started[-1]

        yield shared


def comes_to_rest(worker):
    """Whether it is well and idle, as after all tests but one that fails."""
    with contextlib.suppress(AssertionError):
        until(lambda: not worker.status().running and not worker.status().waiting, 10.0)
        return worker.live()
    return False


@pytest.fixture
def worker(shared):
    """One that is up and idle, with `PLACES` places. A test may kill its engine."""
    worker = shared()
    worker.metadata(LIMIT_S)
    return worker


# --- what the tests share -----------------------------------------------------------------------


def job(script, *names, state=0.0, leaves=None, samples=1):
    images = {} if leaves is None else {"leaves": np.frombuffer(str(leaves).encode(), np.uint8)}
    observation = RawObservation("ALOHA", images, {}, script, np.full(3, state))
    return Job(names or ("pi0",), observation, Options(num_samples=samples))


def until(condition, limit_s=LIMIT_S):
    """Waits for what must become true."""
    end = time.monotonic() + limit_s
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


def held(worker, tmp_path, name="gate", **how):
    """A job that runs, and goes on once the file it hands back is made."""
    gate = tmp_path / name
    stream = worker.infer(job(f"gate={gate}", **how))
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


def test_a_job_is_queued_runs_and_finishes(worker):
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


def test_first_come_first_served_and_everybody_sees_their_place(worker, tmp_path):
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


def test_the_expected_wait_comes_from_jobs_of_the_same_kind(worker, tmp_path):
    how = {"samples": 4}  # as no other job here
    first, gate = held(worker, tmp_path, **how)
    with worker.infer(job("step", **how)) as unforeseen:
        assert next(unforeseen).expected_wait_s is None
    gate.touch()
    answer(first)
    second, gate = held(worker, tmp_path, "second", **how)
    ahead = worker.infer(job("step", **how))
    behind = worker.infer(job("step", **how))
    assert 0 <= next(ahead).expected_wait_s < next(behind).expected_wait_s
    gate.touch()
    for stream in (second, ahead, behind):
        answer(stream)


def test_no_visitor_gets_another_ones_answer(worker):
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


def test_a_full_queue_says_busy_and_when_to_come_again(worker, tmp_path):
    before = worker.status().completed
    first, gate = held(worker, tmp_path)
    *waiting, last = [worker.infer(job("step")) for _ in range(PLACES)]
    with pytest.raises(Busy) as busy:
        worker.infer(job("step"))
    assert busy.value.retry_s >= 1
    assert str(busy.value.retry_s) in str(busy.value)
    last.close()  # which makes a place at once
    waiting.append(worker.infer(job("step")))
    gate.touch()
    for stream in (first, *waiting):
        assert isinstance(answer(stream)[-1], Finished)
    assert worker.status().completed == before + 1 + PLACES


def test_a_visitor_s_short_job_does_not_wait_for_another_s_long_one(worker):
    """In the engine, too, which then goes on with that one."""
    how = {"samples": 2}  # as no other job here
    for owner in "bc":
        answer(worker.infer(job("step", **how), owner=owner))
    long = worker.infer(job("endless", samples=32), owner="a")
    read_until(long, Step)
    for owner in "bcb":
        events = answer(worker.infer(job("step", state=2.0, **how), owner=owner))
        assert isinstance(events[-1], Finished)
        np.testing.assert_array_equal(of(events, Step)[0].actions, np.full(3, 2.0))
    read_until(long, Step)
    long.close()


def test_a_job_that_gave_way_ends_and_is_logged(worker, tmp_path, caplog):
    caplog.set_level(logging.INFO, "playground.serving")
    first, gate = held(worker, tmp_path)
    *waiting, last = [worker.infer(job("step"), owner=owner) for owner in "bbccddeeffgghaaa"]
    waiting.append(worker.infer(job("step"), owner="i"))
    assert "Others came" in answer(last)[-1].message
    assert any('"gave way"' in message for message in caplog.messages)
    gate.touch()
    for stream in (first, *waiting):
        assert isinstance(answer(stream)[-1], Finished)


def test_what_cannot_run_is_refused_before_the_queue(worker):
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


# --- robots -------------------------------------------------------------------------------------


def test_an_urgent_job_waits_for_no_visitor(worker, tmp_path):
    """It runs inside the running job, at its next event, and that one goes on."""
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


def test_both_jobs_of_a_killed_worker_fail_and_urgent_ones_have_places_of_their_own(worker):
    first = worker.infer(job("endless"))
    read_until(first, Step)
    waiting = [worker.infer(job("step")) for _ in range(PLACES)]
    with pytest.raises(Busy):
        worker.infer(job("step"))
    urgent = worker.infer(job("step die", "fast"), urgent=True)
    for stream in (first, urgent):
        assert stream.job_id in answer(stream)[-1].message
    for stream in waiting:
        assert isinstance(answer(stream)[-1], Finished)


# --- leaving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "cancel", "drop"])
def test_a_visitor_who_leaves_frees_the_worker_at_the_next_event(worker, tmp_path, way):
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


def test_a_visitor_who_leaves_the_queue_costs_nothing(worker, tmp_path):
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


def test_a_visitor_who_stops_reading_holds_nobody_up(worker):
    unread = worker.call("flood", Given(100_000))
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)
    left = answer(unread)
    assert len(left) == 1
    assert isinstance(left[0], Failed)


# --- faults -------------------------------------------------------------------------------------


def test_a_failing_policy_fails_alone(worker, caplog):
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


def test_without_memory_for_all_samples_the_first_is_answered(worker):
    pid, before = pid_of(worker), worker.status().exhausted
    events = answer(worker.infer(job("exhaust=1", "pi0", "fast", samples=8)))
    assert of(events, Failed) == []
    assert isinstance(events[-1], Finished)
    for done in of(events, Done):
        (warning,) = done.trace.warnings
        assert "ran out of memory with 8 samples at once: this is the first of them" in warning
    assert [event.policy for event in of(events, Done)] == ["pi0", "fast"]
    assert worker.status().exhausted == before + 2

    (failed,) = of(answer(worker.infer(job("exhaust=0", samples=8))), Failed)
    assert "ran out of memory. Fewer samples" in failed.message
    assert "RESOURCE" not in failed.message
    assert worker.status().exhausted == before + 4  # with all samples, and with one
    assert answer(worker.infer(job("step")))[-2].trace.warnings == pi0_trace().warnings
    assert pid_of(worker) == pid
    assert worker.status().crashes == 0


def test_a_job_is_one_line_of_the_log(worker, caplog):
    """With its id, its times, each policy's stages and what came from caches; nothing private."""
    caplog.set_level("INFO")
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


def test_an_idle_worker_that_is_killed_comes_back(worker):
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker.status().crashes == 1)
    assert isinstance(answer(worker.infer(job("step")))[-1], Finished)
    assert worker.status().crashes == 0  # since the last one done


def test_a_hang_ends_at_the_announced_deadline(worker, caplog):
    pid = pid_of(worker)
    first, second = worker.infer(job("hang", "pi0", "fast")), worker.infer(job("step"))
    assert isinstance(answer(first)[-1], Failed)
    assert isinstance(answer(second)[-1], Finished)
    assert not alive(pid)
    (line,) = [json.loads(r.message) for r in caplog.records if '"lost"' in r.message]
    assert line["jobs"] == [first.job_id]
    assert "hung" in line["reason"]


def test_a_deadline_ends_with_the_run_of_its_policy(worker):
    """The second policy is silent for longer than the first one's last phase might have been."""
    events = answer(worker.infer(job("silent brief", "pi0", "fast")))
    assert [event.policy for event in of(events, Done)] == ["pi0", "fast"]
    assert isinstance(events[-1], Finished)


@only_processes  # until Ray kills one that is stopped 15 s pass; its silence is in the test above
def test_ready_is_the_heartbeat_of_the_loop_that_runs_the_jobs(worker):
    pid = pid_of(worker)
    assert worker.ready()
    stopped = worker.infer(job("brief stop"))  # alive, its connection open, and silent
    until(lambda: not worker.ready())
    assert isinstance(answer(stopped)[-1], Failed)
    until(worker.ready)
    assert pid_of(worker) != pid
    until(lambda: not alive(pid))


def test_three_crashes_without_a_completed_job_between_and_it_stays_down(start):
    worker = start()
    scripts = ["die", "die", "refuse", "step", "die", "die"]
    ends = [answer(worker.infer(job(script)))[-1] for script in scripts]
    assert [type(end) for end in ends] == [Failed, Failed, Finished, Finished, Failed, Failed]
    assert all("quote job" in end.message for end in ends if isinstance(end, Failed))
    assert worker.live()

    third, late = worker.infer(job("die")), worker.infer(job("step"))
    assert "quote job" in answer(third)[-1].message
    assert "crashed 3 times" in answer(late)[-1].message
    with pytest.raises(Down, match="crashed 3 times"):
        worker.infer(job("step"))
    assert not worker.live()
    assert not worker.ready()
    assert worker.status().state == "down"


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


def test_a_factory_that_breaks_or_hangs_is_tried_three_times(start, tmp_path):
    tries = tmp_path / "tries"
    worker = start("broken", {"tries": str(tries)})
    with pytest.raises(Down, match="crashed 3 times"):
        worker.metadata(LIMIT_S)
    assert tries.read_text() == "raised\nhung\nraised\n"


# --- the process and its end --------------------------------------------------------------------

PAGE = """
import signal, sys, threading
from playground.serving import health
from tests import test_worker as t
from tests.support.scripted import Given

def say(*words):  # once a signal means the end
    t.until(lambda: signal.getsignal(signal.SIGTERM) is not before)
    print(*words, flush=True)

_, gate, kind, factory = sys.argv
with t.ENGINES[kind]() as make:
    worker = t.new_worker(make, factory)
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
def page(engines, kind, tmp_path):
    """Starts a program that runs a worker of this factory with one job held by the gate; gives the
    program and the gate."""
    gate = tmp_path / "gate"
    with contextlib.ExitStack() as held:

        def page(factory):
            command = [sys.executable, "-c", PAGE, str(gate), kind, factory]
            program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            held.enter_context(program)
            held.callback(program.kill)
            return program, gate

        yield page


def test_sigterm_drains_and_exits_with_0_and_only_the_worker_imports_jax(page):
    program, gate = page("with_jax")
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
    program, _ = page("policies")
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


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_large_arrays_go_through_the_worker_and_back(worker):
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
        worker.call("echo", Given({"arrays": arrays, "of": (1, "two", None)})), Result
    ).value
    assert value["of"] == (1, "two", None)
    assert list(value["arrays"]) == list(arrays)
    for name, array in arrays.items():
        assert same_bits(value["arrays"][name], array), name


# Engines begin their streams as the cluster is left, one of them ended just before.
LEAVES = """
import contextlib, socket, threading
from playground.serving.ray import Cluster
with Cluster.join(replicas=2) as cluster:
    links = [cluster.start(socket.socketpair()[0]) for _ in range(3)]
    links[0].end()
print([thread.name for thread in threading.enumerate()])
import ray
with contextlib.suppress(ray.exceptions.RayError):
    ray.put("asked late")
print(ray.is_initialized())
"""


@only_ray
@pytest.mark.usefixtures("engines")
def test_who_leaves_a_cluster_stays_out_of_it():
    """Ray ends a process that is still in a cluster when the cluster ends."""
    command = [sys.executable, "-c", LEAVES]
    left = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert left.stdout.splitlines() == ["['MainThread']", "False"]


# --- real policies ------------------------------------------------------------------------------


@only_ray
def test_two_replicas_hold_one_policy_each_and_one_of_them_dies(start, tmp_path):
    """Weights are loaded where they are asked for, in place of the others; later jobs go there."""
    arguments = {"policies": [PI0, FAST], "most": 1}
    worker = start("playground.checkpoints.load:shelf", arguments, replicas=(2, 2))
    assert set(worker.metadata()) == {PI0, FAST}
    until(lambda: worker.status().replicas == 2)
    (home, held), loaded = asked_where(worker, FAST)
    assert (held, loaded[0]) == ((FAST,), FAST)  # in place of pi0, with which both began
    (other, held), loaded = asked_where(worker, PI0)
    assert (held, loaded) == ((PI0,), [])
    assert other != home

    open_ = tmp_path / "open"
    lost, kept = (worker.call("gate", Given(str(open_), (name,))) for name in (FAST, PI0))
    assert [read_until(stream, Result).value for stream in (lost, kept)] == [home, other]
    os.kill(home, signal.SIGKILL)
    failed = answer(lost)[-1]
    assert isinstance(failed, Failed)
    assert lost.job_id in failed.message
    open_.touch()
    assert isinstance(answer(kept)[-1], Finished)
    until(lambda: worker.status().replicas == 2)
