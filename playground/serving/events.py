"""What is asked of the worker (Job) and what it answers, event by event.

A stream of events begins with Queued. It ends with Finished, or with a Failed whose policy is None
when the job as a whole failed; the stream of a cancelled job just ends.
"""

import dataclasses

import numpy as np

from playground.trace import DecodedToken, Options, RawObservation, Trace


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One observation for one or more policies, which run one after the other."""

    policies: tuple[str, ...]
    observation: RawObservation
    options: Options


@dataclasses.dataclass(frozen=True, slots=True)
class Queued:
    """position: jobs that run before this one, the running one included; 0 is next.
    expected_wait_s: seconds, None while nothing is known of such jobs or the worker is loading."""

    position: int
    expected_wait_s: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """Announced before a call that blocks. deadline_s: until the next Phase, every event follows
    the one before within this many seconds; otherwise the worker is taken for hung and killed.
    policy is "" where no single policy is meant."""

    policy: str
    phase: str
    deadline_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Euler step `step` (from 1) of `of`; t: time after it. actions: the estimate of the chunk,
    float [horizon, action dimensions], robot units."""

    policy: str
    step: int
    of: int
    t: float
    actions: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """Token `index` (from 0) of at most `of`. partial: the chunk that the tokens so far decode to,
    float [horizon, action dimensions], robot units; None where nothing decodes."""

    policy: str
    index: int
    of: int
    token: DecodedToken
    partial: np.ndarray | None


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A result, or part of one, of a job of another kind than "infer": any value that
    `playground.trace.pack` takes."""

    value: object


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """One policy's run is complete."""

    policy: str
    trace: Trace


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """A policy's run failed, the job's others go on; policy None: the whole job failed.
    message: written for the visitor. job_id: what the log has the details under."""

    policy: str | None
    message: str
    job_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """The worker has done all it could for this job."""


Event = Queued | Phase | Step | TokenEvent | Result | Done | Failed | Finished

_CLASSES = {cls.__name__: cls for cls in Event.__args__}


def to_plain(event: Event) -> dict:
    """The event as a dict that `playground.trace.pack` takes; TypeError if it is no event."""
    name = type(event).__name__
    if _CLASSES.get(name) is not type(event):
        raise TypeError(f"expected an event of playground.serving.events, got a {name}")
    fields = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
    return {"event": name, "fields": fields}


def from_plain(plain: dict) -> Event:
    """The event that `to_plain` took apart."""
    return _CLASSES[plain["event"]](**plain["fields"])
