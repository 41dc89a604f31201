"""Variants of one observation, as raw observations that any policy can answer: the prompt in other
words, cameras taken away, the state elsewhere. What each does to the actions is
`playground.analysis.sensitivity`'s matter."""

import dataclasses
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from playground.robots.robot import Robot, check_state
from playground.trace import Dimension, RawObservation, Stats

Group = Literal["prompt", "camera", "state"]
GROUPS: tuple[Group, ...] = ("prompt", "camera", "state")
MAX_WORDS, MAX_PROMPTS, MAX_CHARACTERS = 24, 8, 2000
NUDGED = " nudged"  # ends the names of nudges

# Policies read "_" as a space.
_WORD = re.compile(r"[^\s_]+")

# Another task for a robot's policies where the caller has none. ALOHA's are prompts of openpi's
# configs, LIBERO's are tasks of its suites.
EXAMPLE_TASKS = {
    "aloha": ("Transfer cube", "uncap the pen", "fold the towel"),
    "droid": ("put the marker in the cup", "close the drawer", "wipe the table"),
    "libero": (
        "turn on the stove and put the moka pot on it",
        "put both the alphabet soup and the tomato sauce in the basket",
        "open the middle drawer of the cabinet",
    ),
    "tabletop": (
        "touch the blue cube",
        "pick up the green cube",
        "put the red cube on the blue cube",
        "put the green cube next to the red cube",
        "touch the red cube",
    ),
}
_DEFAULT_TASKS = 2
# By robot, the words of its tasks: kinds of words, and in each, groups that mean the same.
MEANINGS: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "tabletop": (
        (("red",), ("green",), ("blue",)),
        (("touch", "tap"), ("pick up", "lift", "grab")),
        (("on",), ("next to", "beside")),
        (("cube", "block"),),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One change to an observation.

    name: short, for a label; unique among an observation's variants
    description: finishes the sentence "with ..., the chunk changes"
    changed: the observation with this one change
    word: [start, stop) in the prompt of the word that is left out, else None
    """

    name: str
    group: Group
    description: str
    changed: RawObservation
    word: tuple[int, int] | None = None


def checked_groups(names: Iterable[str]) -> tuple[Group, ...]:
    """The groups of these names, in the order of GROUPS. Raises ValueError for other names."""
    if unknown := set(names) - set(GROUPS):
        raise ValueError(f"no group of variants is called {sorted(unknown)}; there are {GROUPS}")
    return tuple(group for group in GROUPS if group in names)


def variants(
    raw: RawObservation,
    robot: Robot,
    state_stats: Stats | None,
    *,
    groups: Iterable[Group] = GROUPS,
    other_tasks: Sequence[str] = (),
    alternatives: Sequence[str] = (),
    seed: int = 0,
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """(the variants, plain sentences on what could not be varied).

    other_tasks: prompts for another task; () takes two of the robot's examples. alternatives: the
    user's own prompts. seed: of shuffling and garbling. state_stats: a policy's, for the size of
    the nudges; None leaves them out. Nothing equal to the observation itself is among the variants.

    Raises ValueError for unknown groups, for more or longer prompts than are taken, and for a state
    that is not the robot's.
    """
    groups = checked_groups(groups)
    for prompt in (raw.prompt, *other_tasks, *alternatives):
        if not isinstance(prompt, str) or len(prompt) > MAX_CHARACTERS:
            raise ValueError(f"a prompt is text of at most {MAX_CHARACTERS} characters")
    if len(other_tasks) + len(alternatives) > MAX_PROMPTS:
        raise ValueError(
            f"{len(other_tasks) + len(alternatives)} prompts to compare with came; "
            f"at most {MAX_PROMPTS} are taken"
        )
    other_tasks = other_tasks or _example_tasks(raw)
    parts = {
        "prompt": lambda: _prompts(raw, other_tasks, alternatives, np.random.default_rng(seed)),
        "camera": lambda: _cameras(raw),
        "state": lambda: _states(raw, robot, state_stats),
    }
    found, left_out = {}, []
    for group in GROUPS:
        for item in parts[group]() if group in groups else ():
            if isinstance(item, str):
                left_out.append(item)
            else:
                found.setdefault(item.name, item)
    return tuple(found.values()), tuple(left_out)


# --- the prompt ---------------------------------------------------------------------------------


def words(prompt: str) -> list[tuple[int, int]]:
    """[start, stop) of each word."""
    return [match.span() for match in _WORD.finditer(prompt)]


def without(prompt: str, word: tuple[int, int]) -> str:
    """The prompt without the word at [start, stop)."""
    start, stop = word
    return f"{prompt[:start].rstrip()} {prompt[stop:].lstrip()}".strip()


def shuffle(prompt: str, rng: np.random.Generator) -> str | None:
    """The same words in an order that reads differently; None if there is none."""
    parts = _WORD.findall(prompt)
    if len({part.lower() for part in parts}) < 2:
        return None
    while True:
        order = [parts[i] for i in rng.permutation(len(parts))]
        if [part.lower() for part in order] != [part.lower() for part in parts]:
            return " ".join(order)


def garble(prompt: str, rng: np.random.Generator) -> str | None:
    """Every letter another one, case, length and all else kept; None without letters."""

    def other(letter: str) -> str:
        choices = [c for c in string.ascii_lowercase if c != letter.lower()]
        drawn = choices[rng.integers(len(choices))]
        return drawn.upper() if letter.isupper() else drawn

    changed = "".join(other(c) if c.isalpha() else c for c in prompt)
    return None if changed == prompt else changed


def _prompts(raw, other_tasks, alternatives, rng) -> Iterator[Variant | str]:
    prompt, spans = raw.prompt, words(raw.prompt)

    def put(name: str, description: str, text: str, word: tuple[int, int] | None = None):
        changed = dataclasses.replace(raw, prompt=text)
        return Variant(name, "prompt", description, changed, word)

    if spans:
        yield put("empty", "the prompt empty", "")
    else:
        yield "The prompt is empty: there are no words to take away."
    shuffled, garbled = shuffle(prompt, rng), garble(prompt, rng)
    if shuffled:
        yield put("shuffled", f"the words shuffled (“{shuffled}”)", shuffled)
    elif spans:
        yield "The prompt has no two different words to shuffle."
    if garbled:
        yield put("garbled", f"the letters garbled (“{garbled}”)", garbled)
    for text in other_tasks:
        if _plain(text) != _plain(prompt):
            yield put(f"other task: {text}", f"another task (“{text}”)", text)
    for text in alternatives:
        if text != prompt:
            yield put(f"yours: {text}", f"your prompt “{text}”", text)
    said = [prompt[start:stop] for start, stop in spans]
    for place, (start, stop) in enumerate(spans[:MAX_WORDS]):
        word = said[place]
        which = f" (word {place + 1})" if said.count(word) > 1 else ""
        rest = without(prompt, (start, stop))
        yield put(
            f"without “{word}”{which}", f"the word “{word}”{which} left out", rest, (start, stop)
        )
    if len(spans) > MAX_WORDS:
        yield (
            f"Of {len(spans)} words only the first {MAX_WORDS} were left out in turn; the others "
            "were not measured one by one."
        )


def rewordings(prompt: str, robot: str) -> list[tuple[str, str]]:
    """(name, prompt) of a paraphrase, of the prompt with one word that means something else, and
    with two words in each other's place; from what MEANINGS has for the robot of that name, else
    only a polite paraphrase."""
    paraphrase, others = prompt, []
    for kind in MEANINGS.get(robot, ()):
        if not (said := _said(kind, prompt)):
            continue
        first, *more = said
        if alike := [word for word in said[first] if word != first.lower()]:
            paraphrase = _replaced(paraphrase, {first: alike[0]})
        unsaid = [group for group in kind if group not in said.values()]
        others += [
            (f"“{first}” → “{group[0]}”", _replaced(prompt, {first: group[0]})) for group in unsaid
        ]
        for second in more[:1]:
            swapped = _replaced(prompt, {first: second, second: first})
            others.append((f"“{first}” ↔ “{second}”", swapped))
    if paraphrase == prompt and prompt:
        paraphrase = f"please {prompt}"
    return [("paraphrase", paraphrase), *others] if prompt else []


def _replaced(prompt: str, words: dict[str, str]) -> str:
    """Each of these words by another, wherever it stands."""
    either = "|".join(map(re.escape, words))
    return re.sub(rf"\b({either})\b", lambda found: words[found[0]], prompt)


def _said(kind: Sequence[Sequence[str]], prompt: str) -> dict[str, Sequence[str]]:
    """The words of a kind in a prompt, as they are written and in their order, one for each group;
    and the groups."""
    found = {}
    for group in kind:
        for word in sorted(group, key=len, reverse=True):
            if here := re.search(rf"\b{word}\b", prompt, re.IGNORECASE):
                found[here.start()] = here[0], group
                break
    return dict(found[place] for place in sorted(found))


def _example_tasks(raw: RawObservation) -> tuple[str, ...]:
    tasks = EXAMPLE_TASKS.get(raw.robot, ())
    return tuple(t for t in tasks if _plain(t) != _plain(raw.prompt))[:_DEFAULT_TASKS]


def _plain(text: str) -> list[str]:
    return _WORD.findall(text.lower())


# --- cameras ------------------------------------------------------------------------------------


def _cameras(raw: RawObservation) -> Iterator[Variant | str]:
    """Each filled camera black but attended to, and masked: hidden from attention."""
    filled = [slot for slot in raw.images if raw.modes.get(slot, "filled") == "filled"]
    for slot in filled:
        images = {name: image for name, image in raw.images.items() if name != slot}
        name = slot_label(slot)
        for mode, said in (("black", "black but attended to"), ("masked", "hidden from attention")):
            changed = dataclasses.replace(raw, images=images, modes={**raw.modes, slot: mode})
            yield Variant(f"{name} {mode}", "camera", f"{name} {said}", changed)
    if not filled:
        yield "No camera holds a picture: there is none to take away."


def slot_label(slot: str) -> str:
    """A slot as people say it: "left wrist 0" for "left_wrist_0_rgb"."""
    return slot.removesuffix("_rgb").replace("_", " ")


# --- the state ----------------------------------------------------------------------------------


def _states(raw: RawObservation, robot: Robot, stats: Stats | None) -> Iterator[Variant | str]:
    """All zeros, at rest, and each group of dimensions nudged."""
    state = check_state(robot, raw.state)

    def put(name: str, description: str, moved: np.ndarray):
        return Variant(name, "state", description, dataclasses.replace(raw, state=moved))

    places = {
        "all zeros": ("every value of the state zero", np.zeros_like(state)),
        "at rest": (f"{robot.title}'s resting state", np.array(robot.resting_state, np.float64)),
    }
    for name, (description, moved) in places.items():
        if np.array_equal(moved, state):
            yield f"The state is {name} already."
        else:
            yield put(name, description, moved)
    if stats is None:
        yield "Without norm stats there is no measure for a nudge of the state."
        return
    steps = _nudges(state, robot, stats)
    for label, members in dimension_groups(robot.state):
        moved = state.copy()
        moved[members] += steps[members]
        if np.array_equal(moved, state):
            yield f"{label} never moved in the training data, so it was not nudged."
        else:
            yield put(label + NUDGED, f"{label} nudged by one standard deviation", moved)


def dimension_groups(dims: Sequence[Dimension]) -> list[tuple[str, list[int]]]:
    """(label, indices) of neighbours that share unit and first word: an arm's joints, a gripper,
    the axes of a position."""
    found = []
    alike = [(dim.unit, dim.name.split()[0]) for dim in dims]
    for _, group in itertools.groupby(range(len(dims)), alike.__getitem__):
        members = list(group)
        first, last = dims[members[0]].name, dims[members[-1]].name
        found.append((first if first == last else f"{first} to {last}", members))
    return found


def _nudges(state: np.ndarray, robot: Robot, stats: Stats) -> np.ndarray:
    """float64 [S], robot units: a step for each dimension that moves it by one standard deviation
    of the training data in the model's convention, towards their mean, so that it stays among what
    the policy has seen; 0 where the data never moved."""
    here = robot.state_to_model(state)
    step = np.where(here > np.array(stats.mean), -1, 1) * np.array(stats.std)
    # Each value has its own map into that convention (identity, sign, a gripper's crank): its
    # slope turns the step back.
    small = 1e-5
    slope = (robot.state_to_model(state + small) - here) / small
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = step / slope
    return np.where(np.isfinite(moved), moved, 0.0)
