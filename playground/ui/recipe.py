"""The tab "Recipe": the last run as text and files, and a way back from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import gradio as gr
import numpy as np

from playground import run_file
from playground.robots.examples import examples
from playground.run_file import Opened
from playground.trace import Trace, image_digest
from playground.ui import appearance, decoding, errors, observation, results
from playground.ui.observation import Form
from playground.ui.request import AS_TRAINED
from playground.ui.setup import Camera, Setup
from playground.views import overview

_SHOWN = appearance.component("recipe.js")
_ABOUT = (
    "The ZIP holds the recipe, the pictures as given (where they are too large together, as the "
    "models saw them), every number as arrays, and the figures in a page of their own. A picture "
    "saved under Actions carries the recipe too."
)
_OPEN = (
    "<p class='lead'>Open what was saved here, a JSON, a ZIP or a picture: the page is set as it "
    "was, the policies run again, and the page says whether they gave the same.</p>"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    """opened: what a file held, while it is being run again; again: changes to have it run."""

    file: gr.UploadButton
    status: gr.HTML
    opened: gr.State
    again: gr.State


def build() -> Tab:
    gr.HTML(_OPEN, apply_default_css=False)
    file = gr.UploadButton(
        "Open a recipe", file_types=[".json", ".zip", ".png"], size="md", elem_id="open-recipe"
    )
    status = gr.HTML("", apply_default_css=False, elem_id="recipe-status")
    gr.HTML(overview.reference(part="recipe"), **_SHOWN, elem_id="recipe")
    return Tab(file=file, status=status, opened=gr.State(None), again=gr.State(0))


def payload(traces: Mapping[str, Trace], key: str) -> dict[str, str]:
    """What the tab shows of a run."""
    return {
        "text": run_file.to_json(run_file.of(traces)),
        "file": results.run_name(traces),
        "link": results.run_link(key),
        "about": _ABOUT,
    }


def read(path: str) -> Opened:
    """Raises ValueError for a file that is no recipe."""
    if Path(path).stat().st_size > run_file.MAX_FILE:
        raise ValueError(f"the file is too large: at most {run_file.MAX_FILE >> 20} MB are taken")
    return decoding.opened(Path(path).read_bytes)


def light(opened: Opened) -> Opened:
    """Without its pictures, to be kept until the run it describes has been judged."""
    return dataclasses.replace(opened, pictures={})


def restored(
    setup: Setup, opened: Opened, present: Sequence[np.ndarray | None], form: Form
) -> tuple[dict, list[str]]:
    """(updates that set the page as the recipe has it, sentences on what is missing for a run).

    present: pictures on the page now; they serve where the file holds none, as examples do. Raises
    ValueError when no policy of the recipe is here.
    """
    run = opened.recipe
    here = [ran for ran in run.policies if ran.name in setup.policies]
    missing = [f"{r.name} is not loaded here." for r in run.policies if r not in here]
    if not here:
        raise ValueError(f"the page cannot be set: {' '.join(missing)}")
    known = {image_digest(picture): picture for picture in present if picture is not None}
    for example in examples(setup.robot):
        known |= {image_digest(picture): picture for picture in example.images.values()}
    known |= opened.pictures
    pictures, modes = [], []
    for camera in setup.cameras:
        digest, mode = _given(here, camera)
        if digest is not None and digest not in known:
            missing.append(f"The picture of {camera.title} is not in the file; give it, then run.")
        pictures.append(known.get(digest or ""))
        modes.append(mode)
    updates = observation.put(
        setup, form, run.prompt, run.state, [r.name for r in here], run.options, pictures, modes
    )
    return updates, missing


def _given(here: Sequence[run_file.Ran], camera: Camera) -> tuple[str | None, str]:
    """(digest of a camera's picture or None, how its slot was given)."""
    slots = [(ran, camera.slots[ran.name]) for ran in here if ran.name in camera.slots]
    for ran, slot in slots:
        if ran.modes.get(slot.name) == "filled":
            return ran.image_sha256.get(slot.name), AS_TRAINED
    modes = {ran.modes.get(slot.name, slot.when_missing) for ran, slot in slots}
    usual = all(
        not slot.required and ran.modes.get(slot.name, slot.when_missing) == slot.when_missing
        for ran, slot in slots
    )
    return None, AS_TRAINED if usual else modes.pop()


def verdict(opened: Opened | None, traces: Mapping[str, Trace]) -> str:
    """Whether what was run last repeats what was opened, for the tab's status."""
    if opened is None:
        return ""
    run = run_file.of(traces) if traces else None
    same = ("robot", "prompt", "state", "options")
    if run is None or any(getattr(run, n) != getattr(opened.recipe, n) for n in same):
        return sentences(["The page is set as it was; it did not run again."])
    return sentences([found.text for found in run_file.verdicts(opened, traces)])


def sentences(texts: Sequence[str]) -> str:
    return "".join(f"<p class='compare' role='status'>{errors.escaped(text)}</p>" for text in texts)
