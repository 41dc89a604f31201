"""The tokens that a model's prefix is made of: cameras, then text.

Axes: B batch, T tokens, D width.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from models.gemma import Gemma
from models.observation import Observation
from models.siglip import Siglip


class Embedded(NamedTuple):
    """A run of tokens [B, T, D], which of them are valid, bool [B, T], and which open a block of
    the mask, bool or int [T] or [B, T] (see `masks.block_causal`)."""

    tokens: Array
    input_mask: Array
    ar_mask: Array | np.ndarray


def present_slots(slots: tuple[str, ...], observation: Observation) -> list[str]:
    """The slots that the observation does not leave out, in the model's order."""
    return [slot for slot in slots if slot in observation.image_masks]


def cameras_and_text(
    slots: tuple[str, ...],
    vision: Siglip,
    gemma: Gemma,
    observation: Observation,
    image_tokens: dict[str, Array] | None = None,
) -> tuple[Array, Array]:
    """(tokens [B, T, D], which of them are valid, bool [B, T]).

    slots: the model's cameras in their order; one that the observation leaves out takes no columns
    vision, gemma: what embeds pictures and text
    observation: its images are not read where image_tokens are given
    image_tokens: by slot, [B, tokens a camera, D], in place of the pass through SigLIP
    """
    present = present_slots(slots, observation)
    if image_tokens is None:
        images = jnp.concatenate([observation.images[slot] for slot in present])
        cameras = jnp.split(vision(images)[0], len(present))
    else:
        cameras = [image_tokens[slot] for slot in present]
    valid = [
        jnp.broadcast_to(observation.image_masks[slot][:, None], tokens.shape[:2])
        for slot, tokens in zip(present, cameras, strict=True)
    ]
    tokens = jnp.concatenate([*cameras, gemma.embed(observation.tokens)], axis=1)
    return tokens, jnp.concatenate([*valid, observation.token_mask], axis=1)
