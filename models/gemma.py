"""Gemma decoder for one expert, or for a pair that shares one attention (mixture of transformers).

Axes: B batch, T query tokens, S key tokens, N query heads, K kv heads, G = N / K, H head dimension,
D width, F MLP width. Sources: Gemma report (arXiv 2403.08295), pi0 paper (arXiv 2410.24164, IV),
openpi's `models/gemma.py` and `models/gemma_fast.py` for the numerics.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.config import ExpertConfig
from models.matmul import Kernel, dot

# What a forbidden place gets instead of its score; openpi's constant, finite in float32.
FORBIDDEN = -2.3819763e38
ROPE_MAX_WAVELENGTH = 10_000


class Pair(NamedTuple):
    """Something of each expert: the vision-language prefix and the action suffix."""

    prefix: object = None
    suffix: object = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (after RoPE) and values of every layer: tuples of [B, S, K, H] in the compute dtype."""

    k: tuple[Array, ...]
    v: tuple[Array, ...]


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), in float32, returned in x's type. Its gate is None: no gate."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros((width,), jnp.float32))

    def modulate(self, condition: Array | None) -> None:
        """Nothing depends on a condition here."""

    def __call__(self, x: Array, modulation: None) -> tuple[Array, None]:
        return (_normalise(x) * (1 + self.scale[...])).astype(x.dtype), None


class AdaRMSNorm(nnx.Module):
    """RMSNorm whose scale, shift and residual gate come from a condition (pi0.5's time)."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(width, 3 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def modulate(self, condition: Array) -> Array:
        """condition [B, D] to scale, shift and gate, [B, 1, 3 D]."""
        return self.modulation(condition)[:, None, :]

    def __call__(self, x: Array, modulation: Array) -> tuple[Array, Array]:
        """x [B, T, D], modulation [B, 1, 3 D] to (normed [B, T, D], gate [B, 1, D])."""
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        return (_normalise(x) * (1 + scale) + shift).astype(x.dtype), gate


def _normalise(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Block(nnx.Module):
    """One expert's share of a layer: its norms, projections and MLP. No biases anywhere."""

    def __init__(self, config: ExpertConfig, *, adaptive: bool, dtype, rngs: nnx.Rngs):
        d, n, k, h = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        init = nnx.initializers.lecun_normal()
        self.config = config

        def kernel(rows: int, columns: int) -> Kernel:
            return Kernel(init(rngs.params(), (rows, columns), jnp.float32))

        self.attention_norm = _norm(d, adaptive, dtype, rngs)
        self.query = kernel(d, n * h)
        self.key = kernel(d, k * h)
        self.value = kernel(d, k * h)
        self.out = kernel(n * h, d)
        self.mlp_norm = _norm(d, adaptive, dtype, rngs)
        self.gate = kernel(d, config.mlp_dim)
        self.up = kernel(d, config.mlp_dim)
        self.down = kernel(config.mlp_dim, d)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """Normed x [B, T, D] to q [B, T, N, H], k and v [B, T, K, H]."""
        c = self.config
        q = dot(x, self.query).reshape(*x.shape[:2], c.num_heads, c.head_dim)
        k = dot(x, self.key).reshape(*x.shape[:2], c.num_kv_heads, c.head_dim)
        v = dot(x, self.value).reshape(*x.shape[:2], c.num_kv_heads, c.head_dim)
        return q, k, v

    def finish(self, x: Array, attended: Array, gate, modulation) -> Array:
        """Output projection of attended [B, T, N, H], residual, MLP, residual."""
        x = _residual(x, dot(attended.reshape(*x.shape[:2], -1), self.out), gate)
        y, gate = self.mlp_norm(x, modulation)
        y = dot(nnx.gelu(dot(y, self.gate), approximate=True) * dot(y, self.up), self.down)
        return _residual(x, y, gate)


def _norm(width: int, adaptive: bool, dtype, rngs: nnx.Rngs) -> RMSNorm | AdaRMSNorm:
    return AdaRMSNorm(width, dtype=dtype, rngs=rngs) if adaptive else RMSNorm(width)


def _residual(x: Array, branch: Array, gate: Array | None) -> Array:
    return x + branch if gate is None else x + branch * gate


class Expert(nnx.Module):
    """The weights of one decoder."""

    def __init__(self, config: ExpertConfig, *, adaptive: bool, dtype, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [Block(config, adaptive=adaptive, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        )
        self.final_norm = _norm(config.width, adaptive, dtype, rngs)

    def modulate(self, condition: Array | None) -> list:
        """What a condition [B, D] (None: there is none) makes of each norm, in their order."""
        norms = [norm for block in self.blocks for norm in (block.attention_norm, block.mlp_norm)]
        return [norm.modulate(condition) for norm in (*norms, self.final_norm)]


class Gemma(nnx.Module):
    """A token table, the language expert, and (pi0, pi0.5) the action expert beside it.

    `float32_query`: PARITY: the Gemma that FAST uses leaves the rotated query in float32; pi0's
    rounds it to the compute dtype. They are equal in float32.
    """

    def __init__(
        self,
        vocab_size: int,
        language: ExpertConfig,
        action: ExpertConfig | None,
        *,
        adaptive_action: bool,
        float32_query: bool,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.float32_query = float32_query
        init = nnx.initializers.normal(language.width**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, language.width), jnp.float32))
        self.language = Expert(language, adaptive=False, dtype=dtype, rngs=rngs)
        if action is not None:
            self.action = Expert(action, adaptive=adaptive_action, dtype=dtype, rngs=rngs)
        else:
            self.action = None

    def embed(self, tokens: Array) -> Array:
        """int [B, T] to [B, T, D]: rows of the table times sqrt(D), in the compute dtype."""
        rows = self.embedding[...][tokens]
        return (rows * jnp.sqrt(rows.shape[-1]).astype(rows.dtype)).astype(self.dtype)

    def logits(self, hidden: Array, rows: Array | None = None) -> Array:
        """[..., D] to [..., V]: the same table transposed, or `rows` [V, D] of it, in the wider of
        both types."""
        table = self.embedding[...] if rows is None else rows
        dtype = jnp.promote_types(hidden.dtype, table.dtype)
        return jnp.einsum("...d,vd->...v", hidden.astype(dtype), table.astype(dtype))

    def __call__(
        self,
        tokens: Pair,
        positions: Array,
        mask: Array,
        *,
        modulation: list | None = None,
        cache: KVCache | None = None,
        write_at: Array | int | None = None,
        last_only: bool = False,
    ) -> tuple[Pair, KVCache, list[Array]]:
        """Runs the present experts through all layers.

        tokens: [B, T_i, D_i] of each expert that takes part, None for one that does not. positions
        int [B, T] and mask bool [B, T, S] run over prefix then suffix. modulation: of the action
        expert's norms (`Expert.modulate`), if it takes part. cache: without `write_at` it is read
        only and its keys come before the new ones, those of one row before the new ones of all;
        with `write_at` the new keys are written into it there. last_only: the caller reads nothing
        but the last token's output, so in the last layer nobody else asks; only for a single
        expert.

        Returns the experts' outputs after their final norms, the keys and values that were attended
        to (without those that rows share), and each layer's attention weights, float [B, N, T, S].
        """
        experts = Pair(
            self.language if tokens.prefix is not None else None,
            self.action if tokens.suffix is not None else None,
        )
        present = [i for i, expert in enumerate(experts) if expert is not None]
        modulations = (self.language.modulate(None), modulation)
        x = {i: tokens[i].astype(self.dtype) for i in present}
        splits = [sum(x[i].shape[1] for i in present[:j]) for j in range(1, len(present))]
        rotation = _rotation(positions, experts[present[0]].blocks[0].config.head_dim)
        keys, values, attention = [], [], []
        for layer in range(len(experts[present[0]].blocks)):
            blocks = {i: experts[i].blocks[layer] for i in present}
            first, second = 2 * layer, 2 * layer + 1  # the layer's norms among the expert's
            normed = {i: blocks[i].attention_norm(x[i], modulations[i][first]) for i in present}
            # Project per expert, join on the token axis.
            projected = [blocks[i].project(normed[i][0]) for i in present]
            q, k, v = (jnp.concatenate(part, axis=1) for part in zip(*projected, strict=True))
            # Rotate; one softmax over everybody.
            q, k = _rotate(q, rotation), _rotate(k, rotation).astype(self.dtype)
            if not self.float32_query:
                q = q.astype(self.dtype)
            q = q * q.shape[-1] ** -0.5
            old = None if cache is None else (cache.k[layer], cache.v[layer])
            shared = old is not None and len(old[0]) < len(q)
            if old is not None and not shared:
                k, v = (_extend(o, new, write_at) for o, new in zip(old, (k, v), strict=True))
            if last_only and layer == len(experts[present[0]].blocks) - 1:
                q, mask = q[:, -1:], mask[:, -1:]
                x = {i: x[i][:, -1:] for i in present}
            if shared:
                attended, weights = _attend_behind(*old, q, k, v, mask)
            else:
                weights = attention_weights(q, k, mask)
                attended = apply_attention(weights, v)
            # Split, project per expert.
            parts = jnp.split(attended, splits, axis=1)
            for i, part in zip(present, parts, strict=True):
                x[i] = blocks[i].finish(x[i], part, normed[i][1], modulations[i][second])
            keys.append(k)
            values.append(v)
            attention.append(weights)
        outputs = [
            experts[i].final_norm(x[i], modulations[i][-1])[0] if i in present else None
            for i in (0, 1)
        ]
        return Pair(*outputs), KVCache(tuple(keys), tuple(values)), attention


def _rotation(positions: Array, head_dim: int) -> tuple[Array, Array]:
    """cos and sin [B, T, 1, H / 2] of the RoPE angles, float32.

    PARITY: the angle is position / timescale with a float32 timescale, not position * frequency;
    at angles near 1000 rad the rounding shows. XLA turns a division by something broadcast into a
    product with its reciprocal, one rounding off; the barrier keeps it a division.
    """
    exponent = (2.0 / head_dim) * jnp.arange(head_dim // 2, dtype=jnp.float32)
    shape = (*positions.shape, 1, head_dim // 2)
    timescale = jnp.broadcast_to(ROPE_MAX_WAVELENGTH**exponent, shape)
    angle = positions[..., None, None] / jax.lax.optimization_barrier(timescale)
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """RoPE on [B, T, heads, H]: first and second half form the pairs. Returns float32."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _extend(old: Array, new: Array, write_at: Array | int | None) -> Array:
    if write_at is None:
        return jnp.concatenate([old, new], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(old, new, write_at, axis=1)


def _attend_behind(old_k, old_v, q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    """Attention of every row behind the same keys and values [1, S, K, H], which are not copied for
    each: (attended [B, T, N, H], weights [B, N, T, S + T])."""

    def row(given):
        q, k, v, mask = (x[None] for x in given)
        weights = attention_weights(q, _extend(old_k, k, None), mask)
        return apply_attention(weights, _extend(old_v, v, None))[0], weights[0]

    # On a CPU one row after another: its scores stay in the processor's cache.
    rows = (q, k, v, mask)
    return jax.lax.map(row, rows) if jax.default_backend() == "cpu" else jax.vmap(row)(rows)


def attention_weights(q: Array, k: Array, mask: Array) -> Array:
    """softmax(q k) over the allowed keys: q [B, T, N, H] (scaled), k [B, S, K, H], mask [B, T, S]
    to [B, N, T, S] in k's type; scores and softmax in float32.

    The query heads of one kv head are folded into the rows of one matrix product: the same numbers,
    and on a CPU several times faster than one product a head. A query with no allowed key gets
    uniform weights.
    """
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    folded = q.transpose(0, 2, 1, 3).reshape(b, kv_heads, n // kv_heads * t, h)
    scores = jnp.einsum("bkmh,bskh->bkms", folded, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, n, t, k.shape[1])
    scores = jnp.where(mask[:, None], scores, FORBIDDEN)
    return jax.nn.softmax(scores, axis=-1).astype(k.dtype)


def apply_attention(weights: Array, v: Array) -> Array:
    """weights [B, N, T, S], v [B, S, K, H] to [B, T, N, H]."""
    b, n, t, s = weights.shape
    kv_heads, h = v.shape[2:]
    folded = weights.reshape(b, kv_heads, n // kv_heads * t, s)
    attended = jnp.einsum("bkms,bskh->bkmh", folded, v)
    return attended.reshape(b, n, t, h).transpose(0, 2, 1, 3)
