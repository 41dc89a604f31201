"""From what the command line or the page asks for to entries, once; and, where nothing is asked
for, the pair that suits the machine. Nothing here loads JAX.
"""

import dataclasses
import importlib.metadata
import logging
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from models.checkpoints.digests import CONFIG
from playground.checkpoints import download, schema
from playground.checkpoints.catalog import (
    BASES,
    BUCKET,
    BUNDLED,
    DEFAULT_PAIR,
    HUB,
    base_model,
    entries,
    named,
)
from playground.checkpoints.entry import Entry
from playground.checkpoints.folder import open_folder
from playground.trace import MAX_PICTURES

# What the pair takes in bfloat16 by `playground.checkpoints.memory_plan`, which judges the rest.
PAIR_NEEDS_GB = 16

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A checkpoint as somebody asks for it: a name of the catalogue, a folder, a JSON file that
    names its folder, or a policy on the Hugging Face hub (hf://owner/name). config, robot,
    asset_id: of a folder (`open_folder`)."""

    checkpoint: str
    config: str | None = None
    robot: str | None = None
    asset_id: str | None = None


def requests(
    checkpoints: Sequence[str],
    config: str | None = None,
    robot: str | None = None,
    asset_id: str | None = None,
) -> list[Request]:
    """A request for each checkpoint, or for the default pair where there are none.

    config, robot, asset_id: of the one folder among them. Raises ValueError where it is not clear
    whose they are.
    """
    settings = {"config": config, "robot": robot, "asset_id": asset_id}
    folders = [word for word in checkpoints if _is_folder(word)]
    if any(settings.values()) and len(folders) != 1:
        raise ValueError(
            f"a config, robot or asset id belongs to one folder, and {len(folders) or 'none'} "
            "came; with several, let a JSON file name each one's folder, and give those files"
        )
    return [
        Request(word, **settings) if word in folders else Request(word)
        for word in checkpoints or default_policies()
    ]


def resolve(request: Request) -> Entry:
    """The entry that a request means. Raises ValueError for what cannot be opened."""
    entry = _found(request)
    if len(entry.slots) > MAX_PICTURES:
        raise ValueError(
            f"{entry.name} has {len(entry.slots)} camera inputs; at most {MAX_PICTURES} are taken"
        )
    return entry


def _found(request: Request) -> Entry:
    word = request.checkpoint
    if not word.strip():
        raise ValueError("no checkpoint is named: give a name, a folder, or a JSON file")
    if not _is_folder(word):
        if not word.endswith(".json"):
            return named(word)
        return open_folder(schema.folder_in(Path(word).expanduser()), word)
    if address := _on_the_hub(word):
        return _from_the_hub(address, request)
    if re.match(r"[a-z][a-z0-9+]*://", word):
        raise ValueError(_address(word))
    folder = Path(word).expanduser()
    if not folder.exists() and "/" not in word:
        return named(word)  # raises, and offers near names
    is_file = folder.suffix in (".json", ".safetensors")
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", word) and word[0] != "." and not is_file
    if on_hub and not folder.exists():
        raise ValueError(
            f"{word}: there is no such folder. If it is a name on the Hugging Face hub, ask for "
            f"hf://{word}, which downloads it"
        )
    return open_folder(folder, request.config, robot=request.robot, asset_id=request.asset_id)


def resolve_all(asked: Sequence[Request]) -> list[Entry]:
    """The entries of several requests. Raises ValueError for what cannot be opened, and where two
    have one name."""
    found: dict[str, Entry] = {}
    for entry in map(resolve, asked):
        if entry.name in found:
            raise ValueError(
                f"two of these are called {entry.name}: give them names in JSON configs of their "
                "own"
            )
        found[entry.name] = entry
    return list(found.values())


def _on_the_hub(word: str) -> str | None:
    """The address of a policy on the Hugging Face hub: known by name, or given."""
    if word in HUB and not Path(word).exists():
        return f"hf://{word}"
    return word if word.startswith("hf://") else None


def _from_the_hub(address: str, request: Request) -> Entry:
    """The entry of a policy on the hub, from what describes it; the weights come when it is loaded
    (`load.load`)."""
    folder = download.fetch_policy(address, description_only=True)
    entry = open_folder(
        folder,
        request.config,
        robot=request.robot,
        asset_id=request.asset_id,
        weights_to_come=True,
    )
    known = HUB.get(address.removeprefix("hf://"))
    notice = f"Not verified: {known}. {entry.notice}" if known else entry.notice
    return dataclasses.replace(entry, address=address, notice=notice)


def _is_folder(word: str) -> bool:
    """A name of the catalogue is that; a folder called the same is `./name`. A checkpoint's own
    config.json stands for its folder, and is refused there (`recognise`)."""
    if word in (*BUNDLED, *entries()):
        return False
    return not word.endswith(".json") or Path(word).name == CONFIG


def _address(word: str) -> str:
    """What to do about an address where a folder is asked for."""
    if word.startswith(BUCKET):
        if (name := word.rstrip("/").removeprefix(f"{BUCKET}/")) in BASES:
            return base_model(name)
        known = [entry.name for entry in entries().values() if entry.address == word.rstrip("/")]
        if known:
            return f"{word} opens by its name, and is downloaded then: {' or '.join(known)}"
    if match := re.match(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", word):
        return f"{word} is a page of the Hugging Face hub: ask for hf://{match[1]}, to download it"
    copy = {
        "gs": f"gcloud storage cp -r {word} .",
        "s3": f"aws s3 cp --recursive {word} .",
    }.get(word.split("://")[0], "a program that reads such addresses")
    return f"{word} is an address, and a folder is asked for: copy it here first ({copy})"


# --- what nobody asked for ----------------------------------------------------------------------


def default_policies() -> tuple[str, ...]:
    """openpi's pair where JAX can use a GPU large enough and the files are here or can be got;
    else the bundled policies. Says in the log why it is not the first, if there is a GPU."""
    memory = gpu_memory_gb()
    if memory is None:
        return BUNDLED
    pair = " and ".join(DEFAULT_PAIR)
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return BUNDLED
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
    return BUNDLED


def takes_a_gpu() -> bool:
    """Whether JAX, as installed and set, looks for another device than the CPU."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return False
    return bool(importlib.metadata.entry_points(group="jax_plugins"))


def gpu_memory_gb() -> float | None:
    """Of the first NVIDIA GPU, asked of its driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(done.stdout.split()[0]) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
