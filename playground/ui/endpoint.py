"""`/infer`: the page's answer for programs."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta

from playground import transforms
from playground.events import Done, Failed, Job
from playground.trace import Options, Trace
from playground.ui import bench as benches
from playground.ui import results as kept
from playground.ui.bench import Benches
from playground.ui.results import Results
from playground.views import theme
from playground.worker import Busy, Down, Stream, Worker


def submit(worker: Worker, jobs: Sequence[Job]) -> list[Stream]:
    """Puts all jobs in line, or none: raises as `Worker.infer` does."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(worker.infer(job))
    except (Busy, Down, ValueError):
        for stream in streams:
            stream.close()
        raise
    return streams


def build(every: Benches, worker: Worker, results: Results) -> None:
    """Adds the endpoint to the Blocks at hand."""

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
        try:
            bench = every.of(robot)
            pictures, chosen = _slots(bench, images, modes or {})
            jobs = benches.jobs(
                bench,
                bench.policies if policies is None else policies,
                pictures,
                chosen,
                prompt,
                bench.robot.resting_state if state is None else state,
                Options(num_steps, num_samples, seed, float(temperature), max_tokens),
            )
            streams = submit(worker, jobs)
        except (ValueError, Busy, Down) as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        return _answer(streams, results)

    gr.api(infer, api_name="infer", concurrency_limit=None)


def _slots(bench, images, modes):
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


def _answer(streams: Sequence[Stream], results: Results) -> dict[str, Any]:
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
