"""What can be asked at the table, in which words, and when it is done."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from playground.tabletop.outcome import Outcome
from playground.tabletop.scene import COLOURS, CONTROL_HZ, CUBE, Table, Verb

# What names one cube, and what names a second one, too.
ONE_CUBE: tuple[Verb, ...] = ("touch", "pick")
TWO_CUBES: tuple[Verb, ...] = ("put_on", "put_next")
VERBS = ONE_CUBE + TWO_CUBES

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
    "put_on": (
        "put the {} cube on the {} cube",
        "put the {} block on the {} block",
        "place the {} cube on the {} cube",
        "stack the {} block on the {} block",
        "put the {} cube on top of the {} cube",
        "place the {} block on top of the {} block",
        "set the {} cube on the {} cube",
        "please put the {} block on the {} block",
    ),
    "put_next": (
        "put the {} cube next to the {} cube",
        "put the {} block next to the {} block",
        "place the {} cube next to the {} cube",
        "move the {} block next to the {} block",
        "put the {} cube beside the {} cube",
        "place the {} block beside the {} block",
        "set the {} cube next to the {} cube",
        "please put the {} block next to the {} block",
    ),
}
HELD_OUT_WORDINGS = {
    "touch": ("tap the {} block", "please touch the {} cube", "please poke the {} block"),
    "pick": ("lift the {} block", "please pick up the {} cube", "please grab the {} cube"),
    "put_on": (
        "stack the {} cube on top of the {} cube",
        "please place the {} cube on the {} cube",
        "set the {} block on top of the {} block",
    ),
    "put_next": (
        "move the {} cube beside the {} cube",
        "please place the {} cube next to the {} cube",
        "set the {} block beside the {} block",
    ),
}

TIME_LIMIT_S = {"touch": 6.0, "pick": 10.0, "put_on": 15.0, "put_next": 15.0}
_LIFTED, _HOLD_S, _DISTURBED = 0.05, 0.5, 0.02
# Put next to: the cubes' centres are this far apart, give or take what a place may be missed by.
_ASIDE, _MISSED, _HEIGHT_OFF = 0.06, 0.02, 0.01
# A place counts as taken if another cube's centre is nearer than this.
_TAKEN = 0.075


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One request: a verb, a colour and the words it is put in (`{}` stands for the colour, a
    second one for `other`, the cube that it is to be put on or next to)."""

    verb: Verb
    colour: str
    wording: str
    other: str = ""

    @property
    def prompt(self) -> str:
        return self.wording.format(self.colour, self.other)


def requests(verbs: Sequence[Verb] = VERBS) -> tuple[tuple[Verb, str, str], ...]:
    """All that can be asked: (verb, colour, other), the verbs in their order."""
    return tuple(
        (verb, colour, other)
        for verb in verbs
        for colour in COLOURS
        for other in (COLOURS if verb in TWO_CUBES else ("",))
        if other != colour
    )


def parse(prompt: str) -> Task | None:
    """The task a prompt names, in known words or held-out ones; None if it names none of them."""
    words = " ".join(prompt.lower().replace(".", " ").split())
    for verb, colour, other in requests():
        for wording in (*WORDINGS[verb], *HELD_OUT_WORDINGS[verb]):
            task = Task(verb, colour, wording, other)
            if task.prompt == words:
                return task
    return None


# --- where a cube is to be put ------------------------------------------------------------------


def placement(
    on: np.ndarray, cube: np.ndarray, other: np.ndarray, third: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a cube is to stand, float64 [..., 3], and whether it does, bool [...].

    on: bool [...], on the other cube rather than next to it
    cube, other, third: [..., 3], centres of the cube that is put, of the one it is put to, and of
        the one that is not named

    On another cube is anywhere within 2 cm of its middle; next to it, anywhere on the table with
    centres 4 to 8 cm apart. The place is the best of these: for the latter towards the middle of
    the table, along x, where no finger is in the way; or on the other side if that is taken.
    """
    on = np.asarray(on)
    inwards = np.where(other[..., 0] < 0, _ASIDE, -_ASIDE)
    beside = np.stack([other[..., 0] + inwards, other[..., 1]], axis=-1)
    taken = np.linalg.norm(third[..., :2] - beside, axis=-1) < _TAKEN
    x = other[..., 0] + np.where(on, 0.0, np.where(taken, -inwards, inwards))
    z = np.where(on, other[..., 2] + CUBE, CUBE / 2)
    place = np.stack([x, other[..., 1], z], axis=-1)
    apart = np.linalg.norm((cube - other)[..., :2], axis=-1)
    level = np.abs(cube[..., 2] - z) < _HEIGHT_OFF
    return place, level & (np.abs(apart - np.where(on, 0.0, _ASIDE)) < _MISSED)


def placement_at(table: Table, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The same for a table as it is and a task that puts a cube."""
    (third,) = set(COLOURS) - {task.colour, task.other}
    cubes = (table.cube(colour) for colour in (task.colour, task.other, third))
    return placement(np.array(task.verb == "put_on"), *cubes)


# --- when it is done ----------------------------------------------------------------------------


class Referee:
    """Watches a table after every control step and says when the task is decided.

    Touch: the named cube is the first thing touched, within 6 s. Pick: it is held at least 5 cm up
    for 0.5 s, and no other cube moved more than 2 cm, within 10 s. Put: it stands within 2 cm of
    its place (see `placement`), released, for 0.5 s, and no other cube moved more than 2 cm, within
    15 s.
    """

    def __init__(self, table: Table, task: Task):
        self._task = task
        self._start = {colour: table.cube(colour) for colour in COLOURS}
        self._steps = self._held = 0

    def watch(self, table: Table) -> Outcome | None:
        """The outcome, or None while the task goes on."""
        self._steps += 1
        touched = {colour for colour, arms in table.touching().items() if arms}
        if self._task.verb == "touch":
            outcome = self._touch(touched)
        else:
            outcome = self._disturbed(table) or self._kept(table, touched)
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

    def _disturbed(self, table: Table) -> Outcome | None:
        for colour in COLOURS:
            moved = np.linalg.norm(table.cube(colour) - self._start[colour])
            if colour != self._task.colour and moved > _DISTURBED:
                return Outcome(False, f"moved the {colour} cube")
        return None

    def _kept(self, table: Table, touched: set[str]) -> Outcome | None:
        """Success once what is wanted has been so for as long as it must."""
        task = self._task
        held = task.colour in touched
        if task.verb == "pick":
            reached = held and table.cube(task.colour)[2] - CUBE / 2 >= _LIFTED
            said = f"picked up the {task.colour} cube"
        else:
            reached = not held and bool(placement_at(table, task)[1])
            where = "on" if task.verb == "put_on" else "next to"
            said = f"put the {task.colour} cube {where} the {task.other} cube"
        self._held = self._held + 1 if reached else 0
        return Outcome(True, said) if self._held >= _HOLD_S * CONTROL_HZ else None
