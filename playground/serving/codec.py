"""Values over a stream socket, without pickle.

A frame is a little-endian uint32 length, that many bytes of JSON, and the arrays' raw bytes one
after the other. The JSON is {"tree": ..., "arrays": [[key, dtype, shape], ...]}, its tree as
`playground.trace.pack` makes it.
"""

import json
import math
import socket
import struct

import numpy as np

from playground.trace import pack, unpack

_LENGTH = struct.Struct("<I")
_MAX_HEADER = 256 << 20
_MAX_ARRAYS = 4 << 30
_KINDS = "biufc"  # numbers and booleans; objects, records and text never travel as arrays


def encode(value) -> bytes:
    """One frame. Raises TypeError on what cannot travel: unknown classes, arrays of objects,
    records or extension types such as bfloat16."""
    tree, arrays = pack(value)
    shapes, chunks = [], []
    for key, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise TypeError(f"arrays of numbers travel, not {array.dtype}; convert it first")
        shapes.append([key, array.dtype.str, array.shape])
        chunks.append(array.tobytes(order="C"))
    header = json.dumps({"tree": tree, "arrays": shapes}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *chunks])


def receive(line: socket.socket):
    """The value of the next frame. Raises EOFError where the stream ends, ValueError on anything
    that `encode` did not write, TimeoutError if the socket has a timeout and the frame stalls."""
    (length,) = _LENGTH.unpack(_read(line, bytearray(_LENGTH.size)))
    if length > _MAX_HEADER:
        raise ValueError(f"not a frame: its header would be {length} bytes long")
    try:
        header = json.loads(_read(line, bytearray(length)))
        places = [(key, np.dtype(dtype), tuple(shape)) for key, dtype, shape in header["arrays"]]
        size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in places)
        if size > _MAX_ARRAYS or any(dtype.kind not in _KINDS for _, dtype, _ in places):
            raise ValueError(f"it announces {size} bytes as {header['arrays']}")
        arrays = {key: np.empty(shape, dtype) for key, dtype, shape in places}
        tree = header["tree"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a frame: {error}") from error
    for array in arrays.values():
        _read(line, array.reshape(-1).view(np.uint8))
    return unpack(tree, arrays)


def _read(line: socket.socket, buffer):
    """Fills the buffer and hands it back."""
    view = memoryview(buffer)
    while view.nbytes:
        count = line.recv_into(view)
        if not count:
            raise EOFError("the other side closed the line")
        view = view[count:]
    return buffer
