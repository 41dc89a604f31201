"""The scripted expert: from what is true now to the next second of joint targets.

It knows where the cube is, plans the fingertips' path by inverse kinematics, and forgets: every
chunk starts from the measured state, so that it also says how to go on after a mistake. NumPy
alone, over any leading axes.
"""

import numpy as np

from playground.tabletop.kinematics import ARMS, solve, tip_positions
from playground.tabletop.scene import CUBE, HOME

HORIZON = 50
PITCH = 1.4
# A reach of this length takes _REACH_STEPS; shorter ones less, with the square root.
_REACH, _REACH_STEPS, _LEAST_STEPS = 0.28, 40.0, 4.0
_HOVER = 0.12
_LIFT = 0.15
_OPEN_STEPS, _CLOSE_STEPS, _LIFT_STEPS = 12.0, 8.0, 28.0
# The closed fingers' ends lie 9 mm under the tip point: this aims 17 mm into the cube, so that a
# learner who ends a centimetre too high still touches it.
_TOUCH_HEIGHT = CUBE / 2 - 0.008


def ease(u: np.ndarray) -> np.ndarray:
    """The minimum-jerk profile from 0 at u <= 0 to 1 at u >= 1."""
    u = np.clip(u, 0.0, 1.0)
    return u**3 * (10 - 15 * u + 6 * u**2)


def _duration(distance: np.ndarray, full: float) -> np.ndarray:
    return _LEAST_STEPS + _REACH_STEPS * np.sqrt(np.clip(distance / full, 0.0, 1.0))


def _retreat(state: np.ndarray, home: np.ndarray) -> np.ndarray:
    """The idle arm goes home: [..., 7] to [..., HORIZON, 7]."""
    far = np.abs(state - home)[..., :6].max(-1)[..., None]
    share = ease(np.arange(1, HORIZON + 1) / _duration(far, 0.8))[..., None]
    return state[..., None, :] + (home - state)[..., None, :] * share


def _serve(
    arm: str, state: np.ndarray, cube: np.ndarray, held: np.ndarray, pick: np.ndarray
) -> np.ndarray:
    """The serving arm touches or picks: state [..., 7], cube [..., 3] to [..., HORIZON, 7]."""
    steps = np.arange(1, HORIZON + 1)
    joints, opening = state[..., :6], state[..., 6:]
    start = tip_positions(arm, joints)
    goal = cube.copy()
    goal[..., 2] = np.where(pick, np.maximum(cube[..., 2], CUBE / 2), cube[..., 2] + _TOUCH_HEIGHT)
    distance = np.linalg.norm(goal - start, axis=-1)[..., None]
    aside = np.linalg.norm((goal - start)[..., :2], axis=-1)[..., None]
    # Held: nothing is left to reach, the lift begins at once.
    reach = np.where(held[..., None], 0.5, _duration(distance, _REACH))  # [..., 1]

    across = ease(steps / (0.8 * reach))[..., None]
    low, high = start[..., 2:], goal[..., 2:]
    via = low + np.clip((aside - 0.01) / 0.05, 0, 1) * (np.maximum(low, _HOVER) - low)
    height = low + (via - low) * ease(steps / (0.4 * reach))
    height = height + (high - via) * ease((steps - 0.4 * reach) / (0.6 * reach))
    closing = np.where(held[..., None], 0.0, reach + 1)
    lifting = np.where(held[..., None], 0.0, closing + _CLOSE_STEPS)
    lift = ease((steps - lifting) / _LIFT_STEPS) * np.where(pick, 1.0, 0.0)[..., None]
    height = height + (_LIFT - high) * lift
    path = start[..., None, :2] + (goal - start)[..., None, :2] * across
    path = np.concatenate([path, height[..., None]], axis=-1)

    # What the start differs from the planned posture fades out along the way.
    odd = joints - solve(arm, start, PITCH)
    fade = 1 - ease(steps / np.maximum(reach, _OPEN_STEPS))[..., None]
    targets = solve(arm, path, PITCH) + odd[..., None, :] * fade

    opened = np.clip((distance - 0.012) / 0.02, 0, 1) * (1 - opening)
    closed = ease((steps - closing) / _CLOSE_STEPS)
    to_pick = (opening + opened * ease(steps / _OPEN_STEPS)) * (1 - closed)
    to_touch = opening * (1 - ease(steps / _OPEN_STEPS))
    gripper = np.where(pick[..., None], to_pick, to_touch)
    return np.concatenate([targets, gripper[..., None]], axis=-1)


def chunk(state: np.ndarray, cube: np.ndarray, holder: np.ndarray, pick: np.ndarray) -> np.ndarray:
    """The next HORIZON joint targets, float64 [..., HORIZON, 14].

    state [..., 14] measured; cube [..., 3] the named cube's centre; holder int [...], which arm
    holds it (0 left, 1 right, -1 none); pick bool [...], pick up rather than touch.
    """
    state, cube = np.asarray(state, np.float64), np.asarray(cube, np.float64)
    holder, pick = np.asarray(holder), np.asarray(pick)
    server = np.where(holder >= 0, holder, np.where(cube[..., 0] < 0, 0, 1))
    parts = []
    for i, arm in enumerate(ARMS):
        part = state[..., 7 * i : 7 * i + 7]
        serve = _serve(arm, part, cube, holder == i, pick)
        retreat = _retreat(part, HOME[7 * i : 7 * i + 7])
        parts.append(np.where((server == i)[..., None, None], serve, retreat))
    return np.concatenate(parts, axis=-1)
