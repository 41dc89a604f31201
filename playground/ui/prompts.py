"""The board in the tab "Prompts": several prompts on the page's observation, side by side."""

import dataclasses

import gradio as gr
from gradio.events import Dependency

from playground.analysis.prompts import MAX_PROMPTS, PromptAnswer, PromptsRequest, useful_prompts
from playground.robots.transforms import resize_with_pad
from playground.serving.events import Event, Phase
from playground.serving.worker import Worker
from playground.tabletop import camera
from playground.ui import appearance, errors, observation
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring
from playground.ui.observation import Form
from playground.ui.request import MAX_PROMPTS_TEXT
from playground.ui.runs import STOPPED, Runs
from playground.ui.setup import Setup, Setups
from playground.views import prompts as view

_UPDATE_EVERY_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Board:
    texts: gr.Textbox
    start: gr.Button
    useful: gr.Button
    stop: gr.Button
    status: gr.HTML
    board: gr.HTML


def build() -> Board:
    """To be called inside the tab."""
    texts = gr.Textbox(
        label="Prompts, one a line; the others are compared with the first",
        placeholder="Left empty: the prompt above, a paraphrase, other objects and verbs, each "
        "word left out, shuffled, garbled, empty",
        lines=2,
        max_lines=12,
        max_length=MAX_PROMPTS_TEXT,
        elem_id="board-prompts",
    )
    with gr.Row(elem_classes="buttons"):
        start = gr.Button(
            "Compare prompts",
            variant="primary",
            size="md",
            scale=0,
            min_width=170,
            elem_id="compare-prompts",
        )
        useful = gr.Button(
            "Fill in a useful set", size="md", scale=0, min_width=170, elem_id="useful-prompts"
        )
        stop = gr.Button(
            "Stop", size="md", interactive=False, scale=0, min_width=90, elem_id="stop-board"
        )
    status = gr.HTML("", apply_default_css=False, elem_id="board-status")
    return Board(
        texts, start, useful, stop, status, gr.HTML(None, **view.COMPONENT, elem_id="board")
    )


def run_of(request: gr.Request) -> str:
    """What a visitor's comparison is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} prompts"


def wire(board: Board, form: Form, setups: Setups, worker: Worker, runs: Runs) -> Dependency:
    """The events of the board. Returns the one after which a clicked prompt is in the field."""

    @errors.for_page
    def compare(request: gr.Request, texts, *inputs):
        comparison = _Comparison(setups, texts, inputs)
        stream = worker.call("prompts", comparison.request, owner=visitors.of(request))

        def shown(outcome):
            if outcome == "stopped":
                comparison.say = STOPPED
            return comparison.updates(board, running=outcome is None)

        yield from runs.updates(
            run_of(request), [stream], comparison.take, _UPDATE_EVERY_S, shown, board.status
        )

    @errors.for_page
    def fill_in(*inputs):
        return "\n".join(prompt for _, prompt in _Comparison(setups, "", inputs).labelled)

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    board.start.click(
        compare,
        [board.texts, *form.inputs],
        [board.status, board.board, board.start, board.stop],
        preprocess=False,
        **appearance.PRIVATE,
    )
    board.useful.click(fill_in, form.inputs, board.texts, preprocess=False, **appearance.PRIVATE)
    board.stop.click(stop, None, None, **appearance.PRIVATE)
    chosen = "(value) => value.chosen"
    return board.board.select(None, board.board, form.prompt, js=chosen, **appearance.PRIVATE)


class _Comparison(Measuring):
    """What is compared, and the answers so far. Raises ValueError for what cannot be asked."""

    def __init__(self, setups: Setups, texts: str | None, inputs):
        asked = observation.request(setups, inputs)
        jobs = asked.jobs(setups)
        self._setup: Setup = setups.of(asked.robot)
        super().__init__(self._setup.infos)
        self._raws = {name: job.observation for job in jobs for name in job.policies}
        first = next(iter(self._raws.values()))
        lines = [line.strip() for line in (texts or "").splitlines()]
        own = tuple(("", line) for line in dict.fromkeys(lines)) if any(lines) else ()
        self.labelled = own or useful_prompts(first, self._setup.robot)
        if len(self.labelled) > MAX_PROMPTS:
            raise ValueError(f"{len(own)} prompts came; at most {MAX_PROMPTS} are compared")
        self.request = PromptsRequest(
            policies=tuple(self._raws),
            observations=self._raws,
            options=jobs[0].options,
            prompts=tuple(prompt for _, prompt in self.labelled),
        )
        self._answers: list[PromptAnswer] = []
        pictures = [p for p in first.images.values() if camera.shows_table(p)]
        self._picture = resize_with_pad(pictures[0], 224, 224) if pictures else None

    def take(self, event: Event) -> None:
        if not isinstance(event, Phase):  # the board itself shows how far it is
            super().take(event)

    def put(self, value: PromptAnswer) -> str:
        self._answers.append(value)
        return ""

    def updates(self, board: Board, *, running: bool) -> dict:
        infos = {name: self._setup.infos[name] for name in self.request.policies
                 if name in self._setup.infos}  # fmt: skip
        state = next(iter(self._raws.values())).state
        labels = {prompt: label for label, prompt in self.labelled if label}
        of = len(self.request.prompts) * len(self.request.policies)
        shown = view.payload(self._answers, infos, labels, state, self._picture, of)
        return {
            board.status: errors.status(self.say),
            board.board: shown if self._answers else gr.skip(),
            board.start: gr.update(interactive=not running),
            board.stop: gr.update(interactive=running),
        }
