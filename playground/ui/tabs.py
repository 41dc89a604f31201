"""The tabs: what they hold, and what of it changes with a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import gradio as gr

from playground.trace import FlowTrace, Trace
from playground.ui import (
    appearance,
    causes,
    chunk,
    cuts,
    guide,
    matters,
    norms,
    prompts,
    received,
    recipe,
    robots,
    rollout,
    scenes,
)
from playground.ui.episodes import section as episodes
from playground.ui.observation import Form
from playground.ui.setup import Setup
from playground.views import actions, attention, denoising, mask, overview, tokens

# Of what "Run it" runs; the style sheet hides the other, where a robot has both.
_WHERE = [("At the simulated table", "table"), ("On recorded episodes", "episodes")]
_LIVE = appearance.component("panels.js", "live.js")
_LINES = appearance.component("lines.js")
_MEASURE_NOW = appearance.component("measure.js")
_MEASURE = "So that saved traces hold it. Where a model looks, not why."
_MAX_PLAYED = 500_000  # values of x_t that a player gets; 16 bits each, three arrays of them
_OPEN_LOOP = (
    "Predictions from one observation: a chunk close to a demonstration is not yet a robot that "
    "succeeds."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """The components of the tabs; those in dicts are one for each policy."""

    tabs: gr.Tabs
    overview: gr.HTML
    where: gr.Radio
    rollout: rollout.Tab
    episodes: episodes.Section
    robot: robots.Tab | None
    chunk: chunk.Panel
    live: dict[str, gr.HTML]
    players: dict[str, gr.HTML]
    rails: dict[str, gr.HTML]
    measure: gr.Checkbox
    measure_now: gr.HTML
    cuts: cuts.Comparison
    board: prompts.Board
    matters: matters.Tab
    causes: causes.Tab
    norms: norms.Panel
    recipe: recipe.Tab
    columns: dict[str, list[gr.Column]]

    @property
    def by_policy(self) -> list:
        """What depends on which policies are there."""
        film = [self.where, self.rollout.column, self.rollout.policy]
        players = [*self.players.values(), *self.rails.values()]
        return [*self.every_column, *players, self.chunk.execute, *film]

    @property
    def every_column(self) -> list[gr.Column]:
        return [column for found in self.columns.values() for column in found]

    @property
    def drawn(self) -> list:
        """What `drawn` and `cleared` set."""
        return [self.overview, self.recipe.status, *self.chunk.drawn]


def build(
    policies: Sequence[str], setup: Setup, form: Form, *, public: bool, watched: bool
) -> Shown:
    """public: whether others than this machine's owner reach the page; watched: whether robots are
    served, and may be looked at here."""
    columns: dict[str, list[gr.Column]] = {name: [] for name in policies}

    def side_by_side(parts, kind=""):
        """A column a policy, with a component for each part of its run; of each, by policy."""
        found = [{} for _ in parts]
        with gr.Row(elem_classes=["pair", kind]):
            for name in policies:
                with gr.Column(min_width=300, visible=name in setup.chosen) as column:
                    for views, (part, component) in zip(found, parts.items(), strict=True):
                        value = overview.reference(name, part) if part else None
                        views[name] = gr.HTML(value, **component)
                columns[name].append(column)
        return found

    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as strip:
        with gr.Tab("Overview", id="overview"):
            (live,) = side_by_side({"": _LIVE}, "live")
            glimpse = gr.HTML(None, **overview.COMPONENT, elem_id="overview")
            guide.how_to_read("overview")
        with gr.Tab("Actions and denoising", id="actions"):
            guide.how_to_read("actions")
            chunks = chunk.build()
            gr.HTML(f"<p class='fine'>{_OPEN_LOOP}</p>", apply_default_css=False)
            gr.HTML("<h2>How it came about</h2>", elem_classes="section", apply_default_css=False)
            gr.HTML(overview.reference(part="shortened"), **_LINES)
            players, rails = side_by_side({"flow": denoising.COMPONENT, "fast": tokens.COMPONENT})
        with gr.Tab("Attention", id="attention"):
            guide.how_to_read("attention")
            gr.HTML(overview.reference(part="compare"), **_LINES, elem_id="compare")
            side_by_side({"mask": mask.COMPONENT})
            cut = cuts.comparison()
            gr.HTML("<h2>Measured</h2>", elem_classes="section", apply_default_css=False)
            measure_now = gr.HTML(
                overview.reference(part="measure"), **_MEASURE_NOW, elem_id="measure-now"
            )
            side_by_side({"attention": attention.COMPONENT})
            measure = gr.Checkbox(
                label="Measure attention with each run", info=_MEASURE, elem_id="measure"
            )
        with gr.Tab("Prompts", id="prompts"):
            guide.how_to_read("prompts")
            board = prompts.build()
            gr.HTML(
                "<h2>Each word, the cameras and the state, with intervals</h2>",
                elem_classes="section",
                apply_default_css=False,
            )
            what_matters = matters.build()
        with gr.Tab("Causes", id="causes"):
            guide.how_to_read("causes")
            why = causes.build()
        with gr.Tab("Run it", id="rollout"):
            guide.how_to_read("rollout")
            where = gr.Radio(
                _WHERE, value=_WHERE[0][1], visible=rollout.is_here(setup), show_label=False,
                interactive=True,
                container=False, elem_id="where",
            )  # fmt: skip
            film = rollout.build(setup, form.prompt.value, form.scenes.seed.value)
            with gr.Column(elem_id="on-episodes"):
                recorded = episodes.build(len(form.pictures), public)
        robot = robots.build() if watched else None
        with gr.Tab("Details", id="details") as details:
            guide.how_to_read("details")
            gr.HTML(
                "<h2>What the models receive</h2>", elem_classes="section", apply_default_css=False
            )
            side_by_side({"received": received.COMPONENT})
            stats = norms.build(details)
            gr.HTML("<h2>Run file</h2>", elem_classes="section", apply_default_css=False)
            kept = recipe.build()
    return Shown(
        tabs=strip,
        overview=glimpse,
        where=where,
        rollout=film,
        episodes=recorded,
        robot=robot,
        chunk=chunks,
        live=live,
        players=players,
        rails=rails,
        measure=measure,
        measure_now=measure_now,
        cuts=cut,
        board=board,
        matters=what_matters,
        causes=why,
        norms=stats,
        recipe=kept,
        columns=columns,
    )


# --- updates ------------------------------------------------------------------------------------


def chosen_columns(chosen: Sequence[str], shown: Shown) -> dict:
    """Policies that are not chosen have no columns."""
    return {
        column: gr.update(visible=name in chosen)
        for name, columns in shown.columns.items()
        for column in columns
    }


def refreshed(setup: Setup, chosen: Sequence[str], shown: Shown) -> dict:
    """Which policies have columns, and which of them denoise."""
    updates = chosen_columns(chosen, shown)
    for name in shown.columns:
        if name in setup.infos:
            fast = setup.infos[name].family == "pi0_fast"
            updates[shown.players[name]] = gr.update(visible=not fast)
            updates[shown.rails[name]] = gr.update(visible=fast)
    updates |= rollout.refreshed(setup, shown.rollout)
    updates[shown.where] = gr.update(visible=rollout.is_here(setup))
    longest = max((info.horizon for info in setup.infos.values()), default=50)
    return updates | {shown.chunk.execute: gr.update(maximum=longest)}


def live(states: Mapping[str, dict | None], shown: Shown) -> dict:
    """The chunks as they stand, above the last result. {}: none."""
    return {view: states.get(name) for name, view in shown.live.items()}


def cleared(shown: Shown) -> dict:
    return {shown.overview: None, shown.recipe.status: ""}


def rows() -> overview.Rows:
    """For one run."""
    return overview.Rows(scenes.objects)


def answered(
    traces: Mapping[str, Trace], pending: Sequence[str], made: overview.Rows, shown: Shown
) -> dict:
    """The overview's rows of the policies that have answered, while others are `pending`; {} as
    long as none has. In every update until the run is drawn: a value is sent by what it has more
    than the one in the update before."""
    if not all(map(made.has, traces)):
        made.add(_played(traces), pending=pending)
    return {shown.overview: made.text} if made.text else {}


def drawn(
    traces: Mapping[str, Trace], key: str, wanted: object, made: overview.Rows, shown: Shown
) -> dict:
    """Everything that shows a finished run: the overview is sent it, and the other components draw
    theirs from there.

    wanted: which plot of the chunk, see `chunk.Panel`; none while its tab is closed
    made: the rows of this run, of which some may have been sent
    """
    parts = {
        name: {
            "attention": attention.payload(trace) if trace.attention else None,
            "received": received.payload(trace),
        }
        for name, trace in traces.items()
    }
    run = made.add(
        _played(traces),
        parts,
        key=key,
        recipe=recipe.payload(traces, key),
        measure={
            "key": key,
            "measured": all(trace.attention for trace in traces.values()),
            "little": all(map(attention.costs_little, traces.values())),
        },
        cuts=cuts.payload(traces, key),
        chunk_height=actions.height(list(traces.values())),
        compare=_compare(traces),
        shortened=[text for trace in traces.values() if (text := _left_out(trace))],
    )
    plot = chunk.drawn(traces, key, wanted, shown.chunk) if chunk.is_open(wanted) else {}
    return {shown.overview: run, shown.recipe.status: ""} | plot


def _played(traces: Mapping[str, Trace]) -> dict[str, Trace]:
    return {name: playable(trace) for name, trace in traces.items()}


def playable(trace: Trace) -> Trace:
    """The trace with as many samples as a player can be sent; itself where that is all."""
    if not isinstance(trace, FlowTrace):
        return trace
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
    fewer = playable(trace)
    if fewer is trace or not isinstance(fewer, FlowTrace) or not isinstance(trace, FlowTrace):
        return ""
    kept, samples = fewer.x_t.shape[1], trace.x_t.shape[1]
    text = f"{trace.info.title}: the first {kept} of {samples} samples"
    return f"{text}; the plot and the saved trace have all."


def _compare(traces: Mapping[str, Trace]) -> list[str]:
    first, *others = traces.values()
    return [line for other in others for line in mask.compare(first, other)]
