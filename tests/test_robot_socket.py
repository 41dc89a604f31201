"""Robots connect: openpi's stock client, others' dialects, and whoever sends something else."""

import contextlib
import dataclasses
import socket
import subprocess
import sys
import urllib.request

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from playground.robots import builtin
from playground.serving import robot_messages
from playground.serving.robot_socket import KIND, MAX_CONNECTIONS, VLLM_PATH, RobotServer, metadata
from playground.serving.worker import Worker
from playground.tabletop.robot import PolicyServer, drive
from tests.conftest import ROOT
from tests.support.stock import StockClient
from tests.support.traces import policy_info

LIMIT_S = 120
ROBOTS = {robot.name: robot for robot in builtin.OBSERVED.values()}
HORIZON = 8


# --- what runs inside the worker's process ------------------------------------------------------


class Echo:
    """Answers with what it was given: actions [1, H, D] are the state, the mean of each picture's
    red channel, the seed, the length of the prompt, and zeros."""

    def __init__(self, name, robot):
        self.robot = robot
        self.info = policy_info("pi0", robot.actions, horizon=HORIZON, hz=robot.control_hz)
        fields = {"name": name, "robot": robot.name, "slots": robot.slots("pi0")}
        fields |= {"default_prompt": None, "state": robot.state}
        self.info = dataclasses.replace(self.info, **fields)

    def chunk(self, raw, options):
        if raw.prompt == "garbled":
            return None, "expected 100 coefficients, found 7"
        if raw.prompt == "break":
            raise RuntimeError("a secret in /etc/passwd")
        cameras = [raw.images[s.name][..., 0].mean() for s in self.info.slots if s.camera]
        shown = [*raw.state, *cameras, options.seed, len(raw.prompt)]
        width = len(self.info.actions)
        rows = np.resize(np.array(shown, np.float32), (HORIZON, len(shown)))
        return np.pad(rows, [(0, 0), (0, width)])[None], None


def echoes():
    return {name: Echo(name, robot) for name, robot in ROBOTS.items()}


# --- what the tests share -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    kinds = {KIND: "playground.serving.robot_job:chunk"}
    with Worker(f"{__name__}:echoes", {}, kinds=kinds) as worker:
        server = RobotServer(worker, ROBOTS, "127.0.0.1", 0)
        assert server.ready.wait(LIMIT_S)
        yield server
        server.close()


def url(server, path=""):
    return f"ws://127.0.0.1:{server.port}{path}"


@pytest.fixture
def robot(server):
    """Connects a robot to a policy."""
    opened = []

    def robot(path="/tabletop"):
        opened.append(PolicyServer(url(server, path)))
        return opened[-1]

    yield robot
    for connection in opened:
        connection.close()


def observation(name, prompt="do it"):
    """What openpi's clients of this robot send, with pictures of one red level each."""
    robot = ROBOTS[name]
    state = np.linspace(0.1, 0.8, len(robot.state)).astype(np.float32)
    sizes = {"droid": (7, 1)}.get(name, (len(state),))
    parts = np.split(state, np.cumsum(sizes)[:-1])
    found = dict(zip(robot.state_keys, parts, strict=True)) | {"prompt": prompt}
    for level, slot in enumerate(slot for slot in robot.slots("pi0") if slot.camera):
        picture = np.full((24, 32, 3), 10 * (level + 1), np.uint8)
        picture = np.moveaxis(picture, -1, 0) if name == "aloha" else picture
        found[robot.camera_key.format(slot.camera)] = picture
    return found


def shown(name, seed=0, prompt="do it"):
    """What `Echo` makes of it."""
    robot = ROBOTS[name]
    cameras = sum(bool(slot.camera) for slot in robot.slots("pi0"))
    levels = [10 * (i + 1) for i in range(cameras)]
    return [*np.linspace(0.1, 0.8, len(robot.state)), *levels, seed, len(prompt)]


def assert_shown(actions, name, seed=0):
    expected = shown(name, seed)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions[..., : len(expected)], np.resize(expected, (
        *actions.shape[:-1], len(expected))), rtol=1e-6)  # fmt: skip


# --- the stock client ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROBOTS)
def test_the_stock_client_gets_chunks(server, stock_python, name):
    with StockClient(stock_python, url(server, f"/{name}")) as client:
        first, second = client.infer(observation(name)), client.infer(observation(name))
        refused = client.infer({"prompt": "do it"})
    assert first.keys() == {"actions", "policy_timing/infer_ms", "server_timing/infer_ms"}
    assert second.keys() == first.keys() | {"server_timing/prev_total_ms"}
    for seed, reply in enumerate((first, second)):
        assert reply["actions"].shape[0] == HORIZON
        assert_shown(reply["actions"], name, seed)
    assert "the observation lacks" in refused["error"].item()
    if name == "aloha":
        assert client.metadata["reset_pose"] == [0, -1.5, 1.5, 0, 0, 0]
    if name == "droid":
        assert client.metadata == metadata(Echo(name, ROBOTS[name]).info, ROBOTS[name])


@pytest.mark.parametrize("name", ROBOTS)
def test_the_stock_broker_takes_a_chunk_step_by_step(server, stock_python, name):
    with StockClient(stock_python, url(server, f"/{name}"), broker=3) as client:
        steps = [client.infer(observation(name))["actions"] for _ in range(4)]
    assert steps[0].ndim == 1
    for step, seed in zip(steps, (0, 0, 0, 1), strict=True):
        assert_shown(step, name, seed)


def bundled():
    from playground.checkpoints.load import open_policy
    from playground.serving.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    return {"pi0_tabletop": open_policy("pi0_tabletop")}


def test_the_simulated_robot_touches_the_cube_through_the_stock_client(stock_python):
    kinds = {KIND: "playground.serving.robot_job:chunk"}
    robots = {"pi0_tabletop": builtin.TABLETOP}
    with Worker(f"{__name__}:bundled", {}, kinds=kinds) as worker:
        server = RobotServer(worker, robots, "127.0.0.1", 0)
        assert server.ready.wait(LIMIT_S)
        with StockClient(stock_python, url(server)) as client:
            outcome, waits = drive(client.infer, "touch the red cube", scene=0)
        assert client.metadata["badge"] == "small bundled policy"
        server.close()
    assert outcome.success, outcome.reason
    assert waits


# --- who may come in ----------------------------------------------------------------------------


def test_nobody_connects_before_the_policies_are_loaded(tmp_path):
    """And a port that is taken is known at once."""
    with Worker(
        "tests.support.scripted:policies_behind", {"door": str(tmp_path / "door")}
    ) as worker:
        server = RobotServer(worker, ROBOTS, "127.0.0.1", 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port)).close()
        server.close()
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            with pytest.raises(OSError, match="in use"):
                RobotServer(worker, ROBOTS, "127.0.0.1", taken)


def test_the_server_says_that_it_is_well_and_who_may_come_in(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz") as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")
    with pytest.raises(ValueError, match="No policy has this path; there are /, aloha, droid"):
        PolicyServer(url(server, "/pi9"))
    with pytest.raises(Exception, match="403"):
        connect(url(server), origin="http://elsewhere.example", proxy=None)


def test_a_key_is_asked_for_where_one_is_set():
    kinds = {KIND: "playground.serving.robot_job:chunk"}
    with Worker(f"{__name__}:echoes", {}, kinds=kinds) as worker:
        server = RobotServer(worker, ROBOTS, "127.0.0.1", 0, key="s3cret")
        assert server.ready.wait(LIMIT_S)
        for wrong in ("", "s3cre", "s3cret2"):
            with pytest.raises(ValueError, match="Give the key"):
                PolicyServer(url(server), wrong)
        robot = PolicyServer(url(server, "/libero"), "s3cret")
        assert_shown(robot.infer(observation("libero"))["actions"], "libero")
        robot.close()
        server.close()


# --- other dialects -----------------------------------------------------------------------------


def test_roboarena_s_requests_and_resets(robot):
    client = robot("/droid")
    assert client.metadata["n_external_cameras"] == 1
    assert client.metadata["action_space"] == "joint_velocity"
    asked = observation("droid") | {"endpoint": "infer", "session_id": "one"}
    counted = dict(asked)  # RoboArena counts external cameras from 0
    counted["observation/exterior_image_0_left"] = counted.pop("observation/exterior_image_1_left")
    for request, seed in ((asked, 0), (counted, 1), (asked | {"session_id": "two"}, 0)):
        assert_shown(client.infer(request)["actions"], "droid", seed)
    with pytest.raises(ValueError, match="reset successful"):  # a text, which is all that it is
        client.infer({"endpoint": "reset"})
    assert_shown(client.infer(asked | {"session_id": "two"})["actions"], "droid", 0)


def test_vllm_omni_s_errors_are_maps_and_end_nothing(robot):
    client = robot(VLLM_PATH)
    first = next(iter(ROBOTS))
    assert client.infer({"endpoint": "reset"}) == {"status": "reset successful"}
    for wrong, words in (({"endpoint": "dance"}, "endpoint is 'dance'"), ({"seed": -1}, "seed is")):
        reply = client.infer(observation(first) | wrong)
        assert reply["type"] == "error"
        assert words in reply["message"]
    assert_shown(client.infer(observation(first) | {"seed": 77})["actions"], first, 77)


# --- whatever else is sent ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": None}, r"lacks \['state'\]"),
        ({"state": np.zeros(3)}, "14"),
        ({"state": np.full(14, np.nan)}, "not a finite number|nan"),
        ({"state": np.array(["x"] * 14)}, "state"),
        ({"images/table": None}, "lacks 'images/table'"),
        ({"images/table": np.zeros((4, 4, 5), np.uint8)}, "an image is"),
        ({"images/table": np.full((4, 4, 3), 7.0)}, "must lie in 0..1"),
        ({"images/eye": np.zeros((4, 4, 3), np.uint8)}, "no cameras"),
        ({"prompt": 5}, "needs a prompt"),
        ({"prompt": "x" * 10_001}, "more than 10,000 characters"),
        ({"prompt": "garbled"}, "did not decode to a chunk: expected 100 coefficients, found 7"),
        ({"prompt": "break"}, "quote job"),
        ({"endpoint": "dance"}, "endpoint is 'dance'"),
        ({"seed": "7"}, "seed is"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(robot, changes, words):
    asked = {k: v for k, v in (observation("tabletop") | changes).items() if v is not None}
    client = robot()
    with pytest.raises(ValueError, match=words) as refused:
        client.infer(asked)
    said = str(refused.value)
    assert "Traceback" not in said
    assert "/etc" not in said
    assert str(ROOT) not in said
    with pytest.raises(ConnectionClosedError) as closed:
        client.infer(observation("tabletop"))
    assert closed.value.rcvd.code == 1011
    assert_shown(robot().infer(observation("tabletop"))["actions"], "tabletop")  # nobody else minds


def test_a_message_that_is_too_large_ends_its_connection_alone(robot, server):
    other = robot()
    with connect(url(server, "/tabletop"), max_size=None, compression=None, proxy=None) as client:
        client.recv()
        client.send(bytes(robot_messages.MAX_BYTES + 1))
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
        assert closed.value.rcvd.code == 1009
    assert_shown(other.infer(observation("tabletop"))["actions"], "tabletop")


def marked(**fields):
    return msgpack.packb({k.encode(): v for k, v in fields.items()})


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\xc1",
        b"\x80\x04N.",  # a pickle
        b"\x91" * 5000,  # lists in lists
        msgpack.packb([[[]] * 30] * 40_000),  # 1.3 MB that take 84
        msgpack.packb([0] * 70_000),
        marked(__ndarray__=True),
        marked(__ndarray__=True, data=b"", dtype="|O", shape=[0]),
        marked(__ndarray__=True, data=bytes(8), dtype="c8", shape=[1]),
        marked(__ndarray__=True, data=bytes(8), dtype="i4,f4", shape=[1]),
        marked(__ndarray__=True, data=bytes(4), dtype="<f4", shape=[1 << 62]),
        marked(__ndarray__=True, data=bytes(4), dtype="<f4", shape=[-1]),
        marked(__ndarray__=True, data=bytes(4), dtype="<f4", shape=[True]),
        marked(__ndarray__=True, data=bytes(4), dtype="<f4", shape=[1] * 40),
        marked(__ndarray__=True, data=bytes(4), dtype=["<f4"], shape=[1]),
        marked(__ndarray__=True, data="text", dtype="<f4", shape=[1]),
        marked(__npgeneric__=True, data=[1], dtype="<f4"),
        marked(__npgeneric__=True, data="x", dtype="<f4"),
        msgpack.packb({"a": 1})[:-1],
        msgpack.packb(1) * 2,
    ],
)
def test_what_is_no_message_is_a_value_error(sent):
    with pytest.raises(ValueError, match="not a msgpack message"):
        robot_messages.unpack(sent)


ARRAYS = st_np.arrays(
    st.one_of(
        st_np.boolean_dtypes(), st_np.integer_dtypes(), st_np.floating_dtypes(endianness="?")
    ),
    st_np.array_shapes(min_dims=0, min_side=0, max_dims=4),
)


@given(ARRAYS)
def test_arrays_cross_bit_for_bit(array):
    back = robot_messages.unpack(robot_messages.pack({"x": array, "y": array[..., None]}))["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@settings(max_examples=300)
@given(st.data())
def test_damaged_messages_are_value_errors_or_messages(data):
    sent = bytearray(robot_messages.pack(observation("droid")))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sent)))
    for damaged in (bytes(sent), bytes(sent[:cut])):
        with contextlib.suppress(ValueError):
            robot_messages.unpack(damaged)


def test_damaged_requests_disturb_nobody(robot, server):
    """Each is refused in a sentence, or answered if the damage spared its sense."""
    rng = np.random.default_rng(0)
    whole = robot_messages.pack(observation("tabletop"))
    other = robot()
    for turn in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, 300, 3):
            damaged[place] = rng.integers(256)
        with connect(url(server, "/tabletop"), compression=None, proxy=None) as client:
            client.recv()
            client.send(bytes(damaged[: rng.integers(1, len(whole))] if turn % 2 else damaged))
            reply = client.recv()
        if isinstance(reply, str):
            assert "Traceback" not in reply
            assert "Something went wrong" not in reply
    assert_shown(other.infer(observation("tabletop"))["actions"], "tabletop")


def test_more_robots_than_there_are_places_are_turned_away(server, robot):
    held = [robot() for _ in range(MAX_CONNECTIONS)]
    with connect(url(server), compression=None, proxy=None) as late:
        with pytest.raises(ConnectionClosedError) as closed:
            late.recv(timeout=LIMIT_S)
        assert closed.value.rcvd.code == 1013
    assert_shown(held[-1].infer(observation("tabletop"))["actions"], "tabletop")


def test_the_simulated_robot_says_why_there_is_no_episode(server):
    command = [sys.executable, "-m", "playground.tabletop.robot", "--connect", url(server, "/pi9")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert "no episode: " in done.stderr
    assert "No policy has this path" in done.stderr
