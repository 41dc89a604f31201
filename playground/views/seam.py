"""Where two successive chunks meet: the old, the new without and with real-time chunking."""

from collections.abc import Sequence

import numpy as np

from playground.datasets.seams import Jump, jump, typical_step
from playground.policies.seam import SeamChunks, delay_of
from playground.trace import PolicyInfo
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(...)`.
COMPONENT = theme.component("player.js", "panels.js", "correction.js", "seam.js")


def payload(
    info: PolicyInfo,
    chunks: SeamChunks,
    recorded: np.ndarray,
    frame: int,
    since: int,
    *,
    done: bool = False,
) -> dict[str, object]:
    """What the browser draws, as plain JSON.

    recorded: actions of the whole episode [n, D], or of a rollout those that were done so far;
    frame: of the later question; since: as in `playground.datasets.job.SeamRequest`; done: whether
    it is a rollout.

    span: steps that are drawn, the first is that of the earlier question; old, plain, guided,
    recorded packed [span, D], NaN where there is nothing; weights [H]; order: dimensions, that
    with the largest jump first; ways: what jumps; times [S + 1]; before, after packed [S, H, D]:
    the guided chunk's estimates at each Euler step, without and with the correction; planned packed
    [H, D]: what the old chunk says for its steps.
    """
    delay, typical = chunks.delay, typical_step(recorded)
    plain, guided = (
        jump(chunks.old, new, since, delay, typical) for new in (chunks.plain, chunks.guided)
    )
    horizon, first = info.horizon, frame - since
    span = since + horizon
    lines = {
        "old": _placed(chunks.old, 0, span),
        "plain": _placed(chunks.plain, since, span),
        "guided": _placed(chunks.guided, since, span),
        "recorded": _placed(recorded[first : first + span], 0, span),
    }
    order = np.argsort(-np.nan_to_num(plain.steps, nan=-1.0), kind="stable")
    return {
        "policy": theme.identity(info),
        "dims": theme.dimensions(info.actions),
        "hz": info.control_hz,
        "done": done,
        "first": first,
        "since": since,
        "delay": delay,
        "span": span,
        **{name: theme.packed(values) for name, values in lines.items()},
        "weights": chunks.weights.tolist(),
        "times": chunks.times.tolist(),
        "before": theme.packed(chunks.before),
        "after": theme.packed(chunks.after),
        "planned": theme.packed(_placed(chunks.old[since:], 0, horizon)),
        "order": order.tolist(),
        "ways": [_way(info, name, j) for name, j in (("plain", plain), ("guided", guided))],
        "latency": [
            {"ms": ms, "steps": delay_of(ms, info.control_hz)}
            for ms in (chunks.plain_ms, chunks.guided_ms)
        ],
    }


def _placed(values: np.ndarray, start: int, span: int) -> np.ndarray:
    found = np.full((span, values.shape[1]), np.nan)
    rows = values[: span - start]
    found[start : start + len(rows)] = rows
    return found


def _way(info: PolicyInfo, name: str, found: Jump) -> dict[str, object]:
    largest = info.actions[found.largest]
    steps: Sequence[float] = np.nan_to_num(found.steps, nan=-1.0).tolist()
    return {
        "way": name,
        "dimension": theme.plain(largest.name),
        "unit": theme.plain(largest.unit),
        "change": float(found.change[found.largest]),
        "steps": None if steps[found.largest] < 0 else steps[found.largest],
        "changes": found.change.tolist(),
        "all_steps": [None if value < 0 else value for value in steps],
    }
