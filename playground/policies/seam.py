"""Where two successive chunks meet: two questions to a flow policy, the later one answered plainly
and by real-time chunking.

H horizon, D the robot's action dimensions, S Euler steps.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np

from playground import codec
from playground.serving.events import Phase
from playground.trace import Options, RawObservation

T = TypeVar("T")
_ASK_S = 1200.0  # another number of observations is a program to compile


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class SeamChunks:
    """Everything in the robot's units.

    old: of the earlier question; plain, guided: of the later one, without and with real-time
        chunking; each float32 [H, D]
    delay: control steps that the later answer takes: chosen, or as it was measured
    weights: float32 [H], how strongly the guided one was held
    times: float32 [S + 1], t of the guided one's Euler steps
    before, after: float32 [S, H, D], its estimate x_t - t v_t at each of them, without and with
        the correction
    plain_ms, guided_ms: what one answer takes once it is compiled
    """

    old: np.ndarray
    plain: np.ndarray
    guided: np.ndarray
    delay: int
    weights: np.ndarray
    times: np.ndarray
    before: np.ndarray
    after: np.ndarray
    plain_ms: float
    guided_ms: float


def check(policy, since: int, delay: int | None) -> None:
    """Raises ValueError for what is no flow policy, and for steps that no chunk has.

    since: control steps from the earlier question to the later; delay: that its answer takes; None:
    as many as are measured.
    """
    if not hasattr(policy, "guided_chunk"):
        raise ValueError(
            f"{policy.info.title} writes tokens: real-time chunking needs pi0 or pi0.5"
        )
    horizon = policy.info.horizon
    overlap = horizon - since
    delay = delay or 0
    if not (1 <= since < horizon and 0 <= delay <= min(overlap, since)):
        raise ValueError(
            f"{since} steps lie between the questions and the answer takes {delay}; expected 1 to "
            f"{horizon - 1} steps between, and a delay of 0 to the smaller of these and of the "
            f"{max(overlap, 0)} that are left of the old chunk"
        )


def join(
    policy,
    before: RawObservation,
    now: RawObservation,
    since: int,
    delay: int | None,
    options: Options,
) -> Generator[Phase, None, SeamChunks]:
    """Both questions, for steps that `check` let pass.

    before, now: what the policy is shown
    since, delay: as in `check`
    options: of the earlier question, the later one has the next seed
    Yields what it is at. Raises ValueError for a measured delay that no chunk has.
    """
    # Here: the page's process, which makes the requests, does without JAX.
    from models.chunking import MAX_GUIDANCE, prefix_weights

    name, horizon = policy.info.name, policy.info.horizon
    yield Phase(name, "the old chunk", _ASK_S)
    old, _ = policy.chunks([before], options)[0]
    later = dataclasses.replace(options, seed=options.seed + 1)
    previous = np.concatenate([old[since:], np.repeat(old[-1:], since, axis=0)])

    def weights_of(delay: int) -> np.ndarray:
        return prefix_weights(delay, horizon - since, horizon, "exp")

    def ask(weights: np.ndarray):
        return policy.guided_chunk(now, later, previous, weights, MAX_GUIDANCE)

    yield Phase(name, "the new chunk", _ASK_S)
    plain, plain_ms = _timed(ask, np.zeros(horizon, np.float32))
    yield Phase(name, "the new chunk by real-time chunking", _ASK_S)
    guided, guided_ms = _timed(ask, weights_of(delay or 0))
    if delay is None:
        delay = delay_of(guided_ms, policy.info.control_hz)
        check(policy, since, delay)
        guided = ask(weights_of(delay))
    return SeamChunks(
        old=old,
        plain=plain.actions,
        guided=guided.actions,
        delay=delay,
        weights=weights_of(delay),
        times=guided.times,
        before=guided.before,
        after=guided.after,
        plain_ms=plain_ms,
        guided_ms=guided_ms,
    )


def delay_of(ms: float, control_hz: float) -> int:
    """Control steps that pass until an answer is there: the old chunk goes on meanwhile."""
    return math.ceil(ms / 1e3 * control_hz)


def _timed(ask: Callable[[np.ndarray], T], weights: np.ndarray) -> tuple[T, float]:
    """The answer, and the milliseconds of a second one: the first may compile."""
    ask(weights)
    began = time.perf_counter()
    answer = ask(weights)
    return answer, 1e3 * (time.perf_counter() - began)
