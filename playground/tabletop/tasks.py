"""What can be asked at the table, in which words, and when it is done."""

import dataclasses
from typing import Literal

import numpy as np

from playground.tabletop.scene import COLOURS, CONTROL_HZ, CUBE, Table

Verb = Literal["touch", "pick"]
VERBS: tuple[Verb, ...] = ("touch", "pick")

# The words training uses, and words it never sees.
WORDINGS = {
    "touch": (
        "touch the {} cube",
        "touch the {} block",
        "tap the {} cube",
        "tap on the {} block",
        "poke the {} cube",
        "poke the {} block",
        "put the gripper on the {} cube",
        "please touch the {} block",
    ),
    "pick": (
        "pick up the {} cube",
        "pick up the {} block",
        "lift the {} cube",
        "lift up the {} block",
        "grab the {} cube",
        "grab the {} block",
        "take the {} cube",
        "please pick up the {} block",
    ),
}
HELD_OUT_WORDINGS = {
    "touch": ("tap the {} block", "please touch the {} cube", "please poke the {} block"),
    "pick": ("lift the {} block", "please pick up the {} cube", "please grab the {} cube"),
}

TIME_LIMIT_S = {"touch": 6.0, "pick": 10.0}
_LIFTED, _HOLD_S, _DISTURBED = 0.05, 0.5, 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One request: a verb, a colour and the words it is put in (`{}` stands for the colour)."""

    verb: Verb
    colour: str
    wording: str

    @property
    def prompt(self) -> str:
        return self.wording.format(self.colour)


def parse(prompt: str) -> Task | None:
    """The task a prompt names, in known words or held-out ones; None if it names none of them."""
    words = " ".join(prompt.lower().replace(".", " ").split())
    for wordings in (WORDINGS, HELD_OUT_WORDINGS):
        for verb in VERBS:
            for wording in wordings[verb]:
                for colour in COLOURS:
                    if wording.format(colour) == words:
                        return Task(verb, colour, wording)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How an episode ended, in a sentence. success: None where nobody judged."""

    success: bool | None
    reason: str


class Referee:
    """Watches a table after every control step and says when the task is decided.

    Touch: the named cube is the first thing touched, within 6 s. Pick: it is held at least 5 cm up
    for 0.5 s, and no other cube moved more than 2 cm, within 10 s.
    """

    def __init__(self, table: Table, task: Task):
        self._task = task
        self._start = {colour: table.cube(colour) for colour in COLOURS}
        self._steps = self._held = 0

    def watch(self, table: Table) -> Outcome | None:
        """The outcome, or None while the task goes on."""
        self._steps += 1
        touched = {colour for colour, arms in table.touching().items() if arms}
        outcome = self._touch(touched) if self._task.verb == "touch" else self._pick(table, touched)
        if outcome is None and self._steps >= TIME_LIMIT_S[self._task.verb] * CONTROL_HZ:
            return Outcome(False, f"not done within {TIME_LIMIT_S[self._task.verb]:.0f} s")
        return outcome

    def _touch(self, touched: set[str]) -> Outcome | None:
        if not touched:
            return None
        if touched == {self._task.colour}:
            return Outcome(True, f"touched the {self._task.colour} cube first")
        wrong = " and ".join(sorted(touched - {self._task.colour}))
        return Outcome(False, f"touched the {wrong} cube")

    def _pick(self, table: Table, touched: set[str]) -> Outcome | None:
        for colour in COLOURS:
            moved = np.linalg.norm(table.cube(colour) - self._start[colour])
            if colour != self._task.colour and moved > _DISTURBED:
                return Outcome(False, f"moved the {colour} cube")
        up = table.cube(self._task.colour)[2] - CUBE / 2 >= _LIFTED
        self._held = self._held + 1 if up and self._task.colour in touched else 0
        if self._held >= _HOLD_S * CONTROL_HZ:
            return Outcome(True, f"picked up the {self._task.colour} cube")
        return None
