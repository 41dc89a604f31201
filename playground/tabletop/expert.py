"""The scripted expert: from what is true now to the next second of joint targets.

It knows where the cube is, plans the fingertips' path by inverse kinematics, and forgets: every
chunk starts from the measured state, so that it also says how to go on after a mistake. NumPy
alone, over any leading axes.
"""

import numpy as np

from playground.tabletop.kinematics import ARMS, solve, tip_positions
from playground.tabletop.scene import CUBE, HOME

HORIZON = 50
PITCH = 1.2
# A reach of this length takes _REACH_STEPS; shorter ones less, with the square root.
_REACH, _REACH_STEPS, _LEAST_STEPS = 0.28, 40.0, 4.0
_HOVER = 0.12
_LIFT = 0.15
_OPEN_STEPS, _CLOSE_STEPS, _LIFT_STEPS = 12.0, 8.0, 28.0
# A carried cube passes this far above where it is to stand, and is let go a little above it.
_CARRY, _DROP = 0.07, 0.004
# A cube is let go by opening this far; then the hand rises clear of it.
_RELEASE_STEPS, _RELEASED = 8.0, 0.95
_CLEAR, _CLEAR_STEPS, _NEAR = 0.09, 16.0, 0.07
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


def _travel(start: np.ndarray, goal: np.ndarray, over: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """A way up to the height `over` [..., 1], across and down, from start to goal [..., 3] in
    `reach` [..., 1] steps: [..., HORIZON, 3]."""
    steps = np.arange(1, HORIZON + 1)
    across = ease(steps / (0.8 * reach))[..., None]
    low, high = start[..., 2:], goal[..., 2:]
    height = low + (over - low) * ease(steps / (0.4 * reach))
    height = height + (high - over) * ease((steps - 0.4 * reach) / (0.6 * reach))
    path = start[..., None, :2] + (goal - start)[..., None, :2] * across
    return np.concatenate([path, height[..., None]], axis=-1)


def _follow(arm: str, joints: np.ndarray, path: np.ndarray, fading: np.ndarray) -> np.ndarray:
    """Joint targets [..., HORIZON, 6] along a path of the fingertips. What the joints [..., 6]
    differ from the planned posture now fades out in `fading` [..., 1] steps."""
    odd = joints - solve(arm, tip_positions(arm, joints), PITCH)
    fade = 1 - ease(np.arange(1, HORIZON + 1) / fading)[..., None]
    return solve(arm, path, PITCH) + odd[..., None, :] * fade


def _serve(
    arm: str,
    state: np.ndarray,
    cube: np.ndarray,
    held: np.ndarray,
    pick: np.ndarray,
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

    low = start[..., 2:]
    over = low + np.clip((aside - 0.01) / 0.05, 0, 1) * (np.maximum(low, _HOVER) - low)
    path = _travel(start, goal, over, reach)
    closing = np.where(held[..., None], 0.0, reach + 1)
    lifting = np.where(held[..., None], 0.0, closing + _CLOSE_STEPS)
    lift = ease((steps - lifting) / _LIFT_STEPS) * np.where(pick, 1.0, 0.0)[..., None]
    path[..., 2] += (_LIFT - goal[..., 2:]) * lift
    targets = _follow(arm, joints, path, np.maximum(reach, _OPEN_STEPS))

    opened = np.clip((distance - 0.012) / 0.02, 0, 1) * (1 - opening)
    closed = ease((steps - closing) / _CLOSE_STEPS)
    to_pick = (opening + opened * ease(steps / _OPEN_STEPS)) * (1 - closed)
    to_touch = opening * (1 - ease(steps / _OPEN_STEPS))
    gripper = np.where(pick[..., None], to_pick, to_touch)
    return np.concatenate([targets, gripper[..., None]], axis=-1)


def _carry(arm: str, state: np.ndarray, cube: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The arm that holds the cube brings it to its place [..., 3], lets go and rises."""
    steps = np.arange(1, HORIZON + 1)
    joints, opening = state[..., :6], state[..., 6:]
    start = tip_positions(arm, joints)
    goal = start + place - cube + [0.0, 0.0, _DROP]
    distance = np.linalg.norm(goal - start, axis=-1)[..., None]
    aside = np.linalg.norm((goal - start)[..., :2], axis=-1)[..., None]
    reach = _duration(distance, _REACH)
    low = start[..., 2:]
    carried = np.maximum(low, goal[..., 2:] + _CARRY)
    over = low + np.clip((aside - 0.01) / 0.05, 0, 1) * (carried - low)
    path = _travel(start, goal, over, reach)
    path[..., 2] += _CLEAR * ease((steps - reach - _RELEASE_STEPS) / _CLEAR_STEPS)
    targets = _follow(arm, joints, path, np.maximum(reach, _OPEN_STEPS))
    closed = opening * (1 - ease(steps / _CLOSE_STEPS))
    gripper = closed + (_RELEASED - closed) * ease((steps - reach) / _RELEASE_STEPS)
    return np.concatenate([targets, gripper[..., None]], axis=-1)


def _leave(arm: str, state: np.ndarray, cube: np.ndarray, home: np.ndarray) -> np.ndarray:
    """Once the cube stands where it should, a hand that is still near it opens and rises, then
    goes home."""
    steps = np.arange(1, HORIZON + 1)
    joints, opening = state[..., :6], state[..., 6:]
    start = tip_positions(arm, joints)
    near = np.linalg.norm((cube - start)[..., :2], axis=-1)[..., None] < _NEAR
    rise = np.where(near, np.clip(cube[..., 2:] + _CLEAR - start[..., 2:], 0, _CLEAR), 0.0)
    opens = (rise > 0) & (opening < _RELEASED - 0.1)
    rising = np.where(opens, _RELEASE_STEPS, 0.0)
    risen = rising + np.where(rise > 0, _CLEAR_STEPS, 0.0)
    path = np.repeat(start[..., None, :], HORIZON, axis=-2)
    path[..., 2] += rise * ease((steps - rising) / _CLEAR_STEPS)
    up = _follow(arm, joints, path, np.full_like(rise, np.inf))
    far = np.abs(state - home)[..., :6].max(-1)[..., None]
    share = ease((steps - risen) / _duration(far, 0.8))
    targets = up + (home[:6] - up) * share[..., None]
    opened = opening + np.where(opens, _RELEASED - opening, 0) * ease(steps / _RELEASE_STEPS)
    gripper = opened + (home[6] - opened) * share
    return np.concatenate([targets, gripper[..., None]], axis=-1)


def chunk(
    state: np.ndarray,
    cube: np.ndarray,
    holder: np.ndarray,
    pick: np.ndarray,
    place: np.ndarray | None = None,
    placed: np.ndarray | None = None,
) -> np.ndarray:
    """The next HORIZON joint targets, float64 [..., HORIZON, 14].

    state: [..., 14], measured
    cube: [..., 3], the named cube's centre
    holder: int [...], which arm holds it (0 left, 1 right, -1 none)
    pick: bool [...], pick up rather than touch
    place: [..., 3], where the cube's centre is to be put; NaN (or None) for touch and pick
    placed: bool [...], whether it is there already; needed where there is a place
    """
    state, cube = np.asarray(state, np.float64), np.asarray(cube, np.float64)
    holder, pick = np.asarray(holder), np.asarray(pick)
    server = np.where(holder >= 0, holder, np.where(cube[..., 0] < 0, 0, 1))
    putting = None
    if place is not None:
        assert placed is not None, "a place comes with whether the cube is there"
        putting = place, placed, np.all(np.isfinite(place), axis=-1)
    parts = []
    for i, arm in enumerate(ARMS):
        part, home = state[..., 7 * i : 7 * i + 7], HOME[7 * i : 7 * i + 7]
        held = holder == i
        serve = _serve(arm, part, cube, held, pick)
        retreat = _retreat(part, home)
        if putting is not None:
            goal, arrived, put = putting
            to = np.where(put[..., None], goal, cube)
            carry = _carry(arm, part, cube, to)
            serve = np.where((put & held)[..., None, None], carry, serve)
            done = put & arrived & (holder < 0)
            leave = _leave(arm, part, cube, home)
            serve = np.where(done[..., None, None], leave, serve)
            retreat = np.where(done[..., None, None], leave, retreat)
        parts.append(np.where((server == i)[..., None, None], serve, retreat))
    return np.concatenate(parts, axis=-1)
