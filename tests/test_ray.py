"""Ray's engines answer as a process does: the worker's own tests once more in a real cluster on
this machine, and both bundled policies on two replicas that hold one each."""

import os
import signal

import pytest

from playground.serving.events import Failed, Finished, Phase, Result
from playground.serving.ray import Cluster
from playground.serving.worker import Worker
from tests import test_worker as same
from tests.support.visitor import FAST, PI0
from tests.test_worker import Given, answer, asked_where, read_until, until

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray starts its processes from this one, in which other tests have imported JAX.
    pytest.mark.filterwarnings("ignore:os.fork"),
]

test_order = same.test_first_come_first_served_and_everybody_sees_their_place
test_full_queue = same.test_a_full_queue_says_busy_and_when_to_come_again
test_urgent = same.test_an_urgent_job_waits_for_no_visitor
test_leaving = same.test_a_visitor_who_leaves_frees_the_worker_at_the_next_event
test_flood = same.test_a_visitor_who_stops_reading_holds_nobody_up
test_fault = same.test_a_failing_policy_fails_alone
test_crash = same.test_a_killed_worker_comes_back_and_the_queue_stands
test_hang = same.test_a_hang_ends_at_the_announced_deadline
test_refusal = same.test_a_factory_that_refuses_is_not_asked_again
test_closing = same.test_closing_turns_new_jobs_away_and_gives_up_what_takes_too_long
test_large = same.test_large_arrays_go_through_the_worker_and_back
test_two_replicas = (
    same.test_two_replicas_run_two_jobs_at_once_and_the_death_of_one_costs_only_its_own
)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """An actor starts more slowly than a process, and real policies load."""
    monkeypatch.setattr(same, "LIMIT_S", 180)


@pytest.fixture(scope="module")
def cluster():
    with Cluster.join(replicas=2) as cluster:
        yield cluster


@pytest.fixture
def start(cluster):
    """As test_worker's."""
    workers = []

    def start(factory="policies", arguments=None, queue_size=16, replicas=(1, 1)):
        named = factory if ":" in factory else f"{same.__name__}:{factory}"
        how = {"kinds": KINDS, "queue_size": queue_size, "replicas": replicas}
        workers.append(Worker(named, arguments or {}, start=cluster.start, **how))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close(drain_s=0.0)


def gate(policies, request):
    """Says where it is, and waits for a file."""
    yield Phase(request.policies[0], "at the gate", 60.0)
    yield Result(os.getpid())
    same.wait_for_file(request.value)


KINDS = {**same.KINDS, "gate": f"{__name__}:gate"}


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
