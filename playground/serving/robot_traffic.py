"""What robots asked and were answered: who is connected, and the last few hundred requests.

The sockets write here, the page reads. All of it is in memory, bounded in number and in bytes, and
gone with the program; `save` writes an episode that `load` opens again.
"""

import collections
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np

from playground import codec
from playground.trace import RawObservation

MAX_EXCHANGES = 300
MAX_BYTES = 256 << 20
_MEMBER = "episode.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request of a robot and its answer.

    connection, number    whose, and which of its requests, from 0
    time_s                when it came, in s since the program began
    hz                    of the robot's control loop
    observation           as the policy got it, pictures in their own size
    policy                who answered; "" for the robot's own server, see `robot_shadow`
    actions               float32 [horizon, action dimensions], robot units
    seed                  of the chunk's noise; None where the robot's own server drew it
    latency_ms            from the whole request to the whole reply
    beside                by policy, what else was answered to it, as `actions`: in shadow mode
    """

    connection: int
    number: int
    time_s: float
    hz: float
    observation: RawObservation
    policy: str
    actions: np.ndarray
    seed: int | None
    latency_ms: float
    beside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        arrays = [*self.observation.images.values(), self.actions, *self.beside.values()]
        return sum(array.nbytes for array in arrays)


@codec.register
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    """N requests of one robot, in order.

    robot, hz    whose, and of its control loop
    policies     N names of who answered, as in an Exchange
    prompts      N texts
    seeds        N, None where the robot's own server drew the noise
    times_s      float64 [N]; latency_ms: the same
    states       float64 [N, state dimensions], robot units
    images       by slot, uint8 [N, height, width, 3]
    actions      float32 [N, horizon, action dimensions], robot units
    beside       by policy, float32 [N, its horizon, action dimensions]; NaN where it has none
    """

    robot: str
    hz: float
    policies: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    times_s: np.ndarray
    latency_ms: np.ndarray
    states: np.ndarray
    images: dict[str, np.ndarray]
    actions: np.ndarray
    beside: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Connected:
    """A robot at the moment. policy: "" where its own server answers; requests: so far; per_s: of
    the last requests; latency_ms: of the same, median and 95th percentile, None before the first;
    problem: why nothing is shown of what it sends, else ""."""

    connection: int
    robot: str
    policy: str
    hz: float
    requests: int
    per_s: float
    latency_ms: tuple[float, float] | None
    problem: str


class _Robot:
    """What is known of one connection."""

    def __init__(self, robot: str, policy: str, hz: float):
        self.robot, self.policy, self.hz = robot, policy, hz
        self.requests = 0
        self.recent: collections.deque[tuple[float, float]] = collections.deque(maxlen=100)
        self.problem = ""

    def summary(self, connection: int) -> Connected:
        times = [at for at, _ in self.recent]
        span = times[-1] - times[0] if len(times) > 1 else 0.0
        per_s = (len(times) - 1) / span if span else 0.0
        latency = None
        if self.recent:
            values = [ms for _, ms in self.recent]
            latency = (statistics.median(values), float(np.percentile(values, 95)))
        return Connected(
            connection, self.robot, self.policy, self.hz, self.requests, per_s, latency,
            self.problem,
        )  # fmt: skip


class Traffic:
    """Safe from any thread. A robot that has left is forgotten as a connection; its requests stay
    until others take their place."""

    def __init__(self, most: int = MAX_EXCHANGES, most_bytes: int = MAX_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._robots: dict[int, _Robot] = {}
        self._opened: tuple[int, str, list[Exchange]] | None = None
        self._next = 0
        self._exchanges: collections.deque[Exchange] = collections.deque()
        self._bytes = 0
        self.requests = 0  # of all robots so far
        self.connections = 0  # the same

    def joined(self, robot: str, policy: str, hz: float) -> int:
        """A robot has connected; gives the number of its connection."""
        with self._lock:
            number = self._next
            self._next += 1
            self.connections += 1
            self._robots[number] = _Robot(robot, policy, hz)
            return number

    def left(self, connection: int) -> None:
        with self._lock:
            self._robots.pop(connection, None)

    def answered(
        self, connection: int, began: float, latency_ms: float, left_out: int = 0
    ) -> tuple[int, float]:
        """A request was answered; gives its number and its time as an Exchange has them. began:
        when it came, by `time.monotonic`; left_out: requests before it that went by unseen."""
        with self._lock:
            at = began - self._began
            self.requests += 1 + left_out
            if (found := self._robots.get(connection)) is None:
                return 0, at
            found.recent.append((at, latency_ms))
            found.requests += 1 + left_out
            return found.requests - 1, at

    def keep(self, exchange: Exchange) -> None:
        """Keeps it for who looks, in place of the oldest."""
        with self._lock:
            self._exchanges.append(exchange)
            self._bytes += exchange.nbytes
            while len(self._exchanges) > self._most or self._bytes > self._most_bytes:
                self._bytes -= self._exchanges.popleft().nbytes

    def add(self, connection: int, number: int, beside: dict[str, np.ndarray]) -> None:
        """What else was answered to a request, if it is still kept."""
        with self._lock:
            for place, found in enumerate(self._exchanges):
                if (found.connection, found.number) == (connection, number):
                    self._bytes -= found.nbytes
                    found = dataclasses.replace(found, beside=found.beside | beside)
                    self._exchanges[place] = found
                    self._bytes += found.nbytes
                    return

    def explain(self, connection: int, problem: str, robot: str = "", hz: float = 0.0) -> None:
        """Why nothing is shown of a robot, "" where that is over; robot, hz: once they are known
        of one that did not say so when it connected."""
        with self._lock:
            if found := self._robots.get(connection):
                found.problem = problem
                found.robot, found.hz = robot or found.robot, hz or found.hz

    def robots(self) -> list[Connected]:
        with self._lock:
            return [robot.summary(number) for number, robot in self._robots.items()]

    def kept(self, connection: int | None = None) -> list[Exchange]:
        """What is kept of a connection, or of all, oldest first."""
        with self._lock:
            if self._opened and connection == self._opened[0]:
                return list(self._opened[2])
            return [e for e in self._exchanges if connection in (None, e.connection)]

    def find(self, connection: int, number: int) -> Exchange | None:
        return next((e for e in self.kept(connection) if e.number == number), None)

    def open(self, episode: RecordedEpisode) -> int:
        """Shows a recorded episode beside the robots, in place of the one opened before; gives the
        number that stands for its connection."""
        with self._lock:
            self._next += 1
            self._opened = (self._next - 1, episode.robot, exchanges(episode, self._next - 1))
            return self._next - 1

    def opened(self) -> int | None:
        """The number of the opened episode."""
        return self._opened and self._opened[0]


def differences(exchange: Exchange) -> dict[str, np.ndarray]:
    """How far what was answered beside lies from what the robot got: by policy, float64 [action
    dimensions], the mean distance over the steps that both have. A policy with another number of
    dimensions has none."""
    found = {}
    for policy, actions in exchange.beside.items():
        steps = min(len(actions), len(exchange.actions))
        if actions.shape[1:] == exchange.actions.shape[1:]:
            apart = np.float64(actions[:steps]) - exchange.actions[:steps]
            found[policy] = np.abs(apart).mean(axis=0)
    return found


def episode(kept: Sequence[Exchange]) -> RecordedEpisode:
    """Requests of one robot as an episode. Where its cameras or the chunks' shapes changed on the
    way, what came since. Raises ValueError where there is none."""
    if not kept:
        raise ValueError("nothing is kept of this robot; it has not been answered yet")
    alike = itertools.takewhile(lambda e: _shapes(e) == _shapes(kept[-1]), reversed(kept))
    found = list(alike)[::-1]
    beside = {}
    for policy in sorted({policy for e in found for policy in e.beside}):
        none = np.full(next(e.beside[policy].shape for e in found if policy in e.beside), np.nan)
        beside[policy] = np.stack([np.float32(e.beside.get(policy, none)) for e in found])
    last = found[-1].observation
    return RecordedEpisode(
        robot=last.robot,
        hz=found[-1].hz,
        policies=tuple(e.policy for e in found),
        prompts=tuple(e.observation.prompt for e in found),
        seeds=tuple(e.seed for e in found),
        times_s=np.array([e.time_s for e in found]),
        latency_ms=np.array([e.latency_ms for e in found]),
        states=np.stack([np.float64(e.observation.state) for e in found]),
        images={n: np.stack([e.observation.images[n] for e in found]) for n in last.images},
        actions=np.stack([np.float32(e.actions) for e in found]),
        beside=beside,
    )


def _shapes(exchange: Exchange) -> tuple:
    images = {name: image.shape for name, image in exchange.observation.images.items()}
    return images, exchange.observation.state.shape, exchange.actions.shape


def exchanges(episode: RecordedEpisode, connection: int) -> list[Exchange]:
    """The requests of an episode again."""
    found = []
    for i, policy in enumerate(episode.policies):
        images = {name: rows[i] for name, rows in episode.images.items()}
        beside = {name: rows[i] for name, rows in episode.beside.items()}
        found.append(
            Exchange(
                connection=connection,
                number=i,
                time_s=float(episode.times_s[i]),
                hz=episode.hz,
                observation=RawObservation(
                    episode.robot, images, {}, episode.prompts[i], episode.states[i]
                ),
                policy=policy,
                actions=episode.actions[i],
                seed=episode.seeds[i],
                latency_ms=float(episode.latency_ms[i]),
                beside={n: a for n, a in beside.items() if not np.isnan(a).all()},
            )
        )
    return found


def save(episode: RecordedEpisode, file) -> None:
    """Writes an episode to a path or binary file: a ZIP (npz) of arrays and JSON, no pickle."""
    codec.write_archive(episode, file, _MEMBER)


def load(file) -> RecordedEpisode:
    """What `save` wrote; raises ValueError for anything else."""
    try:
        found = codec.read_archive(file, _MEMBER)
    except codec.UNREADABLE as error:
        raise ValueError(f"not a recorded episode: {error}") from error
    if not isinstance(found, RecordedEpisode) or not _is_whole(found):
        raise ValueError("not a recorded episode: its parts do not fit together")
    return found


def _is_whole(episode: RecordedEpisode) -> bool:
    """Whether a file's parts are what `episode` makes: as many of each as of the others."""
    lists = (episode.policies, episode.prompts, episode.seeds)
    if not all(isinstance(one, tuple) for one in lists):
        return False
    if not isinstance(episode.images, dict) or not isinstance(episode.beside, dict):
        return False
    texts = (episode.robot, *episode.policies, *episode.prompts, *episode.images, *episode.beside)
    seeds = all(seed is None or type(seed) is int for seed in episode.seeds)
    axes = [(episode.times_s, 1), (episode.latency_ms, 1), (episode.states, 2)]
    axes += [(episode.actions, 3), *((rows, 3) for rows in episode.beside.values())]
    numbers = all(_is_array(a, n, "f") for a, n in axes)
    pictures = all(_is_array(a, 4, "u") and a.shape[3] == 3 for a in episode.images.values())
    if not (seeds and numbers and pictures and all(isinstance(text, str) for text in texts)):
        return False
    arrays = [*(array for array, _ in axes), *episode.images.values()]
    counts = {*map(len, lists), *map(len, arrays)}
    return len(counts) == 1 and counts != {0} and isinstance(episode.hz, int | float)


def _is_array(value: object, axes: int, kind: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == axes and value.dtype.kind == kind
