"""What each exact trick is worth: `python -m playground.tools.bench --mid CONFIG.json --tricks`.

A trick is two functions that give the same numbers, without it and with it (tests/test_bench.py
holds them to that). They are called in turn, so that what else the machine does meets both, and the
least CPU-seconds of each count.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from models import masks
from models.compiled import compiled
from models.config import Config, Pi0Config, Pi0FastConfig
from models.decoding import DecodeOptions
from models.gemma import FORBIDDEN, Pair, apply_attention, attention_weights
from models.matmul import laid_out
from models.observation import Observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from models.tokenizer import NUM_SEG
from playground.policies.base import sample_noise, text_places

STEPS, SEEDS = 10, 8


@dataclasses.dataclass(frozen=True, slots=True)
class Trick:
    """CPU-seconds of `what`, without the trick and with it."""

    subject: str
    name: str
    what: str
    without_s: float
    with_s: float


Pairs = dict[str, tuple[str, Callable[[], object], Callable[[], object]]]


def compare(
    subject: str, model: Pi0 | Pi0Fast, observation: Observation, tokens: int, repeats: int
) -> Iterator[Trick]:
    """Every trick of a model's kind; tokens: how many pi0-FAST writes."""
    pairs = flow(model, observation) if isinstance(model, Pi0) else fast(model, observation, tokens)
    return measure(subject, pairs, repeats)


def measure(subject: str, pairs: Pairs, repeats: int) -> Iterator[Trick]:
    """pairs: by the trick's name, what is computed, without and with it."""
    for name, (what, *both) in pairs.items():
        least = [float("inf")] * 2
        for call in both:
            jax.block_until_ready(call())  # compiled here
        for _ in range(repeats):
            for i, call in enumerate(both):
                began = time.process_time()
                jax.block_until_ready(call())
                least[i] = min(least[i], time.process_time() - began)
        yield Trick(subject, name, what, *least)


def trimmed(observation: Observation) -> Observation:
    """Without the text's padding, to the length that a policy would run."""
    places, ar_mask = text_places(np.asarray(observation.token_mask)[0]), observation.token_ar_mask
    return dataclasses.replace(
        observation,
        tokens=observation.tokens[:, :places],
        token_mask=observation.token_mask[:, :places],
        token_ar_mask=None if ar_mask is None else ar_mask[:, :places],
    )


def flow(model: Pi0, observation: Observation) -> Pairs:
    """Of pi0 or pi0.5, for an observation without its masked cameras."""
    config, run = model.config, Pi0Programs(model)
    noise = jnp.asarray(sample_noise(0, SEEDS, config.action_horizon, config.action_dim))
    one, short = noise[:1], trimmed(observation)
    known, everyone = embedded(run, short), with_masked_cameras(config, observation)
    prefix = run.prefill(short, known)
    many = jax.tree.map(lambda x: jnp.repeat(x, SEEDS, axis=0), short)
    # The compiler drops what nobody reads: asking for the outputs keeps the last layer whole.
    whole = compiled(laid_out(model), _prefill_outputs)
    as_stored = compiled(model, Pi0.sample_actions, ("num_steps",))

    def chunk(given):
        return run.sample_actions(given, one, num_steps=STEPS)

    def loop(prefix, draw=one, given=short):
        return run.denoise_all(prefix, given, draw, num_steps=STEPS).x_t[-1]

    def stepwise():
        for step in run.denoise(prefix, short, one, STEPS):
            jax.block_until_ready(step)
        return step.x_t[-1]

    return {
        "masked cameras left out": (
            "chunk",
            lambda: chunk(everyone),
            lambda: chunk(observation),
        ),
        "text padding left out": (
            "chunk",
            lambda: chunk(observation),
            lambda: chunk(short),
        ),
        "image tokens kept": (
            "chunk, new prompt",
            lambda: chunk(short),
            lambda: loop(run.prefill(short, known)),
        ),
        "prefix kept": (
            "chunk, new seed or state",
            lambda: chunk(short),
            lambda: loop(prefix),
        ),
        "weights' rows apart": (
            "chunk",
            lambda: as_stored(short, one, num_steps=STEPS),
            lambda: chunk(short),
        ),
        "last layer: keys and values only": (
            "prefix",
            lambda: whole(short, known)[1],
            lambda: run.prefill(short, known).cache,
        ),
        "seeds in one batch": (
            f"{SEEDS} seeds over one prefix",
            lambda: jnp.concatenate([loop(prefix, noise[i : i + 1]) for i in range(SEEDS)]),
            lambda: loop(prefix, noise, many),
        ),
        "loop compiled whole": (
            f"{STEPS} steps",
            stepwise,
            lambda: loop(prefix),
        ),
        "query heads folded": folded_heads(config, short),
    }


def fast(model: Pi0Fast, observation: Observation, tokens: int) -> Pairs:
    """Of pi0-FAST."""
    config, run, short = model.config, Pi0FastPrograms(model), trimmed(observation)
    how = {"max_decoding_steps": tokens}
    options = DecodeOptions(draft_ids=action_ids(config))
    known = embedded(run, short)
    state = run.prefill(short, known, **how)
    places = config.prefix_len - config.max_token_len + short.tokens.shape[1]
    hidden = jnp.ones((1, places, config.language.width))
    logits = compiled(model, lambda model, hidden: model.gemma.logits(hidden))
    whole = compiled(laid_out(model), lambda model, *a, **k: model.prefill(*a, **k)[0], tuple(how))
    as_stored = compiled(
        model, lambda model, *a, **k: model.prefill(*a, **k, last_only=True)[0], tuple(how)
    )

    def prefill(given, tokens=known):
        return run.prefill(given, tokens, **how).logits

    return {
        "text padding left out": (
            "prefix",
            lambda: prefill(observation),
            lambda: prefill(short),
        ),
        "image tokens kept": (
            "vision and prefix",
            lambda: prefill(short, embedded(run, short)),
            lambda: prefill(short),
        ),
        "logits of the last place only": (
            "logits of a prefix",
            lambda: logits(hidden)[:, -1:],
            lambda: logits(hidden[:, -1:]),
        ),
        "weights' rows apart": (
            "prefix",
            lambda: as_stored(short, known, **how).logits,
            lambda: prefill(short),
        ),
        "last layer: one query only": (
            "prefix",
            lambda: whole(short, known, **how).logits,
            lambda: prefill(short),
        ),
        "loop compiled whole": (
            f"{tokens} tokens",
            lambda: np.concatenate([step.token for step in run.decode(state)]).T,
            lambda: run.decode_all(state),
        ),
        "speculative decoding": (
            f"{tokens} tokens",
            lambda: run.decode_all(state),
            lambda: run.decode_all(state, None, options),
        ),
        "query heads folded": folded_heads(config, short),
    }


def action_ids(config: Pi0FastConfig) -> jax.Array:
    """int32: where openpi puts FAST's 2,048 tokens in a vocabulary of that size (in a small one a
    quarter of it)."""
    last = config.vocab_size - 1 - NUM_SEG
    return jnp.arange(last, last - min(2048, config.vocab_size // 4), -1, jnp.int32)


def let_write_actions(model: Pi0Fast) -> None:
    """Random weights write any token, a trained policy its actions: here too, with their rows of
    the token table at four times the size."""
    table = model.gemma.embedding[...]
    model.gemma.embedding[...] = table.at[action_ids(model.config)].multiply(4)


def embedded(run: Pi0Programs | Pi0FastPrograms, observation: Observation) -> dict[str, jax.Array]:
    """Image tokens by slot, of one pass for all cameras."""
    images = jnp.concatenate(list(observation.images.values()))
    tokens = jnp.split(run.embed_images(images), len(images))
    return dict(zip(observation.images, tokens, strict=True))


def with_masked_cameras(config: Pi0Config, observation: Observation) -> Observation:
    """The cameras that were left out as openpi runs them: black, and masked."""
    size = config.vision.image_size
    black = jnp.full((1, size, size, 3), -1.0)
    return dataclasses.replace(
        observation,
        images=dict.fromkeys(config.image_slots, black) | observation.images,
        image_masks=dict.fromkeys(config.image_slots, jnp.zeros(1, bool)) | observation.image_masks,
    )


def _prefill_outputs(model: Pi0, observation: Observation, known: dict[str, jax.Array]):
    embedded = model.embed_prefix(observation, known)
    mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)
    return model.gemma(Pair(embedded.tokens), masks.positions(embedded.input_mask), mask)[:2]


def folded_heads(config: Config, observation: Observation):
    """Attention alone, of one prefix layer's size: each query head against the one set of keys, and
    all of them as the rows of one matrix product."""
    language, rng = config.language, np.random.default_rng(0)
    n, k, h = language.num_heads, language.num_kv_heads, language.head_dim
    places = len(observation.images) * config.vision.num_tokens + observation.tokens.shape[1]
    shapes = ((1, places, n, h), (1, places, k, h), (1, places, k, h))
    arrays = [jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes]
    mask = jnp.ones((1, places, places), bool)

    @jax.jit
    def by_head(q, keys, values):
        q = q.reshape(1, places, k, n // k, h)
        scores = jnp.einsum("btkgh,bskh->bkgts", q, keys)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, FORBIDDEN), axis=-1)
        return jnp.einsum("bkgts,bskh->btkgh", weights, values).reshape(1, places, n, h)

    @jax.jit
    def folded(q, keys, values):
        return apply_attention(attention_weights(q, keys, mask), values)

    return "attention of one layer", lambda: by_head(*arrays), lambda: folded(*arrays)
