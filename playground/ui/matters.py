"""The tab "What matters": the observation on the left against variants of it."""

import dataclasses
import time

import gradio as gr

from playground.analysis import sensitivity
from playground.analysis.variants import GROUPS
from playground.serving.events import Failed, Phase, Queued, Result
from playground.serving.queue import Busy
from playground.serving.worker import Down, Worker
from playground.ui import bench as benches
from playground.ui import observation, progress
from playground.ui.bench import Bench, Benches
from playground.ui.observation import Form
from playground.ui.runs import Runs
from playground.views import matters

_UPDATE_EVERY_S = 0.4
_LABELS = {"prompt": "Prompt", "camera": "Cameras", "state": "State"}
_INTRODUCTION = (
    "One observation against variants of it, with the same noise: how much does the chunk change? "
    "Words left out or swapped, cameras blanked, the state moved."
)
_WAITING = "<p class='waiting'>What each policy listens to appears here.</p>"


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    groups: gr.CheckboxGroup
    noises: gr.Slider
    prompts: gr.Textbox
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
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
        noises = gr.Slider(
            1, 16, sensitivity.NOISES, step=1, label="Noises (pi0)", elem_id="noises"
        )
    prompts = gr.Textbox(
        label="Prompts of your own, one a line", lines=1, max_lines=8, elem_id="own-prompts"
    )
    with gr.Row(elem_classes="buttons"):
        start = gr.Button("Measure what matters", variant="primary", elem_id="measure-matters")
        stop = gr.Button("Stop", interactive=False, scale=0, min_width=110, elem_id="stop-matters")
    status = gr.HTML("", apply_default_css=False, elem_id="matters-status")
    report = gr.HTML(_WAITING, apply_default_css=False, elem_id="matters")
    return Tab(groups, noises, prompts, start, stop, status, report)


def wire(tab: Tab, form: Form, every: Benches, worker: Worker, runs: Runs) -> None:
    own = {"api_visibility": "private", "show_progress": "hidden"}

    def measure(request: gr.Request, groups, noises, prompts, *inputs):
        """Yields the report as it grows; it is whole in every update."""
        try:
            bench, jobs = observation.jobs(every, *inputs)
            stream = worker.call("what_matters", arguments(jobs, groups, noises, prompts))
        except (ValueError, Busy, Down) as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        visitor, streams = run_of(request), [stream]
        seen = _Seen(bench)
        with runs.of(visitor, streams):
            yield _updates(tab, seen, running=True)
            shown = time.monotonic()
            for event in stream:
                seen.take(event)
                if time.monotonic() - shown >= _UPDATE_EVERY_S:
                    shown = time.monotonic()
                    yield _updates(tab, seen, running=True)
            now = runs.current(visitor)
        if now is None:
            seen.say = "Stopped. What was measured before stays."
        if now is None or now is streams:
            yield _updates(tab, seen, running=False)

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    tab.start.click(
        measure,
        [tab.groups, tab.noises, tab.prompts, *form.inputs],
        [tab.status, tab.report, tab.start, tab.stop],
        preprocess=False,
        **own,
    )
    tab.stop.click(stop, None, None, **own)


def run_of(request: gr.Request) -> str:
    """What a visitor's measurement is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} matters"


def arguments(jobs, groups, noises, prompts: str) -> dict:
    """Of a job of this kind, from the jobs of a plain run; raises ValueError for no groups."""
    if not groups:
        raise ValueError("choose something to vary: the prompt, the cameras or the state")
    own = [line.strip() for line in (prompts or "").splitlines()]
    return {
        "policies": tuple(name for job in jobs for name in job.policies),
        "observation": {name: job.observation for job in jobs for name in job.policies},
        "options": jobs[0].options,
        "noises": int(noises),
        "groups": tuple(groups),
        "alternatives": tuple(filter(None, own)),
    }


class _Seen:
    """Where the measurement stands: a sentence, and the report so far."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self.say = "Starting."
        self.report: sensitivity.Report | None = None

    def take(self, event) -> None:
        match event:
            case Queued():
                self.say = progress.place(event)
            case Phase(policy=name, phase=phase):
                infos = self._bench.infos
                self.say = f"{infos[name].title if name in infos else name}: {phase}."
            case Result(value=value):
                self.report = sensitivity.from_plain(value)
                if self.report.done == self.report.of:
                    self.say = "Done."
            case Failed(message=message):
                self.say = message


def _updates(tab: Tab, seen: _Seen, *, running: bool) -> dict:
    report = gr.skip() if seen.report is None else matters.page(seen.report)
    return {
        tab.status: f"<p class='told' role='status'>{benches.words(seen.say)}</p>",
        tab.report: report,
        tab.start: gr.update(interactive=not running),
        tab.stop: gr.update(interactive=running),
    }
