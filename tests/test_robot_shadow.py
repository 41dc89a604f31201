"""Shadow mode: the robot gets what its own server says, whatever becomes of our side."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import time
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from playground.serving import robot_messages, robot_traffic
from playground.serving.robot_shadow import Shadow, start_relay
from playground.serving.robot_socket import KIND
from playground.serving.robot_traffic import Traffic
from playground.serving.worker import Worker
from tests.support.stock import HERE, StockClient
from tests.test_robot_socket import LIMIT_S, ROBOTS, Echo, observation

KINDS = {KIND: "playground.serving.robot_job:chunk"}
STEPS = 5  # of the stand-in's chunk


class Half(Echo):
    """Half a unit more than the state, for each of more steps than the stand-in's."""

    def chunk(self, raw, options):
        return np.tile(raw.state + 0.5, (1, STEPS + 3, 1)), None


def policies():
    return {"aloha": Half("aloha", ROBOTS["aloha"])}


@pytest.fixture(scope="module")
def upstream(stock_python):
    """The port of a policy server that is none of ours."""
    command = [stock_python, HERE / "stock_openpi_server.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def relay(upstream):
    """(its port, our end of its copies, its process)"""
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listening, theirs:
        port = listening.getsockname()[1]
        process = start_relay(listening, theirs, f"ws://127.0.0.1:{upstream}")
    yield port, ours, process
    ours.close()
    assert process.wait(LIMIT_S) == 0


def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def everything(port, frames, path=""):
    """All that a server sends to a client that sends these frames: the frames, then how it closed
    or that it did not."""
    url = f"ws://127.0.0.1:{port}{path}"
    with connect(url, compression=None, max_size=None, proxy=None) as client:
        said = [client.recv(timeout=LIMIT_S)]
        try:
            for frame in frames:
                client.send(frame)
                said.append(client.recv(timeout=LIMIT_S))
            if frames[-1] == BROKEN:
                client.recv(timeout=LIMIT_S)
        except ConnectionClosed as closed:
            said.append((closed.rcvd.code, closed.rcvd.reason))
    return said


ASKED = robot_messages.pack(observation("aloha"))
BROKEN = robot_messages.pack({"prompt": "no state"})
RESET = robot_messages.pack({"endpoint": "reset"})


@pytest.mark.parametrize("frames", [[ASKED, RESET, ASKED], [ASKED, BROKEN], [b"\xc1"]])
def test_the_robot_gets_every_byte_of_its_own_server(relay, upstream, frames):
    direct = everything(upstream, frames, "/some/path?x=1")
    assert everything(relay[0], frames, "/some/path?x=1") == direct
    assert len(direct) > len(frames)
    if BROKEN in frames:
        assert direct[-1][0] == 1011
        assert "Traceback" in direct[-2]  # openpi's manners, passed on like all else


def test_its_server_says_who_may_come_in_and_whether_it_is_well(relay):
    with urllib.request.urlopen(f"http://127.0.0.1:{relay[0]}/healthz") as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")
    for header, value, status in (("Authorization", "Api-Key wrong", 401), ("Origin", "x", 403)):
        url = f"ws://127.0.0.1:{relay[0]}"
        with pytest.raises(InvalidStatus) as refused:
            connect(url, additional_headers={header: value}, proxy=None)
        assert refused.value.response.status_code == status


def test_a_server_that_is_not_up_is_a_refusal(relay):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listening, theirs:
        process = start_relay(listening, theirs, f"ws://127.0.0.1:{port}")
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{listening.getsockname()[1]}", proxy=None)
    assert refused.value.response.status_code == 502
    ours.close()
    assert process.wait(LIMIT_S) == 0


def test_copies_that_nobody_reads_hold_no_robot_up(relay):
    """Nor does the end of the program that reads them: the relay ends with its last robot."""
    port, ours, process = relay
    large = robot_messages.pack(observation("aloha") | {"more": np.zeros(1 << 20, np.uint8)})
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as robot:
        robot.recv()
        for turn in range(40):
            if turn == 30:
                ours.close()  # as when that program is killed
            robot.send(large)
            assert "actions" in robot_messages.unpack(robot.recv(timeout=LIMIT_S))
        until(lambda: refuses(port))
        assert process.poll() is None
        robot.send(ASKED)
        robot.recv(timeout=LIMIT_S)
    assert process.wait(LIMIT_S) == 0


def refuses(port):
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return False
    return True


@pytest.fixture
def shadow(upstream):
    """(the shadow, its traffic) with policies that answer with what they are given."""
    traffic = Traffic()
    with Worker(f"{__name__}:policies", {}, kinds=KINDS) as worker:
        worker.metadata()
        url = f"ws://127.0.0.1:{upstream}"
        shadow = Shadow(worker, ROBOTS, "127.0.0.1", 0, url, traffic)
        yield shadow, traffic, worker
        shadow.close()
        assert shadow.process.wait(LIMIT_S) == 0


def test_our_policies_answer_beside_and_the_difference_has_units(shadow, stock_python):
    served, traffic, _ = shadow
    with StockClient(stock_python, f"ws://127.0.0.1:{served.port}") as client:
        replies = [client.infer(observation("aloha"))["actions"] for _ in range(2)]
        kept = until(lambda: [e for e in traffic.kept() if e.beside])[0]
        (robot,) = traffic.robots()
    assert client.metadata == {"reset_pose": [0.0, -1.5]}
    state = observation("aloha")["state"]
    expected = state + np.arange(STEPS)[:, None]
    for reply in replies:
        np.testing.assert_array_equal(reply, expected)
    assert (robot.robot, robot.policy, robot.problem) == ("aloha", "", "")
    assert kept.seed is None
    np.testing.assert_array_equal(kept.actions, expected)
    assert list(kept.beside) == ["aloha"]
    # Ours says half a unit more than the state, its own server 0, 1, 2, 3 and 4 more.
    np.testing.assert_allclose(robot_traffic.differences(kept)["aloha"], np.full(14, 1.7))
    until(lambda: not traffic.robots())


def test_the_robot_goes_on_when_our_side_is_killed(shadow, stock_python):
    served, traffic, worker = shadow
    with StockClient(stock_python, f"ws://127.0.0.1:{served.port}") as client:

        def asked():
            actions = client.infer(observation("aloha"))["actions"]
            np.testing.assert_array_equal(actions[0], observation("aloha")["state"])

        asked()
        until(lambda: any(e.beside for e in traffic.kept()))
        before = len(traffic.kept())
        os.kill(worker.process(), signal.SIGKILL)
        for _ in range(10):
            asked()

        def compared_again():
            asked()  # a robot goes on asking; what the killed process was given is not made up for
            return any(e.beside for e in traffic.kept()[before:])

        until(compared_again)
        served.close()
        asked()


def test_a_robot_that_no_policy_here_knows_is_served_all_the_same(shadow):
    served, traffic, _ = shadow
    stranger = robot_messages.pack({"state": np.zeros(3), "prompt": "dance"})
    url = f"ws://127.0.0.1:{served.port}"
    with connect(url, compression=None, proxy=None) as robot:
        robot.recv()
        robot.send(stranger)
        assert robot_messages.unpack(robot.recv())["actions"].shape == (STEPS, 3)
        (problem,) = until(lambda: [r.problem for r in traffic.robots() if r.problem])
    assert "no policy here takes what this robot sends" in problem
    assert traffic.kept() == []


# --- what is kept -------------------------------------------------------------------------------


def exchange(number, connection=0, size=8, **fields):
    given = robot_traffic.Exchange(
        connection=connection,
        number=number,
        time_s=0.1 * number,
        hz=50.0,
        observation=robot_traffic.RawObservation(
            "aloha",
            {"base_0_rgb": np.full((size, size, 3), number, np.uint8)},
            {},
            f"prompt {number}",
            np.full(14, float(number)),
        ),
        policy="pi0",
        actions=np.full((4, 14), number, np.float32),
        seed=number,
        latency_ms=20.0,
    )
    return robot_traffic.dataclasses.replace(given, **fields)


def test_what_is_kept_is_bounded_in_number_and_in_bytes():
    traffic = Traffic(most=3)
    for number in range(5):
        traffic.keep(exchange(number))
    assert [e.number for e in traffic.kept()] == [2, 3, 4]
    traffic = Traffic(most_bytes=3 * exchange(0).nbytes)
    for number in range(5):
        traffic.keep(exchange(number))
    assert [e.number for e in traffic.kept()] == [2, 3, 4]
    traffic.add(0, 4, {"other": np.zeros((4, 14), np.float32)})
    assert list(traffic.find(0, 4).beside) == ["other"]
    traffic.keep(exchange(5))  # what was added counts too
    assert [e.number for e in traffic.kept()] == [4, 5]


def test_an_episode_is_saved_and_opened_bit_for_bit():
    beside = {"fast": np.arange(42, dtype=np.float32).reshape(3, 14)}
    found = [exchange(n, size=16) for n in range(2)]  # before its camera changed
    found += [exchange(n, beside=beside if n == 3 else {}, seed=None) for n in range(2, 5)]
    file = io.BytesIO()
    robot_traffic.save(robot_traffic.episode(found), file)
    opened = robot_traffic.load(file)
    assert (opened.robot, opened.hz) == ("aloha", 50.0)
    back = robot_traffic.exchanges(opened, 7)
    assert [e.connection for e in back] == [7, 7, 7]
    for got, sent in zip(back, found[2:], strict=True):
        assert got.observation.prompt == sent.observation.prompt
        np.testing.assert_array_equal(got.observation.state, sent.observation.state)
        np.testing.assert_array_equal(
            got.observation.images["base_0_rgb"], sent.observation.images["base_0_rgb"]
        )
        np.testing.assert_array_equal(got.actions, sent.actions)
        assert got.beside.keys() == sent.beside.keys()
        assert got.seed is None
    np.testing.assert_array_equal(back[1].beside["fast"], beside["fast"])


def test_what_is_no_episode_is_refused():
    whole = robot_traffic.episode([exchange(0), exchange(1)])
    replaced = robot_traffic.dataclasses.replace
    for wrong in (
        exchange(0).observation,
        replaced(whole, actions=whole.actions[:1]),
        replaced(whole, images={"base_0_rgb": whole.states}),
        replaced(whole, seeds=("x", "y")),
        replaced(whole, hz="fast"),
    ):
        file = io.BytesIO()
        robot_traffic.codec.write_archive(wrong, file, "episode.json")
        with pytest.raises(ValueError, match="not a recorded episode"):
            robot_traffic.load(file)
    with pytest.raises(ValueError, match="not a recorded episode"):
        robot_traffic.load(io.BytesIO(b"PK"))
    with pytest.raises(ValueError, match="nothing is kept"):
        robot_traffic.episode([])


def test_an_opened_episode_stands_beside_the_robots():
    traffic = Traffic()
    connection = traffic.joined("aloha", "pi0", 50.0)
    traffic.keep(exchange(0, connection))
    number = traffic.open(robot_traffic.episode([exchange(0), exchange(1)]))
    assert number != connection
    assert [e.number for e in traffic.kept(number)] == [0, 1]
    assert [e.connection for e in traffic.kept()] == [connection]
    traffic.left(connection)
    assert traffic.robots() == []


def test_rates_and_latencies_of_a_robot():
    traffic = Traffic()
    connection = traffic.joined("aloha", "pi0", 50.0)
    now = time.monotonic()
    for number in range(21):
        traffic.answered(connection, now + 0.1 * number, 10.0 + number)
    (robot,) = traffic.robots()
    assert robot.requests == 21
    assert robot.per_s == pytest.approx(10.0)
    assert robot.latency_ms == pytest.approx((20.0, 29.0))
