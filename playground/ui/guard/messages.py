"""What a message may hold at all: bounds that are looked at before any work is done on it."""

import asyncio
import json
import time
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from playground.trace import MAX_PICTURES
from playground.ui.guard.refused import Refused

MAX_BYTES = 512 << 10  # the longest prompt takes 120 KB of JSON escapes
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_FILES = MAX_PICTURES
MAX_PATH = 1024  # characters
MESSAGE_S = 30.0  # from the head of a message to its end
PAUSE_S = 30.0  # between two pieces of an upload
UPLOAD_S = 600.0  # from its head to its end
_MAX_BOUNDARY = 70  # characters between the parts of an upload, as RFC 2046 has it


def check_length(scope: Scope, most: int) -> None:
    """By what the request says of itself, before any of it is read."""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or len(length) > 18:
        raise Refused(400, "The length of this message is no number.")
    if int(length) > most:
        raise Refused(413, too_large(most))


def too_large(most: int) -> str:
    return f"At most {most >> 20} MB are taken." if most >> 20 else f"At most {most >> 10} KB."


async def read(receive: Receive, limit_s: float = MESSAGE_S) -> bytes:
    """The body; raises Refused as soon as it is too long, whatever its length was said to be, and
    when it has not come by the limit."""
    try:
        async with asyncio.timeout(limit_s):
            return await _read(receive)
    except TimeoutError as error:
        raise Refused(408, "The message did not come to its end in time.") from error


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The message was cut off.")
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise Refused(413, too_large(MAX_BYTES))
        if not message.get("more_body"):
            return bytes(body)


def in_time(receive: Receive, limit_s: float = PAUSE_S, all_s: float = UPLOAD_S) -> Receive:
    """`receive`, which raises Starlette's HTTPException at a longer pause before the body is
    whole, and where it takes longer than all_s: the reader is Gradio, and so the answer is made of
    it."""
    whole, end = False, time.monotonic() + all_s

    async def received() -> Message:
        nonlocal whole
        if whole:  # what comes next is that the other side leaves, whenever it does
            return await receive()
        try:
            async with asyncio.timeout(limit_s):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "The upload paused for too long.") from error
        if time.monotonic() > end:
            raise HTTPException(408, "The upload took too long.")
        whole = not message.get("more_body")
        return message

    return received


def only_files(receive: Receive, scope: Scope) -> Receive:
    """`receive`, of an upload, which raises HTTPException where the body is anything but files:
    Gradio (6.31) answers other fields with a fault of its own. Raises Refused for a body that says
    itself that it is none."""
    kind, options = parse_options_header(Headers(scope=scope).get("content-type"))
    if (
        kind != b"multipart/form-data"
        or not 0 < len(options.get(b"boundary", b"")) <= _MAX_BOUNDARY
    ):
        raise Refused(400, "An upload is expected: multipart/form-data with its boundary.")
    parts = _Parts(options[b"boundary"])

    async def received() -> Message:
        message = await receive()
        try:
            parts.write(message.get("body", b""))
        except MultipartParseError as error:
            raise HTTPException(400, "This is no whole upload.") from error
        return message

    return received


class _Parts(MultipartParser):
    """Follows an upload, and raises HTTPException at a part that is no file."""

    def __init__(self, boundary: bytes):
        self._name = self._value = self._disposition = b""
        named = ("part_begin", "header_field", "header_value", "header_end", "headers_finished")
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in named}
        super().__init__(boundary, callbacks)

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"files" or b"filename" not in options:
            raise HTTPException(400, 'An upload holds files, each named "files", and nothing else.')


def again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes after."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


def parsed(body: bytes) -> dict:
    """The JSON object in a body. Raises Refused for any other, for one that is nested too deeply or
    holds too many values, and for text that is none."""
    # Each value but the first follows one of these; text may hold them too, up to the bound.
    if sum(map(body.count, (b",", b"[", b"{", b":"))) > MAX_VALUES:
        raise Refused(413, f"At most {MAX_VALUES:,} values are taken.")
    try:
        # Of bytes, `json` would guess another encoding than Gradio reads.
        message = json.loads(body.decode())
    except RecursionError as error:
        raise Refused(400, f"At most {MAX_DEPTH} levels are taken.") from error
    except ValueError as error:
        raise Refused(400, "This is no JSON.") from error
    if not isinstance(message, dict):
        raise Refused(400, "A JSON object is expected.")
    if b"\\ud" in body.lower() and not _is_text(message):
        raise Refused(400, "Half of a character came.")
    return message


def _is_text(message: dict) -> bool:
    """Whether all of it can be written as UTF-8: an escape may stand for half of a character, which
    no answer could repeat."""
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def named_files(message: object) -> list[dict]:
    """Every object in the message that Gradio could take for a file. Raises Refused for too many
    of them, and below too many levels."""
    found, level = [], [message]
    for _ in range(MAX_DEPTH):
        inner = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
                if "path" in value or _is_marked(value.get("meta")):
                    found.append(value)
            elif isinstance(value, list):
                inner += value
        if not inner:
            if len(found) > MAX_FILES:
                raise Refused(413, f"At most {MAX_FILES} files are taken.")
            return found
        level = inner
    raise Refused(400, f"At most {MAX_DEPTH} levels are taken.")


def _is_marked(meta: object) -> bool:
    return isinstance(meta, dict) and "_type" in meta
