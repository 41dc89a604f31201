"""What stands before a visitor: a robot, the policies that drive it, and the pictures they take."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from playground.robots import norm_stats
from playground.robots.robot import Robot, check_state
from playground.serving.worker import Down, Worker
from playground.trace import PolicyInfo, Slot


@dataclasses.dataclass(frozen=True, slots=True)
class Camera:
    """One picture a person may give. name: the robot's own name of it, "" where it has no such
    camera; slots: by policy, the input that the picture goes to."""

    name: str
    slots: dict[str, Slot]

    @property
    def title(self) -> str:
        """The models' own names of it."""
        return " / ".join(dict.fromkeys(slot.name for slot in self.slots.values()))


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """policies: names of those that drive the robot; infos: of the same, {} until they are
    loaded. robots: by policy, with the conventions that its numbers follow."""

    robot: Robot
    policies: tuple[str, ...]
    infos: dict[str, PolicyInfo]
    cameras: tuple[Camera, ...]
    robots: dict[str, Robot]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The policies that answer until a visitor chooses: two, side by side."""
        return self.policies[:2]


class Setups:
    """The setups of the policies, one a robot. `robots`: of every policy, by its name."""

    def __init__(self, worker: Worker, robots: Mapping[str, Robot]):
        self._worker = worker
        self._robots = dict(robots)

    def infos(self) -> dict[str, PolicyInfo]:
        """{} until the policies are loaded, and if that failed."""
        try:
            return self._worker.metadata(timeout_s=0)
        except (TimeoutError, Down):
            return {}

    def robots(self) -> list[Robot]:
        """One of each name, the first policy's first."""
        found = {robot.name: robot for robot in reversed(self._robots.values())}
        return list(reversed(found.values()))

    def conventions(self) -> dict[str, Robot]:
        """By policy, the robot with the conventions that its numbers follow."""
        return dict(self._robots)

    def of(self, robot: str | None = None) -> Setup:
        """The setup of the robot of that name, the first without one. Raises ValueError for a
        robot that no policy drives."""
        known = [found.name for found in self.robots()]
        robot = known[0] if robot is None else robot
        here = {name: found for name, found in self._robots.items() if found.name == robot}
        if not here:
            raise ValueError(f"no policy here drives {robot!r}; there are {', '.join(known)}")
        infos = {name: info for name, info in self.infos().items() if name in here}
        slots = {
            name: infos[name].slots if infos else found.flow_slots for name, found in here.items()
        }
        return Setup(next(iter(here.values())), tuple(here), infos, merged(slots), here)

    def most_cameras(self) -> int:
        """At least as many pictures as any setup asks for, known before the policies are loaded,
        when it is not known of which family each is."""
        counts = []
        for name in {robot.name for robot in self._robots.values()}:
            slots = {
                f"{policy} as {family}": robot.slots(family)
                for policy, robot in self._robots.items()
                if robot.name == name
                for family in ("pi0", "pi0_fast")
            }
            counts.append(len(merged(slots)))
        return max(counts)


def merged(slots: Mapping[str, Sequence[Slot]]) -> tuple[Camera, ...]:
    """Slots that one camera fills are one picture; slots without a camera meet by name."""
    found: dict[tuple[str, str], dict[str, Slot]] = {}
    for policy, inputs in slots.items():
        for slot in inputs:
            key = (slot.camera, "" if slot.camera else slot.name)
            found.setdefault(key, {})[policy] = slot
    return tuple(Camera(camera, wanted) for (camera, _), wanted in found.items())


def numbers(robot: Robot, state: Sequence[float | str]) -> np.ndarray:
    """What was typed into the table; raises ValueError that names the field."""
    values = []
    for dimension, value in zip(robot.state, state, strict=False):
        try:
            values.append(float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{robot.title}'s state: {dimension.name} must be a number, {value!r:.60} came"
            ) from error
    return np.array(values + list(state[len(values) :]))


def judged(setup: Setup, given: Sequence[float | str]) -> list[dict]:
    """A column of the state's table for each policy: the values as its model gets them, and which
    of them lie outside q01..q99 of its training data. [] for a state that cannot be."""
    try:
        values = check_state(setup.robot, numbers(setup.robot, given))
    except ValueError:
        return []
    columns = []
    for name, info in setup.infos.items():
        stats = info.state_stats
        if stats is None:
            continue
        state = setup.robots[name].state_to_model(values)
        column = {
            "title": info.title,
            "family": info.family,
            "method": info.normalisation,
            "values": norm_stats.normalise(state, stats, info.normalisation).tolist(),
            "ranges": None,
        }
        if stats.q01 is not None and stats.q99 is not None:
            column["ranges"] = [
                [low, high, not low <= value <= high]
                for low, high, value in zip(stats.q01, stats.q99, state.tolist(), strict=True)
            ]
        columns.append(column)
    return columns
