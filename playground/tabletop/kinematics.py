"""Where the arms reach and what the camera sees of it: closed forms, NumPy alone.

ViperX 300 geometry, as in gym-aloha's MJCF: the waist turns about z; shoulder, elbow and wrist
angle turn about the arm's y axis (positive lowers the hand); forearm roll and wrist rotate turn
about the links' own x axis. x runs to the right of the picture, y away from the viewer, z up.
"""

import dataclasses

import numpy as np

ARMS = ("left", "right")
# Bases stand on the table, facing each other.
BASE = {"left": np.array([-0.469, 0.5, 0.0]), "right": np.array([0.469, 0.5, 0.0])}
FACING = {"left": 0.0, "right": np.pi}
_SHOULDER_HEIGHT = 0.079 + 0.04805
_UPPER_ARM = np.array([0.05955, 0.3])
_FOREARM = 0.3
# From the gripper's body to the point between the fingertips, and from the wrist to that point.
TIP_OFFSET = 0.145
_HAND = 0.069744 + TIP_OFFSET

CAMERA_POSITION = np.array([0.0, 0.14, 0.66])
CAMERA_TARGET = np.array([0.0, 0.49, 0.015])
CAMERA_FOVY = 43.0


def _turn(x, y, angle):
    """(x, y) turned by `angle` from the first axis towards the second."""
    c, s = np.cos(angle), np.sin(angle)
    return x * c - y * s, x * s + y * c


def tip_positions(arm: str, joints: np.ndarray) -> np.ndarray:
    """The point between the fingertips, [..., 3] in metres, for six joint angles [..., 6]."""
    waist, shoulder, elbow, roll, wrist, _ = np.moveaxis(np.asarray(joints, np.float64), -1, 0)
    # The hand in the forearm's frame, then both raised and lowered about the y axis (z to x).
    hand_z, hand_x = _turn(0.0, _HAND, wrist)
    hand_y, hand_z = _turn(0.0, hand_z, roll)
    z, x = _turn(hand_z, hand_x + _FOREARM, elbow)
    z, x = _turn(z + _UPPER_ARM[1], x + _UPPER_ARM[0], shoulder)
    x, y = _turn(x, hand_y, waist + FACING[arm])
    return np.stack([x, y, z + _SHOULDER_HEIGHT], axis=-1) + BASE[arm]


def solve(arm: str, tips: np.ndarray, pitch: float) -> np.ndarray:
    """Six joint angles [..., 6] that put the fingertips at `tips` [..., 3], the hand `pitch` below
    the horizontal and its fingers opening along the table's y axis. Elbow up, forearm unrolled.

    A point out of reach gets the nearest pose on its line from the shoulder.
    """
    x, y, z = np.moveaxis(np.asarray(tips, np.float64) - BASE[arm], -1, 0)
    x, y = _turn(x, y, -FACING[arm])
    waist, radius = np.arctan2(y, x), np.hypot(x, y)
    out = radius - _HAND * np.cos(pitch)
    up = z + _HAND * np.sin(pitch) - _SHOULDER_HEIGHT
    upper, reach = np.hypot(*_UPPER_ARM), np.hypot(out, up)
    reach = np.clip(reach, abs(upper - _FOREARM) + 1e-6, upper + _FOREARM - 1e-6)
    elevation = np.arctan2(up, out)
    at_shoulder = np.arccos((upper**2 + reach**2 - _FOREARM**2) / (2 * upper * reach))
    at_wrist = np.arccos((_FOREARM**2 + reach**2 - upper**2) / (2 * _FOREARM * reach))
    shoulder = np.arctan2(_UPPER_ARM[1], _UPPER_ARM[0]) - elevation - at_shoulder
    elbow = at_wrist - elevation - shoulder
    wrist = pitch - shoulder - elbow
    return np.stack([waist, shoulder, elbow, np.zeros_like(waist), wrist, waist], axis=-1)


def tip_paths(actions: np.ndarray) -> dict[str, np.ndarray]:
    """By arm, the fingertips' path [..., 3] of joint targets [..., 14] (ALOHA's order)."""
    return {
        arm: tip_positions(arm, np.asarray(actions)[..., 7 * i : 7 * i + 6])
        for i, arm in enumerate(ARMS)
    }


def camera_rotation() -> np.ndarray:
    """[3, 3]: columns are the camera's right, up and backward axes in the world."""
    back = CAMERA_POSITION - CAMERA_TARGET
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A camera: position [3]; rotation [3, 3], columns right, up and backward; fovy in degrees."""

    position: np.ndarray
    rotation: np.ndarray
    fovy: float


TABLE_VIEW = View(CAMERA_POSITION, camera_rotation(), CAMERA_FOVY)


def project(points: np.ndarray, size: int, view: View = TABLE_VIEW) -> np.ndarray:
    """Pixel coordinates [..., 2] (column, row; the first pixel's centre is 0.5) of points
    [..., 3] on a camera's image of `size` x `size`; NaN for points behind the camera."""
    local = (np.asarray(points, np.float64) - view.position) @ view.rotation
    scale = 1 / np.tan(np.radians(view.fovy) / 2)
    depth = np.where(local[..., 2:] < -0.01, -local[..., 2:], np.nan)
    plane = scale * local[..., :2] / depth
    return (plane * [1, -1] + 1) * size / 2


def moving_arm(state: np.ndarray, actions: np.ndarray) -> str:
    """The arm whose fingertips the chunk [horizon, 14] takes further from where `state` [14] has
    them."""
    start, paths = tip_paths(state), tip_paths(actions)
    return max(ARMS, key=lambda arm: float(np.linalg.norm(paths[arm] - start[arm], axis=-1).max()))
