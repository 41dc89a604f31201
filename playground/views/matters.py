"""What a policy listens to, drawn and in words: the prompt coloured by effect, a bar with its
interval for each variant, and plain sentences that claim no more than was measured.

Everything comes from a `playground.analysis.Report`, finished or not. `page` is self-contained
HTML, for the page and for notebooks.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Literal

from playground.analysis import Base, Change, Report
from playground.variants import GROUPS, NUDGED
from playground.views import theme

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
    if base.spread is None:
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


def summary(base: Base, changes: Iterable[Change]) -> str:
    """A policy's changes in a paragraph: what was measured, then a sentence for each group."""
    who = f"{base.title} ({base.badge})"
    if base.failure is not None:
        return f"{who}: no number, since the unchanged observation has none ({base.failure})."
    own = [change for change in changes if change.policy == base.policy]
    parts = [f"{who}, {_how(base)}."]
    for group in GROUPS:
        if found := [change for change in own if change.group == group]:
            parts.append(f"{group.capitalize()}: {_clauses(base, found)}.")
    return " ".join(parts)


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
        most, least = percent(rest[0].percent), percent(rest[-1].percent)
        many = most if most == least else f"{least} to {most}"
        found.append(f"changes with {_listed(rest)} by {many}")
    said = {
        "near": "changes with {} not clearly more than with another seed",
        "within": "changes with {} no more than with another seed",
        "none": "does not change at all with {}",
        "same input": "cannot differ with {}, for {title} is given the very same input",
        "failed": "gave no number with {}",
    }
    for kind, words in said.items():
        if kind in sorts:
            found.append(words.format(_listed(sorts[kind]), title=base.title))
    return f"the chunk {'; it '.join(found)}"


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


def _amount(change: Change) -> str:
    if change.interval is None:
        return f"{percent(change.percent)} of range"
    return f"{percent(change.percent)} of range (95 % interval {_between(change.interval)} %)"


def _between(bounds: tuple[float, float]) -> str:
    return " to ".join(_figures(bound) for bound in bounds)


def _times(change: Change) -> str:
    times = change.times_spread
    return f"{'less than 0.01' if times < 0.01 else _figures(times)} times the seed spread"


def _mostly(base: Base, change: Change) -> str:
    """The dimension that changes most, where it stands out."""
    known = [(v, name) for v, name in zip(change.dimensions, base.dimensions, strict=True) if v]
    value, name = max(known, default=(0, ""))
    return f", most in {name} ({percent(value)})" if value > 2 * change.percent else ""


def _figures(value: float) -> str:
    """Two significant figures, whole numbers from 10 on."""
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"


# --- drawn --------------------------------------------------------------------------------------

_HEADINGS = {"prompt": "Prompt", "word": "Prompt, word by word", "camera": "Cameras"}
_HEADINGS |= {"state": "State"}


def page(report: Report) -> str:
    """The whole report as one piece of HTML, with its style sheet; everything that came from
    outside is escaped."""
    bases = {base.policy: base for base in report.bases}
    sentences = "".join(
        f"<li>{_safe(base.title)}: {_safe(sentence(base, change))}</li>"
        for base in report.bases
        for change in report.changes
        if change.policy == base.policy and base.failure is None
    )
    left_out = "".join(f"<li>{_safe(text)}</li>" for text in report.left_out)
    return "".join(
        (
            f'<div class="matters"><style>{_CSS}</style>',
            _progress(report),
            *(_policy(base, report) for base in report.bases),
            _table(bases, report.changes),
            f"<details><summary>Every variant in a sentence</summary><ul>{sentences}</ul></details>"
            if sentences
            else "",
            f'<ul class="quiet">{left_out}</ul>' if left_out and report.done == report.of else "",
            f'<p class="quiet">{_safe(CAVEAT)}</p></div>',
        )
    )


def _progress(report: Report) -> str:
    if report.done >= report.of:
        return ""
    return (
        f'<p class="quiet" role="status">Measured {report.done} of {report.of} answers '
        f'<progress max="{report.of}" value="{report.done}"></progress></p>'
    )


def _policy(base: Base, report: Report) -> str:
    """Heading with badge, the prompt coloured by effect, and the summary."""
    return (
        f'<section data-family="{base.family}"><header><i class="dot"></i>'
        f'<strong>{_safe(base.title)}</strong> <span class="badge" title="{_safe(base.notice)}">'
        f"{_safe(base.badge)}</span></header>"
        f"{_words(base, report)}<p>{_safe(summary(base, report.changes))}</p></section>"
    )


def _words(base: Base, report: Report) -> str:
    """Each word on a wash as strong as its effect, with the number below it."""
    own = [c for c in report.changes if c.policy == base.policy and c.word is not None]
    if not own:
        return ""
    most = max((c.percent or 0 for c in own), default=0) or 1
    parts, at = [], 0
    for change in sorted(own, key=lambda c: c.word):
        start, stop = change.word
        known = change.percent is not None and not change.same_input
        strength = (change.percent or 0) / most
        parts.append(
            f"{_safe(report.prompt[at:start])}"
            f'<span class="word" style="--effect:{strength:.3f}" '
            f'title="{_safe(sentence(base, change))}">{_safe(report.prompt[start:stop])}'
            f"<small>{_safe(percent(change.percent)) if known else '–'}</small></span>"
        )
        at = stop
    text = "".join(parts) + _safe(report.prompt[at:])
    return f'<p class="prompt" aria-label="The prompt, each word with its effect">{text}</p>'


def _table(bases: dict[str, Base], changes: Sequence[Change]) -> str:
    """A row for each variant and policy: bar with interval over a band as wide as the spread
    between seeds, the number, and a strip of dimensions."""
    if not changes:
        return ""
    values = [c.interval[1] if c.interval else c.percent or 0 for c in changes]
    widest = max([*values, *(base.spread or 0 for base in bases.values())]) or 1
    rows: dict[str, dict[str, list[Change]]] = {kind: {} for kind in _HEADINGS}
    for change in changes:
        kind = "word" if change.word else change.group
        rows[kind].setdefault(change.variant, []).append(change)
    body = []
    for kind, named in rows.items():
        if named:
            heading = f'<th colspan="3" scope="rowgroup">{_HEADINGS[kind]}</th>'
            body.append(f"<tr class='group'>{heading}</tr>")
        for name, own in named.items():
            for place, change in enumerate(own):
                first = f'<th rowspan="{len(own)}" scope="row">{_safe(name)}</th>'
                row = _row(bases[change.policy], change, widest)
                body.append(
                    f'<tr data-family="{bases[change.policy].family}">'
                    f"{first if place == 0 else ''}{row}</tr>"
                )
    note = (
        f"Bars: mean change of the chunk in % of each dimension's range in the norm stats, from 0 "
        f"to {percent(widest)}. Lines: 95 % intervals. Grey: what another seed alone changes. "
        "Strips: each action dimension, the darkest is the largest of its row."
    )
    return (
        f"<table><caption>{_safe(note)}</caption><thead class='hidden'><tr>"
        "<th scope='col'>Variant</th><th scope='col'>Change</th><th scope='col'>Numbers</th>"
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _row(base: Base, change: Change, widest: float) -> str:
    who = f'<span class="hidden">{_safe(base.title)} ({_safe(base.badge)}): </span>'
    kind = verdict(base, change)
    if kind in ("failed", "same input"):
        said = "no number" if kind == "failed" else "same input"
        title = _safe(sentence(base, change))
        return f'<td></td><td title="{title}">{who}<span class="quiet">{said}</span></td>'
    share = lambda value: f"{100 * value / widest:.2f}%"  # noqa: E731
    marks = ""
    if base.spread is not None:
        marks += f'<i class="seeds" style="width:{share(base.spread)}"></i>'
    marks += f'<i class="bar" style="width:{share(change.percent)}"></i>'
    numbers = "not at all" if kind == "none" else percent(change.percent)
    details = []
    if change.interval is not None and kind != "none":
        low, high = change.interval
        marks += f'<i class="whisker" style="left:{share(low)};width:{share(high - low)}"></i>'
        details.append(f"{_between(change.interval)} %")
    if change.times_spread is not None and kind != "none":
        times = change.times_spread
        details.append(f"{'< 0.01' if times < 0.01 else _figures(times)} × seeds")
    return (
        f'<td class="chart" title="{_safe(sentence(base, change))}">'
        f'<div class="track">{marks}</div>{_strip(base, change)}</td>'
        f'<td class="numbers">{who}<b>{_safe(numbers)}</b>'
        f"<small>{_safe(' · '.join(details))}</small></td>"
    )


def _strip(base: Base, change: Change) -> str:
    """One cell a dimension; its words are in the sentence and in each cell's title."""
    most = max((value or 0 for value in change.dimensions), default=0) or 1
    cells = "".join(
        f'<i style="--effect:{(value or 0) / most:.3f}" '
        f'title="{_safe(name)}: {"no range" if value is None else percent(value)}"></i>'
        for name, value in zip(base.dimensions, change.dimensions, strict=True)
    )
    return f'<div class="strip" aria-hidden="true">{cells}</div>'


def _safe(text: str) -> str:
    return html.escape(theme.plain(text))


_LIGHT = "".join(
    f'.matters [data-family="{family}"]{{--hue:{hue}}}' for family, hue in theme.HUES.items()
)
_CSS = (
    _LIGHT
    + """
.dark .matters [data-family="pi0"]{--hue:#4FB0EA}
.dark .matters [data-family="pi05"]{--hue:#33C492}
.dark .matters [data-family="pi0_fast"]{--hue:#FF9148}
.matters{display:grid;gap:16px;font-size:14px;line-height:1.45;color:var(--body-text-color,inherit);
--line:color-mix(in srgb,currentColor 14%,transparent);
--wash:color-mix(in srgb,currentColor 6%,transparent)}
.matters>*{min-width:0;margin:0}
.matters p{margin:6px 0 0}
.matters .quiet,.matters caption,.matters small{font-size:12px;
color:color-mix(in srgb,currentColor 72%,transparent)}
.matters .hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
.matters header{display:flex;flex-wrap:wrap;align-items:center;gap:4px 8px}
.matters .dot{width:10px;height:10px;border-radius:50%;background:var(--hue)}
.matters .badge{font-size:12px;padding:1px 8px;border-radius:999px;
background:color-mix(in srgb,var(--hue) 18%,transparent)}
.matters .prompt{display:flex;flex-wrap:wrap;gap:6px 4px;font-size:16px;white-space:pre-wrap;
align-items:flex-start}
.matters .word{display:inline-grid;justify-items:center;padding:3px 8px;border-radius:6px;
overflow-wrap:anywhere;
background:color-mix(in srgb,var(--hue) calc(var(--effect)*55%),var(--wash))}
.matters .word small{font-size:11px;color:inherit;font-variant-numeric:tabular-nums}
.matters table{border-collapse:collapse;width:100%;table-layout:fixed;margin:0}
.matters caption{caption-side:bottom;text-align:left;padding-top:8px}
.matters th,.matters td{border:0;padding:5px 8px 5px 0;text-align:left;vertical-align:middle;
font-weight:400;background:none}
.matters th[scope="row"]{width:30%;overflow-wrap:anywhere;vertical-align:top;
border-top:1px solid var(--line)}
.matters tr:has(th[scope="row"])>td{border-top:1px solid var(--line)}
.matters .group th{font-weight:600;padding-top:16px}
.matters .numbers{width:31%;padding-right:0;font-variant-numeric:tabular-nums}
.matters .numbers b{font-weight:600;display:block;line-height:1.2}
.matters .track{position:relative;height:12px;border-radius:3px;background:var(--wash);
overflow:hidden}
.matters .track i{position:absolute;left:0;top:0;bottom:0}
.matters .seeds{background:color-mix(in srgb,currentColor 20%,transparent)}
.matters .track .bar{top:3px;bottom:3px;border-radius:0 2px 2px 0;background:var(--hue)}
.matters .track .whisker{top:5px;bottom:5px;min-width:1px;
background:var(--body-text-color,currentColor);outline:1px solid
var(--background-fill-primary,Canvas)}
.matters .strip{display:flex;gap:1px;height:6px;margin-top:3px}
.matters .strip i{flex:1;border-radius:1px;
background:color-mix(in srgb,var(--hue) calc(var(--effect)*100%),var(--wash))}
.matters details ul,.matters ul.quiet{margin:6px 0 0;padding-left:18px}
.matters progress{vertical-align:middle;accent-color:currentColor}
@container (max-width:520px){.matters .numbers{width:36%}}
"""
)
