"""Which checkpoints to open: what the command line or the page asks for, or, where nothing is
asked, the pair that suits the machine. Nothing here loads JAX.
"""

import importlib.metadata
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from playground.checkpoints import config_file, download
from playground.checkpoints import folder as local
from playground.checkpoints.catalog import BUNDLED_PAIR, DEFAULT_PAIR, entries, named
from playground.robots.builtin import TABLETOP
from playground.robots.robot import Robot

# What the pair takes in bfloat16 by `playground.checkpoints.memory_plan`, which judges the rest.
PAIR_NEEDS_GB = 16

_logger = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """policies: as `playground.checkpoints.load.load` takes them; robots: of each, by its name."""

    policies: list[str | dict[str, str | None]]
    robots: dict[str, Robot]


def chosen(
    checkpoints: Sequence[str],
    config: str | None = None,
    robot: str | None = None,
    asset_id: str | None = None,
) -> Chosen:
    """What to open, each told by a name of the catalogue, a folder, or a JSON file that names its
    folder (`config_file`); the default pair where nothing is told.

    config, robot, asset_id: of the one folder (`local.open_folder`). Raises ValueError for what
    cannot be opened, and where it is not clear what is meant.
    """
    told = [word for word in checkpoints if _is_folder(word)]
    settings = {"config": config, "robot": robot, "asset_id": asset_id}
    if any(settings.values()) and len(told) != 1:
        raise ValueError(
            f"a config, robot or asset id belongs to one folder, and {len(told) or 'none'} came; "
            "with several, let a JSON file name each one's folder, and give those files"
        )
    policies: list[str | dict[str, str | None]] = []
    robots: dict[str, Robot] = {}
    for word in checkpoints or default_pair():
        if word in BUNDLED_PAIR:
            # It may have no weights yet; then the loader makes random ones.
            name, drives, asked = word, TABLETOP, word
        elif word in entries():
            name, drives, asked = word, named(word).robot, word
        else:
            asked = _folder(word, settings)
            entry = local.open_folder(**asked)
            name, drives = entry.name, entry.robot
        if name in robots:
            raise ValueError(
                f"two of these are called {name}: give them names in JSON configs of their own"
            )
        policies.append(asked)
        robots[name] = drives
    return Chosen(policies, robots)


def _is_folder(word: str) -> bool:
    """A name of the catalogue is that; a folder called the same is `./name`."""
    return word not in (*BUNDLED_PAIR, *entries()) and not word.endswith(".json")


def _folder(word: str, settings: Mapping[str, str | None]) -> dict[str, str | None]:
    if word.endswith(".json"):
        folder = config_file.folder_of(word)
        return {"folder": str(folder), "config": word, "robot": None, "asset_id": None}
    if not Path(word).exists() and "/" not in word:
        named(word)  # raises, and offers near names
    return {"folder": word, **settings}


# --- what nobody asked for ----------------------------------------------------------------------


def default_pair() -> tuple[str, str]:
    """openpi's pair where JAX can use a GPU large enough and the files are here or can be got;
    else the bundled pair. Says in the log why it is not the first, if there is a GPU."""
    memory = gpu_memory_gb()
    if memory is None:
        return BUNDLED_PAIR
    pair = " and ".join(DEFAULT_PAIR)
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return BUNDLED_PAIR
    if not importlib.metadata.entry_points(group="jax_plugins"):
        why = 'JAX cannot use it: pip install "jax[cuda12]"'
    elif memory < PAIR_NEEDS_GB:
        why = f"it has {memory:.0f} GB, and {pair} need {PAIR_NEEDS_GB} together"
    elif absent := [a for name in DEFAULT_PAIR for a in download.missing(named(name))]:
        if download.reachable(absent):
            return DEFAULT_PAIR
        why = f"{', '.join(dict.fromkeys(absent))} is not here and cannot be got: no network"
    else:
        return DEFAULT_PAIR
    _logger.warning("There is a GPU, but %s; opening the small bundled policies.", why)
    return BUNDLED_PAIR


def gpu_memory_gb() -> float | None:
    """Of the first NVIDIA GPU, asked of its driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(told.stdout.split()[0]) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
