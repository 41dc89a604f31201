"""What the worker and its process send each other: Setup, Start and Cancel one way, Message the
other."""

import dataclasses
from typing import Literal

from playground import codec
from playground.serving.events import Event, Phase, Request
from playground.trace import PolicyInfo

# How a job ended.
Outcome = Literal["done", "failed", "cancelled"]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """The first message to the process. factory, kinds: as `serving.worker.Worker` takes them;
    arguments: of the factory; deadline_s: for its first Phase or its return."""

    factory: str
    arguments: dict
    kinds: dict[str, str]
    deadline_s: float


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Run this job next: where another one runs, at its next event, which then goes on. kind:
    "infer" or one of Setup's."""

    job_id: str
    kind: str
    request: Request


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    """Stop this job at its next event."""

    job_id: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """A phase of the factory."""

    phase: Phase


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """The factory raised a ValueError."""

    message: str
    traceback: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Jobs can come. metadata: of what can be run, by name; process: the engine's number, there."""

    metadata: dict[str, PolicyInfo]
    process: int


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Of an engine that does not hold all that it can run: the policies whose weights it has, the
    one used last at the end, and by policy how long loading took, in s."""

    policies: tuple[str, ...]
    load_s: dict[str, float]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Happened:
    """An event of a running job. traceback: of a Failed, for the log, else ""."""

    job_id: str
    event: Event
    traceback: str = ""


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Exhausted:
    """Memory did not suffice for a running job."""

    job_id: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A running job is over."""

    job_id: str
    outcome: Outcome


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message from the process; the next one follows within deadline_s seconds."""

    body: Loading | Refused | Ready | Holding | Beat | Happened | Exhausted | Ended
    deadline_s: float
