"""What is large and has to wait lies in a file, not in memory.

A camera's photo has 36 MB as an array. Where dozens of visitors wait in the queue, each with one,
and the page keeps what runs were given, memory would not suffice; the folder of temporary files
does. The files have no names, so they go with the array or frame that they hold, however the
program ends.
"""

import mmap
import tempfile
import weakref

import numpy as np

from playground import codec

LARGE = 1 << 20  # bytes; what is smaller stays in memory

_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def array(values: np.ndarray) -> np.ndarray:
    """An equal array that cannot be written to; a large one lies in a file. Raises OSError where
    there is no room for it."""
    let_go()
    if values.nbytes <= LARGE:
        return values
    with tempfile.TemporaryFile() as file:
        file.write(np.ascontiguousarray(values).data)  # a full disk is an error here, not later
        file.flush()
        mapping = mmap.mmap(file.fileno(), values.nbytes, access=mmap.ACCESS_READ)
    _mappings.add(mapping)
    return np.frombuffer(mapping, values.dtype).reshape(values.shape)


def is_spilled(values: np.ndarray) -> bool:
    """Whether the array is one that `array` put into a file."""
    base = values
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


def let_go() -> None:
    """Whatever was read of these arrays counts as memory of the process until this is called; it
    is read from the file again where it is needed."""
    for mapping in list(_mappings):
        mapping.madvise(mmap.MADV_DONTNEED)


class Frame:
    """One frame of `playground.codec`, to be taken once. size: its bytes. at_once: whether it is
    about to be taken, and not worth a file. Raises TypeError as `codec.pieces` does, OSError where
    there is no room for it."""

    def __init__(self, value: object, at_once: bool = False):
        pieces = codec.pieces(value)
        self.size = sum(map(len, pieces))
        self._small, self._file = b"", None
        if at_once or self.size <= LARGE:
            self._small = b"".join(pieces)
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (the next line closes it)
        weakref.finalize(self, self._file.close)
        self._file.writelines(pieces)
        self._file.flush()
        let_go()

    def take(self) -> bytes:
        """The frame, which is empty from then on."""
        if self._file is None:
            small, self._small = self._small, b""
            return small
        with self._file as file:
            file.seek(0)
            self._file = None
            return file.read()
