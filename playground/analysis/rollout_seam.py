"""Where two successive chunks of a rollout at the simulated table meet: a job of the worker."""

import dataclasses
from collections.abc import Generator, Mapping

import numpy as np

from playground import codec
from playground.policies import seam
from playground.policies.seam import SeamChunks
from playground.serving.events import Phase, PolicyRequest, Result
from playground.tabletop import job
from playground.trace import Options

_STEPS_S = 120.0  # compiling the scene, or doing a chunk, on however slow a machine
MOST = 20  # questions before the seam; each is a whole run of the policy


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class RolloutSeamRequest(PolicyRequest):
    """A rollout from its start to a seam.

    policy: who acts, a flow policy
    prompt, scene: as in `job.RolloutRequest`
    since: steps of each chunk that are done before the next question
    question: number of the seam's later question, from 1 (0 is the rollout's first)
    delay: control steps that its answer takes; None: as many as are measured
    options: of the first question; each later one has the next seed
    """

    prompt: str
    scene: int
    since: int
    question: int
    delay: int | None
    options: Options


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class RolloutSeam:
    """chunks: of both questions; commands: float64 [question * since, D], done until the later."""

    chunks: SeamChunks
    commands: np.ndarray


def of_rollout(policies: Mapping, request: RolloutSeamRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: one Result with a RolloutSeam. Raises
    ValueError for what `seam.check` refuses, another robot's policy, and a rollout that has ended
    before its seam."""
    name, since = request.policy, request.since
    policy = policies[name]
    seam.check(policy, since, request.delay)
    if not 1 <= request.question <= MOST:
        raise ValueError(f"question {request.question} was asked for; expected 1 to {MOST}")
    yield Phase(name, "setting the table", _STEPS_S)
    if not job.available():
        raise ValueError(job.MISSING)
    from playground.tabletop.rollout import ROBOT, Episode
    from playground.tabletop.scene import Table, random_scene

    if policy.info.robot != ROBOT:
        raise ValueError(f"{policy.info.title} drives {policy.info.robot}, not the simulated table")
    table = Table(random_scene(request.scene))
    episode = Episode(table, request.prompt, execute=since, every=None)
    commands, before = [], episode.look()
    earlier, asked = before, request.options
    options = asked
    for number in range(request.question):
        yield Phase(name, f"question {number} of the rollout", _STEPS_S)
        earlier, asked = before, options
        chunk, _ = policy.chunks([earlier], asked)[0]
        commands.append(chunk[:since])
        for _ in episode.act(chunk):
            pass
        if episode.outcome is not None:
            raise ValueError(
                f"the rollout ended after {number + 1} chunk{'s' if number else ''} of {since} "
                f"steps ({episode.outcome.reason}): choose an earlier question, or fewer steps"
            )
        before, options = episode.look(), dataclasses.replace(options, seed=options.seed + 1)
    chunks = yield from seam.join(policy, earlier, before, since, request.delay, asked)
    yield Result(RolloutSeam(chunks, np.concatenate(commands).astype(np.float64)))
