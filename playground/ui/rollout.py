"""The tab "Run it": a policy acts on the simulated table until it is done, a frame at a time."""

import dataclasses

import gradio as gr

from playground.robots.builtin import TABLETOP
from playground.serving.events import Failed, Phase, Queued, Result
from playground.serving.worker import Worker
from playground.tabletop import job
from playground.tabletop.job import RolloutFrame
from playground.trace import Options
from playground.ui import appearance, controls, errors, progress, rollout_seam, scenes
from playground.ui.controls import Controls
from playground.ui.guard import visitors
from playground.ui.observation import Form
from playground.ui.request import MAX_PROMPT
from playground.ui.runs import Runs
from playground.ui.setup import Setup, Setups
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
    column: gr.Column
    policy: gr.Radio
    prompt: gr.Textbox
    scene: gr.Number
    new: gr.Button
    execute: gr.Slider
    controls: Controls
    film: gr.HTML
    seam: rollout_seam.Part


def build(setup: Setup, prompt: str, scene: int | None) -> Tab:
    """To be called inside the tab."""
    here = is_here(setup)
    with gr.Column(visible=here, elem_id="at-the-table") as column:
        gr.HTML(f"<p class='lead'>{_INTRODUCTION}</p>", apply_default_css=False)
        with gr.Row(elem_classes="tools"):
            policy = gr.Radio(
                list(setup.policies), value=next(iter(setup.policies), None), label="Policy",
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
            max_length=MAX_PROMPT,
            elem_id="rollout-prompt",
        )
        row = controls.build("Start", "rollout-start", "rollout-stop", "rollout-status")
        film = gr.HTML(None, **film_view.COMPONENT, elem_id="rollout")
        meets = rollout_seam.build()
    return Tab(column, policy, text, number, new, execute, row, film, meets)


def is_here(setup: Setup) -> bool:
    """Whether the simulated table can be run for this robot."""
    return setup.robot.name == TABLETOP.name and job.available()


def refreshed(setup: Setup, tab: Tab) -> dict:
    """The column is the table's; its policies by their titles once they are loaded."""
    here = is_here(setup)
    updates: dict = {tab.column: gr.update(visible=here)}
    if here:
        named = [(setup.infos[n].title if n in setup.infos else n, n) for n in setup.policies]
        updates[tab.policy] = gr.update(choices=named)
    return updates


def run_of(request: gr.Request) -> str:
    """What a visitor's rollout is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} rollout"


def wire(tab: Tab, form: Form, setups: Setups, worker: Worker, runs: Runs) -> None:
    own = appearance.PRIVATE

    @errors.for_page
    def start(request: gr.Request, policy, prompt, scene, execute):
        """Yields the film as it grows; the browser is sent what is new of it."""
        seed = scenes.number(scene)
        info = _info(setups, policy)
        steps = max(_LEAST, int(execute or 0))
        wanted = job.RolloutRequest(policy, prompt or "", seed, steps, Options())
        stream = worker.call("rollout", wanted, owner=visitors.of(request))
        film, status = Film(info, prompt or "", seed), ["Starting."]

        def take(event):
            status[0] = _take(event, film, status[0])

        def shown(outcome):
            if outcome == "stopped":
                film.end("stopped", f"Stopped after {film.time_s:.1f} s.")
            running = outcome is None
            found = _updates(tab, film, status[0] if running else "", running=running)
            return found | ({tab.scene: seed} if running else {})

        yield from runs.updates(
            run_of(request), [stream], take, _UPDATE_EVERY_S, shown, tab.controls.status
        )

    def stop(request: gr.Request):
        runs.stop(run_of(request))

    tab.controls.start.click(
        start,
        [tab.policy, tab.prompt, tab.scene, tab.execute],
        [*tab.controls.outputs, tab.film, tab.scene],
        preprocess=False,
        **own,
    )
    tab.controls.stop.click(stop, None, None, **own)
    tab.new.click(None, None, tab.scene, js=f"() => Math.floor(Math.random() * {scenes.MOST})")
    rollout_seam.wire(tab.seam, [tab.policy, tab.prompt, tab.scene], setups, worker, runs)
    form.prompt.change(None, form.prompt, tab.prompt, js="(prompt) => prompt")
    form.scenes.seed.change(None, form.scenes.seed, tab.scene, js="(scene) => scene")


def _info(setups: Setups, policy: str | None):
    infos = setups.infos()
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
        case Result(value=RolloutFrame() as frame):
            film.take(frame)
            return ""
        case Failed(message=message):
            film.end("broken", message)
            return ""
    return say


def _updates(tab: Tab, film: Film, say: str, *, running: bool) -> dict:
    return tab.controls.updates(say, running=running) | {tab.film: film.payload()}
