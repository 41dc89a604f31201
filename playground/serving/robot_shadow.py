"""Shadow mode: robots get their own policy server's answers, and our policies answer beside it.

    shadow = Shadow(worker, robots, "127.0.0.1", 8000, "ws://robot-server:8000", traffic)
    ...
    shadow.close()

A process of its own (`playground.serving.robot_relay`) passes the frames on. This side reads the
copies that it hands out, asks every policy that takes the observation, and keeps both answers in
the traffic. It is never in the robot's way: it may be slow, lose its worker, or end.

Our policies are asked about the newest observation of each robot, after the visitors who wait.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import numpy as np

from playground.robots.robot import Robot
from playground.serving import robot_messages, robot_relay, robot_request
from playground.serving.queue import Busy
from playground.serving.robot_job import ChunkRequest
from playground.serving.robot_socket import MAX_CONNECTIONS, answer, bound
from playground.serving.robot_traffic import Exchange, Traffic
from playground.serving.worker import Down, Worker
from playground.trace import Options, PolicyInfo, RawObservation

_logger = logging.getLogger(__name__)


class Shadow:
    """Listens from the start: robots need not wait for our policies.

    worker: with `playground.serving.robot_job.chunk` as its kind KIND
    robots: by policy
    url: the robots' own policy server
    traffic: takes what the robots send and get

    Raises OSError if the port cannot be had.
    """

    def __init__(
        self,
        worker: Worker,
        robots: Mapping[str, Robot],
        host: str,
        port: int,
        url: str,
        traffic: Traffic,
    ):
        self._worker, self._robots, self._traffic = worker, dict(robots), traffic
        self._watched: dict[int, _Watched] = {}  # by the relay's number of the connection
        with bound(host, port) as listening:
            listening.listen(MAX_CONNECTIONS)
            self.port: int = listening.getsockname()[1]
            self._copies, theirs = socket.socketpair()
            with theirs:
                self.process = start_relay(listening, theirs, url)
        self._thread = threading.Thread(target=self._read, name="shadow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more robots are let in, and nothing more is answered beside; those that are connected
        go on with their own server until they leave."""
        with contextlib.suppress(OSError):
            self._copies.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._copies.close()
        for watched in self._watched.values():
            watched.end()

    def _read(self) -> None:
        """Copies, until the relay or this side ends."""
        try:
            with self._copies.makefile("rb") as file:
                while header := file.read(robot_relay.HEADER.size):
                    kind, number, left_out, took_s, *sizes = robot_relay.HEADER.unpack(header)
                    request, reply = (file.read(size) for size in sizes)
                    self._take(kind, number, left_out, took_s, request, reply)
        except Exception:
            _logger.exception("the copies of what robots send broke off; robots go on without us")
        for number in list(self._watched):
            self._end(number)

    def _take(
        self, kind: int, number: int, left_out: int, took_s: float, request: bytes, reply: bytes
    ) -> None:
        if kind == robot_relay.CAME:
            self._watched[number] = _Watched(self._worker, self._robots, self._traffic)
        elif kind == robot_relay.LEFT:
            self._end(number)
        elif number in self._watched:
            self._watched[number].take(request, reply, took_s, left_out)

    def _end(self, number: int) -> None:
        if watched := self._watched.pop(number, None):
            watched.end()


def start_relay(listening: socket.socket, copies: socket.socket, url: str) -> subprocess.Popen:
    """The relay's process. listening: where robots come; copies: where it writes what goes by; url:
    the robots' own server. It gets nothing else of this program."""
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    numbers = (listening.fileno(), copies.fileno())
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "playground.serving.robot_relay", *map(str, numbers), url],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=numbers,
        start_new_session=True,
    )


class _Watched:
    """One robot as its copies show it, with a thread in which our policies answer."""

    def __init__(self, worker: Worker, robots: Mapping[str, Robot], traffic: Traffic):
        self._worker, self._robots, self._traffic = worker, robots, traffic
        self._connection = traffic.joined("", "", 0.0)
        self._changed = threading.Condition()
        self._newest: tuple[int, dict[str, RawObservation]] | None = None
        self._ended = False
        threading.Thread(target=self._answer, daemon=True).start()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._traffic.left(self._connection)

    def take(self, request: bytes, reply: bytes, took_s: float, left_out: int) -> None:
        """An exchange that went by; left_out: of those before it, how many did not reach us."""
        began = time.monotonic() - took_s
        number, time_s = self._traffic.answered(
            self._connection, began, took_s * 1e3, left_out=left_out
        )
        try:
            fitting = self._observations(robot_request.read(request))
            actions = _actions(reply)
        except (ValueError, Down) as error:
            self._traffic.explain(self._connection, str(error))
            return
        observation = next(iter(fitting.values()))
        info = self._worker.metadata()[next(iter(fitting))]
        self._traffic.explain(self._connection, "", observation.robot, info.control_hz)
        self._traffic.keep(
            Exchange(
                connection=self._connection,
                number=number,
                time_s=time_s,
                hz=info.control_hz,
                observation=observation,
                policy="",
                actions=actions,
                seed=None,
                latency_ms=took_s * 1e3,
            )
        )
        with self._changed:
            self._newest = (number, fitting)
            self._changed.notify()

    def _observations(self, request: dict) -> dict[str, RawObservation]:
        """By policy, what it is to be asked. Raises ValueError where no policy takes it or none is
        loaded yet, Down where none will be."""
        found, reasons = {}, []
        try:
            infos = self._worker.metadata(timeout_s=0)
        except TimeoutError as error:
            raise ValueError("our policies are still being loaded") from error
        for name, info in infos.items():
            try:
                found[name] = robot_request.observation(request, info, self._robots[name])
            except ValueError as error:
                reasons.append(_reason(info, error))
        if not found:
            raise ValueError(f"no policy here takes what this robot sends: {'; '.join(reasons)}")
        return found

    def _answer(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._ended)
                if self._ended:
                    return
                assert self._newest is not None
                (number, fitting), self._newest = self._newest, None
            for name, observation in fitting.items():
                self._answer_one(number, name, observation)

    def _answer_one(self, number: int, name: str, observation: RawObservation) -> None:
        asked = ChunkRequest(name, observation, Options(seed=number))
        try:
            chunk = answer(self._worker, asked, urgent=False)
        except (ValueError, Busy, Down) as error:
            self._traffic.explain(self._connection, f"{name} did not answer: {error}")
            return
        self._traffic.add(self._connection, number, {name: chunk.actions})


def _reason(info: PolicyInfo, error: ValueError) -> str:
    return f"{info.name}: {error!s:.200}"


def _actions(reply: bytes) -> np.ndarray:
    """The chunk in a server's reply, float [horizon, dimensions]; raises ValueError."""
    found = robot_messages.unpack(reply)
    actions = found.get("actions") if isinstance(found, dict) else None
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise ValueError("the robot's server sent no chunk [horizon, dimensions] of floats")
    return actions
