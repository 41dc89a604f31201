"""The robots as data: cameras and slots, dimensions with names, units and meaning, control rate,
conventions; and one function per direction between a robot's terms and the model's.

Sources: openpi's `policies/{aloha,droid,libero}_policy.py`, its named configs and
`docs/norm_stats.md`; the ALOHA, DROID and LIBERO projects for names, units and rates.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from models.config import FAST_SLOTS, PI0_SLOTS
from playground.robots import transforms
from playground.trace import Dimension, Family, RawObservation, Slot, SlotMode, Stats

NO_CAMERA = ""

# No joint angle, position or gripper of these robots comes near this; 1e30 is a typing error.
LARGEST_STATE = 1e4


@dataclasses.dataclass(frozen=True, slots=True)
class Robot:
    """A robot and how its numbers meet a policy.

    name: whose observation it is; variants that differ in what a policy's actions mean share it
    flow_slots, fast_slots: camera slots of pi0 and pi0.5, and of pi0-FAST. A slot whose camera is
        NO_CAMERA is filled by none of this robot's cameras
    camera_key, state_keys: where openpi's clients put a camera's picture and the state
    unused_cameras: pictures that openpi accepts and drops
    resting_state: a sensible state to start with, in the robot's units
    offsets: which actions the policy predicts as offsets from the state at the start of the chunk;
        they are absolute again when a person sees them. () for none
    adapt_to_pi: whether the policy was trained in Physical Intelligence's own ALOHA convention
        (joint signs, gripper scale)
    notes: plain sentences a person should read before feeding this robot
    """

    name: str
    title: str
    flow_slots: tuple[Slot, ...]
    fast_slots: tuple[Slot, ...]
    camera_key: str
    state_keys: tuple[str, ...]
    unused_cameras: tuple[str, ...]
    state: tuple[Dimension, ...]
    actions: tuple[Dimension, ...]
    control_hz: float
    resting_state: tuple[float, ...]
    offsets: tuple[bool, ...]
    adapt_to_pi: bool
    notes: tuple[str, ...]

    def slots(self, family: Family) -> tuple[Slot, ...]:
        return self.fast_slots if family == "pi0_fast" else self.flow_slots

    def state_to_model(self, state: np.ndarray) -> np.ndarray:
        """State [..., S], robot to model convention, not yet normalised."""
        return _aloha_state_to_pi(state) if self.adapt_to_pi else np.array(state)

    def actions_to_model(self, actions: np.ndarray) -> np.ndarray:
        """Recorded actions [..., D] to the model's convention, for training (before offsets)."""
        return _aloha_actions_to_pi(actions) if self.adapt_to_pi else np.array(actions)

    def actions_from_model(self, actions: np.ndarray) -> np.ndarray:
        """Predicted actions [..., D], model to robot convention (after offsets)."""
        return _aloha_actions_from_pi(actions) if self.adapt_to_pi else np.array(actions)


def told_state(dimension: Dimension, given: float, value: float) -> str:
    """A state's number with its unit, for people; `value` is the same as the model counts."""
    unit = f"({dimension.unit})" if " " in dimension.unit else dimension.unit
    there = "" if value == given else f", {value:.4g} as the model counts"
    return f"{given:.4g} {unit}{there}"


# --- a raw observation to the model's terms, and back -------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInput:
    """An observation in the model's terms.

    images: by slot, in the order of the slots, uint8 [size, size, 3]; black where none is filled
    bars: by slot, bool [size, size]: which pixels are black bars beside a picture of another shape
    modes: by slot; "masked" hides it from attention, "black" and "filled" are attended to
    state: float64 [S], normalised, not padded to the model's dimension
    """

    images: dict[str, np.ndarray]
    bars: dict[str, np.ndarray]
    modes: dict[str, SlotMode]
    state: np.ndarray


def to_model(
    robot: Robot,
    family: Family,
    raw: RawObservation,
    stats: Stats,
    method: transforms.Method,
    image_size: int,
) -> ModelInput:
    """An observation in the model's terms. `stats` are the state's, over the robot's dimensions.

    Raises ValueError for a slot the robot does not have, a required picture that is missing, and a
    state of the wrong length or with values that cannot be.
    """
    state = check_state(robot, raw.state)
    modes = slot_modes(robot.slots(family), raw)
    images = {
        slot: transforms.resize_with_pad(raw.images[slot], image_size, image_size)
        if mode == "filled"
        else np.zeros((image_size, image_size, 3), np.uint8)
        for slot, mode in modes.items()
    }
    bars = {
        slot: transforms.letterbox(*raw.images[slot].shape[:2], image_size, image_size)
        if mode == "filled"
        else np.zeros((image_size, image_size), bool)
        for slot, mode in modes.items()
    }
    state = transforms.normalise(robot.state_to_model(state), stats, method)
    return ModelInput(images, bars, modes, state)


def from_model(
    robot: Robot,
    actions: np.ndarray,
    state: np.ndarray,
    stats: Stats,
    method: transforms.Method,
) -> np.ndarray:
    """The model's actions [..., H, M] in the robot's units, float64 [..., H, D]: the dimensions the
    robot has, unnormalised, made absolute, in its convention. `state` [S] is the raw one that went
    in; `stats` are the actions', over the robot's dimensions."""
    dims = len(robot.actions)
    if actions.shape[-1] < dims:
        raise ValueError(f"{robot.title} has {dims} actions, the model gave {actions.shape[-1]}")
    actions = transforms.unnormalise(np.asarray(actions)[..., :dims], stats, method)
    if robot.offsets:
        actions = transforms.to_absolute(actions, robot.state_to_model(state), robot.offsets)
    return robot.actions_from_model(actions)


def check_state(robot: Robot, state: np.ndarray) -> np.ndarray:
    """The state as float64 [S]; raises ValueError that names the dimension at fault."""
    try:
        state = np.asarray(state, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{robot.title}'s state must be numbers: {error}") from error
    if state.shape != (len(robot.state),):
        names = ", ".join(dimension.name for dimension in robot.state)
        raise ValueError(
            f"{robot.title}'s state has {len(robot.state)} values ({names}); "
            f"{list(state.shape)} came"
        )
    for dimension, value in zip(robot.state, state.tolist(), strict=True):
        if not abs(value) <= LARGEST_STATE:
            raise ValueError(f"{robot.title}'s state: {dimension.name} cannot be {value}")
    return state


def slot_modes(slots: tuple[Slot, ...], raw: RawObservation) -> dict[str, SlotMode]:
    """The mode of every slot: as asked for, else filled if there is a picture, else as the policy
    was trained. Raises ValueError for unknown slots and modes and for missing pictures."""
    names = [slot.name for slot in slots]
    if unknown := sorted((raw.images.keys() | raw.modes.keys()) - set(names)):
        raise ValueError(f"no camera slots {unknown} here; there are {names}")
    modes: dict[str, SlotMode] = {}
    for slot in slots:
        here = slot.name in raw.images
        mode = raw.modes.get(slot.name, "filled" if here or slot.required else slot.when_missing)
        if mode not in ("filled", "masked", "black"):
            raise ValueError(f"slot {slot.name} is filled, masked or black, not {mode!r}")
        if mode == "filled" and not here:
            raise ValueError(
                f"slot {slot.name} needs a picture ({slot.camera or 'any camera'}), or say that it "
                "is masked or black"
            )
        modes[slot.name] = mode
    return modes


def from_openpi(
    robot: Robot, family: Family, observation: Mapping, default_prompt: str | None = None
) -> RawObservation:
    """An observation as openpi's clients send it, nested or with keys joined by "/".

    Pictures are uint8 or floats in 0..1, channels first or last. Raises ValueError where openpi
    raises KeyError, and where it would go on with a wrong picture.
    """
    flat = _flatten(observation)
    slots = [slot for slot in robot.slots(family) if slot.camera != NO_CAMERA]
    known = {slot.camera for slot in slots} | set(robot.unused_cameras)
    prefix = robot.camera_key.format("")
    unknown = [
        key
        for key, value in flat.items()
        if key.startswith(prefix) and np.ndim(value) == 3 and key.removeprefix(prefix) not in known
    ]
    if unknown:
        raise ValueError(f"{robot.title} has no cameras {unknown}; it has {sorted(known)}")
    if missing := [key for key in robot.state_keys if key not in flat]:
        raise ValueError(f"the observation lacks {missing}; it has {sorted(flat)}")
    keys = {slot.name: robot.camera_key.format(slot.camera) for slot in slots}
    for slot in slots:
        if slot.required and keys[slot.name] not in flat:
            raise ValueError(f"the observation lacks {keys[slot.name]!r}; it has {sorted(flat)}")
    prompt = flat.get("prompt", default_prompt)
    prompt = prompt.item() if isinstance(prompt, np.ndarray) else prompt
    prompt = prompt.decode() if isinstance(prompt, bytes) else prompt
    if not isinstance(prompt, str):
        raise ValueError(f"the observation needs a prompt, {type(prompt).__name__} came")
    return RawObservation(
        robot=robot.name,
        images={n: transforms.as_image(flat[key]) for n, key in keys.items() if key in flat},
        modes={},
        prompt=prompt,
        state=np.concatenate([np.atleast_1d(flat[key]) for key in robot.state_keys]),
    )


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}/") if nested else {f"{prefix}{key}": value}
    return flat


# --- ALOHA in Physical Intelligence's convention ------------------------------------------------

_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
_GRIPPERS = [6, 13]
# Metres between ALOHA's fingers, its gripper's joint angles (radians), and the angles that 0 and 1
# mean in the base model's training data.
_FINGER_RANGE = (0.01844, 0.05800)
_JOINT_RANGE = (-0.6213, 1.4910)
_PI_RANGE = (0.5476, 1.6296)
_ARM_LENGTH, _HORN_RADIUS = 0.036, 0.022


def _aloha_state_to_pi(state: np.ndarray) -> np.ndarray:
    state = _check_aloha(state) * _SIGNS
    fingers = _stretch(state[..., _GRIPPERS], _FINGER_RANGE)
    # The crank that moves the fingers: law of cosines for the horn's angle.
    sine = (_HORN_RADIUS**2 + fingers**2 - _ARM_LENGTH**2) / (2 * _HORN_RADIUS * fingers)
    state[..., _GRIPPERS] = _shrink(np.arcsin(np.clip(sine, -1, 1)), _PI_RANGE)
    return state


def _aloha_actions_from_pi(actions: np.ndarray) -> np.ndarray:
    # PARITY: an action's gripper is only shifted by the lower end of _PI_RANGE, not stretched over
    # it, so this is not the inverse of the state's map; the published weights are used this way.
    actions = _check_aloha(actions) * _SIGNS
    actions[..., _GRIPPERS] = _shrink(actions[..., _GRIPPERS] + _PI_RANGE[0], _JOINT_RANGE)
    return actions


def _aloha_actions_to_pi(actions: np.ndarray) -> np.ndarray:
    actions = _check_aloha(actions) * _SIGNS
    actions[..., _GRIPPERS] = _stretch(actions[..., _GRIPPERS], _JOINT_RANGE) - _PI_RANGE[0]
    return actions


def _check_aloha(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape[-1:] != _SIGNS.shape:
        raise ValueError(f"ALOHA has 14 dimensions, got {list(values.shape)}")
    return values


def _stretch(share, bounds):
    return share * (bounds[1] - bounds[0]) + bounds[0]


def _shrink(value, bounds):
    return (value - bounds[0]) / (bounds[1] - bounds[0])


# --- the robots ---------------------------------------------------------------------------------

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
    notes=("openpi's client clips joint velocities to -1..1 and rounds the gripper at 0.5.",),
)

# The policies trained on joint positions predict offsets; what a person sees is absolute.
DROID_JOINT_POSITION = dataclasses.replace(
    DROID,
    title="DROID (joint positions)",
    actions=(*_PANDA_JOINTS, _PANDA_GRIPPER),
    offsets=(True,) * 7 + (False,),
    notes=(),
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

# The bundled policies' own table: ALOHA's arms and numbers, one camera. Offsets, because then an
# arm that rests is zero in every scene, a chunk starts where the arm is instead of where the
# policy believes it to be, and the values to learn (and FAST's coefficients) are small: a second
# of motion instead of the whole workspace. Grippers stay absolute, as in openpi's ALOHA: open and
# closed are two places, not a motion.
TABLETOP = Robot(
    name="tabletop",
    title="Tabletop",
    flow_slots=(
        Slot(PI0_SLOTS[0], "table", True, "masked"),
        Slot(PI0_SLOTS[1], NO_CAMERA, False, "masked"),
        Slot(PI0_SLOTS[2], NO_CAMERA, False, "masked"),
    ),
    fast_slots=(
        Slot(PI0_SLOTS[0], "table", True, "black"),
        Slot(PI0_SLOTS[1], NO_CAMERA, False, "black"),
        Slot(PI0_SLOTS[2], NO_CAMERA, False, "black"),
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
    notes=("A simulated ALOHA table with coloured cubes; the policies for it are small.",),
)

ROBOTS = {robot.name: robot for robot in (ALOHA, DROID, LIBERO, TABLETOP)}
