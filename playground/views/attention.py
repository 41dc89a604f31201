"""Measured attention over the camera images and per block: how much, of whom, at which step.

`Trace.attention` holds softmax weights, float16, first sample, over at least the mask's columns:

    suffix    [steps or tokens, L, K, Q, C]: a flow policy's Q suffix rows at each Euler step, or
              the row of each token that pi0-FAST generated (Q = 1)
    prefix    [L, K, Q, C]: the prefix's rows, in the order of the mask

L layers; K heads, 1 where only their mean was kept. Here P passes (steps), Q queries (mask rows).
"""

import base64
from typing import Literal

import numpy as np

from playground.trace import PADDING, FastTrace, FlowTrace, Trace
from playground.views import mask, theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("attention.js")

CAVEAT = (
    "Attention weight is not cause: what a policy looks at need not change what it does. "
    "For causes, change the input and see whether the actions change."
)
MAX_CELLS = 600_000  # bytes of overlay sent at most
_QUERIES, _PASSES = 16, 5
_LITTLE = 32 << 20  # bytes of float16 weights; the bundled policies have 7 and 9 million


def payload(trace: Trace, which: Literal["suffix", "prefix"] = "suffix") -> dict[str, object]:
    """What the component draws, as plain JSON: the weights of the suffix's queries or of the
    prefix's text, after `reduced`.

    cameras    {label, side, image, note, masked} of each camera; image: a picture or None
    overlay    base64 uint8 [P, L, K, Q, columns of all cameras], full scale at the row's `peak`
    peak       packed [P, L, K, Q]: the largest weight of a camera column
    entropy    packed [P, L, K, Q]: of the weights over all columns, in bits
    mass       packed [P, L, K, Q, blocks]: the weight on each block; they sum to 1
    blocks     {label, padding} of each block
    passes     "t ..., τ ..." of each Euler step; empty where there is one pass
    queries    [name, text] of each query
    kept       what of the measurement is shown, in words

    Raises ValueError for a trace without attention or with arrays of other shapes.
    """
    measured, queries, times = measurement(trace, which)
    columns = _camera_columns(trace)
    weights, passes, chosen = reduced(measured, columns.size)
    overlay = weights[..., columns]
    peak = overlay.max(axis=-1)
    codes = np.rint(overlay / np.where(peak > 0, peak, 1)[..., None] * 255).astype(np.uint8)
    p, layers, heads, q = peak.shape
    return {
        "policy": theme.identity(trace.info),
        "summary": describe(trace),
        "caveat": CAVEAT,
        "cameras": _cameras(trace),
        "overlay": base64.b64encode(codes.tobytes()).decode("ascii"),
        "peak": theme.packed(peak),
        "entropy": theme.packed(_entropy(weights)),
        "mass": theme.packed(_mass(trace, weights)),
        "blocks": [
            {"label": mask.label(block), "padding": bool(_is_padding(trace, block))}
            for block in trace.blocks
        ],
        "passes": [f"t {times[i]:.2f}, τ {1 - times[i]:.2f}" for i in passes] if len(times) else [],
        "queries": [_query(trace, row) for row in queries[chosen]],
        "kept": f"Shown: {q} of {len(queries)} queries, {layers} layers, "
        + (f"{heads} heads" if heads > 1 else "one head or the mean over heads")
        + (f", {p} of {len(times)} steps" if len(times) else ""),
    }


def costs_little(trace: Trace) -> bool:
    """Whether a page may measure a run like this one without being asked: what it would hold is
    read off the mask and the model's sizes."""
    language = trace.info.model_config["language"]
    rows, columns = trace.mask.shape
    again = trace.options.num_steps - 1 if isinstance(trace, FlowTrace) else 0
    suffix = rows - mask.suffix_start(trace)
    cells = (rows + again * suffix) * columns
    return 2 * cells * language["depth"] * language["num_heads"] <= _LITTLE


def measurement(trace: Trace, which: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights [P, L, K, Q, C], mask rows of the queries [Q], t of each pass) of a trace.

    The tokens of pi0-FAST become queries of one pass; of the prefix only the text's rows are taken.
    t has length 0 where there are no Euler steps. Raises ValueError as `payload` does.
    """
    if which not in trace.attention:
        raise ValueError(
            f"this run of {trace.info.title} measured no attention of its {which}: "
            "run it with Options(attention=True)"
        )
    weights, columns = trace.attention[which], trace.mask.shape[1]
    rank = 5 if which == "suffix" else 4
    if weights.ndim != rank or weights.shape[-1] < columns:
        raise ValueError(
            f"expected {which} weights of {rank} axes over at least {columns} columns, "
            f"got {list(weights.shape)}"
        )
    weights, none = weights[..., :columns], np.zeros(0, np.float32)
    if which == "prefix":
        rows = [r for b in trace.blocks if b.kind == "text" for r in range(b.start, b.stop)]
        return weights[None, :, :, rows], np.array(rows), none
    start = mask.suffix_start(trace)
    if isinstance(trace, FastTrace):
        weights = np.moveaxis(weights[..., 0, :], 0, 2)[None]
        return weights, start + np.arange(weights.shape[3]), none
    return weights, start + np.arange(weights.shape[3]), trace.times[:-1]


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
    weights, queries, _ = measurement(trace, "suffix")
    mass = _mass(trace, weights.astype(np.float32)).mean(axis=(0, 1, 2, 3))
    order = np.argsort(-mass)
    parts = [f"{mask.label(trace.blocks[i])} {mass[i]:.0%}" for i in order if mass[i] >= 0.005]
    return theme.plain(
        f"{trace.info.title} ({trace.info.badge}): mean attention of {len(queries)} queries over "
        f"layers and heads goes to {theme.listed(parts)}. {CAVEAT}"
    )


# --- parts --------------------------------------------------------------------------------------


def _mass(trace, weights):
    sums = [weights[..., b.start : b.stop].sum(axis=-1) for b in trace.blocks]
    return np.stack(sums, axis=-1)


def _entropy(weights):
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(weights > 0, -weights * np.log2(weights), 0)
    return bits.sum(axis=-1)


def _image_blocks(trace):
    return [block for block in trace.blocks if block.kind == "image"]


def _camera_columns(trace):
    return np.concatenate([np.arange(b.start, b.stop) for b in _image_blocks(trace)])


def _is_padding(trace, block):
    places = np.arange(block.start, min(block.stop, trace.mask.shape[0]))
    return len(places) and (trace.mask[places, places] == PADDING).all()


def _cameras(trace):
    notes = {"masked": "hidden from attention", "black": "black"}
    images = trace.images
    return [
        {
            "label": mask.label(block),
            "side": round((block.stop - block.start) ** 0.5),
            "image": theme.picture(images[block.name]) if block.name in images else None,
            "note": notes.get(trace.inputs.modes.get(block.name), ""),
            "masked": trace.inputs.modes.get(block.name) == "masked",
        }
        for block in _image_blocks(trace)
    ]


def _query(trace, row):
    """[name, text] of a query; an empty text where the name says it all."""
    block = next(b for b in trace.blocks if b.start <= row < b.stop)
    place = f" {row - block.start}" if block.stop - block.start > 1 else ""
    text = trace.token_texts[row] if block.kind in ("generated", "text") else ""
    return [mask.label(block) + place, theme.plain(text)]


def _spread(count, most):
    """Indices of at most `most` of `count` things, evenly, ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, max(1, most))).round().astype(int))
