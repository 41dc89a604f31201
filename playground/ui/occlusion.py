"""Which patches of the picture the policies need, beside where they look: in the tab "Causes"."""

import dataclasses
from collections.abc import Mapping

import gradio as gr

from playground.analysis.causal import ConnectionsRequest, Occlusion
from playground.serving.worker import Worker
from playground.trace import PolicyInfo
from playground.ui import appearance, controls, errors, observation
from playground.ui.controls import Controls
from playground.ui.guard import visitors
from playground.ui.measuring import MeasuringPatches
from playground.ui.observation import Form
from playground.ui.runs import STOPPED, Runs
from playground.ui.setup import Setups
from playground.views import causes as view

_UPDATE_EVERY_S = 0.5
_INTRODUCTION = (
    "Each patch of the picture is hidden in turn, from every token in every layer: how far does "
    "the chunk change? Beside it, where the same run looks. Looking is not needing."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    controls: Controls
    report: gr.HTML


def build() -> Part:
    """To be called inside the tab."""
    gr.HTML("<h2>Which patches are needed</h2>", elem_classes="section", apply_default_css=False)
    gr.HTML(f"<p class='fine'>{_INTRODUCTION}</p>", apply_default_css=False)
    row = controls.build("Hide each patch", "hide-patches", "stop-hiding", "hiding-status")
    return Part(row, gr.HTML(None, **view.OCCLUSION, elem_id="occlusion"))


def run_of(request: gr.Request) -> str:
    """What a visitor's measurement is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} occlusion"


def wire(part: Part, form: Form, setups: Setups, worker: Worker, runs: Runs) -> None:
    @errors.for_page
    def hide_patches(request: gr.Request, *inputs):
        asked = observation.request(setups, inputs)
        state = _Hiding(asked.connections(setups), setups.of(asked.robot).infos)
        stream = worker.call("occlusion", state.request, owner=visitors.of(request))

        def shown(outcome):
            if outcome == "stopped":
                state.say = STOPPED
            return state.updates(part, running=outcome is None)

        yield from runs.updates(
            run_of(request), [stream], state.take, _UPDATE_EVERY_S, shown, part.controls.status
        )

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    part.controls.start.click(
        hide_patches,
        form.inputs,
        [*part.controls.outputs, part.report],
        preprocess=False,
        **appearance.PRIVATE,
    )
    part.controls.stop.click(stop, None, None, **appearance.PRIVATE)


class _Hiding(MeasuringPatches[Occlusion]):
    """What is hidden, and the reports so far."""

    def __init__(self, request: ConnectionsRequest, infos: Mapping[str, PolicyInfo]):
        super().__init__(infos, request.policies)
        self.request = request
        self._pictures = {n: view.pictures(raw) for n, raw in request.observations.items()}

    def updates(self, part: Part, *, running: bool) -> dict:
        reports = self.reports
        shown = view.occlusion_payload(reports, self._pictures) if reports else gr.skip()
        return {part.report: shown, **part.controls.updates(self.say, running=running)}
