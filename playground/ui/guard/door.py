"""What the server turns away before Gradio sees it.

Allow, not forbid: a request is served if its route, its method and all that it brings are known;
anything else gets a word of refusal. The checks follow the route that Starlette matches, never the
text of a path.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import anyio.to_thread
import gradio as gr
from gradio.routes import App
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from playground.run_file import MAX_FILE
from playground.ui.guard import headers, messages, routes, sessions, shares, visitors
from playground.ui.guard.files import Files
from playground.ui.guard.functions import Functions
from playground.ui.guard.hosts import Hosts
from playground.ui.guard.refused import Refused
from playground.ui.guard.routes import Kind, Served

_MAX_UPLOAD = MAX_FILE + (1 << 20)  # of a request; what Gradio counts is the file in it
_MAX_TEXT = 128  # characters of a session's or a call's name
# What a message to a function may say beside its number and what it is given.
_JOIN_KEYS = {"data", "fn_index", "session_hash", "event_data", "trigger_id", "event_id"}
_CALL_KEYS = {"data", "session_hash"}
# What a request counts as; a download is made of a whole run, and a browser asks for many frames.
_CALLS = {
    **dict.fromkeys((Kind.UPLOAD, Kind.JOIN, Kind.CALL, Kind.CALL_BY_NAME, Kind.TOOLS), 1.0),
    Kind.DOWNLOAD: 6.0,
    Kind.FRAME: 0.2,
}
# What an MCP client asks (MCP 2025-11-25: Lifecycle, Tools, Utilities). Of the lists only that of
# the tools holds anything.
_TOOL_METHODS = {
    *("initialize", "notifications/initialized", "notifications/cancelled", "ping"),
    *("tools/list", "tools/call"),
    *("prompts/list", "resources/list", "resources/templates/list"),
}


class Guard:
    """ASGI middleware around the whole of a page's application. uploads: the folder where parts of
    uploads lie that were broken off."""

    def __init__(self, app: ASGIApp, page: gr.Blocks, hosts: Hosts, uploads: str | None = None):
        self._app, self._page, self._hosts, self._uploads = app, page, hosts, uploads
        self._files, self._functions = Files(page), Functions(page)
        self._streams = shares.Open(shares.STREAMS, "streams")
        self._uploading = shares.Open(shares.UPLOADS, "uploads")
        self._making = {
            Kind.DOWNLOAD: shares.Open(shares.DOWNLOADS, "downloads"),
            Kind.FRAME: shares.Open(shares.FRAMES, "pictures"),
        }
        self._uploaded, self._pace = shares.Uploaded(), shares.Pace()
        self._folder = shares.Folder(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        with contextlib.ExitStack() as held:
            try:
                self._hosts.check(Headers(scope=scope), scope["method"] not in ("GET", "HEAD"))
                served, params = routes.find(scope)
                if calls := _CALLS.get(served.kind):
                    await self._pace.turn(_address(scope), calls)
                held.enter_context(self._share(served, scope))
                if served.kind is Kind.PRESENCE:
                    held.enter_context(self._present(params["session_hash"]))
                receive = await self._checked(served, params, scope, receive)
            except Refused as refused:
                await refused.response()(scope, receive, headers.sending(send))
                return
            send = headers.sending(send, is_file=served.kind is Kind.FILE)
            passed_on = headers.passed_on(scope["headers"])
            if served.kind is Kind.TOOLS:
                passed_on = _on_behalf(passed_on, scope)
            await self._app({**scope, "headers": passed_on}, receive, send)
        if served.kind is Kind.UPLOAD and self._uploads is not None:
            await anyio.to_thread.run_sync(shares.remove_parts, self._uploads)
        if served.kind in (Kind.UPLOAD, Kind.JOIN) and self._folder.is_due():
            await anyio.to_thread.run_sync(self._folder.hold)

    @contextlib.contextmanager
    def _share(self, served: Served, scope: Scope) -> Iterator[None]:
        """Holds what the request takes of its address's share, until it is answered. Raises
        Refused."""
        with contextlib.ExitStack() as held:
            if served.kind is Kind.UPLOAD:
                self._uploaded.check(_address(scope))
                held.enter_context(self._uploading.one(_address(scope)))
            elif (making := self._making.get(served.kind)) is not None:
                held.enter_context(making.one(_address(scope)))
            elif served.lasts:
                held.enter_context(self._streams.one(_address(scope)))
            yield

    def _present(self, session: str) -> contextlib.AbstractContextManager[None]:
        holder = getattr(self._page, "state_holder", None)
        known = isinstance(holder, sessions.Sessions)
        return holder.open_pages.one(session) if known else contextlib.nullcontext()

    async def _checked(
        self, served: Served, params: Mapping[str, str], scope: Scope, receive: Receive
    ) -> Receive:
        """What Gradio is to read the request from; raises Refused."""
        match served.kind:
            case Kind.FILE:
                if not self._files.is_known(params["path_or_url"]):
                    raise Refused(403, "This file is none of the page's.")
            case Kind.STREAM:
                self._check_session(QueryParams(scope["query_string"]).get("session_hash"))
            case Kind.RESULT:
                self._functions.of_program(params["api_name"])
                self._check_call(params["event_id"])
            case Kind.UPLOAD:
                messages.check_length(scope, _MAX_UPLOAD)
                receive = messages.only_files(messages.in_time(receive), scope)
                return self._uploaded.counted(receive, _address(scope))
            case Kind.PLAIN | Kind.PRESENCE | Kind.DOWNLOAD | Kind.FRAME:
                pass
            case _:
                messages.check_length(scope, messages.MAX_BYTES)
                body = await messages.read(receive)
                self._check_message(served.kind, params, messages.parsed(body))
                return messages.again(body, receive)
        return receive

    def _check_message(self, kind: Kind, params: Mapping[str, str], message: dict) -> None:
        for file in messages.named_files(message):
            self._files.check(file)
        match kind:
            case Kind.JOIN:
                function = self._functions.of_page(message.get("fn_index"))
                _check_keys(message, _JOIN_KEYS)
                self._functions.check(function, message.get("data"))
                self._functions.check_event(function, message.get("event_data"))
            case Kind.CALL:
                function = self._functions.of_program(params["api_name"])
                _check_keys(message, _CALL_KEYS)
                self._functions.check(function, message.get("data"))
            case Kind.CALL_BY_NAME:
                function = self._functions.of_program(params["api_name"])
                self._functions.check_names(function, message)
            case Kind.TOOLS:
                if not self._page.mcp_server:
                    raise Refused(404, "The tools are off here; app.py --mcp turns them on.")
                method = message.get("method")
                if not isinstance(method, str) or method not in _TOOL_METHODS:
                    raise Refused(404, f"There is no method {method!r:.60} here.")

    def _check_session(self, session: str | None) -> None:
        """Gradio answers a stream of an unknown session with an exception."""
        if session not in self._page._queue.pending_messages_per_session:
            raise Refused(404, "This session has nothing under way.")

    def _check_call(self, call: str) -> None:
        queue = self._page._queue
        known = call in queue.event_ids_to_events or call in queue.pending_messages_per_session
        if not (known or any(call in ids for ids in queue.pending_event_ids_session.values())):
            raise Refused(404, "There is no such call.")


def around(
    page: gr.Blocks, hosts: Hosts
) -> Callable[[App], contextlib.AbstractAsyncContextManager[None]]:
    """A lifespan for the page's application that puts a guard before all else in it, and holds what
    Gradio keeps of sessions: middleware that is given to Gradio would come after Gradio's own,
    which answers some requests by itself."""

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        sessions.hold(app, page)
        inner = app.middleware_stack
        assert inner is not None, "the application has begun"
        app.middleware_stack = Guard(inner, page, hosts, app.uploaded_file_dir)
        yield

    return lifespan


def _address(scope: Scope) -> str:
    """What tells visitors apart; "" where it does not."""
    client = scope.get("client")
    return visitors.address(client[0] if client else None)


def _on_behalf(passed_on: list[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of a request that Gradio repeats to this server, from this machine: it counts
    against the share of whoever asked, whatever that one says of its address."""
    spoken = {b"x-forwarded-for", b"forwarded", b"transfer-encoding"}
    kept = [(name, value) for name, value in passed_on if name not in spoken]
    client = scope.get("client")
    return [*kept, (b"x-forwarded-for", client[0].encode())] if client else kept


def _check_keys(message: dict, known: set[str]) -> None:
    if unknown := sorted(message.keys() - known):
        raise Refused(422, f"There is no field {unknown[0]!r:.60} here.")
    session = message.get("session_hash")
    if session is not None and not (isinstance(session, str) and 0 < len(session) <= _MAX_TEXT):
        raise Refused(422, f"A session is a text of at most {_MAX_TEXT} characters.")
