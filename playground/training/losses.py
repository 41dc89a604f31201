"""What training minimises: the models' own losses, and beside them grounding, without which a
small policy trained from nothing learns to move but not to listen.

Grounding asks the image tokens where the cubes are, and the language model's outputs where the
named one is. pi0-FAST is asked two things more: which number the digits of the state mean, and
which coefficients come next. All these heads exist in training only.

Axes: I images, P prompts an image, B = I * P, R noise draws a row, T image tokens, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from models.config import Config, Pi0FastConfig
from models.observation import Observation, uint8_to_float
from models.pi0 import Pi0, draw_noise_and_time
from models.pi0_fast import Pi0Fast, mean_negative, required
from models.tokenizer import NUM_SEG
from playground.tabletop.scene import COLOURS
from playground.training.batches import FAST_PROMPT_LEAST, UPCOMING, Batch

_GROUNDING_WEIGHT = 0.1
_PLACE_WEIGHT = 1.0
_NAMED = 2  # cubes that a prompt may name
_VALUE_WEIGHT, _COUNT_WEIGHT = 1.0, 0.2


class Grounding(nnx.Module):
    """The heads: each cube's patch and place from the image tokens; the named cubes' from the
    language model's outputs, their places also from the words' outputs. The first is the cube that
    is named first, the second the one it is put on or next to."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.cube_patch = nnx.Linear(width, len(COLOURS), rngs=rngs)
        self.cube_place = nnx.Linear(width, 3, rngs=rngs)
        self.named_patch = nnx.Linear(width, _NAMED, rngs=rngs)
        self.named_place = nnx.Linear(width, 3 * _NAMED, rngs=rngs)
        self.word_place = nnx.Linear(width, 3 * _NAMED, rngs=rngs)


class Writing(nnx.Module):
    """pi0-FAST's heads. Where a number of the state ends: its value, and which dimension it is of.
    Before each token of the chunk: the frequency and dimension of the coefficient to come (a chunk
    decodes only if all are written, so the count must be right to the last) and the values of it
    and the next ones."""

    def __init__(self, config: Pi0FastConfig, *, rngs: nnx.Rngs):
        width, dims = config.language.width, config.action_dim
        self.value = nnx.Linear(width, 1, rngs=rngs)
        self.value_of = nnx.Linear(width, dims, rngs=rngs)
        self.upcoming = nnx.Linear(width, UPCOMING, rngs=rngs)
        self.frequency = nnx.Linear(width, config.action_horizon + 1, rngs=rngs)
        self.dimension = nnx.Linear(width, dims, rngs=rngs)


class Trainee(nnx.Module):
    """A policy with its training-only heads."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        if isinstance(config, Pi0FastConfig):
            self.policy: Pi0 | Pi0Fast = Pi0Fast(config, rngs=rngs)
        else:
            self.policy = Pi0(config, rngs=rngs)
        self.grounding = Grounding(config.language.width, rngs=rngs)
        if isinstance(config, Pi0FastConfig):
            self.writing = Writing(config, rngs=rngs)

    @property
    def config(self) -> Config:
        return self.policy.config


def loss(
    trainee: Trainee, batch: Batch, key: Array, draws: int, eased: bool = False
) -> tuple[Array, dict[str, Array]]:
    """The sum to minimise, and its parts with what they mean in centimetres and shares.
    `eased` takes pi0-FAST's tokens of nearly the same coefficients for nearly right."""
    policy = trainee.policy
    image_tokens, tokens = _image_tokens(policy, batch)
    observation = Observation(
        images={},
        image_masks={slot: jnp.ones(len(batch.named), bool) for slot in tokens},
        state=batch.states,
        tokens=batch.tokens,
        token_mask=batch.token_mask,
        token_ar_mask=batch.ar_mask,
        token_loss_mask=batch.loss_mask,
    )
    if isinstance(policy, Pi0Fast):
        alike = batch.alike if eased else None
        main, outputs, words = fast_loss(policy, observation, tokens, alike)
    else:
        main, outputs, words = flow_loss(
            policy, observation, tokens, jnp.asarray(batch.actions), key, draws
        )
    extra, figures = _grounding(trainee.grounding, batch, image_tokens, outputs, words)
    if isinstance(policy, Pi0Fast):
        writing, writing_figures = _writing(trainee.writing, batch, outputs)
        extra, figures = extra + writing, figures | writing_figures
    main = jnp.mean(main)
    return main + extra, {"policy": main, **figures}


def _image_tokens(policy: Pi0 | Pi0Fast, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """(image tokens [I, C, T, D] of the cameras, the same by slot [B, T, D])."""
    images = _all_images(batch)
    tokens = policy.embed_images(images.reshape(-1, *images.shape[2:]))  # [I * C, T, D]
    tokens = tokens.reshape(*images.shape[:2], *tokens.shape[1:])
    prompts = len(batch.named) // len(images)
    by_slot = {
        slot: jnp.repeat(tokens[:, camera], prompts, axis=0)
        for camera, slot in enumerate(policy.config.image_slots)
    }
    return tokens, by_slot


def _all_images(batch: Batch) -> Array:
    """float32 [I, C, size, size, 3], the table's camera first."""
    images = jnp.concatenate([batch.images[:, None], batch.wrist_images], axis=1)
    return jnp.asarray(uint8_to_float(images))


def flow_loss(
    policy: Pi0,
    observation: Observation,
    image_tokens: dict[str, Array],
    actions: Array,
    key: Array,
    draws: int,
) -> tuple[Array, Array, Array]:
    """`Pi0.compute_loss` with one prefix pass for `draws` draws of noise and time: (loss
    [B * R, A], the language model's outputs [B, P, D], which of them are words, bool [B, P])."""
    prefix, passed = policy.run_prefix(observation, image_tokens)
    drawn, repeated, actions = jax.tree.map(
        lambda x: jnp.repeat(x, draws, axis=0), (prefix, observation, actions)
    )
    noise_key, time_key = jax.random.split(key)
    noise, time = draw_noise_and_time(noise_key, time_key, actions)
    loss = policy.compute_loss_over_prefix(drawn, repeated, actions, noise, time)
    words = prefix.input_mask.at[:, : -observation.tokens.shape[1]].set(False)
    (outputs,) = passed.outputs.present()
    return loss, outputs, words


def fast_loss(
    policy: Pi0Fast,
    observation: Observation,
    image_tokens: dict[str, Array],
    alike: Array | np.ndarray | None = None,
) -> tuple[Array, Array, Array]:
    """`Pi0Fast.compute_loss`, but with each token where decoding will put it (one position later
    than openpi trains): (loss [B], outputs [B, P - 1, D], which of them are the prompt's words,
    bool [B, P - 1]).

    `alike` (see `batches.alike`) spreads what is wanted of an action token over its neighbours.
    """
    outputs, _ = policy.forward(observation, image_tokens, as_decoded=True)
    length = observation.tokens.shape[1]
    # Nothing is asked of the prompt's first tokens; logits are a fifth of all the work.
    skipped = FAST_PROMPT_LEAST - 1
    hidden = outputs[:, -(length - 1) :][:, skipped:]
    logp = jax.nn.log_softmax(policy.gemma.logits(hidden), axis=-1)
    targets = observation.tokens[:, 1 + skipped :]
    target_logp = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    if alike is not None:
        first = policy.config.vocab_size - NUM_SEG - len(alike)
        is_action = (targets >= first) & (targets < first + len(alike))
        odds = alike[jnp.where(is_action, targets - first, 0)]
        spread = jnp.sum(odds * logp[..., first : first + len(alike)], axis=-1)
        target_logp = jnp.where(is_action, spread, target_logp)
    loss = mean_negative(target_logp, required(observation.token_loss_mask)[:, 1 + skipped :])
    prompt = observation.token_mask & (required(observation.token_ar_mask) == 0)
    words = jnp.zeros(outputs.shape[:2], bool).at[:, -(length - 1) :].set(prompt[:, :-1])
    return loss, outputs, words


def sight_loss(trainee: Trainee, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Where the cubes are, from SigLIP alone: what training begins with, for a fraction of the
    work of the whole."""
    image_tokens, _ = _image_tokens(trainee.policy, batch)
    patches, places, figures = _cubes(trainee.grounding, batch, image_tokens)
    return _GROUNDING_WEIGHT * patches + _PLACE_WEIGHT * places, figures


_softmax = optax.softmax_cross_entropy_with_integer_labels


def _cubes(
    heads: Grounding, batch: Batch, image_tokens: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """image_tokens [I, C, T, D]: (loss of the cubes' patches, of their places, figures). Every
    camera is asked for the patches, the table's alone, which never moves, for the places."""
    patches = jnp.concatenate([batch.patches[:, None], batch.wrist_patches], axis=1)  # [I, C, 3]
    found = heads.cube_patch(image_tokens).swapaxes(2, 3)  # [I, C, 3, T]
    shown = patches >= 0
    unsure = _softmax(found, jnp.maximum(patches, 0)) * shown
    table = image_tokens[:, 0]
    at_cubes = jnp.take_along_axis(table, batch.patches[:, :, None], axis=1)  # [I, 3, D]
    off = jnp.mean(jnp.abs(heads.cube_place(at_cubes) - batch.places))
    right = jnp.sum((jnp.argmax(found, -1) == patches) * shown) / jnp.sum(shown)
    figures = {"cube patch right": right, "cube place off": off}
    return jnp.sum(unsure) / jnp.sum(shown), off, figures


def _writing(heads: Writing, batch: Batch, outputs: Array) -> tuple[Array, dict[str, Array]]:
    """outputs [B, P, D] of pi0-FAST, text last: (the weighted sum, figures)."""
    text = outputs[:, -(batch.tokens.shape[1] - 1) :]
    read = jnp.take_along_axis(text, batch.numbers[:, :, None], axis=1)  # [B, 14, D]
    # The prompt holds the state in bins from -1 to 1.
    value_off = jnp.mean(jnp.abs(heads.value(read)[..., 0] - jnp.clip(batch.states, -1, 1)))
    logits = heads.value_of(read)
    order = jnp.broadcast_to(jnp.arange(logits.shape[1]), logits.shape[:2])
    unsure = jnp.mean(_softmax(logits, order))
    read_right = jnp.mean(jnp.argmax(logits, -1) == order)

    counts = batch.counts[:, :-1]
    asked, dims = counts >= 0, heads.dimension.out_features
    total = jnp.sum(asked)
    right = asked
    for head, answer in ((heads.frequency, counts // dims), (heads.dimension, counts % dims)):
        logits, answer = head(text), jnp.maximum(answer, 0)
        unsure += jnp.sum(_softmax(logits, answer) * asked) / total
        right &= jnp.argmax(logits, -1) == answer
    off = jnp.abs(heads.upcoming(text) - batch.upcoming[:, :-1])
    off = jnp.sum(off * asked[:, :, None]) / (total * off.shape[-1])
    figures = {
        "state off": value_off,
        "state dimension right": read_right,
        "count right": jnp.sum(right) / total,
        "upcoming off": off,
    }
    return _VALUE_WEIGHT * (value_off + off) + _COUNT_WEIGHT * unsure, figures


def _grounding(
    heads: Grounding, batch: Batch, image_tokens: Array, outputs: Array, words: Array
) -> tuple[Array, dict[str, Array]]:
    """image_tokens [I, C, T, D] from SigLIP, outputs [B, P, D] of the language model with the
    table's camera first: (the weighted sum, figures)."""
    cube_patches, cube_places, figures = _cubes(heads, batch, image_tokens)
    rows = jnp.arange(len(batch.named))
    look = rows // (len(batch.named) // len(batch.images))
    pictured = outputs[:, : image_tokens.shape[2]]  # [B, T, D]

    def mean(part: Array, asked: Array | np.ndarray) -> Array:
        return jnp.sum(jnp.where(asked, part, 0.0)) / jnp.maximum(jnp.sum(asked), 1)

    patches, places = cube_patches, cube_places
    for which, (name, cubes) in enumerate((("named", batch.named), ("other", batch.others))):
        asked, cubes = cubes >= 0, jnp.maximum(cubes, 0)
        patch, place = batch.patches[look, cubes], batch.places[look, cubes]  # [B], [B, 3]
        logits = heads.named_patch(pictured)[..., which]  # [B, T]
        axes = slice(3 * which, 3 * which + 3)
        place_off = jnp.abs(heads.named_place(pictured[rows, patch])[:, axes] - place).mean(-1)
        words_off = jnp.abs(heads.word_place(outputs)[..., axes] - place[:, None]).mean(-1)
        words_off = jnp.sum(words_off * words, axis=1) / jnp.sum(words, axis=1)
        figures |= {
            f"{name} patch right": mean(jnp.argmax(logits, -1) == patch, asked),
            f"{name} place off": mean(place_off, asked),
            f"{name} place off in words": mean(words_off, asked),
        }
        patches += mean(_softmax(logits, patch), asked)
        places += mean(place_off + words_off, asked)
    return _GROUNDING_WEIGHT * patches + _PLACE_WEIGHT * places, figures
