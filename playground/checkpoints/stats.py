"""A checkpoint's norm stats, over its robot's dimensions and under the one rule that policies know.

Nothing here loads JAX.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.checkpoints.lerobot_config import LeRobotPolicy, read_lerobot
from models.checkpoints.lerobot_normaliser import NEEDED
from playground.checkpoints.entry import Entry
from playground.robots.norm_stats import BOUNDS, EPSILON, checked_stats, read_norm_stats, trim
from playground.trace import Method, Stats


def norm_stats(entry: Entry) -> dict[str, Stats]:
    """The stats of "state" and "actions", over the robot's dimensions.

    Raises ValueError if they are missing, are for fewer dimensions, lack what the entry's
    normalisation needs, or cannot be right.
    """
    stats = _stored(entry)
    dims = {"state": len(entry.robot.state), "actions": len(entry.robot.actions)}
    if missing := dims.keys() - stats.keys():
        raise ValueError(f"the norm stats of {entry.folder} lack {', '.join(sorted(missing))}")
    stats = {key: trim(stats[key], count) for key, count in dims.items()}
    ranges = {"quantile", "quantile-10", "min-max"}
    if any(stats[key].q01 is None for key, method in entry.methods.items() if method in ranges):
        raise ValueError(
            f"{entry.name} is normalised by quantiles, and the norm stats of {entry.folder} have "
            "none (q01, q99): compute them again with openpi's script"
        )
    return stats


def stats_notes(entry: Entry) -> tuple[str, ...]:
    """What is odd about stats of more dimensions than the robot has: openpi's may cover the model's
    padded ones, which never move."""
    notes = []
    stored = _stored(entry)
    for key, dimensions in (("state", entry.robot.state), ("actions", entry.robot.actions)):
        stats, count = stored[key], len(dimensions)
        moving = [i for i, std in enumerate(stats.std) if i >= count and std > EPSILON]
        if moving:
            notes.append(
                f"The norm stats of {key} cover {len(stats.std)} dimensions, and those at "
                f"{', '.join(map(str, moving))} moved in training, but {entry.robot.title} has "
                f"{count}: they belong to another robot."
            )
    return tuple(notes)


def norm_stats_file(entry: Entry) -> Path:
    """Where an openpi or bundled checkpoint has its norm stats; ValueError that lists others."""
    if entry.kind == "bundled":
        return entry.here / "norm_stats.json"
    assets = entry.here / "assets"
    path = assets / entry.asset_id / "norm_stats.json"
    if not path.is_file():
        found = sorted(
            file.parent.relative_to(assets).as_posix() for file in assets.rglob("norm_stats.json")
        )
        raise ValueError(
            f"{entry.folder} has no norm stats for {entry.asset_id!r} (expected {path}); "
            + (
                f"it has some for {', '.join(found)}: choose with --asset-id, or as asset_id in "
                "the JSON config"
                if found
                else "it has none at all: copy assets/ from the training run, beside the parameters"
            )
        )
    return path


def _stored(entry: Entry) -> dict[str, Stats]:
    """As the folder has them, of whatever length."""
    if entry.kind == "lerobot":
        described = read_lerobot(entry.here)
        if set(entry.methods.values()) == {"identity"} and not any(described.stats.values()):
            robot = entry.robot
            parts = {"state": len(robot.state), "actions": len(robot.actions)}
            return {key: Stats((0.0,) * n, (1.0,) * n, None, None) for key, n in parts.items()}
        return _lerobot_stats(described, entry.here)
    return read_norm_stats(norm_stats_file(entry))


def _lerobot_stats(described: LeRobotPolicy, where: Path) -> dict[str, Stats]:
    """LeRobot's stats, shifted so that openpi's rule gives LeRobot's numbers.

    openpi divides by std + 1e-6 and by q99 - q01 + 1e-6, also on the way back. LeRobot divides by
    std + 1e-8, multiplies by std, and takes the range as it is unless it is zero.
    """
    entries: dict[str, dict] = {}
    for key, stats in described.stats.items():
        method = described.normalisation[key]
        if missing := [name for name in NEEDED[method] if name not in stats]:
            raise ValueError(
                f"{where} carries no norm stats for {key} ({', '.join(missing)}), which "
                f"{method} needs: save the policy again with its dataset's stats"
            )
        width = described.state_dim if key == "state" else described.action_dim
        entries[key] = _named_as_ours(stats, method, width)
    checked_stats(entries, str(where))
    return {
        key: _as_openpi_counts(
            entry, described.epsilon[key] if key == "state" else 0.0, described.epsilon[key]
        )
        for key, entry in entries.items()
    }


def _named_as_ours(
    stats: Mapping[str, np.ndarray], method: Method, width: int
) -> dict[str, np.ndarray]:
    """Stats under openpi's names; of a rule that needs neither mean nor std, placeholders for those
    that are missing, which that rule never reads."""
    low, high = BOUNDS[method]
    theirs = {"mean": "mean", "std": "std", "q01": low, "q99": high}
    found = {ours: stats[name] for ours, name in theirs.items() if name in stats}
    if method == "min-max":
        found.setdefault("mean", (stats["min"] + stats["max"]) / 2)
        found.setdefault("std", (stats["max"] - stats["min"]) / 2)
    if method == "identity":
        found.setdefault("mean", np.zeros(width))
        found.setdefault("std", np.ones(width))
    return found


def _as_openpi_counts(entry: Mapping[str, np.ndarray], added: float, epsilon: float) -> Stats:
    """added: what LeRobot adds to this std; epsilon: what a range of zero is for it."""
    values = {name: value.astype(np.float64) for name, value in entry.items()}
    values["std"] = values["std"] + added - EPSILON
    if {"q01", "q99"} <= values.keys():
        span = values["q99"] - values["q01"]
        values["q99"] = values["q01"] + np.where(span == 0, epsilon, span) - EPSILON
    found = {name: tuple(vector.tolist()) for name, vector in values.items()}
    return Stats(found["mean"], found["std"], found.get("q01"), found.get("q99"))
