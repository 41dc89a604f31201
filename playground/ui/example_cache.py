"""The examples' answers, made once while nobody waits, so that a click shows them at once."""

import contextlib
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from playground import codec
from playground.analysis.prompts import PromptsRequest
from playground.serving.events import Done, Event, Job, Queued
from playground.serving.queue import Busy, Stream
from playground.serving.worker import Down, Worker
from playground.trace import Options, Trace
from playground.ui.examples import Example, examples
from playground.ui.request import AS_TRAINED, jobs
from playground.ui.setup import Setup, Setups
from playground.views.attention import costs_little

REUSED = "the whole answer, from when the playground started"
_IDLE_S = 0.5  # how often the worker is looked at


class ExampleCache:
    """What the policies answered to the examples as they are, with the options that a page opens
    with. Any other input, another option, other weights: not found. Safe from any thread."""

    def __init__(self, setups: Setups, worker: Worker):
        self._setups, self._worker = setups, worker
        self._found: dict[str, Trace] = {}
        threading.Thread(target=self._fill, name="examples", daemon=True).start()

    def find(self, setup: Setup, jobs: Sequence[Job]) -> dict[str, Trace] | None:
        """By policy, the traces that running these jobs would give; None unless all are there."""
        keys = {name: _key(setup, name, job) for job in jobs for name in job.policies}
        if not keys or not all(key in self._found for key in keys.values()):
            return None
        return {name: self._found[key] for name, key in keys.items()}

    def _fill(self) -> None:
        try:
            self._worker.metadata()
            for robot in self._setups.robots():
                setup = self._setups.of(robot.name)
                jobs = [asked_by(setup, example) for example in examples(robot)]
                for job in itertools.chain(*jobs):
                    self._answer(setup, job)
                for job in itertools.chain(*jobs[:1]):
                    for name in job.policies:  # one by one: who comes meanwhile waits less
                        self._compile_ahead(setup, dataclasses.replace(job, policies=(name,)))
        except (Busy, Down):
            return

    def _compile_ahead(self, setup: Setup, job: Job) -> None:
        """What measures attention and compares prompts, for a small policy. job: a first example's,
        of one policy, that was answered."""
        (name,) = job.policies
        trace = self._found.get(_key(setup, name, job))
        if trace is None or not costs_little(trace):
            return
        self._answer(setup, measuring(job))
        both = (job.observation.prompt, "")  # the first with several noises, the others with one
        compared = PromptsRequest((name,), {name: job.observation}, job.options, both)
        with contextlib.suppress(ValueError):  # of a worker that compares no prompts
            aside(self._worker, lambda: self._worker.call("prompts", compared))

    def _answer(self, setup: Setup, job: Job) -> None:
        for event in aside(self._worker, lambda: self._worker.infer(job)):
            if isinstance(event, Done):
                kept = dataclasses.replace(event.trace, reused=(REUSED,))
                self._found[_key(setup, event.policy, job)] = kept


def aside(worker: Worker, ask: Callable[[], Stream]) -> list[Event]:
    """All events of a job that gives way: as soon as somebody waits behind it, it is ended, and
    asked for again when nobody does. What it has compiled by then is not compiled again."""
    while True:
        while (status := worker.status()).running or status.waiting:
            time.sleep(_IDLE_S)
        found = []
        with ask() as events:
            for event in events:
                found.append(event)
                if not isinstance(event, Queued) and worker.status().waiting:
                    break
            else:
                return found


def asked_by(setup: Setup, example: Example) -> list[Job]:
    """What a click on the example asks for."""
    pictures = [example.images.get(camera.name) for camera in setup.cameras]
    modes = [AS_TRAINED] * len(setup.cameras)
    return jobs(
        setup,
        policies=setup.policies,
        pictures=pictures,
        modes=modes,
        prompt=example.prompt,
        state=example.state,
        options=Options(),
    )


def measuring(job: Job) -> Job:
    """The same with attention measured."""
    return dataclasses.replace(job, options=dataclasses.replace(job.options, attention=True))


def _key(setup: Setup, policy: str, job: Job) -> str:
    """All that an answer depends on."""
    info = setup.infos.get(policy)
    revision = info and info.revision
    return hashlib.sha256(
        codec.encode((policy, revision, job.observation, job.options))
    ).hexdigest()
