"""The examples' answers, made once while nobody waits, so that a click shows them at once."""

import dataclasses
import hashlib
import threading
import time
from collections.abc import Sequence

from playground.serving import codec
from playground.serving.events import Done, Job
from playground.serving.queue import Busy
from playground.serving.worker import Down, Worker
from playground.trace import Options, Trace
from playground.ui import bench as benches
from playground.ui.bench import AS_TRAINED, Bench, Benches, Example

REUSED = "the whole answer, from when the playground started"
_IDLE_S = 0.5  # how often the worker is looked at


class Answers:
    """What the policies answered to the examples as they are, with the options that a page opens
    with. Any other input, another option, other weights: not found. Safe from any thread."""

    def __init__(self, every: Benches, worker: Worker):
        self._every, self._worker = every, worker
        self._found: dict[str, Trace] = {}
        threading.Thread(target=self._fill, name="examples", daemon=True).start()

    def find(self, bench: Bench, jobs: Sequence[Job]) -> dict[str, Trace] | None:
        """By policy, the traces that running these jobs would give; None unless all are there."""
        keys = {name: _key(bench, name, job) for job in jobs for name in job.policies}
        if not keys or not all(key in self._found for key in keys.values()):
            return None
        return {name: self._found[key] for name, key in keys.items()}

    def _fill(self) -> None:
        try:
            self._worker.metadata()
            for robot in self._every.robots():
                bench = self._every.of(robot.name)
                for example in benches.examples(robot):
                    for job in _jobs(bench, example):
                        self._wait_for_idle()
                        self._answer(bench, job)
        except (Busy, Down):
            return

    def _wait_for_idle(self) -> None:
        while True:
            status = self._worker.status()
            if not (status.running or status.waiting):
                return
            time.sleep(_IDLE_S)

    def _answer(self, bench: Bench, job: Job) -> None:
        with self._worker.infer(job) as events:
            for event in events:
                if isinstance(event, Done):
                    kept = dataclasses.replace(event.trace, reused=(REUSED,))
                    self._found[_key(bench, event.policy, job)] = kept


def _jobs(bench: Bench, example: Example) -> list[Job]:
    """What a click on the example asks for."""
    pictures = [example.images.get(camera.name) for camera in bench.cameras]
    modes = [AS_TRAINED] * len(bench.cameras)
    asked = (example.prompt, example.state, Options())
    return benches.jobs(bench, bench.policies, pictures, modes, *asked)


def _key(bench: Bench, policy: str, job: Job) -> str:
    """All that an answer depends on."""
    info = bench.infos.get(policy)
    revision = info and info.revision
    return hashlib.sha256(
        codec.encode((policy, revision, job.observation, job.options))
    ).hexdigest()
