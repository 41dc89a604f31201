"""What is served: each route by its method. Whatever is not listed here is 404 before Gradio sees
it. Gradio (6.31) has more: it runs private functions without its queue, fetches other addresses,
keeps whole sessions as files, edits the program that runs."""

import dataclasses
import enum
import re
from collections.abc import Mapping

from starlette.routing import Match, Route
from starlette.types import Scope

from playground.ui.guard.refused import Refused

_PRINTED = re.compile(r"[^\x00-\x1f\x7f]*")


class Kind(enum.Enum):
    """What a request brings, and so what is checked."""

    PLAIN = "nothing"
    FILE = "the path of a file that was handed out"
    STREAM = "a session whose messages are read"
    PRESENCE = "a session whose page is open"
    RESULT = "a call whose result is read"
    UPLOAD = "files"
    JOIN = "a function's number and what it is given"
    CALL = "a named endpoint and what it is given, in order"
    CALL_BY_NAME = "a named endpoint and what it is given, by name"
    MESSAGE = "a small message"
    TOOLS = "a message of the Model Context Protocol"
    DOWNLOAD = "nothing; the answer is made of a whole run, and may be large"
    FRAME = "nothing; the answer is a picture of a video"


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """lasts: the answer is a stream, open for as long as whoever asked stays."""

    method: str
    path: str
    kind: Kind = Kind.PLAIN
    lasts: bool = False


_API = "/gradio_api"
GRADIO = (
    Served("GET", "/"),
    Served("HEAD", "/"),
    Served("GET", "/config"),
    Served("GET", "/assets/{path:path}"),
    Served("GET", "/static/{path:path}"),
    Served("GET", "/svelte/{path:path}"),
    Served("GET", "/theme.css"),
    Served("GET", f"{_API}/theme.css"),
    Served("GET", "/favicon.ico"),
    Served("GET", "/robots.txt"),
    Served("GET", "/manifest.json"),
    Served("GET", f"{_API}/info"),
    Served("GET", f"{_API}/openapi.json"),
    Served("GET", f"{_API}/app_id"),
    Served("GET", f"{_API}/startup-events"),
    Served("GET", f"{_API}/heartbeat/{{session_hash}}", Kind.PRESENCE, lasts=True),
    Served("GET", f"{_API}/queue/data", Kind.STREAM, lasts=True),
    Served("GET", f"{_API}/upload_progress", lasts=True),
    Served("GET", f"{_API}/file={{path_or_url:path}}", Kind.FILE),
    Served("HEAD", f"{_API}/file={{path_or_url:path}}", Kind.FILE),
    Served("GET", f"{_API}/call/v2/{{api_name}}/{{event_id}}", Kind.RESULT, lasts=True),
    Served("GET", f"{_API}/call/{{api_name}}/{{event_id}}", Kind.RESULT, lasts=True),
    Served("POST", f"{_API}/upload", Kind.UPLOAD),
    Served("POST", f"{_API}/queue/join", Kind.JOIN),
    Served("POST", f"{_API}/call/v2/{{api_name}}", Kind.CALL_BY_NAME),
    Served("POST", f"{_API}/call/{{api_name}}", Kind.CALL),
    Served("POST", f"{_API}/cancel", Kind.MESSAGE),
    Served("POST", f"{_API}/reset", Kind.MESSAGE),
)
# Gradio mounts an application of its own there, where it was asked for.
TOOLS = (
    Served("POST", f"{_API}/mcp", Kind.TOOLS, lasts=True),
    Served("POST", f"{_API}/mcp/", Kind.TOOLS, lasts=True),
)
OWN = (
    Served("GET", "/healthz"),
    Served("GET", "/readyz"),
    Served("GET", "/metrics"),
    Served("GET", "/trace/{key}/{policy}", Kind.DOWNLOAD),
    Served("GET", "/run/{key}", Kind.DOWNLOAD),
    Served("GET", "/arrays/{key}/{policy}/{summary}", Kind.DOWNLOAD),
    Served("GET", "/episode/{key}/{episode}/{camera}/{frame}", Kind.FRAME),
    Served("GET", "/evaluation/{key}/{name}"),
    Served("GET", "/robot/{connection}"),
)


def _unused() -> None:
    """Starlette's routes want an endpoint; these are only matched."""


_ROUTES = [(Route(one.path, _unused, methods=[one.method]), one) for one in (*GRADIO, *TOOLS, *OWN)]


def find(scope: Scope) -> tuple[Served, Mapping[str, str]]:
    """The route of an HTTP request, as Starlette would match it, and the path's parameters. Raises
    Refused for every other."""
    if not _PRINTED.fullmatch(scope["path"]):  # Gradio makes addresses of it, or fails to
        raise Refused(404, "There is nothing here.")
    for route, served in _ROUTES:
        match, found = route.matches(scope)
        if match is Match.FULL and scope["method"] == served.method:
            return served, found["path_params"]
    raise Refused(404, "There is nothing here.")
