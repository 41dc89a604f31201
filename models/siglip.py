"""SigLIP vision transformer: an image becomes a row of tokens in the language model's width.

Axes: B batch, T tokens (patches in row-major order), N heads, H head dimension, W width.
Source: big_vision's `models/vit.py` as openpi's `models/siglip.py` configures it, for the formulas.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.config import VisionConfig
from models.matmul import Linear


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, dtype, rngs: nnx.Rngs):
        w = config.width
        linear = dict(dtype=dtype, rngs=rngs)
        norm: dict[str, Any] = dict(epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads
        self.attention_norm = nnx.LayerNorm(w, **norm)
        self.query = Linear(w, w, **linear)
        self.key = Linear(w, w, **linear)
        self.value = Linear(w, w, **linear)
        self.out = Linear(w, w, **linear)
        self.mlp_norm = nnx.LayerNorm(w, **norm)
        self.mlp_in = Linear(w, config.mlp_dim, **linear)
        self.mlp_out = Linear(config.mlp_dim, w, **linear)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        """x [B, T, W] to (x [B, T, W], its intermediates: the two branches and the residual)."""
        y = self.attention_norm(x)
        b, t, w = y.shape
        heads = (b, t, self.num_heads, w // self.num_heads)
        q, k, v = (proj(y).reshape(heads) for proj in (self.query, self.key, self.value))
        q = q / jnp.sqrt(heads[-1]).astype(q.dtype)
        # PARITY: softmax in the compute dtype, unlike Gemma's float32.
        weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k), axis=-1)
        attended = self.out(jnp.einsum("bnts,bsnh->btnh", weights, v).reshape(b, t, w))
        x_attended = x + attended
        hidden = nnx.gelu(self.mlp_in(self.mlp_norm(x_attended)), approximate=True)
        mlp = self.mlp_out(hidden)
        return x_attended + mlp, {
            "attention": attended,
            "after_attention": x_attended,
            "mlp": mlp,
            "weights": weights,
        }


class Siglip(nnx.Module):
    """Patches, position embedding, blocks, final norm, and a head to the language width."""

    def __init__(self, config: VisionConfig, out_width: int, *, dtype, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        patch_values = config.patch_size**2 * 3
        self.patch_embedding = nnx.Linear(patch_values, config.width, dtype=jnp.float32, rngs=rngs)
        init = nnx.initializers.normal(config.width**-0.5)
        self.position_embedding = nnx.Param(
            init(rngs.params(), (config.num_tokens, config.width), jnp.float32)
        )
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.final_norm = nnx.LayerNorm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.head = Linear(config.width, out_width, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array) -> tuple[Array, dict[str, Any]]:
        """images float32 [B, size, size, 3] in [-1, 1] to (tokens [B, T, D], intermediates).

        The intermediates are named `stem`, `embedded`, `blocks` (a list, one dict a block) and
        `encoded`; a compiled caller that drops them pays nothing for them.
        """
        # The patch convolution is a matrix product over non-overlapping patches. It and the
        # position embedding stay in float32 whatever the compute dtype.
        b, size, p = images.shape[0], self.config.image_size, self.config.patch_size
        n = size // p
        patches = images.astype(jnp.float32).reshape(b, n, p, n, p, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, p * p * 3)
        stem = self.patch_embedding(patches)  # [B, T, W]
        embedded = stem + self.position_embedding[...]
        x = embedded.astype(self.dtype)
        blocks = []
        for block in self.blocks:
            x, inner = block(x)
            blocks.append({**inner, "after_mlp": x})
        encoded = self.final_norm(x)
        tokens = self.head(encoded)
        return tokens, {"stem": stem, "embedded": embedded, "blocks": blocks, "encoded": encoded}
