"""Who has jobs in line at the moment, so that Stop, a closed page and a program that leaves can end
them."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import gradio as gr
from gradio.components import Component
from gradio.context import LocalContext

from playground.serving.events import Event, Job, Phase, Queued, Step, TokenEvent
from playground.serving.queue import Busy, Stream
from playground.serving.worker import Down, Worker
from playground.ui import progress
from playground.ui.guard import visitors

# It came to its end, its visitor ended it, or a newer run of theirs took its place.
Outcome = Literal["finished", "stopped", "replaced"]
_LOCKS = 64
STOPPED = "Stopped. What was measured before stays."


def submit(worker: Worker, jobs: Sequence[Job]) -> list[Stream]:
    """Puts all jobs in line, or none: raises as `Worker.infer` does."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(worker.infer(job, owner=visitors.current()))
    except (Busy, Down, ValueError):
        _close(streams)
        raise
    return streams


def waited_for(streams: Sequence[Stream]) -> Iterator[Event]:
    """The events of all streams, for an endpoint, whose caller gets the progress; whatever ends
    it, the streams are closed. Raises gr.Error once the caller has left.

    Of calls Gradio (6.31) stops only generators, and to a program each yield of theirs is an
    answer. So its own note of who left is read, which it makes when it has something to send:
    hence the progress with every event.
    """
    page = LocalContext.blocks.get()
    assert page is not None, "an endpoint is called by Gradio"
    calls = page._queue.event_ids_to_events
    call = calls.get(LocalContext.event_id.get() or "")
    tell = gr.Progress()
    try:
        for stream in streams:
            for event in stream:
                if call is not None and not (call.alive and call._id in calls):
                    raise gr.Error("nobody waits for this answer", print_exception=False)
                match event:
                    case Queued():
                        tell(None, progress.place(event))
                    case Phase(policy=policy, phase=phase):
                        tell(None, f"{policy}: {phase}")
                    case Step(policy=policy, step=step, of=of):
                        tell((step, of), policy)
                    case TokenEvent(policy=policy, index=index, of=of):
                        tell((index + 1, of), policy, unit="tokens")
                yield event
    finally:
        _close(streams)


class _Started(list):
    """Streams of a run that is known as its visitor's from its start on."""


class Runs:
    """The streams that are open now, by visitor, so that Stop and a closed page can end them. A
    visitor has one run of a kind at a time: a new one ends the one before. most: visitors whose
    page began a run and never said that it was closed."""

    def __init__(self, most: int = 2000):
        self._most = most
        self._lock = threading.Lock()
        self._starting = [threading.Lock() for _ in range(_LOCKS)]  # each for some of the visitors
        self._open: dict[str, list[Stream]] = {}
        self._begun: dict[str, None] = {}  # in order of their last beginning
        self._stopped: set[int] = set()  # by id, runs that end because their visitor said so

    def start(self, visitor: str, submit: Callable[[], list[Stream]]) -> list[Stream]:
        """Ends the visitor's run for a newer one, which `submit` asks for: never two of theirs are
        asked for at once, whichever of two calls comes first. To be followed at once."""
        with self._starting[hash(visitor) % _LOCKS]:
            self.replace(visitor)
            streams = _Started(submit())
            with self._lock:
                self._open[visitor] = streams
        return streams

    @contextlib.contextmanager
    def of(self, visitor: str, streams: list[Stream]) -> Iterator[None]:
        """Until the end of the block; whatever ends it, the streams are closed."""
        self.begin(visitor)
        if not isinstance(streams, _Started):
            with self._lock:
                before = self._open.get(visitor, [])
                self._open[visitor] = streams
            _close(before)
        try:
            yield
        finally:
            with self._lock:
                if self._open.get(visitor) is streams:
                    del self._open[visitor]
                self._stopped.discard(id(streams))
            _close(streams)

    def follow(
        self,
        visitor: str,
        streams: list[Stream],
        take: Callable[[Event], object],
        every_s: float,
        urgent: Callable[[Event], bool] = lambda event: False,
    ) -> "Following":
        """The run of these streams as the visitor's own, see `Following`."""
        return Following(self, visitor, streams, take, every_s, urgent)

    def updates(
        self,
        visitor: str,
        streams: list[Stream],
        take: Callable[[Event], object],
        every_s: float,
        shown: Callable[[Outcome | None], dict],
        untouched: Component,
    ) -> Iterator[dict]:
        """What a handler yields that follows a run, see `Following`.

        shown: the updates for where it stands: its outcome, or None while it goes on. Of a run that
            was replaced nothing more is shown: the page shows the newer one
        untouched: any output of the handler. Of a generator that yields nothing Gradio empties
            every output: one that was replaced yields an update that touches nothing
        """
        following = self.follow(visitor, streams, take, every_s)
        for _ in following:
            yield shown(None)
        replaced = following.outcome == "replaced"
        yield {untouched: gr.skip()} if replaced else shown(following.outcome)

    def begin(self, visitor: str) -> None:
        """From now on the strip is this visitor's run's, not that of loading."""
        with self._lock:
            self._begun.pop(visitor, None)
            self._begun[visitor] = None
            if len(self._begun) > self._most:
                del self._begun[next(iter(self._begun))]

    def begun(self, visitor: str) -> bool:
        with self._lock:
            return visitor in self._begun

    def forget(self, visitor: str) -> None:
        """The visitor left."""
        self.stop(visitor)
        with self._lock:
            self._begun.pop(visitor, None)

    def replace(self, visitor: str) -> None:
        """Ends the visitor's run for a newer one, so that never two of theirs are in the queue."""
        with self._lock:
            if visitor not in self._open:
                return
            before, self._open[visitor] = self._open[visitor], []
        _close(before)

    def stop(self, visitor: str) -> None:
        with self._lock:
            streams = self._open.pop(visitor, [])
            if streams:
                self._stopped.add(id(streams))
        _close(streams)

    def outcome(self, visitor: str, streams: list[Stream]) -> Outcome:
        """How a run ended that has no more events, asked while it is the visitor's or was."""
        with self._lock:
            if id(streams) in self._stopped:
                return "stopped"
            return "finished" if self._open.get(visitor) is streams else "replaced"

    def current(self, visitor: str) -> list[Stream] | None:
        """The visitor's run, None when there is none or it was stopped."""
        with self._lock:
            return self._open.get(visitor)


class Following:
    """A visitor's run from beginning to end, to be iterated once: it hands every event to `take`,
    and gives control back after the first event, and then at most every `every_s` seconds, but for
    events that are `urgent`. What is shown in between costs more than the model's step: the clock
    runs from when that is done.

    outcome: how it ended, once it has. A handler whose run was "replaced" must still yield an
    update, and one that changes nothing: of a generator that yields nothing Gradio (6.31) empties
    every output.
    """

    def __init__(
        self,
        runs: Runs,
        visitor: str,
        streams: list[Stream],
        take: Callable[[Event], object],
        every_s: float,
        urgent: Callable[[Event], bool],
    ):
        self._runs, self._visitor, self._streams = runs, visitor, streams
        self._take, self._every_s, self._urgent = take, every_s, urgent
        self.outcome: Outcome | None = None

    def __iter__(self) -> Iterator[None]:
        with self._runs.of(self._visitor, self._streams):
            given = -math.inf
            for stream in self._streams:
                for event in stream:
                    self._take(event)
                    if self._urgent(event) or time.monotonic() - given >= self._every_s:
                        yield
                        given = time.monotonic()
            self.outcome = self._runs.outcome(self._visitor, self._streams)


def _close(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.close()
