"""The one place where models meet `jax.jit`."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

# On a CPU: matrix products by Eigen, reductions (so also softmax) by YNNPACK. XLA's own choice is
# YNNPACK for both, which was slower for products with few rows.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def on_cpu() -> bool:
    """Whether programs run on the host's processor. Asked where a model is prepared for its device,
    never inside the mathematics."""
    return jax.default_backend() == "cpu"


@functools.cache
def options() -> dict[str, str] | None:
    """What programs are compiled with; nothing where this JAX does not know it."""
    if not on_cpu():
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_CPU)()
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU


def compiled(model: nnx.Module, method: Callable, static: tuple[str, ...] = ()) -> Callable:
    """`method(model, ...)` as a compiled function of the remaining arguments.

    The model is split once and its state is an argument: closed over, its weights would be copied
    into the program as constants; split at every call, the host would spend milliseconds.
    `static` names the keyword arguments that the program is specialised to.
    """
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnames=static, compiler_options=options())
    def run(state, *args, **kwargs):
        return method(nnx.merge(graphdef, state), *args, **kwargs)

    return functools.partial(run, state)
