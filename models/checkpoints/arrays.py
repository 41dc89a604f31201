"""Arrays of a checkpoint that have not been read: opened by name, checked, read one at a time.

Two containers: an OCDBT database of zarr arrays, as Orbax writes it, and safetensors. Nothing here
knows what the arrays mean. Never unpickles.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import ml_dtypes
import numpy as np
import safetensors
import tensorstore as ts

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """An array of a checkpoint that has not been read.

    layers: reads those from the first number up to the second, which is not included; an array that
        stacks none is one layer. It may be called again and then reads again, so that no more than
        a layer or an array is held at a time
    num_layers: how many it stacks along axis 0, or 1
    step: so many are decoded together, from a multiple of it on
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    layers: Callable[[int, int], Iterator[np.ndarray]]
    num_layers: int = 1
    step: int = 1

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole array."""
        layers = list(self.layers(0, self.num_layers))
        return layers[0] if layers[0].ndim == len(self.shape) else np.stack(layers)


# --- containers ---------------------------------------------------------------------------------


def open_orbax(folder: Path, is_stacked: Callable[[str], bool]) -> dict[str, Stored]:
    """Path (keys joined by "/") -> array of an Orbax folder. `is_stacked`: of a path, whether the
    array's axis 0 are layers, to be read one at a time."""
    # No cache: every chunk is read once.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}
    keys = _reading(folder, lambda: ts.KvStore.open(database, context=context).result().list())
    names = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]
    if not names:
        raise ValueError(f"{folder} holds no zarr arrays; expected parameters written by Orbax")
    arrays = {}
    for name in names:
        spec = {"driver": "zarr", "kvstore": {**database, "path": f"{name}/"}}
        array = _reading(name, lambda spec=spec: ts.open(spec, read=True, context=context))
        path = name.replace(".", "/")
        arrays[path] = _stored(name, array, is_stacked(path))
    return arrays


def check_files(folder: Path) -> None:
    """Raises ValueError where a file that the index of an Orbax folder speaks of is missing or too
    short, as after a download that was cut off. Reads the index, no weights."""
    files = ts.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()
    manifest = _reading(folder, lambda: ts.ocdbt.dump(files))
    nodes, ends = [manifest["versions"][-1]["root"]["location"]], {}
    while nodes:
        node = nodes.pop()
        for entry in _reading(folder, lambda node=node: ts.ocdbt.dump(files, node))["entries"]:
            nodes += [entry["location"]] if "location" in entry else []
            if "indirect_value" in entry:
                _, base, name, offset, length = entry["indirect_value"].split(":")
                file = folder / unquote(base) / unquote(name)
                ends[file] = max(ends.get(file, 0), int(offset) + int(length))
    for file, end in ends.items():
        found = file.stat().st_size if file.is_file() else None
        if found is None or found < end:
            what = "is missing" if found is None else f"has {found} bytes, expected {end} or more"
            raise ValueError(f"{file} {what}: copy or download the checkpoint again")


def _stored(name: str, array: ts.TensorStore, stacked: bool) -> Stored:
    shape, dtype = tuple(array.shape), array.dtype.numpy_dtype
    if not stacked:
        return Stored(shape, dtype, lambda *_: iter([_reading(name, lambda: array.read())]))
    # As many layers at a time as one chunk holds: to read one, all of it must be decoded.
    step = int(np.asarray(array.chunk_layout.read_chunk.shape)[0])

    def layers(start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield from _reading(name, lambda: array[first:last].read())  # noqa: B023

    return Stored(shape, dtype, layers, shape[0], step)


def _reading(what, begin):
    """The result of a tensorstore operation; its failure as a ValueError that names the array."""
    try:
        return begin().result()
    except ValueError as error:
        raise ValueError(
            f"cannot read {what}: a file of the checkpoint is missing or damaged, so copy or "
            f"download it again ({error})"
        ) from error


_SAFETENSORS_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LFS_POINTER = b"version https://git-lfs"


def open_safetensors(path: Path) -> dict[str, Stored]:
    """Name -> array of a safetensors file, or of the shards that an index (`.index.json`) names;
    nothing read yet but the headers."""
    if path.suffix == ".json":
        return _open_shards(path)
    file = _open_file(path)  # which checks that the header is sound and fits the file
    header, start = _header(path)
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name, entry in header.items():
        kind, shape = entry["dtype"], tuple(entry["shape"])
        if kind not in _SAFETENSORS_TYPES:  # of norm stats, or to be refused
            arrays[name] = Stored(shape, kind, lambda *_, name=name: iter([file.get_tensor(name)]))
            continue
        # Not by `get_tensor`, which copies an array and holds all of Python up meanwhile.
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype = DTYPES[_SAFETENSORS_TYPES[kind]]
        array = np.asarray(data[first:last]).view(dtype).reshape(shape)
        arrays[name] = Stored(shape, dtype, lambda *_, array=array: iter([array]))
    return arrays


def _header(path: Path) -> tuple[dict, int]:
    """What a sound safetensors file says of each array, and where the first one begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The text that a file's header holds beside its arrays; of an index, its first shard's."""
    if path.suffix == ".json":
        path = shards(path)[0]
    return _open_file(path).metadata() or {}


def shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    return sorted({index.parent / name for name in _weight_map(index).values()})


def _open_shards(index: Path) -> dict[str, Stored]:
    where = _weight_map(index)
    arrays: dict[str, Stored] = {}
    for shard in shards(index):
        found = open_safetensors(shard)
        listed = {name for name, file in where.items() if file == shard.name}
        if odd := sorted(listed ^ found.keys()):
            raise ValueError(
                f"{shard} is not what {index.name} says of it ({len(odd)} arrays differ, such as "
                f"{odd[0]}): get the whole folder again, from one revision"
            )
        arrays |= found
    return arrays


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        named = all(
            Path(name).name == name and name.endswith(".safetensors") for name in found.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
    if not named or not found:
        raise ValueError(f"{index}: expected array -> a safetensors file beside it, in weight_map")
    return found


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git has left a note in place of a large file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _open_file(path: Path):
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        if is_lfs_pointer(path):
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in the "
                "folder, or download it from the hub"
            ) from error
        raise ValueError(
            f"{path} is missing, cut off or no safetensors file; get it again ({error})"
        ) from error


# --- checks -------------------------------------------------------------------------------------

SHOWN = 8


def check(
    title: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    hint: str = "",
) -> None:
    """Raises one ValueError that tells which arrays are missing, too many, or of another shape or
    number type (anything but float32, bfloat16 and float16): how many, and the first of each."""
    wrong_shape, wrong_type = [], []
    for name in expected.keys() & found.keys():
        shape, dtype = found[name]
        if tuple(shape) != tuple(expected[name]):
            wrong_shape.append(f"{name}: found {_show(shape)}, expected {_show(expected[name])}")
        if dtype not in DTYPES.values():
            wrong_type.append(f"{name}: found {dtype}, expected one of {', '.join(DTYPES)}")
    groups = {
        "missing": [f"{x} {_show(expected[x])}" for x in expected.keys() - found.keys()],
        "not expected": [f"{x} {_show(found[x][0])}" for x in found.keys() - expected.keys()],
        "wrong shape": wrong_shape,
        "wrong type": wrong_type,
    }
    if any(groups.values()):
        lines = [title]
        for group, entries in groups.items():
            lines += _fold(group, entries)
        raise ValueError("\n".join([*lines, hint] if hint else lines))


def _show(shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _fold(group: str, entries: list[str]) -> list[str]:
    """A line an entry, SHOWN at most; entries that differ only in a layer's number share one."""
    if not entries:
        return []
    folded: dict[str, int] = {}
    for entry in sorted(entries):
        pattern = re.sub(r"(?<=[./])\d+(?=[./])", "*", entry)
        folded[pattern] = folded.get(pattern, 0) + 1
    lines = [f"    {x}" + (f"  ({n} of them)" if n > 1 else "") for x, n in folded.items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = ["    ..."]
    return [f"  {group} ({len(entries)}):", *lines]


def has_nonfinite(x: np.ndarray) -> bool:
    """Whether a float array holds NaN or infinity; needs no second array, unlike `isfinite`.

    With the exponent all ones a value is not finite; so among the positive ones it is no less than
    infinity as an integer, and likewise among the negative ones.
    """
    size = x.itemsize
    infinity = int(np.array(np.inf, x.dtype).view(f"u{size}"))
    sign = 1 << (8 * size - 1)
    x = np.ascontiguousarray(x)
    return x.view(f"i{size}").max() >= infinity or x.view(f"u{size}").max() >= infinity | sign
