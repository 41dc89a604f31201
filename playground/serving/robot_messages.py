"""What robots and policy servers of openpi send each other: msgpack, with numpy arrays as maps.

    an array    {b"__ndarray__": True, b"data": bytes, b"dtype": dtype.str, b"shape": [...]}
    a scalar    {b"__npgeneric__": True, b"data": its value, b"dtype": dtype.str}

Source: `openpi_client.msgpack_numpy` of openpi 15a9616. Whoever can reach the port can send
anything: nothing is unpickled, and a size that is announced is held against the bytes that came.
"""

import math
import re

import msgpack
import numpy as np

MAX_BYTES = 64 << 20  # of one message
_MAX_AXES = 8
_MAX_VALUES = 1_000_000  # in lists and maps; an array is one
_MAX_LENGTH = 1 << 16  # of a list or map
_KINDS = "biufUS"  # numbers, booleans and text: no objects, records or complex numbers


def pack(value) -> bytes:
    """Raises TypeError for what msgpack does not know, and for arrays of objects or records."""
    packed = msgpack.packb(value, default=_plain)
    assert packed is not None
    return packed


def unpack(data: bytes):
    """Raises ValueError for anything but one whole message, and for one of so many values that
    Python would need many times its bytes for them."""
    found = 0

    def counted(values):
        nonlocal found
        found += 1 + len(values)
        if found > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES:,} values")
        return values

    try:
        return msgpack.unpackb(
            data,
            object_hook=lambda values: _from_map(counted(values)),
            list_hook=counted,
            max_array_len=_MAX_LENGTH,
            max_map_len=_MAX_LENGTH,
        )
    except _MALFORMED as error:
        raise ValueError(f"not a msgpack message with numpy arrays: {error!s:.200}") from error


# msgpack's own errors are ValueErrors; numpy raises the rest over what stands for a dtype.
_MALFORMED = (
    *(ValueError, TypeError, KeyError, OverflowError, SyntaxError),
    *(RecursionError, MemoryError, AttributeError),
)


def _plain(value) -> dict:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in _KINDS:
        raise TypeError(f"a {type(value).__name__} cannot be sent to a robot")
    if isinstance(value, np.ndarray):
        fields = {b"data": value.tobytes(), b"shape": value.shape}
        return {b"__ndarray__": True, **fields, b"dtype": value.dtype.str}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _from_map(found: dict):
    if b"__ndarray__" in found:
        return _array(found[b"data"], _dtype(found[b"dtype"]), found[b"shape"])
    if b"__npgeneric__" in found:
        value = found[b"data"]
        if not isinstance(value, bool | int | float | str | bytes):
            raise ValueError(f"a scalar holds a {type(value).__name__}")
        return _dtype(found[b"dtype"]).type(value)
    return found


def _dtype(name) -> np.dtype:
    # As NumPy writes them (`dtype.str`); it reads more, some of it with a warning.
    if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?[a-zA-Z]\d+", name) or "a" in name:
        raise ValueError("an array's dtype is text such as <f4")
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise ValueError(f"arrays of {dtype} are not taken")
    return dtype


def _array(data, dtype: np.dtype, shape) -> np.ndarray:
    if not isinstance(shape, list | tuple) or len(shape) > _MAX_AXES:
        raise ValueError(f"a shape is a list of at most {_MAX_AXES} sizes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape is a list of sizes from 0 on")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array claims to be {dtype} {list(shape)} and is something else")
    return np.frombuffer(data, dtype).reshape(shape) if data else np.empty(shape, dtype)
