"""The goldens' small models and cases as our objects: sizes and file names stand only here."""

import dataclasses
import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from models.checkpoints.assembly import load_openpi
from models.config import (
    FAST_SLOTS,
    PI0_SLOTS,
    ExpertConfig,
    Pi0Config,
    Pi0FastConfig,
    VisionConfig,
)
from models.observation import Observation, uint8_to_float
from tests.conftest import GOLDENS

VISION = VisionConfig(width=48, depth=2, mlp_dim=96, num_heads=4, patch_size=14, image_size=224)
LANGUAGE = ExpertConfig(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16)
ACTION = ExpertConfig(width=32, depth=3, mlp_dim=64, num_heads=4, num_kv_heads=1, head_dim=16)
PI0 = Pi0Config(
    vision=VISION,
    language=LANGUAGE,
    action_expert=ACTION,
    vocab_size=2048,
    action_dim=32,
    action_horizon=10,
    max_token_len=48,
    pi05=False,
    dtype="float32",
    image_slots=PI0_SLOTS,
)
CONFIGS = {
    "pi0": PI0,
    "pi05": dataclasses.replace(PI0, max_token_len=200, pi05=True),
    "pi0_fast": Pi0FastConfig(
        vision=VISION,
        language=LANGUAGE,
        vocab_size=2048,
        action_dim=32,
        action_horizon=10,
        max_token_len=180,
        dtype="float32",
        image_slots=FAST_SLOTS,
    ),
}


@functools.cache
def model(family: str, horizon: int = 10, dtype: str = "float32", params: str = "float32"):
    """The family's golden checkpoint at a horizon, compute type and parameter type."""
    config = dataclasses.replace(CONFIGS[family], action_horizon=horizon, dtype=dtype)
    return load_openpi(GOLDENS / family, config, dtype=params)


@dataclasses.dataclass(frozen=True)
class Case:
    """One `cases_*.npz`: `case["name"]` is an array, `case.model()` the model it was made with."""

    family: str
    name: str
    arrays: np.lib.npyio.NpzFile
    meta: dict

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def model(self):
        meta = self.meta
        return model(self.family, meta["action_horizon"], meta["dtype"], meta["params_dtype"])

    def observation(self, prefix: str = "") -> Observation:
        """The case's observation; `prefix` chooses FAST's "infer_" or "train_" tokens."""
        slots = self.meta["camera_order"]
        fast = self.family == "pi0_fast"
        text = {
            field: jnp.asarray(self[prefix + name])
            for field, name in {
                "tokens": "tokenized_prompt",
                "token_mask": "tokenized_prompt_mask",
                **({"token_ar_mask": "token_ar_mask"} if fast else {}),
                **({"token_loss_mask": "token_loss_mask"} if fast else {}),
            }.items()
        }
        return Observation(
            images={
                slot: jnp.asarray(uint8_to_float(self["images"][:, i]))
                for i, slot in enumerate(slots)
            },
            image_masks={
                slot: jnp.asarray(self["image_masks"][:, i]) for i, slot in enumerate(slots)
            },
            state=jnp.asarray(self["state"]),
            **text,
        )


@functools.cache
def case(family: str, name: str, folder: Path = GOLDENS) -> Case:
    arrays = np.load(folder / family / f"cases_{name}.npz", allow_pickle=False)
    return Case(family, name, arrays, json.loads(str(arrays["meta"])))


def close(got, want, tolerance: float):
    """Absolute tolerance, equal shapes; the message gives the largest difference."""
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    difference = np.max(np.abs(got - want), initial=0.0)
    assert difference <= tolerance, f"differs by {difference:.3g}, allowed {tolerance:.3g}"


def near(got, want, bound: float):
    """Root mean square difference, relative to what is wanted, where rounding adds up: bfloat16."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert error <= bound, f"differs by {error:.3g} of its size, allowed {bound:.3g}"


def same(got, want):
    """Equal shapes and values."""
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
