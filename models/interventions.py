"""Interventions on a run: patched keys and values, hidden or cut connections, a weighted prompt.

Each is data for the entry points of `pi0.py` and `pi0_fast.py`, batched over variants. Terms and
sources: *activation patching* (arXiv 2202.05262) runs the model on one input with some keys and
values of another's run; *attention knockout* (arXiv 2304.14767) forbids connections; guidance by
the prompt is that of Counterfactual Action Guidance (arXiv 2602.17659).

Axes: C variants, N noises, L layers, P prefix tokens, Q suffix tokens, A action horizon, M the
model's action dimensions (of pi0-FAST: decoding steps at most), T tokens of a written chunk.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from models.compiled import compiled
from models.decoding import DecodeOptions, DecodeState
from models.gemma import KVCache
from models.masks import Cuts
from models.observation import Observation
from models.pi0 import Pi0, Prefix, Trajectory, euler_steps, parts
from models.pi0_fast import Pi0Fast


class Patches(NamedTuple):
    """What each variant takes from another run.

    source: keys and values of the other run, one row, its columns in the order of the patched one's
    where: bool [L, C, P], True: the column holds the source's
    missing: bool [L, C, P], columns that what is chosen has nothing for; nobody attends to them
    """

    source: KVCache
    where: Array | np.ndarray
    missing: Array | np.ndarray


def patched(cache: KVCache, source: KVCache, where: Array | np.ndarray) -> KVCache:
    """The cache with the source's keys and values in some places (*activation patching*).

    source: of the same sizes; of one row, like the cache, or of B
    where: bool [L, B, S], True: the place holds the source's
    """

    def choose(own: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
        rows = zip(own, other, where, strict=True)
        return tuple(jnp.where(w[..., None, None], o, x) for x, o, w in rows)

    return KVCache(choose(cache.k, source.k), choose(cache.v, source.v))


def places_of(cache: KVCache, places: Array | np.ndarray) -> KVCache:
    """The keys and values at these places, int [S'], in their order."""
    return jax.tree.map(lambda x: x[:, places], cache)


def slopes(outcome: Callable[[KVCache], Array], cache: KVCache, source: KVCache) -> Array:
    """float32 [L, S]: how fast a number starts to change as one column's keys and values move
    towards the source's, 1 being all the way. One backward pass gives every column (*attribution
    patching*, arXiv 2310.10348); it ranks patches, whose effect need not be linear.

    outcome: the number, from a cache of one row
    """
    gradient = jax.grad(outcome)(cache)

    def along(by: tuple[Array, ...], own: tuple[Array, ...], other: tuple[Array, ...]) -> Array:
        """[L, S]"""
        rows = zip(by, own, other, strict=True)
        moved = [g.astype(jnp.float32) * (o - x).astype(jnp.float32) for g, x, o in rows]
        return jnp.stack([m.sum(axis=(0, 2, 3)) for m in moved])

    return along(gradient.k, cache.k, source.k) + along(gradient.v, cache.v, source.v)


# --- pi0 and pi0.5 ------------------------------------------------------------------------------


def with_noises(
    model: Pi0, prefix: Prefix, observation: Observation, noise: Array, num_steps: int
) -> Array:
    """Each row of the prefix, or of its cuts, with each noise [N, A, M]: chunks [C, N, A, M].
    observation: one row, of which the state alone is used."""
    rows = [prefix.cache.k[0].shape[0]] + ([] if prefix.cuts is None else [prefix.cuts.shape[1]])
    variants, noises = max(rows), len(noise)

    def each(x: Array, axis: int = 0) -> Array:
        """Once for each noise; a single row serves all anyway."""
        return x if x.shape[axis] == 1 else jnp.repeat(x, noises, axis=axis)

    prefix = Prefix(
        jax.tree.map(each, prefix.cache),
        each(prefix.input_mask),
        each(prefix.first_position),
        None if prefix.cuts is None else each(jnp.asarray(prefix.cuts), axis=1),
    )
    state = jnp.repeat(observation.state, variants * noises, axis=0)
    chunks = model.denoise_all(
        prefix,
        dataclasses.replace(observation, state=state),
        jnp.tile(noise, (variants, 1, 1)),
        num_steps,
    ).x_t[-1]
    return chunks.reshape(variants, noises, *noise.shape[1:])


def patched_chunks(
    model: Pi0,
    prefix: Prefix,
    patches: Patches,
    observation: Observation,
    noise: Array,
    num_steps: int,
) -> Array:
    """Chunks [C, N, A, M] of the run with patches: the suffix alone runs again.

    prefix: one row, its `input_mask` True for every column that any variant has something in
    observation, noise: as in `with_noises`
    """
    cache = patched(prefix.cache, patches.source, patches.where)
    prefix = dataclasses.replace(prefix, cache=cache, cuts=_missing(model, patches))
    return with_noises(model, prefix, observation, noise, num_steps)


def _missing(model: Pi0, patches: Patches) -> Array:
    suffix = model.config.suffix_len
    return jnp.pad(patches.missing[:, :, None], ((0, 0), (0, 0), (0, 0), (0, suffix)))


def chunk_slopes(
    model: Pi0,
    prefix: Prefix,
    patches: Patches,
    observation: Observation,
    noise: Array,
    towards: Array,
    num_steps: int,
) -> Array:
    """`slopes` [L, P] of the chunks' product with `towards` [N, A, M].

    patches: of one variant that patches nothing. The rest is as in `patched_chunks`.
    """
    cuts = _missing(model, patches)

    def outcome(cache: KVCache) -> Array:
        run = dataclasses.replace(prefix, cache=cache, cuts=cuts)
        return jnp.sum(with_noises(model, run, observation, noise, num_steps)[0] * towards)

    return slopes(outcome, prefix.cache, patches.source)


def cut_chunks(
    model: Pi0,
    observation: Observation,
    image_tokens: dict[str, Array],
    cuts: Cuts,
    noise: Array,
    num_steps: int,
) -> Array:
    """Chunks [C, N, A, M] of the run with each variant's connections cut, in prefix and suffix.
    observation, image_tokens: one row; cuts: of C rows."""
    rows, tokens = _rows((observation, image_tokens), cuts.prefix.shape[1])
    prefix, _ = model.prefill(rows, tokens, cuts)
    return with_noises(model, prefix, observation, noise, num_steps)


def guided_velocity(
    model: Pi0,
    prefix: Prefix,
    empty: Prefix,
    observation: Observation,
    x_t: Array,
    time: Array,
    guidance: Array,
) -> Array:
    """v_empty + w (v - v_empty) [B, A, M]: how the prompt changes the velocity, w times.

    empty: the prefix of the same observation with an empty prompt; guidance: w. The rest is as in
    `Pi0.velocity`.
    """
    own, _ = model.velocity(prefix, observation, x_t, time)
    without, _ = model.velocity(empty, observation, x_t, time)
    return without + guidance * (own - without)


def denoise_guided(
    model: Pi0,
    prefix: Prefix,
    empty: Prefix,
    observation: Observation,
    x_t: Array,
    guidance: Array,
    times: Array,
    num_steps: Array,
) -> Trajectory:
    """`euler_steps` by `guided_velocity`."""

    def velocity(x_t, time):
        return guided_velocity(model, prefix, empty, observation, x_t, time, guidance), ()

    return euler_steps(velocity, x_t, times, num_steps)


class Pi0Interventions:
    """The compiled interventions on one model. `model`: `laid_out`, as its other programs have
    it."""

    def __init__(self, model: Pi0):
        self.patched = compiled(model, patched_chunks, ("num_steps",))
        self.slopes = compiled(model, chunk_slopes, ("num_steps",))
        self.cut = compiled(model, cut_chunks, ("num_steps",))
        self._steps = compiled(model, denoise_guided)

    def denoise(
        self,
        prefix: Prefix,
        empty: Prefix,
        observation: Observation,
        noise: Array | np.ndarray,
        guidance: float,
        num_steps: int,
        *,
        at_once: bool,
    ) -> Iterator[Trajectory]:
        """`denoise_guided` as `Pi0Programs.denoise` runs, without attention."""

        def run(x_t, times):
            return self._steps(prefix, empty, observation, x_t, guidance, times, num_steps)

        return parts(run, noise, num_steps, at_once)


# --- pi0-FAST -----------------------------------------------------------------------------------


class Written(NamedTuple):
    """Chunks as they were written, to be read by the model again: int32 [K, T], zeros behind the
    end; and how many tokens each has, int32 [K]."""

    tokens: Array | np.ndarray
    count: Array | np.ndarray


def patched_state(state: DecodeState, patches: Patches) -> DecodeState:
    """The state, of one row, for each variant: C rows. Its `visible` is True for every column that
    any variant has something in."""
    variants = patches.where.shape[1]
    room = ((0, 0), (0, 0), (0, state.max_steps))
    where, missing = jnp.pad(patches.where, room), jnp.pad(patches.missing, room)
    cache = patched(state.cache, patches.source, where)
    state = _rows(dataclasses.replace(state, cache=None, step=None), variants)
    return dataclasses.replace(state, cache=cache, step=jnp.int32(0), cuts=missing[:, :, None])


def log_likelihoods(model: Pi0Fast, state: DecodeState, written: Written) -> Array:
    """float32 [C, K]: log p of each chunk's tokens after each row of the state, but for the first
    token, whose probability the prompt's own pass has decided."""
    variants, chunks = len(state.visible), len(written.count)
    rows = _repeated(state, chunks)
    logp = model.log_probabilities_after(rows, jnp.tile(written.tokens, (variants, 1)))
    logp = logp.reshape(variants, chunks, -1)
    valid = jnp.arange(1, written.tokens.shape[1]) < written.count[:, None]
    return jnp.sum(jnp.where(valid, logp, 0.0), axis=-1)


def patched_likelihoods(
    model: Pi0Fast, state: DecodeState, patches: Patches, written: Written
) -> Array:
    """`log_likelihoods` with patches."""
    return log_likelihoods(model, patched_state(state, patches), written)


def odds_slopes(model: Pi0Fast, state: DecodeState, patches: Patches, written: Written) -> Array:
    """`slopes` [L, P] of log p of the first chunk less log p of the second.
    patches: of one variant that patches nothing."""

    def outcome(cache: KVCache) -> Array:
        run = patched_state(dataclasses.replace(state, cache=cache), patches)
        found = log_likelihoods(model, run, written)[0]
        return found[0] - found[1]

    return slopes(outcome, state.cache, patches.source)[:, : patches.where.shape[-1]]


def cut_likelihoods(
    model: Pi0Fast,
    observation: Observation,
    image_tokens: dict[str, Array],
    cuts: Cuts,
    written: Written,
    max_decoding_steps: int,
) -> Array:
    """`log_likelihoods` with each variant's connections cut, in the prefix pass and behind it.
    observation, image_tokens: one row; cuts: of C rows."""
    rows, tokens = _rows((observation, image_tokens), cuts.prefix.shape[1])
    state, _ = model.prefill(
        rows, tokens, cuts, max_decoding_steps=max_decoding_steps, last_only=True
    )
    return log_likelihoods(model, state, written)


def patched_tokens(
    model: Pi0Fast, state: DecodeState, patches: Patches, options: DecodeOptions
) -> Array:
    """The chunks that are written over the patched prefix: int32 [C, M]. The first token is chosen
    by the state's own logits."""
    return model.decode_all(patched_state(state, patches), None, options)


class Pi0FastInterventions:
    """The compiled interventions on one model. `model`: `laid_out`, as its other programs have
    it."""

    def __init__(self, model: Pi0Fast):
        self.patched = compiled(model, patched_likelihoods)
        self.slopes = compiled(model, odds_slopes)
        self.cut = compiled(model, cut_likelihoods, ("max_decoding_steps",))
        self.patched_tokens = compiled(model, patched_tokens)


# --- rows ---------------------------------------------------------------------------------------


def _rows(tree, count: int):
    """Arrays of one row as `count` of them."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), tree)


def _repeated(state: DecodeState, times: int) -> DecodeState:
    """Each row `times` times, one after the other; the cuts' rows are their second axis."""
    cuts = None if state.cuts is None else jnp.repeat(state.cuts, times, axis=1)
    rows = dataclasses.replace(state, step=None, cuts=None)
    rows = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows)
    return dataclasses.replace(rows, step=state.step, cuts=cuts)
