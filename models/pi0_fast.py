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

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from models import decoding, decoding_parts, masks
from models.compiled import compiled
from models.config import Pi0FastConfig
from models.decoding import GREEDY, DecodeOptions, DecodeState, TokenBuffer
from models.decoding_parts import WrittenTokens
from models.embedded import Embedded, cameras_and_text, present_slots
from models.gemma import Gemma, KVCache, Pair, WriteCache
from models.masks import Cuts
from models.matmul import laid_out
from models.observation import Observation
from models.siglip import Siglip

BLOCK = 16  # tokens that one program writes before the next can be stopped


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
        SigLIP.

        A slot that the observation leaves out takes no columns. That is not the same as a black
        camera, which is attended to: only training does so, at first.
        """
        slots = self.config.image_slots
        tokens, input_mask = cameras_and_text(
            slots, self.vision, self.gemma, observation, image_tokens
        )
        cameras = tokens.shape[1] - observation.tokens.shape[1]
        ar_mask = jnp.pad(required(observation.token_ar_mask), ((0, 0), (cameras, 0)))
        return Embedded(tokens, input_mask, ar_mask)

    @property
    def _position_gap(self) -> int:
        """PARITY: openpi leaves one position out between the prefix and the tokens it decodes (its
        open thread 705); the published weights are used this way."""
        return 1 if self.config.convention == "openpi" else 0

    # --- training -------------------------------------------------------------------------------

    def forward(
        self,
        observation: Observation,
        image_tokens: dict[str, Array] | None = None,
        *,
        as_decoded: bool = False,
    ) -> tuple[Array, list[Array]]:
        """One pass over all tokens but the last.

        as_decoded: each token stands where decoding will put it, not where openpi trains it

        Returns outputs [B, P - 1, D], of which row i predicts token i + 1, and attention
        [B, N, P - 1, P - 1] a layer.
        """
        embedded = self.embed_inputs(observation, image_tokens)
        mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)[:, :-1, :-1]
        if as_decoded:
            positions = self._decoded_positions(observation)[:, :-1]
        elif self.config.convention == "openpi":
            # PARITY: they run over every place here, masked or not; decoding counts valid ones.
            positions = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape[:2])
        else:
            positions = masks.positions(embedded.input_mask[:, :-1])
        passed = self.gemma(Pair(prefix=embedded.tokens[:, :-1]), positions, mask)
        (outputs,) = passed.outputs.present()
        return outputs, passed.attention

    def _decoded_positions(self, observation: Observation) -> Array:
        """int [B, P]: where prefill and decoding put each token, had every camera been valid."""
        text = masks.positions(jnp.asarray(observation.token_mask)) + self._position_gap * (
            required(observation.token_ar_mask) > 0
        )
        each, slots = self.config.vision.num_tokens, self.config.image_slots
        cameras = [i * each + jnp.arange(each) for i, slot in enumerate(slots)
                   if slot in present_slots(slots, observation)]  # fmt: skip
        cameras = jnp.broadcast_to(jnp.concatenate(cameras), (len(text), len(cameras) * each))
        return jnp.concatenate([cameras, len(slots) * each + text], axis=1)

    def log_probabilities(self, observation: Observation) -> Array:
        """float32 [B, L - 1]: the log-probability of text token i + 1 given all before it."""
        outputs, _ = self.forward(observation)
        hidden = outputs[:, -(observation.tokens.shape[1] - 1) :]
        logp = jax.nn.log_softmax(self.gemma.logits(hidden), axis=-1).astype(jnp.float32)
        return jnp.take_along_axis(logp, observation.tokens[:, 1:, None], axis=-1)[..., 0]

    def compute_loss(self, observation: Observation) -> Array:
        """Mean negative log-likelihood of the tokens in `token_loss_mask`: float32 [B].

        A row without such tokens costs 0. No randomness: nothing is drawn here.
        """
        logp = self.log_probabilities(observation)
        return mean_negative(logp, required(observation.token_loss_mask)[:, 1:])

    # --- sampling -------------------------------------------------------------------------------

    def prefill(
        self,
        observation: Observation,
        image_tokens: dict[str, Array] | None = None,
        cuts: Cuts | None = None,
        *,
        max_decoding_steps: int,
        last_only: bool = False,
    ) -> tuple[DecodeState, list[Array]]:
        """The prefix pass, aligned to the right: (state, attention [B, N, P, P + M] a layer).

        With `last_only` the last layer runs for the last place alone, which is all that the logits
        need: its attention is [B, N, 1, P + M]. cuts: connections that this pass, and every token
        written after it, goes without; their columns are those of the aligned prefix.
        """
        embedded = self.embed_inputs(observation, image_tokens)
        shift = masks.right_align_shift(embedded.input_mask)
        tokens, input_mask, ar_mask = (masks.roll_rows(jnp.asarray(x), shift) for x in embedded)
        mask = masks.block_causal(input_mask, ar_mask)
        # The empty places to come take part as forbidden keys. That matters to nobody but rows
        # without any allowed key. PARITY: openpi's generated tokens can see such rows when a camera
        # in the middle is masked.
        room = ((0, 0), (0, 0), (0, max_decoding_steps))
        mask = jnp.pad(mask, room)
        in_prefix, in_decoding = cuts or (None, None)
        if in_prefix is not None:
            in_prefix = jnp.pad(in_prefix, ((0, 0), *room))
        cache = KVCache.empty(self.config.language, len(mask), mask.shape[2], self.gemma.dtype)
        outputs, cache, attention = self.gemma(
            Pair(prefix=tokens),
            masks.positions(input_mask),
            masks.cut(mask, in_prefix),
            cache=WriteCache(cache, start=0),
            last_only=last_only,
        )
        visible = masks.visible_to_decoded(input_mask, self.config.convention)
        position = jnp.sum(input_mask, axis=1) + self._position_gap
        (hidden,) = outputs.present()
        logits, step = self.gemma.logits(hidden[:, -1]), jnp.int32(0)
        return DecodeState(cache, visible, position, logits, step, in_decoding), attention

    def feed(self, state: DecodeState, token: Array) -> tuple[DecodeState, Array, list[Array]]:
        """Runs token int [B]: (the next state with its old logits, the hidden state [B, D] that the
        next logits are made from, attention [B, N, 1, P + M] a layer)."""
        mask = masks.decode_mask(state.visible, state.step, state.prefix_len + state.max_steps)
        outputs, cache, attention = self.gemma(
            Pair(prefix=self.gemma.embed(token[:, None])),
            (state.first_position + state.step)[:, None],
            masks.cut(mask, state.cuts),
            cache=WriteCache(state.cache, start=state.prefix_len + state.step),
        )
        state = dataclasses.replace(state, cache=cache, step=state.step + 1)
        (hidden,) = outputs.present()
        return state, hidden[:, 0], attention

    def decode_step(self, state: DecodeState, token: Array) -> tuple[DecodeState, list[Array]]:
        """`feed` with the next logits in the state: (the next state, attention)."""
        state, hidden, attention = self.feed(state, token)
        return dataclasses.replace(state, logits=self.gemma.logits(hidden)), attention

    def log_probabilities_after(self, state: DecodeState, tokens: Array) -> Array:
        """Of tokens int [B, T] after a prefix that has run, all of them in one pass: float32
        [B, T - 1], the log-probability of token i + 1 given the prefix and the tokens up to i.

        state: with nothing fed yet and room for T tokens. The first token's own is in its logits.
        """
        count = tokens.shape[1]
        steps = jnp.arange(count)
        total = state.prefix_len + state.max_steps
        outputs, _, _ = self.gemma(
            Pair(prefix=self.gemma.embed(tokens)),
            state.first_position[:, None] + steps,
            masks.cut(masks.decode_mask(state.visible, steps[:, None], total), state.cuts),
            cache=WriteCache(state.cache, start=state.prefix_len),
        )
        (hidden,) = outputs.present()
        logits = self.gemma.logits(hidden[:, :-1])
        logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]

    def sample_actions(
        self,
        observation: Observation,
        key: Array | None = None,
        options: DecodeOptions = GREEDY,
        *,
        max_decoding_steps: int = 256,
    ) -> Array:
        """The written tokens, int32 [B, M], zeros after the end. key: for a temperature above 0."""
        state, _ = self.prefill(observation, max_decoding_steps=max_decoding_steps, last_only=True)
        return self.decode_all(state, key, options)

    def decode_all(
        self,
        state: DecodeState,
        key: Array | None = None,
        options: DecodeOptions = GREEDY,
    ) -> Array:
        """`sample_actions` over a prefix that has run."""
        return decoding.decode_all(self, state, _or_any(key), options)


def mean_negative(logp: Array, loss_mask: Array | np.ndarray) -> Array:
    """-logp [B, T] meaned over the tokens in loss_mask bool [B, T]; 0 where there are none."""
    return -jnp.sum(logp * loss_mask, axis=-1) / jnp.maximum(jnp.sum(loss_mask, axis=-1), 1)


def required(mask: Array | np.ndarray | None) -> Array | np.ndarray:
    """A mask of an observation that pi0-FAST reads and pi0 does without. Raises ValueError for
    None."""
    if mask is None:
        raise ValueError(
            "pi0-FAST needs an observation's token_ar_mask, and its loss token_loss_mask; none came"
        )
    return mask


def _or_any(key: Array | None) -> Array:
    """For greedy decoding, which draws nothing."""
    return jax.random.key(0) if key is None else key


def _state_alone(model: Pi0Fast, *args, **how) -> DecodeState:
    return model.prefill(*args, **how, last_only=True)[0]


class Pi0FastPrograms:
    """The compiled entry points of one model."""

    def __init__(self, model: Pi0Fast):
        model = laid_out(model)
        size = ("max_decoding_steps",)
        self.embed_images = compiled(model, Pi0Fast.embed_images)
        self.prefill = compiled(model, _state_alone, size)
        self.prefill_attention = compiled(model, Pi0Fast.prefill, size)
        self.sample_actions = compiled(model, Pi0Fast.sample_actions, size)
        self.decode_all = compiled(model, Pi0Fast.decode_all)
        self._some = compiled(model, decoding_parts.decode_some, ("size", "attention"))

    def decode(
        self,
        state: DecodeState,
        key: Array | None = None,
        options: DecodeOptions = GREEDY,
        *,
        attention: bool = False,
        at_once: bool = False,
    ) -> Iterator[WrittenTokens]:
        """The tokens of `decode_all` one by one, each as it is written, or BLOCK by one program at
        once; NumPy's arrays."""
        how = {"size": BLOCK if at_once else 1, "attention": attention}
        buffer, key = self._begun(state, key, options)
        unfinished = True
        while unfinished:
            state, buffer, key, *part = self._some(state, buffer, key, options, **how)
            written, count, unfinished = jax.device_get(part)
            yield jax.tree.map(lambda x: x[:count], written)  # noqa: B023

    def decode_ahead(self, state: DecodeState, options: DecodeOptions, *, at_once: bool) -> None:
        """Compiles what `decode` runs, of shapes."""
        buffer, key = self._begun(state, None, options)
        size = BLOCK if at_once else 1
        self._some.ahead(state, buffer, key, options, size=size, attention=False)

    @staticmethod
    def _begun(
        state: DecodeState, key: Array | None, options: DecodeOptions
    ) -> tuple[TokenBuffer, Array]:
        """Placed like what a part leaves to the next: else that would be a program of its own."""
        buffer = TokenBuffer.empty(len(state.logits), state.max_steps, options)
        return jax.device_put((buffer, _or_any(key)), state.logits.sharding)
