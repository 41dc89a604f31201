"""What a person writes in a JSON file about a policy of their own: a fine-tune of openpi's with the
config that made it, or what a folder of LeRobot's leaves out.

What an answer depends on and a checkpoint does not say is asked for, never guessed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field, InstanceOf
from pydantic_core import PydanticCustomError

from models.checkpoints.digests import read_json
from models.checkpoints.lerobot_config import Version
from models.checkpoints.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters, Lora
from models.config import Config, Pi0FastConfig
from playground import json_file
from playground.checkpoints.catalog import FAST_TOKENIZER, named
from playground.checkpoints.entry import FAMILIES, Entry, sizes
from playground.json_file import Count, Description, Text
from playground.robots.builtin import ROBOTS
from playground.robots.robot import Robot
from playground.robots.robot_file import read_robot
from playground.trace import Family

VARIANTS = {"gemma_2b_lora": GEMMA_2B_LORA, "gemma_300m_lora": GEMMA_300M_LORA}
_LORA = (
    'null, or an object with "language" and "action", each null, a variant '
    f'({", ".join(VARIANTS)}) or an object such as {{"rank": 16, "alpha": 16, "rslora": false}}'
)
ROBOT_CHOICE = f"one of {', '.join(ROBOTS)}, or a file that describes yours (.json)"
NO_ACTION_TOKENS = "a {} policy has no action_tokenizer"


def _known_robot(value: object) -> object:
    if isinstance(value, str) and (value in ROBOTS or value.endswith(".json")):
        return value
    raise PydanticCustomError("robot", "expected a robot")


def _adapters(value: object) -> object:
    """Adapters from their JSON; anything else as it came, which is no Adapters."""
    if not isinstance(value, dict) or not value.keys() <= set(Adapters._fields):
        return value
    experts = {name: _lora(expert) for name, expert in value.items()}
    return value if not any(experts.values()) else Adapters(**experts)


class LoraFile(Description):
    rank: Count
    alpha: float = Field(gt=0, lt=1e6)
    rslora: bool


def _lora(value: object) -> Lora | None:
    if value is None:
        return None
    if isinstance(value, str) and value in VARIANTS:
        return VARIANTS[value]
    try:
        return Lora(**LoraFile.model_validate(value).model_dump())
    except pydantic.ValidationError:
        raise PydanticCustomError("lora", "expected an expert's adapters") from None


Size = Annotated[
    Count | None,
    Field(description="a number from 1 on; openpi's holds where none is given"),
]


class VisionFile(Description):
    width: Size = None
    depth: Size = None
    mlp_dim: Size = None
    num_heads: Size = None
    patch_size: Size = None
    image_size: Size = None


class ExpertFile(Description):
    width: Size = None
    depth: Size = None
    mlp_dim: Size = None
    num_heads: Size = None
    num_kv_heads: Size = None
    head_dim: Size = None


RobotName = Annotated[str, BeforeValidator(_known_robot)]


class CheckpointFile(Description):
    """What any such file may hold. Paths count from where the file is."""

    name: Text = Field(description="a name")
    folder: Text | None = Field(
        default=None, description="the checkpoint's folder, from where this file is"
    )
    title: Text | None = Field(default=None, description="a title for people")
    default_prompt: Text | None = Field(default=None, description="text or null")
    text_tokenizer: Text | None = Field(
        default=None, description="a sentencepiece model, from where this file is"
    )
    action_tokenizer: Text | None = Field(
        default=None,
        description="a name on the Hugging Face hub, or a folder, from where this file is",
    )
    # The model's own sizes, for one that is not as large as openpi's.
    vision: VisionFile | None = Field(
        default=None, description="an object with sizes of the vision part"
    )
    language: ExpertFile | None = Field(default=None, description="an object with sizes of Gemma")
    action_expert: ExpertFile | None = Field(
        default=None, description="an object with sizes of the action expert"
    )
    vocab_size: Count | None = Field(
        default=None, description="the number of tokens in the model's table"
    )


class LeRobotFile(CheckpointFile):
    """What a folder of LeRobot's leaves out."""

    robot: RobotName = Field(description=ROBOT_CHOICE)
    base_folder: Text | None = Field(
        default=None, description="of PEFT adapters: the folder of the model they change, from here"
    )
    lerobot_version: Version | None = Field(
        default=None,
        description='the LeRobot that trained it: "0.4", or "0.5" for 0.5 and later',
    )


class OpenpiFile(CheckpointFile):
    """A fine-tune's config. With `base` only the name and what differs need to be given."""

    base: Text | None = Field(
        default=None, description="the name of a config whose settings hold unless given here"
    )
    family: Family | None = Field(default=None, description=f"one of {', '.join(FAMILIES)}")
    robot: RobotName | None = Field(default=None, description=ROBOT_CHOICE)
    action_horizon: Count | None = Field(default=None, description="the number of steps in a chunk")
    max_token_len: Count | None = Field(default=None, description="the number of text tokens")
    action_dim: Count | None = Field(
        default=None, description="the model's padded action dimensions (openpi: 32)"
    )
    normalisation: Literal["z-score", "quantile"] | None = Field(
        default=None, description="one of z-score, quantile"
    )
    state_in_prompt: bool | None = Field(
        default=None, description="true or false (openpi's discrete_state_input)"
    )
    asset_id: Text | None = Field(
        default=None, description="the folder below assets/ that has norm_stats.json"
    )
    offsets: list[bool] | None = Field(
        default=None,
        description="true or false for each action dimension: an offset from the state?",
    )
    adapt_to_pi: bool | None = Field(default=None, description="true or false (ALOHA only)")
    lora: Annotated[InstanceOf[Adapters] | None, BeforeValidator(_adapters)] = Field(
        default=None, description=_LORA
    )


# Nothing in a checkpoint tells these, and a wrong one gives wrong answers without an error.
REQUIRED = (
    "family",
    "robot",
    "action_horizon",
    "max_token_len",
    "normalisation",
    "asset_id",
)


# --- openpi's -----------------------------------------------------------------------------------


def read_openpi_file(path: Path | str) -> Entry:
    """A fine-tune's config (`OpenpiFile`); raises one ValueError for all that is wrong.

    With "base" only the name and what differs need to be in it; without, all of REQUIRED and, for
    pi0.5, `state_in_prompt`.
    """
    path = Path(path).expanduser()
    title = f"{path} is no complete config:"
    data = read_json(path)
    said, problems = json_file.parse(data, OpenpiFile)
    base: dict = {}
    if isinstance(data.get("base"), str):
        try:
            base = _settings(named(data["base"]))
        except ValueError as error:
            problems.append(f"base: {error}")
    else:
        required = (*REQUIRED, "state_in_prompt") if data.get("family") == "pi05" else REQUIRED
        problems += [
            f"{name} is missing: {json_file.expected(OpenpiFile, name)}"
            for name in required
            if data.get(name) is None
        ]
    if said is None or problems:
        raise json_file.refusal(title, problems)
    values = ((name, getattr(said, name)) for name in said.model_fields_set)
    given = {n: x for n, x in values if x is not None or n in ("default_prompt", "lora")}
    settings = {**base, **given}
    robot = robot_of(settings["robot"], path.parent)
    if problems := _contradictions(said, settings, base, robot):
        raise json_file.refusal(title, problems)
    return _entry(said, settings, robot, path)


def _entry(said: OpenpiFile, settings: Mapping, robot: Robot, path: Path) -> Entry:
    family = settings["family"]
    robot = dataclasses.replace(
        robot,
        offsets=robot.offsets if said.offsets is None else tuple(said.offsets),
        adapt_to_pi=robot.adapt_to_pi if said.adapt_to_pi is None else said.adapt_to_pi,
    )
    config = sizes(
        family,
        robot,
        settings["action_horizon"],
        settings["max_token_len"],
        settings.get("action_dim"),
    )
    published = settings.get("action_tokenizer", FAST_TOKENIZER)
    return Entry(
        name=said.name,
        title=said.title or said.name,
        config=resized(config, said),
        robot=robot,
        normalisation=settings["normalisation"],
        state_in_prompt=settings.get("state_in_prompt", family != "pi0"),
        asset_id=settings["asset_id"],
        default_prompt=settings.get("default_prompt"),
        adapters=settings.get("lora"),
        action_tokenizer=action_tokenizer_of(said, path)
        or (published if family == "pi0_fast" else None),
        text_tokenizer=text_tokenizer_of(said, path),
    )


def _contradictions(said: OpenpiFile, settings: Mapping, base: Mapping, robot: Robot) -> list[str]:
    """What cannot be, of fields that are valid one by one."""
    family, dims = settings["family"], len(robot.actions)
    problems = []
    if base and family != base["family"]:
        problems.append(f"family is {family}, and the base's is {base['family']}")
    if said.state_in_prompt not in (None, family != "pi0") and family != "pi05":
        problems.append(
            f"state_in_prompt is {json.dumps(family != 'pi0')} for every {family} policy"
        )
    if family == "pi0_fast" and said.action_dim not in (None, dims):
        problems.append(f"action_dim of a pi0_fast policy is its robot's: {dims}")
    if family != "pi0_fast" and said.action_tokenizer:
        problems.append(NO_ACTION_TOKENS.format(family))
    if said.offsets and len(said.offsets) != dims:
        problems.append(f"offsets has {len(said.offsets)} values, {robot.title} {dims} actions")
    if lost := {slot.camera for slot in robot.fast_slots} - {s.camera for s in robot.slots(family)}:
        problems.append(f"{robot.title}'s cameras {sorted(lost)} fill no slot of a {family} policy")
    if said.adapt_to_pi and robot.name != "aloha":
        problems.append("adapt_to_pi is for ALOHA only")
    try:
        resized(FAMILIES[family], said)
    except ValueError as error:
        problems.append(str(error))
    adapters = settings.get("lora")
    if family == "pi0_fast" and adapters is not None and adapters.action is not None:
        problems.append("lora: a pi0_fast policy has no action expert")
    return problems


def _settings(entry: Entry) -> dict:
    """One of openpi's configs as the settings of a file."""
    if entry.kind != "openpi":
        raise ValueError(f"{entry.name} is a bundled policy; expected one of openpi's configs")
    return {
        "family": entry.family,
        "robot": next(name for name, robot in ROBOTS.items() if robot == entry.robot),
        "action_horizon": entry.config.action_horizon,
        "max_token_len": entry.config.max_token_len,
        "action_dim": entry.config.action_dim,
        "normalisation": entry.normalisation,
        "state_in_prompt": entry.state_in_prompt,
        "asset_id": entry.asset_id,
        "default_prompt": entry.default_prompt,
        "action_tokenizer": entry.action_tokenizer,
        "lora": entry.adapters,
    }


# --- what both have in common -------------------------------------------------------------------


def folder_in(path: Path | str) -> Path:
    """The folder that a JSON file names; ValueError if it names none."""
    path = Path(path)
    folder = read_json(path).get("folder")
    if not isinstance(folder, str) or not folder.strip():
        raise ValueError(
            f"{path} names no folder: add one to it, or give the folder and --config {path}"
        )
    return path.parent / Path(folder).expanduser()


def text_tokenizer_of(said: CheckpointFile, path: Path) -> Path | None:
    """The sentencepiece model that the file at `path` names."""
    return path.parent / Path(said.text_tokenizer).expanduser() if said.text_tokenizer else None


def action_tokenizer_of(said: CheckpointFile, path: Path) -> str | None:
    """The FAST tokenizer that the file at `path` names: a folder, or the hub's name."""
    name = said.action_tokenizer
    if not name:
        return None
    folder = path.parent / Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def robot_of(name: str, folder: Path, slots: tuple[str, ...] | None = None) -> Robot:
    """One of `builtin.ROBOTS`, or the one in a file, found from `folder`. slots: the policy's own
    camera slots, where it tells them (`read_robot`)."""
    return ROBOTS[name] if name in ROBOTS else read_robot(folder / Path(name).expanduser(), slots)


def resized(config: Config, said: CheckpointFile) -> Config:
    """The config with the sizes that the file has. Raises ValueError for sizes that do not go
    together."""
    changes: dict = {}
    if said.vocab_size is not None:
        changes["vocab_size"] = said.vocab_size
    for name in ("vision", "language", "action_expert"):
        part = getattr(said, name)
        if part is None:
            continue
        if name == "action_expert" and isinstance(config, Pi0FastConfig):
            raise ValueError("a pi0_fast policy has no action_expert")
        given = part.model_dump(exclude_none=True)
        changes[name] = dataclasses.replace(getattr(config, name), **given)
    return dataclasses.replace(config, **changes)
