"""What every answer tells a browser: nothing from elsewhere, nothing framed, nothing guessed."""

import os
import re
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

# Gradio's page brings its scripts and styles inline, and makes functions of text.
_PAGE = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "frame-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
_FILE = {"default-src": "'none'", "sandbox": ""}
_SPACES = "https://huggingface.co https://*.hf.space"


def framed_by() -> str:
    """Who may show the page in a frame: itself, and on a Space the website that embeds Spaces."""
    return f"'self' {_SPACES}" if os.environ.get("SPACE_HOST") else "'self'"


def _policy(rules: dict[str, str]) -> str:
    rules = rules | {"frame-ancestors": framed_by()}
    return "; ".join(f"{name} {value}".strip() for name, value in rules.items())


# Gradio (6.31) answers a request for several ranges of a file with a fault of its own.
_ONE_RANGE = re.compile(rb"bytes=([0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})")


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A request's headers without the origin, which Gradio would answer with those that let another
    website's page read, and without ranges but for a single one."""
    return [
        (name, value)
        for name, value in headers
        if name != b"origin" and (name != b"range" or _ONE_RANGE.fullmatch(value))
    ]


def sending(send: Send, is_file: bool = False) -> Send:
    """`send`, with these headers on what is answered, and no header that lets other websites read
    it. is_file: of a visitor's, which must not act as a page."""
    policy = _policy(_FILE if is_file else _PAGE)

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers["Content-Security-Policy"] = policy
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
        await send(message)

    return sent
