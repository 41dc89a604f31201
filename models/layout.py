"""openpi's parameters and ours: one table, read both ways.

The canonical layout of a checkpoint is openpi's: paths such as
`PaliGemma/llm/layers/attn/q_einsum/w`, layers stacked on axis 0, the action expert's arrays with
the suffix `_1`. A row of the table says which of our modules an array holds and how its axes turn
into ours. Loaders of every format end in `fill`; nothing else makes a model from a file.

Axes: L layers, N query heads, K kv heads, H head dimension, D width, F MLP width, V vocabulary.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from models.config import Config, DType, ExpertConfig, Pi0FastConfig, VisionConfig
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast

Policy = Pi0 | Pi0Fast
# done bytes, all bytes, name of the array at hand
Progress = Callable[[int, int, str], None]

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """An array of a checkpoint that has not been read.

    `layers` reads it: along axis 0 if it stacks layers, else once and whole. It may be called again
    and then reads again, so that no more than a layer or an array is held at a time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    layers: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole array."""
        layers = list(self.layers())
        return layers[0] if layers[0].ndim == len(self.shape) else np.stack(layers)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One array of openpi's layout.

    path     openpi's path below `params/`
    modules  the nnx paths it fills; `{}` stands for the layer; several share an axis in front
    shape    one module's share of one layer, in openpi's axes
    order    the same axes as we store them; our array merges neighbours of these
    layers   L, or None if nothing is stacked
    """

    path: str
    modules: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None
    layers: int | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        layers = () if self.layers is None else (self.layers,)
        shares = () if len(self.modules) == 1 else (len(self.modules),)
        return (*layers, *shares, *self.shape)

    def unpack(self, layer: np.ndarray) -> Iterator[np.ndarray]:
        """One layer of openpi's array as each module's share, its axes in our order."""
        shares = layer if len(self.modules) > 1 else layer[None]
        order = self.order or range(len(self.shape))
        return (share.transpose(order) for share in shares)

    def pack(self, shares: Iterable[np.ndarray]) -> np.ndarray:
        """Our arrays of one layer as openpi's: `unpack` undone."""
        order = self.order or range(len(self.shape))
        ours = [self.shape[axis] for axis in order]
        shares = [share.reshape(ours).transpose(np.argsort(order)) for share in shares]
        return np.stack(shares) if len(shares) > 1 else shares[0]

    def module_paths(self, layer: int) -> list[str]:
        return [module.format(layer) for module in self.modules]


# --- the table ----------------------------------------------------------------------------------


def rows(config: Config) -> tuple[Row, ...]:
    """openpi's arrays of a model of this config; sources: openpi's models/*.py."""
    table = [
        *_vision(config.vision, config.language.width),
        Row(
            "PaliGemma/llm/embedder/input_embedding",
            ("gemma/embedding",),
            (config.vocab_size, config.language.width),
        ),
        *_expert("", "gemma/language", config.language, adaptive=False),
    ]
    if isinstance(config, Pi0FastConfig):
        return tuple(table)
    width = config.action_expert.width
    table += _expert("_1", "gemma/action", config.action_expert, adaptive=config.pi05)
    heads = {
        "action_in_proj": (config.action_dim, width),
        "action_out_proj": (width, config.action_dim),
    }
    if config.pi05:
        heads |= {"time_mlp_in": (width, width), "time_mlp_out": (width, width)}
    else:
        heads["state_proj"] = (config.action_dim, width)
        heads |= {"action_time_mlp_in": (2 * width, width), "action_time_mlp_out": (width, width)}
    for name, shape in heads.items():
        table += _linear(name, name, shape)
    return tuple(table)


def _linear(
    path: str,
    module: str,
    shape: tuple[int, ...],
    layers: int | None = None,
    *,
    inputs: int = 1,
) -> list[Row]:
    """A kernel, whose first `inputs` axes are summed over, and its bias."""
    return [
        Row(f"{path}/kernel", (f"{module}/kernel",), shape, layers=layers),
        Row(f"{path}/bias", (f"{module}/bias",), shape[inputs:], layers=layers),
    ]


def _layer_norm(path: str, module: str, width: int, layers: int | None = None) -> list[Row]:
    return [
        Row(f"{path}/{x}", (f"{module}/{x}",), (width,), layers=layers) for x in ("scale", "bias")
    ]


def _vision(c: VisionConfig, out_width: int) -> list[Row]:
    image = "PaliGemma/img"
    block, ours, depth = f"{image}/Transformer/encoderblock", "vision/blocks/{}", c.depth
    attention = f"{block}/MultiHeadDotProductAttention_0"
    heads = (c.num_heads, c.width // c.num_heads)
    table = [
        *_linear(
            f"{image}/embedding",
            "vision/patch_embedding",
            (c.patch_size, c.patch_size, 3, c.width),
            inputs=3,
        ),
        Row(f"{image}/pos_embedding", ("vision/position_embedding",), (1, c.num_tokens, c.width)),
        *_layer_norm(f"{block}/LayerNorm_0", f"{ours}/attention_norm", c.width, depth),
        *_linear(f"{attention}/out", f"{ours}/out", (*heads, c.width), depth, inputs=2),
        *_layer_norm(f"{block}/LayerNorm_1", f"{ours}/mlp_norm", c.width, depth),
        *_linear(f"{block}/MlpBlock_0/Dense_0", f"{ours}/mlp_in", (c.width, c.mlp_dim), depth),
        *_linear(f"{block}/MlpBlock_0/Dense_1", f"{ours}/mlp_out", (c.mlp_dim, c.width), depth),
        *_layer_norm(f"{image}/Transformer/encoder_norm", "vision/final_norm", c.width),
        *_linear(f"{image}/head", "vision/head", (c.width, out_width)),
    ]
    for name in ("query", "key", "value"):
        table += _linear(f"{attention}/{name}", f"{ours}/{name}", (c.width, *heads), depth)
    return table


def _expert(suffix: str, ours: str, c: ExpertConfig, *, adaptive: bool) -> list[Row]:
    layers, block, depth = "PaliGemma/llm/layers", f"{ours}/blocks/{{}}", c.depth
    d, f, n, k, h = c.width, c.mlp_dim, c.num_heads, c.num_kv_heads, c.head_dim
    # openpi's projections are [heads, D, H]; ours are [D, heads * H].
    by_head = (1, 0, 2)
    qkv = tuple(f"{block}/{name}" for name in ("query", "key", "value"))
    if n == k:
        projections = [(f"qkv_einsum{suffix}", qkv, n)]
    else:
        projections = [(f"q_einsum{suffix}", qkv[:1], n), (f"kv_einsum{suffix}", qkv[1:], k)]
    return [
        *(
            Row(f"{layers}/attn/{name}/w", modules, (heads, d, h), by_head, depth)
            for name, modules, heads in projections
        ),
        Row(f"{layers}/attn/attn_vec_einsum{suffix}/w", (f"{block}/out",), (n, h, d), layers=depth),
        Row(
            f"{layers}/mlp{suffix}/gating_einsum",
            (f"{block}/gate", f"{block}/up"),
            (d, f),
            layers=depth,
        ),
        Row(f"{layers}/mlp{suffix}/linear", (f"{block}/down",), (f, d), layers=depth),
        *_norm(
            f"{layers}/pre_attention_norm{suffix}", f"{block}/attention_norm", d, depth, adaptive
        ),
        *_norm(f"{layers}/pre_ffw_norm{suffix}", f"{block}/mlp_norm", d, depth, adaptive),
        *_norm(f"PaliGemma/llm/final_norm{suffix}", f"{ours}/final_norm", d, None, adaptive),
    ]


def _norm(path: str, module: str, width: int, layers: int | None, adaptive: bool) -> list[Row]:
    if adaptive:
        return _linear(f"{path}/Dense_0", f"{module}/modulation", (width, 3 * width), layers)
    return [Row(f"{path}/scale", (f"{module}/scale",), (width,), layers=layers)]


def is_stacked(path: str) -> bool:
    """Whether openpi's array of this path has its layers on axis 0."""
    return "/layers/" in path or "/encoderblock/" in path


def openpi_manifest(config: Config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Path -> (shape, dtype) of every array that openpi's model of this config has.

    Allocates nothing. openpi creates all its parameters in float32.
    """
    return {row.path: (row.stored_shape, DTYPES["float32"]) for row in rows(config)}


# --- checks -------------------------------------------------------------------------------------


def check(
    title: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    hint: str = "",
) -> None:
    """Raises one ValueError that lists every array that is missing, too many, or of another shape
    or number type (anything but float32, bfloat16 and float16)."""
    wrong_shape, wrong_type = [], []
    for name in expected.keys() & found.keys():
        shape, dtype = found[name]
        if tuple(shape) != tuple(expected[name]):
            wrong_shape.append(f"{name}: found {_show(shape)}, expected {_show(expected[name])}")
        if dtype not in DTYPES.values():
            wrong_type.append(f"{name}: found {dtype}, expected one of {', '.join(DTYPES)}")
    groups = {
        "missing": [f"{x} {_show(expected[x])}" for x in expected.keys() - found.keys()],
        "not expected": [f"{x} {_show(found[x][0])}" for x in found.keys() - expected.keys()],
        "wrong shape": wrong_shape,
        "wrong type": wrong_type,
    }
    if any(groups.values()):
        lines = [title]
        for group, entries in groups.items():
            lines += _fold(group, entries)
        raise ValueError("\n".join([*lines, hint] if hint else lines))


def _show(shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _fold(group: str, entries: list[str]) -> list[str]:
    """One line an entry; entries that differ only in the number of their layer share one."""
    if not entries:
        return []
    folded: dict[str, int] = {}
    for entry in sorted(entries):
        pattern = re.sub(r"(?<=[./])\d+(?=[./])", "*", entry)
        folded[pattern] = folded.get(pattern, 0) + 1
    lines = [f"    {x}" + (f"  ({n} of them)" if n > 1 else "") for x, n in folded.items()]
    return [f"  {group} ({len(entries)}):", *lines]


def has_nonfinite(x: np.ndarray) -> bool:
    """Whether a float array holds NaN or infinity; needs no second array, unlike `isfinite`.

    With the exponent all ones a value is not finite; so among the positive ones it is no less than
    infinity as an integer, and likewise among the negative ones.
    """
    size = x.itemsize
    infinity = int(np.array(np.inf, x.dtype).view(f"u{size}"))
    sign = 1 << (8 * size - 1)
    x = np.ascontiguousarray(x)
    return x.view(f"i{size}").max() >= infinity or x.view(f"u{size}").max() >= infinity | sign


# --- models -------------------------------------------------------------------------------------


def abstract_model(config: Config) -> Policy:
    """The model with shapes in place of arrays."""
    model = Pi0Fast if isinstance(config, Pi0FastConfig) else Pi0
    return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))


def family_of(paths: Iterable[str]) -> str:
    """What kind of model openpi's paths make: pi0, pi05 or pi0_fast."""
    paths = set(paths)
    if "action_in_proj/kernel" not in paths:
        return "pi0_fast"
    return "pi05" if "time_mlp_in/kernel" in paths else "pi0"


def assemble(
    config: Config,
    arrays: Mapping[str, Stored],
    *,
    where: str,
    dtype: DType | None,
    progress: Progress | None = None,
) -> Policy:
    """The model that openpi's arrays make, its parameters in `dtype` (None: as stored).

    Everything is checked before the first array is read; each array is then read, checked for NaN
    and infinity, cast and put on the default device before the next. The largest come first, while
    there is the most room. Raises ValueError; never returns a model with anything left out.
    """
    table = rows(config)
    ours, theirs = family_of(row.path for row in table), family_of(arrays)
    hint = f"It looks like a {theirs} checkpoint; the config is {ours}'s." if ours != theirs else ""
    check(
        f"{where} does not fit the config ({ours}):",
        {row.path: row.stored_shape for row in table},
        {path: (stored.shape, stored.dtype) for path, stored in arrays.items()},
        hint,
    )
    return fill(abstract_model(config), _values(table, arrays, where, progress), dtype)


def _values(
    table: tuple[Row, ...], arrays: Mapping[str, Stored], where: str, progress: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(nnx path, array with its axes in our order) of everything, the largest first."""
    done, total = 0, sum(stored.nbytes for stored in arrays.values())
    report = progress or (lambda *_: None)
    for row in sorted(table, key=lambda row: -arrays[row.path].nbytes):
        report(done, total, row.path)
        for index, layer in enumerate(arrays[row.path].layers()):
            if has_nonfinite(layer):
                which = row.path if row.layers is None else f"{row.path}, layer {index}"
                raise ValueError(
                    f"{where}: {which} holds NaN or infinity, so the training run that wrote it "
                    "diverged or the file is damaged; use an earlier step or copy it again"
                )
            yield from zip(row.module_paths(index), row.unpack(layer), strict=True)
            done += layer.nbytes
            report(done, total, row.path)
            del layer  # a view of an array that the next one's place is needed for


def fill(abstract: Policy, values: Iterable[tuple[str, np.ndarray]], dtype: DType | None) -> Policy:
    """The model whose parameters are the values, by nnx path.

    Each is reshaped to its parameter, cast and put on the default device as it comes.
    """
    graphdef, state = nnx.split(abstract)
    parameters = {_name(path): (path, parameter) for path, parameter in nnx.to_flat_state(state)}
    filled = {}
    for name, value in values:
        path, parameter = parameters[name]
        # Always a copy: JAX lets go late of what it was given, and a view would keep all of the
        # array it belongs to while the next is read.
        value = np.array(value, dtype=dtype and DTYPES[dtype], order="C")
        filled[path] = parameter.replace(jax.device_put(value.reshape(parameter.shape)))
    assert len(filled) == len(parameters), "the caller checks that every parameter has a value"
    return nnx.merge(graphdef, nnx.from_flat_state(filled.items()))


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
