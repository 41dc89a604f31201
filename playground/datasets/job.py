"""Recorded episodes as jobs of the worker: what policies predict at frames, and how chunks meet.

The worker's process reads the episode itself: pictures are decoded beside the model, and none
travels through the queue.

H horizon, D the robot's action dimensions.
"""

import dataclasses
import functools
from collections.abc import Generator, Mapping

import numpy as np

from playground import codec
from playground.datasets import open_loop
from playground.datasets.lerobot import Dataset, Episode, open_dataset
from playground.datasets.matching import Choice, Match, match, of_policy
from playground.datasets.open_loop import Asking
from playground.datasets.video import FrameError
from playground.policies import seam as meeting
from playground.serving.events import Phase, PolicyRequest, Result
from playground.trace import Options

_READ_S = 900.0  # files of the Hub may have to come first
_ASK_S = 1200.0  # a batch of another size is a program to compile
MAX_FRAMES = 5000  # of one job; each is a whole run of the policy


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """An episode, and how it is read.

    dataset, revision: as for `open_dataset`, revision "" for none
    public: whether strangers chose it
    opening: stands for one opening of the dataset; what is opened anew is read anew
    episode: its number
    choice: a `matching.Choice` as JSON; slots that a policy does not have are no matter
    """

    dataset: str
    revision: str
    public: bool
    opening: str
    episode: int
    choice: str


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """policies: asked one after the other; frames: where; batch: how many at once; prompt: in place
    of the recorded task, or None."""

    policies: tuple[str, ...]
    recorded: Recorded
    frames: tuple[int, ...]
    batch: int
    prompt: str | None
    options: Options


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Predicted:
    """One policy's chunks at some frames. prompt: the request's; frames int64 [K]; chunks float32
    [K, H, D] in the robot's units, NaN where there is none; failures: (frame, why)."""

    policy: str
    prompt: str | None
    frames: np.ndarray
    chunks: np.ndarray
    failures: tuple[tuple[int, str], ...]


def predict(policies: Mapping, request: EpisodeRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: a Result with a Predicted for each policy and
    batch. Raises ValueError for policies, episodes and frames that are not there."""
    _check_policies(policies, request.policies)
    if not 1 <= len(request.frames) <= MAX_FRAMES or not 1 <= request.batch <= 64:
        raise ValueError(
            f"{len(request.frames)} frames came in batches of {request.batch}; 1 to {MAX_FRAMES} "
            "frames are asked at, in batches of 1 to 64"
        )
    yield Phase("", "reading the episode", _READ_S)
    for name in request.policies:
        policy = policies[name]
        dataset, episode = _read(request.recorded)
        _check_frames(episode, request.frames)
        matched = _match(dataset, policy, request.recorded)
        asking = Asking(1, request.batch, request.prompt, request.options)
        frames = list(request.frames)
        found = open_loop.answers(policy, episode, matched, asking, frames)
        done = 0
        yield _progress(name, done, len(frames))
        for batch in found:
            yield Result(_predicted(name, request.prompt, policy, batch))
            done += len(batch)
            yield _progress(name, done, len(frames))


def _progress(name: str, done: int, of: int) -> Phase:
    return Phase(name, f"frame {done} of {of}", _ASK_S)


def _predicted(name: str, prompt: str | None, policy, batch: list[open_loop.Answer]) -> Predicted:
    shape = (len(batch), policy.info.horizon, len(policy.info.actions))
    chunks = np.full(shape, np.nan, np.float32)
    for i, (_, chunk, _) in enumerate(batch):
        if chunk is not None:
            chunks[i] = chunk
    frames = np.array([frame for frame, _, _ in batch], np.int64)
    failures = tuple((frame, why) for frame, chunk, why in batch if chunk is None)
    return Predicted(name, prompt, frames, chunks, failures)


# --- where two chunks meet ----------------------------------------------------------------------


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class SeamRequest(PolicyRequest):
    """Two successive questions to a flow policy.

    policy: its name
    recorded: the episode
    frame: of the later question
    since: control steps from the earlier question to it
    delay: control steps that the later answer takes; None: as many as are measured
    prompt: in place of the recorded task, or None
    options: of the earlier question; the later one has the next seed
    """

    recorded: Recorded
    frame: int
    since: int
    delay: int | None
    prompt: str | None
    options: Options


def seam(policies: Mapping, request: SeamRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: one Result with SeamChunks. Raises ValueError
    for what is no flow policy, and for steps that no chunk has."""
    name, since = request.policy, request.since
    _check_policies(policies, (name,))
    policy = policies[name]
    meeting.check(policy, since, request.delay)
    yield Phase(name, "reading the episode", _READ_S)
    dataset, episode = _read(request.recorded)
    _check_frames(episode, (request.frame - since, request.frame))
    matched = _match(dataset, policy, request.recorded)
    try:
        before, now = (
            matched.observation(episode, frame, policy.robot, request.prompt)
            for frame in (request.frame - since, request.frame)
        )
    except FrameError as error:
        raise ValueError(f"a picture cannot be had: {error}") from error
    chunks = yield from meeting.join(policy, before, now, since, request.delay, request.options)
    yield Result(chunks)


# --- reading ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _dataset(word: str, revision: str, public: bool, opening: str) -> Dataset:
    return open_dataset(word, revision or None, public=public)


@functools.lru_cache(maxsize=2)
def _episode(dataset: Dataset, index: int) -> Episode:
    return dataset.episode(index)


def _read(recorded: Recorded) -> tuple[Dataset, Episode]:
    """Kept for the next question, which is mostly about the same episode."""
    dataset = _dataset(recorded.dataset, recorded.revision, recorded.public, recorded.opening)
    return dataset, _episode(dataset, recorded.episode)


def _match(dataset: Dataset, policy, recorded: Recorded) -> Match:
    choice = of_policy(Choice.model_validate_json(recorded.choice), policy.info)
    return match(dataset.info, policy.info, policy.robot, choice)


def _check_policies(policies: Mapping, names: tuple[str, ...]) -> None:
    if not names or (unknown := set(names) - set(policies)):
        named = ", ".join(sorted(unknown)) if names else "nothing"
        raise ValueError(f"no policy is called {named}; loaded: {', '.join(policies)}")


def _check_frames(episode: Episode, frames: tuple[int, ...]) -> None:
    if outside := [frame for frame in frames if not 0 <= frame < episode.length]:
        raise ValueError(
            f"episode {episode.index} has frames 0 to {episode.length - 1}; {outside[0]} was asked"
        )
