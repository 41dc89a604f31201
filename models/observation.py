"""What a model is given: one pytree, already at the model's sizes (openpi's `models/model.py`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from models.config import Config

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
    """A batch of observations. B batch, L text tokens, size the side of the model's images.

    images: by slot, float32 [B, size, size, 3] in [-1, 1]
    image_masks: by slot, bool [B]; False hides the slot's tokens from everybody
    state: float32 [B, action_dim], normalised and padded with zeros; only pi0 uses it, pi0.5's and
        pi0-FAST's prompts hold it
    tokens: int32 [B, L], padded on the right
    token_mask: bool [B, L]
    token_ar_mask: int32 [B, L], 1 where a token opens a new causal block (pi0-FAST's postfix)
    token_loss_mask: bool [B, L], the tokens that pi0-FAST's loss is taken over
    """

    images: dict[str, Array]
    image_masks: dict[str, Array]
    state: Array
    tokens: Array
    token_mask: Array
    token_ar_mask: Array | None = None
    token_loss_mask: Array | None = None

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]


def uint8_to_float(image: Array) -> Array:
    """uint8 [..., 3] to float32 in [-1, 1], in openpi's order of operations: x / 255 * 2 - 1."""
    return image.astype(np.float32) / 255.0 * 2.0 - 1.0


def example_observation(config: Config, batch_size: int = 1) -> Observation:
    """An all-valid observation of zeros with the right shapes, for shape evaluation and warm-up."""
    size, length = config.vision.image_size, config.max_token_len
    return Observation(
        images={
            slot: jnp.zeros((batch_size, size, size, 3), jnp.float32) for slot in config.image_slots
        },
        image_masks={slot: jnp.ones((batch_size,), bool) for slot in config.image_slots},
        state=jnp.zeros((batch_size, config.action_dim), jnp.float32),
        tokens=jnp.zeros((batch_size, length), jnp.int32),
        token_mask=jnp.ones((batch_size, length), bool),
        token_ar_mask=jnp.zeros((batch_size, length), jnp.int32),
        token_loss_mask=jnp.zeros((batch_size, length), bool),
    )
