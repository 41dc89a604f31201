"""CRC-32C (Castagnoli) of a file: what Google's buckets publish of objects that were put together
of several, which have no MD5. RFC 3720, appendix B.4.

Without a leading inversion the code is linear, zeros in front do not matter, and appending zeros is
a matrix over GF(2). So a piece is cut into lanes that go through the table side by side.
"""

import functools
from pathlib import Path

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed
_LANES = 1 << 14
_PIECE = _LANES << 9  # bytes


def crc32c(path: Path) -> str:
    """As 8 hexadecimal digits."""
    code, inverted = np.uint32(0), 0xFFFFFFFF
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            # What is inverted before the first byte is as good as those bits of the first four.
            head = np.frombuffer(piece[:4], np.uint8) ^ np.frombuffer(
                inverted.to_bytes(4, "little")[: len(piece)], np.uint8
            )
            inverted >>= 8 * len(piece)
            code = _append_zeros(code, len(piece)) ^ _linear(head.tobytes() + piece[4:])
    return f"{int(code) ^ inverted ^ 0xFFFFFFFF:08x}"


def _linear(piece: bytes) -> np.uint32:
    """The code of a piece alone, nothing inverted."""
    length = -(-len(piece) // _LANES)
    lanes = np.frombuffer(piece.rjust(length * _LANES, b"\0"), np.uint8).reshape(_LANES, length)
    codes = np.zeros(_LANES, np.uint32)
    for column in lanes.T:
        codes = _table()[(codes ^ column) & 255] ^ (codes >> 8)
    while len(codes) > 1:
        codes = _append_zeros(codes[::2], length) ^ codes[1::2]
        length *= 2
    return codes[0]


@functools.cache
def _table() -> np.ndarray:
    """[256], of each byte alone."""
    codes = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        codes = np.where(codes & 1, codes >> 1 ^ np.uint32(_POLYNOMIAL), codes >> 1)
    return codes


def _append_zeros(codes: np.ndarray, count: int) -> np.ndarray:
    """What codes become after so many zero bytes."""
    return _times(_zeros(count), codes)


@functools.cache
def _zeros(count: int) -> np.ndarray:
    """[32]: of each bit, what it becomes after so many zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if count == 0:
        return bits
    half = _zeros(count // 2)
    twice = _times(half, half)
    return _table()[twice & 255] ^ (twice >> 8) if count % 2 else twice


def _times(matrix: np.ndarray, codes: np.ndarray) -> np.ndarray:
    found = np.zeros_like(codes)
    for i, column in enumerate(matrix):
        found ^= column * (codes >> np.uint32(i) & np.uint32(1))
    return found
