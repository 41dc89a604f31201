"""What a LeRobot folder says of its policy beside the weights: `config.json` and the processors.

Sources: LeRobot 0.4.0 to 0.5.1 and main (0.6), `policies/{pi0,pi05,pi0_fast}` and `processor/`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.checkpoints import lerobot_processors as processors
from models.checkpoints.arrays import open_safetensors, safetensors_metadata
from models.checkpoints.digests import CONFIG, read_json, weights_file
from models.checkpoints.lerobot import EMBEDDING, LM_HEAD
from models.checkpoints.lerobot_normaliser import IMAGES, Normalisation, read_normaliser
from models.checkpoints.lerobot_processors import Processors, are_names, enabled, is_switch
from models.config import (
    GEMMA_2B,
    GEMMA_300M,
    PALIGEMMA_VOCAB,
    SIGLIP_SO400M,
    Config,
    Pi0Config,
    Pi0FastConfig,
)

VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M}
STATE, ACTION = "observation.state", "action"

Version = Literal["0.4", "0.5"]
VERSIONS: tuple[Version, ...] = ("0.4", "0.5")

# More than any model here could hold in memory, so that a slip of the keyboard is noticed early.
MOST = 1 << 16

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

    config           the model's
    cameras          the model's slots, in order
    state_dim        the robot's own, as wide as its stats where there are some
    action_dim       the same of the actions
    max_state_dim    what the state is padded to: for pi0's model, and in the prompts of 0.4
    num_steps        Euler steps that LeRobot takes, None for FAST
    temperature      at which LeRobot draws FAST's tokens, 0 for the likeliest; 0 for the others
    normalisation    by "state" and "actions"
    stats            by "state" and "actions": arrays `mean`, `std`, `q01`, `q99`, `min`, ... of
                     those widths; empty for a base model without any
    epsilon          by "state" and "actions". LeRobot's z-score is (x - mean) / (std + epsilon);
                     the other rules add nothing, and replace a range of zero by epsilon. openpi
                     adds 1e-6 in both
    offsets          of each action dimension, whether it is an offset from the state at the
                     chunk's start
    version          "0.4" or "0.5" (and later) where the folder shows with which LeRobot it was
                     saved, else None. The rules for prompts and pictures changed in between
    renamed          the dataset's names of pictures, by slot, where training renamed them
    action_tokenizer of FAST, by its name on the Hugging Face hub or as a folder; else None
    text_tokenizer   its name where it is another than PaliGemma's, else None
    """

    config: Config
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    max_state_dim: int
    num_steps: int | None
    temperature: float
    normalisation: dict[str, Normalisation]
    stats: dict[str, dict[str, np.ndarray]]
    epsilon: dict[str, float]
    offsets: tuple[bool, ...]
    version: Version | None
    renamed: dict[str, str]
    action_tokenizer: str | None
    text_tokenizer: str | None


def read_lerobot(folder: Path | str) -> LeRobotPolicy:
    """What `config.json` and the processors' files say; ValueError if it cannot be run here."""
    folder = Path(folder)
    settings = _Settings(folder / CONFIG, read_json(folder / CONFIG))
    kind = settings.kind()
    settings.check_plain()
    steps = processors.read_processors(folder, kind)
    before = read_normaliser(folder, steps.before[processors.NORMALISE])
    after = read_normaliser(folder, steps.after[processors.UNNORMALISE])
    before.check_pictures()
    stats = {"state": before.stats(STATE), "actions": after.stats(ACTION)}
    state_dim = _width(stats["state"], settings, "input_features", STATE)
    action_dim = _width(stats["actions"], settings, "output_features", ACTION)
    config = _config(kind, settings, steps, state_dim, action_dim)
    return LeRobotPolicy(
        config=config,
        cameras=config.image_slots,
        state_dim=state_dim,
        action_dim=action_dim,
        max_state_dim=_padded_to(steps) or settings.count("max_state_dim"),
        num_steps=None if kind == "pi0_fast" else settings.count("num_inference_steps"),
        temperature=settings.number("temperature", 0.0) if kind == "pi0_fast" else 0.0,
        normalisation={
            "state": before.of_observation(STATE, "STATE"),
            "actions": after.method("ACTION"),
        },
        stats=stats,
        epsilon={"state": before.epsilon, "actions": after.epsilon},
        offsets=_offsets(folder, settings, steps, action_dim),
        version=_version(folder, settings, steps),
        renamed=_renamed(steps),
        action_tokenizer=_action_tokenizer(folder, settings, steps) if kind == "pi0_fast" else None,
        text_tokenizer=_other_text_tokenizer(steps),
    )


# --- config.json --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Settings:
    """`config.json`, read value by value; every mismatch is a ValueError that names the field."""

    path: Path
    values: Mapping

    def kind(self) -> str:
        kind = self.values.get("type")
        if kind not in ("pi0", "pi05", "pi0_fast"):
            raise ValueError(
                f"{self.path}: policy type is {kind!r}; expected pi0, pi05 or pi0_fast"
            )
        return kind

    def check_plain(self) -> None:
        """Raises ValueError for what is not implemented here."""
        for name, plain in PLAIN.items():
            if self.values.get(name, plain) != plain:
                raise ValueError(
                    f"{self.path}: {name} is {self.values[name]!r}; only {plain!r} is supported"
                )

    def get(self, name: str, expected: str, valid):
        if name not in self.values:
            raise ValueError(f"{self.path}: {name!r} is missing; expected {expected}")
        value = self.values[name]
        if not valid(value):
            raise ValueError(f"{self.path}: {name} is {value!r}; expected {expected}")
        return value

    def count(self, name: str) -> int:
        return self.get(name, f"a number from 1 to {MOST}", _is_count)

    def number(self, name: str, default: float) -> float:
        """One that is not negative."""
        if name not in self.values:
            return default
        number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < 1e6  # noqa: E731
        return self.get(name, "a number from 0 on", number)

    def optional(self, name: str, expected: str, valid):
        """None where it is not given, or null."""
        return None if self.values.get(name) is None else self.get(name, expected, valid)

    def one_of(self, name: str, choices) -> str:
        return self.get(name, f"one of {', '.join(choices)}", lambda x: x in tuple(choices))

    def features(self, name: str) -> dict[str, dict]:
        """Feature -> {"type", "shape"}."""
        return self.get(
            name,
            'an object such as {"action": {"type": "ACTION", "shape": [7]}}',
            lambda x: isinstance(x, dict) and all(map(_is_feature, x.values())),
        )


def _is_count(x) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 < x <= MOST


def _is_feature(x) -> bool:
    shape = x.get("shape") if isinstance(x, dict) else None
    return isinstance(shape, list) and bool(shape) and all(map(_is_count, shape)) and "type" in x


def _config(
    kind: str, settings: _Settings, steps: Processors, state_dim: int, action_dim: int
) -> Config:
    features = settings.features("input_features").items()
    cameras = tuple(n.removeprefix(IMAGES) for n, x in features if x["type"] == "VISUAL")
    if not cameras:
        raise ValueError(f"{settings.path}: input_features has no camera (type VISUAL)")
    # A fine-tune that kept its base's processor is cut off where that one says.
    tokens = steps.before[processors.TOKENIZE].settings.get("max_length")
    if tokens is None:
        tokens = settings.count("tokenizer_max_length")
    elif not _is_count(tokens):
        raise ValueError(f"{settings.path.parent}: prompts of {tokens} tokens; at most {MOST}")
    shared: dict[str, Any] = dict(
        vision=SIGLIP_SO400M,
        language=VARIANTS[settings.one_of("paligemma_variant", VARIANTS)],
        vocab_size=PALIGEMMA_VOCAB,
        action_horizon=settings.count("chunk_size"),
        max_token_len=tokens,
        dtype=settings.one_of("dtype", ("float32", "bfloat16")),
        image_slots=cameras,
    )
    if kind == "pi0_fast":
        # The start token that ends the prompt has a place of its own.
        shared |= {"max_token_len": tokens + 1, "convention": "lerobot"}
        return Pi0FastConfig(action_dim=action_dim, **shared)
    _check_widths(kind, settings, state_dim, action_dim)
    return Pi0Config(
        action_expert=VARIANTS[settings.one_of("action_expert_variant", VARIANTS)],
        action_dim=settings.count("max_action_dim"),
        pi05=kind == "pi05",
        **shared,
    )


def _check_widths(kind: str, settings: _Settings, state_dim: int, action_dim: int) -> None:
    """Raises ValueError for a robot with more dimensions than pi0 or pi0.5 has room for."""
    widths = {"action": (action_dim, settings.count("max_action_dim"))}
    if kind == "pi0":  # pi0.5's state is text, as wide as it likes
        widths["state"] = (state_dim, settings.count("max_state_dim"))
        if settings.count("max_state_dim") != settings.count("max_action_dim"):
            raise ValueError(
                f"{settings.path}: max_state_dim is {settings.count('max_state_dim')} and "
                f"max_action_dim {settings.count('max_action_dim')}; here, as in openpi, pi0 has "
                "one number for both"
            )
    for what, (width, room) in widths.items():
        if width > room:
            raise ValueError(
                f"{settings.path}: the robot's {what} has {width} dimensions, and the model room "
                f"for {room} (max_{what}_dim); LeRobot cannot run such a policy either"
            )


def _width(stats: Mapping, settings: _Settings, group: str, feature: str) -> int:
    """Of a feature: its stats', else config.json's, where a fine-tune may keep its base's."""
    features = settings.features(group)
    if feature not in features:
        raise ValueError(f"{settings.path}: {feature!r} is missing in {group}")
    widths = {np.shape(value) for value in stats.values()}
    if not widths:
        return features[feature]["shape"][0]
    if len(widths) > 1 or len(next(iter(widths))) != 1:
        shapes = ", ".join(f"{name} {list(np.shape(x))}" for name, x in stats.items())
        raise ValueError(
            f"{settings.path.parent}: the stats of {feature} have the shapes {shapes}; expected "
            "one number a dimension in each (stats for every step of a chunk are not supported)"
        )
    return next(iter(widths))[0]


# --- the processors -----------------------------------------------------------------------------


def _offsets(folder: Path, settings: _Settings, steps: Processors, dims: int) -> tuple[bool, ...]:
    """All dimensions are, but for those whose names hold an excluded one's, in any case."""
    relative, absolute = (
        group.get(name)
        for group, name in (
            (steps.before, processors.RELATIVE),
            (steps.after, processors.ABSOLUTE),
        )
    )
    config = {
        name: settings.optional(name, "a list of names or null", are_names)
        for name in ("relative_exclude_joints", "action_feature_names")
    }
    switch = "use_relative_actions"
    said = {
        f"{CONFIG}: {switch}": settings.optional(switch, "true or false", is_switch),
        f"{processors.PREPROCESSOR}: {processors.RELATIVE}": relative and enabled(relative),
        f"{processors.POSTPROCESSOR}: {processors.ABSOLUTE}": absolute and enabled(absolute),
    }
    said = {where: value for where, value in said.items() if value is not None}
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{where} is {value}" for where, value in said.items())
        raise ValueError(
            f"{folder} contradicts itself on relative actions ({listed}): make all say whether the "
            "policy was trained on actions relative to the state"
        )
    if not any(said.values()):
        return (False,) * dims
    if relative is not None:
        excluded, names = (relative.settings.get(x) for x in ("exclude_joints", "action_names"))
    else:
        excluded, names = (
            config.get(x) for x in ("relative_exclude_joints", "action_feature_names")
        )
    excluded = [part.lower() for part in excluded or [] if part]
    names = [name.lower() for name in names or []][:dims]
    kept = [any(part in name for part in excluded) for name in names]
    return (*(not absolute for absolute in kept), *(True,) * (dims - len(kept)))


def _version(folder: Path, settings: _Settings, steps: Processors) -> Version | None:
    """With which LeRobot a policy was saved, by what only one side of 0.5 writes.

    0.5.1 and later save the relative actions, off or on. The weights of 0.4 hold the token table
    under one name and say so in the metadata; later ones hold it twice. 0.5.0 wrote the same
    config.json as 0.4.4.
    """
    marks = ("use_relative_actions", "relative_exclude_joints", "use_proprioceptive_memory")
    if processors.RELATIVE in steps.before or any(name in settings.values for name in marks):
        return "0.5"
    weights = weights_file(folder)
    if weights is None:
        return None
    shared = {k.removeprefix("model."): v for k, v in safetensors_metadata(weights).items()}
    if shared.get(EMBEDDING, "").removeprefix("model.") == LM_HEAD:
        return "0.4"
    names = {name.removeprefix("model.") for name in open_safetensors(weights)}
    return "0.5" if {EMBEDDING, LM_HEAD} <= names else None


def _renamed(steps: Processors) -> dict[str, str]:
    step = steps.before.get(processors.RENAME)
    named = (step.settings.get("rename_map") if step else None) or {}
    return {
        slot.removeprefix(IMAGES): camera
        for camera, slot in named.items()
        if slot.startswith(IMAGES)
    }


def _padded_to(steps: Processors) -> int | None:
    """How wide the step that writes the state into the prompt made it, in 0.4."""
    prepare = (steps.before.get(x) for x in (processors.PREPARE_PI05, processors.PREPARE_FAST))
    return next((step.settings.get("max_state_dim") for step in prepare if step), None)


def _other_text_tokenizer(steps: Processors) -> str | None:
    """The name of a tokenizer that is not PaliGemma's. One that is saved with the policy is."""
    step = steps.before[processors.TOKENIZE]
    if "tokenizer_name" in step.artifacts:
        return None
    name = step.settings.get("tokenizer_name", "paligemma")
    return None if "paligemma" in name.rstrip("/").rpartition("/")[2].lower() else name


def _action_tokenizer(folder: Path, settings: _Settings, steps: Processors) -> str:
    """The one saved with the policy, else the hub's name for the one that it was trained with."""
    step = steps.before.get(processors.ACTION_TOKENS)
    if step is not None:
        saved = step.artifacts.get("action_tokenizer_name")
        if saved is None and "action_tokenizer_name" in step.settings:
            return step.settings["action_tokenizer_name"]
        inside = folder / saved if isinstance(saved, str) and Path(saved).name == saved else None
        if inside is not None and (inside / "processor_config.json").is_file():
            return str(inside)
    return settings.get(
        "action_tokenizer_name", "a name on the Hugging Face hub", lambda x: isinstance(x, str)
    )
