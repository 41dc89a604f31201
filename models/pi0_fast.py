"""pi0-FAST: a chunk of actions written as tokens (arXiv 2501.09747; openpi's `models/pi0_fast.py`
for the numerics).

The sequence is cameras, then the prompt (one bidirectional block), then the postfix of action
tokens (causal). For decoding the prefix is aligned to the right, so that generated tokens follow it
without a gap in the cache.

Axes: B batch, P prefix tokens (cameras, then text with its padding), L text tokens, M decoding
steps at most, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from models import masks
from models.compiled import compiled
from models.config import Pi0FastConfig
from models.gemma import Gemma, KVCache, Pair
from models.matmul import laid_out
from models.observation import Observation
from models.siglip import Siglip
from models.tokenizer import Grammar

EOS = 1
DRAFT = 64  # tokens between two verifications, each of which reads the token table once

jax.tree_util.register_dataclass(
    Grammar, data_fields=("told", "owed", "zeros"), meta_fields=("total", "row", "start", "end")
)


class Embedded(NamedTuple):
    """tokens [B, P, D], who is there bool [B, P], which open a block int32 [B, P]."""

    tokens: Array
    input_mask: Array
    ar_mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Between two tokens: a cache of P + M places, which of the prefix's the written tokens see
    (bool [B, P]), where the first of them stands (int32 [B]), the logits [B, V] that the next token
    is taken from, and how many tokens were fed."""

    cache: KVCache
    seen: Array
    first_position: Array
    logits: Array
    step: Array

    @property
    def prefix_len(self) -> int:
        return self.seen.shape[1]


@dataclasses.dataclass(frozen=True, slots=True)
class StopAfter:
    """Stop a row at the first `end` token once `start` (token ids) has been written.

    With the ids of "Action: " and "|" this is where openpi's reader stops reading, so no action
    changes; where the model writes "Action: " in other pieces, nothing stops early.
    """

    start: tuple[int, ...]
    end: int


class DecodingStep(NamedTuple):
    """One token as the stepwise way yields it. token int [B]; probability [B] under the model at
    temperature 1; top ids [B, 5] and their probabilities, best first; each layer's attention
    [B, N, 1, P + M] of the pass that this token was fed to, when asked for, else ()."""

    index: int
    token: np.ndarray
    probability: np.ndarray
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    attention: tuple[Array, ...]


class Pi0Fast(nnx.Module):
    """The autoregressive policy."""

    def __init__(self, config: Pi0FastConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.vision = Siglip(config.vision, config.language.width, dtype=dtype, rngs=rngs)
        self.gemma = Gemma(
            config.vocab_size,
            config.language,
            None,
            adaptive_action=False,
            float32_query=True,
            dtype=dtype,
            rngs=rngs,
        )

    def embed_images(self, images: Array) -> Array:
        """float32 [B, size, size, 3] in [-1, 1] to [B, tokens a camera, D]."""
        return self.vision(images)[0]

    def embed_inputs(
        self, observation: Observation, image_tokens: dict[str, Array] | None = None
    ) -> Embedded:
        """Cameras in the config's order, then text. `image_tokens` replaces the pass through
        SigLIP. Every slot must be there: a black camera is attended to."""
        slots = self.config.image_slots
        if image_tokens is None:
            images = jnp.concatenate([observation.images[slot] for slot in slots])
            tokens = jnp.split(self.embed_images(images), len(slots))
        else:
            tokens = [image_tokens[slot] for slot in slots]
        present = [
            jnp.broadcast_to(observation.image_masks[slot][:, None], part.shape[:2])
            for slot, part in zip(slots, tokens, strict=True)
        ]
        no_blocks = [jnp.zeros(part.shape[:2], jnp.int32) for part in tokens]
        text = self.gemma.embed(observation.tokens)
        return Embedded(
            jnp.concatenate([*tokens, text], axis=1),
            jnp.concatenate([*present, observation.token_mask], axis=1),
            jnp.concatenate([*no_blocks, observation.token_ar_mask], axis=1),
        )

    # --- training -------------------------------------------------------------------------------

    def forward(self, observation: Observation) -> tuple[Array, list[Array]]:
        """One pass over all tokens but the last: (hidden states [B, L - 1, D] of the text part,
        shifted by one so that row i predicts text token i + 1; attention [B, N, P - 1, P - 1])."""
        embedded = self.embed_inputs(observation)
        mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)[:, :-1, :-1]
        positions = masks.positions(embedded.input_mask[:, :-1])
        if self.config.convention == "openpi":
            # PARITY: they run over every place here, masked or not; decoding counts valid ones.
            positions = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape[:2])
        outputs, _, attention = self.gemma(Pair(prefix=embedded.tokens[:, :-1]), positions, mask)
        return outputs.prefix[:, -(observation.tokens.shape[1] - 1) :], attention

    def log_probabilities(self, observation: Observation) -> Array:
        """float32 [B, L - 1]: the log-probability of text token i + 1 given all before it."""
        hidden, _ = self.forward(observation)
        logp = jax.nn.log_softmax(self.gemma.logits(hidden), axis=-1).astype(jnp.float32)
        return jnp.take_along_axis(logp, observation.tokens[:, 1:, None], axis=-1)[..., 0]

    def compute_loss(self, observation: Observation) -> Array:
        """Mean negative log-likelihood of the tokens in `token_loss_mask`: float32 [B].

        A row without such tokens costs 0. No randomness: nothing is drawn here.
        """
        logp = self.log_probabilities(observation)
        counts = observation.token_loss_mask[:, 1:]
        return -jnp.sum(logp * counts, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)

    # --- sampling -------------------------------------------------------------------------------

    def prefill(
        self,
        observation: Observation,
        image_tokens: dict[str, Array] | None = None,
        *,
        max_decoding_steps: int,
        last_only: bool = False,
    ) -> tuple[DecodeState, list[Array]]:
        """The prefix pass, aligned to the right: (state, attention [B, N, P, P + M] a layer).

        With `last_only` the last layer runs for the last place alone, which is all that the logits
        need: its attention is [B, N, 1, P + M].
        """
        embedded = self.embed_inputs(observation, image_tokens)
        shift = masks.right_align_shift(embedded.input_mask)
        tokens = masks.roll_rows(embedded.tokens, shift)
        input_mask = masks.roll_rows(embedded.input_mask, shift)
        mask = masks.block_causal(input_mask, masks.roll_rows(embedded.ar_mask, shift))
        # The empty places to come take part as forbidden keys. That matters to nobody but rows
        # without any allowed key. PARITY: openpi's generated tokens can see such rows when a camera
        # in the middle is masked.
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, max_decoding_steps)))
        outputs, cache, attention = self.gemma(
            Pair(prefix=tokens),
            masks.positions(input_mask),
            mask,
            cache=self._empty_cache(tokens.shape[0], mask.shape[2]),
            write_at=0,
            last_only=last_only,
        )
        seen = masks.seen_by_decoded(input_mask, self.config.convention)
        # PARITY: openpi leaves one position out behind the prefix (its open thread 705); the
        # published weights are used this way.
        left_out = 1 if self.config.convention == "openpi" else 0
        position = jnp.sum(input_mask, axis=1) + left_out
        logits = self.gemma.logits(outputs.prefix[:, -1])
        return DecodeState(cache, seen, position, logits, jnp.int32(0)), attention

    def decode_step(self, state: DecodeState, token: Array) -> tuple[DecodeState, list[Array]]:
        """Feeds token int [B]: (the next state, attention [B, N, 1, P + M] a layer)."""
        state, hidden, attention = self._feed(state, token)
        return dataclasses.replace(state, logits=self.gemma.logits(hidden)), attention

    def _feed(self, state: DecodeState, token: Array) -> tuple[DecodeState, Array, list[Array]]:
        """(the next state but for its logits, what they are made from [B, D], attention)."""
        total = state.cache.k[0].shape[1]
        outputs, cache, attention = self.gemma(
            Pair(prefix=self.gemma.embed(token[:, None])),
            (state.first_position + state.step)[:, None],
            masks.decode_mask(state.seen, state.step, total),
            cache=state.cache,
            write_at=state.prefix_len + state.step,
        )
        state = dataclasses.replace(state, cache=cache, step=state.step + 1)
        return state, outputs.prefix[:, 0], attention

    def sample_actions(
        self,
        observation: Observation,
        key: Array | None = None,
        grammar: Grammar | None = None,
        likely: Array | None = None,
        *,
        max_decoding_steps: int = 256,
        temperature: float = 0.0,
        stop: StopAfter | None = None,
    ) -> Array:
        """The written tokens, int32 [B, M], zeros after the end.

        Greedy at temperature 0, else drawn from softmax(logits / temperature) with `key`. Ends when
        every row writes the end token in the same step (PARITY: openpi does not remember rows that
        ended before), or at M tokens. With `stop`, rows are remembered: it ends as soon as each has
        written its end token or what `stop` says; tokens up to there are the same. With `grammar`,
        which needs `stop`, each token is chosen among those that it allows. `likely`: ids int32
        [U] that the tokens are expected to be among, which makes greedy decoding quicker; the
        tokens are the same whatever they are.
        """
        state, _ = self.prefill(observation, max_decoding_steps=max_decoding_steps, last_only=True)
        return self.decode_all(state, key, grammar, likely, temperature=temperature, stop=stop)

    def decode_all(
        self,
        state: DecodeState,
        key: Array | None = None,
        grammar: Grammar | None = None,
        likely: Array | None = None,
        *,
        temperature: float = 0.0,
        stop: StopAfter | None = None,
    ) -> Array:
        """`sample_actions` over a prefix that has run."""
        key = jax.random.key(0) if key is None else key
        steps = state.cache.k[0].shape[1] - state.prefix_len
        rows = Rows.begin(state.logits.shape[0], steps, stop)
        token, key = choose(rows.restrict(state.logits, grammar), key, temperature)
        rows = rows.add(token, stop, grammar)
        if likely is not None and temperature == 0:
            state, rows = self._drafted(state, rows, likely, grammar, stop)

        def write(carry):
            state, rows, key = carry
            state, _ = self.decode_step(state, rows.last)
            token, key = choose(rows.restrict(state.logits, grammar), key, temperature)
            return state, rows.add(token, stop, grammar), key

        _, rows, _ = jax.lax.while_loop(lambda c: c[1].unfinished, write, (state, rows, key))
        return rows.tokens

    def _drafted(self, state: DecodeState, rows: "Rows", likely: Array, grammar, stop):
        """Greedy decoding as long as the tokens are among the likely ones: (state, rows), the
        state's logits out of date.

        A draft is chosen among those alone, which reads as little of the token table. Then one
        product with all of it chooses each token again, as if there had been no draft. Behind the
        first that differs the draft is forgotten: what it left in the cache is behind the step,
        seen by nobody and written over.
        """
        table, anything = self.gemma.embedding[...], jax.random.key(0)
        few, dtype = table[likely], jnp.promote_types(table.dtype, self.gemma.dtype)

        def pick(rows, logits):
            token, _ = choose(rows.restrict(logits, grammar), anything, 0.0)
            return rows.add(token, stop, grammar)

        def guess(carry):
            state, rows, outputs, count = carry
            state, output, _ = self._feed(state, rows.last)
            logits = jnp.full_like(state.logits, -jnp.inf)
            logits = logits.at[:, likely].set(self.gemma.logits(output, few))
            return state, pick(rows, logits), outputs.at[count].set(output), count + 1

        def draft_and_verify(carry):
            state, rows, _ = carry
            outputs = jnp.zeros((DRAFT, len(rows.tokens), few.shape[1]), self.gemma.dtype)
            after, draft, outputs, count = jax.lax.while_loop(
                lambda c: c[1].unfinished & (c[3] < DRAFT), guess, (state, rows, outputs, 0)
            )
            # The table on the left is read as it lies; on the right it took five times as long.
            logits = jnp.einsum("vd,nbd->vnb", table.astype(dtype), outputs.astype(dtype))
            logits = jnp.moveaxis(logits, 0, -1)

            def verify(carry):
                rows, _, count = carry
                rows = pick(rows, logits[count])
                return rows, jnp.all(rows.last == draft.token(rows.count)), count + 1

            rows, agreed, count = jax.lax.while_loop(
                lambda c: c[1] & (c[2] < count), verify, (rows, True, 0)
            )
            return dataclasses.replace(after, step=state.step + count), rows, agreed

        # A first token that is not among them (no trained policy's) costs no draft.
        agreed = jnp.all(jnp.isin(rows.last, likely))
        state, rows, _ = jax.lax.while_loop(
            lambda c: c[1].unfinished & c[2], draft_and_verify, (state, rows, agreed)
        )
        return state, rows

    def _empty_cache(self, batch_size: int, places: int) -> KVCache:
        language = self.config.language
        shape = (batch_size, places, language.num_kv_heads, language.head_dim)
        empty = jnp.zeros(shape, self.gemma.dtype)
        return KVCache((empty,) * language.depth, (empty,) * language.depth)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What has been written: tokens int32 [B, M], how many, which rows have reached `stop.start`
    and which are done (bool [B]), whether decoding ends; for a grammar also how many coefficients
    each row has told since its start, and how many bytes of the next are to come (int32 [B])."""

    tokens: Array
    count: Array
    started: Array
    done: Array
    all_done: Array
    told: Array
    owed: Array

    @staticmethod
    def begin(batch_size: int, steps: int, stop: StopAfter | None) -> "Rows":
        started = jnp.full((batch_size,), stop is not None and not stop.start)
        done = jnp.zeros((batch_size,), bool)
        tokens = jnp.zeros((batch_size, steps), jnp.int32)
        none = jnp.zeros((batch_size,), jnp.int32)
        return Rows(tokens, jnp.int32(0), started, done, jnp.bool_(False), none, none)

    @property
    def unfinished(self) -> Array:
        return (self.count < self.tokens.shape[1]) & ~self.all_done

    @property
    def last(self) -> Array:
        """The token int32 [B] that was written last."""
        return self.token(self.count)

    def token(self, count: Array) -> Array:
        """The `count`th of them, from 1 on."""
        return jax.lax.dynamic_index_in_dim(self.tokens, count - 1, axis=1, keepdims=False)

    def restrict(self, logits: Array, grammar: Grammar | None) -> Array:
        """The logits [B, V] of the tokens that may come next; -inf for all others."""
        if grammar is None:
            return logits
        told, owed = grammar.told[self.owed], grammar.owed[self.owed]  # [B, V]
        reach = told + (owed > 0)
        left = (grammar.total - self.told)[:, None]
        in_row = grammar.row - self.told[:, None] % grammar.row
        fits = (told >= 0) & (reach <= left) & ((reach <= in_row) | grammar.zeros)
        place = jnp.arange(logits.shape[1])
        fits = jnp.where((left == 0) & (self.owed == 0)[:, None], place == grammar.end, fits)
        start = jnp.array(grammar.start)[jnp.minimum(self.count, len(grammar.start) - 1)]
        fits = jnp.where(self.started[:, None], fits, place == start)
        return jnp.where(fits | self.done[:, None], logits, -jnp.inf)

    def add(self, token: Array, stop: StopAfter | None, grammar: Grammar | None = None) -> "Rows":
        tokens = jax.lax.dynamic_update_slice(self.tokens, token[:, None], (0, self.count))
        count, ended = self.count + 1, token == EOS
        rows = dataclasses.replace(self, tokens=tokens, count=count)
        if stop is None:
            return dataclasses.replace(rows, done=ended, all_done=jnp.all(ended))
        done = self.done | ended | (self.started & (token == stop.end))
        length = len(stop.start)
        recent = jax.lax.dynamic_slice_in_dim(
            jnp.pad(tokens, ((0, 0), (length, 0)), constant_values=-1), count, length, axis=1
        )
        started = self.started | jnp.all(recent == jnp.array(stop.start, jnp.int32), axis=1)
        rows = dataclasses.replace(rows, started=started, done=done, all_done=jnp.all(done))
        if grammar is None:
            return rows
        counts = self.started & ~done
        told = jnp.where(counts, self.told + grammar.told[self.owed, token], self.told)
        owed = jnp.where(counts, grammar.owed[self.owed, token], self.owed)
        return dataclasses.replace(rows, told=told, owed=owed)


def choose(logits: Array, key: Array, temperature: float) -> tuple[Array, Array]:
    """The next token int32 [B] from logits [B, V], and the key for the one after it.

    PARITY: the key is split at every step, and a sample is drawn over [B, 1, V]. The first of equal
    logits wins.
    """
    key, step_key = jax.random.split(key)
    if temperature > 0:
        token = jax.random.categorical(step_key, logits[:, None] / temperature, axis=-1)[:, 0]
    else:
        token = jnp.argmax(logits, axis=-1)
    return token.astype(jnp.int32), key


def _pick(
    logits: Array, rows: Rows, key: Array, grammar: Grammar | None, *, temperature: float, stop
):
    """The next token with its probability and the five likeliest, of all that there are."""
    token, key = choose(rows.restrict(logits, grammar), key, temperature)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    own = jnp.take_along_axis(probabilities, token[:, None], axis=-1)[:, 0]
    top, ids = jax.lax.top_k(probabilities, min(5, probabilities.shape[-1]))
    return token, rows.add(token, stop, grammar), key, own, ids, top


class Pi0FastPrograms:
    """The compiled entry points of one model, and the stepwise way to run it from Python."""

    def __init__(self, model: Pi0Fast):
        model = laid_out(model)
        size = ("max_decoding_steps",)
        how = ("temperature", "stop")
        self.embed_images = compiled(model, Pi0Fast.embed_images)
        self.prefill = compiled(
            model, lambda model, *a, **k: model.prefill(*a, **k, last_only=True)[0], size
        )
        self.prefill_attention = compiled(model, Pi0Fast.prefill, size)
        self.sample_actions = compiled(model, Pi0Fast.sample_actions, (*size, *how))
        self.decode_all = compiled(model, Pi0Fast.decode_all, how)

        self._pick = jax.jit(_pick, static_argnames=how)
        self._step_attention = compiled(model, Pi0Fast.decode_step)
        self._step = compiled(model, lambda *args: (Pi0Fast.decode_step(*args)[0], ()))

    def decode(
        self,
        state: DecodeState,
        key: Array | None = None,
        grammar: Grammar | None = None,
        *,
        max_decoding_steps: int,
        temperature: float = 0.0,
        stop: StopAfter | None = None,
        attention: bool = False,
    ) -> Iterator[DecodingStep]:
        """Yields every token as it is written; equal to `decode_all`.

        With `attention` the last token is fed as well, so that its row can be shown.
        """
        step = self._step_attention if attention else self._step
        key = jax.random.key(0) if key is None else key
        rows = Rows.begin(state.logits.shape[0], max_decoding_steps, stop)
        for index in range(max_decoding_steps):
            token, rows, key, *odds = self._pick(
                state.logits, rows, key, grammar, temperature=temperature, stop=stop
            )
            last = bool(rows.all_done) or index + 1 == max_decoding_steps
            weights = ()
            if attention or not last:
                state, weights = step(state, token)
            yield DecodingStep(index, *map(np.asarray, (token, *odds)), tuple(weights))
            if last:
                return
