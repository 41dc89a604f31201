"""The chunk: small multiples, one panel a real dimension, policies overlaid where they compare."""

import dataclasses
import html
import textwrap
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import plotly.io

from playground.tabletop import camera
from playground.trace import Trace
from playground.views import theme

PANEL_HEIGHT = 132  # px, with its title
COLUMNS = 2  # a bimanual robot's arms side by side; still legible on a phone
_WRAP = 48  # characters a line of a note may have at 390 px
_LINE = 15  # px a line of a note
_ENTRY = 20  # px an entry of the legend
_GAP = 0.09  # between the columns, of the width

_STATE = {"symbol": "circle-open", "size": 9, "color": theme.NEUTRAL, "line": {"width": 2}}

# What normalised values count in, and what a value means; short, for a phone's panels.
_UNITS = {
    "z-score": "sd",
    "quantile": "quantile range",
    "quantile-10": "q10 to q90",
    "min-max": "range",
    "identity": "as is",
}
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
            unit = _UNITS[trace.info.method("actions")] if normalised else dim.unit
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
    return go.Figure(_drawing(traces, normalised, execute))


def figure_json(
    traces: Sequence[Trace], *, normalised: bool = False, execute: int | None = None
) -> str:
    """The same as JSON for Plotly in a browser, within a tenth of the time: nothing looks at each
    property again. Raises ValueError as `figure` does."""
    return str(plotly.io.to_json(_drawing(traces, normalised, execute), validate=False))


def height(traces: Sequence[Trace]) -> int:
    """px that `figure` takes in robot units with no step shaded, known without drawing it."""
    shown = panels(traces)
    states = any(_states(traces, panel) for panel in shown)
    entries = len(_legend(traces, states, None))
    margins = _margins(_failures(traces), _notices(traces), entries)
    return _rows(len(shown)) * PANEL_HEIGHT + sum(margins)


def describe(
    traces: Sequence[Trace], *, normalised: bool = False, execute: int | None = None
) -> str:
    """The figure in words, for people who do not see it."""
    _check(traces, execute)
    sentences = []
    for trace in traces:
        who = f"{trace.info.title} ({trace.info.badge})"
        values = _values(trace, normalised)
        if values is None:
            sentences.append(f"{who} gave no chunk: {trace.decode_failure}.")
            continue
        samples, horizon, dims = values.shape
        travel = np.ptp(values[0], axis=0)
        most = int(travel.argmax())
        dim = trace.info.actions[most]
        unit = _UNITS[trace.info.method("actions")] if normalised else dim.unit
        sentences.append(
            f"{who}: {samples} chunk{'s' * (samples > 1)} of {horizon} steps at "
            f"{trace.info.control_hz:g} a second over {dims} dimensions. {dim.name} moves most, "
            f"from {values[0, 0, most]:.3g} to {values[0, -1, most]:.3g} {unit}."
        )
    if execute is not None:
        sentences.append(f"Steps 0 to {execute} would be executed.")
    return theme.plain(" ".join(sentences))


# --- parts --------------------------------------------------------------------------------------


def _drawing(traces, normalised, execute):
    """Data and layout as plain values, which Plotly checks once: drawn through its methods, the
    same figure takes ten times as long."""
    _check(traces, execute)
    shown = panels(traces, normalised=normalised)
    states = not normalised and any(_states(traces, panel) for panel in shown)
    legend = _legend(traces, states, execute)
    lines = [
        line
        for index, panel in enumerate(shown)
        for line in _lines(traces, panel, _place(index, len(shown)), normalised)
    ]
    layout = _layout(traces, shown, execute, entries=len(legend))
    return {"data": lines + legend, "layout": layout}


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


def _place(index: int, count: int) -> str:
    """What Plotly calls the axes of a panel, "" or a number from 2: panels go down the columns,
    axes along the rows."""
    row, column = _cell(index, count)
    number = row * COLUMNS + column + 1
    return str(number) if number > 1 else ""


def _cell(index: int, count: int) -> tuple[int, int]:
    """Row and column of a panel."""
    rows = _rows(count)
    return index % rows, index // rows


def _rows(count: int) -> int:
    return -(-count // COLUMNS)


def _lines(traces, panel, place, normalised):
    axes = {"xaxis": f"x{place}", "yaxis": f"y{place}", "showlegend": False, "type": "scatter"}
    drawn = []
    for which, dim in panel.members:
        trace = traces[which]
        values = _values(trace, normalised)
        if values is None:  # only the steps, without which Plotly draws no axes
            steps, nothing = [0, trace.info.horizon - 1], [None, None]
            drawn.append({"x": steps, "y": nothing, "hoverinfo": "skip", **axes})
            continue
        hue = theme.HUES[trace.info.family]
        steps = np.arange(values.shape[1])
        for sample in reversed(range(values.shape[0])):  # sample 0 last, on top
            hover = {"hoverinfo": "skip"} if sample else {"hovertemplate": _hover(panel)}
            drawn.append(
                {
                    "x": steps,
                    "y": values[sample, :, dim],
                    "mode": "lines",
                    "line": {"color": hue, "width": 2.2 if sample == 0 else 0.9},
                    "opacity": 1 if sample == 0 else 0.55,
                    "legendgroup": f"policy {which}",
                    "name": _safe(trace.info.title),
                    "customdata": steps / trace.info.control_hz,
                    **hover,
                    **axes,
                }
            )
    for which, value in {} if normalised else _states(traces, panel):
        drawn.append(
            {
                "x": [0],
                "y": [value],
                "mode": "markers",
                "marker": _STATE,
                "cliponaxis": False,
                "legendgroup": "state",
                "name": "state now",
                "hovertemplate": f"%{{y:.4g}} {_safe(panel.unit)}<extra>state now</extra>",
                "meta": {"policy": which},
                **axes,
            }
        )
    return drawn


def _title(panel, place, rates):
    rate = f"{panel.hz:g} steps a second" if len(rates) > 1 else ""
    note = " · ".join(filter(None, (panel.unit, _MEANINGS[panel.meaning], rate)))
    # On a phone a title of one line has room for some 22 letters.
    apart = "  " if len(panel.name) + len(note) <= 22 else "<br>"
    return {
        "text": f"<b>{_safe(panel.name)}</b>{apart}{_safe(note)}",
        "x": 0,
        "y": 1,
        "xref": f"x{place} domain",
        "yref": f"y{place} domain",
        "xanchor": "left",
        "align": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11},
    }


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
                marked.setdefault(trace.inputs.state[place], which)
    return [(which, value) for value, which in marked.items()]


def _legend(traces, states, execute):
    """Entries without data, so that a policy that drew nothing has one too."""
    entries = []
    for which, trace in enumerate(traces):
        name = f"{trace.info.title} · {trace.info.badge}"
        if trace.actions is None:
            name += " · did not decode"
        line = {"color": theme.HUES[trace.info.family], "width": 2.2}
        group = f"policy {which}"
        entries.append({"mode": "lines", "line": line, "legendgroup": group, "name": _safe(name)})
    if states:
        entries.append(
            {"mode": "markers", "marker": _STATE, "legendgroup": "state", "name": "state now"}
        )
    if execute is not None:
        square = {"symbol": "square", "size": 12, "color": theme.FAINT}
        name = f"executed: steps 0 to {execute}"
        entries.append({"mode": "markers", "marker": square, "name": name})
    return [{"type": "scatter", "x": [None], "y": [None], **entry} for entry in entries]


def _layout(traces, shown, execute, entries):
    """Axes, titles and shaded steps of the panels; failures above them, badges and notices below;
    sizes and colours. entries: how many the legend has."""
    above, below = _failures(traces), _notices(traces)
    top, bottom = _margins(above, below, entries)
    rates = {panel.hz for panel in shown}
    places = [_place(index, len(shown)) for index in range(len(shown))]
    titles = [_title(panel, place, rates) for panel, place in zip(shown, places, strict=True)]
    return {
        **_axes(len(shown), rates),
        "annotations": titles + _notes(above, below),
        "shapes": [] if execute is None else [_shade(execute, place) for place in places],
        "height": _rows(len(shown)) * PANEL_HEIGHT + top + bottom,
        "margin": {"l": 46, "r": 12, "t": top, "b": bottom},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": theme.NEUTRAL, "size": 11},
        "legend": {
            "yref": "container",
            "y": 0.998,
            "yanchor": "top",
            "x": 0,
            "font": {"size": 12},
            "tracegroupgap": 0,
        },
        "hovermode": "x",
        "hoverlabel": {"font": {"size": 12}},
        "template": {},
        # Zoom holds as long as this does: the same axes in the same units.
        "uirevision": theme.plain("|".join(f"{panel.name} {panel.unit}" for panel in shown)),
    }


def _margins(above, below, entries):
    """px above and below the panels."""
    top = 40 + _ENTRY * entries + (_LINE * (above.count("<br>") + 1) + 14 if above else 0)
    return top, 56 + _LINE * (below.count("<br>") + 1)


def _failures(traces):
    return "<br>".join(
        f"<b>{_safe(t.info.title)}: decoding failed, nothing is drawn.</b><br>"
        + _wrapped(f"{t.decode_failure}")
        for t in traces
        if t.actions is None
    )


def _notices(traces):
    """What is to be known of each policy, said once for those of which the same is."""
    titles: dict[tuple[str, str], list[str]] = {}
    for trace in traces:
        alike = titles.setdefault((trace.info.badge, trace.info.notice), [])
        if trace.info.title not in alike:
            alike.append(trace.info.title)
    notices = [
        _wrapped(f"{theme.listed(of)} · {badge}" + (notice and f": {notice}"))
        for (badge, notice), of in titles.items()
    ]
    if any(trace.on_table is False for trace in traces):
        notices.append(_wrapped(camera.FOREIGN))
    return "<br>".join(notices)


def _notes(above, below):
    common = {"xref": "paper", "x": 0, "xanchor": "left", "align": "left", "showarrow": False}
    common["yref"] = "paper"
    over = {"text": above, "y": 1, "yanchor": "bottom", "yshift": 24, "font": {"size": 11}}
    under = {"text": below, "y": 0, "yanchor": "top", "yshift": -44, "font": {"size": 10.5}}
    return [{**note, **common} for note in (over, under) if note["text"]]


def _shade(execute, place):
    across = {"xref": f"x{place}", "x0": 0, "x1": execute}
    return {
        **across,
        "type": "rect",
        "yref": f"y{place} domain",
        "y0": 0,
        "y1": 1,
        "fillcolor": theme.WASH,
        "line": {"width": 0},
    }


def _axes(count, rates):
    """The grid: all panels share the steps; the lowest of each column has the labels."""
    rows = _rows(count)
    gap = 0.3 / rows
    width, height = (1 - _GAP) / COLUMNS, (1 - gap * (rows - 1)) / rows
    common = {
        "gridcolor": theme.FAINT,
        "zeroline": False,
        "tickfont": {"size": 10},
        # There is room for them all; else a browser would measure each label of each axis.
        "ticklabeloverflow": "allow",
    }
    lowest = _place(rows - 1, count)
    axes = {}
    for index in range(rows * COLUMNS):
        row, column = _cell(index, count)
        place = _place(index, count)
        left, base = column * (width + _GAP), (rows - 1 - row) * (height + gap)
        labelled = index < count and (row == rows - 1 or index == count - 1)
        title = {"text": _step_title(rates)} if labelled else {}
        axes[f"xaxis{place}"] = {
            "anchor": f"y{place}",
            "domain": [left, left + width],
            "showticklabels": labelled,
            "title": {**title, "font": {"size": 10}, "standoff": 4},
            "visible": index < count,  # the grid's empty places
            **({} if place == lowest else {"matches": f"x{lowest}"}),
            **common,
        }
        axes[f"yaxis{place}"] = {
            "anchor": f"x{place}",
            "domain": [base, min(base + height, 1)],  # rounding must not leave the page
            "nticks": 4,
            "visible": index < count,
            **common,
        }
    return axes


def _safe(text):
    """Text for Plotly, which reads tags: nothing that came from outside may be one."""
    return html.escape(theme.plain(text), quote=False)


def _wrapped(text):
    return "<br>".join(_safe(line) for line in textwrap.wrap(theme.plain(text), _WRAP))
