"""The closed loop: look, ask for a chunk, execute its first steps, look again."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from playground.tabletop import expert
from playground.tabletop.render import render
from playground.tabletop.scene import COLOURS, CONTROL_HZ, Table
from playground.tabletop.tasks import Outcome, Referee, Task
from playground.trace import RawObservation

ROBOT = "tabletop"
CAMERA_SLOT = "base_0_rgb"

Infer = Callable[[RawObservation], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """What one moment of a rollout shows: the picture, the time in seconds, the chunk that is being
    executed with the number of its steps done, and at the end the outcome."""

    image: np.ndarray
    time_s: float
    chunk: np.ndarray
    executed: int
    outcome: Outcome | None


def observe(table: Table, prompt: str, image: np.ndarray | None = None) -> RawObservation:
    """What a policy is shown of the table now; `image` saves rendering it again."""
    image = render(table) if image is None else image
    return RawObservation(
        robot=ROBOT, images={CAMERA_SLOT: image}, modes={}, prompt=prompt, state=table.state()
    )


def rollout(
    table: Table, task: Task, infer: Infer, *, execute: int = 25, every: int | None = 5
) -> Iterator[Frame]:
    """Runs until the referee decides. `execute` of a chunk's steps are done before the next look;
    a frame comes every `every` control steps (None: at each look only) and at the end.

    Raises ValueError if `execute` is no number of steps of a chunk.
    """
    if not 1 <= execute <= expert.HORIZON:
        raise ValueError(f"execute is {execute}; expected 1 to {expert.HORIZON} steps of a chunk")
    referee, steps = Referee(table, task), 0
    while True:
        image = render(table)
        chunk = infer(observe(table, task.prompt, image))
        yield Frame(image, steps / CONTROL_HZ, chunk, 0, None)
        for done, action in enumerate(chunk[:execute], start=1):
            table.step(action)
            steps += 1
            outcome = referee.watch(table)
            if outcome or (every and done % every == 0 and done < execute):
                yield Frame(render(table), steps / CONTROL_HZ, chunk, done, outcome)
            if outcome:
                return


def ask_expert(table: Table, task: Task) -> np.ndarray:
    """The expert's chunk for a table as it stands, float64 [HORIZON, 14]."""
    assert task.colour in COLOURS
    return expert.chunk(
        table.state(),
        table.cube(task.colour),
        np.array(table.holder(task.colour)),
        np.array(task.verb == "pick"),
    )
