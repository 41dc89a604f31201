"""Who may attend to whom, and where everybody stands. True = may attend; rows are queries.

Each rule computes with the library of the array it is given: JAX inside a model, and for what is
shown of a run NumPy, which needs no compiler.

Axes: B batch, T query tokens, S key tokens.
"""

from typing import NamedTuple, TypeVar

import jax
import numpy as np

from models.config import Convention, Pi0Config

Array = jax.Array | np.ndarray
Own = TypeVar("Own", jax.Array, np.ndarray)  # the library that a rule is given, and computes with


def block_causal(input_mask: Own, ar_mask: Array) -> Own:
    """Attention mask of a sequence of blocks (openpi `make_attn_mask`, after big_vision).

    Each token has an input bit (is it valid?) and an autoregressive bit. A 1 opens a new block: its
    tokens, and the zeros that follow, attend to every block before and to all of their own. With c
    the running sum of the autoregressive bits, query i may attend to key j if c[j] <= c[i] and both
    are valid.

    A camera of two tokens, text of two (the second one padding), a state, two actions:

        ar        0  0  0  0  1  1  0        cam cam txt pad sta act act
        valid     1  1  1  0  1  1  1   cam   1   1   1   .   .   .   .
                                        cam   1   1   1   .   .   .   .
                                        txt   1   1   1   .   .   .   .
                                        pad   .   .   .   .   .   .   .
                                        sta   1   1   1   .   1   .   .
                                        act   1   1   1   .   1   1   1
                                        act   1   1   1   .   1   1   1

    input_mask: bool [B, T]; ar_mask: bool or int [T] or [B, T]. Returns bool [B, T, T].
    """
    xp = input_mask.__array_namespace__()
    block = xp.cumsum(xp.broadcast_to(ar_mask, input_mask.shape), axis=1, dtype=xp.int32)
    in_reach = block[:, None, :] <= block[:, :, None]
    return in_reach & input_mask[:, None, :] & input_mask[:, :, None]


def positions(input_mask: Own) -> Own:
    """int32 [B, T]: the running count of valid tokens, from 0; padding does not advance it.

    Padding in front of the first valid token stands at -1, as in openpi.
    """
    xp = input_mask.__array_namespace__()
    return xp.cumsum(input_mask, axis=1, dtype=xp.int32) - 1


def suffix_ar_mask(config: Pi0Config) -> np.ndarray:
    """bool [Q]: which suffix tokens open a block. pi0's state and the first action do, in pi0.5 the
    first action alone: the prefix attends to no suffix token, the state to no action."""
    openers = 1 if config.pi05 else 2
    return np.arange(config.suffix_len) < openers


def suffix_mask(prefix_input_mask: Own, suffix_input_mask: Own, suffix_ar_mask: Array) -> Own:
    """Mask of a suffix that runs after its prefix: bool [B, T, P + T].

    Every suffix token attends to the valid prefix [B, P]; among themselves the blocks decide.
    """
    xp = prefix_input_mask.__array_namespace__()
    b, t = suffix_input_mask.shape
    prefix = xp.broadcast_to(prefix_input_mask[:, None, :], (b, t, prefix_input_mask.shape[1]))
    return xp.concatenate([prefix, block_causal(suffix_input_mask, suffix_ar_mask)], axis=2)


class Cuts(NamedTuple):
    """Connections that are forbidden beyond what the mask forbids, for each layer (*attention
    knockout*, arXiv 2304.14767). True: the query may not attend to the key. An axis of length 1
    stands for all.

    prefix: bool [L, B, P, P], of the prefix pass, in the order of its columns
    suffix: bool [L, B, Q, P + Q], of what runs over the prefix; for pi0-FAST [L, B, 1, P + M]
    """

    prefix: Array
    suffix: Array


def cut(mask: Own, forbidden: Array | None) -> Own | tuple[Own, ...]:
    """A mask for each layer: mask [B, T, S] without what is forbidden, bool [L, B, T, S]; the mask
    itself where that is None."""
    return mask if forbidden is None else tuple(mask & ~layer for layer in forbidden)


def blinded(mask: Own, forbidden: Array) -> Own:
    """bool [L, B, T]: queries that the mask [B, T, S] lets attend to something, and that are left
    without any key once bool [L, B, T, S] is forbidden. Their attention would be an average over
    everything, which means nothing."""
    xp = mask.__array_namespace__()
    return xp.any(mask, axis=-1) & ~xp.any(mask & ~forbidden, axis=-1)


def right_align_shift(input_mask: Own) -> Own:
    """int32 [B]: how far to roll each row to the left so that its last valid token ends it."""
    xp = input_mask.__array_namespace__()
    place = xp.arange(1, input_mask.shape[1] + 1, dtype=xp.int32)
    return xp.max(place * input_mask, axis=1)


def roll_rows(x: Own, shift: Own, axis: int = 1) -> Own:
    """Rolls `axis` of each row of x [B, ...] to the left by its own shift [B]."""
    xp, length = x.__array_namespace__(), x.shape[axis]
    index = (xp.arange(length)[None] + shift[:, None]) % length
    shape = [x.shape[0] if i == 0 else length if i == axis else 1 for i in range(x.ndim)]
    return xp.take_along_axis(x, index.reshape(shape), axis=axis)


def visible_to_decoded(input_mask: Own, convention: Convention) -> Own:
    """Which tokens of a right-aligned prefix [B, P] decoded tokens attend to: bool [B, P].

    LeRobot's attend to all valid ones. PARITY: openpi's attend to the last places, as many as there
    are valid tokens, so a masked camera in the middle of the row shifts the window instead of being
    left out.
    """
    if convention == "lerobot":
        return input_mask
    xp, length = input_mask.__array_namespace__(), input_mask.shape[1]
    return xp.arange(length) >= length - xp.sum(input_mask, axis=1)[:, None]


def decode_mask(visible: Own, step: Array, total_len: int) -> Own:
    """Mask of the token decoded at `step` over a right-aligned prefix: bool [B, 1, total_len].

    visible: bool [B, P], the prefix tokens that decoded ones attend to
    step: int [] or [T, 1], how many tokens were decoded before
    total_len: P and the room for all decoded tokens
    """
    xp, prefix_len = visible.__array_namespace__(), visible.shape[1]
    place = xp.arange(total_len)[None, None, :]
    prefix = xp.pad(visible, ((0, 0), (0, total_len - prefix_len)))[:, None, :]
    return prefix | ((place >= prefix_len) & (place <= prefix_len + step))
