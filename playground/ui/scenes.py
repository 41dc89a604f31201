"""Scenes of the simulated table: another one at a click, known and repeated by its number."""

import collections
import dataclasses
import functools
import secrets
import threading

import gradio as gr
import numpy as np

from playground.robots.builtin import TABLE_CAMERA, TABLETOP
from playground.robots.examples import examples
from playground.tabletop import camera, job
from playground.trace import Trace, image_digest
from playground.ui import errors
from playground.ui.request import picture
from playground.ui.setup import Setup

MOST = 1_000_000  # scenes; any number below is one
_MOST_KNOWN = 10_000
_LOCK = threading.Lock()  # the simulator draws one picture at a time
_NOTICE = f"<p class='foreign' role='note'>{camera.FOREIGN}</p>"
_MISSING = f"New scenes and rollouts are off here. {job.MISSING}"


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """images: by camera slot, what the table's cameras see, uint8 [size, size, 3]; state: of the
    arms, 14 values."""

    images: dict[str, np.ndarray]
    state: tuple[float, ...]

    def pictures(self, setup: Setup) -> list[np.ndarray | None]:
        """Of the setup's cameras, in their order; None for one that the table lacks."""
        slots = [next(iter(camera.slots.values())) for camera in setup.cameras]
        return [self.images.get(slot.name) for slot in slots]


@functools.lru_cache(maxsize=64)
def draw(seed: int) -> Drawn:
    """The scene of a number; the same for the same number. Any thread may call it."""
    with _LOCK:
        from playground.tabletop.render import render_cameras
        from playground.tabletop.rollout import CAMERA_SLOT
        from playground.tabletop.scene import Table, random_scene

        scene = random_scene(seed)
        drawn = Drawn(render_cameras(Table(scene)), scene.state)
        know(drawn.images[CAMERA_SLOT], seed)
        return drawn


_known: collections.OrderedDict[str, int] = collections.OrderedDict()  # by the picture's digest


def know(image: np.ndarray, seed: int) -> None:
    """Remembers which scene a picture of the table's camera shows."""
    _known[image_digest(image)] = seed
    while len(_known) > _MOST_KNOWN:
        _known.popitem(last=False)


def seed_of(image: np.ndarray) -> int | None:
    """The scene that a picture shows, if it was drawn here."""
    return _known.get(image_digest(image))


@functools.lru_cache(maxsize=64)
def _cubes(seed: int) -> dict[str, tuple[float, float, float]]:
    """By colour, x, y and yaw in a scene, which each policy of a run asks for."""
    from playground.tabletop.scene import random_scene

    return random_scene(seed).cubes


def objects(trace: Trace) -> dict[str, tuple[float, float]]:
    """By name, where the cubes lie (x, y in metres) in the scene that a run was shown; {} where it
    is not known."""
    digests = trace.inputs.image_sha256.values()
    seed = next((_known[digest] for digest in digests if digest in _known), None)
    if seed is None or not job.available():
        return {}
    return {f"{colour} cube": (x, y) for colour, (x, y, _) in _cubes(seed).items()}


def thing_in(image: np.ndarray, row: int, column: int, side: int) -> str:
    """What a patch of a picture shows, such as "the red cube"; "" for nothing, or where the scene
    is not known. side: patches in a row of the picture."""
    seed = seed_of(image)
    if seed is None or not job.available():
        return ""
    from playground.tabletop.patches import cubes_in

    found = cubes_in(_cubes(seed), row, column, side)
    return " and ".join(f"the {colour} cube" for colour in found)


def fresh() -> int:
    """The number of a scene that nobody has seen."""
    return secrets.randbelow(MOST)


def number(value: object) -> int:
    """A scene's number as a visitor gave it; None for an empty field is a fresh one. Raises
    ValueError for what is none."""
    if value is None:
        return fresh()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"a scene is a whole number, {value!r} came")
    if not 0 <= value < MOST:
        raise ValueError(f"scenes go from 0 to {MOST - 1}, {value:g} came")
    return int(value)


# --- in the left column -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Scenes:
    """seed: the scene that the picture shows, empty for any other picture."""

    column: gr.Column
    seed: gr.Number
    new: gr.Button
    foreign: gr.HTML


def build(setup: Setup, seed: int | None) -> Scenes:
    there = job.available()
    for example in examples(TABLETOP):
        if example.scene is not None:
            know(example.images[TABLE_CAMERA], example.scene)
    with gr.Column(visible=setup.robot.name == TABLETOP.name, elem_classes="scene") as column:
        with gr.Row(elem_classes="scene-row"):
            new = gr.Button("New scene", size="sm", visible=there, elem_id="new-scene", min_width=0)
            number = gr.Number(
                seed, label="Scene", precision=0, minimum=0, maximum=MOST - 1, visible=there,
                elem_id="scene", min_width=0,
            )  # fmt: skip
        if not there:
            gr.HTML(f"<p class='fine'>{_MISSING}</p>", apply_default_css=False)
        foreign = gr.HTML("", apply_default_css=False, elem_id="foreign")
    return Scenes(column, number, new, foreign)


def refreshed(setup: Setup, scenes: Scenes) -> dict:
    return {scenes.column: gr.update(visible=setup.robot.name == TABLETOP.name)}


def drawn(value: object) -> tuple[int, Drawn]:
    """The scene of the number in the field, for a handler; ValueError comes as a pop-up."""
    try:
        seed = number(value)
        return seed, draw(seed)
    except ValueError as error:
        raise gr.Error(errors.escaped(error), print_exception=False) from error


def judge(robot: str, file: dict | None) -> tuple[str, int | None]:
    """The notice beside a picture that the table's camera did not take, and the scene's number of
    one that was drawn here."""
    if robot != TABLETOP.name or not file:
        return "", None
    try:
        image = picture(file["path"])
    except ValueError:  # said by the picture's own check
        return "", None
    notice = "" if camera.shows_table(image) else _NOTICE
    return notice, seed_of(image)
