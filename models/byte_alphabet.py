"""The byte-level alphabet of GPT-2's BPE, which FAST's vocabulary is written in: printable bytes
stand for themselves, the others for the characters from 256 on."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + index) for index, byte in enumerate(_HIDDEN)
}
_BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def piece_bytes(piece: str) -> bytes:
    """What an entry of a byte-level vocabulary stands for. The published fit also left raw control
    characters in it: an entry outside the alphabet stands for its own text."""
    if all(character in _BYTE_OF_CHARACTER for character in piece):
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    return piece.encode()
