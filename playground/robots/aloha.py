"""ALOHA in Physical Intelligence's own convention: joint signs and gripper scales.

Source: openpi's `policies/aloha_policy.py`.
"""

import numpy as np

_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
_GRIPPERS = [6, 13]
# Metres between ALOHA's fingers, its gripper's joint angles (radians), and the angles that 0 and 1
# mean in the base model's training data.
_FINGER_RANGE = (0.01844, 0.05800)
_JOINT_RANGE = (-0.6213, 1.4910)
_PI_RANGE = (0.5476, 1.6296)
_ARM_LENGTH, _HORN_RADIUS = 0.036, 0.022


def state_to_pi(state: np.ndarray) -> np.ndarray:
    """State [..., 14], the robot's to the policy's."""
    state = _check(state) * _SIGNS
    fingers = _stretch(state[..., _GRIPPERS], _FINGER_RANGE)
    # The crank that moves the fingers: law of cosines for the horn's angle.
    sine = (_HORN_RADIUS**2 + fingers**2 - _ARM_LENGTH**2) / (2 * _HORN_RADIUS * fingers)
    state[..., _GRIPPERS] = _shrink(np.arcsin(np.clip(sine, -1, 1)), _PI_RANGE)
    return state


def actions_from_pi(actions: np.ndarray) -> np.ndarray:
    """Actions [..., 14], the policy's to the robot's."""
    # PARITY: an action's gripper is only shifted by the lower end of _PI_RANGE, not stretched over
    # it, so this is not the inverse of the state's map; the published weights are used this way.
    actions = _check(actions) * _SIGNS
    actions[..., _GRIPPERS] = _shrink(actions[..., _GRIPPERS] + _PI_RANGE[0], _JOINT_RANGE)
    return actions


def actions_to_pi(actions: np.ndarray) -> np.ndarray:
    """Actions [..., 14], the robot's to the policy's."""
    actions = _check(actions) * _SIGNS
    actions[..., _GRIPPERS] = _stretch(actions[..., _GRIPPERS], _JOINT_RANGE) - _PI_RANGE[0]
    return actions


def _check(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape[-1:] != _SIGNS.shape:
        raise ValueError(f"ALOHA has 14 dimensions, got {list(values.shape)}")
    return values


def _stretch(share, bounds):
    return share * (bounds[1] - bounds[0]) + bounds[0]


def _shrink(value, bounds):
    return (value - bounds[0]) / (bounds[1] - bounds[0])
