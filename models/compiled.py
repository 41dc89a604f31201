"""The one place where models meet `jax.jit`."""

import functools
from collections.abc import Callable

import jax
from flax import nnx


def compiled(model: nnx.Module, method: Callable, static: tuple[str, ...] = ()) -> Callable:
    """`method(model, ...)` as a compiled function of the remaining arguments.

    The model is split once and its state is an argument: closed over, its weights would be copied
    into the program as constants; split at every call, the host would spend milliseconds.
    `static` names the keyword arguments that the program is specialised to.
    """
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnames=static)
    def run(state, *args, **kwargs):
        return method(nnx.merge(graphdef, state), *args, **kwargs)

    return functools.partial(run, state)
