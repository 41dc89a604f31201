"""The tab "Causes": where the difference between two prompts acts, and the prompt weighed."""

import dataclasses
import json

import gradio as gr
import numpy as np

from playground.analysis.causal import (
    NOISES,
    CausalRequest,
    CausalTrace,
    Cell,
    CellRequest,
    top_patch,
)
from playground.analysis.variants import rewordings, slot_label
from playground.codec import encode
from playground.serving.worker import Worker
from playground.trace import FlowTrace, RawObservation
from playground.ui import (
    appearance,
    controls,
    errors,
    observation,
    occlusion,
    prompt_bar,
    scenes,
)
from playground.ui.controls import Controls
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring, MeasuringPatches
from playground.ui.observation import Form
from playground.ui.request import MAX_PROMPT
from playground.ui.results import Results
from playground.ui.runs import STOPPED, Runs, submit
from playground.ui.setup import Setup, Setups
from playground.views import causes as view

_UPDATE_EVERY_S = 0.5
_INTRODUCTION = (
    "Where in the model does a word act? The other prompt runs, but one place inside the model is "
    "taken over from the run of the prompt above (activation patching). Where that makes the robot "
    "do what the prompt above says, the difference between the two acts."
)
_CELL = {"policy": str, "group": str, "layer": int | None, "patch": int | None}


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    """other: the prompt to compare with; cell: which patch was clicked, as JSON."""

    other: gr.Textbox
    noises: gr.Slider
    controls: Controls
    report: gr.HTML
    cell: gr.Textbox
    guidance: gr.Slider
    path: gr.HTML
    occlusion: occlusion.Part


def build() -> Tab:
    """To be called inside the tab."""
    gr.HTML(f"<p class='lead'>{_INTRODUCTION}</p>", apply_default_css=False)
    with gr.Row(elem_classes="tools"):
        other = gr.Textbox(
            label="Compare the prompt above with",
            placeholder="Left empty: its nearest rewording",
            lines=1,
            max_length=MAX_PROMPT,
            elem_id="counterfactual",
            scale=3,
        )
        noises = gr.Slider(1, 8, NOISES, step=1, label="Noises (pi0)", elem_id="causes-noises")
    row = controls.build("Find where it acts", "trace-causes", "stop-causes", "causes-status")
    report = gr.HTML(None, **view.COMPONENT, elem_id="causes")
    cell = gr.Textbox(visible=False, elem_id="causes-cell")
    gr.HTML("<h2>Where one of them leads</h2>", elem_classes="section", apply_default_css=False)
    guidance = gr.Slider(
        0, 3, 1, step=0.25, elem_id="guidance",
        label="Weigh the prompt (pi0): v = v_empty + w (v_prompt - v_empty); 1 is the policy",
    )  # fmt: skip
    path = gr.HTML(None, **view.PATHS, elem_id="causes-path")
    return Tab(other, noises, row, report, cell, guidance, path, occlusion.build())


def wire(
    tab: Tab,
    form: Form,
    setups: Setups,
    worker: Worker,
    runs: Runs,
    key: gr.State,
    results: Results,
) -> None:
    """key: of the run that is shown, whose file gets what is traced on its own observation."""

    @errors.for_page
    def trace_causes(request: gr.Request, key, other, noises, *inputs):
        state = _Tracing(setups, other, noises, inputs)
        stream = worker.call("causal_trace", state.request, owner=visitors.of(request))

        def shown(outcome):
            if outcome == "stopped":
                state.say = STOPPED
            elif outcome == "finished":
                state.keep(results, key)
            return state.updates(tab, running=outcome is None)

        yield from runs.updates(
            run_of(request), [stream], state.take, _UPDATE_EVERY_S, shown, tab.controls.status
        )

    @errors.for_page
    def follow_cell(request: gr.Request, cell, other, *inputs):
        state = _Following(setups, cell, other, inputs)
        stream = worker.call("causal_cell", state.request, owner=visitors.of(request))
        yield from _followed(request, [stream], state)

    @errors.for_page
    def weigh(request: gr.Request, guidance, *inputs):
        state = _Weighing(setups, guidance, inputs)
        yield from _followed(request, submit(worker, state.jobs), state)

    def _followed(request, streams, state):
        def shown(outcome):
            found = None if outcome is None else state.shown()
            return {
                tab.controls.status: errors.status(state.say),
                tab.path: gr.skip() if found is None else found,
            }

        yield from runs.updates(
            path_of(request), streams, state.take, _UPDATE_EVERY_S, shown, tab.controls.status
        )

    def stop(request: gr.Request):
        runs.stop(run_of(request))
        runs.stop(path_of(request))

    tab.controls.start.click(
        trace_causes,
        [key, tab.other, tab.noises, *form.inputs],
        [tab.other, *tab.controls.outputs, tab.report],
        preprocess=False,
        **appearance.PRIVATE,
    )
    tab.controls.stop.click(stop, None, None, **appearance.PRIVATE)
    value_of_cell = "(value) => value.cell"
    tab.report.select(None, tab.report, tab.cell, js=value_of_cell, **appearance.PRIVATE).then(
        follow_cell,
        [tab.cell, tab.other, *form.inputs],
        [tab.controls.status, tab.path],
        preprocess=False,
        **appearance.PRIVATE,
    )
    occlusion.wire(tab.occlusion, form, setups, worker, runs)
    tab.guidance.input(
        weigh,
        [tab.guidance, *form.inputs],
        [tab.controls.status, tab.path],
        preprocess=False,
        trigger_mode="always_last",
        **appearance.PRIVATE,
    )


def run_of(request: gr.Request) -> str:
    """What a visitor's tracing is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} causes"


def path_of(request: gr.Request) -> str:
    """The same of a run whose path is shown."""
    return f"{request.session_hash} causes path"


def nearest(prompt: str, setup: Setup) -> str:
    """The prompt with one word that means something else, or another task; "" where none is
    known."""
    _, *others = rewordings(prompt, setup.robot.name) or [("", "")]
    texts = (*(text for _, text in others), *prompt_bar.words(setup.robot)["tasks"])
    return next((text for text in texts if text.strip() != prompt.strip()), "")


def _observed(asked, setups: Setups) -> dict[str, RawObservation]:
    return {name: job.observation for job in asked.jobs(setups) for name in job.policies}


class _Tracing(MeasuringPatches[CausalTrace]):
    """What is traced, and the reports so far. Raises ValueError for what cannot be asked."""

    def __init__(self, setups: Setups, other, noises, inputs):
        asked = observation.request(setups, inputs, noises=noises)
        setup = setups.of(asked.robot)
        self.other = (other or "").strip() or nearest(asked.prompt, setup)
        asked = asked.model_copy(update={"counterfactual": self.other})
        self.request: CausalRequest = asked.tracing(setups)
        super().__init__(setup.infos, self.request.policies)
        self._pictures = {n: view.pictures(raw) for n, raw in self.request.observations.items()}

    def left(self, value: CausalTrace) -> str:
        """How long it will take, once that is known; before, what is planned."""
        if value.seconds_left is None:
            return f" ({value.plan})" if value.plan else ""
        return f", about {max(1, round(value.seconds_left))} s left"

    def keep(self, results: Results, key: str | None) -> None:
        """Puts the reports into the file of the shown run, where they are of its observation."""
        shown = {name: job.observation for job in results.jobs(key) for name in job.policies}
        wanted = self.request.observations
        alike = [n for n in wanted if n in shown and encode(shown[n]) == encode(wanted[n])]
        if self.reports and len(alike) == len(wanted):
            reports = {name: dataclasses.asdict(one) for name, one in self.reports.items()}
            results.add(key, {"causes.json": json.dumps(reports, indent=1)})
            self.say = f"{self.say} The run file, under Details, holds it."

    def _things(self) -> dict[str, str]:
        """What the patch shows that recovers most, by policy."""
        found = {}
        for name, report in self.reports.items():
            top = top_patch(report) if report.done == report.of else None
            image = top and self.request.observations[name].images.get(top[0])
            if top is not None and image is not None:
                slot, row, column, _ = top
                side = len(report.patches[slot])
                found[name] = scenes.thing_in(image, row, column, side)
        return found

    def updates(self, tab: Tab, *, running: bool) -> dict:
        reports = self.reports
        shown = view.payload(reports, self._pictures, self._things()) if reports else gr.skip()
        return {
            tab.other: self.other,
            tab.report: shown,
            **tab.controls.updates(self.say, running=running),
        }


class _Following(Measuring):
    """One clicked patch. Raises ValueError for what cannot be asked."""

    def __init__(self, setups: Setups, cell, other, inputs):
        asked = observation.request(setups, inputs)
        setup = setups.of(asked.robot)
        super().__init__(setup.infos, "Running this one patch.")
        wanted = clicked(cell)
        name = wanted["policy"]
        observations = _observed(asked, setups)
        if name not in observations or name not in setup.infos:
            raise ValueError(f"{name} is not among the policies that run: trace again")
        self._info, self._raw = setup.infos[name], observations[name]
        self._cell: Cell | None = None
        self.request = CellRequest(
            observation=self._raw,
            options=asked.options(),
            counterfactual=(other or "").strip() or nearest(asked.prompt, setup),
            **wanted,
        )

    def put(self, value: Cell) -> str:
        self._cell = value
        return ""

    def shown(self) -> dict | None:
        if (cell := self._cell) is None:
            return None
        place = cell.group.removesuffix("_rgb").replace("_", " ")
        where = (
            place if cell.patch is None else f"patch {cell.patch + 1} of {slot_label(cell.group)}"
        )
        layers = "all layers" if cell.layer is None else f"layer {cell.layer}"
        chunks = {
            f"“{self._raw.prompt}”": cell.prompt,
            f"“{self.request.counterfactual}”": cell.counterfactual,
            "the second with this place taken over": cell.patched,
        }
        share = f"{round(100 * cell.recovered)} %"
        words = f"With the first noise, {share} of the first prompt's behaviour is back."
        what = f"{where if cell.patch is not None else f'“{place}”'} taken over"
        return view.lines(
            self._info, f"{what}, {layers}", self._raw.state, chunks,
            view.table_picture(self._raw), words,
        )  # fmt: skip


def clicked(cell) -> dict:
    """What the component says was clicked; raises ValueError for anything else."""
    try:
        found = json.loads(cell)
    except (TypeError, ValueError) as error:
        raise ValueError("click a number or a patch to run it") from error
    if not isinstance(found, dict) or found.keys() != _CELL.keys():
        raise ValueError("click a number or a patch to run it")
    for name, kind in _CELL.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise ValueError(f"{name} of a patch cannot be {found[name]!r:.40}")
    return found


class _Weighing(Measuring):
    """The prompt weighed, beside the policy as it is. Raises ValueError."""

    def __init__(self, setups: Setups, guidance, inputs):
        # Cuts and weights are not run together.
        asked = observation.request(setups, inputs, guidance=guidance, cuts=[])
        setup = setups.of(asked.robot)
        super().__init__(setup.infos, "Weighing the prompt.")
        flow = [name for name in asked.policies or () if name in setup.infos]
        flow = [name for name in flow if setup.infos[name].family != "pi0_fast"]
        if not flow:
            raise ValueError("guidance weighs velocities: choose pi0 or pi0.5 to run")
        asked = asked.model_copy(update={"policies": flow[:1], "num_samples": 1})
        plain = asked.model_copy(update={"guidance": 1.0})
        self.jobs = [*plain.jobs(setups), *asked.jobs(setups)]
        self._info, self._weight = setup.infos[flow[0]], guidance
        self._traces: list[FlowTrace] = []

    def put(self, value: FlowTrace) -> str:
        self._traces.append(value)
        return ""

    def shown(self) -> dict | None:
        if len(self._traces) < 2:
            return None
        plain, weighed = self._traces
        apart = float(np.abs(weighed.actions_normalised - plain.actions_normalised).mean())
        chunks = {
            "the policy itself, w = 1": plain.actions[0],
            f"w = {self._weight:g}": weighed.actions[0],
        }
        raw = self.jobs[0].observation
        words = f"The chunk moves by {apart:.2f} normalised units on average."
        return view.lines(
            self._info, f"The prompt weighed {self._weight:g} times", raw.state, chunks,
            view.table_picture(raw), words,
        )  # fmt: skip
