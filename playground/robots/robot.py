"""A robot as data: cameras and slots, dimensions with names, units and meaning, control rate and
conventions. What an observation must hold to be this robot's is checked here too.
"""

import dataclasses

import numpy as np

from playground.robots import aloha
from playground.trace import Dimension, Family, RawObservation, Slot, SlotMode

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

    def cameras(self, family: Family) -> dict[str, str]:
        """By camera slot, the camera that fills it; without the slots that none fills."""
        return {s.name: s.camera for s in self.slots(family) if s.camera != NO_CAMERA}

    def state_to_model(self, state: np.ndarray) -> np.ndarray:
        """State [..., S], robot to model convention, not yet normalised."""
        return aloha.state_to_pi(state) if self.adapt_to_pi else np.array(state)

    def actions_to_model(self, actions: np.ndarray) -> np.ndarray:
        """Recorded actions [..., D] to the model's convention, for training (before offsets)."""
        return aloha.actions_to_pi(actions) if self.adapt_to_pi else np.array(actions)

    def actions_from_model(self, actions: np.ndarray) -> np.ndarray:
        """Predicted actions [..., D], model to robot convention (after offsets)."""
        return aloha.actions_from_pi(actions) if self.adapt_to_pi else np.array(actions)


def format_state(dimension: Dimension, given: float, value: float) -> str:
    """A state's number with its unit, for people; `value` is the same as the model counts."""
    unit = f"({dimension.unit})" if " " in dimension.unit else dimension.unit
    as_counted = "" if value == given else f", {value:.4g} as the model counts"
    return f"{given:.4g} {unit}{as_counted}"


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


def slot_mode(slot: str, mode: str) -> SlotMode:
    """The mode that was named for a slot. Raises ValueError where there is none of that name."""
    if mode not in ("filled", "masked", "black"):
        raise ValueError(f"slot {slot} is filled, masked or black, not {mode!r}")
    return mode


def slot_modes(slots: tuple[Slot, ...], raw: RawObservation) -> dict[str, SlotMode]:
    """The mode of every slot: as asked for, else filled if there is a picture, else as the policy
    was trained. Raises ValueError for unknown slots and modes and for missing pictures."""
    names = [slot.name for slot in slots]
    if unknown := sorted((raw.images.keys() | raw.modes.keys()) - set(names)):
        raise ValueError(f"no camera slots {unknown} here; there are {names}")
    modes: dict[str, SlotMode] = {}
    for slot in slots:
        given = slot.name in raw.images
        mode = raw.modes.get(slot.name, "filled" if given or slot.required else slot.when_missing)
        if slot_mode(slot.name, mode) == "filled" and not given:
            raise ValueError(
                f"slot {slot.name} needs a picture ({slot.camera or 'any camera'}), or say that it "
                "is masked or black"
            )
        modes[slot.name] = mode
    return modes
