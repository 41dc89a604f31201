"""Which columns of two prompts' runs stand against each other, so that one can take the other's
place in a patch.

Words are paired by `difflib`. Where their tokens are not of one number they are one group: the
prompt's columns take the place of the counterfactual's, and carry their own positions.

J: columns that both runs share.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from playground.analysis.causal import EVERYTHING, SHARED, GroupKind, PatchGroup
from playground.policies.places import Part, Places

_WIDTH_STEP = 8  # every width is a program to compile


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """The columns of two runs, side by side.

    own: int [J], the counterfactual's column; -1: it has none
    source: int [J], the prompt's
    groups: with the places among the J
    patches: by slot, the places of its patches
    """

    own: np.ndarray
    source: np.ndarray
    groups: tuple[tuple[PatchGroup, np.ndarray], ...]
    patches: dict[str, np.ndarray]


def join(counterfactual: Places, prompt: Places) -> Joined:
    """Which column of the one stands against which of the other."""
    joining = _Joining(len(counterfactual.valid))
    for kind, slot, columns, others in _cameras(counterfactual, prompt):
        joining.put(kind, slot, ("", ""), columns, others)
    for theirs, ours in _paired(counterfactual.parts, prompt.parts):
        texts = _text(ours), _text(theirs)
        name = texts[0] if texts[0] == texts[1] else f"{texts[0] or '-'} / {texts[1] or '-'}"
        columns = counterfactual.text[_tokens(theirs)], prompt.text[_tokens(ours)]
        joining.put((*theirs, *ours)[0].kind, name, texts, *columns)
    joining.put_together("pictures", "all pictures", lambda group: group.kind == "image")
    joining.put_together("shared text", SHARED, _is_shared)
    counts = int(prompt.readable.sum()), int(counterfactual.readable.sum())
    return joining.joined(counts, counterfactual.cameras)


def _is_shared(group: PatchGroup) -> bool:
    return group.kind in ("state", "rest") or (group.kind == "word" and not group.differs)


class _Joining:
    """The columns and groups as they are put together, from the counterfactual's own columns."""

    def __init__(self, columns: int):
        self._columns = columns
        self._own = list(range(columns))
        self._source = [-1] * columns
        self._groups: list[tuple[PatchGroup, np.ndarray]] = []

    def put(
        self,
        kind: GroupKind,
        name: str,
        texts: tuple[str, str],
        columns: np.ndarray,
        others: np.ndarray,
    ) -> None:
        """A group of the counterfactual's columns against the prompt's others; what only the
        prompt has gets a place behind all. texts: the prompt's and the counterfactual's."""
        places = columns.tolist()
        for column, other in zip(places, others.tolist(), strict=False):
            self._source[column] = other
        for other in others[len(columns) :].tolist():
            places.append(len(self._own))
            self._own.append(-1)
            self._source.append(other)
        group = PatchGroup(kind, name, *texts, (len(others), len(columns)))
        self._groups.append((group, np.array(places, int)))

    def put_together(
        self, kind: GroupKind, name: str, chosen: Callable[[PatchGroup], bool]
    ) -> None:
        """The chosen groups as one, where there are several."""
        parts = [places for group, places in self._groups if chosen(group)]
        if len(parts) > 1:
            places = np.concatenate(parts)
            group = PatchGroup(kind, name, "", "", (len(places), len(places)))
            self._groups.append((group, places))

    def joined(self, counts: tuple[int, int], cameras: Mapping[str, np.ndarray]) -> Joined:
        """counts: columns that are read, the prompt's and the counterfactual's."""
        everything = np.unique(np.concatenate([places for _, places in self._groups]))
        group = PatchGroup("everything", EVERYTHING, "", "", counts)
        more = -(len(self._own) - self._columns) % _WIDTH_STEP
        own, source = (np.array([*x, *[-1] * more]) for x in (self._own, self._source))
        return Joined(own, source, (*self._groups, (group, everything)), dict(cameras))


def _cameras(
    counterfactual: Places, prompt: Places
) -> Iterator[tuple[GroupKind, str, np.ndarray, np.ndarray]]:
    """(kind, slot, the counterfactual's columns, the prompt's) of each camera that is read."""
    for slot, columns in counterfactual.cameras.items():
        yield "image", slot, columns, prompt.cameras[slot]
    for slot, columns in counterfactual.hidden.items():
        if counterfactual.readable[columns].any():
            yield "hidden camera", slot, columns, prompt.hidden[slot]


def _text(parts: Sequence[Part]) -> str:
    return " ".join(part.text for part in parts)


def _tokens(parts: Sequence[Part]) -> list[int]:
    return [token for part in parts for token in part.tokens]


def _paired(
    theirs: Sequence[Part], ours: Sequence[Part]
) -> Iterator[tuple[Sequence[Part], Sequence[Part]]]:
    """(the counterfactual's parts, the prompt's) that stand against each other."""
    words = [[part for part in parts if part.kind == "word"] for parts in (theirs, ours)]
    texts = [[part.text.lower() for part in parts] for parts in words]
    matcher = difflib.SequenceMatcher(a=texts[0], b=texts[1], autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        if b - a == d - c:
            for own, other in zip(words[0][a:b], words[1][c:d], strict=True):
                yield [own], [other]
        else:
            yield words[0][a:b], words[1][c:d]
    for kind in ("state", "rest"):
        found = [[part for part in parts if part.kind == kind] for parts in (theirs, ours)]
        if any(found):
            yield found[0], found[1]
