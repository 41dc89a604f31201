"""Norm stats: normalisation by them, and reading, checking, writing and computing them.

Nothing here changes its arguments. Sources: openpi's `transforms.py` and `shared/normalize.py`.
D dimensions.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from playground.trace import Method, Stats

# Added to a standard deviation or a quantile range before dividing by it.
EPSILON = 1e-6
# Standard deviations from the mean that hardly any of the training data lies beyond.
FAR = 4.0
# What a method has in the places of q01 and q99, and how much of the data lies between.
BOUNDS: dict[Method, tuple[str, str]] = {
    "z-score": ("q01", "q99"),
    "quantile": ("q01", "q99"),
    "quantile-10": ("q10", "q90"),
    "min-max": ("min", "max"),
    "identity": ("q01", "q99"),
}
SHARES = {"q01": "98 % of ", "q10": "80 % of ", "min": ""}

# --- normalisation ------------------------------------------------------------------------------


def normalise(values: np.ndarray, stats: Stats, method: Method) -> np.ndarray:
    """float64 [..., D] in the model's terms, from values in the robot's units.

    z-score: (x - mean) / (std + 1e-6), pi0. quantile: q01..q99 to -1..1 without clipping, pi0.5 and
    pi0-FAST. quantile-10 and min-max (LeRobot's) are the same rule, with the 10 % and 90 % quantile
    or the smallest and largest value in q01 and q99 (`BOUNDS`). identity leaves the values alone.
    The stats must cover exactly D dimensions: cut longer ones with `trim`.
    """
    if method == "identity":
        return np.asarray(values, np.float64)
    low, span = _scale(values, stats, method)
    if method == "z-score":
        return (values - low) / span
    return (values - low) / span * 2 - 1


def unnormalise(values: np.ndarray, stats: Stats, method: Method) -> np.ndarray:
    """float64 [..., D]: what `normalise` was given."""
    if method == "identity":
        return np.asarray(values, np.float64)
    low, span = _scale(values, stats, method)
    if method == "z-score":
        return values * span + low
    return (values + 1) / 2 * span + low


def trim(stats: Stats, dims: int) -> Stats:
    """The stats of the first `dims` dimensions: openpi's files may describe the model's padded ones
    too. Raises ValueError if there are fewer."""
    if len(stats.mean) < dims:
        raise ValueError(
            f"the norm stats cover {len(stats.mean)} dimensions, {dims} are needed: they belong to "
            "another robot"
        )
    return Stats(
        mean=stats.mean[:dims],
        std=stats.std[:dims],
        q01=None if stats.q01 is None else stats.q01[:dims],
        q99=None if stats.q99 is None else stats.q99[:dims],
    )


def _scale(values: np.ndarray, stats: Stats, method: Method) -> tuple[np.ndarray, np.ndarray]:
    dims = np.shape(values)[-1] if np.ndim(values) else None
    if dims != len(stats.mean):
        raise ValueError(f"the norm stats cover {len(stats.mean)} dimensions, the data has {dims}")
    if method == "z-score":
        return np.array(stats.mean), np.array(stats.std) + EPSILON
    if method not in ("quantile", "quantile-10", "min-max"):
        raise ValueError(f"normalisation is one of {', '.join(get_args(Method))}, not {method!r}")
    if stats.q01 is None or stats.q99 is None:
        raise ValueError(
            "quantile normalisation needs q01 and q99, which these norm stats lack: compute them "
            "again, or use z-score if the policy was trained so"
        )
    low = np.array(stats.q01)
    return low, np.array(stats.q99) - low + EPSILON


# --- files, and what cannot be right -----------------------------------------------------------


def read_norm_stats(path: str | Path) -> dict[str, Stats]:
    """Stats by key ("state", "actions") from openpi's `norm_stats.json`.

    Raises one ValueError for all that is wrong, by key and entry (`checked_stats`).
    """
    try:
        entries = json.loads(Path(path).read_bytes())["norm_stats"]
        if not isinstance(entries, dict):
            raise TypeError(f"norm_stats is {entries!r}, no object")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"cannot read norm stats from {path}: {error!r}; expected "
            '{"norm_stats": {"state": {"mean": [...], "std": [...]}, "actions": ...}}'
        ) from error
    return checked_stats(entries, str(path))


def write_norm_stats(path: str | Path, stats: dict[str, Stats]) -> None:
    """Writes openpi's `norm_stats.json`; `read_norm_stats` gives the same values back."""
    entries = {key: dataclasses.asdict(value) for key, value in stats.items()}
    Path(path).write_text(json.dumps({"norm_stats": entries}, indent=2) + "\n", "utf-8")


def checked_stats(entries: Mapping[str, object], where: str) -> dict[str, Stats]:
    """Stats of whatever source, by key ("state", "actions"): each an object with `mean` and `std`
    [D], and possibly `q01` and `q99`.

    Raises one ValueError that names `where`, and the key and entry of all that cannot be: missing
    or other values than finite numbers, lengths that differ, a negative std, q99 below q01.
    """
    stats, problems = {}, []
    for key, entry in entries.items():
        found, wrong = _checked(entry)
        problems += [f"{key}: {problem}" for problem in wrong]
        if found is not None:
            stats[key] = found
    if problems:
        raise ValueError("\n  ".join([f"the norm stats in {where} cannot be right:", *problems]))
    return stats


def _checked(entry: object) -> tuple[Stats | None, list[str]]:
    """One key's stats, or what is wrong with them."""
    if not isinstance(entry, Mapping):
        return None, [f"{entry!r}; expected an object with mean and std"]
    problems, vectors = [], {}
    for name in ("mean", "std", "q01", "q99"):
        value = entry.get(name)
        if value is None:
            problems += [f"{name} is missing"] if name in ("mean", "std") else []
            continue
        try:
            numbers = value if isinstance(value, np.ndarray) else np.array(value)
            if numbers.dtype.kind in "bUSO":  # texts and truth values would pass for numbers
                raise ValueError
            vectors[name] = numbers.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name} is no list of numbers")
            continue
        problems += _vector_problems(name, vectors[name])
    if not problems:
        problems += _contradictions(vectors)
    if problems:
        return None, problems
    found = {name: tuple(vector.tolist()) for name, vector in vectors.items()}
    return Stats(found["mean"], found["std"], found.get("q01"), found.get("q99")), []


def _vector_problems(name: str, vector: np.ndarray) -> list[str]:
    if vector.ndim == 2:
        return [
            f"{name} is a table of {vector.shape[0]} x {vector.shape[1]}: stats for every step of "
            "a chunk are not supported; compute them over all steps, one number a dimension"
        ]
    if vector.ndim != 1 or not vector.size:
        return [f"{name} has the shape {list(vector.shape)}; expected one number a dimension"]
    wrong = [f"{name}[{i}] is {vector[i]}" for i in np.flatnonzero(~np.isfinite(vector))[:3]]
    return [f"{', '.join(wrong)}; expected finite numbers"] if wrong else []


def _contradictions(vectors: Mapping[str, np.ndarray]) -> list[str]:
    """What cannot be, of vectors that are right one by one."""
    sizes = {name: len(vector) for name, vector in vectors.items()}
    if len(set(sizes.values())) > 1:
        return [f"the lengths differ: {', '.join(f'{n} {size}' for n, size in sizes.items())}"]
    problems = [
        f"std[{i}] is {vectors['std'][i]:.6g}; a standard deviation is not negative"
        for i in np.flatnonzero(vectors["std"] < 0)[:3]
    ]
    if {"q01", "q99"} <= vectors.keys():
        low, high = vectors["q01"], vectors["q99"]
        problems += [
            f"q99[{i}] is {high[i]:.6g}, below q01[{i}], {low[i]:.6g}: are they swapped?"
            for i in np.flatnonzero(high < low)[:3]
        ]
    return problems


# --- from data ----------------------------------------------------------------------------------


class RunningStats:
    """Stats of data that comes in pieces: mean, deviation, and 1 % and 99 % quantiles from one
    histogram a dimension, whose range grows with the data (openpi's way; a quantile is off by about
    a bin, range / 5000)."""

    def __init__(self, bins: int = 5000):
        self._bins = bins
        self._count = 0

    def update(self, values: np.ndarray) -> None:
        """Takes in [..., D]; every leading axis counts as more vectors."""
        values = np.asarray(values, np.float64)
        rows = values.reshape(-1, values.shape[-1])
        if not np.isfinite(rows).all():
            raise ValueError("norm stats need finite values; NaN or infinity came")
        if not len(rows):
            return
        if not self._count:
            dims = rows.shape[1]
            self._mean, self._squares = np.zeros(dims), np.zeros(dims)
            self._low, self._high = rows.min(0), rows.max(0)
            self._histogram = np.zeros((dims, self._bins))
        if rows.shape[1] != len(self._mean):
            raise ValueError(f"{rows.shape[1]} dimensions came, {len(self._mean)} came before")
        self._widen(np.minimum(self._low, rows.min(0)), np.maximum(self._high, rows.max(0)))
        for dim, column in enumerate(rows.T):
            self._histogram[dim] += np.histogram(column, self._edges(dim))[0]
        # The squared deviations of two sets join without loss (Chan, Golub and LeVeque 1979).
        difference, total = rows.mean(0) - self._mean, self._count + len(rows)
        self._squares += rows.var(0) * len(rows) + difference**2 * self._count * len(rows) / total
        self._mean += difference * len(rows) / total
        self._count = total

    def stats(self) -> Stats:
        """The stats so far; raises ValueError for fewer than two vectors."""
        if self._count < 2:
            raise ValueError(f"norm stats need at least two vectors, {self._count} came")
        q01, q99 = (
            [self._quantile(dim, share) for dim in range(len(self._mean))] for share in (0.01, 0.99)
        )
        std = np.sqrt(self._squares / self._count)
        return Stats(*(tuple(map(float, vector)) for vector in (self._mean, std, q01, q99)))

    def _edges(self, dim: int) -> np.ndarray:
        margin = 1e-10  # a dimension that never moves still needs bins of some width
        return np.linspace(self._low[dim] - margin, self._high[dim] + margin, self._bins + 1)

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        old = [self._edges(dim) for dim in range(len(low))]
        changed = np.flatnonzero((low < self._low) | (high > self._high))
        self._low, self._high = low, high
        for dim in changed.tolist():
            centres = (old[dim][1:] + old[dim][:-1]) / 2
            self._histogram[dim] = np.histogram(
                centres, self._edges(dim), weights=self._histogram[dim]
            )[0]

    def _quantile(self, dim: int, share: float) -> float:
        below = np.concatenate([[0.0], np.cumsum(self._histogram[dim])])
        return np.interp(share * below[-1], below, self._edges(dim))
