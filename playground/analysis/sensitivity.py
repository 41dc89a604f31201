"""What a policy listens to: how much its chunk changes when one input changes, with the same noise.

    found, left_out = variants(raw, policy.robot, policy.info.state_stats)
    base, changes = measure(policy, raw, Options(), found)
    print(*matters.summary(base, changes), sep="\n")  # playground.views.matters has the words

Definitions. A chunk is what the model predicts, in the units and convention of the norm stats,
before offsets are added to the state: a state that moves changes no score by itself. For one noise
and one dimension, the *change* is the mean over the chunk's steps of the absolute difference
between the variant's chunk and the unchanged observation's, both from that noise, in % of the
dimension's *range*: q99 - q01 of the norm stats, or 4 standard deviations where they have no
quantiles. A variant's change is the mean over dimensions and noises; its interval is Student's t
at 95 % over the noises' means over dimensions, cut off at 0. The *spread* between seeds is the same
measure between the unchanged observation's chunks of two noises, as the mean over all pairs: how
much another seed alone changes the chunk.

Shapes: N noises, H horizon, D the robot's action dimensions.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from playground import codec
from playground.analysis.measured import Measured
from playground.analysis.variants import GROUPS, Group, Variant, variants
from playground.robots.norm_stats import EPSILON
from playground.serving.events import Phase, Result
from playground.trace import Options, PolicyInfo, RawObservation

if TYPE_CHECKING:  # views read the reports, and load no JAX
    from playground.policies.base import Policy, Prepared

NOISES, MAX_NOISES = 4, 32
_COMPILE_DEADLINE_S, _RUN_DEADLINE_S = 900.0, 300.0


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Base(Measured):
    """A policy's answer to the unchanged observation, which its changes are measured against.

    dimensions: names of the D action dimensions
    random: whether another seed could give another chunk
    runs: chunks a variant; 1 for FAST at temperature 0, where nothing is random
    tokens: valid prompt tokens
    warnings: the policy's own, in plain sentences
    spread, dimension_spreads: between seeds, % of range, over all dimensions and for each; None
        with one run, and for dimensions without a range
    failure: why there is no number, or None
    """

    dimensions: tuple[str, ...]
    random: bool
    runs: int
    tokens: int = 0
    warnings: tuple[str, ...] = ()
    spread: float | None = None
    dimension_spreads: tuple[float | None, ...] = ()
    failure: str | None = None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """How much one variant changes one policy's chunk.

    variant, group, description, word: the variant's (playground.analysis.variants.Variant)
    tokens: valid prompt tokens
    warnings: the policy's that the unchanged observation does not get
    same_input: the variant looks the same to this policy, so that nothing could change
    percent: % of range; None with a failure
    interval: 95 %; None with one run
    samples: the percent of each noise
    dimensions, dimension_intervals: the same for each dimension, None where it has no range
    times_spread: percent / the base's spread; None where that is unknown or zero
    failure: why there is no number, or None
    """

    policy: str
    variant: str
    group: Group
    description: str
    word: tuple[int, int] | None
    tokens: int = 0
    warnings: tuple[str, ...] = ()
    same_input: bool = False
    percent: float | None = None
    interval: tuple[float, float] | None = None
    samples: tuple[float, ...] = ()
    dimensions: tuple[float | None, ...] = ()
    dimension_intervals: tuple[tuple[float, float] | None, ...] = ()
    times_spread: float | None = None
    failure: str | None = None


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class SensitivityReport:
    """What was measured on one observation, so far: `done` of `of` answers.

    left_out: plain sentences on what could not be varied.
    """

    prompt: str
    robot: str
    options: Options
    noises: int
    bases: tuple[Base, ...]
    changes: tuple[Change, ...]
    left_out: tuple[str, ...]
    done: int
    of: int


# --- measuring ----------------------------------------------------------------------------------


def measure(
    policy: "Policy",
    raw: RawObservation,
    options: Options,
    found: Iterable[Variant],
    noises: int = NOISES,
) -> tuple[Base, tuple[Change, ...]]:
    """How much each variant changes the policy's chunk; definitions at the top of this file.

    noises: how many seeds, from `options.seed` on, the
    same for every variant. What the policy cannot answer is a failure in the result, never an
    exception; raises ValueError for `noises` outside 1..32.
    """
    comparison = Comparison(policy, raw, options, noises)
    return comparison.base, tuple(comparison.change(variant) for variant in found)


class Comparison:
    """One policy's answer to an observation, kept to measure variants against."""

    def __init__(
        self, policy: "Policy", raw: RawObservation, options: Options, noises: int = NOISES
    ):
        if not 1 <= noises <= MAX_NOISES:
            raise ValueError(f"noises is {noises}; it goes from 1 to {MAX_NOISES}")
        info = policy.info
        random = info.family != "pi0_fast" or options.temperature > 0
        runs = noises if random else 1
        self._policy = policy
        self._options = dataclasses.replace(options, num_samples=runs, attention=False)
        self._answer = answer = self._ask(raw)
        spreads = None
        if answer.chunks is not None and runs > 1:
            pairs = itertools.combinations(answer.chunks, 2)
            spreads = np.mean([_difference(a, b) for a, b in pairs], axis=0)
        self.base = Base.on(
            info,
            dimensions=tuple(dim.name for dim in info.actions),
            random=random,
            runs=runs,
            tokens=answer.tokens,
            warnings=answer.warnings,
            spread=None if spreads is None else float(np.nanmean(spreads)),
            dimension_spreads=() if spreads is None else _numbers(spreads),
            failure=answer.failure,
        )

    def change(self, variant: Variant) -> Change:
        """Asks for the variant's chunks, unless the unchanged observation has none."""
        base, unchanged = self.base, self._answer.chunks
        change = Change(base.policy, variant.name, variant.group, variant.description, variant.word)
        if unchanged is None:
            failure = f"the unchanged observation has none ({base.failure})"
            return dataclasses.replace(change, failure=failure)
        answer = self._ask(variant.changed)
        change = dataclasses.replace(
            change,
            tokens=answer.tokens,
            warnings=tuple(w for w in answer.warnings if w not in base.warnings),
            failure=answer.failure,
        )
        if answer.chunks is None:
            return change
        both = zip(answer.chunks, unchanged, strict=True)
        changes = np.stack([_difference(a, b) for a, b in both])  # [N, D]
        samples = np.nanmean(changes, axis=1)
        percent = float(samples.mean())
        return dataclasses.replace(
            change,
            same_input=self._same_input(answer),
            percent=percent,
            interval=interval(samples),
            samples=_numbers(samples),
            dimensions=_numbers(changes.mean(axis=0)),
            dimension_intervals=tuple(map(interval, changes.T)),
            times_spread=percent / base.spread if base.spread else None,
        )

    def _ask(self, raw: RawObservation) -> "_Answer":
        try:
            prepared = self._policy.prepare(raw)
            share = share_of_range(self._policy.info)
            chunks, failure = self._policy.actions(raw, self._options)
        except ValueError as error:
            return _Answer(failure=str(error))
        if chunks is None:
            return _Answer(prepared, failure=f"the tokens did not decode: {failure}")
        return _Answer(prepared, chunks * share)

    def _same_input(self, answer: "_Answer") -> bool:
        """Whether the model is given the same as by the unchanged observation. pi0.5 and pi0-FAST
        see the state as bins in the prompt only."""
        a, b = self._answer.prepared, answer.prepared
        if a is None or b is None:
            return False
        seen_a, seen_b = (
            {slot: p.images[slot] for slot, mode in p.modes.items() if mode != "masked"}
            for p in (a, b)
        )
        return (
            np.array_equal(a.prompt.tokens, b.prompt.tokens)
            and seen_a.keys() == seen_b.keys()
            and all(np.array_equal(image, seen_b[slot]) for slot, image in seen_a.items())
            and (self._policy.info.family != "pi0" or np.array_equal(a.state, b.state))
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """prepared: what the model is given; chunks: float64 [N, H, D] in % of each
    dimension's range, NaN where it has none; either is None with a failure that came before it."""

    prepared: "Prepared | None" = None
    chunks: np.ndarray | None = None
    failure: str | None = None

    @property
    def tokens(self) -> int:
        return 0 if self.prepared is None else int(self.prepared.prompt.mask.sum())

    @property
    def warnings(self) -> tuple[str, ...]:
        return () if self.prepared is None else self.prepared.warnings


def share_of_range(info: PolicyInfo) -> np.ndarray:
    """float64 [D]: % of a dimension's range that one normalised unit is; NaN where the training
    data never moved. Raises ValueError without norm stats, or where no dimension has a range."""
    stats = info.action_stats
    if stats is None:
        raise ValueError(f"{info.title} has no norm stats of its actions to measure a change by")
    deviation = np.array(stats.std)
    quantiles = stats.q01 is not None and stats.q99 is not None
    extent = np.array(stats.q99) - stats.q01 if quantiles else 4 * deviation
    others = {"z-score": deviation + EPSILON, "identity": np.ones(extent.shape)}
    unit = others.get(info.method("actions"), (extent + EPSILON) / 2)
    moves = extent > 10 * EPSILON
    if not moves.any():
        raise ValueError(f"no action of {info.title} has a range in its norm stats")
    return 100 * np.divide(unit, extent, out=np.full(extent.shape, np.nan), where=moves)


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """95 % interval for the mean of what `samples` [N] were drawn from, by Student's t, for values
    that cannot be below 0; None for a single sample or NaN. With N = 4 it is wide, as it must be;
    it takes the samples for independent and about normal."""
    import scipy.special  # 0.1 s, which no start needs

    count = len(samples)
    if count < 2 or np.isnan(samples).any():
        return None
    mean = float(np.mean(samples))
    half = float(scipy.special.stdtrit(count - 1, 0.975) * np.std(samples, ddof=1) / count**0.5)
    return max(0.0, mean - half), mean + half


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of chunks [H, D] over their steps: [D]."""
    return np.abs(a - b).mean(axis=0)


def _numbers(values: np.ndarray) -> tuple[float | None, ...]:
    """NaN, which JSON lacks, as None."""
    return tuple(None if np.isnan(v) else float(v) for v in values)


# --- for the worker -----------------------------------------------------------------------------


@codec.register
@dataclasses.dataclass(frozen=True, slots=True)
class SensitivityRequest:
    """What to measure.

    policies: names, each once
    observations: by policy; one and the same, but for camera slots that differ
    options: of every run; samples and attention have no meaning here
    noises: how many seeds, from `options.seed` on
    groups: of variants
    other_tasks, alternatives: prompts, as `variants` takes them
    """

    policies: tuple[str, ...]
    observations: dict[str, RawObservation]
    options: Options
    noises: int = NOISES
    groups: tuple[Group, ...] = GROUPS
    other_tasks: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()


def what_matters(
    policies: Mapping[str, "Policy"], request: SensitivityRequest
) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`. Each Result holds the SensitivityReport so
    far; in the last one `done` equals `of`. Nudges are by the first policy's norm stats, the same
    for all. Raises ValueError for names and values that are not taken."""
    _check(policies, request)
    names, raws, options = request.policies, request.observations, request.options
    plans, left_out = _plans(policies, request)
    every = {v.name: v for plan in plans.values() for v in plan.values()}
    order = sorted(every, key=lambda variant: GROUPS.index(every[variant].group))
    report = SensitivityReport(
        prompt=raws[names[0]].prompt,
        robot=raws[names[0]].robot,
        options=options,
        noises=request.noises,
        bases=(),
        changes=(),
        left_out=left_out,
        done=0,
        of=len(names) + sum(map(len, plans.values())),
    )
    compiled = set()
    comparisons = {}
    for name in names:
        yield _phase(name, "unchanged observation", raws[name], compiled)
        comparisons[name] = Comparison(policies[name], raws[name], options, request.noises)
        bases = (*report.bases, comparisons[name].base)
        report = dataclasses.replace(report, bases=bases, done=report.done + 1)
        yield Result(report)
    for wanted, name in itertools.product(order, names):
        if (variant := plans[name].get(wanted)) is None:
            continue
        yield _phase(name, variant.name, variant.changed, compiled)
        changes = (*report.changes, comparisons[name].change(variant))
        report = dataclasses.replace(report, changes=changes, done=report.done + 1)
        yield Result(report)


def _check(policies: Mapping[str, "Policy"], request: SensitivityRequest) -> None:
    """Raises ValueError for a request that these policies cannot answer."""
    names = request.policies
    if not names or (missing := [name for name in names if name not in policies]):
        asked = ", ".join(missing) if names else "nothing"
        raise ValueError(f"no policy is called {asked}; loaded: {', '.join(policies)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a policy is measured once; {', '.join(names)} came")
    if lacking := [name for name in names if name not in request.observations]:
        raise ValueError(f"there is no observation for {', '.join(lacking)}")
    if len({request.observations[name].prompt for name in names}) > 1:
        raise ValueError("all policies are compared on one prompt; the observations have several")


def _plans(
    policies: Mapping[str, "Policy"], request: SensitivityRequest
) -> tuple[dict[str, dict[str, Variant]], tuple[str, ...]]:
    """(by policy its variants by name, sentences on what is left out)."""
    first = policies[request.policies[0]]
    plans, left_out = {}, {}
    for name in request.policies:
        found, missing = variants(
            request.observations[name],
            first.robot,
            first.info.state_stats,
            groups=request.groups,
            other_tasks=request.other_tasks,
            alternatives=request.alternatives,
            seed=request.options.seed,
        )
        plans[name] = {variant.name: variant for variant in found}
        left_out |= dict.fromkeys(missing)
    return plans, tuple(left_out)


def _phase(name: str, what: str, raw: RawObservation, compiled: set) -> Phase:
    """Another set of visible cameras is another program to compile."""
    program = (name, *sorted(slot for slot, mode in raw.modes.items() if mode == "masked"))
    deadline_s = _RUN_DEADLINE_S if program in compiled else _COMPILE_DEADLINE_S
    compiled.add(program)
    return Phase(name, what, deadline_s)
