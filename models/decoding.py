"""How pi0-FAST's tokens are chosen and when writing ends: greedy or sampled, constrained to chunks
that decode, and speculative.

The model is a `Decoder`, so nothing here depends on how it computes its logits.

Axes: B batch, P prefix tokens, M decoding steps at most, V vocabulary, D width, U draft vocabulary.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from models.gemma import Gemma, KVCache
from models.tokenizer import EOS

DRAFT_LENGTH = 64  # tokens between two verifications, each of which reads the token table once
LEAST_TEMPERATURE = 1e-6  # below it logits overflow, and nothing but the likeliest is drawn there

_pytree = jax.tree_util.register_dataclass


# --- what a caller may ask for ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class StopAfter:
    """Stop a row at the first `end` token once `start` (token ids) has been written.

    With the ids of "Action: " and "|" this is where openpi's reader stops reading, so no action
    changes; where the model writes "Action: " in other pieces, nothing stops early.
    """

    start: tuple[int, ...]
    end: int


@functools.partial(
    _pytree,
    data_fields=("completed", "missing", "zeros"),
    meta_fields=("num_coefficients", "per_group", "start", "end"),
)
@dataclasses.dataclass(frozen=True)
class Constraint:
    """Which tokens may come so that exactly `num_coefficients` DCT coefficients do.

    A coefficient is a character of up to four bytes, and a token may hold part of one: p bytes of a
    begun coefficient may be missing.

    completed: int32 [4, V], how many coefficients a token completes where p bytes are missing; -1
        where it cannot follow
    missing: int32 [4, V], how many bytes are missing after it
    zeros: bool [V], tokens of nothing but zero coefficients
    num_coefficients: horizon x dimensions
    per_group: the dimensions, where the tokenizer's tokens end with a frequency (all but those of
        zeros); else `num_coefficients`
    start, end: the ids of "Action: " and "|"
    """

    completed: Array | np.ndarray
    missing: Array | np.ndarray
    zeros: Array | np.ndarray
    num_coefficients: int
    per_group: int
    start: tuple[int, ...]
    end: int


@functools.partial(
    _pytree,
    data_fields=("temperature", "max_tokens", "constraint", "draft_ids"),
    meta_fields=("stop",),
)
@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """How tokens are chosen. One program serves every temperature above 0 and every number of
    tokens; that nothing is drawn makes it another.

    temperature: None takes the likeliest token; else, above 0, one is drawn from
        softmax(logits / temperature)
    max_tokens: how many are written at most; None for as many as the state has room for
    stop: ends each row by itself. Without it all rows go on until they write the end token in the
        same step (PARITY: openpi does not remember rows that ended before)
    constraint: each token is chosen among those that it allows; needs `stop`
    draft_ids: int32 [U], ids that the tokens are expected to be among. Greedy decoding of whole
        chunks is quicker with them, and its tokens are the same whatever they are
    """

    temperature: float | Array | None = None
    max_tokens: int | Array | None = None
    stop: StopAfter | None = None
    constraint: Constraint | None = None
    draft_ids: Array | None = None

    def __post_init__(self):
        if self.constraint is not None and self.stop is None:
            raise ValueError("constrained decoding needs `stop`; got a constraint without it")
        if isinstance(self.temperature, int | float) and not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; it is above 0, or None for the likeliest token"
            )


GREEDY = DecodeOptions()


# --- between two tokens -------------------------------------------------------------------------


@_pytree
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The model between two tokens.

    cache: P + M places
    visible: bool [B, P], the prefix tokens that written tokens attend to
    first_position: int32 [B], where the first written token stands
    logits: [B, V], what the next token is chosen by
    step: int32, how many tokens were fed
    cuts: bool [L, B, 1, P + M], places that written tokens may not attend to all the same, see
        `masks.Cuts`
    """

    cache: KVCache
    visible: Array
    first_position: Array
    logits: Array
    step: Array
    cuts: Array | np.ndarray | None = None

    @property
    def prefix_len(self) -> int:
        return self.visible.shape[1]

    @property
    def max_steps(self) -> int:
        return self.cache.k[0].shape[1] - self.prefix_len


@_pytree
@dataclasses.dataclass(frozen=True)
class TokenBuffer:
    """The tokens written so far, and how far each row is.

    tokens: int32 [B, M], zeros behind the written ones
    limit: int32, how many may be written
    count: int32, how many are written
    started: bool [B], rows that have written `StopAfter.start`
    done: bool [B], rows that have ended
    all_done: bool, whether decoding ends
    completed: int32 [B], how many coefficients each row has, for a constraint
    missing: int32 [B], how many bytes of a begun coefficient are missing, for a constraint
    """

    tokens: Array
    limit: Array
    count: Array
    started: Array
    done: Array
    all_done: Array
    completed: Array
    missing: Array

    @staticmethod
    def empty(batch_size: int, max_steps: int, options: DecodeOptions) -> "TokenBuffer":
        starts_at_once = options.stop is not None and not options.stop.start
        asked = max_steps if options.max_tokens is None else options.max_tokens
        whole = isinstance(asked, int)
        limit = min(asked, max_steps) if whole else jnp.minimum(asked, max_steps)
        # NumPy's arrays: of JAX's own, outside of a program, each would be a program to compile.
        zeros = jnp.asarray(np.zeros(batch_size, np.int32))
        return TokenBuffer(
            tokens=jnp.asarray(np.zeros((batch_size, max_steps), np.int32)),
            limit=jnp.asarray(limit, jnp.int32),
            count=jnp.asarray(np.int32(0)),
            started=jnp.asarray(np.full(batch_size, starts_at_once)),
            done=jnp.asarray(np.zeros(batch_size, bool)),
            all_done=jnp.asarray(np.bool_(False)),
            completed=zeros,
            missing=zeros,
        )

    @property
    def unfinished(self) -> Array:
        return (self.count < self.limit) & ~self.all_done

    @property
    def last(self) -> Array:
        """The token int32 [B] that was written last."""
        return self.token(self.count)

    def token(self, count: Array) -> Array:
        """The `count`th token, from 1 on: int32 [B]."""
        return jax.lax.dynamic_index_in_dim(self.tokens, count - 1, axis=1, keepdims=False)

    def append(self, token: Array, options: DecodeOptions) -> "TokenBuffer":
        """With token int32 [B] behind the others."""
        stop = options.stop
        tokens = jax.lax.dynamic_update_slice(self.tokens, token[:, None], (0, self.count))
        count, ended = self.count + 1, token == EOS
        if stop is None:
            return dataclasses.replace(
                self, tokens=tokens, count=count, done=ended, all_done=jnp.all(ended)
            )
        done = self.done | ended | (self.started & (token == stop.end))
        started = self.started | _ends_with(tokens, count, stop.start)
        buffer = dataclasses.replace(
            self, tokens=tokens, count=count, started=started, done=done, all_done=jnp.all(done)
        )
        if options.constraint is None:
            return buffer
        return buffer._counted(token, self.started & ~done, options.constraint)

    def _counted(self, token: Array, in_chunk: Array, constraint: Constraint) -> "TokenBuffer":
        """With the coefficients of token int [B], in the rows where it is one of the chunk's."""
        completed = self.completed + constraint.completed[self.missing, token]
        missing = constraint.missing[self.missing, token]
        return dataclasses.replace(
            self,
            completed=jnp.where(in_chunk, completed, self.completed),
            missing=jnp.where(in_chunk, missing, self.missing),
        )


def _ends_with(tokens: Array, count: Array, ids: tuple[int, ...]) -> Array:
    """bool [B]: whether the first `count` of tokens [B, M] end with these ids."""
    length = len(ids)
    padded = jnp.pad(tokens, ((0, 0), (length, 0)), constant_values=-1)
    recent = jax.lax.dynamic_slice_in_dim(padded, count, length, axis=1)
    return jnp.all(recent == jnp.array(ids, jnp.int32), axis=1)


# --- the next token -----------------------------------------------------------------------------


def next_token(
    logits: Array, buffer: TokenBuffer, key: Array, options: DecodeOptions
) -> tuple[TokenBuffer, Array]:
    """Chooses a token by logits [B, V]: (the buffer with it, the key for the one after it).

    PARITY: the key is split at every step. The first of equal logits wins.
    """
    key, step_key = jax.random.split(key)
    if options.constraint is not None:
        logits = constrained(logits, buffer, options.constraint)
    if options.temperature is not None:
        temperature = jnp.maximum(options.temperature, LEAST_TEMPERATURE)
        token = jax.random.categorical(step_key, logits / temperature, axis=-1)
    else:
        token = jnp.argmax(logits, axis=-1)
    return buffer.append(token.astype(jnp.int32), options), key


def constrained(logits: Array, buffer: TokenBuffer, constraint: Constraint) -> Array:
    """The logits [B, V] of the tokens that may come next; -inf for all others."""
    completed = constraint.completed[buffer.missing]  # [B, V], by a next token
    # A token that begins a coefficient takes a place for it.
    taken = completed + (constraint.missing[buffer.missing] > 0)
    left = (constraint.num_coefficients - buffer.completed)[:, None]
    left_in_group = constraint.per_group - buffer.completed[:, None] % constraint.per_group
    fits = (completed >= 0) & (taken <= left) & ((taken <= left_in_group) | constraint.zeros)
    ids = jnp.arange(logits.shape[1])
    is_complete = left == 0  # a begun coefficient would still be left
    fits = jnp.where(is_complete, ids == constraint.end, fits)
    start = jnp.array(constraint.start)[jnp.minimum(buffer.count, len(constraint.start) - 1)]
    fits = jnp.where(buffer.started[:, None], fits, ids == start)
    return jnp.where(fits | buffer.done[:, None], logits, -jnp.inf)


# --- whole chunks -------------------------------------------------------------------------------


class Decoder(Protocol):
    """What decoding asks of a model."""

    gemma: Gemma

    def feed(self, state: DecodeState, token: Array) -> tuple[DecodeState, Array, list[Array]]:
        """Runs token int [B]: (the next state with its old logits, the hidden state [B, D] that the
        next logits are made from, attention)."""
        ...

    def decode_step(self, state: DecodeState, token: Array) -> tuple[DecodeState, list[Array]]:
        """`feed` with the next logits in the state: (the next state, attention)."""
        ...


def decode_all(model: Decoder, state: DecodeState, key: Array, options: DecodeOptions) -> Array:
    """All tokens over a prefix that has run: int32 [B, M], zeros after the end."""
    buffer = TokenBuffer.empty(len(state.logits), state.max_steps, options)
    buffer, key = next_token(state.logits, buffer, key, options)
    if options.draft_ids is not None and options.temperature is None:
        state, buffer = _speculate(model, state, buffer, options, options.draft_ids)

    def write(carry):
        state, buffer, key = carry
        state, hidden, _ = model.feed(state, buffer.last)
        buffer, key = next_token(model.gemma.logits(hidden), buffer, key, options)
        return state, buffer, key

    _, buffer, _ = jax.lax.while_loop(lambda c: c[1].unfinished, write, (state, buffer, key))
    return buffer.tokens


def _speculate(
    model: Decoder,
    state: DecodeState,
    buffer: TokenBuffer,
    options: DecodeOptions,
    draft_ids: Array,
) -> tuple[DecodeState, TokenBuffer]:
    """Greedy decoding as long as the tokens are among `draft_ids`: (state with old logits, buffer).

    A draft is chosen among those alone, which reads as little of the token table. Then one product
    with all of it chooses each token again, as if there had been no draft. Behind the first that
    differs the draft is dropped: what it left in the cache is behind the step, is attended to by
    nobody and is written over.
    """

    def draft_and_verify(carry):
        state, buffer, _ = carry
        after, draft, hidden, length = _draft(model, state, buffer, options, draft_ids)
        logits = _logits_of_draft(model.gemma.embedding[...], hidden)
        buffer, agreed, count = _verify(logits, buffer, draft, length, options)
        return dataclasses.replace(after, step=state.step + count), buffer, agreed

    # A first token that is not among them (no trained policy's) costs no draft.
    agreed = jnp.all(jnp.isin(buffer.last, draft_ids))
    state, buffer, _ = jax.lax.while_loop(
        lambda c: c[1].unfinished & c[2], draft_and_verify, (state, buffer, agreed)
    )
    return state, buffer


def _draft(
    model: Decoder,
    state: DecodeState,
    buffer: TokenBuffer,
    options: DecodeOptions,
    draft_ids: Array,
) -> tuple[DecodeState, TokenBuffer, Array, Array]:
    """Up to DRAFT_LENGTH tokens from among `draft_ids`: (state and buffer after them, the hidden
    states [DRAFT_LENGTH, B, D] they were chosen by, how many there are)."""
    rows = model.gemma.embedding[...][draft_ids]  # [U, D]

    def guess(carry):
        state, buffer, hidden, count = carry
        state, output, _ = model.feed(state, buffer.last)
        logits = jnp.full_like(state.logits, -jnp.inf)
        logits = logits.at[:, draft_ids].set(model.gemma.logits(output, rows))
        buffer = _greedy(logits, buffer, options)
        return state, buffer, hidden.at[count].set(output), count + 1

    hidden = jnp.zeros((DRAFT_LENGTH, len(buffer.tokens), rows.shape[1]), model.gemma.dtype)
    count = jnp.asarray(0)
    return jax.lax.while_loop(
        lambda c: c[1].unfinished & (c[3] < DRAFT_LENGTH), guess, (state, buffer, hidden, count)
    )


def _logits_of_draft(table: Array, hidden: Array) -> Array:
    """table [V, D], hidden [N, B, D] to [N, B, V]."""
    dtype = jnp.promote_types(table.dtype, hidden.dtype)
    # The table on the left is read as it lies; on the right it took five times as long.
    logits = jnp.einsum("vd,nbd->vnb", table.astype(dtype), hidden.astype(dtype))
    return jnp.moveaxis(logits, 0, -1)


def _verify(
    logits: Array, buffer: TokenBuffer, draft: TokenBuffer, length: Array, options: DecodeOptions
) -> tuple[TokenBuffer, Array, Array]:
    """Chooses the draft's `length` tokens again by logits [N, B, V], up to the first that differs:
    (buffer, whether none did, how many were chosen)."""

    def verify(carry):
        buffer, _, count = carry
        buffer = _greedy(logits[count], buffer, options)
        return buffer, jnp.all(buffer.last == draft.token(buffer.count)), count + 1

    agreed, count = jnp.asarray(True), jnp.asarray(0)
    return jax.lax.while_loop(lambda c: c[1] & (c[2] < length), verify, (buffer, agreed, count))


def _greedy(logits: Array, buffer: TokenBuffer, options: DecodeOptions) -> TokenBuffer:
    return next_token(logits, buffer, jax.random.key(0), options)[0]
