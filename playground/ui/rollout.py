"""The tab "Rollout": a policy acts on the simulated table until it is done, a frame at a time."""

import dataclasses
import time

import gradio as gr

from playground.robots.robot import TABLETOP
from playground.serving.events import Failed, Phase, Queued, Result
from playground.serving.queue import Busy
from playground.serving.worker import Down, Worker
from playground.tabletop import job
from playground.trace import Options
from playground.ui import bench as benches
from playground.ui import progress, scenes
from playground.ui.bench import Bench, Benches
from playground.ui.observation import Form
from playground.ui.runs import Runs
from playground.views import rollout as film_view
from playground.views.rollout import Film

_UPDATE_EVERY_S = 0.15
_WHOLE = 50  # a chunk, as in the published figures (`playground.tabletop.rollout.EXECUTE`)
_LEAST = 5  # fewer would look so often that one rollout holds the worker for a minute
_INTRODUCTION = (
    "Closed loop, in simulation: the policy sees the table and gives a chunk, its first steps are "
    "executed, it looks again. Ten denoising steps, seeds 0, 1, 2 and so on, temperature 0, as in "
    "the published figures."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tab:
    tab: gr.Tab
    policy: gr.Radio
    prompt: gr.Textbox
    scene: gr.Number
    new: gr.Button
    execute: gr.Slider
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    film: gr.HTML


def build(bench: Bench, prompt: str, scene: int | None) -> Tab:
    """To be called inside gr.Tabs."""
    here = bench.robot.name == TABLETOP.name and job.available()
    with gr.Tab("Rollout", id="rollout", visible=here) as tab:
        gr.HTML(f"<p class='lead'>{_INTRODUCTION}</p>", apply_default_css=False)
        with gr.Row(elem_classes="tools"):
            policy = gr.Radio(
                list(bench.policies), value=next(iter(bench.policies), None), label="Policy",
                elem_id="rollout-policy",
            )  # fmt: skip
            execute = gr.Slider(
                _LEAST, _WHOLE, _WHOLE, step=1, label="Steps of a chunk to execute",
                elem_id="rollout-execute",
            )  # fmt: skip
            number = gr.Number(
                scene, label="Scene", precision=0, minimum=0, maximum=scenes.MOST - 1,
                elem_id="rollout-scene",
            )  # fmt: skip
            new = gr.Button("Another scene", size="sm", elem_id="rollout-new")
        text = gr.Textbox(
            prompt,
            label="Prompt",
            max_lines=3,
            max_length=benches.MAX_PROMPT,
            elem_id="rollout-prompt",
        )
        with gr.Row(elem_classes="buttons"):
            start = gr.Button("Start", variant="primary", elem_id="rollout-start")
            stop = gr.Button(
                "Stop", interactive=False, scale=0, min_width=110, elem_id="rollout-stop"
            )
        status = gr.HTML("", apply_default_css=False, elem_id="rollout-status")
        film = gr.HTML(None, **film_view.COMPONENT, elem_id="rollout")
    return Tab(tab, policy, text, number, new, execute, start, stop, status, film)


def refreshed(bench: Bench, tab: Tab) -> dict:
    """The tab is the table's; its policies by their titles once they are loaded."""
    here = bench.robot.name == TABLETOP.name and job.available()
    updates = {tab.tab: gr.update(visible=here)}
    if here:
        named = [(bench.infos[n].title if n in bench.infos else n, n) for n in bench.policies]
        updates[tab.policy] = gr.update(choices=named)
    return updates


def run_of(request: gr.Request) -> str:
    """What a visitor's rollout is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} rollout"


def wire(tab: Tab, form: Form, every: Benches, worker: Worker, runs: Runs) -> None:
    own = {"api_visibility": "private", "show_progress": "hidden"}

    def start(request: gr.Request, policy, prompt, scene, execute):
        """Yields the film as it grows; the browser is sent what is new of it."""
        try:
            seed = scenes.number(scene)
            info = _info(every, policy)
            asked = {"policies": (policy,), "prompt": prompt or "", "scene": seed}
            asked |= {"execute": max(_LEAST, int(execute or 0)), "options": Options()}
            stream = worker.call("rollout", asked)
        except (ValueError, Busy, Down) as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        visitor, streams = run_of(request), [stream]
        film, say, shown = Film(info, prompt or "", seed), "Starting.", 0.0
        with runs.of(visitor, streams):
            yield _updates(tab, film, say, running=True) | {tab.scene: seed}
            for event in stream:
                say = _take(event, film, say)
                if time.monotonic() - shown >= _UPDATE_EVERY_S:
                    shown = time.monotonic()
                    yield _updates(tab, film, say, running=True)
            now = runs.current(visitor)
        if now is None:
            film.end("stopped", f"Stopped after {film.time_s:.1f} s.")
        if now is None or now is streams:
            yield _updates(tab, film, "", running=False)
            # What comes last is sent twice: not the film.
            yield {tab.start: gr.update(interactive=True)}

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    tab.start.click(
        start,
        [tab.policy, tab.prompt, tab.scene, tab.execute],
        [tab.status, tab.film, tab.start, tab.stop, tab.scene],
        preprocess=False,
        **own,
    )
    tab.stop.click(stop, None, None, **own)
    tab.new.click(None, None, tab.scene, js=f"() => Math.floor(Math.random() * {scenes.MOST})")
    form.prompt.change(None, form.prompt, tab.prompt, js="(prompt) => prompt")
    form.scenes.seed.change(None, form.scenes.seed, tab.scene, js="(scene) => scene")


def _info(every: Benches, policy: str | None):
    infos = every.infos()
    if not infos:
        raise ValueError("the policies are still being loaded; start when the page says Ready")
    if policy not in infos:
        raise ValueError("choose a policy")
    return infos[policy]


def _take(event, film: Film, say: str) -> str:
    """What the line below the buttons says after an event."""
    match event:
        case Queued():
            return progress.place(event)
        case Phase(phase=phase):
            return f"{phase.capitalize()}." if not film.time_s else say
        case Result(value=frame):
            film.take(frame)
            return ""
        case Failed(message=message):
            film.end("broken", message)
            return ""
    return say


def _updates(tab: Tab, film: Film, say: str, *, running: bool) -> dict:
    return {
        tab.status: f"<p class='told' role='status'>{benches.words(say)}</p>" if say else "",
        tab.film: film.payload(),
        tab.start: gr.update(interactive=not running),
        tab.stop: gr.update(interactive=running),
    }
