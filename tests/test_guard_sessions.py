"""What sessions leave in memory: on a small page of our own, behind the guard as the app is."""

import asyncio
import gc
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from gradio.routes import App
from gradio.server_messages import ProcessCompletedMessage
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from playground.ui.guard import door, sessions
from playground.ui.guard.hosts import Hosts
from playground.ui.guard.sessions import Mailboxes
from tests.support.blocks import in_a_loop

MB = 1 << 20


@pytest.fixture(scope="module")
def client():
    """Of a page with an endpoint that answers with as much text as is asked for, and a counter of
    the page's own. As in the app, Gradio sums no calls up."""

    def make():
        with gr.Blocks(analytics_enabled=False) as page:
            count, shown = gr.State(0), gr.Textbox()
            button = gr.Button()
            button.click(
                lambda n: (n + 1, f"{n + 1} clicks"),
                count,
                [count, shown],
                api_visibility="private",
            )

            def repeat(size: int) -> str:
                return chr(65 + size % 26) * size if size >= 0 else "\ud800"

            gr.api(repeat, api_name="repeat", concurrency_limit=None)
        page.queue(default_concurrency_limit=None)
        return App.create_app(page, app_kwargs={"lifespan": door.around(page, Hosts("127.0.0.1"))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(1 << 60))
        made = in_a_loop(make)
    with TestClient(made, "http://127.0.0.1") as client:
        # In the app Gradio's launch does so, once it listens.
        client.get("/gradio_api/startup-events")
        yield client


def join(client, number, data, session):
    body = {"fn_index": number, "data": data, "session_hash": session}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200


def read(client, session):
    """The messages until the last call of the session is complete."""
    answer = client.get(f"/gradio_api/queue/data?session_hash={session}")
    lines = filter(None, answer.text.split("\n"))
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def held(client, number, ask):
    """Bytes that stay after `ask` was called for so many sessions."""
    ask("before")
    gc.collect()
    tracemalloc.start()
    for i in range(number):
        ask(f"session {i}")
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


def test_an_answer_that_was_read_is_gone(client):
    def ask(session):
        join(client, 1, [MB], session)
        *_, completed, _ = read(client, session)
        assert len(completed["output"]["data"][0]) == MB

    assert held(client, 20, ask) < 5 * MB


def test_what_a_message_held_is_gone(client):
    def ask(session):
        join(client, 1, ["x" * 400_000], session)  # no number: Gradio repeats what it can
        read(client, session)

    assert held(client, 20, ask) < 3 * MB


def test_a_state_lasts_from_call_to_call(client):
    """Of each session its own; what else a component was given is not needed for that."""
    for clicks in (1, 2, 3):
        join(client, 0, [None], "one")
        *_, completed, _ = read(client, "one")
        assert completed["output"]["data"][1] == f"{clicks} clicks"
    join(client, 0, [None], "two")
    assert read(client, "two")[-2]["output"]["data"][1] == "1 clicks"
    assert client.app.state_holder["one"].config_values == {}


def test_the_state_of_who_is_here_is_not_pushed_out(client):
    """By ever so many sessions of which no page is open."""
    holder = client.app.state_holder
    asked = []

    async def inner(scope, receive, send):
        asked.append(clicks(client, "here"))
        for number in range(4):
            clicks(client, f"passing by {number}")
        asked.append(clicks(client, "here"))
        await PlainTextResponse("ALIVE")(scope, receive, send)

    guard = door.Guard(inner, client.app.blocks, Hosts("127.0.0.1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, "capacity", 2)
        TestClient(guard, "http://127.0.0.1").get("/gradio_api/heartbeat/here")
    assert asked == ["1 clicks", "2 clicks"]


def clicks(client, session):
    """What the counter of a session says after one more."""
    join(client, 0, [None], session)
    return read(client, session)[-2]["output"]["data"][1]


def test_answers_that_nobody_reads_are_bounded(client):
    """Who has most of them reads that; the others read theirs."""
    join(client, 1, [MB], "patient")
    for i in range(30):
        for _ in range(4):
            join(client, 1, [MB], f"lazy {i}")
    boxes = client.app.get_blocks()._queue.pending_messages_per_session
    join(client, 1, [1], "last")
    read(client, "last")
    assert sum(box.size for box in boxes.values()) <= sessions.MAX_UNREAD
    assert len(read(client, "patient")[-2]["output"]["data"][0]) == MB
    every = [read(client, f"lazy {i}") for i in range(30)]
    lost = [messages for messages in every if "Too much lay unread" in str(messages)]
    assert 0 < len(lost) < 30


def test_a_program_s_answer_is_had_by_the_name_of_its_call(client):
    """And none by a name that no call has."""
    call = client.post("/gradio_api/call/repeat", json={"data": [3]}).json()["event_id"]
    assert client.get(f"/gradio_api/call/repeat/{call[::-1]}").status_code == 404
    assert '["DDD"]' in client.get(f"/gradio_api/call/repeat/{call}").text


# --- mailboxes ----------------------------------------------------------------------------------


def answer(size):
    return ProcessCompletedMessage(output={"data": ["x" * size]}, success=True)


def test_what_cannot_be_sent_is_an_error_to_who_asked(client):
    """And no call that never ends: half of a character, wherever it came from."""
    join(client, 1, [-1], "odd")
    *_, completed, _ = read(client, "odd")
    assert completed["success"] is False
    assert "cannot be sent" in completed["output"]["error"]


def boxes_with(sizes, calls=None, **bounds):
    """calls: becomes the calls that are made, by session."""
    calls = {} if calls is None else calls
    calls |= {session: {"a call"} for session in sizes}
    boxes = Mailboxes(calls, **bounds)
    for session, size in sizes.items():
        boxes[session] = asyncio.Queue()
        boxes[session].put_nowait(answer(size))
    return boxes


def test_a_mailbox_counts_what_lies_in_it():
    boxes = boxes_with({"a": 1000})
    assert 4000 < boxes["a"].size < 4100
    boxes["a"].put_nowait(answer(2000))
    assert 12_000 < boxes["a"].size < 12_200
    boxes["a"].get_nowait()
    assert 8000 < boxes["a"].size < 8100
    boxes["a"].get_nowait()
    assert boxes["a"].size == 0


def test_the_session_with_most_unread_gives_way():
    boxes = boxes_with({"a": 1000, "b": 3000, "c": 2000}, most=30_000)
    boxes["c"].put_nowait(answer(200))
    assert all(boxes["c"].get_nowait().success for _ in range(2))
    for _ in range(2):
        boxes["c"].put_nowait(answer(1000))
    boxes["c"].put_nowait(answer(8000))
    assert [boxes[name].qsize() for name in "abc"] == [1, 1, 3]
    sent = [boxes["c"].get_nowait() for _ in range(3)]
    assert [message.success for message in sent] == [False] * 3
    assert all("lay unread" in message.output["error"] for message in sent)


def test_of_too_many_sessions_the_one_that_nobody_uses_is_forgotten():
    calls: dict[str, set[str]] = {}
    boxes = boxes_with({"read": 1, "old": 1, "used": 1}, calls, sessions=3)
    boxes["read"].readers = 1
    boxes["used"].put_nowait(answer(1))
    boxes.move_to_end("read", last=False)
    boxes["new"] = asyncio.Queue()
    assert set(boxes) == {"read", "used", "new"}
    assert calls.keys() == {"read", "used"}
    boxes["old"].put_nowait(answer(1))  # a call of it that ends now
    assert "old" not in boxes
    boxes["used"].readers = boxes["new"].readers = 1
    boxes["another"] = asyncio.Queue()  # where all are read, one has to go
    assert len(boxes) == 3


def test_a_reader_is_known_while_it_waits():
    async def run():
        boxes = boxes_with({"a": 1})
        await boxes["a"].get()
        waiting = asyncio.create_task(boxes["a"].get())
        await asyncio.sleep(0)
        assert boxes["a"].readers == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert boxes["a"].readers == 0

    in_a_thread(run)


def in_a_thread(run):
    """The browser of other tests has a loop in this one."""
    with ThreadPoolExecutor() as threads:
        threads.submit(asyncio.run, run()).result()
