"""Checkpoint folders: openpi's, written by Orbax, and our own for small policies. Never unpickles.

openpi's folder holds `params/` (an OCDBT database of zarr arrays, one a parameter) and
`assets/<id>/norm_stats.json`. Ours holds `model.safetensors`, named by nnx path, and `config.json`.
LeRobot's is in `lerobot.py`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from models import config as configs
from models import lora
from models.config import Config, DType, Pi0FastConfig
from models.layout import Row, family_of, is_stacked, rows
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.stored import DTYPES, Stored, check, has_nonfinite, open_orbax, open_safetensors

Policy = Pi0 | Pi0Fast
# bytes done, bytes in all, name of the array at hand
Progress = Callable[[int, int, str], None]

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
    arrays = open_orbax(params, is_stacked)
    suffix = "/value" if all(path.endswith("/value") for path in arrays) else ""
    return {
        path.removeprefix("params/").removesuffix(suffix): stored for path, stored in arrays.items()
    }


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
    arrays: dict[str, np.ndarray] = {}
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


# --- models -------------------------------------------------------------------------------------


def abstract_model(config: Config) -> Policy:
    """The model with shapes in place of arrays."""
    model = Pi0Fast if isinstance(config, Pi0FastConfig) else Pi0
    return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))


def assemble(
    config: Config,
    arrays: Mapping[str, Stored],
    *,
    where: str,
    dtype: DType | None,
    progress: Progress | None = None,
) -> Policy:
    """The model that openpi's arrays make, its parameters in `dtype` (None: as stored).

    Everything is checked before the first array is read; each array is then read, checked for NaN
    and infinity, cast and put on the default device before the next. The largest come first, while
    there is the most room. Raises ValueError; never returns a model with anything left out.
    """
    table = rows(config)
    ours, theirs = family_of(row.path for row in table), family_of(arrays)
    hint = f"It looks like a {theirs} checkpoint; the config is {ours}'s." if ours != theirs else ""
    check(
        f"{where} does not fit the config ({ours}):",
        {row.path: row.stored_shape for row in table},
        {path: (stored.shape, stored.dtype) for path, stored in arrays.items()},
        hint,
    )
    return fill(abstract_model(config), _values(table, arrays, where, progress), dtype)


def _values(
    table: tuple[Row, ...], arrays: Mapping[str, Stored], where: str, progress: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(nnx path, array with its axes in our order) of everything, the largest first."""
    done, total = 0, sum(stored.nbytes for stored in arrays.values())
    report = progress or (lambda *_: None)
    for row in sorted(table, key=lambda row: -arrays[row.path].nbytes):
        report(done, total, row.path)
        for index, layer in enumerate(arrays[row.path].layers()):
            if has_nonfinite(layer):
                which = row.path if row.layers is None else f"{row.path}, layer {index}"
                raise ValueError(
                    f"{where}: {which} holds NaN or infinity, so the training run that wrote it "
                    "diverged or the file is damaged; use an earlier step or copy it again"
                )
            yield from zip(row.module_paths(index), row.unpack(layer), strict=True)
            done += layer.nbytes
            report(done, total, row.path)
            del layer  # a view of an array that the next one's place is needed for


def fill(abstract: Policy, values: Iterable[tuple[str, np.ndarray]], dtype: DType | None) -> Policy:
    """The model whose parameters are the values, by nnx path.

    Each is reshaped to its parameter, cast and put on the default device as it comes.
    """
    graphdef, state = nnx.split(abstract)
    parameters = {_name(path): (path, parameter) for path, parameter in nnx.to_flat_state(state)}
    filled = {}
    for name, value in values:
        path, parameter = parameters[name]
        # Always a copy: JAX lets go late of what it was given, and a view would keep all of the
        # array it belongs to while the next is read.
        value = np.array(value, dtype=dtype and DTYPES[dtype], order="C")
        filled[path] = parameter.replace(jax.device_put(value.reshape(parameter.shape)))
    assert len(filled) == len(parameters), "the caller checks that every parameter has a value"
    return nnx.merge(graphdef, nnx.from_flat_state(filled.items()))


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def parameters_of(model: Policy) -> dict:
    """A model's parameters by nnx path: arrays, or shapes and types if it is abstract."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {_name(path): parameter.get_value() for path, parameter in state}


def to_openpi(model: Policy) -> dict[str, np.ndarray]:
    """A model's parameters as openpi's arrays, by openpi's path, on the host."""
    ours = parameters_of(model)
    arrays = {}
    for row in rows(model.config):
        layers = [
            row.pack(np.asarray(ours[path]) for path in row.module_paths(i))
            for i in range(row.layers or 1)
        ]
        arrays[row.path] = layers[0] if row.layers is None else np.stack(layers)
    return arrays


# --- files --------------------------------------------------------------------------------------


def revision(folder: Path | str) -> str:
    """12 hexadecimal digits that stand for a checkpoint's weights: from their files' SHA-256."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return _sha256(folder / WEIGHTS)[:12]
    params = params_folder(folder)
    known = _read_digests(params.parent)
    names = _files(params, params)
    lines = [f"{known.get(f'params/{name}') or _sha256(params / name)}  {name}" for name in names]
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
