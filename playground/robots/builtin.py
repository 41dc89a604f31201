"""The robots that come with the project, as data.

Sources: openpi's `policies/{aloha,droid,libero}_policy.py` and named configs; the ALOHA, DROID and
LIBERO projects for names, units and rates.
"""

import dataclasses

import numpy as np

from models.config import FAST_SLOTS, PI0_SLOTS
from playground.robots.robot import NO_CAMERA, Robot
from playground.trace import Dimension, Slot

_ALOHA_JOINTS = ("waist", "shoulder", "elbow", "forearm roll", "wrist angle", "wrist rotate")
_ALOHA_DIMENSIONS = tuple(
    dimension
    for side in ("left", "right")
    for dimension in (
        *(Dimension(f"{side} {joint}", "rad") for joint in _ALOHA_JOINTS),
        Dimension(f"{side} gripper", "0 closed, 1 open"),
    )
)
_ALOHA_OFFSETS = ((True,) * 6 + (False,)) * 2

# openpi masks a missing ALOHA wrist for every family: its transform does not ask for the model.
_ALOHA_SLOTS = (
    Slot(PI0_SLOTS[0], "cam_high", True, "masked"),
    Slot(PI0_SLOTS[1], "cam_left_wrist", False, "masked"),
    Slot(PI0_SLOTS[2], "cam_right_wrist", False, "masked"),
)

ALOHA = Robot(
    name="aloha",
    title="ALOHA",
    flow_slots=_ALOHA_SLOTS,
    fast_slots=_ALOHA_SLOTS,
    camera_key="images/{}",
    state_keys=("state",),
    unused_cameras=("cam_low",),
    state=_ALOHA_DIMENSIONS,
    actions=_ALOHA_DIMENSIONS,
    control_hz=50,
    resting_state=(0, -1.5, 1.5, 0, 0, 0, 0) * 2,
    offsets=_ALOHA_OFFSETS,
    adapt_to_pi=True,
    notes=("Left and right are as seen from behind the robot.",),
)

# pi0_aloha_sim predicts absolute joint targets.
ALOHA_SIM = dataclasses.replace(
    ALOHA,
    title="ALOHA (simulation)",
    resting_state=(0, -0.96, 1.16, 0, -0.3, 0, 0.1) * 2,
    offsets=(),
)

_PANDA_JOINTS = tuple(Dimension(f"joint {i}", "rad") for i in range(1, 8))
_PANDA_GRIPPER = Dimension("gripper", "0 open, 1 closed")

DROID = Robot(
    name="droid",
    title="DROID",
    flow_slots=(
        Slot(PI0_SLOTS[0], "exterior_image_1_left", True, "masked"),
        Slot(PI0_SLOTS[1], "wrist_image_left", True, "masked"),
        Slot(PI0_SLOTS[2], NO_CAMERA, False, "masked"),
    ),
    fast_slots=(
        Slot(FAST_SLOTS[0], "exterior_image_1_left", True, "black"),
        Slot(FAST_SLOTS[1], NO_CAMERA, False, "black"),
        Slot(FAST_SLOTS[2], "wrist_image_left", True, "black"),
    ),
    camera_key="observation/{}",
    state_keys=("observation/joint_position", "observation/gripper_position"),
    unused_cameras=("exterior_image_2_left",),
    state=(*_PANDA_JOINTS, _PANDA_GRIPPER),
    actions=(
        *(Dimension(f"joint {i}", "1 = 0.2 rad a step", "velocity") for i in range(1, 8)),
        _PANDA_GRIPPER,
    ),
    control_hz=15,
    resting_state=(0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5, 0, 0),
    offsets=(),
    adapt_to_pi=False,
    notes=(
        "The actions are joint velocities, no positions: numbers of DROID policies that predict "
        "joint positions do not compare. openpi's client clips them to -1..1 and rounds the "
        "gripper at 0.5.",
    ),
)

# The policies trained on joint positions predict offsets; what a person sees is absolute.
DROID_JOINT_POSITION = dataclasses.replace(
    DROID,
    title="DROID (joint positions)",
    actions=(*_PANDA_JOINTS, _PANDA_GRIPPER),
    offsets=(True,) * 7 + (False,),
    notes=(
        "The actions are joint positions, no velocities: predicted as offsets from the state, "
        "shown absolute. Numbers of DROID policies that predict joint velocities do not compare.",
    ),
)

_AXES = ("x", "y", "z")

LIBERO = Robot(
    name="libero",
    title="LIBERO",
    flow_slots=(
        Slot(PI0_SLOTS[0], "image", True, "masked"),
        Slot(PI0_SLOTS[1], "wrist_image", True, "masked"),
        Slot(PI0_SLOTS[2], NO_CAMERA, False, "masked"),
    ),
    fast_slots=(
        Slot(PI0_SLOTS[0], "image", True, "black"),
        Slot(PI0_SLOTS[1], "wrist_image", True, "black"),
        Slot(PI0_SLOTS[2], NO_CAMERA, False, "black"),
    ),
    camera_key="observation/{}",
    state_keys=("observation/state",),
    unused_cameras=(),
    state=(
        *(Dimension(f"end effector {axis}", "m") for axis in _AXES),
        *(Dimension(f"axis-angle {axis}", "rad") for axis in _AXES),
        Dimension("left finger", "m"),
        Dimension("right finger", "m"),
    ),
    actions=(
        *(Dimension(f"move {axis}", "1 = 5 cm a step", "velocity") for axis in _AXES),
        *(Dimension(f"turn {axis}", "1 = 0.5 rad a step", "velocity") for axis in _AXES),
        Dimension("gripper", "-1 open, 1 closed"),
    ),
    control_hz=20,
    # The first state of a living-room task: over the table, fingers open, gripper down.
    resting_state=(-0.05, 0.0, 0.69, np.pi, 0.0, -0.09, 0.039, -0.039),
    offsets=(),
    adapt_to_pi=False,
    notes=(
        "Both pictures must be turned by 180 degrees from how the simulator renders them: the "
        "policies were trained so.",
    ),
)

# pi0_libero and pi0_fast_libero were trained with the state subtracted from actions that were
# steps already; adding it again gives LIBERO's steps, so the meaning stays.
LIBERO_OFFSETS = dataclasses.replace(LIBERO, offsets=(True,) * 6 + (False,))

TABLE_CAMERA = "table"

# The bundled policies' own table: ALOHA's arms and numbers, one camera. Offsets, because then an
# arm that rests is zero in every scene, a chunk starts where the arm is instead of where the
# policy believes it to be, and the values to learn (and FAST's coefficients) are small: a second
# of motion instead of the whole workspace. Grippers stay absolute, as in openpi's ALOHA: open and
# closed are two places, not a motion.
TABLETOP = Robot(
    name="tabletop",
    title="Tabletop",
    flow_slots=(
        Slot(PI0_SLOTS[0], TABLE_CAMERA, True, "masked"),
        Slot(PI0_SLOTS[1], "left_wrist", True, "masked"),
        Slot(PI0_SLOTS[2], "right_wrist", True, "masked"),
    ),
    fast_slots=(
        Slot(PI0_SLOTS[0], TABLE_CAMERA, True, "black"),
        Slot(PI0_SLOTS[1], "left_wrist", True, "black"),
        Slot(PI0_SLOTS[2], "right_wrist", True, "black"),
    ),
    camera_key="images/{}",
    state_keys=("state",),
    unused_cameras=(),
    state=_ALOHA_DIMENSIONS,
    actions=_ALOHA_DIMENSIONS,
    control_hz=50,
    resting_state=(0, -0.95, 0.95, 0, 1.0, 0, 0.5) * 2,
    offsets=_ALOHA_OFFSETS,
    adapt_to_pi=False,
    notes=(),
)

# By the name that an observation carries.
OBSERVED = {robot.name: robot for robot in (ALOHA, DROID, LIBERO, TABLETOP)}
# A robot together with what a policy's actions mean on it; a fine-tune names one of these.
ROBOTS = {
    "aloha": ALOHA,
    "aloha_sim": ALOHA_SIM,
    "droid": DROID,
    "droid_joint_position": DROID_JOINT_POSITION,
    "libero": LIBERO,
    "libero_offsets": LIBERO_OFFSETS,
    "tabletop": TABLETOP,
}
