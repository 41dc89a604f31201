"""A policy's chunks against what was recorded, over whole episodes: an open-loop evaluation.

Open loop: at every k-th frame the policy is shown the recording, not what its own actions would
have led to. A small error is no success, and a large one may be another way to do the same.

n frames of an episode, K frames asked at, H horizon, D the robot's action dimensions.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np

from playground.datasets.lerobot import Episode
from playground.datasets.matching import Match
from playground.datasets.video import FrameError
from playground.robots.robot import Robot
from playground.trace import Dimension, Options, PolicyInfo, RawObservation

CAVEAT = (
    "Open loop: at every frame the policy sees the recording, not what its own actions would have "
    "led to. A small error is not success, and a large one can be another way to do the same."
)
Span = Literal["first", "executed", "whole"]
SPANS: tuple[Span, ...] = ("first", "executed", "whole")
# (frame, chunk float32 [H, D] in the robot's units or None, why there is none)
Answer = tuple[int, np.ndarray | None, str]


class Predicts(Protocol):
    """What of a policy is needed here."""

    info: PolicyInfo
    robot: Robot
    batches: bool

    def chunks(
        self, raws: Sequence[RawObservation], options: Options
    ) -> list[tuple[np.ndarray | None, str]]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Asking:
    """How a policy is asked. every: frames from one to the next; batch: frames at once; prompt: in
    place of the recorded task."""

    every: int = 10
    batch: int = 8
    prompt: str | None = None
    options: Options = Options()  # noqa: RUF009 (frozen)


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """One episode. frames int [K]; chunks float32 [K, H, D] in the robot's units, NaN where there
    is none; recorded float64 [n, D]; states float64 [n, S]; failures: (frame, why)."""

    episode: int
    fps: float
    frames: np.ndarray
    chunks: np.ndarray
    recorded: np.ndarray
    states: np.ndarray
    failures: tuple[tuple[int, str], ...]

    def errors(self) -> np.ndarray:
        """|predicted - recorded|, float64 [K, H, D]; NaN past the episode's end and where there is
        no chunk."""
        steps = self.frames[:, None] + np.arange(self.chunks.shape[1])
        last = len(self.recorded) - 1
        apart = np.abs(self.chunks - self.recorded[np.minimum(steps, last)])
        return np.where((steps <= last)[..., None], apart, np.nan)


def predict(
    policy: Predicts, episode: Episode, match: Match, asking: Asking
) -> Iterator[Prediction | int]:
    """Yields how many frames are done after each batch, and at the end the Prediction."""
    frames = np.arange(0, episode.length, asking.every)
    chunks = np.full((len(frames), policy.info.horizon, len(policy.info.actions)), np.nan, "f4")
    failures: list[tuple[int, str]] = []
    done = 0
    for found in answers(policy, episode, match, asking, frames.tolist()):
        for frame, chunk, why in found:
            if chunk is None:
                failures.append((frame, why))
            else:
                chunks[frame // asking.every] = chunk
        done += len(found)
        yield done
    recorded, states = match.recorded(episode), match.states(episode)
    yield Prediction(
        *(episode.index, episode.fps, frames, chunks, recorded, states, tuple(failures))
    )


def answers(
    policy: Predicts, episode: Episode, match: Match, asking: Asking, frames: Sequence[int]
) -> Iterator[list[Answer]]:
    """The policy's answers at these frames, batch by batch, or frame by frame where the policy
    answers them one after the other anyway. What comes next is decoded while the model runs."""
    size = asking.batch if policy.batches else 1
    batches = [frames[i : i + size] for i in range(0, len(frames), size)]

    def load(batch: Sequence[int]) -> list[tuple[int, RawObservation | FrameError]]:
        found = []
        for frame in batch:
            try:
                raw = match.observation(episode, frame, policy.robot, asking.prompt)
            except FrameError as error:
                raw = error
            found.append((frame, raw))
        return found

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, batches[0]) if batches else None
        for number in range(len(batches)):
            assert ahead is not None
            loaded = ahead.result()
            if number + 1 < len(batches):
                ahead = pool.submit(load, batches[number + 1])
            yield _asked(policy, loaded, asking.options, size)


def _asked(
    policy: Predicts,
    loaded: list[tuple[int, RawObservation | FrameError]],
    options: Options,
    size: int,
) -> list[Answer]:
    """A short batch is filled up: every size is a program."""
    read = [(frame, raw) for frame, raw in loaded if isinstance(raw, RawObservation)]
    found: list[Answer] = [(f, None, str(e)) for f, e in loaded if isinstance(e, FrameError)]
    if not read:
        return found
    raws = [raw for _, raw in read]
    raws += raws[-1:] * (size - len(raws))
    chunks = policy.chunks(raws, options)
    for (frame, _), (chunk, why) in zip(read, chunks, strict=False):
        found.append((frame, chunk, why))
    return found


# --- over episodes ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class DimensionError:
    """Mean absolute errors of one dimension, by span: in its unit, and in % of its recorded range
    (NaN where it never moved). still: over the whole chunk, what holding the measured state would
    give; NaN where actions are no targets of the state's dimensions."""

    dimension: Dimension
    span: float
    absolute: dict[Span, float]
    percent: dict[Span, float]
    still: float


@dataclasses.dataclass(frozen=True, slots=True)
class FrameScore:
    """One frame's error over its executed steps, mean of the dimensions' % of range."""

    episode: int
    frame: int
    percent: float


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy under one prompt, over episodes. prompt: None for the recorded tasks; executed:
    steps of a chunk that count as such; failures: (episode, frame, why)."""

    policy: PolicyInfo
    prompt: str | None
    executed: int
    predictions: tuple[Prediction, ...]
    dimensions: tuple[DimensionError, ...]
    frames: tuple[FrameScore, ...]
    failures: tuple[tuple[int, int, str], ...]

    def mean_percent(self, span: Span) -> float:
        """Over the dimensions that moved."""
        shares = [row.percent[span] for row in self.dimensions if row.span > 0]
        return float(np.mean(shares)) if shares else float("nan")


def evaluate(
    policy: PolicyInfo,
    robot: Robot,
    predictions: Sequence[Prediction],
    executed: int,
    prompt: str | None = None,
) -> Evaluation:
    """Raises ValueError where no chunk was predicted at all, or for a number of executed steps that
    no chunk has."""
    if not 1 <= executed <= policy.horizon:
        raise ValueError(f"executed is {executed}; a chunk has 1 to {policy.horizon} steps")
    errors = np.concatenate([prediction.errors() for prediction in predictions])  # [K, H, D]
    if np.isnan(errors).all():
        why = next((w for p in predictions for _, w in p.failures), "")
        raise ValueError(f"there is not one chunk to compare: {why}")
    recorded = np.concatenate([prediction.recorded for prediction in predictions])
    span = np.ptp(recorded, axis=0)
    moved = np.where(span > 0, span, np.nan)
    lengths: dict[Span, int] = {"first": 1, "executed": executed, "whole": policy.horizon}
    means = {s: np.nanmean(errors[:, :length], axis=(0, 1)) for s, length in lengths.items()}
    still = _still(robot, predictions)
    dimensions = tuple(
        DimensionError(
            dimension,
            float(span[i]),
            {s: float(means[s][i]) for s in SPANS},
            {s: float(100 * means[s][i] / moved[i]) for s in SPANS},
            float(still[i]),
        )
        for i, dimension in enumerate(policy.actions)
    )
    failures = ((p.episode, frame, why) for p in predictions for frame, why in p.failures)
    scores = _scores(predictions, executed, moved)
    return Evaluation(
        *(policy, prompt, executed, tuple(predictions), dimensions, scores, tuple(failures))
    )


def _still(robot: Robot, predictions: Sequence[Prediction]) -> np.ndarray:
    """[D]: the error of a chunk that repeats the state it starts from."""
    if robot.actions != robot.state:
        return np.full(len(robot.actions), np.nan)
    errors = []
    for prediction in predictions:
        held = np.repeat(prediction.states[prediction.frames, None], prediction.chunks.shape[1], 1)
        errors.append(dataclasses.replace(prediction, chunks=held).errors())
    return np.nanmean(np.concatenate(errors), axis=(0, 1))


def _scores(
    predictions: Sequence[Prediction], executed: int, moved: np.ndarray
) -> tuple[FrameScore, ...]:
    found = []
    for prediction in predictions:
        percent = 100 * prediction.errors()[:, :executed] / moved
        for frame, values in zip(prediction.frames.tolist(), percent, strict=True):
            if not np.isnan(values).all():
                score = float(np.nanmean(values))
                found.append(FrameScore(prediction.episode, frame, score))
    return tuple(found)
