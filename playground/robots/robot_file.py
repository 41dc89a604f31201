"""A robot of one's own, described in a JSON file.

    {
     "name": "my_arm",
     "control_hz": 20,
     "cameras": {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"},
     "state": [{"name": "joint 1", "unit": "rad"}, {"name": "gripper", "unit": "0 to 1"}],
     "actions": [{"name": "joint 1", "unit": "rad"}, {"name": "gripper", "unit": "0 to 1"}],
     "offsets": [true, false],
     "resting_state": [0.0, 0.5]
    }

What a policy's answer depends on is asked for; names and titles have defaults. Slots that no camera
fills are treated as openpi treats them: masked for pi0 and pi0.5, black for pi0-FAST. A policy of
LeRobot's has slots of its own, called as in its data, which are masked.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from models.config import FAST_SLOTS, PI0_SLOTS
from playground import json_file
from playground.json_file import Description, Text
from playground.robots.builtin import OBSERVED
from playground.robots.robot import LARGEST_STATE, NO_CAMERA, Robot
from playground.trace import Dimension, Meaning, Slot

_SLOTS = tuple(dict.fromkeys((*PI0_SLOTS, *FAST_SLOTS)))
_CAMERAS = "your camera's name for each slot that one fills"
_MOST = 256  # dimensions


class DimensionFile(Description):
    name: Text = Field(description="a name")
    unit: Text = Field(description="a unit, such as rad")
    meaning: Meaning = Field(default="absolute", description="absolute, offset or velocity")


_DIMENSIONS = 'a list of {"name": ..., "unit": ...}'
Resting = Annotated[float, Field(ge=-LARGEST_STATE, le=LARGEST_STATE)]


class RobotFile(Description):
    """What such a file holds."""

    name: Text = Field(description="a name")
    title: Text | None = Field(default=None, description="a title for people")
    control_hz: float = Field(
        gt=0, le=10_000, description="how many actions a second the robot executes"
    )
    cameras: dict[str, Text] = Field(min_length=1, description=_CAMERAS)
    state: list[DimensionFile] = Field(description=_DIMENSIONS, min_length=1, max_length=_MOST)
    actions: list[DimensionFile] = Field(description=_DIMENSIONS, min_length=1, max_length=_MOST)
    offsets: list[bool] = Field(
        description="true or false for each action dimension: an offset from the state?",
        min_length=1,
        max_length=_MOST,
    )
    resting_state: list[Resting] = Field(
        description="a sensible state to start with, a number for each dimension",
        min_length=1,
        max_length=_MOST,
    )
    notes: list[Text] = Field(default=[], description="sentences for people")


def read_robot(path: Path | str, slots: tuple[str, ...] | None = None) -> Robot:
    """The robot in a JSON file (`RobotFile`); raises one ValueError for all that is wrong.

    slots: those of the policy that will drive it, in order, where it has others than openpi's.
    """
    path = Path(path)
    title = "{} describes no robot:"
    said = json_file.read(path, RobotFile, title)
    if found := _contradictions(said, slots):
        raise json_file.refusal(title.format(path), found)
    return Robot(
        name=said.name,
        title=said.title or said.name,
        flow_slots=_slots(slots or PI0_SLOTS, said.cameras, "masked"),
        fast_slots=_slots(slots or _fast_slots(said.cameras), said.cameras, "black"),
        camera_key="observation/{}",
        state_keys=("observation/state",),
        unused_cameras=(),
        state=tuple(Dimension(x.name, x.unit, x.meaning) for x in said.state),
        actions=tuple(Dimension(x.name, x.unit, x.meaning) for x in said.actions),
        control_hz=said.control_hz,
        resting_state=tuple(said.resting_state),
        offsets=tuple(said.offsets) if any(said.offsets) else (),
        adapt_to_pi=False,
        notes=tuple(said.notes),
    )


def _contradictions(said: RobotFile, slots: tuple[str, ...] | None) -> list[str]:
    """What cannot be, of fields that are valid one by one."""
    states, actions = len(said.state), len(said.actions)
    found = []
    if said.name in OBSERVED:
        found.append(f"name is {said.name!r}, which is a robot here already")
    if len(said.resting_state) != states:
        found.append(f"resting_state has {len(said.resting_state)} values, state {states}")
    if len(said.offsets) != actions:
        found.append(f"offsets has {len(said.offsets)} values, actions {actions}")
    # An offset is added to the state of the same place.
    beyond = [i for i, offset in enumerate(said.offsets) if offset and i >= states]
    if beyond:
        found.append(f"offsets: dimensions {beyond} have no state to be an offset from")
    for part, dimensions in (("state", said.state), ("actions", said.actions)):
        names = [dimension.name for dimension in dimensions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            found.append(f"{part} names {', '.join(twice)} twice")
    filled = said.cameras.keys()
    if strange := sorted(filled - set(slots or _SLOTS)):
        listed = ", ".join(slots or _SLOTS)
        found.append(f"cameras fills {strange}; expected {_CAMERAS}; the slots are {listed}")
    elif slots is None and not any(filled <= set(names) for names in (PI0_SLOTS, FAST_SLOTS)):
        found.append(f"cameras fills {sorted(filled)}: slots of two kinds of policy at once")
    return found


def _fast_slots(cameras: dict[str, str]) -> tuple[str, ...]:
    """pi0-FAST on DROID has slots of its own, elsewhere those of pi0 (openpi's policies/)."""
    return PI0_SLOTS if cameras.keys() <= set(PI0_SLOTS) else FAST_SLOTS


def _slots(
    names: tuple[str, ...], cameras: dict[str, str], missing: Literal["masked", "black"]
) -> tuple[Slot, ...]:
    filled = {name: cameras.get(name, NO_CAMERA) for name in names}
    return tuple(Slot(name, camera, bool(camera), missing) for name, camera in filled.items())
