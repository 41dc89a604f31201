"""The left column: the robot, its pictures, the prompt, the state, and how to run."""

import contextlib
import dataclasses
import html
from collections.abc import Sequence

import gradio as gr
import numpy as np

from playground.robots.robot import Robot
from playground.serving.events import Job
from playground.trace import Options
from playground.ui import bench as benches
from playground.ui import look, scenes
from playground.ui.bench import AS_TRAINED, Bench, Benches, Example
from playground.ui.scenes import Drawn, Scenes
from playground.views import theme

MAX_CAMERAS = 4  # pi0 and pi0-FAST on DROID: two pictures both take, and one of each alone
# How pi0-FAST decodes: what Options.guided says.
DECODING = {"as the policy is meant to": None, "free, as openpi": False, "guided": True}
MODES = (AS_TRAINED, "filled", "masked", "black")
_STATE = look.component("state.js")
_EXAMPLES = look.component("examples.js")


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
    prompt: gr.Textbox
    run: gr.Button
    stop: gr.Button
    state: gr.HTML
    steps: gr.Slider
    samples: gr.Slider
    seed: gr.Number
    temperature: gr.Slider
    max_tokens: gr.Slider
    decoding: gr.Dropdown

    @property
    def options(self) -> list:
        return [
            *(self.steps, self.samples, self.seed),
            *(self.temperature, self.max_tokens, self.decoding),
        ]

    @property
    def inputs(self) -> list:
        return [
            *(self.robot, self.policies, self.prompt, self.state),
            *self.options,
            *self.pictures,
            *self.modes,
        ]


def build(bench: Bench) -> Form:
    """Lays the column out, filled with the robot's first example; to be called inside a
    gr.Column."""
    examples_here = benches.examples(bench.robot)
    first = examples_here[0] if examples_here else None
    robot = gr.Dropdown(
        [bench.robot.name], value=bench.robot.name, label="Robot", visible=False, elem_id="robot"
    )
    policies = gr.CheckboxGroup(
        list(bench.policies), value=list(bench.policies), label="Policies", elem_id="policies"
    )
    gr.HTML("<h2>Observation</h2>", elem_classes="section", apply_default_css=False)
    examples = gr.HTML(example_cards(bench), **_EXAMPLES, elem_id="examples")
    table = scenes.build(bench, first and first.scene)
    with gr.Row(elem_classes="cameras"):
        slots = [_camera(bench, index, first) for index in range(MAX_CAMERAS)]
    columns, titles, pictures, modes = zip(*slots, strict=True)
    prompt = gr.Textbox(
        first.prompt if first else "",
        label="Prompt",
        placeholder=_placeholder(bench),
        lines=2,
        max_lines=6,
        max_length=benches.MAX_PROMPT,
        elem_id="prompt",
    )
    with gr.Row(elem_classes="buttons"):
        run = gr.Button("Run", variant="primary", elem_id="run", scale=3)
        stop = gr.Button("Stop", elem_id="stop", interactive=False, scale=1, min_width=90)
    gr.HTML('<p id="told" class="told" aria-hidden="true"></p>', apply_default_css=False)
    with gr.Accordion("State", open=True):
        state = gr.HTML(
            state_value(bench, first and first.state), judged=[], **_STATE, elem_id="state"
        )
    options = _options()
    return Form(robot, policies, examples, table, titles, columns, pictures, modes, prompt, run,
                stop, state, *options)  # fmt: skip


def _camera(bench: Bench, index: int, first: Example | None):
    here = index < len(bench.cameras)
    with gr.Column(visible=here, min_width=110, elem_classes="camera-slot") as column:
        title = gr.HTML(
            camera_title(bench, index) if here else "", elem_classes="slot", apply_default_css=False
        )
        picture = gr.Image(
            first.images.get(bench.cameras[index].name) if here and first else None,
            label=bench.cameras[index].title if here else "",
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gr.WebcamOptions(mirror=False),
            format="png",
            height=190 if index == 0 else 110,
            show_label=False,
            elem_id=f"picture-{index}",
            elem_classes="first" if index == 0 else None,
            buttons=[],
        )
        mode = gr.Dropdown(
            list(MODES), value=AS_TRAINED, show_label=False, label="How the slot is given",
            container=False, filterable=False, elem_id=f"mode-{index}",
        )  # fmt: skip
    return column, title, picture, mode


def _options():
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
    return steps, samples, seed, temperature, tokens, decoding


# --- what the column shows ----------------------------------------------------------------------


def camera_title(bench: Bench, index: int) -> str:
    """The slot's name, the robot's camera, and what an empty slot was in training."""
    camera = bench.cameras[index]
    told = f"camera {camera.name}" if camera.name else "no camera of this robot"
    slots = {bench.infos[n].title: slot for n, slot in camera.slots.items() if n in bench.infos}
    if any(slot.required for slot in slots.values()):
        told += ", needed"
    elif slots:
        told += "; empty: " + ", ".join(f"{n} {slot.when_missing}" for n, slot in slots.items())
    return f"<code>{html.escape(camera.title)}</code> <span>{html.escape(told)}</span>"


def _placeholder(bench: Bench) -> str:
    told = dict.fromkeys(i.default_prompt for i in bench.infos.values() if i.default_prompt)
    unless = f" (left empty: {' / '.join(told)})" if told else ""
    return f"what the robot shall do{unless}"


def state_value(bench: Bench, values: Sequence[float] | None) -> dict:
    dims = [{"name": theme.plain(d.name), "unit": theme.plain(d.unit)} for d in bench.robot.state]
    return {"dims": dims, "values": list(values or bench.robot.resting_state)}


def example_cards(bench: Bench) -> list[dict]:
    cards = []
    for example in benches.examples(bench.robot):
        picture = next(iter(example.images.values()))
        cards.append({"prompt": example.prompt, "picture": theme.picture(picture)["url"]})
    return cards


def refreshed(bench: Bench, robots: Sequence[Robot], form: Form) -> dict:
    """Updates for the frame: which policies, slots and examples there are. What a visitor has put
    in stays."""
    labels = [(bench.infos[n].title if n in bench.infos else n, n) for n in bench.policies]
    updates = {
        form.robot: gr.update(
            choices=[(robot.title, robot.name) for robot in robots],
            value=bench.robot.name,
            visible=len(robots) > 1,
        ),
        form.policies: gr.update(choices=labels, visible=len(bench.policies) > 1),
        form.prompt: gr.update(placeholder=_placeholder(bench)),
        form.examples: example_cards(bench),
        **scenes.refreshed(bench, form.scenes),
    }
    for index in range(MAX_CAMERAS):
        here = index < len(bench.cameras)
        updates[form.columns[index]] = gr.update(visible=here)
        updates[form.titles[index]] = camera_title(bench, index) if here else ""
        if here:
            updates[form.pictures[index]] = gr.update(label=bench.cameras[index].title)
    return updates


def filled(bench: Bench, example: Example | None, form: Form) -> dict:
    """Updates that put an example in; without one, the robot's resting state and nothing else."""
    values = example.state if example else bench.robot.resting_state
    updates = {
        form.scenes.seed: example.scene if example else None,
        form.prompt: example.prompt if example else "",
        form.state: gr.update(
            value=state_value(bench, values), judged=benches.judged(bench, values)
        ),
    }
    for index in range(MAX_CAMERAS):
        camera = bench.cameras[index].name if index < len(bench.cameras) else None
        updates[form.pictures[index]] = example.images.get(camera) if example else None
        updates[form.modes[index]] = AS_TRAINED
    return updates


def put(
    bench: Bench,
    form: Form,
    prompt: str,
    state: Sequence[float | str],
    policies: Sequence[str],
    options: Options,
    pictures: Sequence[np.ndarray | str | None],
    modes: Sequence[str],
) -> dict:
    """Updates that set the whole column; `pictures` and `modes` belong to `bench.cameras`."""
    updates = {
        form.prompt: prompt,
        form.state: gr.update(value=state_value(bench, state), judged=benches.judged(bench, state)),
        form.policies: gr.update(value=list(policies)),
        form.steps: gr.update(value=options.num_steps),
        form.samples: gr.update(value=options.num_samples),
        form.seed: gr.update(value=options.seed),
        form.temperature: gr.update(value=options.temperature),
        form.max_tokens: gr.update(value=options.max_tokens),
        form.decoding: gr.update(
            value=next(name for name, guided in DECODING.items() if guided is options.guided)
        ),
    }
    for index, picture in enumerate(form.pictures):
        here = index < len(bench.cameras)
        updates[picture] = gr.update(value=pictures[index] if here else None)
        updates[form.modes[index]] = modes[index] if here else AS_TRAINED
    return updates


def placed(bench: Bench, seed: int, drawn: Drawn, form: Form) -> dict:
    """Updates that put a scene of the table in; the prompt stays."""
    judged = benches.judged(bench, drawn.state)
    return {
        form.scenes.seed: seed,
        form.pictures[0]: drawn.image,
        form.modes[0]: AS_TRAINED,
        form.state: gr.update(value=state_value(bench, drawn.state), judged=judged),
    }


def effects(bench: Bench, chosen: Sequence[str], temperature: float, form: Form) -> dict:
    """Controls that would change nothing are closed and say why."""
    families = {bench.infos[name].family for name in chosen if name in bench.infos}
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
            info=_decoding_info(bench, chosen) if fast else why_fast,
        ),
    }


def _decoding_info(bench: Bench, chosen: Sequence[str]) -> str:
    told = "Guided: only tokens that keep the chunk decodable may follow. "
    guided = {bench.infos[n].guided for n in chosen if bench.infos[n].family == "pi0_fast"}
    ways = " or ".join("guided" if way else "free" for way in sorted(guided))
    return f"{told}Without a choice here: {ways}."


# --- what the column says -----------------------------------------------------------------------


def jobs(
    every: Benches, robot, policies, prompt, state, steps, samples, seed, temperature, most,
    decoding, *rest, attention: bool = False,
) -> tuple[Bench, list[Job]]:  # fmt: skip
    """What a visitor asks for, from the values of `Form.inputs`; raises ValueError that says what
    to mend."""
    fields = {"steps": steps, "samples": samples, "seed": seed, "temperature": temperature}
    fields["most tokens"] = most
    for name, value in fields.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) < 2**53:
            raise ValueError(f"the field {name} needs a number, it holds {value!r:.60}")
    if not isinstance(decoding, str) or decoding not in DECODING:
        raise ValueError(f"decoding is one of {', '.join(DECODING)}; {decoding!r:.60} came")
    options = Options(
        int(steps), int(samples), int(seed), float(temperature), int(most), bool(attention),
        DECODING[decoding],
    )  # fmt: skip
    bench = every.of(robot)
    files = [file and file["path"] for file in rest[:MAX_CAMERAS]]
    modes = rest[MAX_CAMERAS : MAX_CAMERAS + len(bench.cameras)]
    found = pictures(bench, files)
    values = state.get("values") if isinstance(state, dict) else None
    return bench, benches.jobs(bench, policies or [], found, modes, prompt, values, options)


def pictures(bench: Bench, paths: Sequence[str | None]) -> list[np.ndarray | None]:
    """The files of the bench's cameras, read; raises ValueError that names the slot."""
    found = []
    for camera, path in zip(bench.cameras, paths, strict=False):
        try:
            found.append(None if path is None else benches.picture(path))
        except ValueError as error:
            raise ValueError(f"{camera.title}: {error}") from error
    return found


def present(*files: dict | None) -> list[np.ndarray]:
    """The pictures on the page that can be read, from the values of `Form.pictures`."""
    found = []
    for file in filter(None, files):
        with contextlib.suppress(ValueError, OSError):
            found.append(benches.picture(file["path"]))
    return found
