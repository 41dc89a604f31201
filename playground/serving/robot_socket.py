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
from playground.robots.conversion import from_openpi
from playground.robots.robot import Robot, check_state
from playground.serving import robot_messages
from playground.serving.events import Failed, Result
from playground.serving.queue import Busy
from playground.serving.robot_job import Chunk, ChunkRequest
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
_MAX_PROMPT = 10_000  # characters
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

    Raises OSError if the port cannot be had. `ready` is set once it listens.
    """

    def __init__(
        self, worker: Worker, robots: Mapping[str, Robot], host: str, port: int, key: str = ""
    ):
        self._worker, self._robots, self._key = worker, dict(robots), key
        self._infos: dict[str, PolicyInfo] = {}
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        self.ready = threading.Event()
        self._socket = _bound(host, port)
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
        session = _Session(self._worker, self._infos[name], self._robots[name], path == VLLM_PATH)
        _log("robot connected", {"policy": name})
        try:
            session.serve(connection)
        except ConnectionClosed:
            pass
        finally:
            self._places.release()
            _log("robot left", {"policy": name, "requests": session.requests})


def _bound(host: str, port: int) -> socket.socket:
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


class _Session:
    """One robot's connection to one policy."""

    def __init__(self, worker: Worker, info: PolicyInfo, robot: Robot, vllm: bool):
        self._worker, self._info, self._robot, self._vllm = worker, info, robot, vllm
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
            time.sleep(max(0.0, _LEAST_S - took_s))

    def _refuse(self, connection: ServerConnection, error: Exception) -> None:
        """Says what to mend, and nothing of what else went wrong."""
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
        if isinstance(data, str):
            raise ValueError("an observation is a binary frame of msgpack, not text")
        request = robot_messages.unpack(data)
        if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
            raise ValueError("an observation is a map whose keys are text")
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
        observation = from_openpi(
            self._robot, self._info.family, _renumbered(request, self._robot),
            self._info.default_prompt,
        )  # fmt: skip
        if len(observation.prompt) > _MAX_PROMPT:
            raise ValueError(f"the prompt has more than {_MAX_PROMPT:,} characters")
        state = check_state(self._robot, observation.state)
        observation = dataclasses.replace(observation, state=state)
        chunk = self._chunk(ChunkRequest(self._info.name, observation, options))
        if chunk.actions is None:
            raise ValueError(f"the tokens did not decode to a chunk: {chunk.failure}")
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

    def _chunk(self, request: ChunkRequest) -> Chunk:
        found = None
        with self._worker.call(KIND, request, urgent=True) as events:
            for event in events:
                match event:
                    case Result(value=Chunk() as chunk):
                        found = chunk
                    case Failed(message=message):
                        raise ValueError(message)
        if found is None:
            raise ValueError("the request was cancelled")
        return found


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


def _renumbered(request: dict, robot: Robot) -> dict:
    """RoboArena counts external cameras from 0, DROID from 1: a camera 0 tells which it is."""
    first = "observation/exterior_image_0_left"
    if robot.name != DROID.name or first not in request:
        return request
    renamed = {}
    for key, value in request.items():
        for index in range(3):
            if key.startswith(f"observation/exterior_image_{index}_"):
                key = key.replace(f"image_{index}_", f"image_{index + 1}_")
                break
        renamed[key] = value
    return renamed


def _plain(text: str) -> str:
    """Text that every websocket takes: lone surrogates become "?"."""
    return text[:_MAX_ERROR].encode("utf-8", "replace").decode("utf-8")


def _log(what: str, fields: dict) -> None:
    """One JSON line; no prompt, picture or address in any."""
    _logger.info("%s", json.dumps({"event": what, **fields}))
