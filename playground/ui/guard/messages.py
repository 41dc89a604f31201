"""What a message may hold at all: bounds that are looked at before any work is done on it."""

import asyncio
import json

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from playground.ui.guard.refused import Refused

MAX_BYTES = 512 << 10  # the longest prompt takes 120 KB of JSON escapes
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_FILES = 16
MAX_PATH = 1024  # characters
MESSAGE_S = 30.0  # from the head of a message to its end
PAUSE_S = 30.0  # between two pieces of an upload


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


def in_time(receive: Receive, limit_s: float = PAUSE_S) -> Receive:
    """`receive`, which raises Starlette's HTTPException at a longer pause before the body is
    whole: the reader is Gradio, and so the answer is made of it."""
    whole = False

    async def received() -> Message:
        nonlocal whole
        if whole:  # what comes next is that the other side leaves, whenever it does
            return await receive()
        try:
            async with asyncio.timeout(limit_s):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "The upload paused for too long.") from error
        whole = not message.get("more_body")
        return message

    return received


def again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes after."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


def parsed(body: bytes) -> dict:
    """The JSON object in a body. Raises Refused for any other, and for one that is nested too
    deeply or holds too many values."""
    # Each value but the first follows one of these; text may hold them too, up to the bound.
    if sum(map(body.count, (b",", b"[", b"{", b":"))) > MAX_VALUES:
        raise Refused(413, f"At most {MAX_VALUES:,} values are taken.")
    try:
        message = json.loads(body)
    except RecursionError as error:
        raise Refused(400, f"At most {MAX_DEPTH} levels are taken.") from error
    except ValueError as error:
        raise Refused(400, "This is no JSON.") from error
    if not isinstance(message, dict):
        raise Refused(400, "A JSON object is expected.")
    return message


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
