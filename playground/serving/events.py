"""What is asked of the worker (Request) and what it answers, event by event.

A stream of events begins with Queued. It ends with Finished, or with a Failed whose policy is None
when the job as a whole failed; the stream of a cancelled job just ends.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from playground import codec
from playground.trace import DecodedToken, Options, PolicyInfo, RawObservation, Trace


class Request(Protocol):
    """What one job asks for: a dataclass that `codec.register` knows."""

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies that it runs; () if it runs none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyRequest:
    """What every request to a single policy names. policy: its name."""

    policy: str

    @property
    def policies(self) -> tuple[str, ...]:
        return (self.policy,)


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One observation for one or more policies, which run one after the other."""

    policies: tuple[str, ...]
    observation: RawObservation
    options: Options


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Queued:
    """position: jobs that run before this one, the running one included; 0 is next.
    expected_wait_s: seconds, None while nothing is known of such jobs or the worker is loading."""

    position: int
    expected_wait_s: float | None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """Announced before a call that blocks. deadline_s: until the next Phase, every event follows
    the one before within this many seconds; otherwise the worker is taken for hung and killed.
    policy is "" where no single policy is meant."""

    policy: str
    phase: str
    deadline_s: float


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Euler step `step` (from 1) of `of`; t: time after it. actions: the estimate of the chunk,
    float [horizon, action dimensions], robot units."""

    policy: str
    step: int
    of: int
    t: float
    actions: np.ndarray


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """Token `index` (from 0) of at most `of`. partial: the chunk that the tokens so far decode to,
    float [horizon, action dimensions], robot units; None where nothing decodes."""

    policy: str
    index: int
    of: int
    token: DecodedToken
    partial: np.ndarray | None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A result, or part of one, of a job of another kind than "infer": any value that
    `playground.codec.pack` takes."""

    value: Any


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """One policy's run is complete."""

    policy: str
    trace: Trace


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """A policy's run failed, the job's others go on; policy None: the whole job failed.
    message: written for the visitor. job_id: what the log has the details under."""

    policy: str | None
    message: str
    job_id: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """The worker has done all it could for this job."""


Event = Queued | Phase | Step | TokenEvent | Result | Done | Failed | Finished


class Policy(Protocol):
    """What a job may ask of a loaded policy without knowing its kind (`playground.policies`)."""

    @property
    def info(self) -> PolicyInfo: ...

    def infer(self, raw: RawObservation, options: Options) -> Iterator[Event]:
        """The run as it happens; Done comes last."""
        ...
