"""The closed loop: look, ask for a chunk, execute its first steps, look again."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from playground.tabletop import expert
from playground.tabletop.outcome import Outcome
from playground.tabletop.render import render, render_cameras
from playground.tabletop.scene import COLOURS, CONTROL_HZ, Table
from playground.tabletop.tasks import Referee, Task, parse, placement_at
from playground.trace import RawObservation

ROBOT = "tabletop"
CAMERA_SLOT = "base_0_rgb"
UNJUDGED_S = 10.0  # how long an episode lasts whose prompt names no task
# Whole chunks, unless somebody asks for less: one is about as long as a reach, and a policy that
# looks again halfway sees its own arm in front of the cube.
EXECUTE = expert.HORIZON

# None: what the policy wrote does not decode to a chunk.
Infer = Callable[[RawObservation], np.ndarray | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """What one moment of a rollout shows: the picture, the time in seconds, how often the policy
    has been asked, how many steps of its chunk are done, and at the end the outcome."""

    image: np.ndarray
    time_s: float
    look: int
    executed: int
    outcome: Outcome | None


def observe(table: Table, prompt: str) -> RawObservation:
    """What a policy is shown of the table now."""
    return RawObservation(
        robot=ROBOT, images=render_cameras(table), modes={}, prompt=prompt, state=table.state()
    )


class Episode:
    """One table, one prompt, and who judges: `look`, `act` on the answer, until `outcome` is there.

    A prompt that names a task is judged by its referee; another runs for UNJUDGED_S without a
    verdict. `execute` of a chunk's steps are done before the next look; a frame comes every `every`
    control steps (None: at each look only) and at the end.

    Raises ValueError if `execute` is no number of steps of a chunk.
    """

    def __init__(self, table: Table, prompt: str, *, execute: int = EXECUTE, every: int | None = 5):
        if not 1 <= execute <= expert.HORIZON:
            raise ValueError(
                f"execute is {execute}; expected 1 to {expert.HORIZON} steps of a chunk"
            )
        self.outcome: Outcome | None = None
        self._table, self._prompt, self._execute, self._every = table, prompt, execute, every
        task = parse(prompt)
        self._referee = None if task is None else Referee(table, task)
        self._steps = self._looks = 0
        self._image: np.ndarray | None = None

    def look(self) -> RawObservation:
        """What the policy is to be asked next."""
        self._looks += 1
        observation = observe(self._table, self._prompt)
        self._image = observation.images[CAMERA_SLOT]
        return observation

    def act(self, chunk: np.ndarray | None) -> Iterator[Frame]:
        """Executes the answer to the last look; without a chunk the arms hold still as long."""
        assert self._image is not None, "look comes first"
        yield self._frame(self._image, 0)
        hold = np.tile(self._table.state(), (self._execute, 1))
        actions = hold if chunk is None else chunk[: self._execute]
        for done, action in enumerate(actions, start=1):
            self._table.step(action)
            self._steps += 1
            self.outcome = self._judge()
            seen = self._every and done % self._every == 0 and done < self._execute
            if self.outcome or seen:
                yield self._frame(render(self._table), done)
            if self.outcome:
                return

    def _frame(self, image: np.ndarray, executed: int) -> Frame:
        return Frame(image, self._steps / CONTROL_HZ, self._looks, executed, self.outcome)

    def _judge(self) -> Outcome | None:
        if self._referee is not None:
            return self._referee.watch(self._table)
        if self._steps < UNJUDGED_S * CONTROL_HZ:
            return None
        return Outcome(None, f"nobody judged; it ran for {UNJUDGED_S:.0f} s")


def rollout(
    table: Table, prompt: str, infer: Infer, *, execute: int = EXECUTE, every: int | None = 5
) -> Iterator[Frame]:
    """An `Episode` to its end, asking `infer` at every look."""
    episode = Episode(table, prompt, execute=execute, every=every)
    while episode.outcome is None:
        yield from episode.act(infer(episode.look()))


def ask_expert(table: Table, task: Task) -> np.ndarray:
    """The expert's chunk for a table as it stands, float64 [HORIZON, 14]."""
    assert task.colour in COLOURS
    place, placed = placement_at(table, task) if task.other else (None, None)
    return expert.chunk(
        table.state(),
        table.cube(task.colour),
        np.array(table.holder(task.colour)),
        np.array(task.verb != "touch"),
        place,
        placed,
    )
