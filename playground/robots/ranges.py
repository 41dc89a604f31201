"""What lies beyond a policy's training data, in sentences: states that it never met, actions that a
robot's limits may cut.
"""

import numpy as np

from playground.robots import transforms
from playground.robots.norm_stats import BOUNDS, FAR, SHARES
from playground.robots.robot import Robot, format_state
from playground.trace import Method, PolicyInfo, Stats


def far_states(robot: Robot, info: PolicyInfo, state: np.ndarray) -> list[str]:
    """Dimensions of a state [S] in the robot's units that lie beyond the training data: degrees in
    place of radians, for example. robot: with the conventions of this policy."""
    bounds = _bounds(info.state_stats, info.method("state"))
    if bounds is None:
        return []
    low, high, margin, share = bounds
    counted = robot.state_to_model(np.asarray(state, np.float64))
    found = []
    for i, dimension in enumerate(info.state):
        if not low[i] - margin[i] <= counted[i] <= high[i] + margin[i]:
            shown = format_state(dimension, state[i], counted[i])
            found.append(
                f"{dimension.name} is {shown}, outside the {low[i]:.3g} to {high[i]:.3g} of "
                f"{share}the training data."
            )
    return found


def far_actions(
    robot: Robot, info: PolicyInfo, actions: np.ndarray, state: np.ndarray
) -> list[str]:
    """Names of the dimensions in which a chunk [H, D] in the robot's units goes beyond the training
    data. state: [S], at its start."""
    bounds = _bounds(info.action_stats, info.method("actions"))
    if bounds is None or actions.shape[-1] != len(info.actions):
        return []
    low, high, margin, _ = bounds
    counted = robot.actions_to_model(np.asarray(actions, np.float64))
    if robot.offsets:
        counted = transforms.to_offsets(counted, robot.state_to_model(state), robot.offsets)
    beyond = np.any((counted < low - margin) | (counted > high + margin), axis=0)
    return [d.name for d, far in zip(info.actions, beyond, strict=True) if far]


def _bounds(stats: Stats | None, method: Method):
    """(low, high, margin, share of the data between); None without stats to judge by."""
    if stats is None or method == "identity":
        return None
    if stats.q01 is None or stats.q99 is None:
        reach = FAR * np.array(stats.std)
        low, high = np.array(stats.mean) - reach, np.array(stats.mean) + reach
        slack, share = np.zeros(len(low)), f"{FAR:g} standard deviations around the mean of "
    else:
        low, high = np.array(stats.q01), np.array(stats.q99)
        slack, share = 0.1 * (high - low), SHARES[BOUNDS[method][0]]
    # Constant dimensions of the training data carry no scale to judge by.
    return low, high, slack + 1e-3, share
