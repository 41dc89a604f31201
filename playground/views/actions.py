"""The chunk: small multiples, one panel a real dimension, policies overlaid where they compare."""

import dataclasses
import html
import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from playground.tabletop import camera
from playground.trace import Trace
from playground.views import theme

PANEL_HEIGHT = 132  # px, with its title
COLUMNS = 2  # a bimanual robot's arms side by side; still legible on a phone
_WRAP = 48  # characters a line of a note may have at 390 px
_LINE = 15  # px a line of a note
_ENTRY = 20  # px an entry of the legend

_STATE = {"symbol": "circle-open", "size": 9, "color": theme.NEUTRAL, "line": {"width": 2}}

# What normalised values count in, and what a value means; short, for a phone's panels.
_UNITS = {"z-score": "sd", "quantile": "quantile range"}
_MEANINGS = {"absolute": "", "offset": "offset from state", "velocity": "velocity"}


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One axis and what is drawn on it: (index into the traces, dimension) of each member.

    Members share name, unit, meaning and control rate; nothing else may share an axis.
    """

    name: str
    unit: str
    meaning: str
    hz: float
    members: tuple[tuple[int, int], ...]


def panels(traces: Sequence[Trace], *, normalised: bool = False) -> list[Panel]:
    """The panels of `figure`, in the order of the policies and their dimensions.

    Policies share a panel where name, unit, meaning and control rate agree; in normalised values
    the kind of normalisation is the unit. Otherwise a policy's panels follow the other's.
    """
    found: dict[tuple, list[tuple[int, int]]] = {}
    for which, trace in enumerate(traces):
        for place, dim in enumerate(trace.info.actions):
            unit = _UNITS[trace.info.normalisation] if normalised else dim.unit
            key = (dim.name, unit, dim.meaning, trace.info.control_hz)
            found.setdefault(key, []).append((which, place))
    return [Panel(*key, members=tuple(members)) for key, members in found.items()]


def figure(
    traces: Sequence[Trace], *, normalised: bool = False, execute: int | None = None
) -> go.Figure:
    """Every trace's actions over the steps of its chunk.

    Sample 0 is the thick line, further samples are thin; where an absolute action has a state of
    the same name and unit, a ring at step 0 is the state given (robot units only: state and
    actions have norm stats of their own). `execute` shades steps 0 to execute. A trace without
    actions draws nothing, and its failure stands above the panels. Badges stand in the legend and
    in the notes below, so an exported picture carries them.

    Raises ValueError for no traces at all or `execute` outside 1..horizon.
    """
    _check(traces, execute)
    shown = panels(traces, normalised=normalised)
    rates = {panel.hz for panel in shown}
    rows = -(-len(shown) // COLUMNS)
    fig = make_subplots(rows, COLUMNS, shared_xaxes="all", horizontal_spacing=0.09)
    for index, panel in enumerate(shown):
        row, column = index % rows + 1, index // rows + 1
        _draw_lines(fig, traces, panel, row, column, normalised)
        _draw_title(fig, panel, row, column, rates)
        last = row == rows or index == len(shown) - 1
        fig.update_xaxes(showticklabels=last, row=row, col=column)
        if last:
            fig.update_xaxes(title_text=_step_title(rates), row=row, col=column)
        if execute is not None:
            fig.add_vrect(0, execute, fillcolor=theme.WASH, line_width=0, row=row, col=column)
    _legend(fig, traces, any(_states(traces, p) for p in shown) and not normalised, execute)
    _notes_and_frame(fig, traces, rows)
    # Zoom holds as long as this does: the same axes in the same units.
    axes = "|".join(f"{panel.name} {panel.unit}" for panel in shown)
    fig.update_layout(uirevision=theme.plain(axes))
    for index in range(len(shown), rows * COLUMNS):  # the grid's empty places
        row, column = index % rows + 1, index // rows + 1
        fig.update_xaxes(visible=False, row=row, col=column)
        fig.update_yaxes(visible=False, row=row, col=column)
    return fig


def describe(
    traces: Sequence[Trace], *, normalised: bool = False, execute: int | None = None
) -> str:
    """The figure in words, for people who do not see it."""
    _check(traces, execute)
    sentences = []
    for trace in traces:
        who = f"{trace.info.title} ({trace.info.badge})"
        if trace.actions is None:
            sentences.append(f"{who} gave no chunk: {_reason(trace)}.")
            continue
        values = _values(trace, normalised)
        samples, horizon, dims = values.shape
        travel = np.ptp(values[0], axis=0)
        most = int(travel.argmax())
        dim = trace.info.actions[most]
        unit = _UNITS[trace.info.normalisation] if normalised else dim.unit
        sentences.append(
            f"{who}: {samples} chunk{'s' * (samples > 1)} of {horizon} steps at "
            f"{trace.info.control_hz:g} a second over {dims} dimensions. {dim.name} moves most, "
            f"from {values[0, 0, most]:.3g} to {values[0, -1, most]:.3g} {unit}."
        )
    if execute is not None:
        sentences.append(f"Steps 0 to {execute} would be executed.")
    return theme.plain(" ".join(sentences))


# --- parts --------------------------------------------------------------------------------------


def _check(traces, execute):
    if not traces:
        raise ValueError("expected at least one trace to draw, got none")
    longest = max(trace.info.horizon for trace in traces)
    if execute is not None and not 1 <= execute <= longest:
        raise ValueError(
            f"cannot execute {execute} steps of a chunk of {longest}: choose 1 to {longest}"
        )


def _values(trace, normalised):
    return trace.actions_normalised if normalised else trace.actions


def _reason(trace):
    return trace.decode_failure or "the run holds no actions"


def _draw_lines(fig, traces, panel, row, column, normalised):
    at = {"row": row, "col": column}
    for which, place in panel.members:
        trace = traces[which]
        values = _values(trace, normalised)
        if values is None:
            continue
        hue = theme.HUES[trace.info.family]
        steps = np.arange(values.shape[1])
        for sample in reversed(range(values.shape[0])):  # sample 0 last, on top
            fig.add_scatter(
                x=steps,
                y=values[sample, :, place],
                mode="lines",
                line={"color": hue, "width": 2.2 if sample == 0 else 0.9},
                opacity=1 if sample == 0 else 0.55,
                legendgroup=f"policy {which}",
                showlegend=False,
                name=_safe(trace.info.title),
                customdata=steps / trace.info.control_hz,
                hovertemplate=None if sample else _hover(panel),
                hoverinfo="skip" if sample else None,
                **at,
            )
    for which, value in {} if normalised else _states(traces, panel):
        fig.add_scatter(
            x=[0],
            y=[value],
            mode="markers",
            marker=_STATE,
            cliponaxis=False,
            legendgroup="state",
            showlegend=False,
            name="state now",
            hovertemplate=f"%{{y:.4g}} {_safe(panel.unit)}<extra>state now</extra>",
            meta={"policy": which},
            **at,
        )


def _draw_title(fig, panel, row, column, rates):
    axis = fig.get_subplot(row, column)
    rate = f"{panel.hz:g} steps a second" if len(rates) > 1 else ""
    note = " · ".join(filter(None, (panel.unit, _MEANINGS[panel.meaning], rate)))
    fig.add_annotation(
        text=f"<b>{_safe(panel.name)}</b>  {_safe(note)}",
        x=0,
        y=1,
        xref=f"{axis.xaxis.plotly_name.replace('axis', '')} domain",
        yref=f"{axis.yaxis.plotly_name.replace('axis', '')} domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font_size=11,
    )


def _step_title(rates):
    """Seconds belong on a shared axis only where one control rate holds for all of it."""
    return f"step ({1 / min(rates):.3g} s each)" if len(rates) == 1 else "step"


def _hover(panel):
    return (
        f"step %{{x}} · %{{customdata:.3g}} s · <b>%{{y:.4g}}</b> {_safe(panel.unit)}"
        "<extra>%{fullData.name}</extra>"
    )


def _states(traces, panel):
    """(trace index, value) of the states to mark, equal ones once."""
    marked = {}
    for which, _ in panel.members:
        trace = traces[which]
        if panel.meaning != "absolute":
            continue
        for place, dim in enumerate(trace.info.state):
            if (dim.name, dim.unit) == (panel.name, panel.unit):
                marked.setdefault(trace.recipe.state[place], which)
    return [(which, value) for value, which in marked.items()]


def _legend(fig, traces, states, execute):
    """Entries without data, so that a policy that drew nothing has one too."""
    for which, trace in enumerate(traces):
        name = f"{trace.info.title} · {trace.info.badge}"
        if trace.actions is None:
            name += " · did not decode"
        line = {"color": theme.HUES[trace.info.family], "width": 2.2}
        group = f"policy {which}"
        fig.add_scatter(
            x=[None], y=[None], mode="lines", line=line, legendgroup=group, name=_safe(name)
        )
    if states:
        fig.add_scatter(
            x=[None], y=[None], mode="markers", marker=_STATE, legendgroup="state", name="state now"
        )
    if execute is not None:
        square = {"symbol": "square", "size": 12, "color": theme.FAINT}
        name = f"executed: steps 0 to {execute}"
        fig.add_scatter(x=[None], y=[None], mode="markers", marker=square, name=name)


def _notes_and_frame(fig, traces, rows):
    """Failures above the panels, badges and notices below; sizes, colours and axes."""
    failures = [
        f"<b>{_safe(t.info.title)}: decoding failed, nothing is drawn.</b><br>"
        + _wrapped(f"{_reason(t)}")
        for t in traces
        if t.actions is None
    ]
    notices = dict.fromkeys(
        _wrapped(f"{t.info.title} · {t.info.badge}: {t.info.notice}") for t in traces
    )
    if any(camera.FOREIGN in trace.warnings for trace in traces):
        notices |= {_wrapped(camera.FOREIGN): None}
    above, below = "<br>".join(failures), "<br>".join(notices)
    entries = sum(trace.showlegend is not False for trace in fig.data)
    top = 40 + _ENTRY * entries + (_LINE * (above.count("<br>") + 1) + 14 if above else 0)
    bottom = 56 + _LINE * (below.count("<br>") + 1)
    common = {"xref": "paper", "x": 0, "xanchor": "left", "align": "left", "showarrow": False}
    if above:
        fig.add_annotation(
            text=above, yref="paper", y=1, yanchor="bottom", yshift=24, font_size=11, **common
        )
    fig.add_annotation(
        text=below, yref="paper", y=0, yanchor="top", yshift=-44, font_size=10.5, **common
    )
    fig.update_layout(
        height=rows * PANEL_HEIGHT + top + bottom,
        margin={"l": 46, "r": 12, "t": top, "b": bottom},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": theme.NEUTRAL, "size": 11},
        legend={
            "yref": "container",
            "y": 0.998,
            "yanchor": "top",
            "x": 0,
            "font_size": 12,
            "tracegroupgap": 0,
        },
        hovermode="x",
        hoverlabel={"font_size": 12},
        template="none",
    )
    axis = {"gridcolor": theme.FAINT, "zeroline": False, "tickfont_size": 10, "title_font_size": 10}
    fig.update_xaxes(**axis, title_standoff=4)
    fig.update_yaxes(**axis, nticks=4)


def _safe(text):
    """Text for Plotly, which reads tags: nothing that came from outside may be one."""
    return html.escape(theme.plain(text), quote=False)


def _wrapped(text):
    return "<br>".join(_safe(line) for line in textwrap.wrap(theme.plain(text), _WRAP))
