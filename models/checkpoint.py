"""Checkpoint folders: openpi's, written by Orbax, and our own for small policies. Never unpickles.

openpi's folder holds `params/` (an OCDBT database of zarr arrays, one a parameter) and
`assets/<id>/norm_stats.json`. Ours holds `model.safetensors`, named by nnx path, and `config.json`.
LeRobot's is in `lerobot.py`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import tensorstore as ts

from models import config as configs
from models import lora
from models.config import Config, DType
from models.layout import (
    DTYPES,
    Policy,
    Progress,
    Stored,
    abstract_model,
    assemble,
    check,
    fill,
    has_nonfinite,
    is_stacked,
    parameters_of,
    to_openpi,
)

DIGESTS = "SHA256SUMS"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1


# --- openpi's folder ----------------------------------------------------------------------------


def load_openpi(
    folder: Path | str,
    config: Config,
    *,
    dtype: DType | None = None,
    adapters: lora.Adapters | None = None,
    progress: Progress | None = None,
) -> Policy:
    """The model in a checkpoint of openpi's, from its folder or the `params/` in it.

    dtype: precision of the parameters, None as stored (openpi serves in bfloat16). adapters: how a
    LoRA fine-tune was made; they are merged into the weights. progress: called with bytes done,
    bytes in all (as stored) and the array at hand.

    Array by array: beside the model, the host holds the largest array twice at most (its compressed
    and its decoded bytes). Raises ValueError, naming what is wrong, for another kind of folder, a
    missing or damaged file, arrays that do not fit the config, NaN or infinity, and files that
    differ from the folder's `SHA256SUMS` if it has them.
    """
    folder = Path(folder)
    params = params_folder(folder)
    verify_digests(params.parent, below="params/")
    arrays = lora.merge(open_openpi(params), adapters, where=str(folder))
    return assemble(config, arrays, where=str(folder), dtype=dtype, progress=progress)


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


def open_openpi(params: Path) -> dict[str, Stored]:
    """openpi's path -> array of a `params/` folder, nothing read yet but sizes.

    A training save ends every path in `value`, a bare one does not (`restore_params` in openpi's
    `models/model.py`).
    """
    # No cache: every chunk is read once.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params.absolute()}/"}}
    keys = _reading(params, lambda: ts.KvStore.open(database, context=context).result().list())
    names = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]
    if not names:
        raise ValueError(f"{params} holds no zarr arrays; expected parameters written by Orbax")
    arrays = {}
    for name in names:
        spec = {"driver": "zarr", "kvstore": {**database, "path": f"{name}/"}}
        array = _reading(name, lambda spec=spec: ts.open(spec, read=True, context=context))
        arrays[name.replace(".", "/").removeprefix("params/")] = (name, array)
    if all(path.endswith("/value") for path in arrays):
        arrays = {path.removesuffix("/value"): entry for path, entry in arrays.items()}
    return {path: _stored(path, *entry) for path, entry in arrays.items()}


def _stored(path: str, name: str, array: ts.TensorStore) -> Stored:
    stacked = is_stacked(path)

    def layers() -> Iterator[np.ndarray]:
        if not stacked:
            yield _reading(name, lambda: array.read())
            return
        # As many layers at a time as one chunk holds: to read one, all of it must be decoded.
        step = array.chunk_layout.read_chunk.shape[0]
        for start in range(0, array.shape[0], step):
            stop = min(start + step, array.shape[0])
            yield from _reading(name, lambda: array[start:stop].read())  # noqa: B023

    return Stored(tuple(array.shape), array.dtype.numpy_dtype, layers)


def _reading(what, begin):
    """The result of a tensorstore operation; its failure as a ValueError that names the array."""
    try:
        return begin().result()
    except ValueError as error:
        raise ValueError(
            f"cannot read {what}: a file of the checkpoint is missing or damaged, so copy or "
            f"download it again ({error})"
        ) from error


def save_openpi(model: Policy, folder: Path | str) -> None:
    """Writes `params/` as openpi does, in the parameters' precision."""
    write_openpi(to_openpi(model), folder)


def write_openpi(arrays: Mapping[str, np.ndarray], folder: Path | str) -> None:
    """Writes arrays by openpi's path into `folder/params` (which must not exist) through Orbax."""
    import orbax.checkpoint as ocp  # takes a second to import, and only writing needs it

    tree: dict = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).resolve() / "params", {"params": tree})


# --- bundled policies ---------------------------------------------------------------------------


def save_bundled(
    folder: Path | str,
    config: Config,
    model: Policy,
    metadata: Mapping | None = None,
    *,
    storage: str = "float32",
) -> None:
    """Writes a small policy: its weights, its config and whatever JSON goes with it.

    storage: "float32", "bfloat16" or "float16". The same model gives the same bytes. Raises
    ValueError if a weight is not finite in that precision.
    """
    if storage not in DTYPES:
        raise ValueError(f"storage is {storage!r}; expected one of {', '.join(DTYPES)}")
    arrays = {}
    for name, value in sorted(parameters_of(model).items()):
        with np.errstate(over="ignore"):
            arrays[name] = np.ascontiguousarray(value, DTYPES[storage])
        if has_nonfinite(arrays[name]):
            raise ValueError(f"{name} is not finite in {storage}, so this model is not saved")
    weights = safetensors.numpy.save(arrays)
    description = {
        "format": FORMAT,
        "config": configs.to_dict(config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, weights)
    _write(folder / CONFIG, text.encode())


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def load_bundled(folder: Path | str) -> tuple[Config, Policy]:
    """The config and model that `save_bundled` wrote, parameters in the config's precision.

    Raises ValueError if either file is missing, damaged, or does not fit the other.
    """
    folder = Path(folder)
    description = read_bundled(folder)
    config = configs.from_dict(description["config"])
    weights = folder / WEIGHTS
    arrays = open_safetensors(weights)
    if _sha256(weights) != description["weights_sha256"]:
        raise ValueError(
            f"{weights} is not the file that {CONFIG} beside it was written with; get both again"
        )
    abstract = abstract_model(config)
    check(
        f"{weights} does not fit {CONFIG} beside it:",
        {name: parameter.shape for name, parameter in parameters_of(abstract).items()},
        {name: (stored.shape, stored.dtype) for name, stored in arrays.items()},
    )
    values = ((name, stored.read()) for name, stored in arrays.items())
    return config, fill(abstract, values, config.dtype)


def read_bundled(folder: Path | str) -> dict:
    """A bundled policy's `config.json`: format, config, weights_sha256 and metadata."""
    path = Path(folder) / CONFIG
    try:
        description = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is no bundled policy: cannot read {CONFIG} ({error})"
        ) from error
    expected = {"format", "config", "weights_sha256", "metadata"}
    if not isinstance(description, dict) or description.keys() != expected:
        raise ValueError(f"{path} is no bundled policy's: expected {', '.join(sorted(expected))}")
    if description["format"] != FORMAT:
        raise ValueError(
            f"{path} is of format {description['format']!r}; this version reads {FORMAT}"
        )
    return description


# --- files --------------------------------------------------------------------------------------

_SAFETENSORS_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def open_safetensors(path: Path) -> dict[str, Stored]:
    """Name -> array of a safetensors file, nothing read yet but its header."""
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} is missing, cut off or no safetensors file; get it again ({error})"
        ) from error
    arrays = {}
    for name in file.keys():  # noqa: SIM118  (it is no dict)
        header = file.get_slice(name)
        kind = header.get_dtype()
        dtype = DTYPES.get(_SAFETENSORS_TYPES.get(kind), kind)
        arrays[name] = Stored(
            tuple(header.get_shape()), dtype, lambda name=name: iter([file.get_tensor(name)])
        )
    return arrays


def revision(folder: Path | str) -> str:
    """12 hexadecimal digits that stand for a checkpoint's weights: from their files' SHA-256."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return _sha256(folder / WEIGHTS)[:12]
    params = params_folder(folder)
    known = _read_digests(params.parent)
    names = _files(params, params.parent)
    lines = [f"{known.get(name) or _sha256(params.parent / name)}  {name}" for name in names]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def record_digests(folder: Path | str) -> None:
    """Writes the SHA-256 of every file below a folder into its `SHA256SUMS`, for later checks.

    The format is that of the command `sha256sum`.
    """
    folder = Path(folder)
    names = [name for name in _files(folder, folder) if name != DIGESTS]
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in names]
    _write(folder / DIGESTS, "".join(lines).encode())


def verify_digests(folder: Path | str, below: str = "") -> None:
    """Compares the files in a folder's `SHA256SUMS`, if it has one, whose names start with `below`.

    Nothing else finds a changed byte in an array: OCDBT guards its index only. Raises one
    ValueError that names every file that is missing or has changed.
    """
    folder = Path(folder)
    problems = []
    for name, digest in _read_digests(folder).items():
        if not name.startswith(below):
            continue
        if not (folder / name).is_file():
            problems.append(f"  {name}: missing")
        elif _sha256(folder / name) != digest:
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
    if None in entries:
        raise ValueError(f"{path}, line {entries.index(None) + 1}: expected a SHA-256 and a name")
    return {entry[2]: entry[1] for entry in entries}


def _files(folder: Path, root: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
