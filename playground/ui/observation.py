"""The left column: the robot, its pictures, the prompt, the state, and how to run."""

import contextlib
import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from playground.robots.examples import Example, examples
from playground.robots.robot import Robot
from playground.trace import Options
from playground.ui import appearance, cuts, prompt_bar, scenes
from playground.ui.prompt_bar import Bar
from playground.ui.request import AS_TRAINED, RunRequest, picture
from playground.ui.scenes import Drawn, Scenes
from playground.ui.setup import Setup, Setups, judged
from playground.views import theme

# How pi0-FAST decodes: what Options.constrained says.
DECODING = {"as the policy is meant to": None, "free, as openpi": False, "constrained": True}
MODES = (AS_TRAINED, "filled", "masked", "black")
_STATE = appearance.component("state.js")
_EXAMPLES = appearance.component("examples.js")
_ABSENT = appearance.component("absent.js")


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The components of the column. What they hold, in order, is what `Form.inputs` gives, for
    handlers without preprocessing: a picture must arrive as the file it was, for
    `transforms.load_image` alone decides what is one, how large it may be and which way is up."""

    robot: gr.Dropdown
    policies: gr.CheckboxGroup
    examples: gr.HTML
    scenes: Scenes
    titles: tuple[gr.HTML, ...]
    columns: tuple[gr.Column, ...]
    pictures: tuple[gr.Image, ...]
    modes: tuple[gr.Radio, ...]
    absent: gr.HTML
    notes: gr.HTML
    prompt: gr.Textbox
    rewordings: gr.HTML
    cuts: gr.HTML
    run: gr.Button
    stop: gr.Button
    state: gr.HTML
    steps: gr.Slider
    samples: gr.Slider
    seed: gr.Number
    temperature: gr.Slider
    max_tokens: gr.Slider
    decoding: gr.Dropdown
    guidance: gr.Slider

    @property
    def options(self) -> list:
        return [
            *(self.steps, self.samples, self.seed),
            *(self.temperature, self.max_tokens, self.decoding, self.guidance),
        ]

    @property
    def inputs(self) -> list:
        return [
            *(self.robot, self.policies, self.prompt, self.state),
            *self.options,
            self.cuts,
            *self.pictures,
            *self.modes,
        ]


def build(setup: Setup, cameras: int, bar: Bar) -> Form:
    """Lays the column out, filled with the robot's first example; to be called inside a
    gr.Column. cameras: as many pictures as any robot here asks for. bar: the prompt above it."""
    first = next(iter(examples(setup.robot)), None)
    robot = gr.Dropdown(
        [setup.robot.name], value=setup.robot.name, label="Robot", visible=False, elem_id="robot"
    )
    cards = gr.HTML(example_cards(setup), **_EXAMPLES, elem_id="examples")
    table = scenes.build(setup, first and first.scene)
    with gr.Row(elem_classes="cameras"):
        slots = [_camera(setup, index, first) for index in range(cameras)]
    columns, titles, pictures, modes = zip(*slots, strict=True)
    absent = gr.HTML(absent_slots(setup), **_ABSENT, elem_id="absent")
    notes = gr.HTML(robot_notes(setup), apply_default_css=False, elem_id="robot-notes")
    policies = gr.CheckboxGroup(
        list(setup.policies), value=list(setup.chosen), label="Policies", elem_id="policies"
    )
    with gr.Accordion("State", open=False, elem_id="state-of-robot"):
        state = gr.HTML(
            state_value(setup, first and first.state), judged=[], **_STATE, elem_id="state"
        )
    options = _options()
    return Form(
        robot=robot,
        policies=policies,
        examples=cards,
        scenes=table,
        titles=titles,
        columns=columns,
        pictures=pictures,
        modes=modes,
        absent=absent,
        notes=notes,
        prompt=bar.prompt,
        rewordings=bar.rewordings,
        cuts=bar.cuts,
        run=bar.run,
        stop=bar.stop,
        state=state,
        **options,
    )


def _camera(setup: Setup, index: int, first: Example | None):
    here = index < len(setup.cameras)
    with gr.Column(visible=here, min_width=90, elem_classes="camera-slot") as column:
        title = gr.HTML(
            camera_title(setup, index) if here else "", elem_classes="slot", apply_default_css=False
        )
        picture = gr.Image(
            first.images.get(setup.cameras[index].name) if here and first else None,
            label=setup.cameras[index].title if here else "",
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gr.WebcamOptions(mirror=False),
            format="png",
            height=128,
            show_label=False,
            elem_id=f"picture-{index}",
            buttons=[],
        )
        mode = gr.Dropdown(
            list(MODES), value=AS_TRAINED, show_label=False, label="How the slot is given",
            container=False, filterable=False, elem_id=f"mode-{index}",
        )  # fmt: skip
    return column, title, picture, mode


def _options() -> dict[str, Any]:
    """By the names that `Form` has for them."""
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        steps = gr.Slider(1, 100, 10, step=1, label="Denoising steps", elem_id="steps")
        samples = gr.Slider(1, 32, 1, step=1, label="Samples", elem_id="samples")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", elem_id="temperature")
        tokens = gr.Slider(8, 512, 256, step=8, label="Most tokens", elem_id="max-tokens")
        decoding = gr.Dropdown(
            list(DECODING), value=next(iter(DECODING)), label="Decoding", filterable=False,
            elem_id="decoding",
        )  # fmt: skip
        guidance = gr.Slider(0, 3, 1, step=0.05, label="Prompt weight", elem_id="prompt-weight")
    return {
        "steps": steps,
        "samples": samples,
        "seed": seed,
        "temperature": temperature,
        "max_tokens": tokens,
        "decoding": decoding,
        "guidance": guidance,
    }


# --- what the column shows ----------------------------------------------------------------------


def camera_title(setup: Setup, index: int) -> str:
    """The slot's name, the robot's camera, and what an empty slot was in training."""
    camera = setup.cameras[index]
    text = f"camera {camera.name}" if camera.name else "no camera of this robot"
    slots = {setup.infos[n].title: slot for n, slot in camera.slots.items() if n in setup.infos}
    if any(slot.required for slot in slots.values()):
        text += ", needed"
    elif slots:
        text += "; empty: " + ", ".join(f"{n} {slot.when_missing}" for n, slot in slots.items())
    kind = "present" if camera.name else "absent"
    return (
        f"<code class='{kind}'>{html.escape(camera.title)}</code> <span>{html.escape(text)}</span>"
    )


def absent_slots(setup: Setup) -> str:
    """One line for the inputs that the robot has no camera for; "" where there are none."""
    absent = [camera for camera in setup.cameras if not camera.name]
    if not absent:
        return ""
    ways = {
        setup.infos[name].title: slot.when_missing
        for camera in absent
        for name, slot in camera.slots.items()
        if name in setup.infos
    }
    verbs = {"masked": "masks", "black": "sees black in"}
    which = "them" if len(absent) > 1 else "it"
    how = ", ".join(f"{title} {verbs[way]} {which}" for title, way in ways.items())
    return f"{len(absent)} more input{'s' * (len(absent) > 1)}, empty" + (f": {how}" if how else "")


def robot_notes(setup: Setup) -> str:
    """What a person should read before feeding the robot, with the policies that it holds for where
    it does not hold for all."""
    found: dict[str, list[str]] = {}
    for policy, robot in setup.robots.items():
        for note in robot.notes:
            found.setdefault(note, []).append(policy)
    lines = []
    for note, policies in found.items():
        who = "" if len(policies) == len(setup.robots) else f"{theme.listed(policies)}: "
        lines.append(f"<p class='fine'>{html.escape(theme.plain(who + note))}</p>")
    return "".join(lines)


def state_value(setup: Setup, values: Sequence[float | str] | None) -> dict:
    dims = [{"name": theme.plain(d.name), "unit": theme.plain(d.unit)} for d in setup.robot.state]
    return {"dims": dims, "values": list(values or setup.robot.resting_state)}


def example_cards(setup: Setup) -> list[dict]:
    cards = []
    for example in examples(setup.robot):
        picture = next(iter(example.images.values()))
        cards.append({"prompt": example.prompt, "picture": theme.picture(picture)["url"]})
    return cards


def refreshed(setup: Setup, robots: Sequence[Robot], form: Form) -> dict:
    """Updates for the frame: which policies, slots and examples there are. What a visitor has put
    in stays."""
    labels = [(setup.infos[n].title if n in setup.infos else n, n) for n in setup.policies]
    updates = {
        form.robot: gr.update(
            choices=[(robot.title, robot.name) for robot in robots],
            value=setup.robot.name,
            visible=len(robots) > 1,
        ),
        form.policies: gr.update(choices=labels, visible=len(setup.policies) > 1),
        form.prompt: gr.update(placeholder=prompt_bar.placeholder(setup)),
        form.absent: absent_slots(setup),
        form.notes: robot_notes(setup),
        form.rewordings: gr.update(words=prompt_bar.words(setup.robot)),
        form.examples: example_cards(setup),
        **scenes.refreshed(setup, form.scenes),
    }
    for index in range(len(form.pictures)):
        here = index < len(setup.cameras)
        updates[form.columns[index]] = gr.update(visible=here)
        updates[form.titles[index]] = camera_title(setup, index) if here else ""
        if here:
            updates[form.pictures[index]] = gr.update(label=setup.cameras[index].title)
    return updates


def filled(setup: Setup, example: Example | None, form: Form) -> dict:
    """Updates that put an example in; without one, the robot's resting state and nothing else."""
    values = example.state if example else setup.robot.resting_state
    updates = {
        form.scenes.seed: example.scene if example else None,
        form.prompt: example.prompt if example else "",
        form.state: gr.update(value=state_value(setup, values), judged=judged(setup, values)),
    }
    for index in range(len(form.pictures)):
        camera = setup.cameras[index].name if index < len(setup.cameras) else None
        updates[form.pictures[index]] = given(
            example.images.get(camera) if example and camera else None
        )
        updates[form.modes[index]] = AS_TRAINED
    return updates


def put(
    setup: Setup,
    form: Form,
    prompt: str,
    state: Sequence[float | str],
    policies: Sequence[str],
    options: Options,
    pictures: Sequence[np.ndarray | str | None],
    modes: Sequence[str],
) -> dict:
    """Updates that set the whole column; `pictures` and `modes` are of the slots, in order."""
    updates = {
        form.prompt: prompt,
        form.state: gr.update(value=state_value(setup, state), judged=judged(setup, state)),
        form.policies: gr.update(value=list(policies)),
        form.steps: gr.update(value=options.num_steps),
        form.samples: gr.update(value=options.num_samples),
        form.seed: gr.update(value=options.seed),
        form.temperature: gr.update(value=options.temperature),
        form.max_tokens: gr.update(value=options.max_tokens),
        form.decoding: gr.update(
            value=next(name for name, way in DECODING.items() if way is options.constrained)
        ),
        form.guidance: gr.update(value=options.guidance),
        form.cuts: cuts.value(options.cuts),
    }
    for index, part in enumerate(form.pictures):
        updates[part] = given(pictures[index] if index < len(pictures) else None)
        updates[form.modes[index]] = modes[index] if index < len(pictures) else AS_TRAINED
    return updates


def given(picture: np.ndarray | str | None) -> dict:
    """The update of a slot that puts a picture in. As a plain value, Gradio (6.31) would note its
    file with a visitor's copy of the component, of which the guard does not know."""
    return gr.update(value=picture)


def placed(setup: Setup, seed: int, drawn: Drawn, form: Form) -> dict:
    """Updates that put a scene of the table in; the prompt stays, and so do slots that none of its
    cameras fills."""
    updates = {
        form.scenes.seed: seed,
        form.state: gr.update(
            value=state_value(setup, drawn.state), judged=judged(setup, drawn.state)
        ),
    }
    for index, seen in enumerate(drawn.pictures(setup)):
        if seen is not None:
            updates |= {form.pictures[index]: given(seen), form.modes[index]: AS_TRAINED}
    return updates


def effects(setup: Setup, chosen: Sequence[str], temperature: float, form: Form) -> dict:
    """Controls that would change nothing are closed and say why."""
    families = {setup.infos[name].family for name in chosen if name in setup.infos}
    if not families:
        return {}
    flow, fast = bool(families - {"pi0_fast"}), "pi0_fast" in families
    drawn = fast and (temperature or 0) > 0
    why_flow = "Has no effect: no chosen policy denoises."
    why_fast = "Has no effect: no chosen policy writes tokens."
    seed = "The noise that denoising starts from."
    if flow and drawn:
        seed += " pi0-FAST draws its tokens with it too."
    elif flow and fast:
        seed += " No effect on pi0-FAST: at temperature 0 it takes the likeliest token."
    elif drawn:
        seed = "pi0-FAST draws its tokens with it."
    else:
        seed = "Has no effect: at temperature 0 pi0-FAST takes the likeliest token."
    return {
        form.steps: gr.update(
            interactive=flow, info="Euler steps from noise to actions." if flow else why_flow
        ),
        form.samples: gr.update(
            interactive=flow,
            info="Chunks from different noise, sample i from seed + i." if flow else why_flow,
        ),
        form.seed: gr.update(interactive=flow or drawn, info=seed),
        form.temperature: gr.update(
            interactive=fast, info="0 takes the likeliest token." if fast else why_fast
        ),
        form.max_tokens: gr.update(
            interactive=fast, info="Where decoding gives up." if fast else why_fast
        ),
        form.decoding: gr.update(
            interactive=fast,
            info=_decoding_info(setup, chosen) if fast else why_fast,
        ),
        form.guidance: gr.update(
            interactive=flow,
            info="1 is the policy itself; 0 as if the prompt were empty." if flow else why_flow,
        ),
    }


def _decoding_info(setup: Setup, chosen: Sequence[str]) -> str:
    rule = "Constrained: only tokens that keep the chunk decodable may follow. "
    fast = [setup.infos[name] for name in chosen if setup.infos[name].family == "pi0_fast"]
    ways = " or ".join(sorted({"constrained" if info.constrained else "free" for info in fast}))
    return f"{rule}Without a choice here: {ways}."


# --- what the column says -----------------------------------------------------------------------


def request(setups: Setups, inputs: Sequence, **more: object) -> RunRequest:
    """What a visitor asks for. inputs: the values of `Form.inputs`; more: further fields of the
    request. Raises ValueError that says what to mend."""
    robot, policies, prompt, state, *options, cut = inputs[:12]
    steps, samples, seed, temperature, most, decoding, guidance = options
    rest = inputs[12:]
    if not isinstance(decoding, str) or decoding not in DECODING:
        raise ValueError(f"decoding is one of {', '.join(DECODING)}; {decoding!r:.60} came")
    if not isinstance(state, dict) or not isinstance(state.get("values"), list):
        raise ValueError(f"the state must be a list, {state!r:.60} came")
    files, modes = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    # A camera's first slot stands for all of them.
    names = [next(iter(camera.slots.values())).name for camera in setups.of(robot).cameras]
    return RunRequest.checked(
        {
            "robot": robot,
            "policies": policies or [],
            "prompt": prompt,
            "state": state["values"],
            "images": {n: file for n, file in zip(names, files, strict=False) if file},
            "modes": {n: mode for n, mode in zip(names, modes, strict=False) if mode != AS_TRAINED},
            "num_steps": steps,
            "num_samples": samples,
            "seed": seed,
            "temperature": temperature,
            "max_tokens": most,
            "constrained": DECODING[decoding],
            "guidance": guidance,
            "cuts": cuts.asked(cut),
            **more,
        }
    )


def present(*files: dict | None) -> list[np.ndarray]:
    """The pictures on the page that can be read, from the values of `Form.pictures`."""
    found = []
    for file in filter(None, files):
        with contextlib.suppress(ValueError, OSError):
            found.append(picture(file["path"]))
    return found
