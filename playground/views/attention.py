"""Measured attention over the camera images and per block: how much, of whom, at which step.

What `Trace.attention` holds when a run was asked for it (arrays only; empty otherwise):

    weights   float16 [P, L, K, Q, C]: softmax weights of Q chosen queries over the mask's C
              columns, in P passes, L layers and K heads; a row sums to 1. A flow policy has one
              pass for each Euler step that was kept; pi0-FAST has one pass for all its tokens.
              K = 1 where only the mean over heads was kept.
    queries   int32 [Q]: the mask row of each query, which says its block and text
    times     float32 [P]: t of each pass; of length 0 for pi0-FAST
"""

import base64

import numpy as np

from playground.trace import PADDING, Trace
from playground.views import mask, theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("attention.js")

CAVEAT = (
    "Attention weight is not cause: what a policy looks at need not change what it does. "
    "For causes, change the input and see whether the actions change."
)
MAX_CELLS = 600_000  # bytes of overlay sent at most
_QUERIES, _PASSES = 16, 5


def payload(trace: Trace) -> dict[str, object]:
    """What the component draws, as plain JSON, after `reduced`: P, L, K, Q as there.

    cameras    {name, label, side, image, padding} of each camera; image: JPEG data URL or None
    overlay    base64 uint8 [P, L, K, Q, columns of all cameras], full scale at the row's `peak`
    peak       packed [P, L, K, Q]: the largest weight of a camera column
    mass       packed [P, L, K, Q, blocks]: the weight on each block; they sum to 1
    blocks     {label, padding} of each block
    passes, queries, layers, heads      labels of the axes
    kept       what of the measurement is shown, in words

    Raises ValueError for a trace without attention or with arrays of other shapes.
    """
    weights, queries, times = _measured(trace)
    weights, passes, chosen = reduced(weights, _camera_columns(trace).size)
    queries = queries[chosen]
    overlay = weights[..., _camera_columns(trace)]
    peak = overlay.max(axis=-1)
    scale = np.where(peak > 0, peak, 1)[..., None]
    total = trace.attention["weights"].shape
    p, layers, heads, q = peak.shape
    return {
        "policy": theme.identity(trace.info),
        "summary": describe(trace),
        "caveat": CAVEAT,
        "cameras": _cameras(trace),
        "overlay": base64.b64encode(np.rint(overlay / scale * 255).astype(np.uint8)).decode(),
        "peak": theme.packed(peak),
        "mass": theme.packed(_mass(trace, weights)),
        "blocks": [
            {"label": mask.label(block), "padding": bool(_is_padding(trace, block))}
            for block in trace.blocks
        ],
        "passes": [f"t {times[i]:.2f}, τ {1 - times[i]:.2f}" for i in passes] if len(times) else [],
        "queries": [_query_label(trace, row) for row in queries],
        "layers": layers,
        "heads": heads,
        "kept": f"shown: {q} of {total[3]} queries, {layers} layers, "
        + (f"{heads} heads" if heads > 1 else "the mean over heads")
        + (f", {p} of {total[0]} steps" if len(times) else ""),
    }


def reduced(weights: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [P, L, K, Q, C] with at most MAX_CELLS values over `columns` camera columns.

    Returns (float32 weights, indices of the passes kept, indices of the queries kept). Queries and
    passes are thinned evenly, the first and last stay; then heads give way to their mean, then
    queries are thinned further. Layers are never dropped.
    """
    passes = _spread(weights.shape[0], _PASSES)
    queries = _spread(weights.shape[3], _QUERIES)
    weights = weights[passes][:, :, :, queries].astype(np.float32)
    while weights[..., :1].size * columns > MAX_CELLS:
        if weights.shape[2] > 1:
            weights = weights.mean(axis=2, keepdims=True)
        elif len(queries) > 1:
            keep = _spread(len(queries), len(queries) // 2)
            weights, queries = weights[:, :, :, keep], queries[keep]
        elif len(passes) > 1:
            keep = _spread(len(passes), len(passes) // 2)
            weights, passes = weights[keep], passes[keep]
        else:
            break
    return weights, passes, queries


def describe(trace: Trace) -> str:
    """The measurement in words: the mean weight on each block over layers, heads and queries."""
    weights, queries, _ = _measured(trace)
    mass = _mass(trace, weights.astype(np.float32)).mean(axis=(0, 1, 2, 3))
    order = np.argsort(-mass)
    parts = [f"{mask.label(trace.blocks[i])} {mass[i]:.0%}" for i in order if mass[i] >= 0.005]
    return (
        f"{trace.info.title} ({trace.info.badge}): mean attention of {len(queries)} queries over "
        f"layers and heads goes to {theme.listed(parts)}. {CAVEAT}"
    )


# --- parts --------------------------------------------------------------------------------------


def _measured(trace):
    missing = {"weights", "queries", "times"} - trace.attention.keys()
    if missing:
        raise ValueError(
            f"this run of {trace.info.title} measured no attention (missing: "
            f"{', '.join(sorted(missing))}): run it with Options(attention=True)"
        )
    weights, queries, times = (trace.attention[k] for k in ("weights", "queries", "times"))
    passes = len(times) or 1
    if weights.ndim != 5 or weights.shape[0] != passes or weights.shape[3] != len(queries):
        raise ValueError(
            f"expected weights [{passes} passes, layers, heads, {len(queries)} queries, columns], "
            f"got {list(weights.shape)}"
        )
    if weights.shape[4] != trace.mask.shape[1]:
        raise ValueError(
            f"weights over {weights.shape[4]} columns, but the mask has {trace.mask.shape[1]}"
        )
    return weights, queries, times


def _mass(trace, weights):
    sums = [weights[..., b.start : b.stop].sum(axis=-1) for b in trace.blocks]
    return np.stack(sums, axis=-1)


def _image_blocks(trace):
    return [block for block in trace.blocks if block.kind == "image"]


def _camera_columns(trace):
    return np.concatenate([np.arange(b.start, b.stop) for b in _image_blocks(trace)])


def _is_padding(trace, block):
    places = np.arange(block.start, min(block.stop, trace.mask.shape[0]))
    return len(places) and (trace.mask[places, places] == PADDING).all()


def _cameras(trace):
    return [
        {
            "name": theme.plain(block.name),
            "label": mask.label(block),
            "side": round((block.stop - block.start) ** 0.5),
            "image": theme.picture(trace.images[block.name])
            if block.name in trace.images
            else None,
            "padding": bool(_is_padding(trace, block)),
        }
        for block in _image_blocks(trace)
    ]


def _query_label(trace, row):
    block = next(b for b in trace.blocks if b.start <= row < b.stop)
    text = trace.token_texts[row] if row < len(trace.token_texts) else ""
    own = block.kind in ("generated", "text") and text
    place = f" {row - block.start}" if block.stop - block.start > 1 else ""
    return theme.plain(mask.label(block) + place + (f" “{text}”" if own else ""))


def _spread(count, most):
    """Indices of at most `most` of `count` things, evenly, ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, max(1, most))).round().astype(int))
