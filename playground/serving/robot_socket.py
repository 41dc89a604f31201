"""Robots connect: the websocket protocol of openpi's policy server, on a port of its own.

    server = RobotServer(worker, robots, "127.0.0.1", 8000, key="")
    ...
    server.close()

Stock clients of openpi, RoboArena and vLLM-Omni get chunks from whatever policies the worker has. A
robot's request is urgent: it waits for no visitor. Each connection has a thread, which blocks in
the worker and not in anybody else's way.

    /                               the first policy; /NAME a policy by its name
    /v1/realtime/robot/openpi       the first policy, errors and resets as vLLM-Omni sends them
    /healthz                        GET: 200 "OK"

The server speaks first: a binary frame with the policy's metadata. Then each binary frame is an
observation, as `playground.robots.conversion.from_openpi` takes it, and is answered by a binary
frame with the chunk; `endpoint` may be "infer" or "reset", `seed` sets the noise. An error is a
text frame with one sentence, and the connection ends; the log has the rest under the job's id.

Sources: openpi 15a9616 (`serving/websocket_policy_server.py`), RoboArena's and vLLM-Omni's protocol
descriptions.
"""

import dataclasses
import hmac
import http
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from playground.robots.builtin import DROID
from playground.robots.robot import Robot
from playground.serving import robot_messages, robot_request
from playground.serving.events import Failed, Result
from playground.serving.queue import Busy
from playground.serving.robot_job import Chunk, ChunkRequest
from playground.serving.robot_traffic import Exchange, Traffic
from playground.serving.worker import Down, Worker
from playground.trace import Options, PolicyInfo, RawObservation

KIND = "chunk"  # of the worker's jobs, see `playground.serving.robot_job`
PORT = 8000  # openpi's
VLLM_PATH = "/v1/realtime/robot/openpi"
MAX_CONNECTIONS = 16
_WARM_UP_WORDS = (1, 8, 16, 24)
_LEAST_S = 0.005  # between two requests of one connection: no robot asks 200 times a second
_MAX_ERROR = 500  # letters of a sentence
_MAX_SEED = 2**31
_RESET = "reset successful"
_INTERNAL_ERROR = 1011  # RFC 6455, what openpi closes with
_ALOHA_JOINTS = 6

_logger = logging.getLogger(__name__)


class RobotServer:
    """Listens once the policies are loaded and warm; until then connections are refused, which
    openpi's clients take as a reason to try again.

    worker: with `playground.serving.robot_job.chunk` as its kind KIND
    robots: by policy
    key: what `Authorization: Api-Key` has to say; "" lets everybody in
    traffic: takes what the robots send and get

    Raises OSError if the port cannot be had. `ready` is set once it listens.
    """

    def __init__(
        self,
        worker: Worker,
        robots: Mapping[str, Robot],
        host: str,
        port: int,
        key: str = "",
        traffic: Traffic | None = None,
    ):
        self._worker, self._robots, self._key = worker, dict(robots), key
        self._traffic = Traffic() if traffic is None else traffic
        self._infos: dict[str, PolicyInfo] = {}
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        self.ready = threading.Event()
        self._socket = bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._lock = threading.Lock()
        self._closed = False
        self._server: Server | None = None
        threading.Thread(target=self._run, name="robots", daemon=True).start()

    def close(self) -> None:
        """Ends all connections, each after the request that it is at, and listens no more."""
        with self._lock:
            self._closed = True
            server = self._server
        if server is None:
            self._socket.close()
        else:
            server.shutdown()

    def _run(self) -> None:
        try:
            self._infos = self._worker.metadata()
            for name in self._infos:
                self._warm_up(name)
        except Down:
            _logger.warning("robots are not served: no policy was loaded")
            return
        with self._lock:
            if self._closed:
                return
            self._socket.listen(MAX_CONNECTIONS)
            self._server = server = serve(
                self._connected,
                sock=self._socket,
                compression=None,
                max_size=robot_messages.MAX_BYTES,
                max_queue=1,
                origins=[None],  # robots send none; a browser's page would
                process_request=self._admit,
                logger=_logger.getChild("websockets"),
            )
        _log("robots may connect", {"port": self.port, "policies": list(self._infos)})
        self.ready.set()
        server.serve_forever()

    def _warm_up(self, name: str) -> None:
        """A robot waits for no compiler: the programs are made before it may connect, those of
        prompts from one word to a long sentence."""
        info, robot = self._infos[name], self._robots[name]
        black = np.zeros((info.image_size, info.image_size, 3), np.uint8)
        images = {slot.name: black for slot in info.slots if slot.camera}
        state = np.array(robot.resting_state, np.float64)
        for words in _WARM_UP_WORDS:
            prompt = " ".join(["cube"] * words)
            observation = RawObservation(robot.name, images, {}, prompt, state)
            try:
                with self._worker.call(KIND, ChunkRequest(name, observation, Options())) as events:
                    for event in events:
                        if isinstance(event, Failed):
                            _logger.warning("warming up %s for robots: %s", name, event.message)
            except Busy:
                return  # then the first request compiles

    # --- who may come in ------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._key and not self._knows(request.headers.get_all("Authorization")):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "Give the key as 'Authorization: Api-Key KEY'.\n"
            )
        if self._policy_of(path) is None:
            names = ", ".join(self._infos)
            return connection.respond(
                http.HTTPStatus.NOT_FOUND, f"No policy has this path; there are /, {names}.\n"
            )
        return None

    def _knows(self, given: list[str]) -> bool:
        expected = f"Api-Key {self._key}".encode()
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), expected)

    def _policy_of(self, path: str) -> str | None:
        name = path.strip("/")
        if not name or path == VLLM_PATH:
            return next(iter(self._infos))
        return name if name in self._infos else None

    # --- a connection ---------------------------------------------------------------------------

    def _connected(self, connection: ServerConnection) -> None:
        if not self._places.acquire(blocking=False):
            connection.close(1013, "too many robots are connected")
            return
        assert connection.request is not None
        path = connection.request.path.partition("?")[0]
        name = self._policy_of(path)
        assert name is not None
        info, robot = self._infos[name], self._robots[name]
        session = _Session(self._worker, info, robot, path == VLLM_PATH, self._traffic)
        _log("robot connected", {"policy": name})
        try:
            session.serve(connection)
        except ConnectionClosed:
            pass
        finally:
            session.end()
            self._places.release()
            _log("robot left", {"policy": name, "requests": session.requests})


def bound(host: str, port: int) -> socket.socket:
    """A socket that has its port and does not listen yet."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """actions: float32 [horizon, action dimensions], robot units; infer_ms: of the policy alone."""

    actions: np.ndarray
    infer_ms: float


class _Session:
    """One robot's connection to one policy."""

    def __init__(
        self, worker: Worker, info: PolicyInfo, robot: Robot, vllm: bool, traffic: Traffic
    ):
        self._worker, self._info, self._robot, self._vllm = worker, info, robot, vllm
        self._traffic = traffic
        self._connection = traffic.joined(robot.name, info.name, info.control_hz)
        self._answered: ChunkRequest | None = None
        self._actions = np.empty(0)
        self._seed = 0
        self._id: object = None
        self._previous_ms: float | None = None
        self.requests = 0

    def serve(self, connection: ServerConnection) -> None:
        connection.send(robot_messages.pack(metadata(self._info, self._robot)))
        while True:
            data = connection.recv()
            began = time.monotonic()
            try:
                connection.send(self._answer(data, began))
            except ConnectionClosed:
                raise
            except Exception as error:
                self._refuse(connection, error)
                if not self._vllm:
                    return
            took_s = time.monotonic() - began
            self._previous_ms = took_s * 1e3
            self._keep(began, took_s * 1e3)
            time.sleep(max(0.0, _LEAST_S - took_s))

    def end(self) -> None:
        self._traffic.left(self._connection)

    def _keep(self, began: float, latency_ms: float) -> None:
        """After the robot has its chunk, for who looks."""
        request, self._answered = self._answered, None
        if request is None:
            return
        number, time_s = self._traffic.answered(self._connection, began, latency_ms)
        self._traffic.keep(
            Exchange(
                connection=self._connection,
                number=number,
                time_s=time_s,
                hz=self._info.control_hz,
                observation=request.observation,
                policy=request.policy,
                actions=self._actions,
                seed=request.options.seed,
                latency_ms=latency_ms,
            )
        )

    def _refuse(self, connection: ServerConnection, error: Exception) -> None:
        """Says what to mend, and nothing of what else went wrong."""
        self._answered = None
        message = "Something went wrong inside the server; its log says what."
        if isinstance(error, ValueError | Busy | Down):
            message = _plain(str(error))
        else:
            _logger.error("a robot's request broke", exc_info=error)
        if self._vllm:
            connection.send(robot_messages.pack({"type": "error", "message": message}))
        else:
            connection.send(message)
            connection.close(_INTERNAL_ERROR, "the request failed")

    def _answer(self, data: str | bytes, began: float) -> str | bytes:
        """What is sent back; raises ValueError that says what to mend, Busy or Down."""
        request = robot_request.read(data)
        match request.pop("endpoint", "infer"):
            case "reset":
                self._reset()
                return robot_messages.pack({"status": _RESET}) if self._vllm else _RESET
            case "infer":
                return robot_messages.pack(self._infer(request, began))
            case other:
                raise ValueError(f"endpoint is {other!r:.60}; it is 'infer' or 'reset'")

    def _reset(self) -> None:
        """Another episode: its noise begins anew."""
        self._seed = 0

    def _infer(self, request: dict, began: float) -> dict:
        self.requests += 1
        if (session := request.pop("session_id", None)) != self._id:
            self._id = session
            self._reset()
        options = Options(seed=self._next_seed(request.pop("seed", None)))
        observation = robot_request.observation(request, self._info, self._robot)
        asked = ChunkRequest(self._info.name, observation, options)
        chunk = answer(self._worker, asked, urgent=True)
        self._answered, self._actions = asked, chunk.actions
        timing = {"infer_ms": (time.monotonic() - began) * 1e3}
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        return {
            "actions": chunk.actions,
            "policy_timing": {"infer_ms": chunk.infer_ms},
            "server_timing": timing,
        }

    def _next_seed(self, given) -> int:
        """Of a request that names none, the next one: noise of its own for every chunk."""
        if given is None:
            self._seed = (self._seed + 1) % _MAX_SEED
            return self._seed - 1
        seed = given.item() if isinstance(given, np.generic) else given
        if type(seed) is not int or not 0 <= seed < _MAX_SEED:
            raise ValueError(f"seed is {seed!r:.60}; it is a whole number from 0 to {_MAX_SEED:,}")
        return seed


def answer(worker: Worker, request: ChunkRequest, *, urgent: bool) -> Answered:
    """The chunk. Raises ValueError that says why there is none, Busy or Down."""
    found = None
    with worker.call(KIND, request, urgent=urgent) as events:
        for event in events:
            match event:
                case Result(value=Chunk() as chunk):
                    found = chunk
                case Failed(message=message):
                    raise ValueError(message)
    if found is None:
        raise ValueError("the request was cancelled")
    if found.actions is None:
        raise ValueError(f"the tokens did not decode to a chunk: {found.failure}")
    return Answered(found.actions, found.infer_ms)


def metadata(info: PolicyInfo, robot: Robot) -> dict[str, object]:
    """What the server says first. DROID's is RoboArena's configuration and nothing else, since its
    clients take no further fields; openpi's ALOHA clients move to `reset_pose`."""
    if robot.name == DROID.name:
        cameras = [slot.camera for slot in info.slots if slot.camera]
        velocity = any(dimension.meaning == "velocity" for dimension in info.actions)
        return {
            "image_resolution": [info.image_size, info.image_size],
            "n_external_cameras": sum("exterior" in camera for camera in cameras),
            "needs_wrist_camera": any("wrist" in camera for camera in cameras),
            "needs_stereo_camera": False,
            "needs_session_id": False,
            "action_space": "joint_velocity" if velocity else "joint_position",
        }
    found = {
        "policy": info.name,
        "badge": info.badge,
        "robot": robot.name,
        "control_hz": info.control_hz,
        "action_horizon": info.horizon,
        "action_dim": len(info.actions),
    }
    if robot.name == "aloha":
        found["reset_pose"] = [float(angle) for angle in robot.resting_state[:_ALOHA_JOINTS]]
    return found


def _plain(text: str) -> str:
    """Text that every websocket takes: lone surrogates become "?"."""
    return text[:_MAX_ERROR].encode("utf-8", "replace").decode("utf-8")


def _log(what: str, fields: dict) -> None:
    """One JSON line; no prompt, picture or address in any."""
    _logger.info("%s", json.dumps({"event": what, **fields}))
