"""Gemma in NumPy, one sequence at a time, written from the papers' formulas: what interventions are
held against. Tokens stay in the order they were embedded in; nothing is aligned, batched or cut
from a cache.

T tokens, D width, L layers, H head dimension.
"""

from typing import NamedTuple

import numpy as np
import scipy.special


class Memory(NamedTuple):
    """One layer's rotated keys and values, [T, H] each: one kv head."""

    k: np.ndarray
    v: np.ndarray


def run(expert, x, positions, allowed, before=None, condition=None):
    """(outputs [T, D] after the final norm, a Memory for each layer) of tokens x [T, D].

    allowed: for each layer bool [T, S], over the tokens before and then the new ones
    before: for each layer the Memory of earlier tokens
    """
    x, memories = np.asarray(x, np.float64), []
    for layer, block in enumerate(expert.blocks):
        normed, gate = _norm(block.attention_norm, x, condition)
        config = block.config
        assert config.num_kv_heads == 1
        q = (normed @ _weights(block.query)).reshape(len(x), config.num_heads, config.head_dim)
        k = _rotated((normed @ _weights(block.key))[:, None], positions)[:, 0]
        v = normed @ _weights(block.value)
        q = _rotated(q, positions) / np.sqrt(config.head_dim)
        memories.append(Memory(k, v))
        if before is not None:
            k, v = (np.concatenate(both) for both in zip(before[layer], (k, v), strict=True))
        may = np.asarray(allowed[layer])[:, None]
        scores = np.where(may, np.einsum("tnh,sh->tns", q, k), -np.inf)
        # A query without any key gets uniform weights, as in openpi.
        scores = np.where(may.any(axis=-1, keepdims=True), scores, 0.0)
        heads = scipy.special.softmax(scores, axis=-1) @ v
        x = x + gate * (heads.reshape(len(x), -1) @ _weights(block.out))
        normed, gate = _norm(block.mlp_norm, x, condition)
        hidden = _gelu(normed @ _weights(block.gate)) * (normed @ _weights(block.up))
        x = x + gate * (hidden @ _weights(block.down))
    return _norm(expert.final_norm, x, condition)[0], memories


def _weights(kernel) -> np.ndarray:
    return np.asarray(kernel[...], np.float64)[:, : kernel.columns]


def _norm(norm, x, condition):
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    if not hasattr(norm, "modulation"):
        return x * (1 + np.asarray(norm.scale[...], np.float64)), 1.0
    linear = norm.modulation
    weights, bias = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.bias))
    scale, shift, gate = np.split(np.asarray(condition, np.float64) @ weights + bias, 3)
    return x * (1 + scale) + shift, gate


def _rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    angle = np.asarray(positions)[:, None, None] / 10_000 ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = (first * np.cos(angle) - second * np.sin(angle),
              second * np.cos(angle) + first * np.sin(angle))  # fmt: skip
    return np.concatenate(turned, axis=-1)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
