"""The examples' answers, made once while nobody waits, so that a click shows them at once."""

import contextlib
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from playground import codec
from playground.analysis.prompts import PromptsRequest, useful_prompts
from playground.analysis.sensitivity import SensitivityRequest
from playground.robots.examples import Example, examples
from playground.serving.events import Done, Event, Job, Queued, Request
from playground.serving.queue import Busy, Stream
from playground.serving.worker import Down, Worker
from playground.trace import Options, Trace
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
                asked = [asked_by(setup, example) for example in examples(robot)]
                for job in itertools.chain(*asked):
                    self._answer(setup, job)
                small = self._small(setup, asked[0]) if asked else []
                for job in small:
                    self._answer(setup, measuring(job))
                # First of all what stands first on the page, for each of them.
                for requests in zip(*(clicks(setup, job) for job in small), strict=True):
                    for kind, request in requests:
                        self._compile_ahead(kind, request)
        except (Busy, Down):
            return

    def _small(self, setup: Setup, jobs: Sequence[Job]) -> list[Job]:
        """A job for each policy that is small, of jobs that were answered. One by one: who comes
        meanwhile waits less."""
        each = [dataclasses.replace(job, policies=(n,)) for job in jobs for n in job.policies]
        traces = {n: self._found.get(_key(setup, n, job)) for job in each for n in job.policies}
        little = {n for n, trace in traces.items() if trace is not None and costs_little(trace)}
        return [job for job in each if little.issuperset(job.policies)]

    def _compile_ahead(self, kind: str, request: Request) -> None:
        with contextlib.suppress(ValueError):  # of a worker without this kind of job
            aside(self._worker, lambda: self._worker.call(kind, request))

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
        policies=setup.chosen,
        pictures=pictures,
        modes=modes,
        prompt=example.prompt,
        state=example.state,
        options=Options(),
    )


def clicks(setup: Setup, job: Job) -> tuple[tuple[str, Request], ...]:
    """What a visitor may ask for next, of which each runs programs of its own: (kind, request), in
    the order in which it stands on the page. job: an example's, of one policy."""
    observation = job.observation
    # A rewording that needs more places for text. A policy writes its state there, too, so that a
    # prompt of a word more than the example's may need them.
    prompts = (prompt for _, prompt in useful_prompts(observation, setup.robot))
    longest = dataclasses.replace(observation, prompt=max(prompts, key=len))
    given = job.policies, {job.policies[0]: observation}, job.options
    empty = dataclasses.replace(observation, prompt="")
    return (
        ("infer", dataclasses.replace(job, observation=longest)),
        # Beside three pictures, no words at all take fewer places.
        ("infer", dataclasses.replace(job, observation=empty)),
        # The first is measured with several seeds; the others of a kind run the same programs.
        ("prompts", PromptsRequest(*given, (observation.prompt, "", longest.prompt))),
        # A masked camera does not run, or opens more places behind the prefix.
        ("what_matters", SensitivityRequest(*given, groups=("camera",))),
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
