"""A rollout as a job of the worker: the simulator runs beside the policies, a frame at a time.

The simulator is imported when a rollout is asked for: the playground works without it.
"""

import dataclasses
import importlib.util
from collections.abc import Generator, Mapping

import numpy as np

from playground import codec
from playground.serving.events import Done, Phase, Policy, PolicyRequest, Result
from playground.tabletop.outcome import Outcome
from playground.trace import Options, Trace

_PREPARE_S = 120.0  # compiling the scene, on however slow a machine
EVERY = 5  # control steps from frame to frame: ten pictures a second of the table's time
MISSING = "The simulated table needs the package mujoco: pip install -r requirements.txt"


def available() -> bool:
    """Whether the simulator is installed."""
    return importlib.util.find_spec("mujoco") is not None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class RolloutRequest(PolicyRequest):
    """policy: who acts; prompt: what it is asked to do; scene: seed of `random_scene`; execute:
    steps of a chunk to do before the next look; options: of the first look. Each later one draws
    noise of its own, from the next seed, as a robot's would: with the same noise a grasp that
    missed is tried again just as it was."""

    prompt: str
    scene: int
    execute: int
    options: Options


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class RolloutFrame:
    """What one moment of a rollout shows.

    image: uint8 [height, width, 3]
    time_s: of the table
    look: how often the policy has been asked
    executed: steps of its chunk that are done
    chunk: float32 [horizon, 14]; None where its tokens did not decode
    failure: why there is no chunk, else ""
    state: float64 [14], at the look
    seen: with the first frame of a look, the pictures that the policy was given, by slot: uint8
        [height, width, 3]
    outcome: None while it goes on
    measured: with the outcome, how often the policy does such a task (`measured.success`)
    """

    image: np.ndarray
    time_s: float
    look: int
    executed: int
    chunk: np.ndarray | None
    failure: str
    state: np.ndarray
    seen: Mapping[str, np.ndarray]
    outcome: Outcome | None
    measured: str = ""


def rollout(policies: Mapping[str, Policy], request: RolloutRequest) -> Generator[Phase | Result]:
    """Executes chunks until the referee decides; every Result holds a RolloutFrame. Raises
    ValueError for another robot's policy."""
    name = request.policy
    policy = policies[name]
    yield Phase(name, "setting the table", _PREPARE_S)
    if not available():
        raise ValueError(MISSING)
    from playground.tabletop.measured import success
    from playground.tabletop.rollout import ROBOT, Episode
    from playground.tabletop.scene import Table, random_scene

    if policy.info.robot != ROBOT:
        raise ValueError(f"{policy.info.title} drives {policy.info.robot}, not the simulated table")
    table = Table(random_scene(request.scene))
    episode = Episode(table, request.prompt, execute=request.execute, every=EVERY)
    options = request.options
    while episode.outcome is None:
        observation = episode.look()
        trace: Trace | None = None
        for event in policy.infer(observation, options):
            if isinstance(event, Phase):
                yield event
            elif isinstance(event, Done):
                trace = event.trace
        assert trace is not None, "a policy's last event is Done"
        options = dataclasses.replace(options, seed=(options.seed + 1) % 2**31)
        chunk = None if trace.actions is None else trace.actions[0]
        seen = observation.images
        for frame in episode.act(chunk):
            yield Result(
                RolloutFrame(
                    image=frame.image,
                    time_s=frame.time_s,
                    look=frame.look,
                    executed=frame.executed,
                    chunk=chunk,
                    failure=trace.decode_failure or "",
                    state=observation.state,
                    seen=seen,
                    outcome=frame.outcome,
                    measured=success(policy.info, request.prompt) if frame.outcome else "",
                )
            )
            seen = {}
