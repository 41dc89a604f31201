"""The least work of each stage, counted from a model's sizes: arithmetic, and memory read once.

A stage cannot take less than its arithmetic at a device's rate, nor less than its memory at the
device's bandwidth. Counted are the matrix products and attention; norms, softmax and what a program
writes in between are not, so a floor is never quite reached.

T tokens, N query heads, K kv heads, H head dimension, D width, F the MLP's.
"""

import dataclasses

from models.config import Config, ExpertConfig, Pi0Config, Pi0FastConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """flop: additions and multiplications; read: bytes of weights and caches, each read once."""

    flop: float
    read: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flop + other.flop, self.read + other.read)

    def times(self, count: int) -> "Work":
        return Work(count * self.flop, count * self.read)


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """What a device gives a second: flop of arithmetic, bytes read."""

    flop: float
    read: float

    def seconds(self, work: Work) -> float:
        return max(work.flop / self.flop, work.read / self.read)


def layer_weights(expert: ExpertConfig) -> int:
    """Of one decoder layer: queries and output, keys and values, and the gated MLP."""
    heads = 2 * expert.num_heads + 2 * expert.num_kv_heads
    return expert.width * (heads * expert.head_dim + 3 * expert.mlp_dim)


def vision(config: Config, images: int, itemsize: int) -> Work:
    """SigLIP over `images` pictures in one call."""
    v = config.vision
    tokens = images * v.num_tokens
    patches = 3 * v.patch_size**2 * v.width
    weights = patches + v.depth * (4 * v.width**2 + 2 * v.width * v.mlp_dim)
    weights += v.width * config.language.width
    attention = 4 * v.depth * tokens * v.num_tokens * v.width
    return Work(2 * tokens * weights + attention, itemsize * weights)


def decoder(expert: ExpertConfig, tokens: int, cached: int, itemsize: int) -> Work:
    """One pass of `tokens` over all layers, after `cached` earlier ones."""
    heads = expert.num_heads * expert.head_dim
    weights = expert.depth * layer_weights(expert)
    attention = 4 * expert.depth * tokens * (cached + tokens) * heads
    cache = 2 * expert.depth * cached * expert.num_kv_heads * expert.head_dim
    return Work(2 * tokens * weights + attention, itemsize * (weights + cache))


def prefix(config: Config, tokens: int, itemsize: int) -> Work:
    """Image and text tokens through the language model."""
    return decoder(config.language, tokens, 0, itemsize)


def euler_step(config: Pi0Config, prefix_tokens: int, itemsize: int) -> Work:
    return decoder(config.action_expert, config.suffix_len, prefix_tokens, itemsize)


def token(config: Pi0FastConfig, cached: int, itemsize: int) -> Work:
    """One decoded token: a pass of one, and the logits of the whole vocabulary."""
    table = config.vocab_size * config.language.width
    return decoder(config.language, 1, cached, itemsize) + Work(2 * table, itemsize * table)
