"""The attention mask of one run, cell by cell: who may attend to whom (a rule, not a weight)."""

import dataclasses

import numpy as np

from playground import cuts
from playground.analysis.variants import slot_label
from playground.trace import ALLOWED, PADDING, Family, TokenBlock, Trace
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("axis.js", "cells.js", "mask.js")

# What runs after the prefix: pi0's state and actions, pi0.5's actions, FAST's generated tokens.
_SUFFIX: dict[Family, tuple[str, ...]] = {
    "pi0": ("state", "actions"),
    "pi05": ("actions",),
    "pi0_fast": ("generated", "actions"),
}
_OUTPUT = ("actions", "generated")


def payload(trace: Trace) -> dict[str, object]:
    """What the component draws, as plain JSON. R queries (rows), C keys (columns).

    shape      [R, C]
    patterns   the different rows of the mask, each in runs: [code, length, code, length, ...]
    rows       R indices into `patterns`
    padding    runs [start, stop) of queries that are padding
    suffix     first column of the suffix
    blocks     {name, label, kind, start, stop}
    texts      [column, text] of every column that has a text
    layers     how many the model has
    cuts       connections that the run went without, as text (`playground.cuts`)
    cut        the same in a sentence; "" without any
    """
    places: dict[bytes, int] = {}  # many rows are alike; sorting them all would take longer
    rows = [places.setdefault(row.tobytes(), len(places)) for row in trace.mask]
    patterns = [np.frombuffer(pattern, trace.mask.dtype) for pattern in places]
    return {
        "policy": theme.identity(trace.info),
        "summary": describe(trace),
        "shape": list(trace.mask.shape),
        "patterns": [_runs(pattern) for pattern in patterns],
        "rows": rows,
        "padding": _spans(padding_queries(trace)),
        "suffix": suffix_start(trace),
        "blocks": [
            {**dataclasses.asdict(b), "name": theme.plain(b.name), "label": label(b)}
            for b in trace.blocks
        ],
        "texts": [[i, theme.plain(text)] for i, text in enumerate(trace.token_texts) if text],
        "layers": trace.info.model_config["language"]["depth"],
        "cuts": [theme.plain(cuts.spelled(one)) for one in trace.options.cuts],
        "cut": cut_sentence(trace),
    }


def padding_queries(trace: Trace) -> np.ndarray:
    """bool [R]: queries that are padding. A real token may always attend to itself, so a query
    whose own cell is padding is no token; softmax over its row means nothing."""
    return np.diagonal(trace.mask) == PADDING


def suffix_start(trace: Trace) -> int:
    """First column of the suffix: where the last unbroken run of its blocks begins."""
    start = trace.mask.shape[1]
    for block in reversed(trace.blocks):
        if block.kind not in _SUFFIX[trace.info.family]:
            break
        start = block.start
    return start


def label(block: TokenBlock) -> str:
    """A block's name as people say it."""
    return slot_label(theme.plain(block.name))


def relation(trace: Trace, query: TokenBlock, key: TokenBlock) -> str:
    """How much of `key` the real tokens of `query` may attend to: "all", "part" or "none"; ""
    where `query` has no real token."""
    cells = _cells(trace, query, key)
    if not cells.size:
        return ""
    allowed = cells == ALLOWED
    return "all" if allowed.all() else "part" if allowed.any() else "none"


def describe(trace: Trace) -> str:
    """The mask in words: for each group of blocks with equal rights, what it may attend to."""
    rows, columns = trace.mask.shape
    groups: dict[tuple[str, ...], list[str]] = {}
    for query in trace.blocks:
        rights = []
        for key in trace.blocks:
            extent = relation(trace, query, key)
            if extent in ("all", "part"):
                rights.append(label(key) if extent == "all" else f"part of {label(key)}")
        if rights:
            groups.setdefault(tuple(rights), []).append(label(query))
    sentences = [
        f"{theme.listed(queries)} may attend to {theme.listed(list(rights))}"
        for rights, queries in groups.items()
    ]
    who = f"{trace.info.title} ({trace.info.badge})"
    text = f"{who}: {rows} queries by {columns} keys. " + "; ".join(sentences) + "."
    return theme.plain(f"{text} {cut_sentence(trace)}".strip())


def cut_sentence(trace: Trace) -> str:
    """What the run went without, which the mask, a rule, would allow."""
    if not trace.options.cuts:
        return ""
    return theme.plain(f"Cut in this run: {cuts.in_words(trace.options.cuts)}.")


def compare(a: Trace, b: Trace) -> list[str]:
    """What differs between two runs' masks, in plain sentences read off the masks themselves; one
    point an element."""
    names = (a.info.title, b.info.title)
    sentences = [*_camera_sentences(a, b)]
    for find in (_outputs_among_themselves, _prefix_to_outputs, _state, _padding):
        here, there = find(a), find(b)
        if here != there and here and there:
            sentences.append(f"{names[0]}: {here}. {names[1]}: {there}.")
        elif here == there and here and find is _prefix_to_outputs:
            sentences.append(f"In both, {here}.")
        elif here != there:
            name, text = (names[0], here) if here else (names[1], there)
            sentences.append(f"{name}: {text}.")
    if not sentences:
        sentences = [f"The masks of {names[0]} and {names[1]} follow the same rules in these runs."]
    return [theme.plain(sentence) for sentence in sentences]


# --- what compare looks at ----------------------------------------------------------------------


def _camera_sentences(a, b):
    """Cameras that one policy attends to and the other does not, alike ones together."""
    cameras_a = {block.name: block for block in a.blocks if block.kind == "image"}
    cameras_b = {block.name: block for block in b.blocks if block.kind == "image"}
    alike: dict[tuple[bool, bool], list[str]] = {}
    for name in cameras_a.keys() & cameras_b.keys():
        seen_a, seen_b = _seen(a, cameras_a[name]), _seen(b, cameras_b[name])
        if seen_a != seen_b:
            modes = (a if seen_a else b).inputs.modes
            key = (seen_a, modes.get(name) == "black")
            alike.setdefault(key, []).append(label(cameras_a[name]))
    for (in_a, black), cameras in alike.items():
        one, other = (a, b) if in_a else (b, a)
        many = len(cameras) > 1
        yield (
            f"{one.info.title} attends to the camera{'s' * many} {theme.listed(sorted(cameras))}"
            + (f", which {'are' if many else 'is'} black," * black)
            + f" while in {other.info.title} no token may attend to {'them' if many else 'it'}."
        )


def _seen(trace, key):
    return any(relation(trace, query, key) in ("all", "part") for query in trace.blocks)


def _outputs_among_themselves(trace):
    for block in trace.blocks:
        if block.kind not in _OUTPUT:
            continue
        among = trace.mask[block.start : block.stop, block.start : block.stop] == ALLOWED
        what = "generated tokens" if block.kind == "generated" else "actions"
        if among.all():
            return f"all {what} see each other, earlier and later ones"
        if (among == np.tri(*among.shape, dtype=bool)).all():
            return f"each of the {what} sees only itself and those before it"
        return f"the {what} see {among.mean():.0%} of each other"
    return ""


def _prefix_to_outputs(trace):
    outputs = [block for block in trace.blocks if block.kind in _OUTPUT]
    prefix = [block for block in trace.blocks if block.kind in ("image", "text")]
    looks = [q for q in prefix if any(relation(trace, q, k) in ("all", "part") for k in outputs)]
    if not outputs:
        return ""
    if not looks:
        return "images and text never see the actions"
    return f"{theme.listed([label(block) for block in looks])} may attend to the actions"


def _state(trace):
    if any(block.kind == "state" for block in trace.blocks):
        return "the state is a token of its own"
    return "the state is written in the text" if "State:" in trace.text else ""


def _padding(trace):
    places = [i for i, block in enumerate(trace.blocks) if block.kind == "padding"]
    count = sum(trace.blocks[i].stop - trace.blocks[i].start for i in places)
    if not count:
        return ""
    columns = f"{count} column{'s' * (count > 1)} of padding come{'s' * (count == 1)}"
    if places[0] == 0:
        return f"the prefix is right-aligned, so {columns} first"
    return f"{columns} after the {label(trace.blocks[places[0] - 1])}"


# --- cells --------------------------------------------------------------------------------------


def _cells(trace, query, key):
    stop = min(query.stop, trace.mask.shape[0])
    rows = np.arange(query.start, stop)
    rows = rows[~padding_queries(trace)[query.start : stop]]
    return trace.mask[rows, key.start : key.stop]


def _runs(row):
    """[code, length, code, length, ...] of a row."""
    edges = np.flatnonzero(np.diff(row)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [len(row)]]))
    return np.stack([row[starts], lengths], axis=1).ravel().tolist()


def _spans(flags):
    """[start, stop) of each run of True."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return np.stack([starts, stops], axis=1).tolist()
