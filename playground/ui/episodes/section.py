"""Recorded episodes in the tab "Run it": a dataset, one of its episodes, and what policies predict
at the frame that is looked at."""

import dataclasses

import gradio as gr
import numpy as np

from playground.datasets.job import Predicted
from playground.datasets.lerobot import BUNDLED
from playground.robots.builtin import TABLETOP
from playground.serving.events import Failed, Result
from playground.serving.worker import Worker
from playground.ui import appearance, errors
from playground.ui.episodes import evaluation, reading, seam, stats
from playground.ui.episodes.asked import Asked
from playground.ui.episodes.reading import Reading
from playground.ui.episodes.store import Recordings
from playground.ui.guard import visitors
from playground.ui.observation import Form
from playground.ui.request import MAX_PROMPT
from playground.ui.runs import Runs
from playground.ui.setup import Setups
from playground.views import episode as view

_INTRODUCTION = (
    "Demonstrations in LeRobot's formats: what would the policies do at each frame, and what was "
    "done? Open loop: a small error is not success."
)
_NAME = "A dataset of the Hub (owner/name)"
_NAME_OR_FOLDER = "A dataset of the Hub (owner/name), or a folder of this machine"


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """key: of the opened dataset; view: the episode, its value is the frame that is looked at."""

    word: gr.Textbox
    open: gr.Button
    bundled: gr.Button
    status: gr.HTML
    reading: Reading
    chosen: gr.Column
    episode: gr.Slider
    prompt: gr.Textbox
    view: gr.HTML
    evaluation: evaluation.Part
    seam: seam.Part
    stats: stats.Part
    key: gr.State

    @property
    def asked(self) -> list:
        """What every question on the episode needs, beside the robot: `Asked` takes it."""
        return [self.key, self.episode, self.prompt, *self.reading.inputs]


def build(cameras: int, public: bool) -> Section:
    """To be called inside the tab. cameras: as many as any robot here has; public: see
    `Recordings`."""
    gr.HTML(f"<p class='lead'>{_INTRODUCTION}</p>", apply_default_css=False)
    with gr.Row(elem_classes="tools", elem_id="open-episodes"):
        bundled = gr.Button(
            "Open the bundled episodes", variant="primary", size="md", elem_id="bundled-episodes"
        )
        word = gr.Textbox(
            label=_NAME if public else _NAME_OR_FOLDER, max_lines=1, max_length=300,
            placeholder="owner/name" if public else "owner/name or /path/to/dataset",
            elem_id="dataset",
        )  # fmt: skip
        open_button = gr.Button("Open", size="md", elem_id="open-dataset")
    status = gr.HTML("", apply_default_css=False, elem_id="dataset-status")
    form = reading.build(cameras)
    with gr.Column(visible=False, elem_id="chosen-episode") as chosen:
        with gr.Row(elem_classes="tools"):
            episode = gr.Slider(0, 1, 0, step=1, label="Episode", elem_id="episode")
            prompt = gr.Textbox(
                label="What if I had said", placeholder="the recorded task", max_lines=2,
                max_length=MAX_PROMPT, elem_id="episode-prompt",
            )  # fmt: skip
        shown = gr.HTML(view.at(0), episode=None, answer=None, **view.COMPONENT, elem_id="recorded")
        over = evaluation.build()
        meets = seam.build()
        own = stats.build()
    return Section(
        word, open_button, bundled, status, form, chosen, episode, prompt, shown, over, meets, own,
        gr.State(None),
    )  # fmt: skip


def wire(
    section: Section,
    form: Form,
    setups: Setups,
    worker: Worker,
    runs: Runs,
    recordings: Recordings,
) -> None:
    """The events of the section."""

    def asked(robot, key, number, prompt, *values) -> Asked:
        """Raises ValueError for what cannot be read any more, or never could."""
        setup, opened = setups.of(robot), recordings.find(key)
        index = min(max(int(number or 0), 0), len(opened.dataset) - 1)
        found = opened.episode(index)
        choice, anyway = reading.choice_of(setup, opened.dataset.info, values)
        fit = reading.fit(setup, opened.dataset.info, found, choice, anyway)
        return Asked(setup, opened, found, (prompt or "").strip() or None, choice, fit)

    def opening(word, robot, kept):
        opened = recordings.open(word, visitors.current())
        if not len(opened.dataset):
            raise ValueError(f"{opened.dataset.title} has no episodes")
        choice = reading.remembered(kept, opened.dataset.title)
        setup, first = setups.of(robot), opened.episode(0)
        fit = reading.fit(setup, opened.dataset.info, first, choice, False)
        question = Asked(setup, opened, first, None, choice, fit)
        last = len(opened.dataset) - 1
        return _shown(section, question) | {
            section.key: opened.key,
            section.word: word,
            section.chosen: gr.update(visible=True),
            section.episode: gr.update(maximum=max(last, 1), value=0, interactive=last > 0),
            section.prompt: "",
            **evaluation.cleared(section.evaluation),
            **seam.cleared(section.seam),
            **stats.cleared(section.stats),
        }

    @errors.for_page
    def open_word(word, robot, kept):
        return opening(word or "", robot, kept)

    @errors.for_page
    def open_bundled(robot, kept):
        return opening(BUNDLED, robot, kept)

    @errors.for_page
    def go_to(robot, *values):
        question = asked(robot, *values)
        return _shown(section, question) | evaluation.cleared(section.evaluation)

    @errors.for_page
    def use(robot, kept, *values):
        """The form on what is what is taken over, and kept by the browser."""
        question = asked(robot, *values)
        title = question.opened.dataset.title
        memory = {section.reading.memory: reading.remember(kept, title, question.choice)}
        return _shown(section, question) | memory | evaluation.cleared(section.evaluation)

    def rematch(robot, *values):
        """Another robot drives now."""
        if not values[0]:
            return {section.status: gr.skip()}
        return go_to(robot, *values)

    def at_frame(request: gr.Request, at, robot, *values):
        """Yields the answer as policies give it; errors are part of it."""
        frame = view.frame_of(at)
        try:
            question = asked(robot, *values)
            yield from _answers(section, worker, runs, request, question, frame)
        except errors.EXPECTED as error:
            yield {section.view: gr.update(answer=view.answer(frame, {}, {}, {}, say=str(error)))}

    outputs = [
        section.status, section.view, *section.reading.outputs, section.key, section.word,
        section.chosen, section.episode, section.prompt, *evaluation.outputs(section.evaluation),
        *seam.outputs(section.seam), *stats.outputs(section.stats),
    ]  # fmt: skip
    start = [form.robot, section.reading.memory]
    section.bundled.click(open_bundled, start, outputs, **appearance.PRIVATE)
    gr.on(
        [section.open.click, section.word.submit],
        open_word,
        [section.word, *start],
        outputs,
        **appearance.PRIVATE,
    )
    question = [form.robot, *section.asked]
    moved = [section.status, section.view, *section.reading.outputs,
             *evaluation.outputs(section.evaluation)]  # fmt: skip
    section.episode.release(
        go_to, question, moved, trigger_mode="always_last", **appearance.PRIVATE
    )
    form.robot.change(rematch, question, moved, **appearance.PRIVATE)
    section.reading.use.click(
        use,
        [form.robot, section.reading.memory, *section.asked],
        [*moved, section.reading.memory],
        **appearance.PRIVATE,
    )
    section.view.input(
        at_frame,
        [section.view, *question],
        section.view,
        trigger_mode="multiple",
        **appearance.PRIVATE,
    )
    again = "() => { dispatchEvent(new CustomEvent('playground-ask')); }"
    gr.on(
        [section.prompt.submit, section.prompt.blur, section.reading.anyway.input],
        None,
        None,
        None,
        js=again,
    )
    evaluation.wire(section.evaluation, question, asked, worker, runs, recordings)
    seam.wire(section.seam, section.view, question, asked, worker, runs)
    stats.wire(section.stats, question, asked)


def run_of(request: gr.Request) -> str:
    """What a visitor's question on a frame is called among the runs."""
    return f"{request.session_hash} frame"


def runs_of(request: gr.Request) -> tuple[str, ...]:
    """All that a visitor may have under way here."""
    return run_of(request), evaluation.run_of(request), seam.run_of(request)


def _answers(section, worker, runs, request, question, frame):
    question.fit.check()
    one = question.request([frame], 1, question.prompt)
    stream = worker.call("episode", one, owner=visitors.of(request))
    chunks: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    start = _start(question, frame)

    def take(event):
        match event:
            case Result(value=Predicted() as found):
                if found.failures:
                    failures[found.policy] = found.failures[0][1]
                else:
                    chunks[found.policy] = found.chunks[0]
            case Failed(message=message):
                raise ValueError(message)

    def shown():
        answer = view.answer(frame, chunks, question.infos, failures, start)
        return {section.view: gr.update(answer=answer)}

    following = runs.follow(run_of(request), [stream], take, 0.0)
    given = 0
    for _ in following:
        if len(chunks) + len(failures) > given:
            given = len(chunks) + len(failures)
            yield shown()
    if not given:
        yield {section.view: gr.skip()}


def _start(question: Asked, frame: int) -> tuple[np.ndarray, int] | None:
    """The robot's state, and the width of the picture to draw paths on."""
    name, match = _table(question), question.fit.match
    if name is None or match is None:
        return None
    state = match.states(question.episode)[frame]
    return state, question.opened.dataset.cameras[name].picture_size[1]


def _table(question: Asked) -> str | None:
    """The camera of the simulated table, if the episode has its pictures."""
    match = question.fit.match
    if match is None or question.setup.robot.name != TABLETOP.name:
        return None
    slot = next(slot.name for slot in TABLETOP.flow_slots if slot.camera == "table")
    name = match.cameras.get(slot)
    shows = name is not None and question.opened.shows_table(question.episode.index, name)
    return name if shows else None


def _shown(section: Section, question: Asked) -> dict:
    """Updates that show the episode, how it fits, and the form on what is what."""
    opened, episode = question.opened, question.episode
    info = opened.dataset.info
    where = f"episode/{opened.key}/{episode.index}"
    match = question.fit.match
    shown = view.payload(info, episode, where, question.setup.robot, match, _table(question))
    return {
        section.status: _status(question) + reading.sentences(question.fit),
        section.view: gr.update(value=view.at(0), episode=shown, answer=None),
        **reading.shown(question.setup, info, question.choice, question.fit, section.reading),
    }


def _status(question: Asked) -> str:
    dataset = question.opened.dataset
    at = f" at {dataset.revision[:12]}" if dataset.revision else ""
    count = f"{len(dataset)} episode{'s' if len(dataset) != 1 else ''}"
    text = (
        f"{dataset.title}{at}: LeRobot {dataset.info.codebase_version}, {count}, "
        f"{dataset.info.total_frames:,} frames, {dataset.info.fps:g} a second, "
        f"{len(dataset.cameras)} camera{'s' if len(dataset.cameras) != 1 else ''}"
    )
    if not question.setup.infos:
        text += ". The policies are still being loaded: pictures can be looked at meanwhile"
    return errors.status(f"{text}.")
