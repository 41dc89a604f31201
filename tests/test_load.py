"""The load test, small: the command works, and what it tells of holds."""

import dataclasses

import pytest

from tests import load
from tests.load import Answer, Fault, Faults, Large, Level, Stage


@pytest.mark.slow
def test_few_visitors_and_every_fault():
    """But the hang, which takes longest and ends as the kill does. Whether all was in time is for
    the command to say, on a quiet machine."""
    faults = [fault for fault in load.FAULTS if fault is not Faults.hung]
    found = list(load.visit([1, 3], 2.0, places=4, questions=6, faults=faults))
    stages = [one for one in found if isinstance(one, Stage)]
    assert [stage.visitors for stage in stages] == [1, 3]
    for stage in stages:
        assert stage.asked >= stage.visitors
        assert load.held(stage), stage
    outcomes = [one for one in found if isinstance(one, Fault)]
    assert len(outcomes) == len(faults) == 8
    assert [outcome for outcome in outcomes if not outcome.held] == []


def test_who_came_later_and_was_answered_before_has_overtaken():
    def answered(sent, waiting, back):
        return Answer(0, sent, waiting, back, True)

    line = [answered(0, 0.1, 5), answered(3, 3.1, 6), answered(3.2, 3.3, 5.5), answered(6, 6.1, 7)]
    assert load.overtaken(line) == 0  # the second and the third came at the same time
    assert load.overtaken([*line, answered(1.2, 1.3, 4.9)]) == 1


def test_visitors_cost_each_other_nothing():
    """One in a hundred lost, wrong or overtaken is one too many, and so is a twentieth of the
    answers a second that one visitor gets."""
    well = Stage(
        visitors=8, asked=100, right=100, wrong=0, lost=0, busy=3, overtaken=0, rate=9.6, at_work=1,
        page_cpu_s=0.1, worker_cpu_s=0.1, median_s=1, p95_s=2, slowest_s=2, page_mb=(1,) * 3,
        worker_mb=(1,) * 3,
    )  # fmt: skip
    assert load.held(well)
    assert load.held(well, alone=10.0)
    assert not load.held(well, alone=10.2)
    assert load.row(well, 10.2).startswith("slow ")
    for one in ({"wrong": 1}, {"lost": 1}, {}):
        assert not load.held(dataclasses.replace(well, right=99, **one))
    assert not load.held(dataclasses.replace(well, overtaken=1))
    assert load.held(dataclasses.replace(well, overtaken=1, attacked=True))
    assert not load.held(dataclasses.replace(well, overtaken=2, attacked=True))


def test_memory_that_grows_on_after_the_first_half_is_not_level():
    assert load.held(Level(600, (191, 282, 348, 349, 350)))
    assert not load.held(Level(600, (191, 282, 348, 380, 412)))


def test_memory_beyond_a_gigabyte_is_not_bounded():
    assert load.held(Large(36, (400, 700, 800, 800, 800)))
    assert not load.held(Large(36, (400, 1700, 800, 800, 800)))
