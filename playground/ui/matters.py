"""The tab "What matters": the observation on the left against variants of it."""

import dataclasses

import gradio as gr

from playground.analysis.sensitivity import NOISES, SensitivityReport
from playground.analysis.variants import GROUPS
from playground.serving.worker import Worker
from playground.ui import appearance, controls, errors, observation
from playground.ui.controls import Controls
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring
from playground.ui.observation import Form
from playground.ui.request import MAX_PROMPTS_TEXT
from playground.ui.runs import STOPPED, Runs
from playground.ui.setup import Setups
from playground.views import matters

_UPDATE_EVERY_S = 0.4
_LABELS = {"prompt": "Prompt", "camera": "Cameras", "state": "State"}
_INTRODUCTION = (
    "One observation against variants of it, with the same noise: how much does the chunk change? "
    "Words left out or swapped, cameras blanked, the state moved."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    groups: gr.CheckboxGroup
    noises: gr.Slider
    prompts: gr.Textbox
    controls: Controls
    report: gr.HTML


def build() -> Tab:
    gr.HTML(f"<p class='lead'>{_INTRODUCTION}</p>", apply_default_css=False)
    with gr.Row(elem_classes="tools"):
        groups = gr.CheckboxGroup(
            [(label, group) for group, label in _LABELS.items()],
            value=list(GROUPS),
            label="Vary",
            elem_id="groups",
        )
        noises = gr.Slider(1, 16, NOISES, step=1, label="Noises (pi0)", elem_id="noises")
    prompts = gr.Textbox(
        label="Prompts of your own, one a line", lines=1, max_lines=8, max_length=MAX_PROMPTS_TEXT,
        elem_id="own-prompts",
    )  # fmt: skip
    row = controls.build(
        "Measure what matters", "measure-matters", "stop-matters", "matters-status"
    )
    report = gr.HTML(None, **matters.COMPONENT, elem_id="matters")
    return Tab(groups, noises, prompts, row, report)


def wire(tab: Tab, form: Form, setups: Setups, worker: Worker, runs: Runs) -> None:
    own = appearance.PRIVATE

    @errors.for_page
    def measure(request: gr.Request, groups, noises, prompts, *inputs):
        """Yields the report as it grows; it is whole in every update."""
        own = (prompts or "").splitlines()
        asked = observation.request(setups, inputs, noises=noises, groups=groups, prompts=own)
        wanted = asked.measurement(setups)
        stream = worker.call("what_matters", wanted, owner=visitors.of(request))
        state = _Measurement(setups.of(asked.robot).infos)

        def shown(outcome):
            if outcome == "stopped":
                state.say = STOPPED
            report = gr.skip() if state.report is None else matters.payload(state.report)
            rest = tab.controls.updates(state.say, running=outcome is None)
            return rest | {tab.report: report}

        yield from runs.updates(
            run_of(request), [stream], state.take, _UPDATE_EVERY_S, shown, tab.controls.status
        )

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    tab.controls.start.click(
        measure,
        [tab.groups, tab.noises, tab.prompts, *form.inputs],
        [*tab.controls.outputs, tab.report],
        preprocess=False,
        **own,
    )
    tab.controls.stop.click(stop, None, None, **own)


def run_of(request: gr.Request) -> str:
    """What a visitor's measurement is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} matters"


class _Measurement(Measuring):
    """The report so far."""

    report: SensitivityReport | None = None

    def put(self, value: SensitivityReport) -> str:
        self.report = value
        return "Done." if value.done == value.of else self.say
