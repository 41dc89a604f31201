"""From a checkpoint folder to a model, and back: openpi's and LeRobot's (`bundled` has our own).
Never unpickles; never returns a model with anything left out.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from models.checkpoints import lerobot, lerobot_config, lora
from models.checkpoints.arrays import DTYPES, Stored, check, has_nonfinite
from models.checkpoints.digests import (
    WEIGHTS,
    params_folder,
    verify_digests,
    weights_file,
)
from models.checkpoints.openpi import Row, family_of, open_openpi, rows
from models.checkpoints.staging import Piece, Progress, take_all
from models.compiled import Device, on_device
from models.config import Config, DType, Pi0FastConfig
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast

Policy = Pi0 | Pi0Fast
_ALIGNMENT = 64  # bytes, XLA's of arrays on a CPU

# --- openpi's folder ----------------------------------------------------------------------------


def load_openpi(
    folder: Path | str,
    config: Config,
    *,
    dtype: DType | None = None,
    adapters: lora.Adapters | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> Policy:
    """The model in a checkpoint of openpi's, from its folder or the `params/` in it.

    dtype: precision of the parameters, None as stored (openpi serves in bfloat16). adapters: how a
    LoRA fine-tune was made; they are merged into the weights. progress: called with bytes done,
    bytes in all (as stored) and the array at hand. device: where the weights go, None for the
    default one.

    Several arrays at a time, in the host's memory that one after the other would take: beside the
    model, the largest array twice (its compressed and its decoded bytes). Raises ValueError, naming
    what is wrong, for another kind of folder, a missing or damaged file, arrays that do not fit the
    config, NaN or infinity, and files that differ from the folder's `SHA256SUMS` if it has them.
    """
    folder = Path(folder)
    params = params_folder(folder)
    verify_digests(params.parent, below=f"{params.name}/")
    arrays = lora.merge(open_openpi(params), adapters, where=str(folder))
    how = {"dtype": dtype, "progress": progress, "device": device}
    return assemble(config, arrays, where=str(folder), **how)


def save_openpi(model: Policy, folder: Path | str) -> None:
    """Writes `params/` as openpi does, in the parameters' precision."""
    write_openpi(to_openpi(model), folder)


def write_openpi(arrays: Mapping[str, np.ndarray], folder: Path | str) -> None:
    """Writes arrays by openpi's path into `folder/params` (which must not exist) through Orbax."""
    import orbax.checkpoint as ocp  # takes a second to import, and only writing needs it

    tree: dict = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).resolve() / "params", {"params": tree})


# --- LeRobot's folder ---------------------------------------------------------------------------


def load_lerobot(
    folder: Path | str,
    config: Config | None = None,
    *,
    base: Path | None = None,
    dtype: DType | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> Policy:
    """The model in a folder that LeRobot saved (or the published ones, without `model.` in names).

    config: None for the one that `config.json` describes. base: the folder of the weights that the
    folder's PEFT adapters change, None where it has weights of its own. dtype: precision of the
    parameters, None as stored. device: as there; raises ValueError as `load_openpi` does.
    """
    folder = Path(folder)
    weights = weights_file(base or folder)
    if weights is None:
        raise ValueError(f"{base or folder} has no {WEIGHTS}")
    for checked in {folder, weights.parent}:
        verify_digests(checked)
    if config is None:
        config = lerobot_config.read_lerobot(folder).config
    arrays = lerobot.open_lerobot(weights, config, None if base is None else folder)
    how = {"dtype": dtype, "progress": progress, "device": device}
    return assemble(config, arrays, where=str(folder), **how)


# --- models -------------------------------------------------------------------------------------


def abstract_model(config: Config) -> Policy:
    """The model with shapes in place of arrays."""
    if isinstance(config, Pi0FastConfig):
        return nnx.eval_shape(lambda: Pi0Fast(config, rngs=_NoRandomNumbers()))
    return nnx.eval_shape(lambda: Pi0(config, rngs=_NoRandomNumbers()))


def model_of_shapes(config: Config, dtype: DType, device: Device) -> Policy:
    """The model as it will be with its parameters in `dtype` on the device: for compiling."""
    graphdef, state = nnx.split(abstract_model(config))
    place = lambda x: on_device(x, DTYPES[dtype], device)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(place, state))


class _NoRandomNumbers(nnx.Rngs):
    """One key for all parameters: of shapes, no number is ever drawn. nnx's own counts its keys,
    and counting while shapes are traced takes nearly all the time for a 3B model."""

    def __init__(self):
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)


def random_model(
    config: Config, seed: int = 0, dtype: DType = "float32", device: Device | None = None
) -> Policy:
    """A model of random weights, the same for the same seed, array by array: for benchmarks, tests
    and demonstrations of the mechanics."""
    abstract, rng = abstract_model(config), np.random.default_rng(seed)
    shapes = ((name, parameter.shape) for name, parameter in parameters_of(abstract).items())
    values = ((name, random_parameter(name, shape, rng)) for name, shape in shapes)
    return fill(abstract, values, dtype, device)


def random_parameter(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """float32, for the parameter of that nnx path. Matrices keep the size of what passes through
    them; norms, gates and biases are off their neutral values."""
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) == 2:
        return noise * shape[1 if name.endswith("embedding") else 0] ** -0.5
    # SigLIP multiplies by its norms' scale, Gemma by 1 + scale.
    middle = 1.0 if name.startswith("vision") and name.endswith("scale") else 0.0
    return middle + 0.1 * noise


def assemble(
    config: Config,
    arrays: Mapping[str, Stored],
    *,
    where: str,
    dtype: DType | None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> Policy:
    """The model that openpi's arrays make, its parameters in `dtype` (None: as stored).

    Everything is checked before the first array is read; each array is then read, checked for NaN
    and infinity, cast and put on the device (None: the default one), several at a time. The largest
    come first, while there is the most room. Raises ValueError; never returns a model with anything
    left out.
    """
    table = rows(config)
    ours, theirs = family_of(row.path for row in table), family_of(arrays)
    hint = f"It looks like a {theirs} checkpoint; the config is {ours}'s." if ours != theirs else ""
    others = sum(r.path in arrays and r.stored_shape != arrays[r.path].shape for r in table)
    if not hint and others > len(table) / 2:
        hint = "The model has other sizes: its config has to tell them, if they are not openpi's."
    check(
        f"{where} does not fit the config ({ours}):",
        {row.path: row.stored_shape for row in table},
        {path: (stored.shape, stored.dtype) for path, stored in arrays.items()},
        hint,
    )
    filling = Filling(abstract_model(config), dtype, device)
    pieces: list[Piece] = []
    for row in sorted(table, key=lambda row: -arrays[row.path].nbytes):
        pieces += _pieces(row, arrays[row.path], filling, where)
    take_all(pieces, progress or (lambda *_: None))
    return filling.model()


def _pieces(row: Row, stored: Stored, filling: "Filling", where: str) -> Iterator[Piece]:
    """What is decoded together of one array, on its way into the model."""

    def take(start: int, stop: int) -> None:
        for index, layer in enumerate(stored.layers(start, stop), start):
            if has_nonfinite(layer):
                which = row.path if row.layers is None else f"{row.path}, layer {index}"
                raise ValueError(
                    f"{where}: {which} holds NaN or infinity, so the training run that wrote it "
                    "diverged or the file is damaged; use an earlier step or copy it again"
                )
            for name, value in zip(row.module_paths(index), row.unpack(layer), strict=True):
                filling.put(name, value)

    for start in range(0, stored.num_layers, stored.step):
        stop = min(start + stored.step, stored.num_layers)
        size = stored.nbytes * (stop - start) // stored.num_layers
        placed = size * filling.itemsize(stored.dtype) // stored.dtype.itemsize
        yield Piece(row.path, size, placed, functools.partial(take, start, stop))


def fill(
    abstract: Policy,
    values: Iterable[tuple[str, np.ndarray]],
    dtype: DType | None,
    device: Device | None = None,
) -> Policy:
    """The model whose parameters are the values, by nnx path, each put in as it comes."""
    filling = Filling(abstract, dtype, device)
    for name, value in values:
        filling.put(name, value)
    return filling.model()


class Filling:
    """A model whose parameters come one by one, from any thread: each is reshaped, cast (None: as
    it is) and put on the device (None: the default one)."""

    def __init__(self, abstract: Policy, dtype: DType | None, device: Device | None):
        self._graphdef, state = nnx.split(abstract)
        flat = nnx.to_flat_state(state)
        self._parameters = {_name(path): (path, parameter) for path, parameter in flat}
        self._dtype, self._device = dtype and DTYPES[dtype], device
        self._filled: dict[str, nnx.Variable] = {}

    def itemsize(self, dtype: np.dtype) -> int:
        """Bytes of the host's memory that a number, which comes as `dtype`, keeps."""
        on_host = (self._device or jax.devices()[0]).platform == "cpu"
        return (self._dtype or dtype).itemsize if on_host else 0

    def put(self, name: str, value: np.ndarray) -> None:
        """Returns when the array is on the device and `value` is needed no longer."""
        _, parameter = self._parameters[name]
        # Always a copy: a view would keep all of the array that it belongs to.
        copy = _empty(value.shape, self._dtype or value.dtype)
        copy[...] = value
        array = jax.device_put(copy.reshape(parameter.shape), self._device)
        self._filled[name] = parameter.replace(jax.block_until_ready(array))

    def model(self) -> Policy:
        missing = self._parameters.keys() - self._filled.keys()
        assert not missing, "the caller checks that every parameter has a value"
        flat = [(path, self._filled[name]) for name, (path, _) in self._parameters.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array at a place in memory that JAX takes over on a CPU: of any other it makes a copy."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def parameters_of(model: Policy) -> dict:
    """A model's parameters by nnx path: arrays, or shapes and types if it is abstract."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {_name(path): parameter.get_value() for path, parameter in state}


def to_openpi(model: Policy) -> dict[str, np.ndarray]:
    """A model's parameters as openpi's arrays, by openpi's path, on the host."""
    ours = parameters_of(model)
    arrays = {}
    for row in rows(model.config):
        layers = [
            row.pack(np.asarray(ours[path]) for path in row.module_paths(i))
            for i in range(row.layers or 1)
        ]
        arrays[row.path] = layers[0] if row.layers is None else np.stack(layers)
    return arrays
