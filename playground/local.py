"""A checkpoint in a folder of one's own, and a fine-tune's own config as JSON.

What an answer depends on and a checkpoint does not say is asked for, never guessed: which config
made it, which robot and norm stats, how LoRA adapters were scaled. Nothing here loads JAX.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import layout, lerobot
from models.files import kind_of, params_folder, read_json
from models.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters, Lora
from playground import fields
from playground.catalog import (
    BUNDLED_PAIR,
    FAMILIES,
    FAST_TOKENIZER,
    METHODS,
    ROBOTS,
    TITLES,
    Entry,
    bundled,
    named,
    sizes,
)
from playground.fields import Field, choice_of, is_count, is_flag, is_text, one_of
from playground.robot_file import read_robot
from playground.robots import TABLETOP, Robot
from playground.trace import Stats
from playground.transforms import EPSILON, read_norm_stats, trim

# --- a folder -----------------------------------------------------------------------------------


def open_folder(
    folder: Path | str,
    config: str | None = None,
    *,
    robot: str | None = None,
    asset_id: str | None = None,
) -> Entry:
    """The entry of a checkpoint folder: openpi's, LeRobot's or a bundled policy's.

    config: for openpi's, a config's name or a JSON file (`read_config`). robot: for LeRobot's, one
    of `catalog.ROBOTS` or a file that describes another (`robot_file`). asset_id: whose norm stats,
    where the folder has another's than the config's. Raises ValueError that says what is missing
    and which answers there are.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    if kind == "bundled":
        return bundled(folder)
    if kind == "lerobot":
        return _lerobot(folder, robot)
    return _openpi(folder, config, asset_id)


def chosen(
    names: Sequence[str],
    folder: str | None = None,
    config: str | None = None,
    robot: str | None = None,
    asset_id: str | None = None,
) -> tuple[list[str | dict], dict[str, Robot]]:
    """What to open: (as `playground.loading.load` takes it, each policy's robot by name).

    Names of the catalogue, a folder of one's own (`open_folder`), or both; the bundled pair where
    nothing is said. Raises ValueError for a name nobody has and a folder that cannot be opened.
    """
    names = names or ([] if folder else BUNDLED_PAIR)
    # A bundled policy may have no weights yet; then the loader makes random ones.
    robots = {name: TABLETOP if name in BUNDLED_PAIR else named(name).robot for name in names}
    asked: list[str | dict] = list(names)
    if folder:
        own = open_folder(folder, config, robot=robot, asset_id=asset_id)
        robots[own.name] = own.robot
        asked.append({"folder": folder, "config": config, "robot": robot, "asset_id": asset_id})
    return asked, robots


def _openpi(folder: Path, config: str | None, asset_id: str | None) -> Entry:
    params = params_folder(folder)
    root = params.parent if params == folder else folder
    family = layout.family_of(layout.open_openpi(params))
    if config is None:
        raise ValueError(
            f"{folder} is a {family} checkpoint, and does not say which config made it: name one "
            "of openpi's or give a JSON file (the README shows one)"
        )
    entry = read_config(config) if config.endswith(".json") else named(config)
    if entry.family != family:
        raise ValueError(f"{folder} is a {family} checkpoint; {entry.name} is a {entry.family}")
    entry = dataclasses.replace(
        entry, folder=root, asset_id=asset_id or entry.asset_id, address=None, licence="", notice=""
    )
    norm_stats_file(entry)
    return entry


def norm_stats_file(entry: Entry) -> Path:
    """Where an openpi or bundled checkpoint has its norm stats; ValueError that lists others."""
    if entry.kind == "bundled":
        return entry.folder / "norm_stats.json"
    assets = entry.folder / "assets"
    path = assets / entry.asset_id / "norm_stats.json"
    if not path.is_file():
        found = sorted(
            file.parent.relative_to(assets).as_posix() for file in assets.rglob("norm_stats.json")
        )
        raise ValueError(
            f"{entry.folder} has no norm stats for {entry.asset_id!r} (expected {path}); "
            + (f"it has some for {', '.join(found)}: say which" if found else "it has none")
        )
    return path


def norm_stats(entry: Entry) -> dict[str, Stats]:
    """The stats of "state" and "actions", over the robot's dimensions.

    Raises ValueError if they are missing, are for fewer dimensions, or lack what the entry's
    normalisation needs.
    """
    if entry.kind == "lerobot":
        stats = _lerobot_stats(lerobot.read_lerobot(entry.folder), entry.folder)
    else:
        stats = read_norm_stats(norm_stats_file(entry))
    dims = {"state": len(entry.robot.state), "actions": len(entry.robot.actions)}
    if missing := dims.keys() - stats.keys():
        raise ValueError(f"the norm stats of {entry.folder} lack {', '.join(sorted(missing))}")
    stats = {key: trim(stats[key], count) for key, count in dims.items()}
    if entry.normalisation == "quantile" and any(x.q01 is None for x in stats.values()):
        raise ValueError(
            f"{entry.name} is normalised by quantiles, and the norm stats of {entry.folder} have "
            "none (q01, q99): compute them again with openpi's script"
        )
    return stats


# --- LeRobot ------------------------------------------------------------------------------------


def _lerobot(folder: Path, robot: str | None) -> Entry:
    described = lerobot.read_lerobot(folder)
    family = read_json(folder / "config.json")["type"]
    if family == "pi0_fast":
        raise ValueError(
            f"{folder}: LeRobot's pi0-FAST puts a start token after the padded prompt, unlike "
            "openpi's; its weights can be loaded (models/checkpoint.py), its answers would be wrong"
        )
    if robot is None:
        raise ValueError(f"{folder} does not say which robot it drives: {choice_of(ROBOTS)}")
    if robot not in ROBOTS and not robot.endswith(".json"):
        raise ValueError(f"no robot is called {robot!r}: {choice_of(ROBOTS)}, or a JSON file")
    robot = _robot(robot, Path())
    slots = {slot.name for slot in robot.slots(family)}
    problems = []
    if set(described.cameras) != slots:
        problems.append(f"its cameras are {list(described.cameras)}, expected {sorted(slots)}")
    for what, ours, theirs in (
        ("state", len(robot.state), described.state_dim),
        ("action", len(robot.actions), described.action_dim),
    ):
        if ours != theirs:
            problems.append(f"it has {theirs} {what} dimensions, {robot.title} has {ours}")
    if described.relative_actions != any(robot.offsets):
        problems.append(
            f"its actions are {'offsets' if described.relative_actions else 'absolute'}, those of "
            f"{robot.title} here are {'offsets' if any(robot.offsets) else 'absolute'}"
        )
    if len(set(described.normalisation.values())) > 1:
        problems.append(f"it normalises in two ways, {described.normalisation}")
    if problems:
        raise ValueError(f"{folder} does not drive {robot.title}: " + "; ".join(problems))
    return Entry(
        name=folder.resolve().name,
        title=f"{TITLES[family]} · {robot.title} (LeRobot)",
        config=described.config,
        robot=robot,
        normalisation=described.normalisation["state"],
        state_in_prompt=family == "pi05",
        asset_id="",
        kind="lerobot",
        folder=folder,
        notice="LeRobot leaves underscores and spaces in a prompt as they are; openpi tidies them.",
    )


def _lerobot_stats(described: lerobot.LeRobotPolicy, where: Path) -> dict[str, Stats]:
    """LeRobot's stats, shifted so that openpi's rule gives LeRobot's numbers.

    openpi divides by std + 1e-6 and by q99 - q01 + 1e-6, also on the way back. LeRobot divides by
    std + 1e-8, multiplies by std, and takes the range as it is unless it is zero.
    """
    found = {}
    for key, stats in described.stats.items():
        if not {"mean", "std"} <= stats.keys():
            raise ValueError(f"{where} carries no norm stats for {key}: it is a base model")
        values = {name: stats[name].astype(np.float64) for name in stats}
        values["std"] = values["std"] + (described.epsilon if key == "state" else 0.0) - EPSILON
        if {"q01", "q99"} <= values.keys():
            span = values["q99"] - values["q01"]
            span = np.where(span == 0, described.epsilon, span)
            values["q99"] = values["q01"] + span - EPSILON
        found[key] = Stats(
            *(
                tuple(values[name].tolist()) if name in values else None
                for name in ("mean", "std", "q01", "q99")
            )
        )
    return found


# --- a fine-tune's config -----------------------------------------------------------------------


_VARIANTS = {"gemma_2b_lora": GEMMA_2B_LORA, "gemma_300m_lora": GEMMA_300M_LORA}
_LORA = (
    'null, or an object with "language" and "action", each null, a variant '
    f"({', '.join(_VARIANTS)}) or an object with rank, alpha and rslora"
)

FIELDS = {
    "base": Field("the name of a config whose settings hold unless given here", is_text),
    "name": Field("a name", is_text),
    "title": Field("a title for people", is_text),
    "family": one_of(FAMILIES),
    "robot": Field(
        f"{choice_of(ROBOTS)}, or a file that describes yours (.json, beside this one)",
        lambda x: is_text(x) and (x in ROBOTS or x.endswith(".json")),
    ),
    "action_horizon": Field("the number of steps in a chunk", is_count),
    "max_token_len": Field("the number of text tokens", is_count),
    "action_dim": Field("the model's padded action dimensions (openpi: 32)", is_count),
    "normalisation": one_of(METHODS),
    "state_in_prompt": Field("true or false (openpi's discrete_state_input)", is_flag),
    "asset_id": Field("the folder below assets/ that has norm_stats.json", is_text),
    "default_prompt": Field("text or null", lambda x: x is None or is_text(x)),
    "offsets": Field(
        "true or false for each action dimension: predicted as an offset from the state?",
        lambda x: isinstance(x, list) and all(isinstance(i, bool) for i in x),
    ),
    "adapt_to_pi": Field("true or false (ALOHA only)", is_flag),
    "lora": Field(_LORA, lambda x: x is None or isinstance(x, dict)),
    "action_tokenizer": Field("a name on the Hugging Face hub, or a folder", is_text),
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
        robot = _robot({**base, **data}["robot"], path.parent)
        problems = _contradictions(data, base, robot)
    if problems:
        raise ValueError("\n  ".join([f"{path} is no complete config:", *sorted(problems)]))
    return _entry({**base, **data}, robot)


def _robot(named: str, folder: Path) -> Robot:
    """One of `catalog.ROBOTS`, or the one in a file, found from `folder`."""
    return ROBOTS[named] if named in ROBOTS else read_robot(folder / named)


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
        problems.append(f"a {family} policy has no action_tokenizer")
    if len(data.get("offsets", robot.offsets) or robot.actions) != dims:
        problems.append(f"offsets has {len(data['offsets'])} values, {robot.title} {dims} actions")
    if lost := {slot.camera for slot in robot.fast_slots} - {s.camera for s in robot.slots(family)}:
        problems.append(f"{robot.title}'s cameras {sorted(lost)} fill no slot of a {family} policy")
    if data.get("adapt_to_pi") and robot.name != "aloha":
        problems.append("adapt_to_pi is for ALOHA only")
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
    return Entry(
        name=settings["name"],
        title=settings.get("title", settings["name"]),
        config=sizes(
            family,
            robot,
            settings["action_horizon"],
            settings["max_token_len"],
            settings.get("action_dim"),
        ),
        robot=robot,
        normalisation=settings["normalisation"],
        state_in_prompt=settings.get("state_in_prompt", family != "pi0"),
        asset_id=settings["asset_id"],
        default_prompt=settings.get("default_prompt"),
        adapters=_adapters(settings.get("lora")),
        action_tokenizer=settings.get("action_tokenizer", FAST_TOKENIZER) if fast else None,
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
