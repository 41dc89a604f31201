"""The prompt on top of the page: Run and Stop beside it, rewordings and the live switch below."""

import dataclasses
from collections.abc import Mapping, Sequence

import gradio as gr

from playground.analysis.variants import EXAMPLE_TASKS, MEANINGS
from playground.robots.examples import Example, examples
from playground.robots.robot import Robot
from playground.trace import Trace
from playground.ui import appearance, cuts
from playground.ui.request import MAX_PROMPT
from playground.ui.setup import Setup

LIVE_WITHIN_S = 1.0  # a policy that takes longer does not answer while one types

_REWORDINGS = appearance.component("rewordings.js")


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """rewordings: value {prompt, chosen}: what stands in the field, and what was clicked. Its
    property `words` is {kinds, tasks}: kinds of words, each groups that mean the same, and other
    prompts; `slow` says why the page does not answer while one types, "" where it does; `waiting`
    says that others were in line when it was last asked to. cuts: as `cuts.build` makes it."""

    prompt: gr.Textbox
    run: gr.Button
    stop: gr.Button
    rewordings: gr.HTML
    cuts: gr.HTML


def build(setup: Setup, first: Example | None) -> Bar:
    text = first.prompt if first else ""
    with gr.Row(elem_classes="prompt-bar"):
        prompt = gr.Textbox(
            text,
            label="Prompt",
            show_label=False,
            container=False,
            placeholder=placeholder(setup),
            lines=1,
            max_lines=3,
            max_length=MAX_PROMPT,
            scale=1,
            elem_id="prompt",
        )
        run = gr.Button("Run", variant="primary", elem_id="run", scale=0, min_width=110)
        stop = gr.Button("Stop", elem_id="stop", interactive=False, scale=0, min_width=80)
    rewordings = gr.HTML(
        {"prompt": text, "chosen": ""},
        words=words(setup.robot),
        slow="",
        waiting=False,
        **_REWORDINGS,
        elem_id="rewordings",
    )
    return Bar(prompt, run, stop, rewordings, cuts.build())


def placeholder(setup: Setup) -> str:
    defaults = dict.fromkeys(i.default_prompt for i in setup.infos.values() if i.default_prompt)
    unless = f" (left empty: {' / '.join(defaults)})" if defaults else ""
    return f"what the robot shall do{unless}"


def words(robot: Robot) -> dict[str, Sequence]:
    """What rewordings of a prompt are made from."""
    tasks = [example.prompt for example in examples(robot)]
    tasks += EXAMPLE_TASKS.get(robot.name, ())
    return {"kinds": MEANINGS.get(robot.name, ()), "tasks": list(dict.fromkeys(tasks))}


def slow(traces: Mapping[str, Trace]) -> str:
    """Why the page cannot answer while one types; "" where it can. traces: the last answers."""
    for trace in traces.values():
        took = sum(ms for stage, ms in trace.timings_ms.items() if not _compiles(stage)) / 1000
        if took > LIVE_WITHIN_S:
            return f"{trace.info.title} takes {took:.1f} s"
    return ""


def _compiles(stage: str) -> bool:
    return stage.startswith("compiling")
