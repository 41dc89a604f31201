"""The statistics of a dataset's own rows, in the terms of a policy: what its norm stats would be.

LeRobot's `meta/stats.json` holds quantiles too, but those of a dataset of several episodes are the
averages of the episodes' quantiles; `aggregation_note` says how far off they are.
"""

from collections.abc import Iterable

import numpy as np

from playground.datasets.lerobot import Dataset, Episode
from playground.datasets.matching import Match
from playground.robots import transforms
from playground.robots.norm_stats import RunningStats
from playground.robots.robot import Robot
from playground.trace import PolicyInfo, Stats


class OwnStats:
    """Statistics that grow by one episode at a time, so that one is in memory.

    state, actions: in the model's convention (offsets from the state at the chunk's start, where
    the policy predicts such, over all steps of the horizon), as openpi computes norm stats;
    rows: the recorded columns as they are, by feature.
    """

    def __init__(self, info: PolicyInfo, robot: Robot, match: Match):
        self._info, self._robot, self._match = info, robot, match
        self._parts = {"state": RunningStats(), "actions": RunningStats()}
        self._rows = {match.state.feature: RunningStats(), match.actions.feature: RunningStats()}
        self.episodes = 0

    def add(self, episode: Episode) -> None:
        states, actions = self._match.states(episode), self._match.recorded(episode)
        self._parts["state"].update(self._robot.state_to_model(states))
        self._parts["actions"].update(self._targets(states, actions))
        for feature, running in self._rows.items():
            running.update(episode.values[feature])
        self.episodes += 1

    def _targets(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """What the model is to predict: [n, H, D], or [n, D] where no offsets are."""
        actions = self._robot.actions_to_model(actions)
        if not self._robot.offsets:
            return actions
        steps = np.arange(len(actions))[:, None] + np.arange(self._info.horizon)
        chunks = actions[np.minimum(steps, len(actions) - 1)]
        states = self._robot.state_to_model(states)
        return transforms.to_offsets(chunks, states, self._robot.offsets)

    def stats(self) -> dict[str, Stats]:
        """By part ("state", "actions"); raises ValueError before there are two rows."""
        return {part: running.stats() for part, running in self._parts.items()}

    def row_stats(self) -> dict[str, Stats]:
        """Of the recorded columns as they are, by feature."""
        return {feature: running.stats() for feature, running in self._rows.items()}


def own_stats(
    dataset: Dataset, info: PolicyInfo, robot: Robot, match: Match, episodes: Iterable[int]
) -> OwnStats:
    """Of the episodes named."""
    found = OwnStats(info, robot, match)
    for index in episodes:
        found.add(dataset.episode(index))
    return found


def aggregation_note(dataset: Dataset, own: OwnStats) -> str:
    """How far the dataset's recorded q01 and q99 are from those of its rows; "" where it brings no
    quantiles, or they are the same (within 1 % of the range). Only of use over all episodes."""
    try:
        recorded = dataset.recorded_stats()
    except ValueError:
        return ""
    worst = (0.0, "", "", 0.0, 0.0)
    for feature, stats in own.row_stats().items():
        given = recorded.get(feature, {})
        if "q01" not in given or "q99" not in given:
            continue
        low, high = np.array(stats.q01), np.array(stats.q99)
        span = np.where(high > low, high - low, np.inf)
        for name, ours in (("q01", low), ("q99", high)):
            apart = np.abs(given[name] - ours) / span
            i = int(apart.argmax())
            worst = max(worst, (float(apart[i]), feature, name, float(given[name][i]), ours[i]))
    share, feature, name, theirs, ours = worst
    if share <= 0.01:
        return ""
    return (
        f"The dataset's own {name} of {feature} is {theirs:.3g} in one dimension where that of its "
        f"rows is {ours:.3g}, off by {100 * share:.0f} % of the range: LeRobot averages the "
        "quantiles of the episodes. A policy normalised by them is not normalised by the data."
    )
