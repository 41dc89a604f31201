"""An open-loop evaluation of one episode for the page: errors by dimension, the frames with the
largest ones, and every predicted chunk over the recorded curve."""

from collections.abc import Sequence

import numpy as np

from playground.datasets.open_loop import CAVEAT, SPANS, Evaluation
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(...)`.
COMPONENT = theme.component("panels.js", "worms.js")

_WORST = 8
_MOST_VALUES = 400_000  # of all chunks that a browser is sent; beyond, steps are left out evenly


def payload(evaluations: Sequence[Evaluation], files: str | None = None) -> dict[str, object]:
    """What the browser draws, as plain JSON: n frames, K of them asked at, H horizon, D dimensions.

    evaluations: of one episode, at least one. files: address of the table and the report, None
    while there are none.

    recorded packed [n, D]; series, one a policy and prompt: frames, chunks packed [K, H', D] of
    every `stride`-th step, errors packed [3, K, D] (absolute, of first step, executed steps and
    whole chunk), rows (a dimension's errors), mean (in %), worst (frames).
    """
    first = evaluations[0]
    (prediction,) = first.predictions
    size = sum(e.predictions[0].chunks.size for e in evaluations)
    stride = max(1, -(-size // _MOST_VALUES))
    return {
        "caveat": CAVEAT,
        "files": files,
        "dims": theme.dimensions(first.policy.actions),
        "fps": prediction.fps,
        "executed": first.executed,
        "ranges": [row.span for row in first.dimensions],
        "recorded": theme.packed(prediction.recorded),
        "stride": stride,
        "series": [_series(evaluation, stride) for evaluation in evaluations],
    }


def _series(evaluation: Evaluation, stride: int) -> dict[str, object]:
    (prediction,) = evaluation.predictions
    worst = sorted(evaluation.frames, key=lambda score: -score.percent)[:_WORST]
    return {
        "policy": theme.identity(evaluation.policy),
        "prompt": None if evaluation.prompt is None else theme.plain(evaluation.prompt),
        "frames": prediction.frames.tolist(),
        "chunks": theme.packed(prediction.chunks[:, ::stride]),
        "errors": theme.packed(_over_time(evaluation)),
        "rows": [
            {"absolute": [_plain(row.absolute[s]) for s in SPANS],
             "percent": [_plain(row.percent[s]) for s in SPANS], "still": _plain(row.still)}
            for row in evaluation.dimensions
        ],
        "mean": [_plain(evaluation.mean_percent(span)) for span in SPANS],
        "worst": [[score.frame, round(score.percent, 2)] for score in worst],
        "failures": [[frame, theme.plain(why)] for _, frame, why in evaluation.failures[:_WORST]],
        "failed": len(evaluation.failures),
    }  # fmt: skip


def _over_time(evaluation: Evaluation) -> np.ndarray:
    """float [3, K, D]: mean absolute error at each frame, by span; NaN where there is none."""
    errors = evaluation.predictions[0].errors()
    lengths = (1, evaluation.executed, errors.shape[1])
    found = np.full((len(SPANS), len(errors), errors.shape[2]), np.nan)
    for i, length in enumerate(lengths):
        part = errors[:, :length]
        known = ~np.isnan(part)
        count = known.sum(axis=1)
        total = np.where(known, part, 0).sum(axis=1)
        found[i] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
