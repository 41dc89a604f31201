"""Matrix products with a model's weights, and how these lie in memory.

Axes: B batch, T tokens, I inputs, C columns.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

# In float32. Where rows are a multiple of 1 KB long, the elements of a column share few places of a
# processor's cache, and a product took up to 2.5 times as long. Rows longer by a line of it do not.
_KB, _LINE = 256, 16
# Bytes; of a larger model (3B in float32) a copy is more than what it saves is worth.
_MOST_COPIED = 1 << 30


class Kernel(nnx.Param):
    """Weights [I, C] of a product; `columns`: C, whatever was added behind them."""

    def __init__(self, value: Array, **metadata):
        super().__init__(value, **{"columns": value.shape[1], **metadata})


class Linear(nnx.Linear):
    """nnx's, by `dot`."""

    def __init__(self, inputs: int, columns: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(inputs, columns, dtype=dtype, rngs=rngs)
        self.kernel = Kernel(self.kernel[...])

    def __call__(self, x: Array) -> Array:
        return dot(x.astype(self.dtype), self.kernel) + self.bias[...].astype(self.dtype)


def dot(x: Array, kernel: Kernel) -> Array:
    """x [B, T, I] times the weights, in x's type: [B, T, C]."""
    weights = kernel[...]
    if weights.dtype != x.dtype:
        # Widened when x is there and no sooner: XLA would widen every layer's before the first, or
        # keep them all widened around a loop, a copy of the model in memory.
        weights, x = jax.lax.optimization_barrier((weights, x))
        weights = weights.astype(x.dtype)
        if x.shape[1] > 1:  # a decoded token is as quick without
            weights = _apart(weights)
    return (x @ weights)[..., : kernel.columns]


def laid_out(model: nnx.Module) -> nnx.Module:
    """The model with its weights as this device multiplies them quickest: on a CPU a copy of those
    in float32 that lie badly, if that is less than 1 GB; anything else as it is, shapes without
    numbers too. Its numbers are the same."""
    graphdef, state = nnx.split(model)
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731

    def lies_badly(variable) -> bool:
        if not isinstance(variable, Kernel) or variable.dtype != jnp.float32:
            return False
        return isinstance(variable.get_raw_value(), jax.Array) and _is_bad(variable)

    leaves = jax.tree.leaves(state, is_leaf=is_variable)
    copied = sum(v.size * v.dtype.itemsize for v in leaves if lies_badly(v))
    if not 0 < copied <= _MOST_COPIED:
        return model
    place = lambda v: v.replace(_apart(v[...])) if lies_badly(v) else v  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(place, state, is_leaf=is_variable))


def _is_bad(weights: Array) -> bool:
    return jax.default_backend() == "cpu" and weights.shape[1] % _KB == 0


def _apart(weights: Array) -> Array:
    """With columns of zeros behind them, where their rows would lie badly."""
    return jnp.pad(weights, ((0, 0), (0, _LINE))) if _is_bad(weights) else weights
