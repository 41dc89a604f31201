"""The process between a robot and its real policy server, in shadow mode: it passes every frame on,
untouched and at once, and hands out copies of what went by.

It is a process of its own so that nothing of ours can hold the robot up: not a busy page, not a
policy, not the end of the program that started it. Once that is gone, robots that are connected go
on, and the relay ends with the last of them. It loads nothing but `websockets`.

    argv    the listening socket's descriptor, that of the connection for copies, the server's URL

A copy is a header (`HEADER`) and as many bytes as it says. Where the other side reads too slowly,
copies are left out, never frames.
"""

import contextlib
import http
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

# kind, connection, exchanges left out before this one, seconds from request to reply, bytes of the
# path or the request, of the reply. Kinds: a robot came, was answered, left.
HEADER = struct.Struct("<BIIdII")
CAME, ANSWERED, LEFT = range(3)

_WAITING_COPIES = 4  # each may be some MB
_REACH_S = 10.0
_KEEPALIVE_S = 60
_MAX_BYTES = (1 << 32) - 1  # of one message: what a header can say
# Of a handshake, what belongs to this connection and not to the next one.
_OWN_HEADERS = ("host", "connection", "upgrade", "origin", "user-agent")


class Copies:
    """What went by, for whoever started this process; never waits."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._parts: queue.SimpleQueue[tuple[bytes, ...]] = queue.SimpleQueue()
        self._places = threading.Semaphore(_WAITING_COPIES)
        self._lock = threading.Lock()
        self._left_out = 0
        threading.Thread(target=self._send, daemon=True).start()

    def came(self, number: int, path: str) -> None:
        data = path.encode()
        self._parts.put((HEADER.pack(CAME, number, 0, 0.0, len(data), 0), data))

    def answered(self, number: int, took_s: float, request: bytes, reply: bytes) -> None:
        with self._lock:
            if not self._places.acquire(blocking=False):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        header = HEADER.pack(ANSWERED, number, left_out, took_s, len(request), len(reply))
        self._parts.put((header, request, reply))

    def left(self, number: int) -> None:
        self._parts.put((HEADER.pack(LEFT, number, 0, 0.0, 0, 0),))

    def _send(self) -> None:
        while True:
            parts = self._parts.get()
            with contextlib.suppress(OSError):  # nobody reads any more
                for part in parts:
                    self._connection.sendall(part)
            if len(parts) == 3:
                self._places.release()


class Relay:
    """Robots on one side, `url` on the other."""

    def __init__(self, url: str, copies: Copies):
        self._url, self._copies = url, copies
        self._lock = threading.Lock()
        self._upstream: dict[ServerConnection, tuple[ClientConnection, contextlib.ExitStack]] = {}
        self._number = 0
        self.connected = 0
        self.emptied = threading.Event()  # set whenever the last robot has left

    def check(self, robot: ServerConnection, request: Request) -> Response | None:
        """Whether the server is well, for a GET of /healthz."""
        if request.path.partition("?")[0] == "/healthz":
            return self._health(robot)
        return None

    def admit(
        self, robot: ServerConnection, request: Request, response: Response
    ) -> Response | None:
        """Within a robot's handshake: that with its server, whose refusal it gets."""
        if response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
            return None
        self._end_broken_handshakes()
        headers = [
            (name, value)
            for name, value in request.headers.raw_items()
            if name.lower() not in _OWN_HEADERS and not name.lower().startswith("sec-websocket")
        ]
        path = request.path if request.path != "/" else ""
        try:
            opening = connect(
                self._url.rstrip("/") + path,
                additional_headers=headers,
                compression=None,
                max_size=None,
                ping_interval=None,  # the two ends ask each other; this adds no reason to fail
                open_timeout=_REACH_S,
                proxy=None,
            )
            stack = contextlib.ExitStack()
            upstream = stack.enter_context(opening)
        except InvalidStatus as error:
            body = (error.response.body or b"").decode(errors="replace")
            return robot.respond(http.HTTPStatus(error.response.status_code), body)
        except (OSError, InvalidHandshake) as error:
            text = f"The robot's policy server cannot be reached: {type(error).__name__}.\n"
            return robot.respond(http.HTTPStatus.BAD_GATEWAY, text)
        _keep_alive(upstream.socket)
        with self._lock:
            self._upstream[robot] = (upstream, stack)
        return None

    def _end_broken_handshakes(self) -> None:
        """Of robots that left in the middle of one."""
        with self._lock:
            gone = [robot for robot in self._upstream if robot.state is State.CLOSED]
            broken = [self._upstream.pop(robot) for robot in gone]
        for _, stack in broken:
            stack.close()

    def _health(self, robot: ServerConnection) -> Response:
        parts = urlsplit(self._url)
        scheme = {"ws": "http", "wss": "https"}[parts.scheme]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{scheme}://{parts.netloc}/healthz", timeout=_REACH_S) as answer:
                status, body = answer.status, answer.read(1000)
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read(1000)
        except OSError:
            status, body = 502, b"The robot's policy server cannot be reached.\n"
        return robot.respond(http.HTTPStatus(status), body.decode(errors="replace"))

    def serve(self, robot: ServerConnection) -> None:
        """A robot's connection, from the first frame to the end of either side."""
        with self._lock:
            upstream, stack = self._upstream.pop(robot)
            number, self._number = self._number, self._number + 1
            self.connected += 1
        assert robot.request is not None
        self._copies.came(number, robot.request.path)
        with stack:
            _keep_alive(robot.socket)
            exchange = _Exchange(number, self._copies)
            back = threading.Thread(target=_answers, args=(upstream, robot, exchange), daemon=True)
            back.start()
            _requests(robot, upstream, exchange)
            back.join()
        self._copies.left(number)
        with self._lock:
            self.connected -= 1
            if not self.connected:
                self.emptied.set()


class _Exchange:
    """Pairs a robot's requests with the replies: the protocol has one for each, in turn."""

    def __init__(self, number: int, copies: Copies):
        self._number, self._copies = number, copies
        self._request: tuple[float, bytes] | None = None

    def asked(self, data: str | bytes) -> None:
        self._request = None if isinstance(data, str) else (time.monotonic(), data)

    def replied(self, data: str | bytes) -> None:
        request, self._request = self._request, None  # the first frame answers nothing
        if request is not None and isinstance(data, bytes):
            self._copies.answered(self._number, time.monotonic() - request[0], request[1], data)


def _requests(robot: ServerConnection, upstream: ClientConnection, exchange: _Exchange) -> None:
    """What the robot sends, until either side ends."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            data = robot.recv()
            exchange.asked(data)  # before its reply can come
            upstream.send(data)
    _end_alike(robot, upstream)


def _answers(upstream: ClientConnection, robot: ServerConnection, exchange: _Exchange) -> None:
    """What its server sends, until either side ends."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            data = upstream.recv()
            robot.send(data)
            exchange.replied(data)
    _end_alike(robot, upstream)


def _end_alike(robot: ServerConnection, upstream: ClientConnection) -> None:
    """One of them has ended; the other does so with the same code."""
    for ended, other in ((upstream, robot), (robot, upstream)):
        code = ended.close_code
        if code is not None:
            # 1005 and 1006 say that there was no code; they cannot be sent.
            code = {1005: 1000, 1006: 1011}.get(code, code)
            other.close(code, ended.close_reason or "")


def _keep_alive(connection: socket.socket) -> None:
    """A robot without power says no goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)


def main() -> None:
    listening = socket.socket(fileno=int(sys.argv[1]))
    connection = socket.socket(fileno=int(sys.argv[2]))
    for one in (listening, connection):
        one.set_inheritable(False)
    # A terminal's Ctrl-C is for the program that started this; robots go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    relay = Relay(sys.argv[3], Copies(connection))
    server = serve(
        relay.serve,
        sock=listening,
        compression=None,
        max_size=_MAX_BYTES,
        origins=[None],  # robots send none; a browser's page would
        process_request=relay.check,
        process_response=relay.admit,
        ping_interval=None,
        open_timeout=2 * _REACH_S,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.suppress(OSError):
        connection.recv(1)  # nothing is ever sent here: the program that started this is gone
    listening.close()
    while relay.connected:
        relay.emptied.wait(1.0)
        relay.emptied.clear()
    os._exit(0)


if __name__ == "__main__":
    main()
