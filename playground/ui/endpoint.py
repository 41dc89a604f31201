"""The page's answers for programs: `/infer`, `/denoise`, `/attention_mask`, `/attention`,
`/what_matters` and `/norm_stats`. What they hold is in `playground.summaries`,
`playground.analysis.sensitivity` and `playground.analysis.norm_check`."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta

from playground import summaries
from playground.analysis.variants import GROUPS
from playground.serving.events import Done, Failed, Job, Result
from playground.serving.queue import Busy, Stream
from playground.serving.worker import Down, Worker
from playground.trace import Options, Trace
from playground.ui import bench as benches
from playground.ui import matters, norms, runs
from playground.ui import results as kept
from playground.ui.bench import Bench, Benches
from playground.ui.results import Results


def build(every: Benches, worker: Worker, results: Results) -> None:
    """Adds the endpoints to the Blocks at hand. Gradio shows their signatures and docstrings to
    whoever asks for the API."""

    def run(told: Callable[[Trace], dict[str, Any]], *given) -> dict[str, Any]:
        streams = _submitted(lambda: runs.submit(worker, _jobs(every, *given)))
        return _answer(streams, results, told)

    def infer(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        num_steps: int = 10,
        num_samples: int = 1,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        guided: bool | None = None,
    ) -> dict[str, Any]:
        """Runs policies on one observation and gives the chunk of each.

        prompt: what the robot shall do.
        images: a file (PNG, JPEG or WebP; gradio_client.handle_file) for each camera slot by name.
        state: in the robot's units; None for its resting state.
        policies: names of loaded policies; None for all that drive the robot.
        robot: whose observation it is; None for the robot of the first loaded policy.
        modes: "masked" or "black" by slot; other slots are filled, or empty as in training.
        num_steps, num_samples, seed: of pi0; temperature, max_tokens: of pi0-FAST; guided: whether
        pi0-FAST chooses only among the tokens that keep the chunk decodable, None for the policy's
        own way.

        Returns by policy: badge and notice (say them wherever you show the numbers), actions
        [samples, steps, dimensions] in the robot's units (null if FAST's tokens did not decode,
        then decode_failure says why), dimensions (name, unit, meaning), control_hz, timings_ms,
        warnings, and trace, the path of the whole trace on this server. A policy that failed has
        only `failure`.
        """
        options = Options(
            num_steps, num_samples, seed, float(temperature), max_tokens, guided=guided
        )
        return run(summaries.chunk, prompt, images, state, policies, robot, modes, options)

    def denoise(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        num_steps: int = 10,
        num_samples: int = 1,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        guided: bool | None = None,
    ) -> dict[str, Any]:
        """Runs policies on one observation and tells how each chunk came about. Takes what /infer
        takes.

        Returns by policy: badge, notice, trace, and of pi0: times (t, from 1 to 0), estimates
        [steps, samples, horizon, dimensions] in the robot's units (x_t - t v_t), speeds [steps,
        dimensions] (root mean square of v_t); of pi0-FAST: tokens (id, text, probability,
        runners_up, and decodes: whether the tokens so far decode). A policy that failed has only
        `failure`.
        """
        options = Options(
            num_steps, num_samples, seed, float(temperature), max_tokens, guided=guided
        )
        return run(summaries.denoising, prompt, images, state, policies, robot, modes, options)

    def attention_mask(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        guided: bool | None = None,
    ) -> dict[str, Any]:
        """Runs policies on one observation and gives who may attend to whom in that run. Takes what
        /infer takes, without what changes no mask.

        Returns by policy: badge, notice, trace, blocks (name, kind, start, stop of the columns),
        mask (a text for each query, a digit for each column: 0 blocked, 1 allowed, 2 padding),
        token_texts, and summary, the mask in words. A policy that failed has only `failure`.
        """
        options = Options(1, 1, seed, float(temperature), max_tokens, guided=guided)
        return run(summaries.attention_mask, prompt, images, state, policies, robot, modes, options)

    def attention(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        num_steps: int = 10,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        guided: bool | None = None,
        which: Literal["suffix", "prefix"] = "suffix",
    ) -> dict[str, Any]:
        """Runs policies on one observation and measures where each looks; weight is not cause.
        Takes what /infer takes, and which: "suffix" for the weights of state and actions (of the
        generated tokens for pi0-FAST), "prefix" for those of the text.

        Returns by policy: badge, notice, caveat, trace, blocks (name, kind, start, stop), times,
        mass [steps, layers, heads, blocks] and cameras (by slot [layers, side, side]: the weight on
        each patch), averaged over queries. A policy that failed has only `failure`.
        """
        options = Options(num_steps, 1, seed, float(temperature), max_tokens, True, guided)
        return run(
            lambda trace: summaries.attention(trace, which),
            *(prompt, images, state, policies, robot, modes, options),
        )

    def what_matters(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        num_steps: int = 10,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        guided: bool | None = None,
        noises: int = 4,
        groups: list[str] | None = None,
        prompts: list[str] | None = None,
    ) -> dict[str, Any]:
        """Measures how much each policy's chunk changes when one input changes, with equal noise.

        Takes what /infer takes. noises: chunks a variant, where the policy draws any. groups: of
        "prompt", "camera", "state"; None for all. prompts: of your own, to compare with.

        Returns the report of `playground.analysis.sensitivity`: bases (by policy: badge, spread
        between seeds in % of range), changes (by variant: percent of range, 95 % interval,
        times_spread, by dimension), left_out.
        """
        options = Options(num_steps, 1, seed, float(temperature), max_tokens, guided=guided)
        given = (prompt, images, state, policies, robot, modes, options)

        def call():
            lines = "\n".join(prompts or [])
            jobs = _jobs(every, *given)
            asked = matters.arguments(jobs, GROUPS if groups is None else groups, noises, lines)
            return worker.call("what_matters", asked)

        return _report(_submitted(call))

    def norm_stats(
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
    ) -> dict[str, Any]:
        """Checks the norm stats of policies; runs none.

        state: in the robot's units, to be told where it lies; None for its resting state.
        policies, robot: as /infer takes them.

        Returns by policy: badge, notice, method (z-score or quantile), rule (the same in words),
        sound, remarks, and rows (part, name, unit, mean, std, q01, q99, value, normalised, remarks
        of each dimension of state and actions).
        """
        return _submitted(lambda: norms.answer(every.of(robot), policies, state))

    for endpoint in (infer, denoise, attention_mask, attention, what_matters, norm_stats):
        gr.api(_checked(endpoint), api_name=endpoint.__name__, concurrency_limit=None)


# What a program may send for a parameter, by its annotation: in words, and whether a value is that.
_KINDS: dict[object, tuple[str, Callable[[Any], bool]]] = {
    str: ("text", lambda v: isinstance(v, str)),
    str | None: ("text or null", lambda v: isinstance(v, str | None)),
    int: ("a whole number, such as 10", lambda v: _is_number(v) and v % 1 == 0),
    float: ("a number, such as 0.5", lambda v: _is_number(v)),
    bool | None: ("true, false or null", lambda v: isinstance(v, bool | None)),
    dict[str, Any]: ("an object with a file by camera slot", lambda v: isinstance(v, dict)),
    dict[str, str] | None: (
        'an object with "masked" or "black" by camera slot, or null',
        lambda v: v is None or (isinstance(v, dict) and _are_texts(v.values())),
    ),
    # Which number is none is told with its name in the robot's state.
    list[float] | None: ("a list of numbers, or null", lambda v: isinstance(v, list | None)),
    list[str] | None: (
        "a list of texts, or null",
        lambda v: v is None or (isinstance(v, list) and _are_texts(v)),
    ),
    Literal["suffix", "prefix"]: ('"suffix" or "prefix"', lambda v: v in ("suffix", "prefix")),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _checked(endpoint: Callable[..., dict]) -> Callable[..., dict]:
    """The endpoint, and before it a word on values that are not what its signature says: Gradio
    passes on whatever JSON holds."""
    parameters = inspect.signature(endpoint).parameters.values()

    def check(given: Sequence[object]) -> list[object]:
        for parameter, value in zip(parameters, given, strict=True):
            expected, well = _KINDS[parameter.annotation]
            if not well(value):
                raise ValueError(f"{parameter.name} must be {expected}; {value!r:.60} came")
        # To JavaScript, 10 and 10.0 are the same number.
        return [
            int(v) if p.annotation is int else v for p, v in zip(parameters, given, strict=True)
        ]

    @functools.wraps(endpoint)
    def checked(*given):
        return endpoint(*_submitted(lambda: check(given)))

    return checked


def _submitted(call):
    """What `call` puts in line; its refusals as answers."""
    try:
        return call()
    except (ValueError, Busy, Down) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _jobs(every: Benches, prompt, images, state, policies, robot, modes, options) -> list[Job]:
    bench = every.of(robot)
    pictures, chosen = _slots(bench, images, modes or {})
    policies = bench.policies if policies is None else policies
    state = bench.robot.resting_state if state is None else state
    return benches.jobs(bench, policies, pictures, chosen, prompt, state, options)


def _slots(bench: Bench, images: dict, modes: dict):
    """Pictures and modes in the order of the bench's cameras; any of a camera's names will do."""
    names = {slot.name: i for i, c in enumerate(bench.cameras) for slot in c.slots.values()}
    if unknown := sorted((images.keys() | modes.keys()) - set(names)):
        raise ValueError(f"no camera slots {unknown} here; there are {sorted(names)}")
    pictures = [None] * len(bench.cameras)
    chosen = [benches.AS_TRAINED] * len(bench.cameras)
    for name, file in images.items():
        # Of whatever is an upload by this mark, Gradio has checked that its path is one too.
        if not is_file_obj_with_meta(file):
            raise ValueError(f"{name}: give an uploaded picture (gradio_client.handle_file)")
        try:
            pictures[names[name]] = benches.picture(file["path"])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for name, mode in modes.items():
        chosen[names[name]] = mode
    return pictures, chosen


def _answer(
    streams: list[Stream], results: Results, told: Callable[[Trace], dict[str, Any]]
) -> dict[str, Any]:
    traces: dict[str, Trace] = {}
    failures: dict[str, str] = {}
    for event in runs.waited_for(streams):
        match event:
            case Done(policy=name, trace=trace):
                traces[name] = trace
            case Failed(policy=None, message=message):
                raise gr.Error(message, print_exception=False)
            case Failed(policy=name, message=message):
                failures[name] = message
    key = results.keep(traces) if traces else ""
    found = {
        name: _submitted(lambda trace=trace: told(trace)) | {"trace": kept.link(key, name)}
        for name, trace in traces.items()
    }
    return found | {name: {"failure": message} for name, message in failures.items()}


def _report(stream: Stream) -> dict[str, Any]:
    """The last, and whole, report of a measurement."""
    report = None
    for event in runs.waited_for([stream]):
        match event:
            case Result(value=value):
                report = value
            case Failed(message=message):
                raise gr.Error(message, print_exception=False)
    return report
