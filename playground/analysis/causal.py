"""What is asked and answered about causes: where the difference between two prompts acts, what a
policy does without some of its connections, and which patches of a picture it needs.

The definitions are in `patching` and `connections`, which measure; here are the requests, the
reports, and what they say in words. L layers, H horizon, D the robot's action dimensions.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from playground import codec
from playground.analysis.measured import Measured
from playground.serving.events import PolicyRequest
from playground.trace import Cut, Options, RawObservation

NOISES, MAX_NOISES = 4, 16
EVERYTHING, SHARED = "everything", "text that both share"

GroupKind = Literal[
    "image", "hidden camera", "word", "state", "rest", "pictures", "shared text", "everything"
]


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class PatchGroup:
    """Columns that are patched together.

    name: of a camera slot, the words, "state", "rest of the text"; and of several of these
        together "all pictures", "text that both share", "everything"
    own, other: what the prompt and the counterfactual have there; "" for what is no text
    columns: how many there are of each
    """

    kind: GroupKind
    name: str
    own: str
    other: str
    columns: tuple[int, int]

    @property
    def differs(self) -> bool:
        """Whether the texts do."""
        return self.own != self.other


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class CausalTrace(Measured):
    """What was measured for one policy, so far: `done` of `of` variants.

    effect: how far the two chunks are apart, in `unit`: the mean over steps, dimensions and noises
        in % of range, or for pi0-FAST L_A - L_B in nats
    distinguished: whether they differ by more than rounding; if not, every number is 0
    groups: the rows of `recovered`
    recovered: for each group, for each layer and then for all layers at once; None: not yet
    intervals: the same, 95 %; None with one noise
    patches: by slot, row by row, what each image patch alone recovers in all layers; None: not yet
    exact: by slot, row by row, whether that patch was run; the others are estimated by the
        derivative that ranked them. {}: all are run
    read_image, read_text: for each layer, how far the prompts' values differ
    notes: plain sentences on what does not line up
    warnings: the policy's own
    failure: why there is no number, or None
    plan: how many patches, in how many calls, with how much memory, in how many seconds at most
    seconds_left: as the last calls went; None while that is not known
    """

    prompt: str
    counterfactual: str
    noises: int
    unit: str
    effect: float | None = None
    distinguished: bool = False
    groups: tuple[PatchGroup, ...] = ()
    recovered: tuple[tuple[float | None, ...], ...] = ()
    intervals: tuple[tuple[tuple[float, float] | None, ...], ...] = ()
    patches: dict[str, tuple[tuple[float | None, ...], ...]] = dataclasses.field(
        default_factory=dict
    )
    exact: dict[str, tuple[tuple[bool, ...], ...]] = dataclasses.field(default_factory=dict)
    read_image: tuple[float, ...] = ()
    read_text: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    plan: str = ""
    seconds_left: float | None = None
    done: int = 0
    of: int = 0


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class CausalRequest:
    """What to trace.

    policies: names, each once
    observations: by policy, with the prompt whose behaviour is looked for
    options: of the runs; samples, attention, cuts and guidance have no meaning here
    counterfactual: the other prompt
    noises: how many seeds, from `options.seed` on, where the policy draws any
    patches: whether each image patch is patched alone, too
    """

    policies: tuple[str, ...]
    observations: dict[str, RawObservation]
    options: Options
    counterfactual: str
    noises: int = NOISES
    patches: bool = True


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class CellRequest(PolicyRequest):
    """One patch, to see where it leads.

    policy, observation, options, counterfactual: as in `CausalRequest`
    group: a name in `CausalTrace.groups`; with `patch`, a camera slot
    layer: from 1; None: all
    patch: of the slot's picture, row by row from 0; None: the whole group
    """

    observation: RawObservation
    options: Options
    counterfactual: str
    group: str
    layer: int | None = None
    patch: int | None = None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Where one patch leads.

    prompt, counterfactual, patched: chunks of the first noise, float32 [H, D], robot units; None
        where pi0-FAST's tokens do not decode
    recovered: as in `CausalTrace`
    """

    policy: str
    group: str
    layer: int | None
    patch: int | None
    prompt: np.ndarray | None
    counterfactual: np.ndarray | None
    patched: np.ndarray | None
    recovered: float


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionsRequest:
    """policies, observations: as in `causal.CausalRequest`; options: of the runs, for a knockout
    with what is cut; noises: how many seeds, from `options.seed` on, where the policy draws any."""

    policies: tuple[str, ...]
    observations: dict[str, RawObservation]
    options: Options
    noises: int = NOISES


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Knockout(Measured):
    """One policy's chunk with and without the cuts.

    change: % of range; interval: 95 %, None with one run
    before, after: the first noise's chunks, float32 [H, D], robot units; None where there is none
    failure: why there is no number, or None
    """

    cuts: tuple[Cut, ...]
    change: float | None = None
    interval: tuple[float, float] | None = None
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    failure: str | None = None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Occlusion(Measured):
    """What hiding each image patch does to one policy, so far: `done` of `of` patches.

    change: by slot, row by row, in `unit`; None: not yet
    attention: by slot, the measured weight on each patch, averaged over queries, heads, layers and
        steps
    rank_correlation: Spearman's, over all patches; None where one of the maps is the same all over
    failure: why there is no number, or None
    """

    noises: int
    unit: str
    change: dict[str, tuple[tuple[float | None, ...], ...]] = dataclasses.field(
        default_factory=dict
    )
    attention: dict[str, tuple[tuple[float, ...], ...]] = dataclasses.field(default_factory=dict)
    rank_correlation: float | None = None
    failure: str | None = None
    done: int = 0
    of: int = 0


# --- in words -----------------------------------------------------------------------------------


def total(report: CausalTrace, chosen: Callable[[PatchGroup], bool]) -> float | None:
    """What the chosen groups recover in all layers, added up; None where none was measured."""
    rows = zip(report.groups, report.recovered, strict=True)
    found = [row[-1] for group, row in rows if chosen(group) and row[-1] is not None]
    return sum(found) if found else None


def top_patch(report: CausalTrace) -> tuple[str, int, int, float] | None:
    """(slot, row, column, recovered) of the image patch that recovers most, of those that were run;
    rows and columns from 0; None where none was."""
    found = [
        (value, slot, row, column)
        for slot, rows in report.patches.items()
        for row, values in enumerate(rows)
        for column, value in enumerate(values)
        if value is not None and (not report.exact or report.exact[slot][row][column])
    ]
    if not found:
        return None
    value, slot, row, column = max(found, key=lambda entry: entry[0])
    return slot, row, column, value


def shares(report: CausalTrace) -> dict[str, float]:
    """What all pictures, the changed words, the text that both prompts share and, where they are
    attended to, masked cameras recover in all layers; each as a whole, patched at once."""
    kinds = {group.kind for group in report.groups}
    pictures = "pictures" if "pictures" in kinds else "image"
    groups = {
        "picture": lambda group: group.kind == pictures,
        "changed words": lambda group: group.kind == "word" and group.differs,
        "shared text": lambda group: group.kind == "shared text",
        "masked cameras": lambda group: group.kind == "hidden camera",
    }
    found = {name: total(report, chosen) for name, chosen in groups.items()}
    return {name: share for name, share in found.items() if share is not None}


def top_layer(report: CausalTrace, chosen: Callable[[PatchGroup], bool]) -> int | None:
    """The layer, from 1, in which the chosen groups recover most; None where none is measured."""
    rows = zip(report.groups, report.recovered, strict=True)
    found = np.array([row[:-1] for group, row in rows if chosen(group)], float)  # None: NaN
    if not len(found) or np.isnan(found).any():
        return None
    return int(np.argmax(found.sum(axis=0))) + 1


_MOST_WORDS = 25
_WAYS = {
    "picture": "acts through the picture",
    "changed words": "is read directly",
    "shared text": "acts through text that both prompts share",
    "masked cameras": "acts through masked cameras",
}


def headline(report: CausalTrace, thing: str = "") -> str:
    """At most 25 words on where the difference acts, from what was measured alone.

    thing: what the patch that recovers most shows, such as "the red cube"; "" where that is unknown
    """
    if report.failure is not None:
        return f"{report.title} gave no number: {report.failure}"
    if not report.distinguished:
        return f"{report.title} does not tell these prompts apart: the two chunks are equal."
    found = shares(report)
    if len(found) < 3 and report.done < report.of:
        return f"{report.title}: {report.done} of {report.of} patches are measured."
    first, *others = sorted(found, key=found.__getitem__, reverse=True)
    said = f"{_subject(report)} {_WAYS[first]}: {_percent(found[first])}"
    if first == "picture":
        said += _best_patch(report, found[first], thing)
    for name in others:
        more = f"{said}; {name} {_percent(found[name])}"
        said = more if len(more.split()) <= _MOST_WORDS else said
    return f"{said}."


def _subject(report: CausalTrace) -> str:
    """The words that changed, where that is one short place."""
    changed = [group for group in report.groups if group.kind == "word" and group.differs]
    if len(changed) == 1 and changed[0].own and changed[0].other:
        words = f"“{changed[0].own}” for “{changed[0].other}”"
        return words if len(words.split()) <= 5 else "The change"
    return "The change"


def _best_patch(report: CausalTrace, whole: float, thing: str) -> str:
    found = top_patch(report)
    if found is None:
        return ""
    patch = f"the patch of {thing}" if thing else "one patch"
    if found[-1] >= whole / 2:
        return f", most of it in {patch}"
    return f", at most {_percent(found[-1])} in {patch if thing else 'any patch'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
