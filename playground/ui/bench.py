"""What stands on the page at the moment: a robot, its policies, and the pictures they ask for."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from playground import robots, transforms
from playground.events import Job
from playground.robots import ROBOTS, Robot
from playground.trace import Options, PolicyInfo, RawObservation, Slot
from playground.worker import Down, Worker

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"
AS_TRAINED = "as trained"


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
class Bench:
    """policies: names of those that drive the robot; infos: of the same, {} until they are
    loaded."""

    robot: Robot
    policies: tuple[str, ...]
    infos: dict[str, PolicyInfo]
    cameras: tuple[Camera, ...]


class Benches:
    """The benches of the loaded policies, one a robot. Until they are loaded there is one, for
    `first`, whose slots must not differ between kinds of policies (the bundled table's do not)."""

    def __init__(self, worker: Worker, policies: Sequence[str], first: Robot):
        self._worker = worker
        self._policies = tuple(policies)
        self._first = first

    def infos(self) -> dict[str, PolicyInfo]:
        """{} until the policies are loaded, and if that failed."""
        try:
            return self._worker.metadata(timeout_s=0)
        except (TimeoutError, Down):
            return {}

    def robots(self) -> list[str]:
        found = [info.robot for info in self.infos().values()]
        return list(dict.fromkeys(found)) or [self._first.name]

    def of(self, robot: str) -> Bench:
        """Raises ValueError for a robot that no loaded policy drives."""
        if robot not in self.robots():
            raise ValueError(f"no loaded policy drives {robot!r}; there are {self.robots()}")
        infos = {name: info for name, info in self.infos().items() if info.robot == robot}
        policies = tuple(infos) or self._policies
        slots = {name: info.slots for name, info in infos.items()}
        slots = slots or dict.fromkeys(policies, self._first.flow_slots)
        return Bench(ROBOTS[robot], policies, infos, merged(slots))


def merged(slots: Mapping[str, Sequence[Slot]]) -> tuple[Camera, ...]:
    """Slots that one camera fills are one picture; slots without a camera meet by name."""
    found: dict[tuple[str, str], dict[str, Slot]] = {}
    for policy, inputs in slots.items():
        for slot in inputs:
            key = (slot.camera, "" if slot.camera else slot.name)
            found.setdefault(key, {})[policy] = slot
    return tuple(Camera(camera, wanted) for (camera, _), wanted in found.items())


def jobs(
    bench: Bench,
    policies: Sequence[str],
    pictures: Sequence[np.ndarray | None],
    modes: Sequence[str],
    prompt: str,
    state: Sequence[float | str],
    options: Options,
) -> list[Job]:
    """One job for all policies that name the slots alike. `pictures` and `modes` belong to
    `bench.cameras`. Raises ValueError that says what to mend."""
    if unknown := set(policies) - set(bench.policies):
        raise ValueError(f"no loaded policy is called {', '.join(sorted(unknown))}")
    if not policies:
        raise ValueError("choose at least one policy to run")
    values = robots.check_state(bench.robot, numbers(bench.robot, state))
    found: dict[tuple[str, ...], Job] = {}
    for policy in policies:
        slots = [camera.slots[policy].name if policy in camera.slots else None
                 for camera in bench.cameras]  # fmt: skip
        given = [
            (slot, picture, mode)
            for slot, picture, mode in zip(slots, pictures, modes, strict=True)
            if slot is not None
        ]
        observation = RawObservation(
            robot=bench.robot.name,
            images={
                slot: picture
                for slot, picture, mode in given
                if picture is not None and mode in (AS_TRAINED, "filled")
            },
            modes={slot: mode for slot, _, mode in given if mode != AS_TRAINED},
            prompt=prompt or "",
            state=values,
        )
        _check_pictures(bench, policy, observation)
        key = tuple(slot for slot, _, _ in given)
        before = found[key].policies if key in found else ()
        found[key] = Job((*before, policy), observation, options)
    return list(found.values())


def _check_pictures(bench: Bench, policy: str, observation: RawObservation) -> None:
    """Before the queue: the policy itself would say the same after it."""
    slots = [camera.slots[policy] for camera in bench.cameras if policy in camera.slots]
    robots.slot_modes(tuple(slots), observation)


def numbers(robot: Robot, state: Sequence[float | str]) -> np.ndarray:
    """What was typed into the table; raises ValueError that names the field."""
    values = []
    for dimension, value in zip(robot.state, state, strict=False):
        try:
            values.append(float(value))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{robot.title}'s state: {dimension.name} must be a number, {value!r} came"
            ) from error
    return np.array(values + list(state[len(values) :]))


def judged(bench: Bench, state: Sequence[float | str]) -> list[dict]:
    """A column of the state's table for each policy: the values as its model gets them, and which
    of them lie outside q01..q99 of its training data. [] for a state that cannot be."""
    try:
        values = robots.check_state(bench.robot, numbers(bench.robot, state))
    except ValueError:
        return []
    values = bench.robot.state_to_model(values)
    columns = []
    for info in bench.infos.values():
        stats = info.state_stats
        if stats is None:
            continue
        column = {
            "title": info.title,
            "family": info.family,
            "method": info.normalisation,
            "values": transforms.normalise(values, stats, info.normalisation).tolist(),
            "ranges": None,
        }
        if stats.q01 is not None and stats.q99 is not None:
            column["ranges"] = [
                [low, high, not low <= value <= high]
                for low, high, value in zip(stats.q01, stats.q99, values.tolist(), strict=True)
            ]
        columns.append(column)
    return columns


# --- examples -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """images: by the camera's name."""

    name: str
    prompt: str
    state: tuple[float, ...]
    images: dict[str, np.ndarray]


def examples(robot: Robot) -> list[Example]:
    """The observations in `assets/examples` that belong to the robot."""
    found = []
    for path in sorted(EXAMPLES.glob("*.json")):
        told = json.loads(path.read_text("utf-8"))
        if told["robot"] == robot.name:
            images = {
                camera: transforms.load_image(EXAMPLES / file)
                for camera, file in told["images"].items()
            }
            found.append(Example(path.stem, told["prompt"], tuple(told["state"]), images))
    return found


def words(error: Exception) -> str:
    """An error's message for Gradio's pop-ups, which read markup."""
    return html.escape(str(error))
