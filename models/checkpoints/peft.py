"""PEFT's LoRA adapters, merged into the weights that they change.

A linear layer W [out, in] with adapters A [r, in] and B [out, r] computes W x + s B A x, with
s = alpha / r, or alpha / sqrt(r) (rank-stabilised). Modules that were trained whole come whole.
Anything else that PEFT knows is refused by its name. Source: peft's `tuners/lora`.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from models.checkpoints.arrays import Stored, open_safetensors
from models.checkpoints.digests import ADAPTER_CONFIG, ADAPTERS, read_json

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings that say where adapters are or how they were begun and trained; the arrays say the same.
_PLAIN = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("lora_alpha", "lora_dropout", "modules_to_save", "parent_library", "peft_type"),
    *("peft_version", "r", "revision", "target_modules", "task_type", "use_rslora"),
    *("loftq_config", "eva_config", "corda_config", "megatron_core", "qalora_group_size"),
}


def base_of(folder: Path) -> str | None:
    """The model that a folder's adapters change, as PEFT noted it: a folder, or the hub's name."""
    return read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")


def merge(arrays: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """The arrays with a folder's adapters in them, by LeRobot's names without `model.`; each sum is
    taken in float32 when it is read. Raises one ValueError for all that is no plain LoRA or fits no
    weight."""
    scale = _scale(folder)
    found = {
        name.removeprefix(_PREFIX).removeprefix("model."): stored
        for name, stored in open_safetensors(folder / ADAPTERS).items()
    }
    merged, problems = dict(arrays), []
    for name, stored in found.items():
        if name.endswith(_B):
            problems += [] if name.replace(_B, _A) in found else [f"{name}: its A is missing"]
        elif not name.endswith(_A):
            problems += _replace(merged, name, stored)
        else:
            path = name.removesuffix(_A)
            weight, b = arrays.get(f"{path}.weight"), found.get(f"{path}{_B}")
            if weight is None or b is None:
                problems.append(f"{name}: {'no weight' if weight is None else 'no B'} beside it")
            elif weight.shape != (b.shape[0], stored.shape[1]) or b.shape[1] != stored.shape[0]:
                shapes = f"A {list(stored.shape)} and B {list(b.shape)}"
                problems.append(f"{name}: {shapes} beside {list(weight.shape)}")
            else:
                merged[f"{path}.weight"] = _sum(weight, stored, b, scale(stored.shape[0]))
    if problems:
        raise ValueError("\n  ".join([f"{folder} is no plain LoRA of this model:", *problems]))
    return merged


def _replace(merged: dict[str, Stored], name: str, stored: Stored) -> list[str]:
    """A module that was trained whole; what is wrong with it."""
    if name not in merged:
        return [f"{name}: no such array in the model"]
    if merged[name].shape != stored.shape:
        return [f"{name}: {list(stored.shape)}, expected {list(merged[name].shape)}"]
    merged[name] = stored
    return []


def _sum(weight: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    def layers() -> Iterator[np.ndarray]:
        w, left, right = (x.read().astype(np.float32, copy=False) for x in (weight, b, a))
        yield w + np.float32(scale) * (left @ right)

    return Stored(weight.shape, np.dtype(np.float32), layers)


def _scale(folder: Path):
    """The scale by rank. Raises ValueError for what is no plain LoRA."""
    config = read_json(folder / ADAPTER_CONFIG)
    where, kind = folder / ADAPTER_CONFIG, config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{where}: adapters of type {kind!r}; only plain LoRA is merged here")
    others = {name: x for name, x in config.items() if name not in _PLAIN and name != "bias"}
    odd = [f"{name} = {value!r}" for name, value in others.items() if value]
    if config.get("bias", "none") != "none":
        odd.append(f"bias = {config['bias']!r}")
    if odd:
        raise ValueError(
            f"{where}: {', '.join(odd)} is more than plain LoRA; merge the adapters in LeRobot "
            "(policy.merge_and_unload(), then save_pretrained), and open what that saves"
        )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise ValueError(f"{where}: lora_alpha is {alpha!r}; expected a number")
    rooted = config.get("use_rslora") is True
    return lambda rank: alpha / (math.sqrt(rank) if rooted else rank)
