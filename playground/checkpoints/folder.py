"""A checkpoint in a folder of one's own, and its norm stats.

What an answer depends on and a checkpoint does not say is asked for, never guessed: which config
made it, which robot and norm stats, how LoRA adapters were scaled. Nothing here loads JAX.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models.checkpoints import lerobot_config as lerobot
from models.checkpoints import openpi
from models.checkpoints.digests import PARAMS, kind_of, params_folder
from playground.checkpoints.catalog import (
    FAST_TOKENIZER,
    OPENPI,
    TITLES,
    Entry,
    bundled,
    family_of,
    named,
)
from playground.checkpoints.config_file import (
    NO_ACTION_TOKENS,
    action_tokenizer_of,
    read_addition,
    read_config,
    resized,
    robot_of,
    text_tokenizer_of,
)
from playground.checkpoints.fields import choice_of
from playground.robots.builtin import ROBOTS
from playground.robots.norm_stats import EPSILON, checked_stats, read_norm_stats, trim
from playground.robots.robot import NO_CAMERA, Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.trace import Family, Slot, Stats

# --- a folder -----------------------------------------------------------------------------------


def open_folder(
    folder: Path | str,
    config: str | None = None,
    *,
    robot: str | None = None,
    asset_id: str | None = None,
) -> Entry:
    """The entry of a checkpoint folder: openpi's, LeRobot's or a bundled policy's.

    config: for openpi's, a config's name or a JSON file (`config_file.read_config`); for LeRobot's,
    nothing or a JSON file (`read_addition`). robot: for LeRobot's, one of `builtin.ROBOTS` or a
    file that describes another (`robot_file`). asset_id: for openpi's, whose norm stats, where the
    folder has another's than the config's. Raises ValueError that says what is missing, or serves
    for nothing, and which answers there are.
    """
    folder = Path(folder)
    kind = kind_of(folder)
    given = {"config": config, "robot": robot, "asset_id": asset_id}
    takes = {"openpi": {"config", "asset_id"}, "lerobot": {"config", "robot"}, "bundled": set()}
    if idle := [name for name, value in given.items() if value and name not in takes[kind]]:
        raise ValueError(f"{folder} ({kind}) takes no {' and no '.join(idle)}: leave it out")
    if kind == "bundled":
        return bundled(folder)
    if kind == "lerobot":
        return _lerobot(folder, config, robot)
    return _openpi(folder, config, asset_id)


def _openpi(folder: Path, config: str | None, asset_id: str | None) -> Entry:
    params = params_folder(folder)
    root = params.parent
    family = openpi.family_of(openpi.open_openpi(params))
    fitting = ", ".join(known.name for known in OPENPI if known.family == family)
    if config is None:
        raise ValueError(
            f"{folder} is a {family} checkpoint, and does not say which config made it: give "
            f"--config with a JSON file (the README shows one) or a name of openpi's ({fitting})"
        )
    entry = read_config(config) if config.endswith(".json") else named(config)
    if entry.family != family:
        raise ValueError(
            f"{folder} is a {family} checkpoint, and {entry.name} a config for {entry.family}; "
            f"openpi's for {family} are {fitting}"
        )
    entry = dataclasses.replace(
        entry,
        folder=root,
        params=None if params.name == PARAMS else params,
        asset_id=asset_id or entry.asset_id,
        address=None,
        licence="",
        notice="",
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
            + (
                f"it has some for {', '.join(found)}: choose with --asset-id, or as asset_id in "
                "the JSON config"
                if found
                else "it has none at all: copy assets/ from the training run, beside params/"
            )
        )
    return path


def norm_stats(entry: Entry) -> dict[str, Stats]:
    """The stats of "state" and "actions", over the robot's dimensions.

    Raises ValueError if they are missing, are for fewer dimensions, or lack what the entry's
    normalisation needs.
    """
    stats = _stored_stats(entry)
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


def stats_notes(entry: Entry) -> tuple[str, ...]:
    """What is odd about stats of more dimensions than the robot has: openpi's may cover the model's
    padded ones, which never move."""
    notes = []
    for key, dimensions in (("state", entry.robot.state), ("actions", entry.robot.actions)):
        stats, count = _stored_stats(entry)[key], len(dimensions)
        moving = [i for i, std in enumerate(stats.std) if i >= count and std > EPSILON]
        if moving:
            notes.append(
                f"The norm stats of {key} cover {len(stats.std)} dimensions, and those at "
                f"{', '.join(map(str, moving))} moved in training, but {entry.robot.title} has "
                f"{count}: they belong to another robot."
            )
    return tuple(notes)


def _stored_stats(entry: Entry) -> dict[str, Stats]:
    """As the folder has them, of whatever length."""
    if entry.kind == "lerobot":
        return _lerobot_stats(lerobot.read_lerobot(entry.folder), entry.folder)
    return read_norm_stats(norm_stats_file(entry))


# --- LeRobot ------------------------------------------------------------------------------------


def _lerobot(folder: Path, config: str | None, robot: str | None) -> Entry:
    described = lerobot.read_lerobot(folder)
    family = family_of(described.config)
    added: dict = {}
    beside = Path(config or "")
    if config is not None:
        if not config.endswith(".json") or robot:
            raise ValueError(
                f"{folder} says itself how it was made: give its robot, or a JSON file that names "
                f"the robot, not {config!r}"
            )
        added = read_addition(config)
        robot = robot_of(added["robot"], beside.parent, described.cameras)
    elif robot is None:
        raise ValueError(
            f"{folder} does not say which robot it drives: give --robot with {choice_of(ROBOTS)}, "
            "or a JSON file that describes yours"
        )
    elif robot not in ROBOTS and not robot.endswith(".json"):
        raise ValueError(f"no robot is called {robot!r}: {choice_of(ROBOTS)}, or a JSON file")
    else:
        robot = robot_of(robot, Path(), described.cameras)
    if problems := _misfits(described, family, robot):
        fitting = [name for name, r in ROBOTS.items() if not _misfits(described, family, r)]
        raise ValueError(
            f"{folder} does not drive {robot.title}: {'; '.join(problems)}. "
            + (f"What it says of itself fits {', '.join(fitting)}" if fitting else "None here fits")
            + "; a JSON file can describe another robot"
        )
    if "action_tokenizer" in added and family != "pi0_fast":
        raise ValueError(f"{config}: {NO_ACTION_TOKENS.format(family)}")
    if len(set(described.normalisation.values())) > 1:
        raise ValueError(f"{folder} normalises in two ways, {described.normalisation}")
    return Entry(
        name=added.get("name", folder.resolve().name),
        title=added.get("title", f"{TITLES[family]} · {robot.title} (LeRobot)"),
        config=resized(described.config, added),
        robot=_as_lerobot_has_it(robot, described.cameras),
        normalisation=described.normalisation["state"],
        state_in_prompt=family != "pi0",
        asset_id="",
        default_prompt=added.get("default_prompt"),
        action_tokenizer=_action_tokenizer(described, action_tokenizer_of(added, beside)),
        text_tokenizer=text_tokenizer_of(added, beside),
        kind="lerobot",
        folder=folder,
        rules=_rules(described, family, added.get("lerobot_version")),
        notice=" ".join(_notices(described, family, added.get("lerobot_version"))),
    )


def _rules(
    described: lerobot.LeRobotPolicy, family: Family, asked: lerobot.Version | None
) -> InputRules:
    """LeRobot 0.4 padded the state before it wrote it into the prompt, and pictures with -1 before
    it stretched 0 to 1 into -1 to 1, so that their bars became -3."""
    if (asked or described.version) != "0.4":
        return OPENPI_RULES
    padded = 0 if family == "pi0" else described.max_state_dim
    return InputRules(prompt_state_dims=padded, bar_value=-3.0)


def _notices(
    described: lerobot.LeRobotPolicy, family: Family, asked: lerobot.Version | None
) -> list[str]:
    """What a person should know of how inputs are prepared for it."""
    bars = "bars beside pictures that are not square darker than black"
    old = bars if family == "pi0" else f"the state padded in the prompt, {bars}"
    notices = ["Pictures are made smaller as openpi does it: smoothly, where LeRobot skips pixels."]
    if asked is not None:
        notices.append(f"Inputs are prepared as LeRobot {asked} does it, as asked for.")
    elif described.version == "0.4":
        notices.append(
            f"It was saved by LeRobot 0.4, and inputs are prepared as it was trained: {old}. "
            'LeRobot 0.5 and later prepare them otherwise; "lerobot_version": "0.5" in a JSON '
            "description does as they do."
        )
    elif described.version is None:
        notices.append(
            "The folder does not show whether LeRobot 0.4 or a later version trained it, and their "
            f"inputs differ. They are prepared as 0.5 and later do; if it was 0.4 ({old}), say "
            '"lerobot_version": "0.4" in a JSON description.'
        )
    if described.renamed:
        named = ", ".join(f"{slot} was {camera}" for slot, camera in described.renamed.items())
        notices.append(f"In its training data {named}.")
    return notices


def _action_tokenizer(described: lerobot.LeRobotPolicy, asked: str | None) -> str | None:
    """The one asked for, else the policy's own. LeRobot's copy on the hub is the published one in
    another layout."""
    own = described.action_tokenizer
    return asked or (FAST_TOKENIZER if own == "lerobot/fast-action-tokenizer" else own)


def _as_lerobot_has_it(robot: Robot, cameras: Sequence[str]) -> Robot:
    """The robot with a policy's slots: LeRobot masks those that no camera fills. It knows nothing
    of Physical Intelligence's own ALOHA convention."""

    def slots(family: Family) -> tuple[Slot, ...]:
        known = {slot.name: slot for slot in robot.slots(family)}
        found = (known.get(name, Slot(name, NO_CAMERA, False, "masked")) for name in cameras)
        return tuple(dataclasses.replace(slot, when_missing="masked") for slot in found)

    return dataclasses.replace(
        robot, flow_slots=slots("pi0"), fast_slots=slots("pi0_fast"), adapt_to_pi=False
    )


def _misfits(described: lerobot.LeRobotPolicy, family: Family, robot: Robot) -> list[str]:
    """Why a policy cannot be this robot's; [] if it can."""
    problems = []
    filled = [slot.name for slot in robot.slots(family) if slot.camera != NO_CAMERA]
    if not set(filled) <= set(described.cameras):
        problems.append(f"its cameras are {list(described.cameras)}, expected {filled} among them")
    for what, ours, theirs in (
        ("state", len(robot.state), described.state_dim),
        ("action", len(robot.actions), described.action_dim),
    ):
        if ours != theirs:
            problems.append(f"it has {theirs} {what} dimensions, {robot.title} has {ours}")
    theirs, ours = (_told_offsets(x) for x in (described.offsets, robot.offsets))
    if theirs != ours:
        problems.append(f"its actions are {theirs}, those of {robot.title} here are {ours}")
    return problems


def _told_offsets(offsets: Sequence[bool]) -> str:
    places = [str(place) for place, offset in enumerate(offsets) if offset]
    return f"offsets at {', '.join(places)}" if places else "absolute"


def _lerobot_stats(described: lerobot.LeRobotPolicy, where: Path) -> dict[str, Stats]:
    """LeRobot's stats, shifted so that openpi's rule gives LeRobot's numbers.

    openpi divides by std + 1e-6 and by q99 - q01 + 1e-6, also on the way back. LeRobot divides by
    std + 1e-8, multiplies by std, and takes the range as it is unless it is zero.
    """
    entries: dict[str, dict] = {}
    for key, stats in described.stats.items():
        method = described.normalisation[key]
        if missing := [name for name in lerobot.NEEDED[method] if name not in stats]:
            raise ValueError(
                f"{where} has no norm stats for {key} ({', '.join(missing)}): it is a base model, "
                "which drives no robot before it is fine-tuned"
            )
        low, high = ("min", "max") if method == "min-max" else ("q01", "q99")
        named = {"mean": "mean", "std": "std", "q01": low, "q99": high}
        entries[key] = {ours: stats[theirs] for ours, theirs in named.items() if theirs in stats}
    checked_stats(entries, str(where))
    return {
        key: _as_openpi_counts(
            entry, described.epsilon if key == "state" else 0.0, described.epsilon
        )
        for key, entry in entries.items()
    }


def _as_openpi_counts(entry: Mapping[str, np.ndarray], added: float, epsilon: float) -> Stats:
    """added: what LeRobot adds to this std; epsilon: what a range of zero is for it."""
    values = {name: value.astype(np.float64) for name, value in entry.items()}
    if "std" in values:
        values["std"] = values["std"] + added - EPSILON
    if {"q01", "q99"} <= values.keys():
        span = values["q99"] - values["q01"]
        values["q99"] = values["q01"] + np.where(span == 0, epsilon, span) - EPSILON
    names = ("mean", "std", "q01", "q99")
    return Stats(*(tuple(values[n].tolist()) if n in values else None for n in names))
