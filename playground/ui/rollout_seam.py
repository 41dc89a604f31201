"""Where two successive chunks of a rollout meet, below its film."""

import functools

import gradio as gr

from playground.analysis.rollout_seam import MOST, RolloutSeam, RolloutSeamRequest
from playground.serving.worker import Worker
from playground.trace import Options, PolicyInfo
from playground.ui import appearance, errors, scenes
from playground.ui.episodes import seam
from playground.ui.episodes.seam import Part
from playground.ui.guard import visitors
from playground.ui.runs import Runs
from playground.ui.setup import Setups
from playground.views import seam as view

_UPDATE_EVERY_S = 0.2
_BUTTON = "Join two chunks of this rollout"


def build() -> Part:
    """To be called inside the tab."""
    question = functools.partial(
        gr.Slider, 1, MOST, 1, step=1, label="At question (0 is the first)", elem_id="seam-question"
    )
    return seam.build(_BUTTON, "rollout-", [question])


def run_of(request: gr.Request) -> str:
    """What a visitor's seam of a rollout is called among the runs."""
    return f"{request.session_hash} rollout seam"


def wire(part: Part, rollout: list, setups: Setups, worker: Worker, runs: Runs) -> None:
    """rollout: the components with its policy, prompt and scene."""

    @errors.for_page
    def join(request: gr.Request, since, delay, measured, question, policy, prompt, scene):
        infos = setups.infos()
        if policy not in infos:
            raise ValueError("choose a policy; they are loaded when the page says Ready")
        asked = RolloutSeamRequest(
            policy, prompt or "", scenes.number(scene), int(since or 1), int(question or 1),
            seam.chosen(delay, measured), Options(),
        )  # fmt: skip
        stream = worker.call("rollout_seam", asked, owner=visitors.of(request))
        joined = Joined(infos[policy], asked)

        def shown(outcome):
            return seam.updates(part, joined, running=outcome is None)

        yield from runs.updates(
            run_of(request), [stream], joined.take, _UPDATE_EVERY_S, shown, part.status
        )

    part.start.click(
        join,
        [part.since, part.delay, part.measured, *part.extra, *rollout],
        [part.status, part.result, part.start],
        **appearance.PRIVATE,
    )
    seam.limit_delay(part)


class Joined(seam.Joined[RolloutSeam]):
    """Of a rollout."""

    def __init__(self, info: PolicyInfo, asked: RolloutSeamRequest):
        super().__init__(info)
        self._info, self._asked = info, asked

    def payload(self, found: RolloutSeam) -> dict:
        asked = self._asked
        at = asked.question * asked.since
        return view.payload(self._info, found.chunks, found.commands, at, asked.since, done=True)
