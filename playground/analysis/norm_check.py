"""Are a policy's norm stats right? What a wrong number in them does shows as odd actions only, so
here each is held against what the policy and its robot need.

A "reach" is what the model's numbers go by: one standard deviation (z-score), or half of q01..q99
(quantile). Sources: openpi's `docs/norm_stats.md`, and the mistakes in its issue threads.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from playground.checkpoints.entry import TITLES
from playground.robots.norm_stats import BOUNDS, EPSILON, FAR, SHARES, normalise
from playground.robots.robot import Robot, format_state
from playground.trace import Dimension, Method, PolicyInfo, Stats

Part = Literal["state", "actions"]

# Below this reach a move of one hundredth (radian, metre, share) is ten or more for the model.
TINY = 1e-3
_STEP = 0.01
# Data that spread this many times more, or less, are other data.
_WIDER = 3.0
_USUAL = {"pi0": "z-score", "pi05": "quantile", "pi0_fast": "quantile"}
_RULES = {
    "z-score": "z-score: the model gets (value - mean) / std",
    "quantile": "quantile: the model gets q01 to q99 as -1 to 1, and goes on beyond",
    "quantile-10": "quantile-10: the model gets q10 to q90 as -1 to 1, and goes on beyond",
    "min-max": "min-max: the model gets the smallest to the largest value as -1 to 1",
    "identity": "identity: the model gets the numbers as they are",
}


@dataclasses.dataclass(frozen=True, slots=True)
class DimensionCheck:
    """One dimension of `part`. q01, q99: None where the stats have none. value: the given state in
    the convention of the stats, and `normalised`, as the model gets it; None for actions, or
    without a state. remarks: plain sentences, () if nothing is odd."""

    part: Part
    name: str
    unit: str
    mean: float
    std: float
    q01: float | None
    q99: float | None
    value: float | None
    normalised: float | None
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class NormCheck:
    """method: of the state and, unless `rule` says otherwise, of the actions; rule: in words;
    padding: which of the model's dimensions are the robot's, "" if all are; remarks: on the whole
    of them."""

    method: Method
    rule: str
    padding: str
    remarks: tuple[str, ...]
    rows: tuple[DimensionCheck, ...]

    @property
    def sound(self) -> bool:
        return not self.remarks and not any(row.remarks for row in self.rows)


def check(
    info: PolicyInfo, robot: Robot, state: Sequence[float] | np.ndarray | None = None
) -> NormCheck:
    """What is odd about a policy's norm stats, dimension by dimension.

    robot: with the policy's conventions. state: in the robot's units [S], or None for none.
    """
    remarks = list(info.stats_notes)
    methods = info.method("state"), info.method("actions")
    # A LeRobot folder names its own method, so another one is a choice.
    chosen = info.model_config.get("convention") == "lerobot"
    if methods[0] != _USUAL[info.family] and not chosen:
        remarks.append(
            f"Unusual: openpi normalises {TITLES[info.family]} by {_USUAL[info.family]}."
        )
    given = None if state is None else np.asarray(state, np.float64)
    offsets = robot.offsets or (False,) * len(info.actions)
    rows: list[DimensionCheck] = []
    if info.state_stats is not None:
        values = None if given is None else robot.state_to_model(given)
        rows += _rows("state", info.state, info.state_stats, methods[0], given=given, values=values)
    if info.action_stats is not None:
        stats = info.action_stats
        rows += _rows("actions", info.actions, stats, methods[1], offsets=offsets)
    rule = _RULES[methods[0]]
    if methods[0] != methods[1]:
        rule = f"The state by {rule}. The actions by {_RULES[methods[1]]}"
    return NormCheck(methods[0], rule, _padding(info), tuple(remarks), tuple(rows))


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """One dimension of `part`: the checkpoint's (mean, std, q01, q99) and the data's, and plain
    sentences on what differs, () if nothing matters."""

    part: Part
    name: str
    unit: str
    checkpoint: tuple[float | None, ...]
    data: tuple[float | None, ...]
    remarks: tuple[str, ...]


def against_data(info: PolicyInfo, data: Mapping[str, Stats]) -> tuple[Compared, ...]:
    """A checkpoint's norm stats against those of somebody's own data ("state", "actions"), which
    must be in the same terms (`playground.datasets.statistics`): what the model will be shown that
    it has hardly met, and where its answers are stretched."""
    rows = []
    parts: tuple[tuple[Part, tuple[Dimension, ...], Stats | None], ...] = (
        ("state", info.state, info.state_stats),
        ("actions", info.actions, info.action_stats),
    )
    for part, dimensions, stats in parts:
        if stats is None or part not in data:
            continue
        for i, dimension in enumerate(dimensions):
            theirs, ours = _Single.of(stats, i), _Single.of(data[part], i)
            remarks = _of_data(part, theirs, ours, info.method(part))
            both = (tuple(theirs), tuple(ours))
            rows.append(Compared(part, dimension.name, dimension.unit, *both, tuple(remarks)))
    return tuple(rows)


class _Range(NamedTuple):
    low: float
    high: float


class _Single(NamedTuple):
    """One dimension's norm stats."""

    mean: float
    std: float
    q01: float | None
    q99: float | None

    @classmethod
    def of(cls, stats: Stats, i: int) -> "_Single":
        low, high = (None if v is None else v[i] for v in (stats.q01, stats.q99))
        return cls(stats.mean[i], stats.std[i], low, high)

    @property
    def range(self) -> _Range | None:
        if self.q01 is None or self.q99 is None:
            return None
        return _Range(self.q01, self.q99)


def _of_data(part: str, theirs: _Single, ours: _Single, method: Method) -> list[str]:
    (middle, reach), (own_middle, own_reach) = theirs[:2], ours[:2]
    if method != "z-score" and theirs.range is not None and ours.range is not None:
        (low, high), (own_low, own_high) = theirs.range, ours.range
        middle, reach = (low + high) / 2, (high - low) / 2
        own_middle, own_reach = (own_low + own_high) / 2, (own_high - own_low) / 2
    remarks = []
    if own_reach > TINY and reach < TINY:
        remarks.append(
            f"It moves in your data (std {ours.std:.3g}), and hardly did in the checkpoint's: for "
            "the model its values are enormous."
        )
    elif reach >= TINY:
        shift, ratio = abs(own_middle - middle) / reach, own_reach / reach
        if shift > 1:
            remarks.append(
                f"Your data lie around {own_middle:.3g}, {shift:.1f} reaches from the checkpoint's "
                f"{middle:.3g}."
            )
        if ratio > _WIDER or (ratio < 1 / _WIDER and part == "actions"):
            word = "wider" if ratio > 1 else "narrower"
            times = max(ratio, 1 / max(ratio, 1e-9))
            remarks.append(f"Your data spread {min(times, 999):.3g} times {word}.")
    return remarks


def _padding(info: PolicyInfo) -> str:
    """Of a state in the prompt there is none, nor of actions written as tokens."""
    width = info.model_config.get("action_dim", 0)
    parts = {"state": info.state if info.family == "pi0" else (), "actions": info.actions}
    beyond = {part: len(x) for part, x in parts.items() if 0 < len(x) < width}
    if info.family == "pi0_fast" or not beyond:
        return ""
    firsts = " and ".join(f"of the {part} the first {count}" for part, count in beyond.items())
    return f"Of the model's {width} dimensions, {firsts} are {info.robot}'s; the rest is padding."


def _rows(
    part: Part,
    dimensions: Sequence[Dimension],
    stats: Stats,
    method: Method,
    *,
    given: np.ndarray | None = None,
    values: np.ndarray | None = None,
    offsets: Sequence[bool] | None = None,
) -> list[DimensionCheck]:
    """given: a state, in the robot's units; values: the same in the convention of the stats."""
    scaled = None if values is None else normalise(values, stats, method)
    rows = []
    for i, dimension in enumerate(dimensions):
        one = _Single.of(stats, i)
        remarks = _of_scale(part, dimension, one, method)
        if offsets is not None and offsets[i]:
            remarks += _of_offset(one)
        value = normalised = None
        if given is not None and values is not None and scaled is not None:
            value, normalised = float(values[i]), float(scaled[i])
            remarks += _of_value(float(given[i]), value, normalised, one, dimension, method)
        rows.append(
            DimensionCheck(
                part, dimension.name, dimension.unit, *one, value, normalised, tuple(remarks)
            )
        )
    return rows


def _of_scale(part: str, dimension: Dimension, stats: _Single, method: Method) -> list[str]:
    """Of one dimension's spread."""
    if method == "identity":
        return []
    mean, std, between = stats.mean, stats.std, stats.range
    remarks = []
    span = None if between is None else between.high - between.low
    reach = std if method == "z-score" or span is None else span / 2
    least, most = BOUNDS[method]
    flat = "std is 0" if method == "z-score" else f"{least} = {most}"
    if reach <= EPSILON:
        fixed = mean if method == "z-score" or between is None else between.low
        effect = f"the policy's answer is always {fixed:.4g}"
        if part == "state":
            effect = f"another value than {fixed:.4g} is enormous for the model"
        remarks.append(f"{flat}: it never moved in training, and {effect}.")
    elif reach < TINY:
        what = "std" if method == "z-score" else "range"
        remarks.append(
            f"Tiny {what}: a change of {_STEP} {dimension.unit} is {_STEP / reach:.0f} for the "
            "model, which knows about -1 to 1."
        )
    if method == "z-score" and span is not None and span <= EPSILON < std:
        remarks.append("q01 = q99, though std is not 0: 98 % of the training data were one value.")
    if between is not None and not between.low - EPSILON <= mean <= between.high + EPSILON:
        remarks.append(
            f"The mean lies outside {least}..{most}: rare extremes, or stats of two things."
        )
    return remarks


def _of_offset(stats: _Single) -> list[str]:
    if stats.range is None:
        beyond = abs(stats.mean) > 3 * stats.std
    else:
        low, high = stats.range
        slack = 0.1 * (high - low) + EPSILON
        beyond = not low - slack <= 0 <= high + slack
    if not beyond:
        return []
    return [
        "Predicted as an offset from the state, but 0, no offset, lies outside what was seen: "
        "these look like stats of absolute actions."
    ]


def _of_value(
    given: float,
    value: float,
    normalised: float,
    stats: _Single,
    dimension: Dimension,
    method: Method,
) -> list[str]:
    """Where the given state lies; `value` is the same in the convention of the stats."""
    if method == "identity":
        return []
    if stats.range is not None:
        low, high = stats.range
        if low - EPSILON <= value <= high + EPSILON:
            return []
        share = SHARES[BOUNDS[method][0]]
        where = f"outside the {low:.4g} to {high:.4g} of {share}the training data"
    elif abs(normalised) <= FAR:
        return []
    else:
        where = f"far from the mean of {stats.mean:.4g}"
    shown = format_state(dimension, given, value)
    return [f"The given state, {shown}, is {where}: {normalised:.3g} for the model."]
