"""The policies that a person can open by name, as data: openpi's published checkpoints and named
configs, and the bundled ones. Checkpoints in a folder of one's own are in `local.py`.

Nothing here loads JAX or looks beyond `assets/`.

Sources: openpi's `training/config.py`, `training/misc/` and README at commit 15a9616.
"""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Literal

from models.checkpoints.digests import Kind, read_bundled
from models.checkpoints.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters
from models.checkpoints.openpi import openpi_manifest
from models.config import PI0, PI0_FAST, PI05, Config, Convention, Pi0FastConfig, from_dict
from playground.robots import builtin
from playground.robots.norm_stats import Method
from playground.robots.robot import Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.trace import Family, Slot

BUCKET = "gs://openpi-assets/checkpoints"
PALIGEMMA_TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
FAST_TOKENIZER = "physical-intelligence/fast"  # on the Hugging Face hub
GEMMA_TERMS = "Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
METHODS: tuple[Method, ...] = ("z-score", "quantile")  # openpi's
ASSETS = Path(__file__).resolve().parents[2] / "assets"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A policy that can be opened, once its files are there.

    name               openpi's config name where it has one
    title              for people, on the page
    config             the model's sizes; its slots, horizon and prompt length among them
    robot              with the conventions of this policy's actions: offsets, adapt_to_pi
    normalisation      how state and actions were scaled
    state_in_prompt    whether the prompt holds the state (in 256 bins)
    asset_id           whose norm stats: `assets/<asset_id>/` of openpi's folder, else unused
    default_prompt     what openpi's policy is told when nothing is said, or None
    adapters           how its LoRA adapters were scaled, None for full weights
    action_tokenizer   pi0-FAST's, by its name on the Hugging Face hub or as a folder; else None
    text_tokenizer     a sentencepiece model of its own, or None for PaliGemma's
    kind               whose layout the folder has
    address            where the checkpoint is published (gs://), or None
    folder             where it is on this machine, or None
    params             openpi's parameters, where they are not `folder/params`, else None
    rules              where its inputs differ from openpi's
    guided             whether pi0-FAST decodes guided unless told otherwise (trace.Options)
    licence            of the weights; "" where the owner knows
    notice             a plain sentence a person should read first, or ""
    """

    name: str
    title: str
    config: Config
    robot: Robot
    normalisation: Method
    state_in_prompt: bool
    asset_id: str
    default_prompt: str | None = None
    adapters: Adapters | None = None
    action_tokenizer: str | None = None
    text_tokenizer: Path | None = None
    kind: Kind = "openpi"
    address: str | None = None
    folder: Path | None = None
    params: Path | None = None
    rules: InputRules = OPENPI_RULES
    guided: bool = False
    licence: str = ""
    notice: str = ""

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


# --- openpi's configs ---------------------------------------------------------------------------

FAMILIES = {"pi0": PI0, "pi05": PI05, "pi0_fast": PI0_FAST}
TITLES = {"pi0": "pi0", "pi05": "pi0.5", "pi0_fast": "pi0-FAST"}
_UNPUBLISHED = "openpi publishes no checkpoint of this config: give a folder of your own."


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


def _openpi(
    name: str,
    family: Family,
    robot: Robot,
    asset_id: str,
    checkpoint: str | None,
    *,
    horizon: int | None = None,
    max_token_len: int | None = None,
    prompt: str | None = None,
    state_in_prompt: bool | None = None,
    lora: bool = False,
    notice: str = "",
) -> Entry:
    """A named config of openpi's; checkpoint: where below BUCKET, None if nowhere."""
    adapters = Adapters(GEMMA_2B_LORA, None if family == "pi0_fast" else GEMMA_300M_LORA)
    return Entry(
        name=name,
        title=TITLES[family],
        config=sizes(family, robot, horizon, max_token_len),
        robot=robot,
        normalisation="z-score" if family == "pi0" else "quantile",
        state_in_prompt=family != "pi0" if state_in_prompt is None else state_in_prompt,
        asset_id=asset_id,
        default_prompt=prompt,
        adapters=adapters if lora else None,
        action_tokenizer=FAST_TOKENIZER if family == "pi0_fast" else None,
        address=f"{BUCKET}/{checkpoint}" if checkpoint else None,
        licence=GEMMA_TERMS if checkpoint else "",
        notice=notice or ("" if checkpoint else _UNPUBLISHED),
    )


_BASE = "A base model: openpi fine-tunes it before use."
_EARLIER = "From an earlier version of openpi, whose documents no longer name it."
_ALOHA_SIM_ID = "lerobot/aloha_sim_transfer_cube_human"
_LIBERO_ID = "physical-intelligence/libero"
_ALOHA, _DROID, _LIBERO = builtin.ALOHA, builtin.DROID, builtin.LIBERO
_DROID_JOINTS, _LIBERO_OFFSETS = builtin.DROID_JOINT_POSITION, builtin.LIBERO_OFFSETS

OPENPI = (
    _openpi("pi0_droid", "pi0", _DROID, "droid", "pi0_droid", horizon=10),
    _openpi("pi0_fast_droid", "pi0_fast", _DROID, "droid", "pi0_fast_droid", horizon=10),
    _openpi("pi05_droid", "pi05", _DROID, "droid", "pi05_droid", horizon=15),
    _openpi(
        "pi05_libero",
        *("pi05", _LIBERO, _LIBERO_ID, "pi05_libero"),
        horizon=10,
        # This policy is given no state at all.
        state_in_prompt=False,
    ),
    _openpi(
        "pi0_fast_libero",
        *("pi0_fast", _LIBERO_OFFSETS, _LIBERO_ID, "pi0_fast_libero"),
        horizon=10,
        max_token_len=180,
        notice=_EARLIER,
    ),
    _openpi("pi0_libero", "pi0", _LIBERO_OFFSETS, _LIBERO_ID, None),
    _openpi("pi0_libero_low_mem_finetune", "pi0", _LIBERO_OFFSETS, _LIBERO_ID, None, lora=True),
    _openpi(
        "pi0_fast_libero_low_mem_finetune",
        *("pi0_fast", _LIBERO_OFFSETS, _LIBERO_ID, None),
        horizon=10,
        max_token_len=180,
        lora=True,
    ),
    _openpi(
        "pi0_aloha_sim",
        *("pi0", builtin.ALOHA_SIM, _ALOHA_SIM_ID, "pi0_aloha_sim"),
        prompt="Transfer cube",
    ),
    _openpi(
        "pi0_aloha_towel",
        *("pi0", _ALOHA, "trossen", "pi0_aloha_towel"),
        prompt="fold the towel",
    ),
    _openpi(
        "pi0_aloha_tupperware",
        *("pi0", _ALOHA, "trossen", "pi0_aloha_tupperware"),
        prompt="open the tupperware and put the food on the plate",
    ),
    _openpi(
        "pi0_aloha_pen_uncap",
        *("pi0", _ALOHA, "trossen", "pi0_aloha_pen_uncap"),
        prompt="uncap the pen",
    ),
    _openpi(
        "pi05_aloha_pen_uncap",
        *("pi05", _ALOHA, "trossen", None),
        prompt="uncap the pen",
    ),
    _openpi("pi0_aloha", "pi0", _ALOHA, "trossen", "pi0_base", notice=_BASE),
    _openpi("pi05_aloha", "pi05", _ALOHA, "trossen", "pi05_base", notice=_BASE),
    _openpi(
        "pi0_droid_jointpos_polaris",
        *("pi0", _DROID_JOINTS, "droid", "polaris/pi0_droid_jointpos_polaris"),
        horizon=10,
        max_token_len=100,
    ),
    _openpi(
        "pi0_droid_jointpos_100k_polaris",
        *("pi0", _DROID_JOINTS, "droid", "polaris/pi0_droid_jointpos_100k_polaris"),
        horizon=10,
        max_token_len=100,
    ),
    _openpi(
        "pi05_droid_jointpos_polaris",
        *("pi05", _DROID_JOINTS, "droid", "polaris/pi05_droid_jointpos_polaris"),
        horizon=15,
    ),
    _openpi(
        "pi0_fast_droid_jointpos_polaris",
        *("pi0_fast", _DROID_JOINTS, "droid", "polaris/pi0_fast_droid_jointpos_polaris"),
        horizon=10,
        max_token_len=180,
    ),
    _openpi(
        "pi0_fast_full_droid_finetune",
        *("pi0_fast", _DROID_JOINTS, "droid", None),
        horizon=16,
        max_token_len=180,
    ),
    _openpi("pi05_full_droid_finetune", "pi05", _DROID_JOINTS, "droid", None, horizon=16),
    _openpi("pi05_droid_finetune", "pi05", _DROID, "droid", None, horizon=16),
)

# openpi's other configs, and why they cannot be opened here.
_TOO_OLD = "openpi itself can no longer build this config"
NOT_OFFERED = {
    "paligemma_binning_droid": "its actions are binned, not FAST tokens",
    "paligemma_binning_droid_jointpos": "its actions are binned, not FAST tokens",
    "paligemma_vq_droid": "its actions are FSQ codes, not FAST tokens",
    "paligemma_fast_droid": _TOO_OLD,
    "paligemma_fast_specialist_droid": _TOO_OLD,
    "paligemma_diffusion_droid": _TOO_OLD,
}


# --- by name ------------------------------------------------------------------------------------

# The same robot and horizon; the second pair needs no download and no GPU.
DEFAULT_PAIR = ("pi0_droid", "pi0_fast_droid")
BUNDLED_PAIR = ("pi0_tabletop", "pi0_fast_tabletop")


def entries(assets: Path = ASSETS) -> dict[str, Entry]:
    """All that can be opened by name: bundled policies first (those whose files are there)."""
    folders = sorted(path.parent for path in assets.glob("*/config.json"))
    return {entry.name: entry for entry in (*map(bundled, folders), *OPENPI)}


def named(name: str, assets: Path = ASSETS) -> Entry:
    """The entry of that name; raises ValueError that offers the nearest ones."""
    known = entries(assets)
    if name in known:
        return known[name]
    if name in NOT_OFFERED:
        raise ValueError(f"{name} cannot be opened here: {NOT_OFFERED[name]}")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    raise ValueError(f"no policy is called {name!r}; did you mean {', '.join(near)}?")


def bundled(folder: Path) -> Entry:
    """The small policy in a folder, as its `config.json` says."""
    description = read_bundled(folder)
    config, metadata = from_dict(description["config"]), description["metadata"]
    family = family_of(config)
    if metadata.get("robot") not in builtin.ROBOTS or metadata.get("normalisation") not in METHODS:
        raise ValueError(
            f"{folder}: its metadata names robot {metadata.get('robot')!r} and normalisation "
            f"{metadata.get('normalisation')!r}; expected one of {', '.join(builtin.ROBOTS)} and "
            f"{' or '.join(METHODS)}"
        )
    robot = builtin.ROBOTS[metadata["robot"]]
    return Entry(
        name=folder.name,
        title=TITLES[family],
        config=config,
        robot=robot,
        normalisation=metadata["normalisation"],
        state_in_prompt=family != "pi0",
        asset_id="",
        action_tokenizer=str(folder / "fast") if family == "pi0_fast" else None,
        kind="bundled",
        folder=folder,
        guided=metadata.get("guided", False) is True,
        licence="Apache-2.0",
        notice="A small policy that knows only the simulated table.",
    )
