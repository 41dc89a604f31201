"""`/infer` and `/what_matters`: the page's answers for programs."""

from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta

from playground import transforms
from playground.events import Done, Failed, Job, Result
from playground.trace import Options, Trace
from playground.ui import bench as benches
from playground.ui import matters, runs
from playground.ui import results as kept
from playground.ui.bench import Bench, Benches
from playground.ui.results import Results
from playground.variants import GROUPS
from playground.views import theme
from playground.worker import Busy, Down, Stream, Worker


def build(every: Benches, worker: Worker, results: Results) -> None:
    """Adds the endpoints to the Blocks at hand."""

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
    ) -> dict[str, Any]:
        """Runs policies on one observation and gives the chunk of each.

        prompt: what the robot shall do.
        images: a file (PNG, JPEG or WebP; gradio_client.handle_file) for each camera slot by name.
        state: in the robot's units; None for its resting state.
        policies: names of loaded policies; None for all that drive the robot.
        robot: whose observation it is; None for the robot of the first loaded policy.
        modes: "masked" or "black" by slot; other slots are filled, or empty as in training.
        num_steps, num_samples, seed: of pi0; temperature, max_tokens: of pi0-FAST.

        Returns by policy: badge and notice (say them wherever you show the numbers), actions
        [samples, steps, dimensions] in the robot's units (null if FAST's tokens did not decode,
        then decode_failure says why), dimensions (name, unit, meaning), control_hz, timings_ms,
        warnings, and trace, the path of the whole trace on this server. A policy that failed has
        only `failure`.
        """
        options = Options(num_steps, num_samples, seed, float(temperature), max_tokens)
        given = (prompt, images, state, policies, robot, modes, options)
        streams = _submitted(lambda: runs.submit(worker, _jobs(every, *given)))
        return _answer(streams, results)

    def what_matters(
        prompt: str,
        images: dict[str, Any],
        state: list[float] | None = None,
        policies: list[str] | None = None,
        robot: str | None = None,
        modes: dict[str, str] | None = None,
        num_steps: int = 10,
        seed: int = 0,
        noises: int = 4,
        groups: list[str] | None = None,
        prompts: list[str] | None = None,
    ) -> dict[str, Any]:
        """Measures how much each policy's chunk changes when one input changes, with equal noise.

        Inputs are those of /infer. noises: chunks a variant (pi0). groups: of "prompt", "camera",
        "state"; None for all. prompts: of your own, to compare with.

        Returns the report of `playground.analysis`: bases (by policy: badge, spread between seeds
        in % of range), changes (by variant: percent of range, 95 % interval, times_spread, by
        dimension), left_out.
        """
        options = Options(num_steps, seed=seed)
        given = (prompt, images, state, policies, robot, modes, options)

        def call():
            lines = "\n".join(prompts or [])
            jobs = _jobs(every, *given)
            asked = matters.arguments(jobs, GROUPS if groups is None else groups, noises, lines)
            return worker.call("what_matters", asked)

        report = None
        with _submitted(call) as stream:
            for event in stream:
                match event:
                    case Result(value=value):
                        report = value
                    case Failed(message=message):
                        raise gr.Error(message, print_exception=False)
        return report

    gr.api(infer, api_name="infer", concurrency_limit=None)
    gr.api(what_matters, api_name="what_matters", concurrency_limit=None)


def _submitted(call):
    """What `call` puts in line; its refusals as answers."""
    try:
        return call()
    except (ValueError, Busy, Down) as error:
        raise gr.Error(benches.words(error), print_exception=False) from error


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
            pictures[names[name]] = transforms.load_image(file["path"])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for name, mode in modes.items():
        chosen[names[name]] = mode
    return pictures, chosen


def _answer(streams: list[Stream], results: Results) -> dict[str, Any]:
    traces: dict[str, Trace] = {}
    failures: dict[str, str] = {}
    for stream in streams:
        with stream:
            for event in stream:
                match event:
                    case Done(policy=name, trace=trace):
                        traces[name] = trace
                    case Failed(policy=None, message=message):
                        raise gr.Error(message, print_exception=False)
                    case Failed(policy=name, message=message):
                        failures[name] = message
    key = results.keep(traces) if traces else ""
    told = {name: _plain(trace, kept.link(key, name)) for name, trace in traces.items()}
    return told | {name: {"failure": message} for name, message in failures.items()}


def _plain(trace: Trace, link: str) -> dict[str, Any]:
    info = trace.info
    return {
        "badge": info.badge,
        "notice": info.notice,
        "actions": None if trace.actions is None else trace.actions.tolist(),
        "decode_failure": trace.decode_failure,
        "dimensions": theme.dimensions(info.actions),
        "control_hz": info.control_hz,
        "timings_ms": trace.timings_ms,
        "warnings": list(trace.warnings),
        "trace": link,
    }
