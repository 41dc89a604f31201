"""Opening a dataset on the page, and what is what in it: asked once, and kept by the browser."""

import dataclasses
from collections.abc import Mapping, Sequence

import gradio as gr
from pydantic import ValidationError

from playground.datasets.info import Info
from playground.datasets.lerobot import Episode
from playground.datasets.matching import Choice, Match, Misfit, checked, of_policy
from playground.ui import errors
from playground.ui.setup import Setup

_STORAGE, _SECRET = "pi0-playground-episodes", "pi0-playground-1"
_MOST_KEPT = 50  # datasets
BY_NAME = ""  # of a drop-down: names decide


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The small form on what is what. memory: what the browser keeps, choices by dataset."""

    panel: gr.Accordion
    state: gr.Dropdown
    actions: gr.Dropdown
    degrees: gr.Checkbox
    cameras: tuple[gr.Dropdown, ...]
    anyway: gr.Checkbox
    use: gr.Button
    memory: gr.BrowserState

    @property
    def inputs(self) -> list:
        return [self.state, self.actions, self.degrees, self.anyway, *self.cameras]

    @property
    def outputs(self) -> list:
        return [self.panel, *self.inputs]


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """How an episode is a robot's. matches: by policy that it fits; reasons: why others cannot;
    notes: to know; doubts: to be cleared up first; anyway: whether to go on in spite of them."""

    matches: dict[str, Match]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    anyway: bool

    @property
    def match(self) -> Match | None:
        """One of them: robot and columns are the same for all."""
        return next(iter(self.matches.values()), None)

    def check(self) -> None:
        """Raises ValueError before anything is predicted that could not be believed."""
        if not self.matches:
            no_fit = "no policy here fits this dataset; the reasons stand above"
            raise ValueError(no_fit if self.reasons else "the policies are still being loaded")
        if self.doubts and not self.anyway:
            raise ValueError(
                "this dataset raises doubts (above): clear them up under “How the dataset is "
                "read”, or tick “Predict in spite of the doubts”"
            )


def build(cameras: int) -> Reading:
    """To be called inside the tab. cameras: as many as any robot here has."""
    with gr.Accordion(
        "How the dataset is read", open=False, visible=False, elem_id="what-is-what"
    ) as panel:
        with gr.Row():
            state = gr.Dropdown([], label="State", elem_id="state-column")
            actions = gr.Dropdown([], label="Actions", elem_id="action-column")
        with gr.Row():
            slots = tuple(
                gr.Dropdown([], label="Camera", visible=False, elem_id=f"recorded-camera-{i}")
                for i in range(cameras)
            )
        degrees = gr.Checkbox(label="Its angles are in degrees", elem_id="degrees")
        anyway = gr.Checkbox(label="Predict in spite of the doubts", elem_id="anyway")
        use = gr.Button("Use and keep this", size="sm", scale=0, elem_id="use-match")
    memory = gr.BrowserState({}, storage_key=_STORAGE, secret=_SECRET)
    return Reading(panel, state, actions, degrees, slots, anyway, use, memory)


def choice_of(setup: Setup, info: Info, values: Sequence) -> tuple[Choice, bool]:
    """(what the form says, whether to go on in spite of doubts). values: of `Reading.inputs`; what
    the dataset does not have counts as not said."""
    state, actions, degrees, anyway, *cameras = values
    chosen = {
        slot.name: name
        for camera, name in zip(setup.cameras, cameras, strict=False)
        for slot in camera.slots.values()
        if name in info.cameras
    }
    columns = [name if name in info.numbers else None for name in (state, actions)]
    choice = Choice(state=columns[0], actions=columns[1], degrees=bool(degrees), cameras=chosen)
    return choice, bool(anyway)


def fit(setup: Setup, info: Info, episode: Episode, choice: Choice, anyway: bool) -> Fit:
    """Of every loaded policy of the robot."""
    matches: dict[str, Match] = {}
    reasons: dict[str, list[str]] = {}
    for name, policy in setup.infos.items():
        own = of_policy(choice, policy)
        try:
            matches[name] = checked(info, policy, setup.robots[name], own, episode)
        except Misfit as misfit:
            for reason in misfit.reasons:
                reasons.setdefault(reason, []).append(policy.title)
        except ValueError as error:
            reasons.setdefault(f"{error}.", []).append(policy.title)
    found = matches.values()
    notes = tuple(dict.fromkeys(note for match in found for note in match.notes))
    doubts = tuple(dict.fromkeys(doubt for match in found for doubt in match.doubts))
    return Fit(matches, _said_once(reasons), notes, doubts, anyway)


def _said_once(reasons: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Each reason with the policies that it keeps out: theirs are mostly the same."""
    return tuple(f"It does not fit {' and '.join(who)}: {why}" for why, who in reasons.items())


def shown(setup: Setup, info: Info, choice: Choice, found: Fit, reading: Reading) -> dict:
    """The form as the dataset has it; open where something has to be said."""
    by_name = ("by name", BY_NAME)
    vectors = [by_name, *((name, name) for name in sorted(info.numbers))]
    updates = {
        reading.panel: gr.update(visible=True, open=bool(found.reasons or found.doubts)),
        reading.state: gr.update(choices=vectors, value=choice.state or BY_NAME),
        reading.actions: gr.update(choices=vectors, value=choice.actions or BY_NAME),
        reading.degrees: choice.degrees,
        reading.anyway: gr.update(visible=bool(found.doubts), value=found.anyway),
    }
    names = [by_name, *((name, name) for name in info.cameras)]
    for i, part in enumerate(reading.cameras):
        here = i < len(setup.cameras)
        value, label = BY_NAME, ""
        if here:
            slots = [slot.name for slot in setup.cameras[i].slots.values()]
            value = next((choice.cameras[s] for s in slots if s in choice.cameras), BY_NAME)
            label = setup.cameras[i].title
        updates[part] = gr.update(visible=here, choices=names, value=value, label=label)
    return updates


def sentences(found: Fit) -> str:
    """What is to be known about the match, as HTML."""
    kinds = (("failed", found.reasons), ("warned", found.doubts), ("", found.notes))
    lines = [
        f"<li class='{kind}'>{errors.escaped(text)}</li>" for kind, texts in kinds for text in texts
    ]
    return f"<ul class='fit'>{''.join(lines)}</ul>" if lines else ""


# --- what the browser keeps ---------------------------------------------------------------------


def remembered(kept: object, title: str) -> Choice:
    """What was said about this dataset before. What a browser sends is not trusted: what makes no
    sense is forgotten."""
    said = kept.get(title) if isinstance(kept, Mapping) else None
    try:
        return Choice.model_validate(said)
    except ValidationError:
        return Choice(cameras={})


def remember(kept: object, title: str, choice: Choice) -> dict[str, object]:
    """What the browser is to keep from now on."""
    before = dict(kept) if isinstance(kept, Mapping) else {}
    before.pop(title, None)
    newest = [*before.items()][-(_MOST_KEPT - 1) :]
    return {**dict(newest), title: choice.model_dump(mode="json")}
