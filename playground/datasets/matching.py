"""A dataset's columns and cameras against a policy's robot: what is what, and what does not fit.

Names decide where both sides have them. What they leave open a person says once, in a JSON file:

    {"state": "observation.state", "actions": "action", "degrees": true,
     "cameras": {"base_0_rgb": "observation.images.top"}}
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from playground.datasets.info import Feature, Info, problems
from playground.datasets.lerobot import Episode
from playground.robots.robot import NO_CAMERA, Robot
from playground.trace import Dimension, RawObservation, Slot

_STATE_COLUMNS = ("observation.state", "state", "observation/state")
_ACTION_COLUMNS = ("action", "actions")
# No joint of these robots turns further than once around; degrees soon go beyond.
# Where a person says what names leave open: on the page, and to the command.
WHERE = "under “How the dataset is read” on the page, or in the file of --match"
_MOST_RADIANS = 2 * np.pi
_SAME_RATE = 0.02


class Choice(BaseModel):
    """What a person says about a dataset. cameras: by slot of the model, the dataset's feature;
    degrees: its angles are in degrees."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: str | None = None
    actions: str | None = None
    degrees: bool = False
    cameras: Annotated[dict[str, str], Field(default_factory=dict)]


def read_choice(path: Path) -> Choice:
    """Raises ValueError that names file and field."""
    try:
        return Choice.model_validate(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {problems(error)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Where a vector of the robot is. order: for each of the robot's dimensions the number of the
    dataset's; scale: what its values are multiplied by."""

    feature: str
    order: tuple[int, ...]
    scale: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """The dataset's [..., n] in the robot's order and units, float64 [..., D]."""
        return np.asarray(values, np.float64)[..., list(self.order)] * self.scale


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """cameras: by slot, the dataset's feature. notes: plain sentences to know; doubts: that should
    be cleared up before anything is believed."""

    state: Columns
    actions: Columns
    cameras: dict[str, str]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]

    def states(self, episode: Episode) -> np.ndarray:
        """float64 [n, S], in the robot's order and units."""
        return self.state.of(episode.values[self.state.feature])

    def recorded(self, episode: Episode) -> np.ndarray:
        """The recorded actions, float64 [n, D], in the robot's order and units."""
        return self.actions.of(episode.values[self.actions.feature])

    def observation(
        self, episode: Episode, frame: int, robot: Robot, prompt: str | None = None
    ) -> RawObservation:
        """One frame as the policy is shown it; prompt: another text than the recorded task. Raises
        FrameError where a picture cannot be had."""
        return RawObservation(
            robot=robot.name,
            images={slot: episode.picture(name, frame) for slot, name in self.cameras.items()},
            modes={},
            prompt=episode.tasks[frame] if prompt is None else prompt,
            state=self.states(episode)[frame],
        )


class Misfit(ValueError):
    """Why a dataset cannot be a robot's. title: of the policy; reasons: whole sentences."""

    def __init__(self, title: str, reasons: Sequence[str]):
        super().__init__(f"this dataset does not fit {title}: {' '.join(reasons)}")
        self.title, self.reasons = title, tuple(reasons)


class Described(Protocol):
    """What of a policy is needed here; it needs no weights."""

    @property
    def title(self) -> str: ...

    @property
    def slots(self) -> tuple[Slot, ...]: ...


def match(info: Info, policy: Described, robot: Robot, choice: Choice | None = None) -> Match:
    """Raises Misfit with every reason why the dataset cannot be this robot's: dimensions that
    are not its, a camera that the policy needs and nobody named. Doubts do not raise."""
    choice = choice or Choice(cameras={})
    notes: list[str] = []
    doubts: list[str] = []
    failures: list[str] = []
    found = {}
    for what, chosen, usual, dimensions in (
        ("state", choice.state, _STATE_COLUMNS, robot.state),
        ("actions", choice.actions, _ACTION_COLUMNS, robot.actions),
    ):
        try:
            feature = _feature(info, what, chosen, usual)
            order = _order(info.features[feature], feature, robot, what, dimensions, notes, doubts)
            found[what] = Columns(feature, order, _scale(dimensions, choice.degrees))
        except ValueError as error:
            failures.append(str(error))
    cameras = _cameras(info, policy, choice.cameras, notes, failures)
    if failures:
        raise Misfit(policy.title, failures)
    if abs(info.fps / robot.control_hz - 1) > _SAME_RATE:
        doubts.append(
            f"It has {info.fps:g} frames a second, {policy.title} plans {robot.control_hz:g} steps "
            f"a second: step 10 of a chunk is {10 / robot.control_hz:.3g} s ahead, row 10 "
            f"{10 / info.fps:.3g} s. Chunks and recordings do not compare step by step."
        )
    if info.robot_type not in (None, "unknown", robot.name):
        notes.append(f"It was recorded with {info.robot_type!r}; the policy drives {robot.title}.")
    return Match(found["state"], found["actions"], cameras, tuple(notes), tuple(doubts))


def checked(
    info: Info, policy: Described, robot: Robot, choice: Choice | None, episode: Episode
) -> Match:
    """`match` with all doubts, also those that an episode's values raise; no weights are needed."""
    found = match(info, policy, robot, choice)
    doubts = list(found.doubts)
    for values, dimensions, what in (
        (found.states(episode), robot.state, "state"),
        (found.recorded(episode), robot.actions, "action"),
    ):
        doubts += unit_doubts(values, dimensions, what)
    return dataclasses.replace(found, doubts=tuple(doubts))


def of_policy(choice: Choice, policy: Described) -> Choice:
    """What a choice for several policies says to one of them: only its own slots."""
    slots = {slot.name for slot in policy.slots}
    cameras = {slot: name for slot, name in choice.cameras.items() if slot in slots}
    return choice.model_copy(update={"cameras": cameras})


def unit_doubts(values: np.ndarray, dimensions: Sequence[Dimension], what: str) -> tuple[str, ...]:
    """What values [n, D], in the robot's order and supposed units, say against these units."""
    largest = np.abs(values).max(axis=0)
    angles = [i for i, dimension in enumerate(dimensions) if dimension.unit == "rad"]
    beyond = [i for i in angles if largest[i] > _MOST_RADIANS]
    if beyond:
        first = dimensions[beyond[0]].name
        return (
            f"{what} {first} goes to {largest[beyond[0]]:.4g}, and an angle in radians stays "
            f"within {_MOST_RADIANS:.3g}: these look like degrees (if they are, say "
            f"so {WHERE}).",
        )
    if angles and largest[angles].max() < 0.2 and np.ptp(values[:, angles], axis=0).max() > 1e-4:
        return (
            f"No angle of the {what} is beyond {largest[angles].max():.2g} rad "
            f"({np.degrees(largest[angles].max()):.2g} degrees): were they converted twice, or are "
            "these steps rather than positions?",
        )
    return ()


# --- by name ------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A name without what only style decides: "left_waist.pos" is "left waist"."""
    name = re.sub(r"[\W_]+", " ", name.lower().removesuffix(".pos")).strip()
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name)


def _feature(info: Info, what: str, chosen: str | None, usual: Sequence[str]) -> str:
    vectors = sorted(info.numbers)
    if chosen is not None and chosen not in vectors:
        raise ValueError(
            f"There is no {chosen!r} to be the {what}; there are {', '.join(vectors)}."
        )
    found = chosen or next((name for name in usual if name in vectors), None)
    if found is None:
        raise ValueError(
            f"Which feature is the {what}? Choose one of {', '.join(vectors)} {WHERE}."
        )
    return found


def _order(
    feature: Feature,
    name: str,
    robot: Robot,
    what: str,
    dimensions: Sequence[Dimension],
    notes: list[str],
    doubts: list[str],
) -> tuple[int, ...]:
    """For each of the robot's dimensions the number of the dataset's."""
    count, names = feature.shape[0], feature.dimension_names
    wanted = [_plain(dimension.name) for dimension in dimensions]
    given = [_plain(n) for n in names or ()]
    if names is not None and len(set(given)) == count and set(wanted) <= set(given):
        order = tuple(given.index(n) for n in wanted)
        if count > len(wanted):
            spare = [n for n in names if _plain(n) not in wanted]
            notes.append(f"Of {name}, {', '.join(spare)} are not used.")
        elif order != tuple(range(count)):
            notes.append(f"The {what} are in another order in {name}; names decide.")
        return order
    if count != len(dimensions):
        listed = f" ({', '.join(names)})" if names else ""
        raise ValueError(
            f"{name} has {count} dimensions{listed}, the {what} of {robot.title} {len(dimensions)} "
            f"({', '.join(dimension.name for dimension in dimensions)})."
        )
    if names is None:
        notes.append(f"{name} names no dimensions; they are taken in {robot.title}'s order.")
    else:
        doubts.append(
            f"{name} has {', '.join(names)}; {robot.title} has "
            f"{', '.join(dimension.name for dimension in dimensions)}: the names do not fit, only "
            "their number does."
        )
    return tuple(range(count))


def _scale(dimensions: Sequence[Dimension], degrees: bool) -> np.ndarray:
    turns = np.array([degrees and dimension.unit == "rad" for dimension in dimensions])
    return np.where(turns, np.pi / 180, 1.0)


def _cameras(
    info: Info,
    policy: Described,
    chosen: Mapping[str, str],
    notes: list[str],
    failures: list[str],
) -> dict[str, str]:
    """By slot. A slot whose name or camera's name is that of a feature is filled by it."""
    there = {_plain(name.rsplit(".", 1)[-1]): name for name in info.cameras}
    slots = {slot.name: slot for slot in policy.slots}
    for slot, name in chosen.items():
        if slot not in slots:
            failures.append(f"There is no slot {slot!r}; there are {', '.join(slots)}.")
        elif name not in info.cameras:
            failures.append(f"There is no camera {name!r}; there are {_listed(info)}.")
    found = {s: name for s, name in chosen.items() if s in slots and name in info.cameras}
    for slot in policy.slots:
        for name in (slot.camera, slot.name):
            if slot.name not in found and name != NO_CAMERA and _plain(name) in there:
                found[slot.name] = there[_plain(name)]
        if slot.name in found or slot.camera == NO_CAMERA:
            continue
        if slot.required:
            failures.append(
                f"A picture is needed in {slot.name} ({slot.camera}), and no camera is called so; "
                f"there are {_listed(info)}. Choose one {WHERE}."
            )
        else:
            notes.append(f"No camera fills {slot.name} ({slot.camera}): it is {slot.when_missing}.")
    if spare := sorted(set(info.cameras) - set(found.values())):
        notes.append(f"Not shown to the policy: {', '.join(spare)}.")
    return found


def _listed(info: Info) -> str:
    return ", ".join(info.cameras) or "none"
