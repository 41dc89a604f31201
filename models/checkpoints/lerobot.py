"""LeRobot's checkpoints of pi0, pi0.5 and pi0-FAST: mapped by a table to openpi's arrays.

A folder holds `model.safetensors`, `config.json` and two processor descriptions with norm stats.
Weights of linear layers are [out, in], a layer an array; ours come from openpi's layout, so a row
says which arrays stand side by side in one of openpi's and how each turns into its share of it.
Source: LeRobot's `policies/{pi0,pi05,pi0_fast}`, transformers' PaliGemma for the names.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.checkpoints import peft
from models.checkpoints.arrays import Stored, check, open_safetensors
from models.checkpoints.openpi import Row, rows
from models.config import (
    Config,
    Pi0Config,
    Pi0FastConfig,
)

Shape = tuple[int, ...]


class Turn(NamedTuple):
    """How one of LeRobot's arrays becomes a share of openpi's: the shape that it has there, and
    the change, both from the share's shape."""

    shape: Callable[[Shape], Shape]
    change: Callable[[np.ndarray, Shape], np.ndarray]


def _kernel(inputs: int) -> Turn:
    """[out, in] to a kernel whose first `inputs` axes are `in`."""
    return Turn(
        lambda s: (math.prod(s[inputs:]), math.prod(s[:inputs])),
        lambda x, s: x.T.reshape(s),
    )


KERNEL, OUT_KERNEL = _kernel(inputs=1), _kernel(inputs=2)
VECTOR = Turn(lambda s: (math.prod(s),), lambda x, s: x.reshape(s))
TABLE = Turn(lambda s: s[-2:], lambda x, s: x.reshape(s))
# [heads * H, D] to [heads, D, H]
HEADS = Turn(
    lambda s: (s[0] * s[2], s[1]),
    lambda x, s: x.reshape(s[0], s[2], s[1]).transpose(0, 2, 1),
)
# [W, 3, rows, columns] to [rows, columns, 3, W]
PATCHES = Turn(lambda s: (s[3], s[2], s[0], s[1]), lambda x, s: x.transpose(2, 3, 1, 0))

PALIGEMMA = "paligemma_with_expert.paligemma"
LM_HEAD = f"{PALIGEMMA}.lm_head.weight"
EMBEDDING = f"{PALIGEMMA}.model.language_model.embed_tokens.weight"
EXPERT_LM_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"

# openpi's path -> (LeRobot's names, `{}` for the layer; how each turns)
Names = dict[str, tuple[tuple[str, ...], Turn]]


def open_lerobot(path: Path, config: Config, adapters: Path | None = None) -> dict[str, Stored]:
    """openpi's path -> array of a LeRobot file, nothing read yet but its header. adapters: a folder
    of PEFT's for these weights (`peft.merge`)."""
    found = _canonical_names(path, open_safetensors(path), config)
    if adapters is not None:
        found = peft.merge(found, adapters)
    table = rows(config)
    names = _names(config)
    expected = {}
    for row in table:
        theirs, turn = names[row.path]
        for layer in range(row.layers or 1):
            expected |= dict.fromkeys((x.format(layer) for x in theirs), turn.shape(row.shape))
    check(
        f"{path} does not fit the config:",
        expected,
        {name: (stored.shape, stored.dtype) for name, stored in found.items()},
    )
    return {row.path: _joined(row, *names[row.path], found) for row in table}


def _joined(row: Row, theirs: tuple[str, ...], turn: Turn, found: Mapping[str, Stored]) -> Stored:
    """One of openpi's arrays, made of LeRobot's a layer at a time."""

    def layers(start: int, stop: int) -> Iterator[np.ndarray]:
        for layer in range(start, stop):
            shares = [turn.change(found[x.format(layer)].read(), row.shape) for x in theirs]
            yield shares[0] if len(shares) == 1 else np.stack(shares)

    dtypes = {found[x.format(i)].dtype for x in theirs for i in range(row.layers or 1)}
    return Stored(row.stored_shape, np.result_type(*dtypes), layers, row.layers or 1)


def _canonical_names(path: Path, found: dict[str, Stored], config: Config) -> dict[str, Stored]:
    """The arrays that count, under the names of the table: what differs between versions."""
    if found and all(name.startswith("model.") for name in found):
        found = {name.removeprefix("model."): stored for name, stored in found.items()}
    # The action expert never writes text.
    found.pop(EXPERT_LM_HEAD, None)
    # Published files, and those of LeRobot 0.4, hold the token table as the output layer only.
    if EMBEDDING not in found and LM_HEAD in found:
        found[EMBEDDING] = found.pop(LM_HEAD)
    elif LM_HEAD in found:
        head = found.pop(LM_HEAD)
        if isinstance(config, Pi0FastConfig) and not _equal(head, found[EMBEDDING]):
            raise ValueError(
                f"{path}: lm_head and embed_tokens differ, so this pi0-FAST was fine-tuned with an "
                "output layer of its own; here, as in openpi, both are one table"
            )
    if isinstance(config, Pi0Config) and config.pi05:
        # LeRobot's own loader makes these two allowances for pi0.5.
        found = {k: v for k, v in found.items() if not k.startswith("state_proj.")}
        found = {k.replace("action_time_mlp_", "time_mlp_"): v for k, v in found.items()}
    return found


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.read(), b.read())


def _names(config: Config) -> Names:
    names = {
        **_vision(),
        "PaliGemma/llm/embedder/input_embedding": ((EMBEDDING,), TABLE),
        **_expert("", f"{PALIGEMMA}.model.language_model"),
    }
    if isinstance(config, Pi0Config):
        names |= _expert("_1", "paligemma_with_expert.gemma_expert.model")
        for head in (
            *("state_proj", "action_in_proj", "action_out_proj"),
            *("action_time_mlp_in", "action_time_mlp_out", "time_mlp_in", "time_mlp_out"),
        ):
            names |= _linear(head, head)
    return names


def _linear(openpi: str, theirs: str, turn: Turn = KERNEL) -> Names:
    return {
        f"{openpi}/kernel": ((f"{theirs}.weight",), turn),
        f"{openpi}/bias": ((f"{theirs}.bias",), VECTOR),
    }


def _vision() -> Names:
    image, tower = "PaliGemma/img", f"{PALIGEMMA}.model.vision_tower.vision_model"
    block, theirs = f"{image}/Transformer/encoderblock", f"{tower}.encoder.layers.{{}}"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    names = {
        **_linear(f"{image}/embedding", f"{tower}.embeddings.patch_embedding", PATCHES),
        f"{image}/pos_embedding": ((f"{tower}.embeddings.position_embedding.weight",), TABLE),
        **_linear(f"{attention}/out", f"{theirs}.self_attn.out_proj", OUT_KERNEL),
        **_linear(f"{block}/MlpBlock_0/Dense_0", f"{theirs}.mlp.fc1"),
        **_linear(f"{block}/MlpBlock_0/Dense_1", f"{theirs}.mlp.fc2"),
        **_linear(f"{image}/head", f"{PALIGEMMA}.model.multi_modal_projector.linear"),
    }
    for ours, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        names |= _linear(f"{attention}/{ours}", f"{theirs}.self_attn.{name}")
    for ours, name in (
        (f"{block}/LayerNorm_0", f"{theirs}.layer_norm1"),
        (f"{block}/LayerNorm_1", f"{theirs}.layer_norm2"),
        (f"{image}/Transformer/encoder_norm", f"{tower}.post_layernorm"),
    ):
        names[f"{ours}/scale"] = ((f"{name}.weight",), VECTOR)
        names[f"{ours}/bias"] = ((f"{name}.bias",), VECTOR)
    return names


def _expert(suffix: str, theirs: str) -> Names:
    layers, layer = "PaliGemma/llm/layers", f"{theirs}.layers.{{}}"
    attention = {x: f"{layer}.self_attn.{x}_proj.weight" for x in "qkvo"}
    mlp = {x: f"{layer}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
    names = {
        f"{layers}/attn/q_einsum{suffix}/w": ((attention["q"],), HEADS),
        f"{layers}/attn/kv_einsum{suffix}/w": ((attention["k"], attention["v"]), HEADS),
        f"{layers}/attn/attn_vec_einsum{suffix}/w": ((attention["o"],), OUT_KERNEL),
        f"{layers}/mlp{suffix}/gating_einsum": ((mlp["gate"], mlp["up"]), KERNEL),
        f"{layers}/mlp{suffix}/linear": ((mlp["down"],), KERNEL),
    }
    for ours, name in (
        (f"{layers}/pre_attention_norm{suffix}", f"{layer}.input_layernorm"),
        (f"{layers}/pre_ffw_norm{suffix}", f"{layer}.post_attention_layernorm"),
        (f"PaliGemma/llm/final_norm{suffix}", f"{theirs}.norm"),
    ):
        # Both sides multiply by 1 + scale. pi0.5's action expert has the second kind.
        names[f"{ours}/scale"] = ((f"{name}.weight",), VECTOR)
        names |= _linear(f"{ours}/Dense_0", f"{name}.dense")
    return names
