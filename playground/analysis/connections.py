"""Cutting connections and hiding patches: what a policy's chunk does without them.

    knockout(policy, raw, Options(cuts=(Cut("actions", "text"),)))
    occlusion(policy, raw, Options())

*Knockout* (arXiv 2304.14767) forbids queries of one block to attend to keys of another. *Change*
says how far the chunk moves: the mean over steps, dimensions and noises of the absolute difference,
in % of each dimension's range. *Occlusion* hides the columns of one image patch from everybody, in
all layers of the prefix pass and of what follows it. For pi0-FAST its measure is how much less
likely the policy's own chunk becomes, in nats, read again over the prefix without the patch. Where
a patch matters is set beside where the policy looks: the measured attention of the same run, and
Spearman's rank correlation of both maps.

Shapes: N noises, H horizon, D the robot's action dimensions, C variants.
"""

import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping

import numpy as np

from models.masks import Cuts
from playground.analysis.causal import NOISES, ConnectionsRequest, Knockout, Occlusion
from playground.analysis.measured import check_names
from playground.analysis.pairs import in_rows
from playground.analysis.sensitivity import MAX_NOISES, interval, share_of_range
from playground.policies import places as columns
from playground.policies.base import Policy, Prepared, check_options, sample_noise
from playground.policies.fast import FastPolicy
from playground.policies.flow import FlowPolicy
from playground.serving.events import Done, Phase, Result
from playground.trace import FastTrace, Options, RawObservation

_DEADLINE_S = 900.0
_ROWS = 32  # variants x noises that one call runs


# --- knockout -----------------------------------------------------------------------------------


def knockout(
    policy: Policy, raw: RawObservation, options: Options, noises: int = NOISES
) -> Knockout:
    """The chunk with and without `options.cuts`. What the policy cannot answer, a query that is
    left without any key among it, is a failure in the result."""
    found = Knockout.on(policy.info, cuts=options.cuts)
    options = dataclasses.replace(
        options, num_samples=_checked(noises), attention=False, temperature=0.0
    )
    try:
        if not options.cuts:
            raise ValueError("nothing is cut: name a connection, such as actions to text")
        share = share_of_range(policy.info)
        plain = dataclasses.replace(options, cuts=())
        (before, whole), (after, left) = (policy.actions(raw, how) for how in (plain, options))
    except ValueError as error:
        return dataclasses.replace(found, failure=str(error))
    shown = [None if chunk is None else policy.to_robot(chunk[0], raw) for chunk in (before, after)]
    found = dataclasses.replace(found, before=shown[0], after=shown[1])
    if before is None or after is None:
        return dataclasses.replace(found, failure=f"the tokens did not decode: {whole or left}")
    samples = np.nanmean(np.abs(after - before) * share, axis=(1, 2))
    return dataclasses.replace(found, change=float(samples.mean()), interval=interval(samples))


def _checked(noises: int) -> int:
    if not 1 <= noises <= MAX_NOISES:
        raise ValueError(f"noises is {noises}; it goes from 1 to {MAX_NOISES}")
    return noises


# --- occlusion ----------------------------------------------------------------------------------


def occlusion(
    policy: Policy, raw: RawObservation, options: Options, noises: int = NOISES
) -> Occlusion:
    """The whole report; see the top of this file. Failures are in it."""
    *_, last = occluded(policy, raw, options, noises)
    return last


def occluded(
    policy: Policy, raw: RawObservation, options: Options, noises: int
) -> Iterator[Occlusion]:
    """`occlusion` as it grows."""
    fast = isinstance(policy, FastPolicy)
    options = dataclasses.replace(
        options, num_samples=1, attention=False, temperature=0.0, cuts=(), guidance=1.0
    )
    report = Occlusion.on(
        policy.info,
        noises=1 if fast else _checked(noises),
        unit="nats" if fast else "% of range",
    )
    try:
        check_options(options)
        prepared = policy.prepare(raw)
        run = _hiding(policy, prepared, options, noises)
        attention = _attention(policy, raw, options)
    except ValueError as error:
        yield dataclasses.replace(report, failure=str(error))
        return
    cameras = run.places.cameras
    hide = np.concatenate([[], *cameras.values()]).astype(int)
    report = dataclasses.replace(report, attention=_maps(cameras, attention), of=len(hide))
    found: list[float] = []
    per_call = max(1, _ROWS // report.noises)
    for start in range(0, len(hide), per_call):
        some = hide[start : start + per_call]
        padded = np.r_[some, np.repeat(some[-1:], per_call - len(some))]
        found += run.change(padded)[: len(some)]
        yield _filled(report, cameras, found, attention)


def _hiding(policy: Policy, prepared: Prepared, options: Options, noises: int) -> "_Hidden":
    if isinstance(policy, FastPolicy):
        return _Fast(policy, prepared, options)
    if isinstance(policy, FlowPolicy):
        return _Flow(policy, prepared, options, noises)
    raise TypeError(f"{type(policy).__name__} has no interventions")


class _Hidden:
    """What both kinds share: the layout, and a base that nothing is hidden from."""

    def __init__(self, policy: Policy, prepared: Prepared, options: Options):
        self._options = options
        count = policy.text_columns(prepared)
        self._observation = policy.observation(prepared, count)
        self._tokens = policy.image_tokens(prepared)
        self.places = policy.places(prepared, count)
        self._depth = policy.config.language.depth

    def change(self, hide: np.ndarray) -> list[float]:
        """What hiding each of these columns, int [C], does."""
        raise NotImplementedError

    def _cuts(self, hide: np.ndarray, room: int) -> Cuts:
        width = len(self.places.valid)
        return columns.hidden(hide[:, None], width, self._depth, room)

    def _nothing(self, room: int) -> Cuts:
        width = len(self.places.valid)
        return columns.hidden(np.zeros((1, 0), int), width, self._depth, room)


class _Flow(_Hidden):
    def __init__(self, policy: FlowPolicy, prepared: Prepared, options: Options, noises: int):
        super().__init__(policy, prepared, options)
        self._policy, config = policy, policy.config
        size = (config.action_horizon, config.action_dim)
        self._noise = sample_noise(options.seed, noises, *size)
        self._share = share_of_range(policy.info)
        self._room = config.suffix_len
        self._base = self._chunks(self._nothing(self._room))

    def _chunks(self, cuts: Cuts) -> np.ndarray:
        chunks = self._policy.interventions.cut(
            self._observation, self._tokens, cuts, self._noise, num_steps=self._options.num_steps
        )
        return np.asarray(chunks, np.float64)[..., : len(self._policy.info.actions)]

    def change(self, hide: np.ndarray) -> list[float]:
        moved = np.abs(self._chunks(self._cuts(hide, self._room)) - self._base) * self._share
        return np.nanmean(moved, axis=(1, 2, 3)).tolist()


class _Fast(_Hidden):
    def __init__(self, policy: FastPolicy, prepared: Prepared, options: Options):
        super().__init__(policy, prepared, options)
        self._policy = policy
        state = policy.prefilled(prepared, policy.text_columns(prepared), options)
        self._room = policy.room(prepared, options)
        self._written = in_rows([policy.written(state, options)], self._room)
        self._base = self._likelihoods(self._nothing(self._room))

    def _likelihoods(self, cuts: Cuts) -> np.ndarray:
        found = self._policy.interventions.cut(
            self._observation,
            self._tokens,
            cuts,
            self._written,
            max_decoding_steps=self._room,
        )
        return np.asarray(found, np.float64)[:, 0]

    def change(self, hide: np.ndarray) -> list[float]:
        cuts = self._cuts(hide, self._room)
        return (self._base - self._likelihoods(cuts)).tolist()


def _attention(policy: Policy, raw: RawObservation, options: Options) -> dict[str, np.ndarray]:
    """By slot, the measured weight on each patch: of every query that runs over the prefix."""
    how = dataclasses.replace(options, attention=True)
    *_, last = policy.infer(raw, how)
    assert isinstance(last, Done)
    trace = last.trace
    weights = trace.attention["suffix"].astype(np.float32)  # [steps, layers, heads, queries, C]
    if isinstance(trace, FastTrace):
        weights = weights[: len(trace.tokens)]
    each = weights.mean(axis=(0, 1, 2, 3))
    return {b.name: each[b.start : b.stop] for b in trace.blocks if b.kind == "image"}


def _maps(cameras: Mapping[str, np.ndarray], values: Mapping) -> dict[str, tuple]:
    found = {}
    for slot, places in cameras.items():
        side = math.isqrt(len(places))
        rows = [values[slot][i : i + side] for i in range(0, len(places), side)]
        found[slot] = tuple(
            tuple(None if v is None else float(v) for v in row) for row in rows
        )  # fmt: skip
    return found


def _filled(report: Occlusion, cameras, found: list[float], attention) -> Occlusion:
    every = [*found, *[None] * (report.of - len(found))]
    change, start = {}, 0
    for slot, places in cameras.items():
        change[slot] = every[start : start + len(places)]
        start += len(places)
    whole = len(found) == report.of
    looked = np.concatenate([attention[slot] for slot in cameras])
    return dataclasses.replace(
        report,
        change=_maps(cameras, change),
        done=len(found),
        rank_correlation=rank_correlation(np.array(found), looked) if whole else None,
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where one of them is the same all over, or there is too little to rank."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import rankdata  # whose import takes 0.3 s, only where it is needed

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


# --- for the worker -----------------------------------------------------------------------------


def knockouts(
    policies: Mapping[str, Policy], request: ConnectionsRequest
) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: a Result with a Knockout for each policy."""
    check_names(policies, request.policies, request.observations)
    for name in request.policies:
        yield Phase(name, "with cut connections", _DEADLINE_S)
        raw = request.observations[name]
        yield Result(knockout(policies[name], raw, request.options, request.noises))


def occlusions(
    policies: Mapping[str, Policy], request: ConnectionsRequest
) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: each Result is a policy's Occlusion so far."""
    check_names(policies, request.policies, request.observations)
    for name in request.policies:
        yield Phase(name, "hiding patches", _DEADLINE_S)
        raw = request.observations[name]
        for report in occluded(policies[name], raw, request.options, request.noises):
            yield Result(report)
