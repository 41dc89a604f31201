"""The policies that a person can open by name, as data: openpi's published checkpoints and named
configs, and the bundled ones. Folders of one's own are in `folder.py`.

Nothing here loads JAX or reads beyond `assets/`.

Sources: openpi's `training/config.py`, `training/misc/` and README at commit 15a9616.
"""

import difflib
from pathlib import Path

from models.checkpoints.digests import CONFIG, read_bundled
from models.checkpoints.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters
from models.config import PI0_FAST_TABLETOP, PI0_TABLETOP, PI05_TABLETOP, Config, from_dict
from playground.assets import ASSETS
from playground.checkpoints.entry import TITLES, Entry, family_of, sizes
from playground.robots import builtin
from playground.robots.robot import Robot
from playground.trace import Family, Method

BUCKET = "gs://openpi-assets/checkpoints"
PALIGEMMA_TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
FAST_TOKENIZER = "physical-intelligence/fast"  # on the Hugging Face hub
GEMMA_TERMS = "Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
METHODS: tuple[Method, ...] = ("z-score", "quantile")  # openpi's
TOKENIZER = ASSETS / "tokenizer" / "paligemma_small.model"  # the bundled policies'

# --- openpi's configs ---------------------------------------------------------------------------

_UNPUBLISHED = "openpi publishes no checkpoint of this config: give a folder of your own."


def _openpi(
    name: str,
    family: Family,
    robot: Robot,
    asset_id: str,
    checkpoint: str | None,
    *,
    horizon: int | None = None,
    max_token_len: int | None = None,
    action_dim: int | None = None,
    action_tokenizer: str = FAST_TOKENIZER,
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
        config=sizes(family, robot, horizon, max_token_len, action_dim),
        robot=robot,
        normalisation="z-score" if family == "pi0" else "quantile",
        state_in_prompt=family != "pi0" if state_in_prompt is None else state_in_prompt,
        asset_id=asset_id,
        default_prompt=prompt,
        adapters=adapters if lora else None,
        action_tokenizer=action_tokenizer if family == "pi0_fast" else None,
        address=f"{BUCKET}/{checkpoint}" if checkpoint else None,
        licence=GEMMA_TERMS if checkpoint else "",
        notice=notice or ("" if checkpoint else _UNPUBLISHED),
    )


_BASE = "A base model: openpi fine-tunes it before use."
_EARLIER = "From an earlier version of openpi, whose documents no longer name it."
_ROBOARENA = (
    "Not verified: of RoboArena. openpi's config names its sizes, tokenizer and norm stats, but no "
    "longer builds; its pictures and state are taken to be those of openpi's other DROID policies."
)
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
    _openpi(
        "paligemma_fast_droid",
        *("pi0_fast", _DROID, "droid", "roboarena/paligemma_fast_droid"),
        horizon=15,
        notice=_ROBOARENA,
    ),
    _openpi(
        "paligemma_fast_specialist_droid",
        *("pi0_fast", _DROID, "droid", "roboarena/paligemma_fast_specialist_droid"),
        horizon=15,
        action_tokenizer="KarlP/fast_droid_specialist",
        notice=_ROBOARENA,
    ),
    _openpi(
        "paligemma_diffusion_droid",
        *("pi0", _DROID, "droid", "roboarena/paligemma_diffusion_droid"),
        horizon=10,
        action_dim=8,
        notice=_ROBOARENA,
    ),
)

# LeRobot's on the Hugging Face hub. None could be downloaded where this was written: what is said
# of them comes from LeRobot's code and threads, and is not verified.
_NO_ROBOT = "published as a base model"
HUB = {
    "lerobot/pi0_base": _NO_ROBOT,
    "lerobot/pi05_base": _NO_ROBOT,
    "lerobot/pi05_libero_base": "a base model for LIBERO",
    "lerobot/pi05_libero_finetuned_v044": "fine-tuned on LIBERO, by its name with LeRobot 0.4.4",
    "lerobot/pi0fast-base": _NO_ROBOT,
    "lerobot/pi0fast-libero": "fine-tuned on LIBERO",
    "lerobot/pi052_base": "the arrays of pi05_base under other names, which may not open",
}

# openpi's checkpoints to fine-tune from, below BUCKET. They have no config of a robot's own.
BASES = ("pi0_base", "pi0_fast_base", "pi05_base")

# openpi's other configs, and why they cannot be opened here.
NOT_OFFERED = {
    "paligemma_binning_droid": "its actions are binned, not FAST tokens",
    "paligemma_binning_droid_jointpos": "its actions are binned, not FAST tokens",
    "paligemma_vq_droid": "its actions are FSQ codes, not FAST tokens",
}


# --- by name ------------------------------------------------------------------------------------

# The same robot and horizon; the bundled ones need no download and no GPU.
DEFAULT_PAIR = ("pi0_droid", "pi0_fast_droid")
_CONFIGS: dict[str, Config] = {
    "pi0_tabletop": PI0_TABLETOP,
    "pi0_fast_tabletop": PI0_FAST_TABLETOP,
    "pi05_tabletop": PI05_TABLETOP,
}
BUNDLED = tuple(_CONFIGS)


def entries(assets: Path = ASSETS) -> dict[str, Entry]:
    """All that can be opened by name: bundled policies first (those whose files are there)."""
    folders = sorted(path.parent for path in assets.glob(f"*/{CONFIG}"))
    return {entry.name: entry for entry in (*map(bundled, folders), *OPENPI)}


def named(name: str, assets: Path = ASSETS) -> Entry:
    """The entry of that name; raises ValueError that offers the nearest ones."""
    known = entries(assets)
    if name in BUNDLED and name not in known:
        return untrained(name)
    if name in known:
        return known[name]
    if name in NOT_OFFERED:
        raise ValueError(f"{name} cannot be opened here: {NOT_OFFERED[name]}")
    if name in BASES:
        raise ValueError(base_model(name))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    raise ValueError(f"no policy is called {name!r}; did you mean {', '.join(near)}?")


def base_model(name: str) -> str:
    """What one of BASES is, and how to look into it."""
    known = [entry.name for entry in OPENPI if entry.address == f"{BUCKET}/{name}"]
    ways = [f"open {known[0]}, which has a robot and its norm stats"] if known else []
    ways.append(
        f"copy it here (gcloud storage cp -r {BUCKET}/{name} .) and name the robot by --config, "
        "and by --asset-id one of the norm stats in its assets/"
    )
    return (
        f"{name} is a base model of openpi's, to be fine-tuned: it drives no robot yet. To look "
        f"into it, {', or '.join(ways)}"
    )


def untrained(name: str) -> Entry:
    """One of BUNDLED without weights: they are drawn at random when it is loaded."""
    config = _CONFIGS[name]
    family = family_of(config)
    return Entry(
        name=name,
        title=TITLES[family],
        config=config,
        robot=builtin.TABLETOP,
        normalisation="z-score" if family == "pi0" else "quantile",
        state_in_prompt=family != "pi0",
        asset_id="",
        kind="untrained",
    )


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
        constrained=metadata.get("constrained", False) is True,
        licence="Apache-2.0",
        notice="A small policy that knows only the simulated table.",
    )
