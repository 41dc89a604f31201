"""pi0-FAST's tokens a few at a time, each with its probability and its rivals.

Axes: B batch, P prefix tokens, M decoding steps at most, V vocabulary, T tokens of a part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from models.decoding import DecodeOptions, Decoder, DecodeState, TokenBuffer, next_token


class WrittenTokens(NamedTuple):
    """T tokens that were written one after the other: token int [T, B]; probability [T, B] under
    the model at temperature 1; top ids [T, B, 5] and their probabilities, best first; each layer's
    attention [T, B, N, 1, P + M] of the pass that a token was fed to, when asked for, else ()."""

    token: Array
    probability: Array
    top_ids: Array
    top_probabilities: Array
    attention: tuple[Array, ...] = ()

    @property
    def num_steps(self) -> int:
        return len(self.token)


def next_with_probabilities(
    logits: Array, buffer: TokenBuffer, key: Array, options: DecodeOptions
) -> tuple[TokenBuffer, Array, WrittenTokens]:
    """`next_token`, and its probability and its rivals, without the axis of tokens."""
    buffer, key = next_token(logits, buffer, key, options)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    own = jnp.take_along_axis(probabilities, buffer.last[:, None], axis=-1)[:, 0]
    top, ids = jax.lax.top_k(probabilities, min(5, probabilities.shape[-1]))
    return buffer, key, WrittenTokens(buffer.last, own, ids, top)


def decode_some(
    model: Decoder,
    state: DecodeState,
    buffer: TokenBuffer,
    key: Array,
    options: DecodeOptions,
    *,
    size: int,
    attention: bool,
) -> tuple[DecodeState, TokenBuffer, Array, WrittenTokens, Array, Array]:
    """Up to `size` more tokens of a chunk: (state, buffer and key after them, the tokens, how many
    of those [size] are written, whether more are to come).

    The last token of a chunk is fed as well, so that its row of attention can be shown.
    """

    def write(state, buffer, key):
        buffer, key, written = next_with_probabilities(state.logits, buffer, key, options)
        state, weights = model.decode_step(state, buffer.last)
        return state, buffer, key, written._replace(attention=tuple(weights) if attention else ())

    def write_into(carry):
        state, buffer, key, written, count = carry
        state, buffer, key, one = write(state, buffer, key)
        written = jax.tree.map(lambda all, x: all.at[count].set(x), written, one)
        return state, buffer, key, written, count + 1

    def goes_on(carry):
        _, buffer, _, _, count = carry
        return buffer.unfinished & (count < size)

    one = jax.eval_shape(write, state, buffer, key)[-1]
    none = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), one)
    begun = (state, buffer, key, none, jnp.int32(0))
    state, buffer, key, written, count = jax.lax.while_loop(goes_on, write_into, begun)
    return state, buffer, key, written, count, buffer.unfinished
