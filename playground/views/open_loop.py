"""An open-loop evaluation drawn: worm plots, tables, and one HTML file that needs nothing else."""

import csv
import html
import io
from collections.abc import Sequence

import numpy as np

from playground.analysis.norm_check import Compared
from playground.datasets.open_loop import CAVEAT, SPANS, Evaluation, Prediction
from playground.trace import Dimension

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 520, 150, 52, 22, 18
_COLOURS = ("#0B6E99", "#C4501B", "#5B7F2B", "#7A4FA3")
_MAX_EPISODES = 4
_WORST = 10
_STYLE = """
body { max-width: 1120px; margin: 32px auto; padding: 0 16px; color: #1B2027; background: #FFF;
  font: 15px/1.5 ui-sans-serif, system-ui, sans-serif; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin-top: 36px; }
.caveat { border-left: 4px solid #C4501B; padding: 6px 14px; background: #FBF1EC; }
.plots { display: flex; flex-wrap: wrap; gap: 10px 24px; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: 2px 10px; border-bottom: 1px solid #E1E4E8; }
th:first-child, td:first-child { text-align: left; }
svg text { font: 11px ui-sans-serif, system-ui, sans-serif; fill: #4A525C; }
"""


def worm_plot(prediction: Prediction, dimension: int, named: Dimension) -> str:
    """Every predicted chunk over the recorded curve of one dimension, as an SVG element: the curve
    in grey, chunks in turn in four colours, a dot where each begins."""
    recorded, fps = prediction.recorded[:, dimension], prediction.fps
    chunks = prediction.chunks[..., dimension]
    horizon, count = chunks.shape[1], len(recorded)
    values = np.concatenate([recorded, chunks[np.isfinite(chunks)]])
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.5
    low, high = low - pad, high + pad
    last = max(count - 1 + horizon, 1)

    def line(start: int, y: np.ndarray) -> str:
        x = _LEFT + (start + np.arange(len(y))) / last * (_WIDTH - _LEFT)
        y = _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    parts = [
        f'<polyline points="{line(0, recorded)}" fill="none" stroke="#B4BAC2" stroke-width="4"/>'
    ]
    for number, (frame, chunk) in enumerate(zip(prediction.frames, chunks, strict=True)):
        if not np.isfinite(chunk).all():
            continue
        colour, points = _COLOURS[number % len(_COLOURS)], line(int(frame), chunk)
        x, y = points.split(" ", 1)[0].split(",")
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
            f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'
        )
    title = html.escape(f"{named.name} ({named.unit})")
    label = f"{title}: predicted chunks over the recorded curve, episode {prediction.episode}"
    bottom = _HEIGHT - _BOTTOM
    return (
        f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<text x="{_LEFT}" y="12">{title}</text>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">0 s</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{last / fps:.2f} s</text>'
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH}" fill="none" stroke="#C9CED6"/>'
        f"{''.join(parts)}</svg>"
    )


def table_csv(evaluations: Sequence[Evaluation]) -> str:
    """One row a policy, prompt and dimension."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"mae {span}" for span in SPANS] + [f"mae {span} % of range" for span in SPANS]
    writer.writerow(
        ["policy", "prompt", "dimension", "unit", "recorded range", *heads, "mae holding still"]
    )
    for evaluation in evaluations:
        for row in evaluation.dimensions:
            numbers = [row.span, *row.absolute.values(), *row.percent.values(), row.still]
            key = (evaluation.policy.name, _prompt(evaluation))
            cells = (f"{number:.6g}" for number in numbers)
            writer.writerow([*key, row.dimension.name, row.dimension.unit, *cells])
    return file.getvalue()


def report(
    title: str,
    evaluations: Sequence[Evaluation],
    notes: Sequence[str] = (),
    compared: Sequence[Compared] = (),
) -> str:
    """The whole as one HTML page: figures, worst frames, worm plots, and the norm stats.

    notes: plain sentences on data and matching; compared: of the first policy's norm stats.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="caveat">{html.escape(CAVEAT)}</p>']
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    for evaluation in evaluations:
        body += _evaluation(evaluation)
    if compared:
        body += _norm_stats(compared)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )


def _prompt(evaluation: Evaluation) -> str:
    return "the recorded task" if evaluation.prompt is None else evaluation.prompt


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = lambda kind, row: "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in row)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', heads)}</tr>{body}</table>"


def _evaluation(evaluation: Evaluation) -> list[str]:
    info, executed = evaluation.policy, evaluation.executed
    asked = sum(len(p.frames) for p in evaluation.predictions)
    parts = [
        f"<h2>{html.escape(info.title)} ({html.escape(info.name)}), prompt: "
        f"{html.escape(_prompt(evaluation))}</h2>",
        f"<p>{html.escape(info.badge)}. {len(evaluation.predictions)} episodes, {asked} frames "
        f"asked, {len(evaluation.failures)} without an answer. Mean absolute error of the first "
        f"step, of the {executed} executed steps and of the whole chunk of {info.horizon}; the "
        "range is the recorded one of these episodes, largest less smallest.</p>",
    ]
    rows = []
    for row in evaluation.dimensions:
        cells = [row.dimension.name, row.dimension.unit, _number(row.span)]
        for span in SPANS:
            cells += [_number(row.absolute[span]), _number(row.percent[span])]
        rows.append([*cells, _number(row.still)])
    mean = ["mean", "", ""]
    for span in SPANS:
        mean += ["", _number(evaluation.mean_percent(span))]
    heads = ["dimension", "unit", "range", "first", "%", "executed", "%", "whole", "%"]
    parts.append(_table([*heads, "holding still"], [*rows, [*mean, ""]]))
    worst = sorted(evaluation.frames, key=lambda score: -score.percent)[:_WORST]
    listed = [[f"{s.episode}", f"{s.frame}", _number(s.percent)] for s in worst]
    parts.append("<h3>Frames with the largest errors</h3>")
    parts.append(_table(["episode", "frame", "executed steps, % of range"], listed))
    if evaluation.failures:
        parts.append("<h3>Without an answer</h3>")
        listed = [[f"{e}", f"{f}", why] for e, f, why in evaluation.failures[:_WORST]]
        parts.append(_table(["episode", "frame", "why"], listed))
    drawn = evaluation.predictions[:_MAX_EPISODES]
    for prediction in drawn:
        parts.append(f"<h3>Episode {prediction.episode}: chunks over the recorded curve</h3>")
        plots = (worm_plot(prediction, i, named) for i, named in enumerate(info.actions))
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    if left := len(evaluation.predictions) - len(drawn):
        parts.append(f"<p>{left} more episodes are in the figures and not drawn.</p>")
    return parts


def _norm_stats(compared: Sequence[Compared]) -> list[str]:
    rows = [
        [c.part, c.name, *(_number(n) for n in (*c.checkpoint[:2], *c.data[:2])), *_joined(c)]
        for c in compared
    ]
    heads = ["part", "dimension", "mean", "std", "your mean", "your std", "remarks"]
    return [
        "<h2>Your data against the checkpoint's norm stats</h2>",
        "<p>Both in the model's terms, before normalisation.</p>",
        _table(heads, rows),
    ]


def _joined(row: Compared) -> list[str]:
    return [" ".join(row.remarks)]


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.3g}"
