"""What a policy listens to, drawn and in words: the prompt coloured by effect, a bar with its
interval for each variant, and plain sentences that claim no more than was measured.

Everything comes from a SensitivityReport of `playground.analysis.sensitivity`, finished or not.
`page` is self-contained HTML, for the page and for notebooks.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Literal

from playground.analysis.sensitivity import Base, Change, SensitivityReport
from playground.analysis.variants import GROUPS, NUDGED
from playground.views import theme

# gr.HTML(page(report), **COMPONENT): Gradio's own style of tables would draw over this one.
COMPONENT = {"apply_default_css": False}

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


def page(report: SensitivityReport) -> str:
    """The whole report as one piece of HTML, with its style sheet; everything that came from
    outside is escaped."""
    bases = {base.policy: base for base in report.bases}
    summaries = "".join(
        f"<p>{_safe(base.title)}: {_safe(' '.join(summary(base, report.changes)[1:]))}</p>"
        for base in report.bases
        if base.failure is None
    )
    sentences = "".join(
        f"<li>{_safe(base.title)}: {_safe(sentence(base, change))}</li>"
        for base in report.bases
        for change in report.changes
        if change.policy == base.policy and base.failure is None
    )
    left_out = "".join(f"<li>{_safe(text)}</li>" for text in report.left_out)
    done = report.done >= report.of  # before, every update would close the details again
    details = f"<details><summary>In sentences</summary>{summaries}<ul>{sentences}</ul></details>"
    notes = f'<ul class="quiet">{left_out}</ul>'
    parts = [
        f'<div class="matters"><style>{_CSS}</style>',
        "" if done else _progress(report),
        *(_policy(base, report) for base in report.bases),
        _table(bases, report.changes),
        details if done and sentences else "",
        notes if done and left_out else "",
        f'<p class="quiet">{_safe(CAVEAT)}</p></div>',
    ]
    return "".join(parts)


def _progress(report: SensitivityReport) -> str:
    return (
        f'<p class="quiet" role="status">Measured {report.done} of {report.of} answers '
        f'<progress max="{report.of}" value="{report.done}"></progress></p>'
    )


def _policy(base: Base, report: SensitivityReport) -> str:
    """Heading with badge, the prompt coloured by effect, and how it was measured."""
    said = f"<p>{_safe(summary(base, report.changes)[0])}</p>"
    return (
        f'<section data-family="{base.family}"><header><i class="dot"></i>'
        f'<strong>{_safe(base.title)}</strong> <span class="badge" title="{_safe(base.notice)}">'
        f"{_safe(base.badge)}</span></header>"
        f"{_words(base, report)}{said}</section>"
    )


def _words(base: Base, report: SensitivityReport) -> str:
    """Each word on a wash as strong as its effect, with the number below it. The full colour is
    the largest effect, or the spread between seeds where no word reaches it."""
    own = [(c.word, c) for c in report.changes if c.policy == base.policy and c.word is not None]
    if not own:
        return ""
    most = max(base.spread or 0, *(c.percent or 0 for _, c in own)) or 1
    parts, at = [], 0
    for (start, stop), change in sorted(own, key=lambda pair: pair[0]):
        share = None if change.same_input else change.percent
        strength = (change.percent or 0) / most
        parts.append(
            f"{_safe(report.prompt[at:start])}"
            f'<span class="word" style="--effect:{strength:.3f}" '
            f'title="{_safe(sentence(base, change))}">{_safe(report.prompt[start:stop])}'
            f"<small>{'–' if share is None else _safe(percent(share))}</small></span>"
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
            heading = f'<th colspan="4" scope="rowgroup">{_HEADINGS[kind]}</th>'
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
        f"<table><caption>{_safe(note)}</caption>"
        '<colgroup><col class="variant"><col class="who"><col><col class="numbers"></colgroup>'
        "<thead class='hidden'><tr>"
        "<th scope='col'>Variant</th><th scope='col'>Policy</th><th scope='col'>Change</th>"
        f"<th scope='col'>Numbers</th></tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _row(base: Base, change: Change, widest: float) -> str:
    kind, said = verdict(base, change), _safe(sentence(base, change))
    who = (
        f'<td class="who" title="{_safe(f"{base.title} · {base.badge}")}"><i class="dot"></i> '
        f"<span>{_safe(base.title)}<span class='hidden'> ({_safe(base.badge)})</span></span></td>"
    )
    if kind in ("failed", "same input"):
        short = "no number" if kind == "failed" else "same input"
        return f'{who}<td></td><td title="{said}"><small>{short}</small></td>'
    marks = _mark("seeds", 0, base.spread or 0, widest) + _mark("bar", 0, _measured(change), widest)
    if kind == "none":
        chart = f'<td class="chart"><div class="track">{marks}</div></td>'
        return f'{who}{chart}<td class="numbers">not at all</td>'
    details = []
    if change.interval is not None:
        marks += _mark("whisker", *change.interval, widest)
        details.append(f"{_between(change.interval)} %")
    if change.times_spread is not None:
        times = change.times_spread
        details.append(f"{'< 0.01' if times < 0.01 else _figures(times)} × seeds")
    small = "".join(f"<small>{_safe(text)}</small> " for text in details)
    return (
        f'{who}<td class="chart" title="{said}"><div class="track">{marks}</div>'
        f"{_strip(base, change)}</td>"
        f'<td class="numbers"><b>{_safe(percent(_measured(change)))}</b> {small}</td>'
    )


def _mark(name: str, low: float, high: float, widest: float) -> str:
    """A stretch of the track from `low` to `high` %."""
    left, width = 100 * low / widest, 100 * (high - low) / widest
    return f'<i class="{name}" style="left:{left:.2f}%;width:{width:.2f}%"></i>'


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


_CSS = """
.matters{container-type:inline-size;display:grid;gap:16px;font-size:14px;line-height:1.45;color:var(--body-text-color,inherit);
--line:color-mix(in srgb,currentColor 14%,transparent);
--wash:color-mix(in srgb,currentColor 6%,transparent)}
.matters>*{min-width:0;margin:0}
.matters p{margin:6px 0 0;overflow-wrap:anywhere}
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
background:color-mix(in srgb,var(--hue) calc(var(--effect)*45%),var(--wash))}
.matters .word small{font-size:11px;color:inherit;font-variant-numeric:tabular-nums}
.matters table{border-collapse:collapse;width:100%;table-layout:fixed;margin:0;font:inherit}
.matters caption{caption-side:top;text-align:left;padding-bottom:4px}
.matters th,.matters td{border:0;padding:4px 10px 4px 0;text-align:left;vertical-align:middle;
font-weight:400;background:none}
.matters .group th{font-weight:600;padding-top:14px}
.matters th[scope="row"]{overflow-wrap:anywhere;vertical-align:top}
.matters tr:has(th[scope="row"])>*{border-top:1px solid var(--line)}
.matters .who{white-space:nowrap;overflow:hidden;text-overflow:ellipsis;font-size:12px}
.matters .who .dot{display:inline-block}
.matters .numbers{padding-right:0;font-variant-numeric:tabular-nums}
.matters .numbers b{font-weight:600}
.matters .numbers small{display:inline-block;margin-left:6px;white-space:nowrap}
.matters .track{position:relative;height:12px;border-radius:3px;background:var(--wash);
overflow:hidden}
.matters .track i{position:absolute;top:0;bottom:0}
.matters .seeds{background:color-mix(in srgb,currentColor 20%,transparent)}
.matters .track .bar{top:2px;bottom:2px;border-radius:0 2px 2px 0;background:var(--hue)}
.matters .track .whisker{top:3px;bottom:3px;min-width:3px;box-sizing:border-box;
border:solid var(--body-text-color,currentColor);border-width:0 1.5px;
background:linear-gradient(var(--body-text-color,currentColor),var(--body-text-color,currentColor))
center/100% 1.5px no-repeat}
.matters .strip{display:flex;gap:1px;height:6px;margin-top:3px}
.matters .strip i{flex:1;border-radius:1px;
background:color-mix(in srgb,var(--hue) calc(var(--effect)*100%),var(--wash))}
.matters col.variant{width:27%}
.matters col.who{width:92px}
.matters col.numbers{width:230px}
@container (max-width:640px){
.matters .who>span{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.matters col.who{width:20px}
.matters col.variant{width:31%}
.matters col.numbers{width:96px}
.matters .numbers b{display:block;line-height:1.2}
.matters .numbers small{margin-left:0;font-size:11px}
}
.matters details ul,.matters ul.quiet{margin:6px 0 0;padding-left:18px}
.matters progress{vertical-align:middle;accent-color:var(--body-text-color,auto)}
"""
