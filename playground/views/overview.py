"""A run at one glance: for each policy the picture with the path, the chunk, how it came about and
the mask, side by side, and one scrubber that moves all of them."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from playground.trace import FastTrace, FlowTrace, Trace
from playground.views import denoising, mask, paths, theme, tokens

# gr.HTML(value, **COMPONENT) with value None or the `text` of some `Rows`.
COMPONENT = theme.component(
    "axis.js", "cells.js", "panels.js", "player.js", "camera.js", "overview.js"
)
# Both policies' paths on one small picture, and a sentence each; value `reference()`.
GLANCE = theme.component("camera.js", "glance.js")

Objects = Mapping[str, tuple[float, float]]


class Rows:
    """The rows of one run, each made once, as its policy answers, and the text that the browser is
    sent of them.

    The text is the value of the component: lines of JSON, each of which adds to those before. What
    was sent stands at the beginning of the next value, of which Gradio then sends the end alone;
    and whichever value the browser reads first, all of the run is in it. A text, since Gradio
    (6.31) copies and watches every part of an object, which took a browser longer than drawing it.

    objects: of a trace, by name, where things lie on the table (x, y in metres), where that is
    known.
    """

    def __init__(self, objects: Callable[[Trace], Objects]):
        self._objects = objects
        self._run_id = secrets.token_hex(4)  # the browser keeps the rows of one run that it has
        self._sent: set[str] = set()
        self.text = ""

    def has(self, name: str) -> bool:
        return name in self._sent

    def add(
        self,
        traces: Mapping[str, Trace],
        parts: Mapping[str, dict[str, object]] | None = None,
        pending: Sequence[str] = (),
        **fields: object,
    ) -> str:
        """One line more, and the text with it. The component draws what has come of a run; the
        other tabs draw from it too, once nothing is pending.

        traces: by policy, all that there are
        parts: by policy, further payloads for `reference`
        pending: policies that have not answered yet
        fields: of the whole run, as plain JSON; `key` the run's

        A line: {run_id, policies, ...fields}. policies: by name, None of those that are pending;
        else what no line before has of {policy, sentence, foreign, path, picture, flow, fast,
        mask}, and `parts`: flow as `denoising.payload`, fast as `tokens.payload`, mask as
        `mask.payload`; path {image, grippers} of the finished chunk where the former two have
        none; picture where there is no path at all.
        """
        rows: dict[str, dict[str, object] | None] = dict.fromkeys([*traces, *pending])
        for name, trace in traces.items():
            row = {} if self.has(name) else _row(trace, self._objects(trace))
            rows[name] = row | (parts or {}).get(name, {})
        self._sent.update(traces)
        line = {"run_id": self._run_id, "policies": rows, **fields}
        self.text += json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"
        return self.text


def reference(policy: str = "", part: str = "") -> str:
    """A value for another component, which never changes: that part of whichever run the overview
    shows."""
    return json.dumps([policy, part])


def sentence(trace: Trace, objects: Objects | None = None) -> str:
    """What the chunk does, in plain words."""
    path = paths.sentence(trace, objects or {})
    if path:
        return path
    if trace.actions is None:
        return "The tokens did not decode, so nothing would move."
    chunk = trace.actions[0]
    stats = trace.info.action_stats
    spans = np.ptp(chunk, axis=0)
    # By the spread of its training data, where known: dimensions have different units.
    usual = np.maximum(np.array(stats.std), 1e-6) if stats else np.ones(len(spans))
    most = int((spans / usual).argmax())
    dim = trace.info.actions[most]
    seconds = len(chunk) / trace.info.control_hz
    # Some units are a sentence, "1 = 0.5 rad a step".
    unit = f"({dim.unit})" if " " in dim.unit else dim.unit
    return theme.plain(
        f"{dim.name} moves most: from {chunk[0, most]:.3g} to {chunk[-1, most]:.3g} {unit} "
        f"in {seconds:.1f} s."
    )


def _row(trace: Trace, objects: Objects) -> dict[str, object]:
    flow = fast = None
    if isinstance(trace, FlowTrace):
        flow = denoising.payload(trace, paths.denoising(trace))
    elif isinstance(trace, FastTrace) and trace.tokens:
        fast = tokens.payload(trace, paths.tokens(trace))
    camera = (flow or fast or {}).get("camera")
    path = None if camera else paths.payload(trace)
    return {
        "policy": theme.identity(trace.info),
        "sentence": sentence(trace, objects),
        "foreign": path["foreign"] if path else "",
        "path": path["camera"] if path else None,
        "picture": None if camera or path else _picture(trace),
        "flow": flow,
        "fast": fast,
        "mask": mask.payload(trace),
    }


def _picture(trace: Trace) -> dict[str, object] | None:
    """The first camera that the policy was given."""
    filled = [slot for slot, mode in trace.inputs.modes.items() if mode == "filled"]
    found = next((slot for slot in filled if slot in trace.images), None)
    return None if found is None else theme.picture(trace.images[found])
