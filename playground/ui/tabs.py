"""The tabs on the right: what they hold, and what of it changes with a run."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

import gradio as gr

from playground.run_file import FORMAT, of, to_json
from playground.trace import FastTrace, FlowTrace, Trace
from playground.ui import appearance, matters, norms, received, recipe, results, rollout
from playground.ui.observation import Form
from playground.ui.setup import Setup
from playground.views import actions as actions_view
from playground.views import attention, denoising, mask, paths, tokens

ROBOT_UNITS, MODEL_UNITS = "robot units", "normalised"
_LIVE = appearance.component("panels.js", "live.js")
_WAITING = (
    "<p class='waiting'>The chunk of each policy appears here: run an example, or give a picture "
    "and a prompt.</p>"
)
_MEASURE = "Slower, and the first such run compiles anew. Where a model looks, not why."
_MAX_PLAYED = 500_000  # values of x_t that a player gets; 16 bits each, three arrays of them
_OPEN_LOOP = (
    "Predictions from one observation: a chunk close to a demonstration is not yet a robot that "
    "succeeds."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """The components of the tabs; those in dicts are one for each policy."""

    rollout: rollout.Tab
    units: gr.Radio
    execute: gr.Slider
    result: gr.Column
    paths: dict[str, gr.HTML]
    plot: gr.Plot
    words: gr.HTML
    live: dict[str, gr.HTML]
    played: gr.HTML
    players: dict[str, gr.HTML]
    rails: dict[str, gr.HTML]
    compare: gr.HTML
    masks: dict[str, gr.HTML]
    measure: gr.Checkbox
    attention: dict[str, gr.HTML]
    matters: matters.Tab
    received: dict[str, gr.HTML]
    norms: norms.Panel
    recipe: recipe.Tab
    columns: dict[str, list[gr.Column]]

    @property
    def by_policy(self) -> list:
        """What depends on which policies are there."""
        columns = [column for found in self.columns.values() for column in found]
        film = [self.rollout.tab, self.rollout.policy]
        return [*columns, *self.players.values(), *self.rails.values(), self.execute, *film]

    @property
    def cleared(self) -> list:
        """What `cleared` sets."""
        recipe = [self.recipe.shown, self.recipe.status]
        return [self.played, self.compare, *self.paths.values(), *recipe]

    @property
    def all(self) -> list:
        """What `drawn` sets."""
        parts = (self.players, self.rails, self.masks, self.attention, self.received)
        views = [view for part in parts for view in part.values()]
        return [*self.cleared, *views]


def build(policies: Sequence[str], setup: Setup, form: Form) -> Shown:
    columns: dict[str, list[gr.Column]] = {name: [] for name in policies}

    def side_by_side(make, kind=""):
        with gr.Row(elem_classes=["pair", kind]):
            found = {}
            for name in policies:
                with gr.Column(min_width=300) as column:
                    found[name] = make()
                columns[name].append(column)
        return found

    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
        with gr.Tab("Actions", id="actions"):
            live = side_by_side(lambda: gr.HTML(None, **_LIVE), "live")
            with gr.Column() as result:
                pictures = side_by_side(lambda: gr.HTML(None, **paths.COMPONENT), "paths")
                with gr.Row(elem_classes="tools"):
                    units = gr.Radio(
                        [ROBOT_UNITS, MODEL_UNITS], value=ROBOT_UNITS, label="Values",
                        elem_id="units",
                    )  # fmt: skip
                    execute = gr.Slider(
                        0, 50, 0, step=1, label="Steps to execute (marked)",
                        elem_id="execute",
                    )  # fmt: skip
                    png = gr.Button("Save picture (PNG)", size="sm", elem_id="png")
                    png.click(None, js=appearance.script("save_picture.js"))
                words = gr.HTML(_WAITING, apply_default_css=False, elem_id="actions-words")
                plot = gr.Plot(show_label=False, elem_id="actions-plot", visible=False)
            gr.HTML(f"<p class='fine'>{_OPEN_LOOP}</p>", apply_default_css=False)
        with gr.Tab("Denoising", id="denoising"):
            played = gr.HTML("", apply_default_css=False)
            both = side_by_side(
                lambda: (gr.HTML(None, **denoising.COMPONENT),
                         gr.HTML(None, visible=False, **tokens.COMPONENT))
            )  # fmt: skip
        with gr.Tab("Attention mask", id="mask"):
            compare = gr.HTML("", apply_default_css=False, elem_id="compare")
            masks = side_by_side(lambda: gr.HTML(None, **mask.COMPONENT))
        with gr.Tab("Attention", id="attention"):
            measure = gr.Checkbox(
                label="Measure attention with each run", info=_MEASURE, elem_id="measure"
            )
            measured = side_by_side(lambda: gr.HTML(None, **attention.COMPONENT))
        with gr.Tab("What matters", id="matters"):
            what_matters = matters.build()
        film = rollout.build(setup, form.prompt.value, form.scenes.seed.value)
        with gr.Tab("What the models receive", id="received") as receive:
            inputs = side_by_side(lambda: gr.HTML(None, **received.COMPONENT))
            stats = norms.build(receive)
        with gr.Tab("Recipe", id="recipe"):
            kept = recipe.build()
    players = {name: pair[0] for name, pair in both.items()}
    rails = {name: pair[1] for name, pair in both.items()}
    return Shown(
        rollout=film,
        units=units,
        execute=execute,
        result=result,
        paths=pictures,
        plot=plot,
        words=words,
        live=live,
        played=played,
        players=players,
        rails=rails,
        compare=compare,
        masks=masks,
        measure=measure,
        attention=measured,
        matters=what_matters,
        received=inputs,
        norms=stats,
        recipe=kept,
        columns=columns,
    )


# --- updates ------------------------------------------------------------------------------------


def refreshed(setup: Setup, shown: Shown) -> dict:
    """Which policies have columns, and which of them denoise."""
    updates = {}
    for name, columns in shown.columns.items():
        here = name in setup.policies
        updates |= {column: gr.update(visible=here) for column in columns}
        if name in setup.infos:
            fast = setup.infos[name].family == "pi0_fast"
            updates[shown.players[name]] = gr.update(visible=not fast)
            updates[shown.rails[name]] = gr.update(visible=fast)
    updates |= rollout.refreshed(setup, shown.rollout)
    longest = max((info.horizon for info in setup.infos.values()), default=50)
    return updates | {shown.execute: gr.update(maximum=longest)}


def live(states: Mapping[str, dict | None], shown: Shown) -> dict:
    """The chunks as they stand; the last result makes room for them. {}: back to the result."""
    updates = {view: states.get(name) for name, view in shown.live.items()}
    return updates | {shown.result: gr.update(visible=not any(states.values()))}


def cleared(shown: Shown) -> dict:
    return {
        shown.played: "",
        shown.compare: "",
        **dict.fromkeys(shown.paths.values()),
        shown.recipe.shown: None,
        shown.recipe.status: "",
    }


def drawn(traces: Mapping[str, Trace], key: str, shown: Shown) -> dict:
    """Everything that shows a finished run but `actions`."""
    updates = {shown.compare: _compare(traces)}
    updates |= {shown.recipe.shown: recipe.payload(traces, key), shown.recipe.status: ""}
    updates[shown.played] = "".join(_left_out(trace) for trace in traces.values())
    for name in shown.masks:
        trace = traces.get(name)
        flow = trace if isinstance(trace, FlowTrace) else None
        fast = trace if isinstance(trace, FastTrace) else None
        updates[shown.paths[name]] = None if trace is None else paths.payload(trace)
        updates[shown.players[name]] = flow and _player(playable(flow))
        updates[shown.rails[name]] = fast and tokens.payload(fast, paths.tokens(fast))
        updates[shown.masks[name]] = None if trace is None else mask.payload(trace)
        measured = trace is not None and bool(trace.attention)
        updates[shown.attention[name]] = attention.payload(trace) if measured else None
        updates[shown.received[name]] = None if trace is None else received.payload(trace)
    return updates


def actions(traces: Mapping[str, Trace], units: str, execute: int) -> tuple:
    """Updates of plot and words of the first tab; without traces, before the first run."""
    if not traces:
        return gr.update(value=None, visible=False), _WAITING
    found = list(traces.values())
    how = {"normalised": units == MODEL_UNITS}
    longest = max(trace.info.horizon for trace in found)
    how["execute"] = min(int(execute or 0), longest) or None
    words = html.escape(actions_view.describe(found, **how))
    carried = {"file": results.run_name(traces), "format": FORMAT, "recipe": to_json(of(traces))}
    data = "".join(f" data-{name}='{html.escape(text)}'" for name, text in carried.items())
    return (
        gr.update(value=actions_view.figure(found, **how), visible=True),
        f"<p class='unseen'{data}>{words}</p>",
    )


def _player(trace: FlowTrace) -> dict[str, object]:
    return denoising.payload(trace, paths.denoising(trace))


def playable(trace: FlowTrace) -> FlowTrace:
    """The trace with as many samples as a player can be sent; itself where that is all."""
    steps, samples, *chunk = trace.x_t.shape
    most = max(1, _MAX_PLAYED // (steps * math.prod(chunk)))
    if most >= samples:
        return trace
    return dataclasses.replace(
        trace,
        x_t=trace.x_t[:, :most],
        v_t=trace.v_t[:, :most],
        estimates=trace.estimates[:, :most],
        actions=trace.actions[:most],
    )


def _left_out(trace: Trace) -> str:
    if not isinstance(trace, FlowTrace) or playable(trace) is trace:
        return ""
    kept, samples = playable(trace).x_t.shape[1], trace.x_t.shape[1]
    told = f"{trace.info.title}: the first {kept} of {samples} samples"
    return f"<p class='fine'>{html.escape(told)}; Actions and the saved trace have all.</p>"


def _compare(traces: Mapping[str, Trace]) -> str:
    first, *others = traces.values()
    told = [mask.compare(first, other) for other in others]
    return "".join(f"<p class='compare'>{html.escape(text)}</p>" for text in told)
