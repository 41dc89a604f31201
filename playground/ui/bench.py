"""What stands on the page at the moment: a robot, its policies, and the pictures they ask for."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from playground.robots import robot as robots
from playground.robots import transforms
from playground.robots.robot import Robot
from playground.serving.events import Job
from playground.serving.worker import Down, Worker
from playground.trace import Options, PolicyInfo, RawObservation, Slot

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"
AS_TRAINED = "as trained"
MAX_PICTURE = 10 << 20  # bytes of a file
MAX_PROMPT = 10_000  # characters


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
    loaded. robots: by policy, with the conventions that its numbers follow."""

    robot: Robot
    policies: tuple[str, ...]
    infos: dict[str, PolicyInfo]
    cameras: tuple[Camera, ...]
    robots: dict[str, Robot]


class Benches:
    """The benches of the policies, one a robot. `robots`: of every policy, by its name."""

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

    def of(self, robot: str | None = None) -> Bench:
        """The bench of the robot of that name, the first without one. Raises ValueError for a
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
        return Bench(next(iter(here.values())), tuple(here), infos, merged(slots), here)


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
    """One job for all policies that name the slots alike and are told the same. `pictures` and
    `modes` belong to `bench.cameras`; where nothing is said, each policy gets its default prompt.
    Raises ValueError that says what to mend."""
    _check_kinds(policies, prompt, state)
    if unknown := set(policies) - set(bench.policies):
        raise ValueError(f"no loaded policy is called {', '.join(sorted(unknown))}")
    if not policies:
        raise ValueError("choose at least one policy to run")
    names = [[slot.name for slot in bench.robot.slots(kind)] for kind in ("pi0", "pi0_fast")]
    said = (prompt or "").strip()
    if not bench.infos and (names[0] != names[1] or not said):
        raise ValueError("the policies are still being loaded; run when the page says so")
    values = robots.check_state(bench.robot, numbers(bench.robot, state))
    found: dict[tuple, Job] = {}
    for policy in policies:
        default = bench.infos[policy].default_prompt if policy in bench.infos else None
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
            prompt=prompt if said else default or prompt or "",
            state=values,
        )
        _check_pictures(bench, policy, observation)
        key = (observation.prompt, *(slot for slot, _, _ in given))
        before = found[key].policies if key in found else ()
        found[key] = Job((*before, policy), observation, options)
    return list(found.values())


def _check_kinds(policies: object, prompt: object, state: object) -> None:
    """Whoever speaks to the server without the page may send anything."""
    for name, value in (("the policies", policies), ("the state", state)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, {value!r:.60} came")
    if not isinstance(prompt, str | None) or not all(isinstance(name, str) for name in policies):
        raise ValueError("the prompt and each name of a policy must be text")
    if prompt and len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"the prompt has {len(prompt):,} characters, at most {MAX_PROMPT:,} are taken: shorten "
            "it (the models read a sentence or two)"
        )


def _check_pictures(bench: Bench, policy: str, observation: RawObservation) -> None:
    """Before the queue: the policy itself would say the same after it."""
    slots = [camera.slots[policy] for camera in bench.cameras if policy in camera.slots]
    robots.slot_modes(tuple(slots), observation)
    if policy in bench.infos:
        size = bench.infos[policy].image_size
        for slot, picture in observation.images.items():
            try:
                transforms.fitted_size(*picture.shape[:2], size, size)
            except ValueError as error:
                raise ValueError(f"{slot}: {error}") from error


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


def judged(bench: Bench, given: Sequence[float | str]) -> list[dict]:
    """A column of the state's table for each policy: the values as its model gets them, and which
    of them lie outside q01..q99 of its training data. [] for a state that cannot be."""
    try:
        values = robots.check_state(bench.robot, numbers(bench.robot, given))
    except ValueError:
        return []
    columns = []
    for name, info in bench.infos.items():
        stats = info.state_stats
        if stats is None:
            continue
        state = bench.robots[name].state_to_model(values)
        column = {
            "title": info.title,
            "family": info.family,
            "method": info.normalisation,
            "values": transforms.normalise(state, stats, info.normalisation).tolist(),
            "ranges": None,
        }
        if stats.q01 is not None and stats.q99 is not None:
            column["ranges"] = [
                [low, high, not low <= value <= high]
                for low, high, value in zip(stats.q01, stats.q99, state.tolist(), strict=True)
            ]
        columns.append(column)
    return columns


# --- examples -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """images: by the camera's name. scene: the number of the table's scene that they show."""

    name: str
    prompt: str
    state: tuple[float, ...]
    images: dict[str, np.ndarray]
    scene: int | None


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
            state, scene = tuple(told["state"]), told.get("scene")
            found.append(Example(path.stem, told["prompt"], state, images, scene))
    return found


def picture(path: str | Path) -> np.ndarray:
    """A file that a visitor gave, as `transforms.load_image` reads it; raises ValueError."""
    if Path(path).stat().st_size > MAX_PICTURE:
        raise ValueError(
            f"the picture's file is larger than {MAX_PICTURE >> 20} MB: scale it down (the models "
            "see 224 x 224)"
        )
    return transforms.load_image(path)


def words(error: Exception | str) -> str:
    """A message for Gradio's pop-ups, which read markup."""
    return html.escape(str(error))
