"""Cut connections on the page: what the form holds of them, and what they do to the shown run.

A block of the mask is cut or mended in the browser (`mask.js`, `cuts.js`), which changes the form
and runs the policies. Whoever looks at the masks is shown each chunk with and without the cuts.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import gradio as gr

from playground import cuts
from playground.analysis.causal import ConnectionsRequest, Knockout
from playground.serving.events import Job
from playground.serving.worker import Worker
from playground.trace import Cut, Trace
from playground.ui import appearance, errors
from playground.ui.guard import visitors
from playground.ui.measuring import Measuring
from playground.ui.results import Results
from playground.ui.runs import Runs
from playground.views import attention, causes, overview

_UPDATE_EVERY_S = 0.5
_CHOSEN = appearance.component("cuts.js")
_NOW = appearance.component("cut_now.js")


# --- what the form holds ------------------------------------------------------------------------


def build() -> gr.HTML:
    """The cuts of the form, each with a button that mends it; nothing where there are none."""
    return gr.HTML(value(()), **_CHOSEN, elem_id="cuts")


def value(chosen_cuts: Sequence[Cut]) -> dict:
    return {"values": [cuts.spelled(one) for one in chosen_cuts]}


def chosen(value: object) -> tuple[Cut, ...]:
    """The cuts of such a value, whoever sends it. Raises ValueError."""
    values = value.get("values", []) if isinstance(value, dict) else None
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise ValueError(f"the cuts must be a list of texts, {value!r:.60} came")
    return tuple(map(cuts.read, values))


def asked(value: object) -> list[dict]:
    """The same as a request has them. Raises ValueError."""
    return [
        {"query": one.query, "key": one.key, "layers": one.layers and list(one.layers)}
        for one in chosen(value)
    ]


# --- what they do to the shown run --------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """now: asks for the comparison once somebody looks; status: a sentence; paths: what came."""

    now: gr.HTML
    status: gr.HTML
    paths: gr.HTML


def comparison() -> Comparison:
    """To be called below the masks."""
    now = gr.HTML(overview.reference(part="cuts"), **_NOW, elem_id="cut-now")
    status = gr.HTML("", apply_default_css=False, elem_id="cut-status")
    return Comparison(now, status, gr.HTML(None, **causes.CUT_PATHS, elem_id="cut-paths"))


def payload(traces: Mapping[str, Trace], key: str) -> dict:
    """What `now` gets of a run."""
    cut = next(iter(traces.values())).options.cuts
    little = all(map(attention.costs_little, traces.values()))
    return {"key": key, "cut": bool(cut), "little": little}


def run_of(request: gr.Request) -> str:
    """What a visitor's comparison is called among the runs: it does not end a plain one."""
    return f"{request.session_hash} cuts"


def wire(parts: Comparison, key: gr.State, results: Results, worker: Worker, runs: Runs) -> None:
    @errors.for_page
    def compare(request: gr.Request, key):
        jobs = results.jobs(key)
        if not jobs or not jobs[0].options.cuts:
            yield {parts.status: ""}
            return
        state = _Comparing(jobs, results.find(key), key)
        stream = worker.call("knockout", state.request, owner=visitors.of(request))

        def shown(outcome):
            return {
                parts.status: errors.status(state.say),
                parts.paths: gr.skip() if outcome is None else state.paths(),
            }

        yield from runs.updates(
            run_of(request), [stream], state.take, _UPDATE_EVERY_S, shown, parts.status
        )

    parts.now.input(
        compare,
        [key],
        [parts.status, parts.paths],
        trigger_mode="always_last",
        **appearance.PRIVATE,
    )


class _Comparing(Measuring):
    """The shown run with and without its cuts, from the same noises."""

    def __init__(self, jobs: Sequence[Job], traces: Mapping[str, Trace], key: str):
        super().__init__(
            {name: trace.info for name, trace in traces.items()},
            "Comparing with the run without these cuts.",
        )
        self._key = key
        self._observations = {
            name: job.observation for job in jobs for name in job.policies if name in traces
        }
        self.request = ConnectionsRequest(
            tuple(self._observations), self._observations, jobs[0].options
        )
        self._found: list[Knockout] = []

    def put(self, value: Knockout) -> str:
        self._found.append(value)
        return ""

    def paths(self) -> dict | None:
        """What `causes.CUT_PATHS` draws."""
        if not self._found:
            return None
        lines = [
            causes.cut_lines(self._infos[found.policy], found, self._observations[found.policy])
            for found in self._found
        ]
        return {"key": self._key, "paths": lines}
