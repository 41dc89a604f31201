"""The one place where models meet `jax.jit`."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from models.config import Config

# On a CPU: matrix products by Eigen, reductions (so also softmax) by YNNPACK. XLA's own choice is
# YNNPACK for both, which was slower for products with few rows.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

MAX_PROGRAMS = 128  # that are kept in memory, each some 5 to 10 MB
_functions: weakref.WeakSet[Any] = weakref.WeakSet()  # what `compiled` made
_dropped = 0


class Device(Protocol):
    """`jax.Device`, which has no type of its own. platform: "cpu", "gpu" or "tpu"; device_kind: as
    its maker calls it, "cpu" for the host's processor."""

    platform: str
    device_kind: str


class Model(Protocol):
    """Pi0 or Pi0Fast; `config.dtype` is what it computes in."""

    @property
    def config(self) -> Config: ...


def device_of(model) -> Device:
    """Where a model's weights lie, or are to lie; of shapes that do not say, where JAX would put
    them."""
    return _device_of(nnx.state(model))


def _device_of(state) -> Device:
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and leaf.sharding is not None:
            return next(iter(leaf.sharding.device_set))
    return jax.devices()[0]


def on_cpu(model) -> bool:
    """Whether its programs run on the host's processor. Asked where a model is prepared for its
    device, never inside the mathematics."""
    return device_of(model).platform == "cpu"


def precision(dtype: str) -> str:
    """How JAX is to multiply for a model that computes in `dtype`. A float32 product would lose 13
    of its 23 bits on a GPU (TF32) if nothing was said; on a CPU that changes nothing."""
    return "highest" if dtype == "float32" else "default"


@functools.cache
def options(device: Device) -> dict[str, str] | None:
    """What programs are compiled with; nothing where this JAX does not know it."""
    if device.platform != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_CPU)(jax.device_put(0, device))
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU


class Program:
    """A compiled function of a model, of the arguments that its method has behind the model.

    The model is split once and its state is an argument: closed over, its weights would be copied
    into the program as constants; split at every call, the host would spend milliseconds.
    """

    def __init__(self, run: Callable, state, device: Device):
        self.run, self.state, self._device = run, state, device

    def __call__(self, *args, **kwargs):
        return self.run(self.state, *args, **kwargs)

    def ahead(self, *args, **kwargs):
        """Compiles it for arguments like these, of which any may be a shape alone, as may the
        model's weights. Returns the shapes of the result, on the model's device."""
        self.run.lower(self.state, *args, **kwargs).compile()
        result = self.run.eval_shape(self.state, *args, **kwargs)
        return jax.tree.map(lambda x: on_device(x, x.dtype, self._device), result)


def on_device(like, dtype, device: Device) -> jax.ShapeDtypeStruct:
    """The shape of an array on a device."""
    where = SingleDeviceSharding(device)
    weak = getattr(like, "weak_type", False)
    return jax.ShapeDtypeStruct(like.shape, dtype, sharding=where, weak_type=weak)


# Of models of shapes, while they live: what was compiled for one serves that whose weights came.
_AHEAD: weakref.WeakValueDictionary[tuple, Callable] = weakref.WeakValueDictionary()


def compiled(model: Model, method: Callable, static: tuple[str, ...] = ()) -> Program:
    """`method(model, ...)` as a program, on the device where the model's weights lie. `static`
    names the keyword arguments that it is specialised to."""
    graphdef, state = nnx.split(model)
    device, exactness = _device_of(state), precision(model.config.dtype)
    key = (graphdef, method, static, exactness, device)

    def run(state, *args, **kwargs):
        with jax.default_matmul_precision(exactness):
            return method(nnx.merge(graphdef, state), *args, **kwargs)

    jitted = _AHEAD.get(key)
    if jitted is None:
        jitted = jax.jit(run, static_argnames=static, compiler_options=options(device))
    if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
        _AHEAD[key] = jitted
    _functions.add(jitted)
    return Program(jitted, state, device)


def num_programs() -> int:
    """How many programs are kept: one for each function, shape and static value."""
    return sum(function._cache_size() for function in _functions)


def times_dropped() -> int:
    """How often `drop_programs` was called: what was compiled before is not kept any more."""
    return _dropped


def drop_programs() -> None:
    """Forgets every compiled program. What is needed again is compiled again, or read from JAX's
    cache on disk."""
    global _dropped
    _dropped += 1
    jax.clear_caches()
