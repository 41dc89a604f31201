"""What one visitor may hold open and leave behind; connections that stand still."""

import asyncio
import contextlib
import os
import socket
import threading
import time
import types

import gradio as gr
import pytest
import uvicorn
from starlette.responses import PlainTextResponse, StreamingResponse

from playground.ui.guard import connections, shares, visitors
from playground.ui.guard.refused import Refused
from playground.ui.guard.shares import Bounds, Open, Pace, Uploaded
from tests.support.visitor import until
from tests.test_guard_sessions import in_a_thread

LARGE = 16 << 20  # more than lies between a server and its client
LIMIT_S = 90.0  # for what must happen, on however slow a machine


# --- whose share --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("127.0.0.1", ""),
        ("127.8.8.8", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("testclient", ""),
        (None, ""),
    ],
)
def test_visitors_are_told_apart_by_their_address_or_else_by_their_session(host, address):
    assert visitors.address(host) == address
    client = None if host is None else type("Client", (), {"host": host})
    request = gr.Request(client=client, session_hash="abc")
    assert visitors.of(request) == (address or "abc")
    assert visitors.of(None) == "" == visitors.current()


def test_on_a_space_all_come_from_its_proxy_unless_that_is_named(monkeypatch):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    monkeypatch.setenv("SPACE_HOST", "somebody-pi0.hf.space")
    assert visitors.address("10.20.30.40") == ""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.0/8")  # then uvicorn passes the visitor's on
    assert visitors.address("203.0.113.7") == "203.0.113.7"


# --- what is open -------------------------------------------------------------------------------


def test_one_address_holds_few_open_and_all_together_not_too_many():
    streams = Open(Bounds(each=2, all=5), "streams")
    with contextlib.ExitStack() as held:
        for address in ("a", "a", "b", "c"):
            held.enter_context(streams.one(address))
        with pytest.raises(Refused, match="Too many streams") as refused, streams.one("a"):
            pass
        assert refused.value.status == 429
        with streams.one("b"), pytest.raises(Refused), streams.one("d"):
            pass
        with pytest.raises(KeyError), streams.one("d"):
            raise KeyError  # however it ends
        with streams.one("d"):
            pass
    with contextlib.ExitStack() as held:  # of those whom nothing sets apart, all count as one crowd
        for _ in range(5):
            held.enter_context(streams.one(""))
        with pytest.raises(Refused), streams.one("a"):
            pass


def test_who_asks_more_often_than_others_waits_and_others_do_not():
    pace, often, at_once = Pace(), shares.CALLS_S, shares.CALLS_AT_ONCE
    assert [pace.wait_s("a", 1, 100.0) for _ in range(at_once)] == pytest.approx([0] * at_once)
    waits = [pace.wait_s("a", 1, 100.0) for _ in range(int(shares.LATEST_S * often) - 1)]
    assert waits == pytest.approx([(i + 1) / often for i in range(len(waits))])
    with pytest.raises(Refused, match="Too much is asked") as refused:
        pace.wait_s("a", 2, 100.0)
    assert refused.value.status == 429
    assert pace.wait_s("b", at_once, 100.0) == pytest.approx(0)
    assert pace.wait_s("b", 3, 100.0) == pytest.approx(3 / often)
    assert pace.wait_s("a", 1, 103.0) == pytest.approx(waits[-1] - 3 + 1 / often)
    assert [pace.wait_s("", 1, 100.0) for _ in range(9 * at_once)] == [0] * 9 * at_once
    assert pace.wait_s("a", at_once, 1000.0) == pytest.approx(0)  # all again, after a while


def test_what_an_address_uploads_is_counted_for_some_hours(monkeypatch):
    body = {"type": "http.request", "body": bytes(60), "more_body": True}
    uploaded = Uploaded(Bounds(each=100, all=250))

    async def receive():
        return body

    async def upload(address):
        uploaded.check(address)
        assert await uploaded.counted(receive, address)() is body

    async def visit():
        for address in ("a", "a", "b", "c"):
            await upload(address)
        with pytest.raises(Refused, match="Too much was uploaded"):
            uploaded.check("a")
        await upload("b")  # all together are full with it
        for address in ("c", "d", ""):
            with pytest.raises(Refused):
                uploaded.check(address)

    in_a_thread(visit)
    later = time.monotonic() + shares.KEPT_S + 1
    monkeypatch.setattr(shares.time, "monotonic", lambda: later)
    for address in ("a", "d", ""):
        uploaded.check(address)


def test_parts_of_broken_uploads_are_removed(tmp_path):
    """Not those that are being written, and no whole file."""
    given_up, fresh, whole = tmp_path / "tmpabc", tmp_path / "tmpdef", tmp_path / "sha" / "x.png"
    whole.parent.mkdir()
    for file in (given_up, fresh, whole):
        file.write_bytes(b"x")
    for file in (given_up, whole):
        os.utime(file, (time.time() - 1000,) * 2)
    shares.remove_parts(tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted([fresh, whole.parent, whole])
    shares.remove_parts(tmp_path / "none")


def test_files_of_visitors_are_held_to_a_size(tmp_path, monkeypatch):
    """The oldest go, and none but those that the page knows and does not begin with."""
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for age, file in enumerate(files):
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age,) * 2)
    foreign = files.pop()
    first = tmp_path / "first.png"
    first.write_bytes(b"x")
    os.utime(first, (1, 1))
    sets = [{str(file) for file in files[:5]}, {str(file) for file in files[3:]}]
    sets.append({"/nowhere", str(first)})
    begun_with = types.SimpleNamespace(keep_in_cache={str(first)})
    page = types.SimpleNamespace(temp_file_sets=sets, blocks={0: begun_with, 1: object()})
    folder = shares.Folder(page, most=800)
    folder.hold()
    assert all(file.exists() for file in files)
    sets.append({str(tmp_path / "new.png")})
    (tmp_path / "new.png").write_bytes(b"x")
    folder.hold()  # to 600 of 801
    assert [file.exists() for file in files] == [True] * 5 + [False] * 3
    assert foreign.exists()
    assert first.exists()
    assert folder.is_due()
    assert not folder.is_due()
    later = time.monotonic() + 61
    monkeypatch.setattr(shares.time, "monotonic", lambda: later)
    assert folder.is_due()


# --- connections --------------------------------------------------------------------------------


async def application(scope, receive, send):
    async def forever():
        while True:
            yield bytes(1 << 20)
            await asyncio.sleep(0)

    async def late():
        await asyncio.sleep(1.5)  # longer than a head may take
        yield b"late"

    async def large():
        for _ in range(LARGE >> 20):
            yield bytes(1 << 20)

    bodies = {"/forever": forever, "/late": late, "/large": large}
    make = bodies.get(scope["path"])
    response = PlainTextResponse("well") if make is None else StreamingResponse(make())
    await response(scope, receive, send)


@pytest.fixture(scope="module")
def server():
    """Of a server whose connections may stand still for a moment."""
    config = uvicorn.Config(application, port=0, log_level="critical", lifespan="off")
    config.load()
    config.http_protocol_class = connections.hurried(config.http_protocol_class, 1.0, 1.0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture
def port(server):
    return server.servers[0].sockets[0].getsockname()[1]


def asked(port, *sent):
    """Everything that comes until the server ends the connection; each piece but the first is sent
    when the one before was answered."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as connection:
        answer = bytearray()
        with contextlib.suppress(ConnectionResetError):
            for piece in sent:
                connection.sendall(piece)
                while piece == WELL and not answer.endswith(b"well"):
                    came = connection.recv(1 << 16)
                    assert came, "ended before the answer"
                    answer += came
                answer += b"|"
            while piece := connection.recv(1 << 16):
                answer += piece
        return bytes(answer)


WELL = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [[b""], [WELL[:-2]], [WELL, WELL[:-2]], [WELL, WELL, b"G"]],
    ids=["nothing", "half a head", "half of a second one", "a third one's first byte"],
)
def test_a_half_sent_head_is_given_up(port, sent):
    assert asked(port, *sent).count(b"well") == len(sent) - 1


def test_an_answer_may_take_longer_than_a_head(port):
    sent = WELL.replace(b"/ ", b"/late ").replace(b"host", b"connection: close\r\nhost")
    assert b"late" in asked(port, sent)


def test_who_reads_gets_all_of_a_large_answer(port):
    """However often the server has to wait for them."""
    sent = WELL.replace(b"/ ", b"/large ").replace(b"host", b"connection: close\r\nhost")
    assert len(asked(port, sent)) > LARGE


def test_who_does_not_read_is_given_up(server):
    address = server.servers[0].sockets[0].getsockname()
    with socket.create_connection(address, LIMIT_S) as connection:
        connection.sendall(WELL.replace(b"/ ", b"/forever "))
        assert connection.recv(4) == b"HTTP"
        until(lambda: not server.server_state.connections)


class Timer:
    is_over = False

    def cancel(self):
        self.is_over = True


class Loop:
    def __init__(self):
        self.timers = []

    def call_later(self, seconds, function):
        self.timers.append(Timer())
        return self.timers[-1]


class Protocol(asyncio.Protocol):
    transport, cycle = asyncio.Transport(), None

    def __init__(self):
        self.loop = Loop()

    def connection_made(self, transport):
        self.transport = transport


class From(asyncio.Transport):
    """A connection from an address."""

    def __init__(self, host):
        super().__init__({"peername": (host, 50000)})
        self.is_aborted = False

    def abort(self):
        self.is_aborted = True


def test_one_address_has_few_connections_and_a_proxy_as_many_as_it_likes(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    kind = connections.hurried(Protocol)

    def connect(host):
        made, transport = kind(), From(host)
        made.connection_made(transport)
        if transport.is_aborted:
            made.connection_lost(None)
        return made, transport.is_aborted

    found = [connect("203.0.113.7") for _ in range(4)]
    assert [aborted for _, aborted in found] == [False, False, True, True]
    assert [connect(host)[1] for host in ["203.0.113.8", *["127.0.0.1"] * 9]] == [False] * 10
    found[0][0].connection_lost(None)
    assert [connect("203.0.113.7")[1] for _ in range(2)] == [False, True]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "203.0.113.7")
    assert [connect("203.0.113.7")[1] for _ in range(9)] == [False] * 9


def test_a_wait_that_is_over_ends_no_connection():
    """However long it is read for afterwards."""
    protocol = connections.hurried(Protocol)()
    for _ in range(2):
        protocol.pause_writing()
        assert not protocol.loop.timers[-1].is_over
        protocol.resume_writing()
        assert protocol.loop.timers[-1].is_over
    protocol.pause_writing()
    protocol.connection_lost(None)
    assert [timer.is_over for timer in protocol.loop.timers] == [True] * 3
