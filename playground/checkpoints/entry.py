"""What is known of a policy before its weights are loaded. Nothing here loads JAX."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from models.checkpoints.lora import Adapters
from models.checkpoints.openpi import openpi_manifest
from models.config import PI0, PI0_FAST, PI05, Config, Convention, Pi0FastConfig
from playground.robots.robot import Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.trace import Family, Method, Slot

# Whose layout a folder has; "untrained" has none, its weights are drawn.
Kind = Literal["openpi", "openpi_pytorch", "lerobot", "bundled", "untrained"]

FAMILIES = {"pi0": PI0, "pi05": PI05, "pi0_fast": PI0_FAST}
TITLES = {"pi0": "pi0", "pi05": "pi0.5", "pi0_fast": "pi0-FAST"}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A policy that can be opened, once its files are here.

    name               openpi's config name where it has one
    title              for people, on the page
    config             the model's sizes; its slots, horizon and prompt length among them
    robot              with the conventions of this policy's actions: offsets, adapt_to_pi
    normalisation      how state and actions were scaled; action_normalisation: the actions, where
                       it was another way, else None
    state_in_prompt    whether the prompt holds the state (in 256 bins)
    asset_id           whose norm stats: `assets/<asset_id>/` of openpi's folder, else unused
    default_prompt     what openpi's policy gets where nobody says anything, or None
    adapters           how its LoRA adapters were scaled, None for full weights
    action_tokenizer   pi0-FAST's, by its name on the Hugging Face hub or as a folder; else None
    text_tokenizer     a sentencepiece model of its own, or None for PaliGemma's
    kind               whose layout the folder has
    address            where the checkpoint is published (gs:// or hf://), or None
    folder             where it is on this machine, or None
    params             openpi's parameters, where they are not `folder/params`, else None
    base_folder        of PEFT adapters: the folder with the weights that they change, else None
    rules              where its inputs differ from openpi's
    constrained        whether pi0-FAST decodes so unless asked otherwise (trace.Options)
    licence            of the weights; "" where the owner knows
    notice             plain sentences a person should read first, or ""
    """

    name: str
    title: str
    config: Config
    robot: Robot
    normalisation: Method
    state_in_prompt: bool
    asset_id: str
    action_normalisation: Method | None = None
    default_prompt: str | None = None
    adapters: Adapters | None = None
    action_tokenizer: str | None = None
    text_tokenizer: Path | None = None
    kind: Kind = "openpi"
    address: str | None = None
    folder: Path | None = None
    params: Path | None = None
    base_folder: Path | None = None
    rules: InputRules = OPENPI_RULES
    constrained: bool = False
    licence: str = ""
    notice: str = ""

    @property
    def here(self) -> Path:
        """`folder`, of an entry whose files are on this machine."""
        assert self.folder is not None, f"{self.name} is to be obtained first"
        return self.folder

    @property
    def methods(self) -> dict[str, Method]:
        """How "state" and "actions" were scaled."""
        actions = self.action_normalisation or self.normalisation
        return {"state": self.normalisation, "actions": actions}

    @property
    def family(self) -> Family:
        return family_of(self.config)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.robot.slots(self.family)

    @property
    def convention(self) -> Convention:
        """Whose rules its prompts are written by."""
        return "lerobot" if self.kind == "lerobot" else "openpi"

    @property
    def prompt_format(self) -> Literal["text", "text and state", "FAST"]:
        """Which of the tokenizers' formats: pi0's, pi0.5's with the state in it, or pi0-FAST's."""
        if self.family == "pi0_fast":
            return "FAST"
        return "text and state" if self.state_in_prompt else "text"

    @property
    def num_parameters(self) -> int:
        """LoRA adapters not counted: they are merged when loaded."""
        manifest = openpi_manifest(self.config)
        return sum(math.prod(shape) for shape, _ in manifest.values())

    @property
    def num_bytes(self) -> int:
        """Of the parameters in float32, as openpi saves them. What is published was not measured:
        it is compressed a little."""
        return 4 * self.num_parameters


def family_of(config: Config) -> Family:
    if isinstance(config, Pi0FastConfig):
        return "pi0_fast"
    return "pi05" if config.pi05 else "pi0"


def sizes(
    family: Family,
    robot: Robot,
    horizon: int | None = None,
    max_token_len: int | None = None,
    action_dim: int | None = None,
) -> Config:
    """A full-size model for a robot; what is not given is openpi's default for the family.

    pi0-FAST writes the robot's own dimensions, the others a padded chunk.
    """
    preset = FAMILIES[family]
    if family == "pi0_fast":
        action_dim = len(robot.actions)
    return dataclasses.replace(
        preset,
        action_dim=action_dim or preset.action_dim,
        action_horizon=horizon or preset.action_horizon,
        max_token_len=max_token_len or preset.max_token_len,
        image_slots=tuple(slot.name for slot in robot.slots(family)),
    )
