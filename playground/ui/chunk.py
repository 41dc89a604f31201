"""The chunk with axes and units, as a plot. It is drawn for whoever looks at it: with the answer of
a run while its tab is open, else when the tab is opened or other units are chosen."""

import dataclasses
import html
from collections.abc import Mapping

import gradio as gr
from gradio.components.plot import PlotData

from playground.run_file import FORMAT, of, to_json
from playground.trace import Trace
from playground.ui import appearance, results
from playground.views import actions

ROBOT_UNITS, MODEL_UNITS = "robot units", "normalised"
_WANTED = appearance.component("wanted.js")
_WAITING = "<p class='waiting'>The chunk of each policy appears here.</p>"
_FOLLOW = "(wanted, units, execute) => ({ ...wanted, units, execute })"


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """wanted: {open, units, execute}: whether the tab is open, and how the chunk is to be drawn
    there. Its property `shown` says what the plot shows: [key of a run, units, execute], None for
    nothing; where that is not what is wanted, it asks for another plot."""

    units: gr.Radio
    execute: gr.Slider
    plot: gr.Plot
    words: gr.HTML
    wanted: gr.HTML

    @property
    def drawn(self) -> list:
        """What `drawn` sets."""
        return [self.plot, self.words, self.wanted]


def build() -> Panel:
    with gr.Row(elem_classes="tools"):
        units = gr.Radio(
            [ROBOT_UNITS, MODEL_UNITS], value=ROBOT_UNITS, label="Values", elem_id="units"
        )
        execute = gr.Slider(
            0, 50, 0, step=1, label="Steps to execute (marked)", elem_id="execute"
        )  # fmt: skip
        png = gr.Button("Save picture (PNG)", size="sm", elem_id="png")
        png.click(None, js=appearance.script("save_picture.js"))
    with gr.Column(elem_id="chunk-place"):
        words = gr.HTML(_WAITING, apply_default_css=False, elem_id="actions-words")
        # Visible from the start: Gradio (6.31) mounts what becomes visible only later, and may lose
        # what comes meanwhile. Without a plot page.css hides it.
        plot = gr.Plot(show_label=False, elem_id="actions-plot")
    start = {"open": False, "units": ROBOT_UNITS, "execute": 0}
    wanted = gr.HTML(start, shown=None, **_WANTED, elem_id="actions-wanted")
    return Panel(units, execute, plot, words, wanted)


def wire(panel: Panel, draw, key: gr.State) -> None:
    """draw: given the key of the run that is shown and what is wanted, gives what `drawn` does."""
    ways = [panel.units, panel.execute]
    changes = [part.change for part in ways]
    gr.on(changes, None, [panel.wanted, *ways], panel.wanted, js=_FOLLOW, **appearance.PRIVATE)
    panel.wanted.input(
        draw,
        [key, panel.wanted],
        panel.drawn,
        trigger_mode="always_last",
        concurrency_id="plot",
        concurrency_limit=1,  # in the order asked for
        **appearance.PRIVATE,
    )


def is_open(wanted: object) -> bool:
    """Whether somebody looks at the plot."""
    return isinstance(wanted, dict) and wanted.get("open") is True


def drawn(traces: Mapping[str, Trace], key: str | None, wanted: object, panel: Panel) -> dict:
    """Updates that show the run's chunks, or, without traces, that there are none yet. wanted: as
    the browser sent it; what makes no sense in it is as at first."""
    wanted = wanted if isinstance(wanted, dict) else {}
    units = MODEL_UNITS if wanted.get("units") == MODEL_UNITS else ROBOT_UNITS
    execute = wanted.get("execute")
    execute = execute if type(execute) is int else 0
    if not traces:
        return {
            panel.plot: None,
            panel.words: _WAITING,
            panel.wanted: gr.update(shown=None),
        }
    found = list(traces.values())
    longest = max(trace.info.horizon for trace in found)
    how = {"normalised": units == MODEL_UNITS, "execute": min(execute, longest) or None}
    words = html.escape(actions.describe(found, **how))
    carried = {"file": results.run_name(traces), "format": FORMAT, "recipe": to_json(of(traces))}
    data = "".join(f" data-{name}='{html.escape(text)}'" for name, text in carried.items())
    plot = PlotData(type="plotly", plot=actions.figure_json(found, **how))
    return {
        panel.plot: plot,
        panel.words: f"<p class='unseen'{data}>{words}</p>",
        panel.wanted: gr.update(shown=[key, wanted.get("units"), wanted.get("execute")]),
    }
