"""The entry of a checkpoint in a folder of one's own.

What an answer depends on and a checkpoint does not say is asked for, never guessed: which config
made it, which robot and norm stats, how LoRA adapters were scaled. Nothing here loads JAX.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from models.checkpoints import openpi, peft
from models.checkpoints.arrays import Stored, open_safetensors
from models.checkpoints.digests import ADAPTERS, PARAMS, weights_file
from models.checkpoints.lerobot_config import LeRobotPolicy, Version, read_lerobot
from playground import json_file
from playground.checkpoints import download, schema
from playground.checkpoints.catalog import FAST_TOKENIZER, OPENPI, bundled, named
from playground.checkpoints.entry import TITLES, Entry, family_of
from playground.checkpoints.recognise import has_parameters, recognise
from playground.checkpoints.schema import LeRobotFile
from playground.checkpoints.stats import norm_stats_file
from playground.robots.builtin import ROBOTS
from playground.robots.robot import NO_CAMERA, Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.trace import Family, Options, Slot


def open_folder(
    folder: Path | str,
    config: str | None = None,
    *,
    robot: str | None = None,
    asset_id: str | None = None,
    weights_to_come: bool = False,
) -> Entry:
    """The entry of a checkpoint folder: openpi's, LeRobot's or a bundled policy's.

    config: for openpi's, a config's name or a JSON file (`schema.OpenpiFile`); for LeRobot's,
    nothing or a JSON file (`schema.LeRobotFile`). robot: for LeRobot's, one of `builtin.ROBOTS` or
    a file that describes another (`robot_file`). asset_id: for openpi's, whose norm stats, where
    the folder has another's than the config's. weights_to_come: the folder is LeRobot's, and so far
    holds only what describes it. Raises ValueError that says what is missing, or
    serves for nothing, and which answers there are.
    """
    folder = Path(folder).expanduser()
    kind = "lerobot" if weights_to_come else recognise(folder)
    given = {"config": config, "robot": robot, "asset_id": asset_id}
    takes = {"lerobot": {"config", "robot"}, "bundled": set()}.get(kind, {"config", "asset_id"})
    if idle := [name for name, value in given.items() if value and name not in takes]:
        raise ValueError(f"{folder} ({kind}) takes no {' and no '.join(idle)}: leave it out")
    if kind == "bundled":
        return bundled(folder)
    if kind == "lerobot":
        return _lerobot(folder, config, robot)
    return _openpi(folder, config, asset_id, pytorch=kind == "openpi_pytorch")


# --- openpi -------------------------------------------------------------------------------------


def _openpi(folder: Path, config: str | None, asset_id: str | None, *, pytorch: bool) -> Entry:
    params = None if pytorch else folder if has_parameters(folder) else folder / PARAMS
    arrays = _pytorch_arrays(folder) if params is None else openpi.open_openpi(params)
    family = openpi.family_of(arrays)
    fitting = ", ".join(known.name for known in OPENPI if known.family == family)
    if config is None:
        raise ValueError(
            f"{folder} is a {family} checkpoint, and does not say which config made it: give "
            f"--config with a JSON file (docs/checkpoints.md shows one) or a name of openpi's "
            f"({fitting})"
        )
    entry = schema.read_openpi_file(config) if config.endswith(".json") else named(config)
    if entry.family != family:
        raise ValueError(
            f"{folder} is a {family} checkpoint, and {entry.name} a config for {entry.family}; "
            f"openpi's for {family} are {fitting}"
        )
    entry = dataclasses.replace(
        entry,
        kind="openpi_pytorch" if pytorch else "openpi",
        folder=folder if params is None else params.parent,
        params=None if params is None or params.name == PARAMS else params,
        asset_id=asset_id or entry.asset_id,
        address=None,
        licence="",
        notice="",
    )
    norm_stats_file(entry)
    return entry


def _pytorch_arrays(folder: Path) -> dict[str, Stored]:
    """By the names that tell openpi's families apart."""
    weights = weights_file(folder)
    assert weights is not None, "such a folder is recognised by its weights"
    return {
        name.replace(".weight", "/kernel"): stored
        for name, stored in open_safetensors(weights).items()
    }


# --- LeRobot ------------------------------------------------------------------------------------

_BASE = (
    "A base model, without norm stats: it drives no robot before it is fine-tuned, {} included. It "
    "is open for looking; numbers go in and come out as the model has them, not in the robot's "
    "units."
)


def _lerobot(folder: Path, config: str | None, robot: str | None) -> Entry:
    described = read_lerobot(folder)
    family = family_of(described.config)
    said, file = _addition(folder, config, robot)
    drives = schema.robot_of(said.robot, file.parent, described.cameras)
    scaled = {method for method in described.normalisation.values() if method != "identity"}
    is_base = bool(scaled) and not any(described.stats.values())
    if problems := [] if is_base else _misfits(described, family, drives):
        fitting = [name for name, r in ROBOTS.items() if not _misfits(described, family, r)]
        raise ValueError(
            f"{folder} does not drive {drives.title}: {'; '.join(problems)}. "
            + (f"What it says of itself fits {', '.join(fitting)}" if fitting else "None here fits")
            + "; a JSON file can describe another robot"
        )
    if said.action_tokenizer and family != "pi0_fast":
        raise ValueError(f"{config}: {schema.NO_ACTION_TOKENS.format(family)}")
    if described.text_tokenizer and not said.text_tokenizer:
        raise ValueError(
            f"{folder} was trained with the text tokenizer {described.text_tokenizer!r}, which is "
            "not PaliGemma's: give its sentencepiece model as text_tokenizer in a JSON file"
        )
    model = schema.resized(described.config, said)
    same = len(set(described.normalisation.values())) == 1
    notices = _notices(described, family, said.lerobot_version)
    if is_base:
        # Nothing is learned of the robot yet: numbers go in and come out as the model has them.
        notices = [_BASE.format(drives.title), *notices[:1]]
        drives = dataclasses.replace(drives, offsets=())
        if family == "pi0_fast":
            model = dataclasses.replace(model, action_dim=len(drives.actions))
    return Entry(
        name=said.name,
        title=said.title or f"{TITLES[family]} · {drives.title} (LeRobot)",
        config=model,
        robot=_as_lerobot_has_it(drives, described.cameras),
        normalisation="identity" if is_base else described.normalisation["state"],
        action_normalisation=None if is_base or same else described.normalisation["actions"],
        state_in_prompt=family != "pi0",
        asset_id="",
        default_prompt=said.default_prompt,
        action_tokenizer=_action_tokenizer(described, schema.action_tokenizer_of(said, file)),
        text_tokenizer=schema.text_tokenizer_of(said, file),
        kind="lerobot",
        folder=folder,
        base_folder=_base_folder(folder, said, file),
        rules=_rules(described, family, said.lerobot_version),
        notice=" ".join(notices),
    )


def _addition(folder: Path, config: str | None, robot: str | None) -> tuple[LeRobotFile, Path]:
    """What a person says of the folder, and the file that says it (or stands for the place where
    the command was given)."""
    if config is not None:
        if not config.endswith(".json") or robot:
            raise ValueError(
                f"{folder} says itself how it was made: give its robot, or a JSON file that names "
                f"the robot, not {config!r}"
            )
        path = Path(config).expanduser()
        title = "{} does not describe a folder of LeRobot's:"
        return json_file.read(path, LeRobotFile, title), path
    if robot is None:
        raise ValueError(
            f"{folder} does not say which robot it drives: give --robot with one of "
            f"{', '.join(ROBOTS)}, or a JSON file that describes yours"
        )
    if robot not in ROBOTS and not robot.endswith(".json"):
        raise ValueError(
            f"no robot is called {robot!r}: one of {', '.join(ROBOTS)}, or a JSON file"
        )
    return LeRobotFile(name=folder.resolve().name, robot=robot), Path()


def _base_folder(folder: Path, said: LeRobotFile, file: Path) -> Path | None:
    """Where the weights are that a folder's PEFT adapters change; None without adapters."""
    if not (folder / ADAPTERS).is_file():
        return None
    if (whole := weights_file(folder)) is not None:
        raise ValueError(
            f"{folder} holds whole weights ({whole.name}) and PEFT adapters ({ADAPTERS}), and "
            f"LeRobot would load the adapters over {peft.base_of(folder)!r}: take away "
            f"{whole.name} to have that, or {ADAPTERS} where they are merged already"
        )
    if said.base_folder:
        candidates = [file.parent / Path(said.base_folder).expanduser()]
    else:
        noted = peft.base_of(folder) or ""
        candidates = [Path(noted).expanduser(), folder / noted]
        if re.fullmatch(r"[\w.-]+/[\w.-]+", noted):
            candidates.append(download.local_path(f"hf://{noted}"))
    for candidate in candidates:
        if weights_file(candidate) is not None:
            return candidate
    looked_in = ", ".join(str(candidate) for candidate in candidates if str(candidate) != ".")
    raise ValueError(
        f"{folder} holds PEFT adapters for {peft.base_of(folder)!r}, whose weights are not on this "
        f"machine ({looked_in or 'no folder is noted'}): get them, and name their folder as "
        '"base_folder" in a JSON file'
    )


def _action_tokenizer(described: LeRobotPolicy, asked: str | None) -> str | None:
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


def _misfits(described: LeRobotPolicy, family: Family, robot: Robot) -> list[str]:
    """Why a policy cannot be this robot's; [] if it can."""
    problems = []
    filled = list(robot.cameras(family))
    if not set(filled) <= set(described.cameras):
        problems.append(f"its cameras are {list(described.cameras)}, expected {filled} among them")
    for what, ours, theirs in (
        ("state", len(robot.state), described.state_dim),
        ("action", len(robot.actions), described.action_dim),
    ):
        if ours != theirs:
            problems.append(f"it has {theirs} {what} dimensions, {robot.title} has {ours}")
    theirs, ours = (_offsets_in_words(x) for x in (described.offsets, robot.offsets))
    if theirs != ours:
        problems.append(f"its actions are {theirs}, those of {robot.title} here are {ours}")
    return problems


def _offsets_in_words(offsets: Sequence[bool]) -> str:
    places = [str(place) for place, offset in enumerate(offsets) if offset]
    return f"offsets at {', '.join(places)}" if places else "absolute"


def _rules(described: LeRobotPolicy, family: Family, asked: Version | None) -> InputRules:
    """LeRobot 0.4 padded the state before it wrote it into the prompt, and pictures with -1 before
    it stretched 0 to 1 into -1 to 1, so that their bars became -3."""
    if (asked or described.version) != "0.4":
        return OPENPI_RULES
    padded = 0 if family == "pi0" else described.max_state_dim
    return InputRules(prompt_state_dims=padded, bar_value=-3.0)


def _notices(described: LeRobotPolicy, family: Family, asked: Version | None) -> list[str]:
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
    if described.num_steps not in (None, Options().num_steps):
        notices.append(f"LeRobot takes {described.num_steps} Euler steps with it.")
    if described.temperature:
        notices.append(f"LeRobot draws its tokens at a temperature of {described.temperature:g}.")
    if described.renamed:
        cameras = ", ".join(f"{slot} was {camera}" for slot, camera in described.renamed.items())
        notices.append(f"In its training data {cameras}.")
    return notices
