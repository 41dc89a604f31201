"""A whole episode, every k-th frame: predictions against the recording."""

import dataclasses
from collections.abc import Callable

import gradio as gr
import numpy as np

from playground.datasets import open_loop
from playground.datasets.job import Predicted
from playground.datasets.open_loop import Evaluation, Prediction
from playground.serving.events import Event, Failed
from playground.serving.worker import Worker
from playground.ui import appearance, errors
from playground.ui.episodes.asked import Asked
from playground.ui.episodes.store import Recordings
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring
from playground.ui.runs import STOPPED, Runs
from playground.views import open_loop as report_view
from playground.views import worms

_UPDATE_EVERY_S = 1.0
_BATCH = 8
# Of one evaluation; the command has no limit. Others wait meanwhile.
_MOST_FRAMES, _MOST_PUBLIC = 400, 100


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    every: gr.Slider
    execute: gr.Slider
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    result: gr.HTML


def build() -> Part:
    """To be called inside the tab."""
    gr.HTML("<h2>Over the whole episode</h2>", elem_classes="section", apply_default_css=False)
    with gr.Row(elem_classes="tools"):
        every = gr.Slider(1, 50, 10, step=1, label="Every k-th frame", elem_id="every")
        execute = gr.Slider(
            1, 50, 25, step=1, label="Executed steps of a chunk", elem_id="executed"
        )
    with gr.Row(elem_classes="buttons"):
        start = gr.Button(
            "Predict over the episode", variant="primary", scale=0, min_width=260,
            elem_id="evaluate",
        )  # fmt: skip
        stop = gr.Button("Stop", interactive=False, scale=0, min_width=110, elem_id="stop-evaluate")
    status = gr.HTML("", apply_default_css=False, elem_id="evaluate-status")
    result = gr.HTML(None, **worms.COMPONENT, elem_id="evaluation")
    return Part(every, execute, start, stop, status, result)


def outputs(part: Part) -> list:
    return [part.status, part.result]


def cleared(part: Part) -> dict:
    """What belonged to another episode goes."""
    return {part.status: "", part.result: None}


def run_of(request: gr.Request) -> str:
    """What a visitor's evaluation is called among the runs: it does not end another kind."""
    return f"{request.session_hash} evaluation"


def wire(part: Part, question: list, asked: Callable[..., Asked], worker: Worker, runs: Runs,
         recordings: Recordings) -> None:  # fmt: skip
    """question: the components that `asked` is given the values of."""

    @errors.for_page
    def evaluate(request: gr.Request, every, execute, *values):
        """Yields figures as policies answer; what was measured before a Stop stays."""
        most = _MOST_PUBLIC if recordings.public else _MOST_FRAMES
        running = Running(asked(*values), int(every or 1), int(execute or 1), most)
        streams = [
            worker.call("episode", one, owner=visitors.of(request)) for one in running.requests
        ]

        def shown(outcome):
            if outcome == "stopped":
                running.say = STOPPED
            elif outcome == "finished" and not running.failed:
                running.say = "Done."
            if outcome is not None:
                running.files = running.keep(recordings)
            return _updates(part, running, running=outcome is None)

        yield from runs.updates(
            run_of(request), streams, running.take, _UPDATE_EVERY_S, shown, part.status
        )

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    part.start.click(
        evaluate,
        [part.every, part.execute, *question],
        [part.status, part.result, part.start, part.stop],
        **appearance.PRIVATE,
    )
    part.stop.click(stop, None, None, **appearance.PRIVATE)


class Running(Measuring):
    """An evaluation under way: the recorded task, and another prompt where one is given."""

    def __init__(self, question: Asked, every: int, executed: int, most: int):
        question.fit.check()
        super().__init__(question.infos)
        self.question, self.executed = question, executed
        self.frames = list(range(0, question.episode.length, max(1, every)))
        if len(self.frames) > most:
            least = -(-question.episode.length // most)
            raise ValueError(
                f"every {every} frames are {len(self.frames)} runs of each policy; up to "
                f"{most} are run here. Take every {least}th frame, or use the command "
                "playground.datasets.evaluate"
            )
        prompts = [None, *([question.prompt] if question.prompt else [])]
        self.requests = [question.request(self.frames, _BATCH, prompt) for prompt in prompts]
        self.failed = False
        self.files: str | None = None
        self._predictions: dict[tuple[str | None, str], Prediction] = {}

    def take(self, event: Event) -> None:
        super().take(event)
        self.failed = self.failed or isinstance(event, Failed)

    def put(self, value: Predicted) -> str:
        key = (value.prompt, value.policy)
        before = self._predictions.get(key) or self._empty(value.policy)
        before.chunks[[self.frames.index(int(frame)) for frame in value.frames]] = value.chunks
        failures = (*before.failures, *value.failures)
        self._predictions[key] = dataclasses.replace(before, failures=failures)
        return self.say

    def _empty(self, policy: str) -> Prediction:
        question, info = self.question, self.question.infos[policy]
        match, episode = question.fit.matches[policy], question.episode
        shape = (len(self.frames), info.horizon, len(info.actions))
        return Prediction(
            episode.index,
            episode.fps,
            np.array(self.frames),
            np.full(shape, np.nan, np.float32),
            match.recorded(episode),
            match.states(episode),
            (),
        )

    def evaluations(self) -> list[Evaluation]:
        """Of what there is so far; a policy without any chunk is left out."""
        found = []
        for (prompt, name), prediction in self._predictions.items():
            info = self.question.infos[name]
            robot = self.question.setup.robots[name]
            if np.isfinite(prediction.chunks).any():
                executed = min(self.executed, info.horizon)
                found.append(open_loop.evaluate(info, robot, [prediction], executed, prompt))
        return found

    def keep(self, recordings: Recordings) -> str | None:
        """The table and the report, as the command writes them; gives their address."""
        evaluations, question = self.evaluations(), self.question
        if not evaluations:
            return None
        dataset = question.opened.dataset
        at = f" at {dataset.revision}" if dataset.revision else ""
        title = f"Predictions against {dataset.title}, episode {question.episode.index}"
        about = f"{dataset.title}{at}: LeRobot {dataset.info.codebase_version}."
        notes = [about, *question.fit.notes, *question.fit.doubts]
        files = {
            "errors.csv": report_view.table_csv(evaluations),
            "report.html": report_view.report(title, evaluations, notes),
        }
        return f"evaluation/{recordings.keep_report(files, visitors.current())}"


def _updates(part: Part, state: Running, *, running: bool) -> dict:
    evaluations = state.evaluations()
    result = worms.payload(evaluations, state.files) if evaluations else gr.skip()
    return {
        part.status: errors.status(state.say),
        part.result: result,
        part.start: gr.update(interactive=not running),
        part.stop: gr.update(interactive=running),
    }
