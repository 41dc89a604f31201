"""What a policy does in its first chunk when asked, and the figures that follow from it.

Requests that name two cubes take longer than a chunk: of these the first chunk tells only which
cube it goes to.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from playground.tabletop import expert, kinematics
from playground.tabletop.rollout import observe
from playground.tabletop.scene import (
    COLOURS,
    TIE,
    Table,
    Verb,
    nearer_arm,
    random_scene,
)
from playground.tabletop.tasks import HELD_OUT_WORDINGS, ONE_CUBE, WORDINGS, Task, requests
from playground.trace import RawObservation, SlotMode
from playground.training.asker import Asker
from playground.training.intervals import median, share

# Far from the seeds of demonstrations, which are small numbers.
SCENES_SEED = 7_000_003
# Where the verbs differ for certain: a picker has opened and not yet closed, a toucher has closed.
_GRIPPER_STEPS = slice(14, 26)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a policy does in its first chunk when asked. task: what was asked; decoded; arm: the one
    that moves; nearest: the cube nearest to its fingertips at the end (in the plane of the table);
    both are "" without a chunk; error_cm: how far the serving arm's fingertips end from where the
    expert's chunk takes them; expert_tip: where that is; opens: whether the serving gripper is open
    halfway."""

    task: Task
    cube: tuple[float, float, float]
    decoded: bool
    arm: str
    nearest: str
    error_cm: float
    expert_tip: tuple[float, float, float]
    opens: bool


def answer(table: Table, task: Task, state: np.ndarray, chunk: np.ndarray | None) -> Answer:
    """Judges one first chunk. One that does not decode moves nothing: the arms stay."""
    cube = table.cube(task.colour)
    server = nearer_arm(cube[0])
    right = expert.chunk(state, cube, np.array(-1), np.array(task.verb != "touch"))
    played = np.tile(state, (expert.HORIZON, 1)) if chunk is None else chunk
    arm = kinematics.moving_arm(state, played)
    tip = kinematics.tip_paths(played)[arm][-1]
    gaps = {c: float(np.linalg.norm(table.cube(c)[:2] - tip[:2])) for c in COLOURS}
    ends = [kinematics.tip_paths(c)[server][-1] for c in (played, right)]
    gripper = played[_GRIPPER_STEPS, 6 if server == "left" else 13]
    return Answer(
        task=task,
        cube=tuple(cube),
        decoded=chunk is not None,
        arm=arm if chunk is not None else "",
        nearest=min(gaps, key=lambda colour: gaps[colour]) if chunk is not None else "",
        error_cm=float(np.linalg.norm(ends[0] - ends[1]) * 100),
        expert_tip=tuple(ends[1]),
        opens=bool(gripper.mean() > 0.5),
    )


def first_chunks(
    asker: Asker,
    scenes: int,
    wording: Callable[[str, int], str],
    *,
    verbs: Sequence[Verb] = ONE_CUBE,
    shown: Callable[[RawObservation], RawObservation] = lambda raw: raw,
) -> list[list[Answer]]:
    """By scene, the answers to every request of these verbs, in the order of `requests`.

    scenes: how many; asker: of as many rows as there are requests
    wording: the words of a verb in a scene of that number
    shown: what of an observation the policy is shown
    """
    found = []
    for index in range(scenes):
        table = Table(held_out_scene(index))
        tasks = [Task(v, colour, wording(v, index), other) for v, colour, other in requests(verbs)]
        raw = shown(observe(table, ""))
        chunks = asker.chunks([dataclasses.replace(raw, prompt=t.prompt) for t in tasks], index)
        found.append(
            [answer(table, t, raw.state, chunk) for t, chunk in zip(tasks, chunks, strict=True)]
        )
        if (index + 1) % 20 == 0:
            print(f"{index + 1}/{scenes} scenes", flush=True)
    return found


def blackened(raw: RawObservation) -> RawObservation:
    """Black pictures in place of the table's."""
    images = {slot: np.zeros_like(image) for slot, image in raw.images.items()}
    return dataclasses.replace(raw, images=images)


def without(slot: str, mode: SlotMode, raw: RawObservation) -> RawObservation:
    """One camera hidden: masked, or black."""
    images = {name: image for name, image in raw.images.items() if name != slot}
    return dataclasses.replace(raw, images=images, modes={**raw.modes, slot: mode})


def held_out_scene(index: int):
    return random_scene(np.random.default_rng([SCENES_SEED, index]))


def known_words(verb: str, index: int) -> str:
    return WORDINGS[verb][index % len(WORDINGS[verb])]


def unknown_words(verb: str, index: int) -> str:
    return HELD_OUT_WORDINGS[verb][index % len(HELD_OUT_WORDINGS[verb])]


# --- figures ------------------------------------------------------------------------------------


def figures(scenes: list[list[Answer]], unknown: list[list[Answer]], flow: bool) -> dict:
    """The table of the first chunks."""
    flat = [a for scene in scenes for a in scene]
    clear = [a for a in flat if abs(a.cube[0]) > TIE]
    swaps, verbs = [], []
    count = len(COLOURS)
    for scene in scenes:
        for verb in range(len(ONE_CUBE)):
            same_verb = scene[verb * count : (verb + 1) * count]
            for a in same_verb:
                for b in same_verb:
                    if a is not b:
                        swaps.append(a.nearest != b.task.colour and b.nearest == b.task.colour)
        for touch, pick in zip(scene[:count], scene[count:], strict=True):
            verbs += [pick.opens and not touch.opens and pick.decoded and touch.decoded]
    found = {
        "correct arm": share([a.arm == nearer_arm(a.cube[0]) for a in clear]),
        "named cube nearest": share([a.nearest == a.task.colour for a in flat]),
        "tip error cm": median([a.error_cm for a in flat]),
        "colour swapped": share(swaps),
        "verb swapped": share(verbs),
        "held-out wordings, named cube nearest": share(
            [a.nearest == a.task.colour for scene in unknown for a in scene]
        ),
    }
    if not flow:
        found["chunks that do not decode"] = share([not a.decoded for a in flat])
    return found


def roles_swapped(scenes: list[list[Answer]]) -> dict:
    """Of requests that name two cubes, the share in which swapping the two words swaps which cube
    the chunk goes to."""
    both = []
    for scene in scenes:
        of = {(a.task.colour, a.task.other): a for a in scene}
        both += [
            a.nearest == one and of[other, one].nearest == other
            for (one, other), a in of.items()
            if one < other
        ]
    return share(both)


def controls(scenes: list[list[Answer]], black: list[list[Answer]]) -> dict:
    """What remains without words and without sight."""
    rng = np.random.default_rng(1)
    permuted = []
    for scene in scenes:
        for verb in range(len(ONE_CUBE)):
            three = scene[verb * len(COLOURS) : (verb + 1) * len(COLOURS)]
            order = rng.permutation(len(COLOURS))
            permuted += [
                a.nearest == three[other].task.colour for a, other in zip(three, order, strict=True)
            ]
    flat = [a for scene in scenes for a in scene]
    return {
        "prompts permuted across colours, named cube nearest": share(permuted),
        "black picture, tip error cm": median([a.error_cm for scene in black for a in scene]),
        "best blind guess, tip error cm": median(_blind_errors(flat)),
    }


def _blind_errors(answers: list[Answer]) -> list[float]:
    """Errors (cm) of the best predictor that sees prompt and state alone: for each verb and arm the
    one place that minimises the mean distance (Weiszfeld), fitted on these very answers. It knows
    which arm serves, so a policy without sight can at best do as well."""
    errors = []
    for verb in ONE_CUBE:
        for arm in kinematics.ARMS:
            tips = np.array(
                [
                    a.expert_tip
                    for a in answers
                    if a.task.verb == verb and nearer_arm(a.cube[0]) == arm
                ]
            )
            if not len(tips):
                continue
            guess = tips.mean(0)
            for _ in range(100):
                weights = 1 / np.maximum(np.linalg.norm(tips - guess, axis=1), 1e-6)
                guess = (tips * weights[:, None]).sum(0) / weights.sum()
            errors += (np.linalg.norm(tips - guess, axis=1) * 100).tolist()
    return errors
