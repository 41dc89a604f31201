"""What a policy listens to, drawn and in words: the prompt coloured by effect, a bar with its
interval for each variant, and plain sentences that claim no more than was measured.

Everything comes from a SensitivityReport of `playground.analysis.sensitivity`, finished or not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from playground.analysis.sensitivity import Base, Change, SensitivityReport
from playground.analysis.variants import GROUPS, NUDGED
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(report)`.
COMPONENT = theme.component("matters.js")

# failed: no number. same input: nothing could change. none: exactly zero. within, near, beyond: the
# whole interval lies below the spread between seeds, it covers the spread, it lies above. changed:
# there is no spread to compare with.
Verdict = Literal["failed", "same input", "none", "within", "near", "beyond", "changed"]

CAVEAT = (
    "Measured on this one observation, open loop. A change says that the answer depends on an "
    "input, not that it is right; another observation may say something else."
)
_NAMED = 3  # changes in a summary that get numbers of their own


# --- in words -----------------------------------------------------------------------------------


def verdict(base: Base, change: Change) -> Verdict:
    """What may be said about a change, and no more."""
    if change.failure is not None:
        return "failed"
    if change.same_input:
        return "same input"
    if change.percent == 0:
        return "none"
    if base.spread is None or change.interval is None:
        return "changed"
    low, high = change.interval
    return "within" if high <= base.spread else "beyond" if low > base.spread else "near"


def sentence(base: Base, change: Change) -> str:
    """One change in plain words."""
    start = f"With {change.description},"
    match verdict(base, change):
        case "failed":
            return f"{start} there is no number: {change.failure}."
        case "same input":
            return f"{start} {base.title} is given the very same input, so nothing could differ."
        case "none":
            return f"{start} the chunk does not change at all."
        case "within":
            judged = f", no more than another seed does ({_times(change)})"
        case "near":
            judged = f", not clearly more than another seed does ({_times(change)})"
        case "beyond" if change.times_spread is not None:
            judged = f", {_times(change)}"
        case _:
            judged = ""
    said = f"{start} the chunk changes by {_amount(change)}{judged}{_mostly(base, change)}."
    more = len(change.warnings) - 1
    note = f" Mind: {change.warnings[0]}" if change.warnings else ""
    return f"{said}{note}{f' (And {more} more warnings.)' if more > 0 else ''}"


def summary(base: Base, changes: Iterable[Change]) -> list[str]:
    """A policy's changes in short: what was measured, then a sentence for each group."""
    who = f"{base.title} ({base.badge})"
    if base.failure is not None:
        return [f"{who}: no number, since the unchanged observation has none ({base.failure})."]
    own = [change for change in changes if change.policy == base.policy]
    groups = {group: [change for change in own if change.group == group] for group in GROUPS}
    found = (f"{_clauses(base, group)}." for group in groups.values() if group)
    return [f"{who}, {_how(base)}.", *found]


def _how(base: Base) -> str:
    if not base.random:
        return "one run each, since nothing is random at temperature 0"
    if base.spread is None:
        return "one noise, so there is no interval, and no spread between seeds to compare with"
    return (
        f"{base.runs} noises; another seed alone changes the chunk by "
        f"{percent(base.spread)} of range"
    )


def percent(value: float) -> str:
    """31 %, 3.1 %, 0.031 %, less than 0.01 %."""
    if value == 0:
        return "0 %"
    return "less than 0.01 %" if value < 0.01 else f"{_figures(value)} %"


def _clauses(base: Base, changes: list[Change]) -> str:
    """Changes of one group, the largest first, alike ones together."""
    sorts: dict[Verdict, list[Change]] = {}
    for change in sorted(changes, key=lambda c: -(c.percent or 0)):
        sorts.setdefault(verdict(base, change), []).append(change)
    found = []
    large = [change for kind in ("beyond", "changed") for change in sorts.get(kind, [])]
    for change in large[:_NAMED]:
        times = "" if change.times_spread is None else f", {_times(change)}"
        found.append(f"changes with {change.description} by {_amount(change)}{times}")
    if rest := large[_NAMED:]:
        most, least = percent(_measured(rest[0])), percent(_measured(rest[-1]))
        many = most if most == least else f"{least} to {most}"
        found.append(f"changes with {_listed(rest)} by {many}")
    said = {
        "near": "changes, but not clearly more than between seeds, with {}",
        "within": "changes, but no more than between seeds, with {}",
        "none": "does not change at all with {}",
        "same input": "cannot differ with {}, for {title} is given the very same input",
        "failed": "gave no number with {}",
    }
    for kind, words in said.items():
        if kind in sorts:
            found.append(words.format(_listed(sorts[kind]), title=base.title))
    return f"The chunk {'; it '.join(found)}"


def _listed(changes: list[Change]) -> str:
    """What was changed; words that were left out, and nudges, are gathered."""
    names = []
    left_out = [change.variant.removeprefix("without ") for change in changes if change.word]
    nudged = [c.variant.removesuffix(NUDGED) for c in changes if c.variant.endswith(NUDGED)]
    if left_out:
        names.append(f"{'any one of ' * (len(left_out) > 1)}{theme.listed(left_out)} left out")
    if nudged:
        each = "each " * (len(nudged) > 1)
        names.append(f"{theme.listed(nudged)} {each}nudged by one standard deviation")
    plain = [c for c in changes if not c.word and not c.variant.endswith(NUDGED)]
    return theme.listed([change.description for change in plain] + names)


def _measured(change: Change) -> float:
    """Its percent, which every change has that did not fail."""
    assert change.percent is not None
    return change.percent


def _amount(change: Change) -> str:
    if change.interval is None:
        return f"{percent(_measured(change))} of range"
    return f"{percent(_measured(change))} of range (95 % interval {_between(change.interval)} %)"


def _between(bounds: tuple[float, float]) -> str:
    return " to ".join(_figures(bound) for bound in bounds)


def _times(change: Change) -> str:
    times = change.times_spread
    if times is None:
        return "which is 0"
    return f"{'less than 0.01' if times < 0.01 else _figures(times)} times the seed spread"


def _mostly(base: Base, change: Change) -> str:
    """The dimension that changes most, where it stands out."""
    known = [(v, name) for v, name in zip(change.dimensions, base.dimensions, strict=True) if v]
    value, name = max(known, default=(0, ""))
    return f", most in {name} ({percent(value)})" if value > 2 * _measured(change) else ""


def _figures(value: float) -> str:
    """Two significant figures, whole numbers from 10 on."""
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"


# --- drawn --------------------------------------------------------------------------------------

_HEADINGS = {"prompt": "Prompt", "word": "Prompt, word by word", "camera": "Cameras"}
_HEADINGS |= {"state": "State"}
_SHORT: dict[Verdict, str] = {"failed": "no number", "same input": "same input"}
_SHORT |= {"none": "not at all"}


def payload(report: SensitivityReport) -> dict[str, object]:
    """What the component draws, as plain JSON.

    policies: by name, {policy, how, words, sentences}: how it was measured; of the prompt [text,
    amount, effect, sentence], the latter three None between two words, amount None where the
    word's absence is not to be noticed, effect the share of the full colour, which is the largest
    effect, or the spread between seeds where no word reaches it; all sentences once it is done.
    groups: {title, variants}, a variant {name, rows}, with a row for each policy, see `_row`.
    widest: the end of the bars' axis in % of range, also as words in `axis`.
    """
    bases = {base.policy: base for base in report.bases}
    of_policy = {
        name: [change for change in report.changes if change.policy == name] for name in bases
    }
    done = report.done >= report.of
    ends = [change.interval[1] if change.interval else change.percent for change in report.changes]
    widest = max([0.0, *(end or 0.0 for end in (*ends, *(b.spread for b in report.bases)))]) or 1.0
    return {
        "policies": {
            name: {
                "policy": theme.identity(base),
                "how": theme.plain(summary(base, report.changes)[0]),
                "words": _words(base, of_policy[name], report.prompt),
                "sentences": _sentences(base, of_policy[name]) if done else [],
            }
            for name, base in bases.items()
        },
        "groups": _groups(bases, report.changes),
        "widest": widest,
        "axis": percent(widest),
        "left_out": [theme.plain(text) for text in report.left_out] if done else [],
        "caveat": CAVEAT,
        "done": report.done,
        "of": report.of,
    }


def _sentences(base: Base, changes: Sequence[Change]) -> list[str]:
    if base.failure is not None:
        return []
    short = " ".join(summary(base, changes)[1:])
    return [theme.plain(text) for text in (short, *(sentence(base, c) for c in changes)) if text]


def _words(base: Base, changes: Sequence[Change], prompt: str) -> list[list]:
    own = sorted((c.word, c) for c in changes if c.word is not None)
    most = max([base.spread or 0.0, *(c.percent or 0.0 for _, c in own)]) or 1.0
    parts: list[list] = []
    at = 0
    for (start, stop), change in own:
        known = change.percent is not None and not change.same_input
        parts.append([theme.plain(prompt[at:start]), None, None, None])
        parts.append(
            [
                theme.plain(prompt[start:stop]),
                percent(_measured(change)) if known else None,
                round((change.percent or 0.0) / most, 3),
                theme.plain(sentence(base, change)),
            ]
        )
        at = stop
    return [*parts, [theme.plain(prompt[at:]), None, None, None]] if own else []


def _groups(bases: Mapping[str, Base], changes: Iterable[Change]) -> list[dict]:
    found: dict[str, dict[str, list[dict]]] = {kind: {} for kind in _HEADINGS}
    for change in changes:
        variants = found["word" if change.word else change.group]
        variants.setdefault(change.variant, []).append(_row(bases[change.policy], change))
    return [
        {
            "title": _HEADINGS[kind],
            "variants": [{"name": theme.plain(n), "rows": rows} for n, rows in variants.items()],
        }
        for kind, variants in found.items()
        if variants
    ]


def _row(base: Base, change: Change) -> dict[str, object]:
    """short: in place of the numbers, where there are none. percent, interval, spread: what the
    bar, its line and the grey band show, percent None where nothing is drawn. dimensions: [share
    of the largest, name and change] of each."""
    kind = verdict(base, change)
    drawn = kind not in ("failed", "same input")
    details = []
    if kind != "none" and change.interval is not None:
        details.append(f"{_between(change.interval)} %")
    if kind != "none" and (times := change.times_spread) is not None:
        details.append(f"{'< 0.01' if times < 0.01 else _figures(times)} × seeds")
    most = max((value or 0.0 for value in change.dimensions), default=0.0) or 1.0
    named = zip(base.dimensions, change.dimensions, strict=True) if change.dimensions else ()
    return {
        "policy": change.policy,
        "sentence": theme.plain(sentence(base, change)),
        "short": _SHORT.get(kind),
        "amount": percent(_measured(change)) if drawn else None,
        "details": details if drawn else [],
        "percent": change.percent if drawn else None,
        "interval": change.interval if kind != "none" else None,
        "spread": base.spread or 0.0,
        "dimensions": [
            [
                round((value or 0.0) / most, 3),
                theme.plain(f"{name}: {'no range' if value is None else percent(value)}"),
            ]
            for name, value in named
        ],
    }
