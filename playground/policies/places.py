"""Where each part of an observation stands among the columns that a model runs.

A trace's mask (`token_layout`) shows every column that there could be. These are the columns of the
compiled programs: cameras that nobody attends to and padding at the end are left out where that is
exact. P prefix columns, Q suffix queries, L layers.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from models import masks
from models.config import Pi0Config, Pi0FastConfig
from models.masks import Cuts
from models.observation import Observation
from playground.trace import Cut

IMAGES = "images"  # every camera, in a cut
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTROL = ("<pad>", "<eos>", "<bos>")
PartKind = Literal["word", "state", "rest"]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of the prompt's text. text: what it says; tokens: which of the text's valid tokens are
    its own, from 0."""

    kind: PartKind
    text: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Columns of one run's prefix.

    cameras: by slot, of those that hold a picture, row by row of its patches
    hidden: by slot, of masked cameras that run
    text: of the text's valid tokens, in their order
    parts: of the text
    valid: bool [P], which columns hold something
    readable: bool [P], which columns the suffix, or written tokens, attend to. openpi's pi0-FAST
        lets them attend to the last places, so to masked cameras in place of the first ones
    """

    cameras: dict[str, np.ndarray]
    hidden: dict[str, np.ndarray]
    text: np.ndarray
    parts: tuple[Part, ...]
    valid: np.ndarray
    readable: np.ndarray


def flow(config: Pi0Config, observation: Observation, parts: tuple[Part, ...]) -> Places:
    """Of pi0 and pi0.5. observation: one row, as the model is given it."""
    valid, cameras, text = _laid(config, observation, np.arange)
    return Places(cameras, {}, text, parts, valid, valid)


def fast(config: Pi0FastConfig, observation: Observation, parts: tuple[Part, ...]) -> Places:
    """Of pi0-FAST, aligned to the right."""
    valid, _, _ = _laid(config, observation, np.arange)
    shift = int(masks.right_align_shift(valid[None])[0])
    _, slots, text = _laid(config, observation, lambda n: (np.arange(n) - shift) % n)
    valid = np.roll(valid, -shift)
    readable = np.asarray(masks.visible_to_decoded(valid[None], config.convention)[0])
    filled = {slot: bool(np.asarray(on)[0]) for slot, on in observation.image_masks.items()}
    cameras = {slot: columns for slot, columns in slots.items() if filled[slot]}
    hidden = {slot: columns for slot, columns in slots.items() if not filled[slot]}
    return Places(cameras, hidden, text, parts, valid, readable)


def _laid(
    config: Pi0Config | Pi0FastConfig, observation: Observation, places: Callable
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(valid [P] in the order of embedding; by slot, its columns; the text's valid columns), where
    `places(P)` says in which column each token ends up."""
    each, present = config.vision.num_tokens, observation.image_masks
    slots = [slot for slot in config.image_slots if slot in present]
    text_mask = np.asarray(observation.token_mask)[0]
    on = [np.repeat(np.asarray(present[slot])[0], each) for slot in slots]
    valid = np.concatenate([*on, text_mask]).astype(bool)
    column = places(len(valid))
    cameras = {slot: column[i * each : (i + 1) * each] for i, slot in enumerate(slots)}
    return valid, cameras, column[len(slots) * each :][text_mask]


# --- the text -----------------------------------------------------------------------------------


def text_parts(pieces: Sequence[str], state_in_text: bool) -> tuple[Part, ...]:
    """The words of the prompt, the state where it is text, and everything else as one part.

    pieces: of the valid tokens, as the vocabulary has them. Where a token belongs to two words it
    counts as the first one's.
    """
    surface = [_surface(piece) for piece in pieces]
    ends = np.cumsum([len(part) for part in surface])
    text = b"".join(surface)
    begin, end, state = 0, len(text), (0, 0)
    if state_in_text:
        begin = text.find(b"Task: ") + len(b"Task: ") if b"Task: " in text else 0
        end = at if (at := text.rfind(b", State: ")) >= 0 else len(text)
        stop = text.find(b";", end)
        state = (end + len(b", State: "), stop if stop >= 0 else len(text)) if at >= 0 else state
    words = [(m.start() + begin, m.end() + begin) for m in re.finditer(rb"\S+", text[begin:end])]
    owners: dict[tuple[int, int], list[int]] = {span: [] for span in [*words, state]}
    rest = []
    for token, (part, stop) in enumerate(zip(surface, ends, strict=True)):
        start = stop - len(part) + len(part) - len(part.lstrip())
        inside = [span for span in owners if span[0] <= start < span[1] and start < stop]
        (owners[inside[0]] if inside else rest).append(token)
    found = [
        Part("word", text[span[0] : span[1]].decode(errors="replace"), tuple(owners[span]))
        for span in words
        if owners[span]
    ]
    if state[1] > state[0] and owners[state]:
        found.append(Part("state", "state", tuple(owners[state])))
    return (*found, Part("rest", "rest of the text", tuple(rest)))


def _surface(piece: str) -> bytes:
    if found := _BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return b"" if piece in _CONTROL else piece.replace("▁", " ").encode()


# --- cut connections ----------------------------------------------------------------------------


def cuts(
    wanted: Sequence[Cut],
    places: Places,
    config: Pi0Config | Pi0FastConfig,
    ar_mask: np.ndarray,
    room: int,
) -> Cuts:
    """What the model is to go without, for one row.

    wanted: connections by the names of blocks
    ar_mask: [P], which prefix columns open a block of the mask
    room: Q, or pi0-FAST's decoding steps at most
    Raises ValueError for a block or layer that is not there, and for cuts that leave a query
    without any key.
    """
    depth, width = config.language.depth, len(places.valid)
    flow = isinstance(config, Pi0Config)
    queries = room if flow else 1
    in_prefix = np.zeros((depth, 1, width, width), bool)
    in_suffix = np.zeros((depth, 1, queries, width + room), bool)
    blocks = _blocks(places, config, room)
    for one in wanted:
        layers, row = np.array(_layers(one, depth)), np.zeros(1, int)
        query, key = (_block(name, blocks) for name in (one.query, one.key))
        rows, late = query[query < width], query[query >= width] - width
        in_prefix[np.ix_(layers, row, rows, key[key < width])] = True
        late = late if flow else late[:1] * 0
        in_suffix[np.ix_(layers, row, late, key)] = True
    _refuse_blinded(in_prefix, in_suffix, places, config, ar_mask, room, blocks)
    return Cuts(in_prefix, in_suffix)


def hidden(columns: np.ndarray, width: int, depth: int, room: int) -> Cuts:
    """One variant for each row of columns int [C, n]: nobody attends to them, in any layer. See
    `cuts` for the rest."""
    count = len(columns)
    gone = np.zeros((count, width + room), bool)
    np.put_along_axis(gone, columns, True, axis=1)
    gone = np.broadcast_to(gone[None, :, None], (depth, count, 1, width + room))
    return Cuts(gone[..., :width], gone)


def block_names(places: Places, config: Pi0Config | Pi0FastConfig) -> tuple[str, ...]:
    """The names that a cut may use."""
    return tuple(_blocks(places, config, 1))


def _blocks(places: Places, config: Pi0Config | Pi0FastConfig, room: int) -> dict[str, np.ndarray]:
    """Columns of prefix and suffix by name."""
    width = len(places.valid)
    found = dict(places.cameras)
    if found:
        found[IMAGES] = np.concatenate([*places.cameras.values()])
    found["text"] = places.text
    states = [part for part in places.parts if part.kind == "state"]
    if states:
        found["state"] = places.text[list(states[0].tokens)]
    suffix = width + np.arange(room)
    if isinstance(config, Pi0Config) and not config.pi05:
        found["state"], suffix = suffix[:1], suffix[1:]
    return found | {"actions": suffix}


def _block(name: str, blocks: dict[str, np.ndarray]) -> np.ndarray:
    name = "actions" if name == "generated" else name
    if name not in blocks:
        raise ValueError(f"nothing is called {name!r} here to cut; there is {', '.join(blocks)}")
    return blocks[name]


def _layers(one: Cut, depth: int) -> list[int]:
    if one.layers is None:
        return list(range(depth))
    if not one.layers or any(not 1 <= layer <= depth for layer in one.layers):
        raise ValueError(
            f"layers are {list(one.layers)}; they go from 1 to {depth}, and null stands for all"
        )
    return [layer - 1 for layer in one.layers]


def _refuse_blinded(in_prefix, in_suffix, places, config, ar_mask, room, blocks) -> None:
    valid = places.valid[None]
    rule = masks.block_causal(valid, ar_mask)
    lost = masks.blinded(rule, in_prefix).any(axis=(0, 1))
    if isinstance(config, Pi0Config):
        rule = masks.suffix_mask(valid, np.ones((1, room), bool), masks.suffix_ar_mask(config))
    else:
        readable = places.readable[None]
        rule = masks.decode_mask(readable, np.arange(room)[:, None], len(places.valid) + room)
    lost = np.r_[lost, masks.blinded(rule, in_suffix).any(axis=(0, 1))]
    if lost.any():
        at = int(np.flatnonzero(lost)[0])
        names = [name for name, columns in blocks.items() if at in columns and name != IMAGES]
        raise ValueError(
            f"these cuts leave {', '.join(names) or 'a token'} with nothing to attend to in some "
            "layer: attention would be an average over everything; mend one of them"
        )
