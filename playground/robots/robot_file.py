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
LeRobot's has slots of its own, called as in its data (`local` masks those).
"""

from pathlib import Path

from models.checkpoints.digests import read_json
from models.config import FAST_SLOTS, PI0_SLOTS
from playground.checkpoints.fields import Field, is_number, is_text, one_of, problems
from playground.robots.robot import LARGEST_STATE, NO_CAMERA, ROBOTS, Robot
from playground.trace import Dimension, Slot

_SLOTS = tuple(dict.fromkeys((*PI0_SLOTS, *FAST_SLOTS)))


def _cameras(slots: tuple[str, ...]) -> Field:
    return Field(
        f"your camera's name for each slot that one fills; the slots are {', '.join(slots)}",
        lambda x: (
            isinstance(x, dict)
            and bool(x)
            and x.keys() <= set(slots)
            and all(map(is_text, x.values()))
        ),
    )


def _list_of(valid):
    return lambda x: isinstance(x, list) and 0 < len(x) <= 256 and all(map(valid, x))


_DIMENSION = {
    "name": Field("a name", is_text),
    "unit": Field("a unit, such as rad", is_text),
    "meaning": one_of(("absolute", "offset", "velocity")),
}
_DIMENSIONS = Field('a list of {"name": ..., "unit": ...}', _list_of(lambda x: isinstance(x, dict)))
FIELDS = {
    "name": Field("a name", is_text),
    "title": Field("a title for people", is_text),
    "control_hz": Field(
        "how many actions a second the robot executes",
        lambda x: is_number(x) and 0 < x <= 10_000,
    ),
    "cameras": _cameras(_SLOTS),
    "state": _DIMENSIONS,
    "actions": _DIMENSIONS,
    "offsets": Field(
        "true or false for each action dimension: predicted as an offset from the state?",
        _list_of(lambda x: isinstance(x, bool)),
    ),
    "resting_state": Field(
        "a sensible state to start with, a number for each dimension",
        _list_of(lambda x: is_number(x) and abs(x) <= LARGEST_STATE),
    ),
    "notes": Field("sentences for people", _list_of(is_text)),
}
REQUIRED = ("name", "control_hz", "cameras", "state", "actions", "offsets", "resting_state")


def read_robot(path: Path | str, slots: tuple[str, ...] | None = None) -> Robot:
    """The robot in a JSON file (see FIELDS); raises one ValueError for all that is wrong.

    slots: those of the policy that will drive it, in order, where it has others than openpi's.
    """
    path = Path(path)
    data = read_json(path)
    fields = FIELDS if slots is None else {**FIELDS, "cameras": _cameras(slots)}
    found = problems(data, fields, REQUIRED)
    if not found:
        for part in ("state", "actions"):
            for index, dimension in enumerate(data[part]):
                required = ("name", "unit")
                found += problems(dimension, _DIMENSION, required, f"{part}[{index}].")
        found += _contradictions(data, openpi=slots is None)
    if found:
        raise ValueError("\n  ".join([f"{path} describes no robot:", *sorted(found)]))
    dimensions = {part: tuple(Dimension(**d) for d in data[part]) for part in ("state", "actions")}
    return Robot(
        name=data["name"],
        title=data.get("title", data["name"]),
        flow_slots=_slots(slots or PI0_SLOTS, data["cameras"], "masked"),
        fast_slots=_slots(slots or _fast_slots(data["cameras"]), data["cameras"], "black"),
        camera_key="observation/{}",
        state_keys=("observation/state",),
        unused_cameras=(),
        state=dimensions["state"],
        actions=dimensions["actions"],
        control_hz=float(data["control_hz"]),
        resting_state=tuple(map(float, data["resting_state"])),
        offsets=tuple(data["offsets"]) if any(data["offsets"]) else (),
        adapt_to_pi=False,
        notes=tuple(data.get("notes", ())),
    )


def _contradictions(data: dict, *, openpi: bool) -> list[str]:
    """What cannot be, of fields that are valid one by one."""
    states, actions = len(data["state"]), len(data["actions"])
    found = []
    if data["name"] in ROBOTS:
        found.append(f"name is {data['name']!r}, which is a robot here already")
    if len(data["resting_state"]) != states:
        found.append(f"resting_state has {len(data['resting_state'])} values, state {states}")
    if len(data["offsets"]) != actions:
        found.append(f"offsets has {len(data['offsets'])} values, actions {actions}")
    # An offset is added to the state of the same place.
    beyond = [i for i, offset in enumerate(data["offsets"]) if offset and i >= states]
    if beyond:
        found.append(f"offsets: dimensions {beyond} have no state to be an offset from")
    for part in ("state", "actions"):
        names = [dimension.get("name") for dimension in data[part]]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            found.append(f"{part} names {', '.join(twice)} twice")
    filled = set(data["cameras"])
    if openpi and not any(filled <= set(names) for names in (PI0_SLOTS, FAST_SLOTS)):
        found.append(f"cameras fills {sorted(filled)}: slots of two kinds of policy at once")
    return found


def _fast_slots(cameras: dict[str, str]) -> tuple[str, ...]:
    """pi0-FAST on DROID has slots of its own, elsewhere those of pi0 (openpi's policies/)."""
    return PI0_SLOTS if cameras.keys() <= set(PI0_SLOTS) else FAST_SLOTS


def _slots(names: tuple[str, ...], cameras: dict[str, str], missing: str) -> tuple[Slot, ...]:
    filled = {name: cameras.get(name, NO_CAMERA) for name in names}
    return tuple(Slot(name, camera, bool(camera), missing) for name, camera in filled.items())
