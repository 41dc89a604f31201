"""Where two successive chunks meet, plain and with real-time chunking: at the frame of a recorded
episode that is looked at, or in a rollout."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import gradio as gr

from playground.datasets.job import SeamRequest
from playground.policies.seam import SeamChunks
from playground.serving.worker import Worker
from playground.trace import Options, PolicyInfo
from playground.ui import appearance, errors
from playground.ui.episodes.asked import Asked
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring
from playground.ui.runs import Runs
from playground.views import seam as view
from playground.views.episode import frame_of

Found = TypeVar("Found")

_UPDATE_EVERY_S = 0.2
_INTRODUCTION = (
    "While a policy computes, the robot goes on with its old chunk. Where the new one takes over, "
    "the command can jump. Real-time chunking denoises the new chunk under guidance towards what "
    "is left of the old one."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    since: gr.Slider
    delay: gr.Slider
    measured: gr.Checkbox
    start: gr.Button
    status: gr.HTML
    result: gr.HTML
    extra: tuple[gr.Slider, ...] = ()


def build(what: str = "Join two chunks at this frame", prefix: str = "", more=()) -> Part:
    """To be called inside the tab. what: the button does; prefix: of the parts' ids; more:
    functions that build further controls."""
    gr.HTML("<h2>Where chunks meet</h2>", elem_classes="section", apply_default_css=False)
    gr.HTML(f"<p class='fine'>{_INTRODUCTION}</p>", apply_default_css=False)
    with gr.Row(elem_classes="tools"):
        since = gr.Slider(
            1, 49, 25, step=1, label="Steps between questions", elem_id=f"{prefix}since"
        )
        delay = gr.Slider(0, 25, 5, step=1, label="Steps an answer takes", elem_id=f"{prefix}delay")
        measured = gr.Checkbox(label="as long as it takes here", elem_id=f"{prefix}measured-delay")
        extra = tuple(build_one() for build_one in more)
    with gr.Row(elem_classes="buttons"):
        start = gr.Button(
            what, variant="primary", scale=0, min_width=320, elem_id=f"{prefix}join-chunks"
        )
    status = gr.HTML("", apply_default_css=False, elem_id=f"{prefix}seam-status")
    result = gr.HTML(None, **view.COMPONENT, elem_id=f"{prefix}seam")
    return Part(since, delay, measured, start, status, result, extra)


def outputs(part: Part) -> list:
    return [part.status, part.result]


def cleared(part: Part) -> dict:
    """What belonged to another dataset goes."""
    return {part.status: "", part.result: None}


def run_of(request: gr.Request) -> str:
    """What a visitor's seam is called among the runs: it does not end another kind."""
    return f"{request.session_hash} seam"


def wire(
    part: Part, at: gr.HTML, question: list, asked: Callable[..., Asked], worker: Worker, runs: Runs
):
    """at: its value is the frame that is looked at; question: the components that `asked` is given
    the values of."""

    @errors.for_page
    def join(request: gr.Request, since, delay, measured, frame, *values):
        wanted = _Seam(asked(*values), int(since or 1), chosen(delay, measured), frame_of(frame))
        stream = worker.call("seam", wanted.request, owner=visitors.of(request))

        def shown(outcome):
            return updates(part, wanted, running=outcome is None)

        yield from runs.updates(
            run_of(request), [stream], wanted.take, _UPDATE_EVERY_S, shown, part.status
        )

    part.start.click(
        join,
        [part.since, part.delay, part.measured, at, *question],
        [part.status, part.result, part.start],
        **appearance.PRIVATE,
    )
    limit_delay(part)


def limit_delay(part: Part) -> None:
    """No answer takes longer than the time to the next question; one that is measured is not
    chosen."""
    limit = "(since, delay) => Math.min(delay, since)"
    part.since.input(None, [part.since, part.delay], part.delay, js=limit, **appearance.PRIVATE)


def chosen(delay: float | None, measured: bool | None) -> int | None:
    """The delay of a request; None: as many steps as are measured."""
    return None if measured else int(delay or 0)


class Joined(Measuring, Generic[Found]):
    """What came so far of two questions. found: what the job gave, once it has."""

    def __init__(self, info: PolicyInfo):
        super().__init__({info.name: info})
        self.found: Found | None = None

    def put(self, value: Found) -> str:
        self.found = value
        return ""

    def payload(self, found: Found) -> dict:
        """For the view."""
        raise NotImplementedError


class _Seam(Joined[SeamChunks]):
    """Two questions to the first flow policy that the episode fits, and what came of them."""

    def __init__(self, question: Asked, since: int, delay: int | None, frame: int):
        question.fit.check()
        flow = [name for name, info in question.infos.items() if info.family != "pi0_fast"]
        if not flow:
            raise ValueError("real-time chunking needs pi0 or pi0.5, and none fits this episode")
        length = question.episode.length
        if since >= length:
            raise ValueError(f"the episode has {length} frames: ask again after fewer steps")
        super().__init__(question.infos[flow[0]])
        self.question, self.name = question, flow[0]
        self.since, self.frame = since, min(max(frame, since), length - 1)
        recorded = question.opened.recorded(question.episode.index, question.choice)
        self.request = SeamRequest(
            self.name, recorded, self.frame, since, delay, question.prompt, Options()
        )

    def payload(self, found: SeamChunks) -> dict:
        match = self.question.fit.matches[self.name]
        recorded = match.recorded(self.question.episode)
        info = self.question.infos[self.name]
        return view.payload(info, found, recorded, self.frame, self.since)


def updates(part: Part, state: Joined, *, running: bool) -> dict:
    return {
        part.status: errors.status(state.say),
        part.result: gr.skip() if state.found is None else state.payload(state.found),
        part.start: gr.update(interactive=not running),
    }
