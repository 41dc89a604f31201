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
    in float32 that lie badly, anything else as it is. Its numbers are the same."""
    graphdef, state = nnx.split(model)

    def place(variable):
        if not isinstance(variable, Kernel) or variable.dtype != jnp.float32:
            return variable
        return variable.replace(_apart(variable[...]))

    state = jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.merge(graphdef, state)


def _apart(weights: Array) -> Array:
    """With columns of zeros behind them, where their rows would lie badly."""
    if jax.default_backend() != "cpu" or weights.shape[1] % _KB:
        return weights
    return jnp.pad(weights, ((0, 0), (0, _LINE)))
