"""What a folder is: whose checkpoint, or what else, said in words. Decided by what is in the files,
not by their names alone. Nothing here reads weights.
"""

import re
from pathlib import Path

from models.checkpoints.arrays import is_lfs_pointer, open_safetensors
from models.checkpoints.digests import (
    ADAPTER_CONFIG,
    ADAPTERS,
    CONFIG,
    PARAMS,
    WEIGHTS,
    read_json,
    weights_file,
)
from playground.checkpoints.entry import Kind

_FAMILIES = ("pi0", "pi05", "pi0_fast")
_TREE = 12  # lines of a folder that are shown
_UNFINISHED = ".orbax-checkpoint-tmp"
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_STEP = re.compile(r"(?:.*\D)?(\d+)")


def recognise(folder: Path) -> Kind:
    """Whose checkpoint a folder is. Raises ValueError that says what it is instead, and what to
    open or to do."""
    if not folder.is_dir():
        raise ValueError(_no_folder(folder))
    if pointers := [path.name for path in folder.iterdir() if is_lfs_pointer(path)]:
        raise ValueError(
            f"{folder} holds Git LFS pointers, not files ({', '.join(sorted(pointers)[:3])}): "
            "run `git lfs pull` in it, or download the folder from the hub"
        )
    # A step's folder has this in its name until Orbax has written all of it.
    if any(_UNFINISHED in name for name in (folder.name, folder.parent.name)):
        raise ValueError(_unfinished(folder))
    weights, described = weights_file(folder), {}
    if (folder / CONFIG).is_file():
        described = read_json(folder / CONFIG)
    if weights is not None:
        return _of_safetensors(folder, weights, described)
    adapted = (folder / ADAPTERS).is_file() and (folder / ADAPTER_CONFIG).is_file()
    if described.get("type") in _FAMILIES and adapted:
        return "lerobot"
    if described.get("type") in _FAMILIES or (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(_without_weights(folder))
    if has_parameters(folder) or has_parameters(folder / PARAMS):
        return "openpi"
    raise ValueError(_what_else(folder))


def has_parameters(folder: Path) -> bool:
    """Whether Orbax has written and finished parameters in just this folder."""
    return (folder / "manifest.ocdbt").is_file()


def _of_safetensors(folder: Path, weights: Path, described: dict) -> Kind:
    if "weights_sha256" in described:
        return "bundled"
    if described.get("type") in _FAMILIES:
        return "lerobot"
    if "type" in described:
        raise ValueError(
            f"{folder} is a policy of type {described['type']!r}; this program opens pi0, pi05 and "
            "pi0_fast (LeRobot 0.1 to 0.3 had another pi0fast, which is none of them)"
        )
    names = set(open_safetensors(weights))
    if any(name.startswith("paligemma_with_expert.") for name in names):
        return "openpi_pytorch"
    shown = ", ".join(sorted(names)[:3])
    raise ValueError(
        f"{folder} has a {weights.name}, but no policy of this family: its arrays are {shown}, ..."
    )


def _no_folder(folder: Path) -> str:
    if folder.name == CONFIG or folder.suffix == ".safetensors":
        return f"{folder} is a file of a checkpoint's: give its folder, {folder.parent}"
    if folder.exists():
        return f"{folder} is a file, and a folder is asked for"
    return f"{folder}: there is no such folder"


def _without_weights(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"{folder} holds {ADAPTER_CONFIG} without all that goes with PEFT adapters: expected "
            f"{ADAPTERS}, {CONFIG} and the processors' files beside it"
        )
    if named := sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}")):
        return (
            f"{folder} holds PEFT adapters under names of their own ({', '.join(named)}): move the "
            f"files of one of them beside {CONFIG}, as LeRobot saves them"
        )
    if pickled := _pickled(folder):
        return pickled
    return f"{folder} has no {WEIGHTS}, whole or in shards: get it again, with all its files"


def _pickled(folder: Path) -> str:
    """What to do about weights that only a pickle holds, which may run any code; "" without."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if not found:
        return ""
    return (
        f"{folder} has its weights in {found[0]}, a pickle, which is never opened here: save them "
        f"as {WEIGHTS} where they were written"
    )


def _unfinished(folder: Path) -> str:
    return (
        f"{folder} is a checkpoint whose saving was not finished (orbax-checkpoint-tmp): use an "
        "earlier step"
    )


def _what_else(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    params = folder / PARAMS if (folder / PARAMS).is_dir() else folder
    inside = {path.name for path in params.iterdir()}
    if any(_UNFINISHED in name for name in names | inside | {folder.name}):
        return _unfinished(folder)
    if candidates := checkpoints_below(folder):
        shown = "\n".join(_tree(folder, candidates))
        return (
            f"{folder} is no checkpoint, but holds some. Choose one, the last is "
            f"{candidates[-1]}:\n{shown}"
        )
    if any(name.startswith("ocdbt.process_") for name in inside):
        return (
            f"{folder}: manifest.ocdbt is missing, so its saving or download was cut off, or it "
            "holds one of several hosts' files: get the whole folder, or use an earlier step"
        )
    if list(params.glob("*/zarr.json")) or "zarr.json" in inside:
        return (
            f"{folder} was saved by Orbax as zarr version 3; openpi writes version 2 in OCDBT. "
            "Save it again with ocp.PyTreeCheckpointer, as openpi does"
        )
    if list(params.glob("*/.zarray")):
        return (
            f"{folder} was saved by Orbax without OCDBT, one folder an array; openpi writes OCDBT. "
            "Load it with the Orbax that wrote it, and save it again with ocp.PyTreeCheckpointer"
        )
    if "_METADATA" in inside:
        return (
            f"{folder}: manifest.ocdbt is missing, so its download or saving was cut off; get it "
            "again, or use an earlier step"
        )
    if pickled := _pickled(folder):
        return pickled
    return (
        f"{folder} is no checkpoint of openpi's or LeRobot's: expected params/ with openpi's "
        f"parameters (and norm stats in assets/), or {WEIGHTS} with {CONFIG}; it has "
        f"{', '.join(sorted(names)[:6]) or 'nothing in it'}"
    )


def checkpoints_below(folder: Path) -> list[Path]:
    """The checkpoints up to three folders down, the last step last."""
    found = []
    for pattern in ("*", "*/*", "*/*/*"):
        for path in folder.glob(pattern):
            openpi = has_parameters(path / PARAMS)
            saved = path.is_dir() and weights_file(path) is not None and (path / CONFIG).is_file()
            if openpi or saved:
                found.append(path)
    return sorted(found, key=lambda path: (_step(path), str(path)))


def _step(path: Path) -> int:
    """The training step in a path: LeRobot's lies in `030000/pretrained_model`."""
    for part in reversed(path.parts):
        if match := _STEP.fullmatch(part):
            return int(match[1])
    return -1


def _tree(folder: Path, candidates: list[Path]) -> list[str]:
    lines = [f"  {path.relative_to(folder)}/" for path in candidates]
    if len(lines) > _TREE:
        lines[1 : len(lines) - _TREE + 2] = ["  ..."]
    lines[-1] += "   <- the last"
    return lines
