"""openpi's LoRA fine-tunes: the adapters merged into the weights they stand beside.

Beside an einsum's weight `w` [L, N, D, H] an adapter is a pair A [L, N, D, r], B [L, N, r, H], and
the layer computes x W + s (x A) B; so W + s A B does the same. Two things are unlike the textbook,
both openpi's (`models/lora.py`):

- The output projection of attention sums over heads twice, over x and A together and over B alone.
  So every head's A meets the sum of all heads' B.
- The feed-forward adapters are never scaled: s = 1 whatever alpha and rank say.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from models.checkpoints.arrays import Stored

# What openpi adapts, by its name in the layer without the expert's suffix.
_ATTENTION = ("q_einsum", "kv_einsum", "qkv_einsum", "attn_vec_einsum")
_FEED_FORWARD = ("gating_einsum", "linear")


@dataclasses.dataclass(frozen=True, slots=True)
class Lora:
    """How one expert was adapted. A checkpoint shows the rank and nothing else of it."""

    rank: int
    alpha: float
    rslora: bool = False

    @property
    def attention_scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Adapters(NamedTuple):
    """Of each expert, None for one that was not adapted."""

    language: Lora | None = None
    action: Lora | None = None


EXPERTS = Adapters._fields

# openpi's variants gemma_2b_lora and gemma_300m_lora (`models/gemma.py`).
GEMMA_2B_LORA = Lora(rank=16, alpha=16.0)
GEMMA_300M_LORA = Lora(rank=32, alpha=32.0)


class _Target(NamedTuple):
    """A weight with its adapters, by openpi's path."""

    base: str
    a: str
    b: str
    expert: int
    name: str


def merge(
    arrays: Mapping[str, Stored], adapters: Adapters | None, *, where: str
) -> dict[str, Stored]:
    """openpi's arrays without adapters: each adapted weight replaced by its sum with them.

    The sum is taken in float32 when the array is read, a layer at a time. Raises ValueError if the
    adapters do not fit `adapters` (None: none are expected), their weights or each other.
    """
    found = {path: stored for path, stored in arrays.items() if _is_adapter(path)}
    if not found and adapters is None:
        return dict(arrays)
    if adapters is None:
        raise ValueError(
            f"{where} holds LoRA adapters ({_ranks(found)}), and the scale that they were trained "
            "with is not stored. Say which: the config's LoRA variants (gemma_2b_lora is rank 16, "
            "alpha 16; gemma_300m_lora is rank 32, alpha 32) or rank and alpha of your own"
        )
    targets = [_target(path) for path in found if path.endswith("lora_a")]
    problems = _problems(targets, found, arrays, adapters)
    if problems:
        raise ValueError("\n".join([f"The LoRA adapters of {where} do not fit:", *problems]))
    merged = {path: stored for path, stored in arrays.items() if path not in found}
    for target in targets:
        lora = adapters[target.expert]
        scale = lora.attention_scale if lora and target.name in _ATTENTION else 1.0
        merged[target.base] = _sum(target, scale, arrays)
    return merged


def _sum(target: _Target, scale: float, arrays: Mapping[str, Stored]) -> Stored:
    base, a, b = (arrays[path] for path in (target.base, target.a, target.b))

    def layers(start: int, stop: int) -> Iterator[np.ndarray]:
        summands = (array.layers(start, stop) for array in (base, a, b))
        for w, left, right in zip(*summands, strict=True):
            w, left, right = (x.astype(np.float32, copy=False) for x in (w, left, right))
            if target.name == "attn_vec_einsum":
                right = right.sum(axis=0)
            yield w + np.float32(scale) * (left @ right)

    # In full precision whatever the base's: rounding the sum to bfloat16 would lose small updates.
    step = math.lcm(base.step, a.step, b.step)
    return Stored(base.shape, np.dtype(np.float32), layers, base.num_layers, step)


def _is_adapter(path: str) -> bool:
    return path.endswith(("lora_a", "lora_b"))


def _target(a: str) -> _Target:
    """From the path of an A: in attention it is `w`'s sibling, in the feed-forward part the base's
    name with a suffix."""
    parts = a.split("/")
    if parts[-1] == "lora_a":
        base, module, name = "/".join([*parts[:-1], "w"]), parts[-2], parts[-2].removesuffix("_1")
    else:
        base, module = a.removesuffix("_lora_a"), parts[-2]
        name = parts[-1].removesuffix("_lora_a")
    expert = 1 if module.endswith("_1") else 0
    return _Target(base, a, a.removesuffix("a") + "b", expert, name)


def _problems(
    targets: list[_Target],
    found: Mapping[str, Stored],
    arrays: Mapping[str, Stored],
    adapters: Adapters,
) -> list[str]:
    problems = []
    for target in targets:
        if target.name not in (*_ATTENTION, *_FEED_FORWARD):
            problems.append(f"  {target.a}: no layer that openpi adapts")
        elif target.base not in arrays or target.b not in arrays:
            missing = [path for path in (target.base, target.b) if path not in arrays]
            problems.append(f"  {target.a}: {' and '.join(missing)} is missing")
        else:
            problems += _shape_problems(target, arrays, adapters[target.expert])
    partners = {path for target in targets for path in (target.a, target.b)}
    problems += [f"  {path}: its other half is missing" for path in found.keys() - partners]
    present = {target.expert for target in targets}
    for expert, lora in enumerate(adapters):
        if lora is not None and expert not in present:
            problems.append(f"  the {EXPERTS[expert]} expert has no adapters; expected {lora}")
    return sorted(problems)


def _shape_problems(target: _Target, arrays: Mapping[str, Stored], lora: Lora | None) -> list[str]:
    base, a, b = (arrays[path].shape for path in (target.base, target.a, target.b))
    rank = a[-1]
    problems = []
    if a != (*base[:-1], rank) or b != (*base[:-2], rank, base[-1]):
        problems.append(f"  {target.a} {list(a)} and its B {list(b)} beside {list(base)}")
    if lora is None:
        problems.append(f"  {target.a}: of rank {rank}, in an expert that should have no adapters")
    elif lora.rank != rank and target.name in _ATTENTION:
        problems.append(f"  {target.a}: of rank {rank}, expected {lora.rank}")
    return problems


def _ranks(found: Mapping[str, Stored]) -> str:
    ranks = {
        f"{EXPERTS[_target(path).expert]}: rank {stored.shape[-1]}"
        for path, stored in found.items()
        if path.endswith("lora_a")
    }
    return ", ".join(sorted(ranks))
