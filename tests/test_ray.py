"""Ray's engines answer as a process does: all of the worker's own tests once more in a real cluster
on this machine, and both bundled policies on two replicas that hold one each."""

import contextlib
import inspect
import os
import signal
import subprocess
import sys

import pytest

from playground.serving.events import Failed, Finished, Result
from playground.serving.ray import Cluster
from tests import test_worker as same
from tests.support.scripted import Given
from tests.test_worker import answer, asked_where, page, read_until, start, until

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

PI0, FAST = "pi0_tabletop", "pi0_fast_tabletop"

# The tests of a worker, or of a program that has one, in their order. But one: until Ray kills a
# stopped process 15 s pass, and what follows when an engine is silent is in the test of a hang too.
_OF_A_WORKER = {fixture.__name__ for fixture in (start, page)}
globals().update(
    {
        name: test
        for name, test in vars(same).items()
        if name.startswith("test_") and _OF_A_WORKER & set(inspect.signature(test).parameters)
    }
)
del test_ready_is_the_heartbeat_of_the_loop_that_runs_the_jobs  # noqa: F821


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """An actor starts more slowly than a process, and real policies load."""
    monkeypatch.setattr(same, "LIMIT_S", 180)


# Ray forks as it starts, which a process in which other tests have loaded JAX had better not do.
_HEAD = """
import sys
from playground.serving.ray import Cluster
with Cluster.join(replicas=2):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def engines_of_a_program():
    """As test_worker's."""
    with Cluster.join(replicas=2) as cluster:
        yield cluster.start


@pytest.fixture(scope="module")
def engines():
    """Of a cluster joined by its address, as on many machines; another process has started it on
    this one."""
    environment = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_AUTH_MODE"] = "disabled"  # who joins by an address has no token
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _HEAD]
    with (
        subprocess.Popen(command, cwd=same.ROOT, env=environment, **pipes) as head,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            patch.setenv("RAY_ADDRESS", head.stdout.readline().strip())
            with engines_of_a_program() as make:
                yield make
        finally:
            head.communicate()


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
