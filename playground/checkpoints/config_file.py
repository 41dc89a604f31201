"""A policy of one's own, described in a JSON file: a fine-tune of openpi's with the config that
made it, or what a folder of LeRobot's leaves out.

What an answer depends on and a checkpoint does not say is asked for, never guessed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from models.checkpoints.digests import read_json
from models.checkpoints.lerobot_config import VERSIONS
from models.checkpoints.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters, Lora
from models.config import Config, ExpertConfig, Pi0FastConfig, VisionConfig
from playground.checkpoints import fields
from playground.checkpoints.catalog import (
    FAMILIES,
    FAST_TOKENIZER,
    METHODS,
    Entry,
    named,
    sizes,
)
from playground.checkpoints.fields import Field, choice_of, is_count, is_flag, is_text, one_of
from playground.robots.builtin import ROBOTS
from playground.robots.robot import Robot
from playground.robots.robot_file import read_robot

_VARIANTS = {"gemma_2b_lora": GEMMA_2B_LORA, "gemma_300m_lora": GEMMA_300M_LORA}
_LORA = (
    'null, or an object with "language" and "action", each null, a variant '
    f"({', '.join(_VARIANTS)}) or an object with rank, alpha and rslora"
)


def _parts(kind: type) -> Field:
    names = [field.name for field in dataclasses.fields(kind)]
    return Field(
        f"an object with any of {', '.join(names)}; openpi's hold for the rest",
        lambda x: isinstance(x, dict) and x.keys() <= set(names) and all(map(is_count, x.values())),
    )


# The model's own sizes, for one that is not as large as openpi's.
SIZES = {
    "vision": _parts(VisionConfig),
    "language": _parts(ExpertConfig),
    "action_expert": _parts(ExpertConfig),
    "vocab_size": Field("the number of tokens in the model's table", is_count),
}
NO_ACTION_TOKENS = "a {} policy has no action_tokenizer"
# What any description may hold.
COMMON = {
    "folder": Field("the checkpoint's folder, from where this file is", is_text),
    "name": Field("a name", is_text),
    "title": Field("a title for people", is_text),
    "robot": Field(
        f"{choice_of(ROBOTS)}, or a file that describes yours (.json, beside this one)",
        lambda x: is_text(x) and (x in ROBOTS or x.endswith(".json")),
    ),
    "default_prompt": Field("text or null", lambda x: x is None or is_text(x)),
    "text_tokenizer": Field("a sentencepiece model, from where this file is", is_text),
    "action_tokenizer": Field(
        "a name on the Hugging Face hub, or a folder, from where this file is", is_text
    ),
    **SIZES,
}
FIELDS = {
    **COMMON,
    "base": Field("the name of a config whose settings hold unless given here", is_text),
    "family": one_of(FAMILIES),
    "action_horizon": Field("the number of steps in a chunk", is_count),
    "max_token_len": Field("the number of text tokens", is_count),
    "action_dim": Field("the model's padded action dimensions (openpi: 32)", is_count),
    "normalisation": one_of(METHODS),
    "state_in_prompt": Field("true or false (openpi's discrete_state_input)", is_flag),
    "asset_id": Field("the folder below assets/ that has norm_stats.json", is_text),
    "offsets": Field(
        "true or false for each action dimension: predicted as an offset from the state?",
        lambda x: isinstance(x, list) and all(isinstance(i, bool) for i in x),
    ),
    "adapt_to_pi": Field("true or false (ALOHA only)", is_flag),
    "lora": Field(_LORA, lambda x: x is None or isinstance(x, dict)),
}
# Nothing in a checkpoint tells these, and a wrong one gives wrong answers without an error.
REQUIRED = (
    "name",
    "family",
    "robot",
    "action_horizon",
    "max_token_len",
    "normalisation",
    "asset_id",
)


def read_config(path: Path | str) -> Entry:
    """A fine-tune's config from JSON (see FIELDS); raises one ValueError for all that is wrong.

    With "base" only the name and what differs need to be there; without it, all of REQUIRED and,
    for pi0.5, `state_in_prompt`.
    """
    path = Path(path)
    data = read_json(path)
    if "base" in data:
        required = ("name",)
    else:
        required = (*REQUIRED, *(("state_in_prompt",) if data.get("family") == "pi05" else ()))
    problems = fields.problems(data, FIELDS, required)
    base: dict = {}
    if is_text(data.get("base")):
        try:
            base = _settings(named(data["base"]))
        except ValueError as error:
            problems.append(f"base: {error}")
    if not problems:
        robot = robot_of({**base, **data}["robot"], path.parent)
        problems = _contradictions(data, base, robot)
    if problems:
        raise ValueError("\n  ".join([f"{path} is no complete config:", *sorted(problems)]))
    entry = _entry({**base, **data}, robot)
    tokenizer = action_tokenizer_of(data, path) or entry.action_tokenizer
    text = text_tokenizer_of(data, path)
    return dataclasses.replace(entry, action_tokenizer=tokenizer, text_tokenizer=text)


_LEROBOT = {
    **COMMON,
    "lerobot_version": Field(
        f"the LeRobot that trained it: {' or '.join(VERSIONS)} (for 0.5 and later)",
        lambda x: x in VERSIONS,
    ),
}


def read_addition(path: Path | str) -> dict:
    """What a JSON file says of a folder of LeRobot's, which says the rest itself: fields of COMMON,
    checked. Raises one ValueError for all that is wrong."""
    data = read_json(Path(path))
    if problems := fields.problems(data, _LEROBOT, ("name", "robot")):
        title = f"{path} does not describe a folder of LeRobot's:"
        raise ValueError("\n  ".join([title, *sorted(problems)]))
    return data


def folder_of(path: Path | str) -> Path:
    """The folder that a JSON config names; ValueError if it names none."""
    path = Path(path)
    folder = read_json(path).get("folder")
    if not is_text(folder):
        raise ValueError(
            f"{path} names no folder: add one to it, or give the folder and --config {path}"
        )
    return path.parent / folder


def text_tokenizer_of(data: Mapping, path: Path) -> Path | None:
    """The sentencepiece model that a JSON config at `path` names."""
    return path.parent / data["text_tokenizer"] if "text_tokenizer" in data else None


def action_tokenizer_of(data: Mapping, path: Path) -> str | None:
    """The FAST tokenizer that a JSON config at `path` names: a folder, or the hub's name."""
    named = data.get("action_tokenizer")
    return str(path.parent / named) if named and (path.parent / named).is_dir() else named


def robot_of(named: str, folder: Path, slots: tuple[str, ...] | None = None) -> Robot:
    """One of `builtin.ROBOTS`, or the one in a file, found from `folder`. slots: the policy's own
    camera slots, where it tells them (`read_robot`)."""
    return ROBOTS[named] if named in ROBOTS else read_robot(folder / named, slots)


def resized(config: Config, settings: Mapping) -> Config:
    """The config with the sizes that `settings` (see SIZES) has. Raises ValueError for sizes that
    do not go together."""
    given = {}
    for name in SIZES.keys() & settings.keys():
        value = settings[name]
        if name == "action_expert" and isinstance(config, Pi0FastConfig):
            raise ValueError("a pi0_fast policy has no action_expert")
        whole = not isinstance(value, dict)
        given[name] = value if whole else dataclasses.replace(getattr(config, name), **value)
    return dataclasses.replace(config, **given)


def _contradictions(data: dict, base: dict, robot: Robot) -> list[str]:
    """What cannot be, of fields that are valid one by one."""
    settings = {**base, **data}
    family = settings["family"]
    dims = len(robot.actions)
    problems = []
    if base and family != base["family"]:
        problems.append(f"family is {family}, and the base's is {base['family']}")
    if data.get("state_in_prompt", family != "pi0") != (family != "pi0") and family != "pi05":
        problems.append(
            f"state_in_prompt is {json.dumps(family != 'pi0')} for every {family} policy"
        )
    if family == "pi0_fast" and data.get("action_dim", dims) != dims:
        problems.append(f"action_dim of a pi0_fast policy is its robot's: {dims}")
    if family != "pi0_fast" and "action_tokenizer" in data:
        problems.append(NO_ACTION_TOKENS.format(family))
    if len(data.get("offsets", robot.offsets) or robot.actions) != dims:
        problems.append(f"offsets has {len(data['offsets'])} values, {robot.title} {dims} actions")
    if lost := {slot.camera for slot in robot.fast_slots} - {s.camera for s in robot.slots(family)}:
        problems.append(f"{robot.title}'s cameras {sorted(lost)} fill no slot of a {family} policy")
    if data.get("adapt_to_pi") and robot.name != "aloha":
        problems.append("adapt_to_pi is for ALOHA only")
    try:
        resized(FAMILIES[family], data)
    except ValueError as error:
        problems.append(str(error))
    try:
        adapters = _adapters(settings.get("lora"))
    except ValueError as error:
        problems.append(str(error))
    else:
        if family == "pi0_fast" and adapters is not None and adapters.action is not None:
            problems.append("lora: a pi0_fast policy has no action expert")
    return problems


def _entry(settings: dict, robot: Robot) -> Entry:
    family = settings["family"]
    robot = dataclasses.replace(
        robot,
        offsets=tuple(settings.get("offsets", robot.offsets)),
        adapt_to_pi=settings.get("adapt_to_pi", robot.adapt_to_pi),
    )
    fast = family == "pi0_fast"
    config = sizes(
        family,
        robot,
        settings["action_horizon"],
        settings["max_token_len"],
        settings.get("action_dim"),
    )
    return Entry(
        name=settings["name"],
        title=settings.get("title", settings["name"]),
        config=resized(config, settings),
        robot=robot,
        normalisation=settings["normalisation"],
        state_in_prompt=settings.get("state_in_prompt", family != "pi0"),
        asset_id=settings["asset_id"],
        default_prompt=settings.get("default_prompt"),
        adapters=_adapters(settings.get("lora")),
        action_tokenizer=FAST_TOKENIZER if fast else None,
    )


def _settings(entry: Entry) -> dict:
    """One of openpi's configs as the fields of a JSON config."""
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
        "lora": None
        if entry.adapters is None
        else {
            expert: None if lora is None else dataclasses.asdict(lora)
            for expert, lora in entry.adapters._asdict().items()
        },
    }


def _adapters(value: dict | None) -> Adapters | None:
    """Raises ValueError for what is not as FIELDS says."""
    if value is None:
        return None
    if not value.keys() <= set(Adapters._fields) or not any(value.values()):
        raise ValueError(f"lora is {json.dumps(value)}; expected {_LORA}")
    return Adapters(**{expert: _lora(expert, given) for expert, given in value.items()})


def _lora(expert: str, value) -> Lora | None:
    if value is None:
        return None
    if isinstance(value, str) and value in _VARIANTS:
        return _VARIANTS[value]
    number = isinstance(value, dict) and value.get("alpha")
    if (
        not isinstance(value, dict)
        or value.keys() != {"rank", "alpha", "rslora"}
        or not is_count(value["rank"])
        or not isinstance(number, (int, float))
        or isinstance(number, bool)
        or not 0 < number < 1e6
        or not isinstance(value["rslora"], bool)
    ):
        raise ValueError(
            f"lora.{expert} is {json.dumps(value)}; expected null, {' or '.join(_VARIANTS)}, or "
            'an object such as {"rank": 16, "alpha": 16, "rslora": false}'
        )
    return Lora(value["rank"], float(value["alpha"]), value["rslora"])
