"""What the door lets through: known routes, known functions, what their components could send.

Against Gradio's own list of routes, and on a small page of our own; on the running app in
test_bad_input.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from gradio.routes import App
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import compile_path
from starlette.testclient import TestClient

from playground.trace import MAX_PICTURES
from playground.ui.guard import door, headers, messages, routes, shares
from playground.ui.guard.hosts import Hosts
from playground.ui.guard.refused import Refused
from tests.support.blocks import built, in_a_loop

MARK = {"_type": "gradio.FileData"}
# What Gradio (6.31) has beside what is served, each looked at: none is used by this page, by its
# script or by gradio_client without a login.
NOT_SERVED = {
    ("GET", "/config/"),
    ("POST", "/login"),
    ("POST", "/login/"),
    ("GET", "/logout"),
    ("GET", "/monitoring"),
    ("GET", "/monitoring/summary"),
    ("GET", "/monitoring/{key}"),
    ("GET", "/pwa_icon"),
    ("GET", "/pwa_icon/{size}"),
    *(
        (method, f"/gradio_api/{path}")
        for method, path in (
            ("GET", "app_id/"),
            ("GET", "custom_component/{id}/{environment}/{type}/{file_name}"),
            ("GET", "deep_link"),
            ("GET", "dev/reload"),
            ("GET", "file/{path}"),
            ("GET", "info/"),
            ("GET", "login_check"),
            ("GET", "login_check/"),
            ("GET", "proxy={url_path}"),
            ("HEAD", "proxy={url_path}"),
            ("GET", "queue/status"),
            ("GET", "run-history/buckets"),
            ("GET", "run-history/records"),
            ("GET", "run-history/records/{endpoint}/{record_id}/assets/{asset_id}"),
            ("GET", "runs"),
            ("GET", "runs/"),
            ("GET", "stream/{session_hash}/{run}/{component_id}/playlist-file"),
            ("GET", "stream/{session_hash}/{run}/{component_id}/playlist.m3u8"),
            ("GET", "stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}"),
            ("GET", "token"),
            ("GET", "token/"),
            ("GET", "user"),
            ("GET", "user/"),
            ("GET", "vibe-code"),
            ("GET", "vibe-code/"),
            ("POST", "api/{api_name}"),
            ("POST", "api/{api_name}/"),
            ("POST", "call/v2/{api_name}/"),
            ("POST", "call/{api_name}/"),
            ("POST", "component_server"),
            ("POST", "component_server/"),
            ("POST", "process_recording"),
            ("POST", "reset/"),
            ("POST", "run-history/connect"),
            ("POST", "run/{api_name}"),
            ("POST", "run/{api_name}/"),
            ("POST", "stream/{event_id}"),
            ("POST", "stream/{event_id}/close"),
            ("POST", "undo-vibe-edit"),
            ("POST", "undo-vibe-edit/"),
            ("POST", "vibe-code"),
            ("POST", "vibe-code/"),
            ("POST", "vibe-edit"),
            ("POST", "vibe-edit/"),
            ("POST", "vibe-starter-queries"),
            ("POST", "vibe-starter-queries/"),
        )
    ),
}


def page_of_all_kinds():
    """Functions 0 (the page's), 1 and 2 (that read what was clicked) and 3 (for programs)."""
    parts = [
        gr.Image(),
        gr.Textbox(label="Words"),
        gr.Dropdown(["a"]),
        gr.Dropdown(["a"], multiselect=True),
        gr.CheckboxGroup(["a"]),
        gr.Number(),
        gr.Checkbox(),
        gr.HTML(),
        gr.HTML({"values": [0, 1]}),
        gr.State(None),
    ]
    gr.Button().click(lambda *given: None, parts, None, api_visibility="private")

    def chosen(event: gr.SelectData):
        return str(event.value)

    def clicked(event: gr.EventData):
        return str(event)

    parts[2].select(chosen, None, parts[1], api_visibility="private")
    parts[7].select(clicked, None, parts[1], api_visibility="private")

    def double(number: float, images: dict | None = None) -> float:
        return 2 * number

    gr.api(double, api_name="double")


WELL = [None, "x", "a", ["a"], ["a"], 1.5, True, "<p>", {"values": [0, "1"]}, None]


@pytest.fixture(scope="module")
def page():
    return built(page_of_all_kinds)[0]


@pytest.fixture
def reached():
    """(path, body) of what the guard let through."""
    return []


@pytest.fixture
def client(page, reached):
    """Of the guard, before an app that notes what reaches it."""

    async def inner(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        reached.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = door.Guard(inner, page, Hosts("127.0.0.1", ["pi0.example.org"]))
    return TestClient(guard, "http://127.0.0.1:7860")


def rpc(method, **params):
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


@pytest.mark.parametrize("path", ["/gradio_api/mcp", "/gradio_api/mcp/"])
def test_tools_are_served_where_they_were_asked_for(client, page, reached, path, monkeypatch):
    called = rpc("tools/call", name="double", arguments={"number": 2})
    assert client.post(path, json=called).status_code == 404
    monkeypatch.setattr(page, "mcp_server", True)
    assert client.post(path, json=called).status_code == 200
    assert [at for at, _ in reached] == [path]
    refused = [
        (rpc("prompts/get", name="double"), {}, 404),
        (rpc(["tools/call"], name="double"), {}, 404),
        ([called], {}, 400),
        (rpc("tools/call", arguments={"images": {"path": "/etc/passwd"}}), {}, 403),
        (rpc("tools/call", arguments={"text": "x" * messages.MAX_BYTES}), {}, 413),
        (called, {"host": "evil.example"}, 403),
        (called, {"origin": "http://evil.example"}, 403),
    ]
    for message, headers_, status in refused:
        assert client.post(path, json=message, headers=headers_).status_code == status
    for method, beside in (
        ("GET", ""),
        ("GET", "/sse"),
        ("POST", "/messages/"),
        ("GET", "/schema"),
    ):
        assert client.request(method, path.rstrip("/") + beside).status_code == 404
    assert len(reached) == 1


def test_a_tool_s_call_counts_against_whoever_asked(page, monkeypatch):
    """Gradio repeats the request to this server with these headers; from there its own proxy
    headers would be believed."""
    passed_on = []

    async def inner(scope, receive, send):
        passed_on.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(page, "mcp_server", True)
    guard = door.Guard(inner, page, Hosts("127.0.0.1"))
    asking = TestClient(guard, "http://127.0.0.1:7860", client=("203.0.113.7", 50000))
    spoken = {"x-forwarded-for": "198.51.100.1", "forwarded": "for=198.51.100.1"}
    asking.post("/gradio_api/mcp", json=rpc("ping"), headers=spoken)
    assert passed_on[0][b"x-forwarded-for"] == b"203.0.113.7"
    assert b"forwarded" not in passed_on[0]


def join(data, number=0, **further):
    return {"fn_index": number, "data": data, "session_hash": "s", **further}


def test_every_route_of_gradio_is_either_served_or_known_not_to_be(page):
    """A new one is a decision: list it in `routes`, or above."""
    schema = in_a_loop(lambda: App.create_app(page).openapi())
    found = {
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    }
    # As in the schema, which leaves a parameter's kind out.
    served = {(one.method, compile_path(one.path)[1]) for one in routes.GRADIO}
    assert found - served == NOT_SERVED
    # Since Starlette answers HEAD wherever it answers GET, the schema lists only some.
    assert served - found == set()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *sorted(NOT_SERVED),
        ("PUT", "/"),
        ("POST", "/config"),
        ("DELETE", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/upload"),
        ("POST", "/gradio_api/call/upload"),
        ("POST", "/gradio_api/call/x/upload"),
        ("POST", "/gradio_api/upload/"),
        ("GET", "/gradio_api/file=https://example.com/"),
        ("GET", "/nothing"),
        ("GET", "/gradio_api/heartbeat/%00"),
        ("GET", "/run/%0a"),
    ],
)
def test_what_is_not_served_does_not_reach_gradio(client, reached, method, path):
    body = json.dumps(join([])).encode() if method == "POST" else None
    answer = client.request(method, path, content=body, follow_redirects=False)
    assert answer.status_code in (403, 404)
    assert reached == []


def test_a_websocket_is_closed(client):
    with pytest.raises(Exception), client.websocket_connect("/gradio_api/queue/join"):  # noqa: B017, PT011
        pass


def test_what_is_well_comes_through_whole(client, page, reached):
    upload = "/anywhere/upload.png"
    page.upload_file_set.add(upload)
    bodies = [
        ("/gradio_api/queue/join", join([{"path": upload, "meta": MARK}, *WELL[1:]])),
        ("/gradio_api/queue/join", join([None, "\U0001f600 \\ud800", *WELL[2:]])),
        ("/gradio_api/queue/join", join([1.0, None], 3)),
        ("/gradio_api/call/double", {"data": [1.0, {"x": {"path": upload, "meta": MARK}}]}),
        ("/gradio_api/call/v2/double", {"number": 2}),
        ("/gradio_api/cancel", {"session_hash": "s", "fn_index": 0, "event_id": "e"}),
    ]
    for path, body in bodies:
        sent = json.dumps(body).encode()  # with each character beyond ASCII as an escape
        assert client.post(path, content=sent).status_code == 200, path
    assert [(path, json.loads(body)) for path, body in reached] == bodies
    content = bytes(5 << 20)
    sent = client.post("/gradio_api/upload", files={"files": ("x.png", content)})
    assert sent.status_code == 200
    assert reached[-1] == ("/gradio_api/upload", sent.request.content)
    assert content in sent.request.content
    assert client.get(f"/gradio_api/file={upload}").status_code == 200
    assert client.get("/run/key").status_code == 200


@pytest.mark.parametrize("path", ["/run/key", "/trace/key/pi0", "/arrays/key/pi0/chunk"])
def test_one_address_has_few_large_answers_made_at_a_time(page, path):
    """Each lies in memory until it is read; others have theirs meanwhile."""
    begun, over = threading.Semaphore(0), threading.Event()

    async def inner(scope, receive, send):
        begun.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while not over.is_set():
                    await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = door.Guard(inner, page, Hosts("127.0.0.1"))

    def ask(address):
        client = TestClient(guard, "http://127.0.0.1:7860", client=(address, 50000))
        return client.get(path).status_code

    with ThreadPoolExecutor() as pool:
        first = [pool.submit(ask, "203.0.113.7") for _ in range(shares.DOWNLOADS.each)]
        for _ in first:
            assert begun.acquire(timeout=30)
        assert ask("203.0.113.7") == 429
        other = pool.submit(ask, "203.0.113.8")
        assert begun.acquire(timeout=30)
        over.set()
        assert [one.result() for one in (*first, other)] == [200] * (len(first) + 1)
    assert ask("203.0.113.7") == 200


def test_who_asks_most_waits_before_anything_is_read(page, monkeypatch):
    monkeypatch.setattr(shares, "CALLS_AT_ONCE", 2)
    monkeypatch.setattr(shares, "LATEST_S", 0.0)

    async def inner(scope, receive, send):
        await PlainTextResponse("well")(scope, receive, send)

    guard = door.Guard(inner, page, Hosts("127.0.0.1"))

    def ask(address):
        client = TestClient(guard, "http://127.0.0.1:7860", client=(address, 50000))
        return client.post("/gradio_api/queue/join", json=join(WELL)).status_code

    assert [ask("203.0.113.7") for _ in range(3)] == [200, 200, 429]
    assert [ask("203.0.113.8"), ask("127.0.0.1")] == [200, 200]


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"a": 1},
        "text",
        5,
        True,
        [["a"]],
        {"values": [[]]},
        {"values": [1e400]},
        {"values": [10**400]},
        {"values": [None]},
        1e400,
        float("nan"),
        10**400,
    ],
)
def test_a_component_s_value_is_of_its_kind(client, reached, place, value):
    taken = {
        1: str,
        2: str | int | float,
        3: list,
        4: list,
        5: int | float,
        6: bool,
        7: str | dict,
    }
    well = isinstance(value, taken.get(place, ())) and not (
        (isinstance(value, bool) and place != 6)
        or (isinstance(value, list) and value != ["a"])
        or (isinstance(value, int | float) and not abs(value) < 1e300)
    )
    given = [value if i == place else one for i, one in enumerate(WELL)]
    body = json.dumps(join(given)).encode()
    answer = client.post("/gradio_api/queue/join", content=body)
    assert answer.status_code == (200 if well else 422 if place else answer.status_code)
    assert bool(reached) == (answer.status_code == 200)


REFUSED = {
    "not an object": (b"[]", 400),
    "no JSON": (b"\xff", 400),
    "half a character": (json.dumps(join([None, "\ud800", *WELL[2:]])).encode(), 400),
    "half a name": (json.dumps(join(WELL) | {"\ud800": 1}).encode(), 400),
    "another encoding": (json.dumps(join(WELL)).encode("utf-16"), 400),
    "empty": (b"", 400),
    "too deep": (b'{"data": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
    "far too deep": (b"[" * 19_000, 400),
    "too many values": (b'{"data": [' + b"1," * 20_000 + b"1]}", 413),
    "too long": (b" " * (5 << 20), 413),
    "a number of thousands of digits": (b'{"data": ' + b"9" * 5000 + b"}", 400),
    "no function": (json.dumps(join(WELL, 99)).encode(), 404),
    "no number": (json.dumps(join(WELL, "0")).encode(), 404),
    "true for a number": (json.dumps(join(WELL, True)).encode(), 404),
    "too few values": (json.dumps(join(WELL[1:])).encode(), 422),
    "no values": (json.dumps({"fn_index": 0}).encode(), 422),
    "a field that is none": (json.dumps(join(WELL, batched=True)).encode(), 422),
    "a text longer than its field": (
        json.dumps(join([None, "a" * 1001, *WELL[2:]])).encode(),
        422,
    ),
    "a session that is no text": (json.dumps(join(WELL) | {"session_hash": [1]}).encode(), 422),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("honest", [True, False], ids=["length given", "in pieces"])
def test_what_is_not_well_stays_out(client, reached, name, honest):
    body, status = REFUSED[name]
    content = body if honest else iter([body[:7], body[7:]])
    answer = client.post("/gradio_api/queue/join", content=content)
    assert answer.status_code == status
    assert reached == []


@pytest.mark.parametrize("event", [None, {}, [], "x", {"index": 0}])
def test_who_clicks_says_what(client, reached, event):
    for number in (1, 2):
        answer = client.post("/gradio_api/queue/join", json=join([], number, event_data=event))
        assert answer.status_code == (200 if number == 2 and isinstance(event, dict) else 422)
    whole = join([], 1, event_data={"index": 0, "value": "a"})
    assert client.post("/gradio_api/queue/join", json=whole).status_code == 200
    assert len(reached) == 1 + isinstance(event, dict)


def test_what_does_not_come_to_its_end_is_given_up():
    """A message as a whole, an upload after a pause, or as a whole; who leaves afterwards has
    time."""
    begun = {"type": "http.request", "body": b"{", "more_body": True}

    def pieces(*parts):
        rest = list(parts)

        async def receive():
            return rest.pop(0) if rest else await asyncio.Event().wait()

        return receive

    async def visit():
        with pytest.raises(Refused, match="did not come to its end") as refused:
            await messages.read(pieces(begun), limit_s=0)
        assert refused.value.status == 408
        upload = messages.in_time(pieces(begun), limit_s=0)
        assert await upload() == begun
        with pytest.raises(HTTPException, match="408"):
            await upload()
        upload = messages.in_time(pieces(begun), all_s=-1)
        with pytest.raises(HTTPException, match="too long"):
            await upload()
        end, left = begun | {"more_body": False}, {"type": "http.disconnect"}
        upload = messages.in_time(pieces(begun, end, left), limit_s=0)
        assert [await upload() for _ in range(3)] == [begun, end, left]

    with ThreadPoolExecutor() as threads:  # another test's browser has a loop in this one
        threads.submit(asyncio.run, visit()).result()


@pytest.mark.parametrize(
    "body", [{"data": []}, {"data": [1.0, None], "fn_index": 0}, {}, {"number": 1.0, "other": 2}]
)
def test_an_endpoint_takes_its_own_values_alone(client, reached, body):
    assert client.post("/gradio_api/call/double", json=body).status_code == 422
    assert client.post("/gradio_api/call/v2/double", json=body).status_code == 422
    assert reached == []


@pytest.mark.parametrize("path", ["picture.png", "folder", "made.txt"])
@pytest.mark.parametrize("how", ["plain", "dots", "slashes", "unmarked", "inside"])
def test_only_files_that_were_handed_out_are_named(client, page, reached, tmp_path, path, how):
    """Not others in the same folder, and not those by another spelling."""
    handed_out = tmp_path / "picture.png"
    handed_out.write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "made.txt").write_text("secret")
    page.upload_file_set.add(str(handed_out))
    path = str(tmp_path / path)
    spelt = {
        "dots": f"{tmp_path}/../{tmp_path.name}/{Path(path).name}",
        "slashes": path.replace("/", "//", 1),
    }
    file = {"path": spelt.get(how, path), "meta": MARK}
    if how == "unmarked":
        del file["meta"]
    bad = how != "plain" or path != str(handed_out)
    given = [file, *WELL[1:]]
    if how == "inside":
        bad = path != str(handed_out)
        given = [None, *WELL[1:-2], {"values": [], "x": [[file]]}, None]
    answer = client.post("/gradio_api/queue/join", json=join(given))
    assert answer.status_code == (403 if bad else 200)
    if how in ("plain", "slashes"):  # the client takes dots out by itself
        served = client.get(f"/gradio_api/file={file['path']}")
        assert served.status_code == (403 if bad else 200)
    assert bool(reached) == (not bad)


@pytest.mark.parametrize(
    "further",
    [{"is_stream": True}, {"meta": {"_type": "x"}}, {"meta": None}, {"meta": 5}, {"data": "x"}],
)
def test_a_file_is_nothing_but_a_file(client, page, reached, further):
    page.upload_file_set.add("/x.png")
    file = {"path": "/x.png", "meta": MARK} | further
    answer = client.post("/gradio_api/queue/join", json=join([file, *WELL[1:]]))
    assert answer.status_code == 403
    assert reached == []


def test_a_message_names_few_files(client, page):
    page.upload_file_set.add("/x.png")
    files = {str(i): {"path": "/x.png", "meta": MARK} for i in range(MAX_PICTURES + 1)}
    body = join([1.0, files], 3)
    assert client.post("/gradio_api/queue/join", json=body).status_code == 413
    del files["0"]
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200


@pytest.mark.parametrize("number", [0, 1])
def test_a_long_path_takes_no_longer_than_a_short_one(client, tmp_path, number):
    """By the process's own time, as a ratio: resolving such a path took seconds."""

    def cpu_s(path):
        file = {"path": path, "meta": MARK}
        given = [file, *WELL[1:]] if number == 0 else [1.0, {"x": file}]
        began = time.process_time()
        for _ in range(20):
            body = join(given, number)
            assert client.post("/gradio_api/queue/join", json=body).status_code == 403
        return time.process_time() - began

    folder = os.path.join(tmp_path, "")
    cpu_s(folder)
    assert cpu_s(folder + "a/" * 200_000) < 10 * cpu_s(folder)


# --- names and websites -------------------------------------------------------------------------

HERE = {"localhost", "localhost:7860", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST.:7860"}
NAMED = {"pi0.example.org", "Pi0.Example.org:443"}
ADDRESSES = {"10.1.2.3:7860", "[fe80::1]:7860", "127.0.0.2:7860"}
ELSEWHERE = {
    "",
    "evil.example",
    "x.localhost:7860",
    "localhost.evil.example",
    "[::1",
    "127.0.0.1.nip.io",
    "localhost:7860.evil.example",
    "evil.example@localhost",
    "[::1]evil.example",
}


@pytest.mark.parametrize(
    ("host", "names", "well"),
    [
        ("127.0.0.1", [], HERE),
        ("::1", [], HERE),
        ("localhost", ["pi0.example.org"], HERE | NAMED),
        ("127.0.0.2", [], HERE | {"127.0.0.2:7860"}),
        ("0.0.0.0", [], HERE | ADDRESSES),
        ("::", ["pi0.example.org"], HERE | ADDRESSES | NAMED),
    ],
)
def test_a_server_is_reached_under_its_own_names(host, names, well):
    """A name that somebody else lets resolve here is none of them."""
    hosts = Hosts(host, names)
    for asked in HERE | NAMED | ADDRESSES | ELSEWHERE:
        for field in ("host", "x-forwarded-host"):
            given = Headers({"host": "localhost"} | {field: asked})
            with contextlib.ExitStack() as refused:
                if asked not in well and not (field != "host" and not asked):
                    refused.enter_context(pytest.raises(Refused))
                hosts.check(given, changes=False)


def test_a_space_is_reached_under_its_name(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "somebody-pi0.hf.space")
    hosts = Hosts("0.0.0.0")
    for origin in ({}, {"origin": "https://somebody-pi0.hf.space"}):
        hosts.check(Headers({"host": "somebody-pi0.hf.space"} | origin), changes=True)
    with pytest.raises(Refused):
        hosts.check(Headers({"host": "another-pi0.hf.space"}), changes=False)
    assert "https://huggingface.co" in headers.framed_by()


@pytest.mark.parametrize(
    ("origin", "further", "well"),
    [
        (None, {}, True),  # no browser
        ("http://127.0.0.1:7860", {}, True),
        ("https://pi0.example.org", {}, True),
        ("https://pi0.example.org:8443", {"x-forwarded-host": "pi0.example.org"}, True),
        ("http://127.0.0.1:8888", {}, False),
        ("http://127.0.0.1", {}, False),
        ("http://localhost:7860", {}, False),
        ("https://evil.example", {}, False),
        ("https://evil.example", {"x-forwarded-host": "evil.example"}, False),
        ("null", {}, False),
        ("", {}, False),
        ("http://[", {}, False),
    ],
)
def test_another_website_s_page_changes_nothing(client, reached, origin, further, well):
    given = further | ({} if origin is None else {"origin": origin})
    answer = client.post("/gradio_api/queue/join", json=join(WELL), headers=given)
    assert answer.status_code == (200 if well else 403)
    assert bool(reached) == well


@pytest.fixture(scope="module")
def behind_a_prefix():
    """A whole application of Gradio's, as for a proxy that serves it below /pi0."""

    def make():
        with gr.Blocks(analytics_enabled=False) as page:
            page_of_all_kinds()
        page.root_path = "/pi0"
        around = door.around(page, Hosts("127.0.0.1", ["pi0.example.org"]))
        return App.create_app(page, app_kwargs={"lifespan": around})

    with TestClient(in_a_loop(make), "http://127.0.0.1:7860") as client:
        yield client


@pytest.mark.parametrize("path", ["/config", "/pi0/config"])
def test_behind_a_proxy_with_a_prefix(behind_a_prefix, path):
    """Whether or not the proxy takes the prefix out."""
    forwarded = {"x-forwarded-host": "pi0.example.org", "x-forwarded-proto": "https"}
    answer = behind_a_prefix.get(path, headers=forwarded)
    assert answer.status_code == 200
    assert answer.json()["root"] == "https://pi0.example.org/pi0"
    assert behind_a_prefix.get("/pi0/gradio_api/deep_link").status_code == 404


@pytest.mark.parametrize("path", ["/config", "/robots.txt", "/nothing"])
def test_no_other_website_reads_an_answer(behind_a_prefix, path):
    for origin in ("http://127.0.0.1:7860", "https://evil.example", "null"):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        for method in ("GET", "OPTIONS"):
            answer = behind_a_prefix.request(method, path, headers=asked)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]


def test_whatever_gradio_says_no_other_website_may_read(page):
    async def inner(scope, receive, send):
        allows = [(b"access-control-allow-origin", b"*"), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": allows})
        await send({"type": "http.response.body", "body": b""})

    answer = TestClient(door.Guard(inner, page, Hosts("127.0.0.1")), "http://127.0.0.1").get("/")
    assert answer.headers["x-own"] == "1"
    assert "access-control-allow-origin" not in answer.headers


def test_a_visitor_s_file_does_not_act_as_a_page(client, page):
    page.upload_file_set.add("/x.html")
    answer = client.get("/gradio_api/file=/x.html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; sandbox")
