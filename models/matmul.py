"""Matrix products with a model's weights, and how these lie in memory.

Axes: B batch, T tokens, I inputs, C columns.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.compiled import on_cpu

# In float32. Where rows are a multiple of 1 KB long, the elements of a column share few places of a
# processor's cache, and a product took up to 2.5 times as long. Rows longer by a line of it do not.
_KB, _LINE = 256, 16
# Bytes; of a larger model (3B in float32) a copy is more than what it saves is worth.
MOST_COPIED = 1 << 30

M = TypeVar("M", bound=nnx.Module)


class Kernel(nnx.Param):
    """Weights [I, C] of a product.

    `columns`: C, whatever was added behind them. `pad_widened`: `dot` adds the same where it widens
    them to a larger type.
    """

    def __init__(self, value: Array, **metadata):
        defaults = {"columns": value.shape[1], "pad_widened": False}
        super().__init__(value, **{**defaults, **metadata})


class Linear(nnx.Linear):
    """nnx's, by `dot`."""

    def __init__(self, inputs: int, columns: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(inputs, columns, dtype=dtype, rngs=rngs)
        self.kernel = Kernel(self.kernel[...])

    def __call__(self, x: Array) -> Array:
        assert self.bias is not None  # nnx's default
        return dot(x.astype(self.dtype), self.kernel) + self.bias[...].astype(self.dtype)


def dot(x: Array, kernel: Kernel) -> Array:
    """x [B, T, I] times the weights, in x's type: [B, T, C]."""
    weights = kernel[...]
    if weights.dtype != x.dtype:
        # Widened when x is known and no sooner: XLA would widen every layer's before the first, or
        # keep them all widened around a loop, a copy of the model in memory.
        weights, x = jax.lax.optimization_barrier((weights, x))
        weights = weights.astype(x.dtype)
        if kernel.pad_widened and x.shape[1] > 1:  # a decoded token is as quick without
            weights = _padded(weights)
    return (x @ weights)[..., : kernel.columns]


def laid_out(model: M) -> M:
    """The model with its weights as this device multiplies them quickest; its numbers are the same.

    On a CPU, of the weights whose rows are a multiple of 1 KB: those in float32 are copied with a
    line of zeros behind each row, if that takes less than 1 GB; those in a smaller type get the
    line whenever `dot` widens them. Everything else stays as it is, shapes without numbers too.
    """
    if not on_cpu(model):
        return model
    graphdef, state = nnx.split(model)
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    slow = [v for v in jax.tree.leaves(state, is_leaf=is_variable) if _has_slow_rows(v)]
    copied = [v for v in slow if v.dtype == jnp.float32 and isinstance(v.get_raw_value(), Array)]
    if sum(v.size * v.dtype.itemsize for v in copied) > MOST_COPIED:
        copied = []
    widened = [v for v in slow if v.dtype != jnp.float32 and not v.pad_widened]
    if not copied and not widened:
        return model

    def place(variable):
        if any(variable is v for v in copied):
            return Kernel(_padded(variable[...]), columns=variable.columns)
        if any(variable is v for v in widened):
            return Kernel(variable.get_raw_value(), columns=variable.columns, pad_widened=True)
        return variable

    return nnx.merge(graphdef, jax.tree.map(place, state, is_leaf=is_variable))


def _has_slow_rows(variable) -> bool:
    return isinstance(variable, Kernel) and variable.shape[1] % _KB == 0


def _padded(weights: Array) -> Array:
    return jnp.pad(weights, ((0, 0), (0, _LINE)))
