"""openpi's parameters and ours: one table, read both ways.

The canonical layout of a checkpoint is openpi's: paths such as
`PaliGemma/llm/layers/attn/q_einsum/w`, layers stacked on axis 0, the action expert's arrays with
the suffix `_1`. A row of the table says which of our modules an array holds and how its axes turn
into ours.

Axes: L layers, N query heads, K kv heads, H head dimension, D width, F MLP width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from models.checkpoints.arrays import DTYPES, Stored, open_orbax
from models.config import Config, ExpertConfig, Pi0FastConfig, VisionConfig


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


def parameter_count(config: Config) -> int:
    """How many numbers a model of this config has."""
    return sum(math.prod(row.stored_shape) for row in rows(config))


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


def family_of(paths: Iterable[str]) -> str:
    """What kind of model openpi's paths make: pi0, pi05 or pi0_fast."""
    paths = set(paths)
    if "action_in_proj/kernel" not in paths:
        return "pi0_fast"
    return "pi05" if "time_mlp_in/kernel" in paths else "pi0"


def open_openpi(params: Path) -> dict[str, Stored]:
    """openpi's path -> array of a `params/` folder, nothing read yet but sizes.

    A training save ends every path in `value`, a bare one does not (`restore_params` in openpi's
    `models/model.py`).
    """
    arrays = open_orbax(params, is_stacked)
    suffix = "/value" if all(path.endswith("/value") for path in arrays) else ""
    return {
        path.removeprefix("params/").removesuffix(suffix): stored for path, stored in arrays.items()
    }
