"""PEFT's LoRA adapters, merged into the weights that they change.

A linear layer W [out, in] with adapters A [r, in] and B [out, r] computes W x + s B A x, with
s = alpha / r, or alpha / sqrt(r) (rank-stabilised). Modules that were trained whole come whole.
Anything else that PEFT knows is refused by its name. Source: peft's `tuners/lora`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from models.checkpoints.arrays import DTYPES, Stored, open_safetensors
from models.checkpoints.digests import ADAPTER_CONFIG, ADAPTERS, read_json

Shape = tuple[int, ...]

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings that say where adapters are or how they were begun and trained; the arrays say the same.
_PLAIN = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules"),
    *("inference_mode", "layers_pattern", "layers_to_transform"),
    *("lora_alpha", "lora_dropout", "modules_to_save", "parent_library", "peft_type"),
    *("peft_version", "r", "revision", "target_modules", "task_type", "use_rslora"),
    *("loftq_config", "eva_config", "corda_config", "megatron_core", "qalora_group_size"),
}
# How adapters may begin. Other ways (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the model's own
# weights before training, so that adapters alone do not say what was trained.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def base_of(folder: Path) -> str | None:
    """The model that a folder's adapters change, as PEFT noted it: a folder, or the hub's name."""
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is {base!r}; expected a name"
        )
    return base


def merge(arrays: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """The arrays with a folder's adapters in them, by LeRobot's names without `model.`; each sum is
    taken in float32 when it is read. Raises one ValueError for all that is no plain LoRA or fits no
    weight."""
    config = read_json(folder / ADAPTER_CONFIG)
    scale = _scale(config, folder / ADAPTER_CONFIG)
    found = {
        name.removeprefix(_PREFIX).removeprefix("model."): stored
        for name, stored in open_safetensors(folder / ADAPTERS).items()
    }
    merged, problems = dict(arrays), _left_out(config.get("target_modules"), found)
    for name, stored in found.items():
        if stored.dtype not in DTYPES.values():
            problems.append(f"{name}: {stored.dtype}, expected one of {', '.join(DTYPES)}")
        elif name.endswith(_B):
            problems += [] if name.replace(_B, _A) in found else [f"{name}: its A is missing"]
        elif not name.endswith(_A):
            problems += _replace(merged, name, stored)
        else:
            path = name.removesuffix(_A)
            weight, b = arrays.get(f"{path}.weight"), found.get(f"{path}{_B}")
            if weight is None or b is None:
                problems.append(f"{name}: {'no weight' if weight is None else 'no B'} beside it")
            elif not _fit(weight.shape, stored.shape, b.shape, config.get("r")):
                shapes = f"A {list(stored.shape)} and B {list(b.shape)}"
                rank = f"r = {config.get('r')!r}"
                problems.append(f"{name}: {shapes} beside {list(weight.shape)} with {rank}")
            else:
                merged[f"{path}.weight"] = _sum(weight, stored, b, scale(stored.shape[0]))
    if problems:
        raise ValueError("\n  ".join([f"{folder} is no plain LoRA of this model:", *problems]))
    return merged


def _fit(weight: Shape, a: Shape, b: Shape, rank: object) -> bool:
    """Whether A is [rank, in] and B [out, rank] for a weight [out, in]."""
    if len(weight) != 2 or not isinstance(rank, int) or rank < 1:
        return False
    return (a, b) == ((rank, weight[1]), (weight[0], rank))


def _left_out(targets: object, found: Mapping[str, Stored]) -> list[str]:
    """The modules that were to be adapted and are not: such a file is not whole."""
    adapted = [name.removesuffix(_A) for name in found if name.endswith(_A)]
    if not adapted:
        return ["there are no adapters in it"]
    names = targets if isinstance(targets, list) else []
    return [
        f"target_modules names {name!r}, which has no adapters"
        for name in names
        if not any(f".{path}".endswith(f".{name}") for path in adapted)
    ]


def _replace(merged: dict[str, Stored], name: str, stored: Stored) -> list[str]:
    """A module that was trained whole; what is wrong with it."""
    if name not in merged:
        return [f"{name}: no such array in the model"]
    if merged[name].shape != stored.shape:
        return [f"{name}: {list(stored.shape)}, expected {list(merged[name].shape)}"]
    merged[name] = stored
    return []


def _sum(weight: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    def layers(*_) -> Iterator[np.ndarray]:
        w, left, right = (x.read().astype(np.float32, copy=False) for x in (weight, b, a))
        yield w + np.float32(scale) * (left @ right)

    return Stored(weight.shape, np.dtype(np.float32), layers)


def _scale(config: Mapping, where: Path) -> Callable[[int], float]:
    """The scale by rank. Raises ValueError for what is no plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{where}: adapters of type {kind!r}; only plain LoRA is merged here")
    known = {*_PLAIN, "bias", "init_lora_weights"}
    odd = [f"{name} = {value!r}" for name, value in config.items() if value and name not in known]
    if config.get("init_lora_weights", True) not in _INITS:
        odd.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    if config.get("bias", "none") != "none":
        odd.append(f"bias = {config['bias']!r}")
    if odd:
        raise ValueError(
            f"{where}: {', '.join(odd)} is more than plain LoRA; merge the adapters in LeRobot "
            "(policy.merge_and_unload(), then save_pretrained), and open what that saves"
        )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise ValueError(f"{where}: lora_alpha is {alpha!r}; expected a number above 0")
    rooted = config.get("use_rslora") is True
    return lambda rank: alpha / (math.sqrt(rank) if rooted else rank)
