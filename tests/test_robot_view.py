"""What the tab "Robot" shows of what robots send, and the way from there into the page."""

import dataclasses
import io
import json

import gradio as gr
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from playground.robots.builtin import ALOHA
from playground.serving import robot_traffic
from playground.serving.robot_traffic import Connected, Exchange, Traffic
from playground.serving.robot_warnings import warnings
from playground.trace import RawObservation, Stats
from playground.ui import robots
from playground.views import robot as view
from playground.views import theme
from tests.support.traces import policy_info
from tests.support.visitor import ROOT

HZ = 50.0
DIMS = len(ALOHA.actions)


def of_aloha(**fields):
    info = policy_info("pi0", ALOHA.actions, horizon=4, hz=HZ)
    about = {"name": "pi0", "robot": "aloha", "slots": ALOHA.slots("pi0"), "state": ALOHA.state}
    return dataclasses.replace(
        info, **(about | {"state_stats": None, "action_stats": None} | fields)
    )


INFOS = {"pi0": of_aloha()}
CONVENTIONS = {"pi0": ALOHA}


def picture(seed, size=48):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def exchange(number=0, time_s=0.0, **fields):
    images = {slot.name: picture(i) for i, slot in enumerate(INFOS["pi0"].slots)}
    given = Exchange(
        connection=3,
        number=number,
        time_s=time_s,
        hz=HZ,
        observation=RawObservation("aloha", images, {}, "lift it", np.full(DIMS, 0.1 * number)),
        policy="pi0",
        actions=np.full((4, DIMS), number, np.float32),
        seed=number,
        latency_ms=20.0,
    )
    return dataclasses.replace(given, **fields)


def seeing(one, **changes):
    """The same request with another observation."""
    observation = dataclasses.replace(one.observation, **changes)
    return dataclasses.replace(one, observation=observation)


def payload(kept, number=None, infos=INFOS):
    found = view.payload([], kept, number, infos, CONVENTIONS)
    return json.loads(json.dumps(found, allow_nan=False))


def test_a_chunk_stands_after_what_was_executed_of_those_before():
    kept = [exchange(0, 0.0), exchange(1, 0.04), exchange(2, 0.06), exchange(3, 9.0)]
    found = payload(kept)
    assert found["numbers"] == [0, 1, 2, 3]
    lines = found["shown"]["lines"]
    # 0.04 s and 0.02 s at 50 Hz are two steps and one; after a pause a chunk has ended by itself.
    assert [(line["kind"], line["start"]) for line in lines] == [
        ("past", -7), ("past", -5), ("past", -4), ("now", 0),
    ]  # fmt: skip
    values = [theme.unpacked(line["values"]) for line in lines]
    assert [(len(v), v[0, 0]) for v in values] == [(2, 0), (1, 1), (4, 2), (4, 3)]
    assert payload(kept, number=1)["shown"]["number"] == 1
    assert payload(kept, number=99)["shown"]["number"] == 3
    assert payload([])["shown"] is None


def test_in_shadow_mode_the_distance_stands_beside_the_robot_s_own_server():
    beside = {"pi0": np.full((2, DIMS), 1.5, np.float32)}
    kept = [exchange(n, policy="", seed=None, beside=beside if n else {}) for n in range(3)]
    found = payload(kept)
    assert found["shown"]["who"] == "its own server"
    assert found["shown"]["policy"] is None
    assert [line["kind"] for line in found["shown"]["lines"]][-2:] == ["beside", "now"]
    (apart,) = found["apart"]
    assert apart["numbers"] == [1, 2]
    np.testing.assert_allclose(theme.unpacked(apart["values"])[:, 0], [0.5, 0.5])
    assert apart["mean"] == [0.5] * DIMS
    assert apart["dims"][0]["unit"] == "rad"
    assert payload([exchange()])["apart"] is None


def test_a_robot_of_no_policy_here_is_listed_and_not_drawn():
    robot = Connected(7, "", "", 0.0, 5, 1.5, None, "no policy takes it\ud800")
    found = view.payload([robot], [exchange(policy="")], None, {}, {})
    assert found["shown"] is None
    (listed,) = found["robots"]
    assert (listed["robot"], listed["policy"]) == ("a robot", "its own server")
    assert (listed["p50"], listed["period_ms"]) == (None, None)
    json.dumps(found, ensure_ascii=False).encode()


# --- warnings -----------------------------------------------------------------------------------


def test_an_ordinary_request_is_no_reason_to_warn():
    before, now = exchange(0), exchange(1)
    images = {n: np.clip(i + 1, 0, 255) for n, i in before.observation.images.items()}
    assert warnings(seeing(now, images=images), before, INFOS["pi0"], ALOHA) == []
    assert warnings(before, None, INFOS["pi0"], ALOHA) == []


def test_what_looks_wrong_is_said():
    first, second, third = INFOS["pi0"].slots[:3]
    before, now = exchange(0), exchange(1)
    images = dict(now.observation.images)
    fresh = {name: picture(50 + i) for i, name in enumerate(images)}

    def said(one, **changes):
        return warnings(seeing(one, **changes), before, INFOS["pi0"], ALOHA)

    dark = fresh | {first.name: np.full((48, 48, 3), 9, np.uint8)}
    assert said(now, images=dark) == [f"Camera {first.camera} is black."]
    stuck = fresh | {first.name: images[first.name]}
    assert said(now, images=stuck) == [
        f"Camera {first.camera} shows the very picture of the request before."
    ]
    assert said(now, images=stuck, state=before.observation.state) == []  # the robot stood still
    bright = {second.name: np.full((48, 48, 3), 200, np.uint8), third.name: picture(9) // 4}
    before = seeing(before, images=images | bright)
    swapped = {second.name: bright[third.name] + 1, third.name: bright[second.name] + 1}
    assert said(now, images=fresh | swapped) == [
        f"Cameras {second.camera} and {third.camera} seem to have changed places."
    ]
    (changed,) = said(now, images=fresh | {n: p - 1 for n, p in bright.items()}, prompt="drop it")
    assert changed == "The prompt has changed; it was “lift it”."


def test_states_and_chunks_beyond_the_training_data_are_said():
    low, high = (-1.0,) * DIMS, (1.0,) * DIMS
    stats = Stats(mean=(0.0,) * DIMS, std=high, q01=low, q99=high)
    info = of_aloha(normalisation="quantile", state_stats=stats, action_stats=stats)
    state = np.zeros(DIMS)
    state[2] = 3.0
    actions = np.zeros((4, DIMS), np.float32)
    actions[1, 5], actions[3, 0] = 1.15, -1.3
    one = dataclasses.replace(seeing(exchange(), state=state), actions=actions)
    robot = dataclasses.replace(ALOHA, adapt_to_pi=False, offsets=())
    far, beyond = warnings(one, None, info, robot)
    names = [d.name for d in ALOHA.actions]
    assert far.startswith(f"{names[2]} is 3 rad, outside the -1 to 1")
    # A tenth of the range beside it is forgiven: 1.15 of one dimension, not -1.3 of another.
    assert f"in {names[0]}; " in beyond
    # A chunk of offsets is judged as the model counts, from the state on.
    offsets = dataclasses.replace(robot, offsets=(True,) * DIMS)
    from_state = dataclasses.replace(one, actions=np.float32(actions * 0 + state))
    assert len(warnings(from_state, None, info, offsets)) == 1


# --- the tab ------------------------------------------------------------------------------------


class Setups:
    def infos(self):
        return INFOS

    def conventions(self):
        return CONVENTIONS


def test_the_robot_on_show_is_the_one_asked_for_or_the_latest():
    traffic = Traffic()
    watch = robots.Watch(traffic, 8000)
    assert watch.payload(Setups(), None, None)["shown"] is None
    first, second = (traffic.joined("aloha", "pi0", HZ) for _ in range(2))
    for connection in (first, second):
        traffic.keep(exchange(connection, connection=connection))
    found = watch.payload(Setups(), None, None)
    assert (found["watching"], found["link"]) == (second, f"robot/{second}")
    assert watch.payload(Setups(), first, None)["shown"]["number"] == first
    traffic.left(first)  # what is kept of it can still be looked at
    assert watch.payload(Setups(), first, None)["watching"] == first
    assert watch.payload(Setups(), 99, None)["watching"] == second


def test_an_episode_is_downloaded_while_it_is_kept(tmp_path, monkeypatch, capsys):
    traffic = Traffic()
    connection = traffic.joined("aloha", "pi0", HZ)
    sent = [exchange(n, 0.1 * n, connection=connection) for n in range(3)]
    for one in sent:
        traffic.keep(one)
    app = FastAPI()
    app.include_router(robots.routes(traffic))
    client = TestClient(app)
    traffic.left(connection)
    answer = client.get(f"/robot/{connection}")
    assert answer.headers["content-type"] == "application/zip"
    opened = robot_traffic.load(io.BytesIO(answer.content))
    assert opened.hz == HZ
    np.testing.assert_array_equal(opened.actions, np.stack([e.actions for e in sent]))
    assert client.get("/robot/99").status_code == 404
    (tmp_path / "robot-0-episode.zip").write_bytes(answer.content)
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs/robots.md").read_text().partition("```python\nfrom playground")[2]
    exec("from playground" + code.partition("```")[0], {})  # as the docs open it
    assert capsys.readouterr().out.startswith("aloha (3, ")


@dataclasses.dataclass
class Event:
    connection: object
    number: object


def test_no_file_is_no_episode():
    with pytest.raises(ValueError, match="choose the file"):
        robots.opened(robots.Watch(Traffic(), 8000), None)


def test_a_request_that_is_gone_cannot_be_frozen():
    traffic = Traffic()
    traffic.keep(exchange(5))
    watch = robots.Watch(traffic, 8000)
    assert robots.chosen(watch, Event(3, 5)).number == 5
    said_nothing = gr.EventData(None, {})
    for event in (Event(3, 6), Event(None, 5), Event("3", 5), Event(True, 5), said_nothing):
        with pytest.raises(ValueError, match="no longer kept"):
            robots.chosen(watch, event)
