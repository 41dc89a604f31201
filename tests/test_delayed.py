"""Chunks that come late, at the real table: which step of which chunk is executed when."""

import numpy as np
import pytest

from playground.tabletop import delayed
from playground.tabletop.delayed import Held, rollout
from playground.tabletop.scene import HOME, Table, random_scene
from playground.tabletop.tasks import Task
from playground.tools.delays import pairs_of

TASK, HORIZON, EXECUTE = Task("touch", "red", "touch the {} cube"), 50, 20


class Numbered:
    """Answers whose first joint says which chunk and which of its steps it is; the arms stay."""

    def __init__(self):
        self.held: list[Held | None] = []

    def __call__(self, raw, held):
        chunk = np.tile(HOME, (HORIZON, 1))
        chunk[:, 0] = 0.01 * (len(self.held) + 1) + 1e-4 * np.arange(HORIZON)
        self.held.append(held)
        return chunk


def executed(way, delay):
    """(the rollout, the answers, of each step (chunk from 1, its step); (0, 0) before any)."""
    ask = Numbered()
    found = rollout(Table(random_scene(3)), TASK, ask, way, delay, EXECUTE)
    codes = np.round(found.commands[:, 0] * 1e4).astype(int)
    numbers = [(c // 100, c % 100) if c >= 100 else (0, 0) for c in codes.tolist()]
    return found, ask, numbers


def test_waiting_holds_the_last_command():
    found, _, steps = executed("wait", 5)
    assert steps[:5] == [(0, 0)] * 5
    assert steps[5:25] == [(1, i) for i in range(20)]
    assert steps[25:30] == [(1, 19)] * 5
    assert steps[30:50] == [(2, i) for i in range(20)]
    assert found.seams[0] == 30


def test_switching_goes_on_and_joins_where_the_new_chunk_is():
    found, ask, steps = executed("switch", 5)
    assert steps[:5] == [(0, 0)] * 5
    assert steps[5:30] == [(1, i) for i in range(25)]
    assert steps[30:50] == [(2, i) for i in range(5, 25)]
    assert found.seams[:2] == (30, 50)
    assert not any(ask.held)


@pytest.mark.parametrize("delay", [0, 20])
def test_what_a_new_chunk_is_held_to_is_what_will_be_executed(delay):
    """Also where an answer comes in the very step in which the next is asked for."""
    _, ask, steps = executed("rtc", delay)
    asked_at = [0, *range(delay + EXECUTE, len(steps), EXECUTE)]
    assert ask.held[0] is None
    for step, held in zip(asked_at[1:4], ask.held[1:4], strict=True):
        assert held.chunk.shape == (HORIZON, 14)
        codes = np.round(held.chunk[:, 0] * 1e4).astype(int)
        coming = [100 * chunk + at for chunk, at in steps[step : step + delay]]
        np.testing.assert_array_equal(codes[:delay], coming)
        last = codes[held.overlap - 1]
        assert last % 100 == HORIZON - 1
        assert (codes[held.overlap :] == last).all()


def test_without_delay_waiting_and_switching_are_the_same():
    first, second = (executed(way, 0)[0] for way in ("wait", "switch"))
    np.testing.assert_array_equal(first.commands, second.commands)


def test_an_ensemble_is_the_weighted_mean_of_what_covers_a_step():
    found, _, _ = executed("ensemble", 5)
    rows = [0.01 + 1e-4 * 30, 0.02 + 1e-4 * 10]  # chunks 1 (from 5) and 2 (from 25) at step 35
    expected = np.average(rows, weights=[1, np.exp(-0.01)])
    assert found.commands[35, 0] == pytest.approx(expected)
    rows = [0.02 + 1e-4 * 31, 0.03 + 1e-4 * 11]
    expected = np.average(rows, weights=[1, np.exp(-0.01)])
    assert found.commands[56, 0] == pytest.approx(expected)


def test_figures_of_a_rollout():
    commands = np.zeros((10, 14))
    commands[4:, 0], commands[7:, 3], commands[2:, 6] = 0.1, -0.3, 0.9
    found = delayed.Rollout(None, commands, (4, 7))
    assert found.largest_jump == pytest.approx(0.3)
    assert found.typical_step == 0
    assert found.time_s == pytest.approx(0.2)
    one = np.zeros(12)
    second = np.diff(commands[:, delayed.ANGLES], n=2, axis=0) * 2500
    assert found.roughness == pytest.approx(np.sqrt((second**2).mean()))
    assert one.shape == commands[0, delayed.ANGLES].shape
    with pytest.raises(ValueError, match="delay is 30, execute 20"):
        rollout(Table(random_scene(3)), TASK, Numbered(), "wait", 30, 20)


def test_ways_are_compared_scene_by_scene():
    """Nine scenes where one way alone succeeded against one: McNemar's exact p is 22 / 1024."""
    won = [(True, False)] * 9 + [(False, True)] + [(True, True)] * 5 + [(False, False)] * 3
    rows = [
        {"delay": 5, "way": way, "episode": episode, "success": success}
        for episode, both in enumerate(won)
        for way, success in zip(("rtc", "switch"), both, strict=True)
    ]
    assert pairs_of(rows) == "delay 5: rtc alone 9, switch alone 1, p = 0.021"
