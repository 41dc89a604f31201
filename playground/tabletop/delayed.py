"""Rollouts as on a real robot: while the policy computes, the table goes on for `delay` steps.

Four ways to go from one chunk to the next, all asking once every `execute` steps:

- wait: the arms hold their last command until the new chunk is there, then do it from its start;
- switch: the old chunk goes on meanwhile; the new one is joined at what it planned for this step;
- ensemble: as switch, but commands are averaged over all chunks that cover the step, the older ones
  weighing more (temporal ensembling, ACT, arXiv 2304.13705: exp(-0.01 i), i = 0 for the oldest);
- rtc: as switch, but the new chunk is denoised under guidance towards the old (`models.chunking`).

The first chunk is always done from its start, for nothing is under way before it.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from playground.tabletop.outcome import Outcome
from playground.tabletop.rollout import observe
from playground.tabletop.scene import CONTROL_HZ, Table
from playground.tabletop.tasks import Referee, Task
from playground.trace import RawObservation

Way = Literal["wait", "switch", "ensemble", "rtc"]
WAYS: tuple[Way, ...] = ("wait", "switch", "ensemble", "rtc")
_DECAY = 0.01
# Two grippers among the 14 commands; the others are angles.
ANGLES = np.array([i for i in range(14) if i % 7 != 6])


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What a chunk asked for now is to keep to. chunk float64 [H, 14]: what the chunk under way
    says for the same steps; overlap: for how many of them it really does."""

    chunk: np.ndarray
    overlap: int


# The chunk [H, 14] for an observation; Held only for "rtc", and not for its first chunk.
Ask = Callable[[RawObservation, Held | None], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Rollout:
    """outcome; commands float64 [n, 14], one a control step; seams: the steps at which another
    chunk took over (the first one's start is none)."""

    outcome: Outcome
    commands: np.ndarray
    seams: tuple[int, ...]

    @property
    def time_s(self) -> float:
        return len(self.commands) / CONTROL_HZ

    @property
    def largest_jump(self) -> float:
        """The largest change of a commanded angle from one step to the next at a seam, rad; 0
        without a seam."""
        moves = np.abs(np.diff(self.commands[:, ANGLES], axis=0))
        return max((float(moves[seam - 1].max()) for seam in self.seams), default=0.0)

    @property
    def typical_step(self) -> float:
        """The median over steps of the largest change of a commanded angle, rad."""
        moves = np.abs(np.diff(self.commands[:, ANGLES], axis=0)).max(axis=1)
        return float(np.median(moves)) if len(moves) else 0.0

    @property
    def roughness(self) -> float:
        """Root mean square of the commanded angles' acceleration, rad/s²; smooth is small."""
        second = np.diff(self.commands[:, ANGLES], n=2, axis=0) * CONTROL_HZ**2
        return float(np.sqrt(np.mean(second**2))) if len(second) else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Chunk:
    """from_step: the control step that its first row is for; ready: from which it can be used."""

    from_step: int
    ready: int
    actions: np.ndarray

    def at(self, step: int) -> np.ndarray:
        return self.actions[min(step - self.from_step, len(self.actions) - 1)]


def rollout(table: Table, task: Task, ask: Ask, way: Way, delay: int, execute: int) -> Rollout:
    """One episode until the referee decides.

    delay: control steps that an answer takes; execute: steps from one question to the next (for
    "wait", from an answer to the next question). Raises ValueError for delay > execute.
    """
    if not 0 <= delay <= execute:
        raise ValueError(f"delay is {delay}, execute {execute}; expected 0 <= delay <= execute")
    referee, outcome = Referee(table, task), None
    active: list[_Chunk] = []  # in use, the newest last
    waiting: _Chunk | None = None
    commands: list[np.ndarray] = []
    seams: list[int] = []
    last, ask_at, step = table.state(), 0, 0
    while outcome is None:
        if step == ask_at:
            # An answer that comes in this very step is what the new one follows.
            waiting = _take(active, waiting, step, seams)
            held = _held(active, step) if way == "rtc" else None
            actions = np.asarray(ask(observe(table, task.prompt), held), np.float64)
            ready = step + delay
            from_step = ready if way == "wait" or not active else step
            waiting = _Chunk(from_step, ready, actions)
            ask_at = from_step + execute
        waiting = _take(active, waiting, step, seams)
        still = not active or (way == "wait" and waiting is not None)
        last = last if still else _command(active, step, way)
        commands.append(last)
        table.step(last)
        outcome = referee.watch(table)
        step += 1
    return Rollout(outcome, np.stack(commands), tuple(seams))


def _take(
    active: list[_Chunk], waiting: _Chunk | None, step: int, seams: list[int]
) -> _Chunk | None:
    """Puts a chunk that is ready into use; returns what is still waited for."""
    if waiting is None or step < waiting.ready:
        return waiting
    if active and step:
        seams.append(step)
    active.append(waiting)
    return None


def _command(active: list[_Chunk], step: int, way: Way) -> np.ndarray:
    if way != "ensemble":
        return active[-1].at(step)
    covering = [c for c in active if step < c.from_step + len(c.actions)] or active[-1:]
    weights = np.exp(-_DECAY * np.arange(len(covering)))
    rows = np.stack([chunk.at(step) for chunk in covering])
    return (weights[:, None] * rows).sum(0) / weights.sum()


def _held(active: list[_Chunk], step: int) -> Held | None:
    if not active:
        return None
    done = step - active[-1].from_step
    rest = active[-1].actions[done:]
    missing = len(active[-1].actions) - len(rest)
    return Held(np.concatenate([rest, np.repeat(active[-1].actions[-1:], missing, 0)]), len(rest))
