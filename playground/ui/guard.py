"""What the server turns away before Gradio sees it."""

import json
from pathlib import Path

from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from playground.run_file import MAX_FILE

_MAX_MESSAGE = 4 << 20  # bytes
_MAX_UPLOAD = MAX_FILE + (1 << 20)  # of a request; what Gradio counts is the file in it


class Guard:
    """ASGI middleware against what Gradio (6.31) does for whoever speaks to it without the page.

    It would fetch an address that a request or a message names in a file's place; open any path
    of this machine that a message names for a picture without the mark of an upload, since it
    checks the marked ones alone; and hold a message of any size.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http" and "://" in scope["path"]:
            refusal = PlainTextResponse("Nothing is fetched from other places.", 403)
        elif scope["type"] == "http" and scope["method"] == "POST":
            upload = scope["path"].rstrip("/").endswith("/upload")
            most = _MAX_UPLOAD if upload else _MAX_MESSAGE
            length = Headers(scope=scope).get("content-length", "")
            if length.isdecimal() and int(length) > most:  # before any of it is read
                refusal = PlainTextResponse(f"At most {most >> 20} MB are taken.", 413)
            elif not upload:
                body = await _body(receive)
                receive = _again(body, receive)
                refusal = _refusal(body)
        await (refusal or self._app)(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    """No more of it than makes it too long, which a message may be without saying so before."""
    body = bytearray()
    while len(body) <= _MAX_MESSAGE:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes after."""
    read = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return read.pop() if read else await receive()

    return replay


def _refusal(body: bytes) -> PlainTextResponse | None:
    if len(body) > _MAX_MESSAGE:
        return PlainTextResponse(f"At most {_MAX_MESSAGE >> 20} MB are taken.", 413)
    try:
        message = json.loads(body or b"null")
    except ValueError:  # no JSON: Gradio says so
        return None
    except RecursionError:
        return PlainTextResponse("This message is nested too deeply.", 400)
    if all(map(_uploaded, _files(message))):
        return None
    return PlainTextResponse("Files are uploaded, not named.", 403)


def _files(value):
    """Every dict that could stand for a file."""
    if isinstance(value, list):
        for item in value:
            yield from _files(item)
    elif isinstance(value, dict):
        if "path" in value:
            yield value
        for item in value.values():
            yield from _files(item)


def _uploaded(file: dict) -> bool:
    """Whether it is marked as an upload, and lies where uploads and the page's own files do."""
    if not (isinstance(file.get("meta"), dict) and is_file_obj_with_meta(file)):
        return False
    try:
        return Path(file["path"]).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError):  # no path at all
        return False
