"""The page's answers for programs: `/infer`, `/denoise`, `/attention_mask`, `/attention`,
`/what_matters`, `/causal_trace`, `/knockout`, `/occlusion` and `/norm_stats`. What they hold is in
`playground.summaries`, `playground.analysis.sensitivity`, `playground.analysis.causal` and
`playground.analysis.norm_check`.

Large answers leave as arrays: as lists, the two million numbers of a hundred steps would take a
hundred MB here, for as long as the caller does not read them.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.events import api as gradio_api

from playground import summaries
from playground.serving.events import Done, Failed, Result
from playground.serving.queue import Stream
from playground.serving.worker import Worker
from playground.trace import Trace
from playground.ui import errors, norms, runs
from playground.ui import results as kept
from playground.ui.guard import visitors
from playground.ui.request import RunRequest
from playground.ui.results import Results
from playground.ui.setup import Setups

_MAX_NUMBERS = 20_000  # in JSON, for each policy
_OBSERVATION = ("prompt", "images", "state", "policies", "robot", "modes")
_FAST = ("temperature", "max_tokens", "constrained")
_RUN = (*_OBSERVATION, "num_steps", "num_samples", "seed", *_FAST, "guidance", "cuts")
_CAUSES = (*_OBSERVATION, "num_steps", "seed", "max_tokens", "constrained", "noises")
_ONE_SAMPLE = (*_OBSERVATION, "num_steps", "seed", *_FAST)


def build(setups: Setups, worker: Worker, results: Results) -> None:
    """Adds the endpoints to the Blocks at hand. Gradio shows their signatures and docstrings to
    whoever asks for the API."""

    def summarised(kind: str, request: RunRequest, **how):
        """Runs the policies and gives the summary of each trace. kind: of the summary, see
        `results.SUMMARIES`."""
        streams = runs.submit(worker, request.jobs(setups, **how))
        return _answer(streams, results, kind)

    def infer(request: RunRequest) -> dict[str, Any]:
        """Runs policies on one observation and gives the chunk of each.

        prompt: what the robot shall do.
        images: a file (PNG, JPEG or WebP) for each camera slot by name: an upload
        (gradio_client.handle_file), or a text "data:image/jpeg;base64,..." (a message holds at most
        512 KB); a JPEG of more than 16 million pixels is read at half its width and height.
        state: in the robot's units; None for its resting state.
        policies: names of loaded policies; None for all that drive the robot.
        robot: whose observation it is; None for the robot of the first loaded policy.
        modes: "masked" or "black" by slot; other slots are filled, or empty as in training.
        num_steps, num_samples, seed: of pi0.
        temperature, max_tokens: of pi0-FAST.
        constrained: whether pi0-FAST chooses only among the tokens that keep the chunk decodable;
            None for the policy's own way.
        guidance: of pi0, how strongly the prompt is weighed, from 0 (as if it were empty) to 3; 1
            is the policy itself.
        cuts: connections that the run goes without, as /knockout takes them; only where guidance
            is 1.

        Returns by policy: badge and notice (say them wherever you show the numbers), actions
        [samples, steps, dimensions] in the robot's units (null if FAST's tokens did not decode,
        then decode_failure says why), dimensions (name, unit, meaning), control_hz, timings_ms,
        warnings, trace, the path of the whole trace on this server, and arrays: null, or where the
        arrays would hold more than 20,000 numbers, the path of an NPZ file with them by name; they
        are null in the answer then. A policy that failed has only `failure`.
        """
        return summarised("chunk", request)

    def denoise(request: RunRequest) -> dict[str, Any]:
        """Runs policies on one observation and tells how each chunk came about. Takes what /infer
        takes.

        Returns by policy: badge, notice, trace, arrays (as /infer), and of pi0: times (t, from 1 to
        0), estimates [steps, samples, horizon, dimensions] in the robot's units (x_t - t v_t),
        speeds [steps, dimensions] (root mean square of v_t); of pi0-FAST: tokens (id, text,
        probability, runners_up, and decodes: whether the tokens so far decode). A policy that
        failed has only `failure`.
        """
        return summarised("denoising", request)

    def attention_mask(request: RunRequest) -> dict[str, Any]:
        """Runs policies on one observation and gives who may attend to whom in that run. Takes what
        /infer takes, without what changes no mask.

        Returns by policy: badge, notice, trace, blocks (name, kind, start, stop of the columns),
        mask (a text for each query, a digit for each column: 0 blocked, 1 allowed, 2 padding),
        token_texts, and summary, the mask in words. A policy that failed has only `failure`.
        """
        # Steps and samples change no mask.
        few = request.model_copy(update={"num_steps": 1, "num_samples": 1})
        return summarised("mask", few)

    def attention(request: RunRequest) -> dict[str, Any]:
        """Runs policies on one observation and measures where each looks; weight is not cause.
        Takes what /infer takes, and which: "suffix" for the weights of state and actions (of the
        generated tokens for pi0-FAST), "prefix" for those of the text.

        Returns by policy: badge, notice, caveat, trace, arrays (as /infer), blocks (name, kind,
        start, stop), times, mass [steps, layers, heads, blocks] and cameras (by slot [layers, side,
        side]: the weight on each patch), averaged over queries. A policy that failed has only
        `failure`.
        """
        return summarised(f"attention-{request.which}", request, attention=True)

    def what_matters(request: RunRequest) -> dict[str, Any]:
        """Measures how much each policy's chunk changes when one input changes, with equal noise.

        Takes what /infer takes. noises: chunks a variant, where the policy draws any. groups: of
        "prompt", "camera", "state"; None for all. prompts: of your own, to compare with.

        Returns the report of `playground.analysis.sensitivity`: bases (by policy: badge, spread
        between seeds in % of range), changes (by variant: percent of range, 95 % interval,
        times_spread, by dimension), left_out.
        """
        wanted = request.measurement(setups)
        return _report(worker.call("what_matters", wanted, owner=visitors.current()))

    def causal_trace(request: RunRequest) -> dict[str, Any]:
        """Finds where the difference between two prompts acts, by activation patching.

        Takes what /infer takes; the prompt's behaviour is looked for. counterfactual: the other
        prompt, which runs with keys and values of the prompt's run in chosen places. noises: of
        pi0. patches: whether each image patch is patched alone, too.

        Returns by policy: badge, notice, groups (kind, name, own, other, columns), recovered (for
        each group, for each layer and then for all layers: 0 is nothing, 1 all of the prompt's
        behaviour), intervals (95 %), patches (by slot, row by row), exact (the same: whether that
        patch was run, or estimated, as of a large model; {}: all were), effect and unit (how far
        the chunks are apart), distinguished, read_image and read_text (for each layer, how far the
        prompts' values differ), notes, failure.
        """
        wanted = request.tracing(setups)
        return _by_policy(worker.call("causal_trace", wanted, owner=visitors.current()))

    def knockout(request: RunRequest) -> dict[str, Any]:
        """Runs policies with some connections cut, by attention knockout.

        Takes what /infer takes. cuts: each {query, key, layers}: blocks are camera slots, "images",
        "text", "state" and "actions"; layers from 1 on, null for all. noises: of pi0. Cuts that
        leave a token with nothing to attend to are refused.

        Returns by policy: badge, notice, cuts, change (of the chunk, in % of range), interval
        (95 %), before and after (chunks [steps, dimensions] in the robot's units), failure.
        """
        wanted = request.connections(setups)
        return _by_policy(worker.call("knockout", wanted, owner=visitors.current()))

    def occlusion(request: RunRequest) -> dict[str, Any]:
        """Hides each image patch from everybody, and says what that does to the chunk.

        Takes what /infer takes. noises: of pi0.

        Returns by policy: badge, notice, change (by slot, row by row, in `unit`), attention (the
        measured weight on each patch of the same run), rank_correlation (Spearman's, of both),
        failure.
        """
        wanted = request.connections(setups)
        return _by_policy(worker.call("occlusion", wanted, owner=visitors.current()))

    def norm_stats(request: RunRequest) -> dict[str, Any]:
        """Checks the norm stats of policies; runs none.

        state: in the robot's units, to find its place in the stats; None for its resting state.
        policies, robot: as /infer takes them.

        Returns by policy: badge, notice, method (z-score or quantile), rule (the same in words),
        sound, remarks, and rows (part, name, unit, mean, std, q01, q99, value, normalised, remarks
        of each dimension of state and actions).
        """
        return norms.answer(setups.of(request.robot), request.policies, request.state)

    for endpoint, parameters in (
        (infer, _RUN),
        (denoise, _RUN),
        (attention_mask, (*_OBSERVATION, "seed", *_FAST)),
        (attention, (*_ONE_SAMPLE, "which")),
        (what_matters, (*_ONE_SAMPLE, "noises", "groups", "prompts")),
        (causal_trace, (*_CAUSES, "counterfactual", "patches")),
        (knockout, (*_CAUSES, "cuts")),
        (occlusion, _CAUSES),
        (norm_stats, ("state", "policies", "robot")),
    ):
        api = spelled_out(endpoint, parameters, worker)
        gradio_api(api, api_name=endpoint.__name__, concurrency_limit=None)


def spelled_out(
    endpoint: Callable[[RunRequest], dict[str, Any]], parameters: Sequence[str], worker: Worker
) -> Callable[..., dict[str, Any]]:
    """The endpoint as a function of these fields of the request, which is what Gradio reads and
    programs call. What comes is checked against the request: Gradio passes on whatever JSON
    holds. Whoever has too much waiting is turned away before a picture is read."""
    fields = {name: RunRequest.model_fields[name] for name in parameters}

    @errors.for_programs
    def called(*values):
        given = dict(zip(parameters, values, strict=True))
        if "images" in given:
            worker.check(visitors.current())
        # norm_stats takes no observation
        return endpoint(RunRequest.checked({"prompt": "", "images": {}, **given}))

    called.__name__, called.__doc__ = endpoint.__name__, endpoint.__doc__
    called.__annotations__ = {name: field.annotation for name, field in fields.items()}
    called.__annotations__["return"] = dict[str, Any]
    called.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=field.annotation,
            )
            for name, field in fields.items()
        ],
        return_annotation=dict[str, Any],
    )
    return called


def _answer(streams: list[Stream], results: Results, kind: str) -> dict[str, Any]:
    traces: dict[str, Trace] = {}
    failures: dict[str, str] = {}
    for event in runs.waited_for(streams):
        match event:
            case Done(policy=name, trace=trace):
                traces[name] = trace
            case Failed(policy=None, message=message):
                raise gr.Error(message, print_exception=False)
            case Failed(policy=str() as name, message=message):
                failures[name] = message
    key = results.keep(traces, owner=visitors.current()) if traces else ""
    found = {name: _for_json(trace, kind, key) for name, trace in traces.items()}
    return found | {name: {"failure": message} for name, message in failures.items()}


def _for_json(trace: Trace, kind: str, key: str) -> dict[str, Any]:
    """The summary of a trace that is kept under a key. Where it holds many numbers, each array is
    null in it, and they are had by a link."""
    name = trace.info.name
    summary = kept.SUMMARIES[kind](trace)
    arrays = summaries.arrays_of(summary)
    few = sum(array.size for array in arrays.values()) <= _MAX_NUMBERS
    found = summaries.in_lists(summary if few else summaries.without_arrays(summary))
    return found | {
        "trace": kept.link(key, name),
        "arrays": None if few else kept.arrays_link(key, name, kind),
    }


def _report(stream: Stream) -> dict[str, Any]:
    """The last, and whole, report of a measurement."""
    report: dict[str, Any] = {}
    for event in runs.waited_for([stream]):
        match event:
            case Result(value=value):
                report = dataclasses.asdict(value)
            case Failed(message=message):
                raise gr.Error(message, print_exception=False)
    return report


def _by_policy(stream: Stream) -> dict[str, Any]:
    """Each policy's last, and whole, report."""
    reports: dict[str, Any] = {}
    for event in runs.waited_for([stream]):
        match event:
            case Result(value=value):
                reports[value.policy] = value
            case Failed(message=message):
                raise gr.Error(message, print_exception=False)
    return {name: _plain(dataclasses.asdict(value)) for name, value in reports.items()}


def _plain(value):
    """Arrays as lists, which JSON has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
