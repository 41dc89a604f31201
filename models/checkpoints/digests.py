"""Checkpoint folders as files: which kind one is, the digests of what is in it, its revision.

openpi's holds `params/` (and `assets/<id>/norm_stats.json`), LeRobot's and a bundled policy's hold
`model.safetensors` and `config.json`.
"""

import hashlib
import json
import os
import re
from pathlib import Path

DIGESTS = "SHA256SUMS"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights that come in several files
CONFIG = "config.json"
PARAMS = "params"
# Of PEFT's adapters.
ADAPTERS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT = 1  # of a bundled policy's config.json


def weights_file(folder: Path) -> Path | None:
    """The safetensors file of a folder, or the index of several; None without either."""
    return next((folder / x for x in (WEIGHTS, INDEX) if (folder / x).is_file()), None)


def read_json(path: Path) -> dict:
    """A file that holds one JSON object; raises ValueError for any other."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def params_folder(folder: Path) -> Path:
    """The `params/` of a checkpoint folder, or the folder itself if it is one."""
    for candidate in (folder / "params", folder):
        if (candidate / "manifest.ocdbt").is_file():
            return candidate
    raise ValueError(f"{folder} is no checkpoint of openpi's: {_what_it_is(folder)}")


def _what_it_is(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    names = {entry.name for entry in folder.iterdir()}
    steps = sorted((name for name in names if name.isdigit()), key=int)
    if steps:
        return f"it holds a run's steps ({', '.join(steps)}); choose the folder of one of them"
    if (folder / "params").is_dir() or {"_METADATA", "ocdbt.process_0"} & names:
        return (
            "manifest.ocdbt is missing, so its download or saving was cut off; get it again, or "
            "use an earlier step"
        )
    if WEIGHTS in names:
        return f"{WEIGHTS} is there, so it is a LeRobot checkpoint or a bundled policy"
    return "expected a folder with params/ in it (and norm stats in assets/)"


def read_bundled(folder: Path | str) -> dict:
    """A bundled policy's `config.json`: format, config, weights_sha256 and metadata."""
    path = Path(folder) / CONFIG
    description = read_json(path)
    expected = {"format", "config", "weights_sha256", "metadata"}
    if description.keys() != expected:
        raise ValueError(f"{path} is no bundled policy's: expected {', '.join(sorted(expected))}")
    if description["format"] != FORMAT:
        raise ValueError(
            f"{path} is of format {description['format']!r}; this version reads {FORMAT}"
        )
    return description


# --- digests ------------------------------------------------------------------------------------


def revision(folder: Path | str) -> str:
    """12 hexadecimal digits that stand for a checkpoint's weights: from their files' SHA-256."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return sha256(folder / WEIGHTS)[:12]
    if (folder / ADAPTERS).is_file():
        return sha256(folder / ADAPTERS)[:12]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        lines = [f"{sha256(folder / name)}  {name}" for name in names]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    params = params_folder(folder)
    known = _read_digests(params.parent)
    names = _files(params, params)
    lines = [
        f"{known.get(f'{params.name}/{name}') or sha256(params / name)}  {name}" for name in names
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def record_digests(folder: Path | str) -> None:
    """Writes the SHA-256 of every file below a folder into its `SHA256SUMS`, for later checks.

    The format is that of the command `sha256sum`.
    """
    folder = Path(folder)
    names = [name for name in _files(folder, folder) if name != DIGESTS]
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    write_file(folder / DIGESTS, "".join(lines).encode())


def verify_digests(folder: Path | str, below: str = "") -> None:
    """Compares the files in a folder's `SHA256SUMS`, if it has one, whose names start with `below`;
    README.md and its like may be edited.

    Nothing else finds a changed byte in an array: OCDBT guards its index only. Raises one
    ValueError that names every file that is missing or has changed.
    """
    folder = Path(folder)
    problems = []
    for name, digest in _read_digests(folder).items():
        if not name.startswith(below) or name.endswith(".md"):
            continue
        if not (folder / name).is_file():
            problems.append(f"  {name}: missing")
        elif sha256(folder / name) != digest:
            problems.append(f"  {name}: its bytes have changed")
    if problems:
        raise ValueError(
            "\n".join([f"{folder} is not what {DIGESTS} says; get these again:", *problems])
        )


def _read_digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    found = {}
    for number, entry in enumerate(entries, 1):
        if entry is None:
            raise ValueError(f"{path}, line {number}: expected a SHA-256 and a name")
        found[entry[2]] = entry[1]
    return found


def _files(folder: Path, root: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
