"""Which token stands in which column of a run: named blocks, token texts, the mask, and measured
attention spread over it.

The mask is made by the same rules that the models use (models/masks.py), over every place,
those included that a run left out because nobody attends to them. C columns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from models import masks
from models.config import Pi0Config, Pi0FastConfig
from models.fast_tokenizer import FastPrompt
from models.tokenizer import Prompt
from playground.trace import ALLOWED, BLOCKED, PADDING, TokenBlock

BlockKind = Literal["image", "text", "state", "actions", "generated", "padding"]

# Attention beyond this is averaged over heads: one run of a 3B model would take over 100 MB.
MAX_ATTENTION_BYTES = 32 << 20


def flow(
    config: Pi0Config, prompt: Prompt, modes: Mapping[str, str], piece: Callable[[int], str]
) -> dict:
    """The trace fields `blocks`, `token_texts` and `mask` of a pi0 or pi0.5 run: cameras, text with
    its padding, state (pi0), actions."""
    valid = _valid_prefix(config, prompt, modes)
    laid = _Columns()
    for slot in config.image_slots:
        laid.add(slot, "image", config.vision.num_tokens)
    count = int(prompt.mask.sum())
    laid.add("text", "text", count, [piece(i) for i in prompt.tokens[:count]])
    laid.add("padding", "padding", config.max_token_len - count)
    if not config.pi05:
        laid.add("state", "state", 1, ["state"])
    names = [f"action {i}" for i in range(config.action_horizon)]
    laid.add("actions", "actions", len(names), names)
    valid = np.r_[valid, np.ones(config.suffix_len, bool)]
    ar_mask = np.r_[np.zeros(config.prefix_len, bool), masks.suffix_ar_mask(config)]
    mask = np.asarray(masks.block_causal(valid[None], ar_mask)[0])
    return laid.fields(mask, valid)


def fast(
    config: Pi0FastConfig,
    prompt: FastPrompt,
    modes: Mapping[str, str],
    piece: Callable[[int], str],
    written: Sequence[str],
) -> dict:
    """The same of a pi0-FAST run, in the order of its cache: the prefix aligned to the right, so
    padding comes first; the rows of the generated tokens (texts `written`) follow the decoding
    loop."""
    valid = _valid_prefix(config, prompt, modes)[None]
    ar_mask = np.r_[np.zeros(config.prefix_len - len(prompt.ar_mask), int), prompt.ar_mask][None]
    shift = masks.right_align_shift(valid)
    aligned, ar_mask = masks.roll_rows(valid, shift), masks.roll_rows(ar_mask, shift)
    laid = _Columns()
    laid.add("padding", "padding", config.prefix_len - int(shift[0]))
    for slot in config.image_slots:
        laid.add(slot, "image", config.vision.num_tokens)
    count = int(prompt.mask.sum())
    laid.add("text", "text", count, [piece(i) for i in prompt.tokens[:count]])
    laid.add("generated", "generated", len(written), written)
    mask = np.zeros((laid.width, laid.width), bool)
    mask[: config.prefix_len, : config.prefix_len] = masks.block_causal(aligned, ar_mask)[0]
    steps = np.arange(len(written))[:, None]
    visible = masks.visible_to_decoded(aligned, config.convention)
    mask[config.prefix_len :] = masks.decode_mask(visible, steps, laid.width)[0]
    return laid.fields(mask, np.r_[aligned[0], np.ones(len(written), bool)])


def _valid_prefix(config, prompt, modes: Mapping[str, str]) -> np.ndarray:
    """Which tokens of cameras and text are valid, bool [prefix length]."""
    cameras = [modes[slot] != "masked" for slot in config.image_slots]
    return np.r_[np.repeat(cameras, config.vision.num_tokens), prompt.mask]


class _Columns:
    """Columns, named as they are laid down."""

    def __init__(self):
        self._blocks: list[TokenBlock] = []
        self._texts: list[str] = []

    @property
    def width(self) -> int:
        return len(self._texts)

    def add(self, name: str, kind: BlockKind, length: int, texts: Sequence[str] = ()) -> None:
        if length:
            self._blocks.append(TokenBlock(name, kind, self.width, self.width + length))
            self._texts += texts or [""] * length

    def fields(self, mask: np.ndarray, valid: np.ndarray) -> dict:
        """PADDING where query or key is not valid, unless the cell is allowed all the same."""
        both = valid[:, None] & valid[None, :]
        codes = np.where(mask, ALLOWED, np.where(both, BLOCKED, PADDING)).astype(np.uint8)
        texts = tuple(self._texts)
        return {"blocks": tuple(self._blocks), "token_texts": texts, "mask": codes}


# --- measured attention -------------------------------------------------------------------------


def that_ran(config: Pi0Config, slots: Sequence[str]) -> np.ndarray:
    """int [columns of a run with only these cameras]: where each stands among all columns."""
    each = config.vision.num_tokens
    cameras = [
        np.arange(i * each, (i + 1) * each)
        for i, slot in enumerate(config.image_slots)
        if slot in slots
    ]
    rest = np.arange(len(config.image_slots) * each, config.prefix_len + config.suffix_len)
    return np.concatenate([*cameras, rest])


def attention(
    steps: Sequence[np.ndarray], prefix: Sequence, ran: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measured weights of the first sample for a trace, float16; {} when none were asked for.

    steps: a step or token, [layers, heads, queries, columns] each; prefix: a layer, [1, heads,
    queries, columns] each; ran: which of all columns those are (None: all).

    Returns suffix [steps, layers, heads, queries, C] and prefix [layers, heads, queries, C]; where
    one is too large its heads are averaged and their axis has length 1. Places that did not run
    are zero.
    """
    if not steps:
        return {}
    suffix = _limit(np.stack(steps))
    before = _limit(np.stack([np.asarray(layer[0], np.float16) for layer in prefix]))
    if ran is not None:
        places = ran[: before.shape[-2]]
        suffix = _spread(suffix, ran, ran[-1] + 1, axis=-1)
        before = _spread(before, ran[: before.shape[-1]], ran[-1] + 1, axis=-1)
        before = _spread(before, places, places[-1] + 1, axis=-2)
    return {"suffix": suffix, "prefix": before}


def _limit(weights: np.ndarray) -> np.ndarray:
    if weights.nbytes <= MAX_ATTENTION_BYTES:
        return weights
    return weights.mean(axis=-3, keepdims=True, dtype=np.float32).astype(np.float16)


def _spread(weights: np.ndarray, places: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Puts what stands along `axis` at `places` of a longer, zero one."""
    moved = np.moveaxis(weights, axis, -1)
    full = np.zeros((*moved.shape[:-1], length), weights.dtype)
    full[..., places] = moved
    return np.moveaxis(full, -1, axis)
