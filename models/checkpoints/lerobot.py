"""LeRobot's checkpoints of pi0, pi0.5 and pi0-FAST: mapped by a table to openpi's arrays.

A folder holds `model.safetensors`, `config.json` and two processor descriptions with norm stats.
Weights of linear layers are [out, in], a layer an array; ours come from openpi's layout, so a row
says which arrays stand side by side in one of openpi's and how each turns into its share of it.
Source: LeRobot's `policies/{pi0,pi05,pi0_fast}`, transformers' PaliGemma for the names.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from models.checkpoints.arrays import Stored, check, open_safetensors
from models.checkpoints.digests import CONFIG, read_json
from models.checkpoints.openpi import Row, rows
from models.config import (
    GEMMA_2B,
    GEMMA_300M,
    PALIGEMMA_VOCAB,
    SIGLIP_SO400M,
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


def open_lerobot(path: Path, config: Config) -> dict[str, Stored]:
    """openpi's path -> array of a LeRobot file, nothing read yet but its header."""
    found = _canonical_names(path, open_safetensors(path), config)
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

    def layers() -> Iterator[np.ndarray]:
        for layer in range(row.layers or 1):
            shares = [turn.change(found[x.format(layer)].read(), row.shape) for x in theirs]
            yield shares[0] if len(shares) == 1 else np.stack(shares)

    dtypes = {found[x.format(i)].dtype for x in theirs for i in range(row.layers or 1)}
    return Stored(row.stored_shape, np.result_type(*dtypes), layers)


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


# --- config.json and the processors -------------------------------------------------------------

Normalisation = Literal["z-score", "quantile"]
NORMALISATIONS = {"MEAN_STD": "z-score", "QUANTILES": "quantile"}
VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M}
STATISTICS = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"

# Settings that change the numbers and that are not implemented here, with the value that does not;
# files of older versions lack some.
PLAIN = {
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "n_obs_steps": 1,
    "min_period": 4e-3,
    "max_period": 4.0,
    "image_resolution": [224, 224],
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
    "fast_skip_tokens": 128,
}


@dataclasses.dataclass(frozen=True, slots=True)
class LeRobotPolicy:
    """What a LeRobot folder says of its policy beside the weights.

    cameras: the model's slots, in order; `empty_cameras` of them (the last) are never filled.
    state_dim, action_dim: the robot's own. num_steps: Euler steps, None for FAST. stats: by "state"
    and "actions", arrays `mean`, `std`, `q01`, `q99`, ... of those widths; empty for a base model
    without any. epsilon: LeRobot's z-score is (x - mean) / (std + epsilon); its quantile rule adds
    nothing and replaces a range of zero by epsilon. openpi adds 1e-6 in both.
    offsets: of each action dimension, whether it is an offset from the state at the chunk's start.
    action_tokenizer: of FAST, by its name on the Hugging Face hub or as a folder; else None.
    """

    config: Config
    cameras: tuple[str, ...]
    empty_cameras: int
    state_dim: int
    action_dim: int
    num_steps: int | None
    normalisation: dict[str, Normalisation]
    stats: dict[str, dict[str, np.ndarray]]
    epsilon: float
    offsets: tuple[bool, ...]
    action_tokenizer: str | None


def read_lerobot(folder: Path | str) -> LeRobotPolicy:
    """What `config.json` and the processors' files say; ValueError if it cannot be run here."""
    folder = Path(folder)
    settings = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    kind = settings.get("type")
    if kind not in ("pi0", "pi05", "pi0_fast"):
        raise ValueError(f"{where}: policy type is {kind!r}; expected pi0, pi05 or pi0_fast")
    for name, plain in PLAIN.items():
        if settings.get(name, plain) != plain:
            raise ValueError(f"{where}: {name} is {settings[name]!r}; only {plain!r} is supported")
    try:
        before = _normaliser(folder, PREPROCESSOR, "normalizer_processor")
        after = _normaliser(folder, POSTPROCESSOR, "unnormalizer_processor")
        action_dim = settings["output_features"][ACTION]["shape"][0]
        return LeRobotPolicy(
            config=_config(kind, settings),
            cameras=_cameras(settings),
            empty_cameras=settings.get("empty_cameras", 0),
            state_dim=settings["input_features"][STATE]["shape"][0],
            action_dim=action_dim,
            num_steps=None if kind == "pi0_fast" else settings["num_inference_steps"],
            normalisation={
                "state": _normalisation(before, "STATE"),
                "actions": _normalisation(after, "ACTION"),
            },
            stats={"state": _stats(before, STATE), "actions": _stats(after, ACTION)},
            epsilon=before.epsilon,
            offsets=_offsets(folder, action_dim),
            action_tokenizer=_action_tokenizer(folder, settings) if kind == "pi0_fast" else None,
        )
    except KeyError as error:
        told = f"{error.args[0]!r} is missing in {CONFIG} or in a processor's file"
        raise ValueError(f"{folder}: {told}") from error


def _cameras(settings: Mapping) -> tuple[str, ...]:
    features = settings["input_features"].items()
    return tuple(name.removeprefix(IMAGES) for name, x in features if x["type"] == "VISUAL")


def _config(kind: str, settings: Mapping) -> Config:
    def variant(field: str):
        if settings[field] not in VARIANTS:
            raise ValueError(f"{field} is {settings[field]!r}; expected one of {sorted(VARIANTS)}")
        return VARIANTS[settings[field]]

    if settings["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {settings['dtype']!r}; expected float32 or bfloat16")
    shared = dict(
        vision=SIGLIP_SO400M,
        language=variant("paligemma_variant"),
        vocab_size=PALIGEMMA_VOCAB,
        action_horizon=settings["chunk_size"],
        max_token_len=settings["tokenizer_max_length"],
        dtype=settings["dtype"],
        image_slots=_cameras(settings),
    )
    if kind == "pi0_fast":
        # The start token that ends the prompt has a place of its own.
        shared |= {"max_token_len": settings["tokenizer_max_length"] + 1, "convention": "lerobot"}
        return Pi0FastConfig(action_dim=settings["output_features"][ACTION]["shape"][0], **shared)
    if settings["max_state_dim"] != settings["max_action_dim"]:
        raise ValueError(
            f"max_state_dim is {settings['max_state_dim']} and max_action_dim "
            f"{settings['max_action_dim']}; here, as in openpi, they are one number"
        )
    return Pi0Config(
        action_expert=variant("action_expert_variant"),
        action_dim=settings["max_action_dim"],
        pi05=kind == "pi05",
        **shared,
    )


def _action_tokenizer(folder: Path, settings: Mapping) -> str:
    """The one saved with the policy, else the hub's name for the one that it was trained with."""
    for step in _steps(folder / PREPROCESSOR, "action_tokenizer_processor"):
        saved = step.get("artifacts", {}).get("action_tokenizer_name")
        if saved is None:
            return step["config"]["action_tokenizer_name"]
        if Path(saved).name == saved and (folder / saved / "processor_config.json").is_file():
            return str(folder / saved)
    return settings["action_tokenizer_name"]


def _offsets(folder: Path, dims: int) -> tuple[bool, ...]:
    """All dimensions are, but for those whose names hold an excluded one's, in any case."""
    for step in _steps(folder / PREPROCESSOR, "relative_actions_processor"):
        if step["config"]["enabled"]:
            excluded = [part.lower() for part in step["config"].get("exclude_joints") or []]
            names = [name.lower() for name in step["config"].get("action_names") or []][:dims]
            kept = [any(part in name for part in excluded if part) for name in names]
            return (*(not absolute for absolute in kept), *(True,) * (dims - len(kept)))
    return (False,) * dims


def _steps(path: Path, name: str) -> list[dict]:
    """A processor's steps of that name."""
    steps = read_json(path).get("steps", [])
    return [step for step in steps if step.get("registry_name") == name]


class _Normaliser(NamedTuple):
    where: Path
    norm_map: Mapping[str, str]
    epsilon: float
    arrays: Mapping[str, Stored]


def _normaliser(folder: Path, file: str, step: str) -> _Normaliser:
    """The one step of a processor that normalises. Its tensors' file is named in the step: the
    number in that name changes between versions."""
    path = folder / file
    found = _steps(path, step)
    if len(found) != 1:
        raise ValueError(f"{path}: expected one step {step}, found {len(found)}")
    settings, state_file = found[0]["config"], found[0].get("state_file")
    arrays = {}
    if state_file is not None:
        if Path(state_file).name != state_file:
            raise ValueError(f"{path}: state_file is {state_file!r}; expected a name in the folder")
        arrays = open_safetensors(folder / state_file)
    return _Normaliser(path, settings["norm_map"], settings["eps"], arrays)


def _normalisation(normaliser: _Normaliser, kind: str) -> Normalisation:
    name = normaliser.norm_map[kind]
    if name not in NORMALISATIONS:
        raise ValueError(
            f"{normaliser.where}: {kind} is normalised by {name}; expected one of "
            f"{', '.join(NORMALISATIONS)}"
        )
    return NORMALISATIONS[name]


def _stats(normaliser: _Normaliser, feature: str) -> dict[str, np.ndarray]:
    found = ((name, f"{feature}.{name}") for name in STATISTICS)
    return {n: normaliser.arrays[key].read() for n, key in found if key in normaliser.arrays}
