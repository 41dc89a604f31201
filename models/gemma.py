"""Gemma decoder for one expert, or for a pair that shares one attention (mixture of transformers).

Read `Gemma.__call__`, then its layer: `_attention` and `_mlp`.

Axes: B batch, T query tokens, S key tokens, N query heads, K kv heads, G = N / K, H head dimension,
D width, F MLP width. Sources: Gemma report (arXiv 2403.08295), pi0 paper (arXiv 2410.24164, IV),
openpi's `models/gemma.py` and `models/gemma_fast.py` for the numerics.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from models.config import ExpertConfig
from models.matmul import Kernel, dot

# The score of a forbidden key; openpi's constant, finite in float32.
FORBIDDEN = -2.3819763e38
ROPE_MAX_WAVELENGTH = 10_000

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """One thing for each expert: the vision-language prefix and the action suffix. None stands for
    an expert that takes no part."""

    prefix: T | None = None
    suffix: T | None = None

    def map(self, function: Callable, *others: "Pair") -> "Pair":
        """`function(own, *theirs)` for each expert that takes part here, None for the other."""
        rows = zip(self, *others, strict=True)
        return Pair(*(None if row[0] is None else function(*row) for row in rows))

    def present(self) -> list[T]:
        """What is not None, the prefix first."""
        return [own for own in self if own is not None]


# --- keys and values of earlier tokens ----------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (after RoPE) and values of every layer: tuples of [B, S, K, H] in the compute dtype."""

    k: tuple[Array, ...]
    v: tuple[Array, ...]

    @staticmethod
    def empty(config: ExpertConfig, batch_size: int, length: int, dtype) -> "KVCache":
        """Zeros for `length` tokens."""
        zeros = jnp.zeros((batch_size, length, config.num_kv_heads, config.head_dim), dtype)
        return KVCache((zeros,) * config.depth, (zeros,) * config.depth)


class Attended(NamedTuple):
    """What attention gives in one layer: the weighted values [B, T, N, H], the weights
    [B, N, T, S], and the keys and values that were attended to, [B, S, K, H]."""

    values: Array
    weights: Array
    k: Array
    v: Array


class ReadCache(NamedTuple):
    """The cached tokens come before the new ones; the cache stays as it is. A cache of one row
    serves every row of the batch."""

    cache: KVCache

    def attend(self, layer: int, q: Array, k: Array, v: Array, mask: Array) -> Attended:
        """`attend` with the layer's cached keys and values before the new ones."""
        old_k, old_v = self.cache.k[layer], self.cache.v[layer]
        shape = (len(k), *old_k.shape[1:])
        k = jnp.concatenate([jnp.broadcast_to(old_k, shape), k], axis=1)
        v = jnp.concatenate([jnp.broadcast_to(old_v, shape), v], axis=1)
        return attend(q, k, v, mask)


class WriteCache(NamedTuple):
    """The cache has room for tokens to come. The new keys and values are written into it from place
    `start` on, and the queries attend to all of its places, as far as the mask allows."""

    cache: KVCache
    start: Array | int

    def attend(self, layer: int, q: Array, k: Array, v: Array, mask: Array) -> Attended:
        """`attend` over the layer's cache with the new keys and values in it."""
        write = jax.lax.dynamic_update_slice_in_dim
        k = write(self.cache.k[layer], k, self.start, axis=1)
        v = write(self.cache.v[layer], v, self.start, axis=1)
        return attend(q, k, v, mask)


# --- one expert's weights -----------------------------------------------------------------------


class Normed(NamedTuple):
    """What a norm gives: x [B, T, D], and the gate [B, 1, D] of the residual branch that reads x;
    None: no gate."""

    x: Array
    gate: Array | None


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), in float32, returned in x's type."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Array, condition: Array | None = None) -> Normed:
        """x [B, T, D]. No condition changes it: the argument is there for the adaptive norm's."""
        return Normed((_normalise(x) * (1 + self.scale[...])).astype(x.dtype), None)


class AdaRMSNorm(nnx.Module):
    """RMSNorm whose scale, shift and residual gate come from a condition (pi0.5's time)."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(width, 3 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, condition: Array | None) -> Normed:
        """x [B, T, D], condition [B, D]."""
        assert condition is not None, "pi0.5's norms need a condition, its time"
        scale, shift, gate = jnp.split(self.modulation(condition)[:, None, :], 3, axis=-1)
        return Normed((_normalise(x) * (1 + scale) + shift).astype(x.dtype), gate)


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

    def project_out(self, attended: Array) -> Array:
        """[B, T, N, H] to [B, T, D]."""
        return dot(attended.reshape(*attended.shape[:2], -1), self.out)

    def mlp(self, x: Array) -> Array:
        """Normed x [B, T, D] to [B, T, D]."""
        hidden = nnx.gelu(dot(x, self.gate), approximate=True) * dot(x, self.up)  # [B, T, F]
        return dot(hidden, self.down)


def _norm(width: int, adaptive: bool, dtype, rngs: nnx.Rngs) -> RMSNorm | AdaRMSNorm:
    return AdaRMSNorm(width, dtype=dtype, rngs=rngs) if adaptive else RMSNorm(width)


class Expert(nnx.Module):
    """The weights of one decoder."""

    def __init__(self, config: ExpertConfig, *, adaptive: bool, dtype, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [Block(config, adaptive=adaptive, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        )
        self.final_norm = _norm(config.width, adaptive, dtype, rngs)


# --- the decoder --------------------------------------------------------------------------------


class Pass(NamedTuple):
    """What one pass gives: each expert's outputs [B, T_i, D_i] after its final norm, the cache, and
    each layer's attention weights, [B, N, T, S]."""

    outputs: Pair[Array]
    cache: KVCache
    attention: list[Array]


class Gemma(nnx.Module):
    """A token table, the language expert, and (pi0, pi0.5) the action expert beside it."""

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
        """vocab_size: rows of the token table
        language, action: the experts' sizes; action None: there is none
        adaptive_action: pi0.5, the action expert's norms take a condition
        float32_query: PARITY: the Gemma that FAST uses leaves the rotated query in float32; pi0's
            rounds it to the compute dtype. They are equal in float32.
        dtype: what is computed in, but for norms, RoPE, scores and softmax: those are float32
        """
        self.dtype = dtype
        self.float32_query = float32_query
        self.head_dim = language.head_dim
        init = nnx.initializers.normal(language.width**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, language.width), jnp.float32))
        self.language = Expert(language, adaptive=False, dtype=dtype, rngs=rngs)
        if action is not None:
            self.action = Expert(action, adaptive=adaptive_action, dtype=dtype, rngs=rngs)
        else:
            self.action = None

    def embed(self, tokens: Array | np.ndarray) -> Array:
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
        tokens: Pair[Array],
        positions: Array,
        mask: Array | tuple[Array, ...],
        *,
        condition: Array | None = None,
        cache: ReadCache | WriteCache | None = None,
        last_only: bool = False,
    ) -> Pass:
        """One pass of embedded tokens through all layers.

        tokens: [B, T_i, D_i] of each expert, prefix and suffix; T is the sum of T_i
        positions: int [B, T] for RoPE, the prefix's tokens first
        mask: bool [B, T, S], True: the query may attend to the key. Without a cache S is T; with
            `ReadCache` the cached tokens come first; with `WriteCache` S is the cache's length.
            A tuple holds one for each layer, see `masks.cut`
        condition: [B, D of the suffix] for pi0.5's adaptive norms
        cache: what becomes of earlier tokens' keys and values, and of the new ones'
        last_only: only the last token's output is wanted, [B, 1, D]. The last layer then computes
            keys and values for all tokens and the rest for that one. For a single expert.
        """
        x = tokens.map(lambda tokens: tokens.astype(self.dtype))
        experts = x.map(lambda _, expert: expert, Pair(self.language, self.action))
        conditions = Pair(suffix=condition)
        rotation, depth = _rotation(positions, self.head_dim), len(self.language.blocks)
        layer_masks = mask if isinstance(mask, tuple) else (mask,) * depth
        layers = []
        for layer in range(depth):
            blocks, only_last = _at_layer(experts, layer), last_only and layer == depth - 1
            attend_to = attend if cache is None else functools.partial(cache.attend, layer)
            x, attended = self._attention(
                blocks, x, conditions, rotation, layer_masks[layer], attend_to, only_last
            )
            x = _mlp(blocks, x, conditions)
            layers.append(attended)
        outputs = experts.map(lambda expert, *x: expert.final_norm(*x).x, x, conditions)
        new = KVCache(tuple(a.k for a in layers), tuple(a.v for a in layers))
        return Pass(outputs, new, [attended.weights for attended in layers])

    def _attention(
        self,
        blocks: Pair[Block],
        x: Pair[Array],
        conditions: Pair[Array],
        rotation: tuple[Array, Array],
        mask: Array,
        attend_to: Callable[..., Attended],
        only_last: bool,
    ) -> tuple[Pair[Array], Attended]:
        """First half of a layer: x + gate * attention(norm(x)), over the tokens of all experts."""
        normed = blocks.map(lambda block, *x: block.attention_norm(*x), x, conditions)
        # Project per expert, join on the token axis.
        projected = blocks.map(lambda block, normed: block.project(normed.x), normed)
        q, k, v = (jnp.concatenate(part, axis=1) for part in zip(*projected.present(), strict=True))
        q, k = _rotate(q, rotation), _rotate(k, rotation).astype(self.dtype)
        q = (q if self.float32_query else q.astype(self.dtype)) * q.shape[-1] ** -0.5
        if only_last:
            q, mask, x = q[:, -1:], mask[:, -1:], x.map(lambda x: x[:, -1:])
        attended = attend_to(q, k, v, mask)  # one softmax over everybody

        # Split, project per expert.
        def add(block: Block, x: Array, values: Array, normed: Normed) -> Array:
            return _residual(x, block.project_out(values), normed.gate)

        return blocks.map(add, x, _split_like(x, attended.values), normed), attended


def _mlp(blocks: Pair[Block], x: Pair[Array], conditions: Pair[Array]) -> Pair[Array]:
    """Second half of a layer: x + gate * mlp(norm(x)), each expert for itself."""

    def one(block: Block, x: Array, condition: Array | None) -> Array:
        normed = block.mlp_norm(x, condition)
        return _residual(x, block.mlp(normed.x), normed.gate)

    return blocks.map(one, x, conditions)


def _residual(x: Array, branch: Array, gate: Array | None) -> Array:
    return x + branch if gate is None else x + branch * gate


def _at_layer(experts: Pair[Expert], layer: int) -> Pair[Block]:
    return experts.map(lambda expert: expert.blocks[layer])


def _split_like(x: Pair[Array], joined: Array) -> Pair[Array]:
    """joined [B, T, ...] cut on the token axis into as many tokens as each of x has."""
    lengths = [part.shape[1] for part in x.present()]
    parts = iter(jnp.split(joined, np.cumsum(lengths)[:-1], axis=1))
    return x.map(lambda _: next(parts))


# --- attention ----------------------------------------------------------------------------------


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


def attend(q: Array, k: Array, v: Array, mask: Array) -> Attended:
    """q [B, T, N, H] (scaled) to all of k and v [B, S, K, H] that mask [B, T, S] allows."""
    weights = attention_weights(q, k, mask)
    return Attended(apply_attention(weights, v), weights, k, v)


def attention_weights(q: Array, k: Array, mask: Array) -> Array:
    """softmax(q k) over the allowed keys: q [B, T, N, H] (scaled), k [B, S, K, H], mask [B, T, S]
    to [B, N, T, S] in k's type; scores and softmax in float32.

    The query heads of one kv head are folded into the rows of one matrix product: the same numbers,
    and on a CPU several times faster than one product a head. A query with no allowed key gets
    uniform weights, as in openpi.
    """
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    folded = q.transpose(0, 2, 1, 3).reshape(b, kv_heads, n // kv_heads * t, h)
    scores = jnp.einsum("bkmh,bskh->bkms", folded, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores.reshape(b, n, t, k.shape[1]), FORBIDDEN)
    return jax.nn.softmax(scores, axis=-1).astype(k.dtype)


def apply_attention(weights: Array, v: Array) -> Array:
    """weights [B, N, T, S], v [B, S, K, H] to [B, T, N, H]."""
    (b, n, t, s), (kv_heads, h) = weights.shape, v.shape[2:]
    folded = weights.reshape(b, kv_heads, n // kv_heads * t, s)
    attended = jnp.einsum("bkms,bskh->bkmh", folded, v)
    return attended.reshape(b, n, t, h).transpose(0, 2, 1, 3)
