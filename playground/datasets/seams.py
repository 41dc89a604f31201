"""Where one chunk takes over from another: how far the command jumps, with and without real-time
chunking.

H horizon, D the robot's action dimensions, n frames of an episode.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Jump:
    """By dimension [D]: change: the command after the seam less the one before it, in the robot's
    units; steps: its size in typical steps, NaN where the recording never moved."""

    change: np.ndarray
    steps: np.ndarray

    @property
    def largest(self) -> int:
        """The dimension that jumps furthest, in typical steps where it has any."""
        known = np.nan_to_num(self.steps, nan=-1.0)
        return int(known.argmax()) if (known >= 0).any() else int(np.abs(self.change).argmax())


def typical_step(recorded: np.ndarray) -> np.ndarray:
    """The median size of a recorded action's change from one step to the next while that dimension
    moves: float64 [D] of recorded [n, D], NaN for a dimension that never does."""
    moves = np.abs(np.diff(np.asarray(recorded, np.float64), axis=0))
    span = np.ptp(recorded, axis=0)
    # What rounding leaves of a joint at rest is no movement.
    moves = np.where(moves > 1e-4 * np.where(span > 0, span, np.inf), moves, np.nan)
    found = np.full(moves.shape[1], np.nan)
    for i in np.flatnonzero(~np.isnan(moves).all(axis=0)):
        found[i] = np.nanmedian(moves[:, i])
    return found


def jump(old: np.ndarray, new: np.ndarray, since: int, delay: int, typical: np.ndarray) -> Jump:
    """What the robot has to change at once where it goes over from `old` to `new` [H, D].

    since: control steps from the question that `old` answers to that of `new`; delay: steps until
    the answer is there, meanwhile `old` goes on; typical: as `typical_step` has it. `new` is joined
    at what it planned for this step, its row `delay`; the row before is `old`'s.
    """
    change = np.asarray(new[delay], np.float64) - old[since + delay - 1]
    return Jump(change, np.abs(change) / typical)
