"""What a handler follows that measures something: the events of one job, and the sentence below the
buttons on where it stands.

`Runs.updates` hands a `Measuring` its events and shows what it says.
"""

from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from playground.serving.events import Done, Event, Failed, Phase, Queued, Result
from playground.trace import PolicyInfo
from playground.ui import progress


class Measuring:
    """One job. say: where it stands, in a sentence."""

    def __init__(self, infos: Mapping[str, PolicyInfo], say: str = "Starting."):
        self._infos, self.say = infos, say

    def take(self, event: Event) -> None:
        match event:
            case Queued():
                self.say = progress.place(event)
            case Phase(policy=name, phase=phase):
                self.say = f"{self._infos[name].title if name in self._infos else name}: {phase}."
            case Result(value=value) | Done(trace=value):
                self.say = self.put(value)
            case Failed(message=message):
                self.say = message

    def put(self, value) -> str:
        """Keeps a result, or a run's trace. Returns what is said of it."""
        raise NotImplementedError


class Report(Protocol):
    """A report on one policy as it grows: `done` of `of` patches."""

    @property
    def policy(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def of(self) -> int: ...


R = TypeVar("R", bound=Report)


class MeasuringPatches(Measuring, Generic[R]):
    """A report for each of some policies, by name in `reports`."""

    def __init__(self, infos: Mapping[str, PolicyInfo], policies: Iterable[str]):
        super().__init__(infos)
        self._policies = tuple(policies)
        self.reports: dict[str, R] = {}

    def put(self, value: R) -> str:
        self.reports[value.policy] = value
        if len(self.reports) == len(self._policies) and value.done == value.of:
            return "Done."
        return f"{value.title}: {value.done} of {value.of} patches{self.left(value)}."

    def left(self, value: R) -> str:
        """What more is said while it is measured."""
        return ""
