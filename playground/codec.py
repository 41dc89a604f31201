"""Values as JSON and arrays: what crosses the worker's process, and what saved files hold.

A value is made of dataclasses that are registered here with `@codec.register`, of dicts, tuples,
lists, numpy arrays and scalars, text, numbers, booleans and None. `pack` takes it apart into a JSON
tree and its arrays, `unpack` puts it together. Nothing is pickled, and reading makes no object of a
class that is not registered.

    frame    a little-endian uint32 length, that many bytes of JSON, and the arrays' raw bytes one
             after the other. The JSON is {"tree": ..., "arrays": [[key, dtype, shape], ...]}
    archive  a ZIP (npz) with the tree as a JSON file and each array as an .npy file
"""

import dataclasses
import io
import json
import math
import socket
import struct
import zipfile
import zlib
from typing import Any, TypeVar

import numpy as np

MAX_UNPACKED = 1 << 29  # bytes that an archive may unpack to
MAX_MEMBERS = 512  # of an archive
_MAX_TREE = 8 << 20  # bytes of an archive's JSON
_MAX_VALUES = 500_000  # in it
_LENGTH = struct.Struct("<I")
_MAX_HEADER = 256 << 20
_MAX_ARRAYS = 4 << 30
_KINDS = "biufc"  # numbers and booleans; objects, records and text never travel as arrays

# What zipfile raises on files that are none: bad structure, checksums, streams, methods, passwords.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError),
    *(OSError, ValueError, TypeError, struct.error, RecursionError),
)

_registered: dict[str, type] = {}
_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Class decorator: instances of this dataclass can be packed, under the class's name."""
    if not hasattr(cls, "__dataclass_fields__"):
        raise TypeError(f"{cls.__name__} is no dataclass")
    known = _registered.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{known.__module__} has registered a {cls.__name__} already")
    _registered[cls.__name__] = cls
    return cls


# --- trees --------------------------------------------------------------------------------------


def pack(value) -> tuple[object, dict[str, np.ndarray]]:
    """(JSON tree, arrays by key) of a value. Raises TypeError for what cannot be packed."""
    arrays: dict[str, np.ndarray] = {}

    def encode_value(value):
        if isinstance(value, np.ndarray):
            key = f"a{len(arrays)}"
            arrays[key] = value
            return {"$array": key}
        if isinstance(value, np.generic):
            return value.item()
        if _registered.get(name := type(value).__name__) is type(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {"$class": name, **{key: encode_value(item) for key, item in fields.items()}}
        if isinstance(value, dict):
            return {"$dict": [[encode_value(k), encode_value(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"$tuple": [encode_value(item) for item in value]}
        if isinstance(value, list):
            return [encode_value(item) for item in value]
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        raise TypeError(f"cannot pack a {name}")

    return encode_value(value), arrays


def unpack(tree, arrays: dict[str, np.ndarray]) -> Any:
    """The value that `pack` took apart; raises ValueError on anything it did not write."""
    if isinstance(tree, list):
        return [unpack(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        if "$array" in tree:
            return arrays[tree["$array"]]
        if "$tuple" in tree:
            return tuple(unpack(item, arrays) for item in tree["$tuple"])
        if "$dict" in tree:
            return {unpack(k, arrays): unpack(v, arrays) for k, v in tree["$dict"]}
        fields = {k: unpack(v, arrays) for k, v in tree.items() if k != "$class"}
        return _registered[tree["$class"]](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a value written by this program: {error}") from error


# --- frames -------------------------------------------------------------------------------------


def encode(value) -> bytes:
    """One frame. Raises as `pieces` does."""
    return b"".join(pieces(value))


def pieces(value) -> list[bytes | memoryview]:
    """One frame, in parts to be sent or written one after the other; large arrays are not copied.
    Raises TypeError on what cannot travel: unregistered classes, arrays of objects, records or
    extension types such as bfloat16."""
    tree, arrays = pack(value)
    shapes, chunks = [], []
    for key, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise TypeError(f"arrays of numbers travel, not {array.dtype}; convert it first")
        shapes.append([key, array.dtype.str, array.shape])
        chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    header = json.dumps({"tree": tree, "arrays": shapes}).encode()
    return [_LENGTH.pack(len(header)), header, *chunks]


def receive(connection: socket.socket) -> Any:
    """The value of the next frame. Raises EOFError where the stream ends, ValueError on anything
    that `encode` did not write, TimeoutError if the socket has a timeout and the frame stalls."""
    (length,) = _LENGTH.unpack(_read(connection, bytearray(_LENGTH.size)))
    if length > _MAX_HEADER:
        raise ValueError(f"not a frame: its header would be {length} bytes long")
    try:
        header = json.loads(_read(connection, bytearray(length)))
        places = [(key, np.dtype(dtype), tuple(shape)) for key, dtype, shape in header["arrays"]]
        size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in places)
        if size > _MAX_ARRAYS or any(dtype.kind not in _KINDS for _, dtype, _ in places):
            raise ValueError(f"it announces {size} bytes as {header['arrays']}")
        arrays = {key: np.empty(shape, dtype) for key, dtype, shape in places}
        tree = header["tree"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a frame: {error}") from error
    for array in arrays.values():
        _read(connection, array.reshape(-1).view(np.uint8))
    return unpack(tree, arrays)


def _read(connection: socket.socket, buffer):
    """Fills the buffer and hands it back."""
    view = memoryview(buffer)
    while view.nbytes:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other side closed the connection")
        view = view[count:]
    return buffer


# --- archives -----------------------------------------------------------------------------------


def write_archive(value, file, member: str) -> None:
    """Writes a value to a path or binary file. member: what the tree's JSON file is called."""
    tree, arrays = pack(value)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, json.dumps(tree))
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(f"{key}.npy", buffer.getvalue())


def read_archive(file, member: str) -> Any:
    """The value that `write_archive` wrote; raises one of UNREADABLE if the file is anything else.

    A file from a stranger does no harm: nothing is unpickled, and what it claims to hold is held
    against MAX_UNPACKED before memory is asked for.
    """
    with zipfile.ZipFile(file) as archive:
        tree = json.loads(checked_tree(archive, member))
        arrays = {
            name.removesuffix(".npy"): _array(archive.read(name))
            for name in archive.namelist()
            if name.endswith(".npy")
        }
    return unpack(tree, arrays)


def checked_tree(archive: zipfile.ZipFile, member: str) -> bytes:
    """The text of an archive's tree; raises ValueError where the archive exceeds a bound, before an
    array is unpacked."""
    check_members(archive, MAX_MEMBERS, MAX_UNPACKED)
    if archive.getinfo(member).file_size > _MAX_TREE:
        raise ValueError(f"its {member} is far too large")
    text = archive.read(member)
    # Each value but the first follows one of these; a byte of them may take 64 in memory.
    if sum(map(text.count, (b",", b"[", b"{", b":"))) > _MAX_VALUES:
        raise ValueError(f"its {member} holds too many values")
    return text


def check_members(archive: zipfile.ZipFile, most: int, most_bytes: int) -> None:
    """Before anything is unpacked: raises ValueError for more members than `most`, for more than
    `most_bytes` of them together, and for one name twice, which would be unpacked again and again.
    No more than the size that a member declares is ever read from it."""
    members = archive.infolist()
    if len(members) > most:
        raise ValueError(f"it holds {len(members)} files; at most {most} are taken")
    if sum(member.file_size for member in members) > most_bytes:
        raise ValueError(f"it unpacks to more than {most_bytes >> 20} MB")
    if len(set(archive.namelist())) < len(members):
        raise ValueError("it holds one file twice")


def _array(data: bytes) -> np.ndarray:
    """Of a .npy, whose header must agree with what follows it."""
    source = io.BytesIO(data)
    version = np.lib.format.read_magic(source)
    if version != (1, 0):
        raise ValueError(f"an array is of version {version}, which is not written here")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(source)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - source.tell():
        raise ValueError(f"an array claims to be {dtype} {list(shape)} and is something else")
    order = "F" if fortran else "C"
    return np.frombuffer(data, dtype, offset=source.tell()).reshape(shape, order=order).copy()
