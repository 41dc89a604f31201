"""A chunk for a robot, as a job of the worker: whole compiled loops, and nothing but the actions.

A page's visitor sees every step; a robot waits for the last one only, so its job sends no events on
the way and no trace.
"""

import dataclasses
import time
from collections.abc import Generator, Mapping

import numpy as np

from playground import codec
from playground.serving.events import Phase, PolicyRequest, Result
from playground.trace import Options, RawObservation

_DEADLINE_S = 1200.0  # a prompt of another length may have to compile


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class ChunkRequest(PolicyRequest):
    """One observation for one policy."""

    observation: RawObservation
    options: Options


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """What to do next.

    actions: float32 [horizon, action dimensions], robot units; None where tokens did not decode
    failure: why there are none, else ""
    infer_ms: from the observation to the actions, both on the host
    """

    actions: np.ndarray | None
    failure: str
    infer_ms: float


def chunk(policies: Mapping, request: ChunkRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: one Result that holds a Chunk. Raises
    ValueError for what the policy cannot take."""
    if request.policy not in policies:
        raise ValueError(f"no policy is called {request.policy!r}; loaded: {', '.join(policies)}")
    yield Phase(request.policy, "chunk for a robot", _DEADLINE_S)
    began = time.perf_counter()
    actions, failure = policies[request.policy].chunk(request.observation, request.options)
    infer_ms = (time.perf_counter() - began) * 1e3
    yield Result(Chunk(None if actions is None else actions[0], failure or "", infer_ms))
