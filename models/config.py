"""Sizes of the models: every number in which a 3B model and a small one differ is a field here.

Sources: openpi's `gemma.py`, `siglip.py`, `pi0_config.py` and `pi0_fast.py` under `models/`.
"""

import dataclasses
from typing import Literal, get_args

DType = Literal["float32", "bfloat16"]
# Whose way of putting a sequence together, where the two differ.
Convention = Literal["openpi", "lerobot"]


@dataclasses.dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP vision transformer; one square image becomes `num_tokens` tokens."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    image_size: int

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(
                f"vision width {self.width} does not divide into {self.num_heads} heads"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image size {self.image_size} is no multiple of patch {self.patch_size}"
            )

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, slots=True)
class ExpertConfig:
    """One Gemma decoder: the vision-language prefix expert or the action expert."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not divide over {self.num_kv_heads} kv heads"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Pi0Config:
    """pi0 (state as a token, RMSNorm) and, with `pi05`, pi0.5 (state in the prompt, adaRMS).

    `action_dim` is the model's padded width for state and actions, not the robot's.
    """

    vision: VisionConfig
    language: ExpertConfig
    action_expert: ExpertConfig
    vocab_size: int
    action_dim: int
    action_horizon: int
    max_token_len: int
    pi05: bool
    dtype: DType
    image_slots: tuple[str, ...]

    def __post_init__(self):
        shared = ("depth", "num_heads", "num_kv_heads", "head_dim")
        for name in shared:
            prefix, suffix = getattr(self.language, name), getattr(self.action_expert, name)
            if prefix != suffix:
                raise ValueError(
                    f"both experts share one attention, so {name} must agree: "
                    f"language has {prefix}, action expert has {suffix}"
                )

    @property
    def prefix_len(self) -> int:
        return len(self.image_slots) * self.vision.num_tokens + self.max_token_len

    @property
    def suffix_len(self) -> int:
        return self.action_horizon + (0 if self.pi05 else 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Pi0FastConfig:
    """pi0-FAST: one Gemma that writes actions as tokens.

    `convention`: LeRobot's ends the prompt with a start token of its own (one of `max_token_len`);
    what follows stands at the next positions and attends to every valid token, which openpi's does
    not.
    """

    vision: VisionConfig
    language: ExpertConfig
    vocab_size: int
    action_dim: int
    action_horizon: int
    max_token_len: int
    dtype: DType
    image_slots: tuple[str, ...]
    convention: Convention = "openpi"

    @property
    def prefix_len(self) -> int:
        return len(self.image_slots) * self.vision.num_tokens + self.max_token_len


Config = Pi0Config | Pi0FastConfig

# The slots of pi0 and pi0.5, and of pi0-FAST as trained on DROID (openpi's `models/model.py` and
# `policies/droid_policy.py`); a LIBERO or ALOHA pi0-FAST uses the first set.
PI0_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FAST_SLOTS = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")

SIGLIP_SO400M = VisionConfig(
    width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14, image_size=224
)
GEMMA_2B = ExpertConfig(
    width=2048, depth=18, mlp_dim=16_384, num_heads=8, num_kv_heads=1, head_dim=256
)
GEMMA_300M = ExpertConfig(
    width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256
)
PALIGEMMA_VOCAB = 257_152

PI0 = Pi0Config(
    vision=SIGLIP_SO400M,
    language=GEMMA_2B,
    action_expert=GEMMA_300M,
    vocab_size=PALIGEMMA_VOCAB,
    action_dim=32,
    action_horizon=50,
    max_token_len=48,
    pi05=False,
    dtype="bfloat16",
    image_slots=PI0_SLOTS,
)
PI05 = dataclasses.replace(PI0, max_token_len=200, pi05=True)
PI0_FAST = Pi0FastConfig(
    vision=SIGLIP_SO400M,
    language=GEMMA_2B,
    vocab_size=PALIGEMMA_VOCAB,
    action_dim=32,
    action_horizon=32,
    max_token_len=250,
    dtype="bfloat16",
    image_slots=FAST_SLOTS,
)

# The bundled policies of the simulated table: the same models, small enough to be learned on a CPU
# in hours. 112 pixels a side are 64 tokens; the vocabulary is playground/training/tokenizers.py's.
_TABLETOP_VISION = VisionConfig(
    width=128, depth=4, mlp_dim=384, num_heads=4, patch_size=14, image_size=112
)
_TABLETOP_LANGUAGE = ExpertConfig(
    width=128, depth=4, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32
)
_TABLETOP_ACTION = dataclasses.replace(_TABLETOP_LANGUAGE, mlp_dim=256)
TABLETOP_VOCAB = 2432
PI0_TABLETOP = Pi0Config(
    vision=_TABLETOP_VISION,
    language=_TABLETOP_LANGUAGE,
    action_expert=_TABLETOP_ACTION,
    vocab_size=TABLETOP_VOCAB,
    action_dim=14,
    action_horizon=50,
    max_token_len=48,
    pi05=False,
    dtype="float32",
    image_slots=PI0_SLOTS,
)
PI05_TABLETOP = dataclasses.replace(PI0_TABLETOP, pi05=True, max_token_len=128)
PI0_FAST_TABLETOP = Pi0FastConfig(
    vision=_TABLETOP_VISION,
    language=_TABLETOP_LANGUAGE,
    vocab_size=TABLETOP_VOCAB,
    action_dim=14,
    action_horizon=50,
    max_token_len=208,
    dtype="float32",
    image_slots=PI0_SLOTS,
)


def to_dict(config: Config) -> dict:
    """A config as plain JSON values, with the model's family under `model`."""
    family = "pi0_fast" if isinstance(config, Pi0FastConfig) else "pi05" if config.pi05 else "pi0"
    return {"model": family, **dataclasses.asdict(config)}


def from_dict(data: dict) -> Config:
    """The config that `to_dict` wrote; raises ValueError that names missing or unknown fields."""
    data = dict(data)
    family = data.pop("model", None)
    if family not in ("pi0", "pi05", "pi0_fast"):
        raise ValueError(f"config field 'model' is {family!r}; expected pi0, pi05 or pi0_fast")
    cls = Pi0FastConfig if family == "pi0_fast" else Pi0Config
    _check_fields(cls, data)
    parts = {"vision": VisionConfig, "language": ExpertConfig, "action_expert": ExpertConfig}
    for name in parts.keys() & data.keys():
        _check_fields(parts[name], data[name])
        data[name] = parts[name](**data[name])
    data["image_slots"] = tuple(data["image_slots"])
    for name, values in (("dtype", get_args(DType)), ("convention", get_args(Convention))):
        if name in data and data[name] not in values:
            raise ValueError(f"config {name} is {data[name]!r}; expected {' or '.join(values)}")
    config = cls(**data)
    if isinstance(config, Pi0Config) and config.pi05 != (family == "pi05"):
        raise ValueError(f"config says model {family!r} and pi05 = {config.pi05}: they disagree")
    return config


def _check_fields(cls, data: dict):
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing, unknown = needed - data.keys(), data.keys() - {field.name for field in fields}
    if missing or unknown:
        raise ValueError(
            f"{cls.__name__}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}"
        )
