"""How a LeRobot policy's state and actions are normalised: the step of its processors that does so.

Sources: as in `lerobot_config.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from models.checkpoints import lerobot_processors as processors
from models.checkpoints.arrays import Stored, open_safetensors
from models.checkpoints.lerobot_processors import Step

Normalisation = Literal["z-score", "quantile", "quantile-10", "min-max", "identity"]
NORMALISATIONS: dict[str, Normalisation] = {
    "MEAN_STD": "z-score",
    "QUANTILES": "quantile",
    "QUANTILE10": "quantile-10",
    "MIN_MAX": "min-max",
    "IDENTITY": "identity",
}
# The two that a rule of ours needs, by what LeRobot calls them.
NEEDED = {
    "z-score": ("mean", "std"),
    "quantile": ("q01", "q99"),
    "quantile-10": ("q10", "q90"),
    "min-max": ("min", "max"),
    "identity": (),
}
STATISTICS = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
IMAGES = "observation.images."


@dataclasses.dataclass(frozen=True, slots=True)
class Normaliser:
    """A step that normalises, or undoes it, with its tensors by LeRobot's names."""

    where: str
    features: Mapping[str, Mapping] | None
    norm_map: Mapping[str, str]
    keys: list[str] | None
    epsilon: float
    arrays: Mapping[str, Stored]

    def of_observation(self, feature: str, kind: str) -> Normalisation:
        """LeRobot leaves alone the observations that are not in `features`, or not in `keys`, and
        takes their kind from the former."""
        if self.keys is not None and feature not in self.keys:
            return "identity"
        if self.features is not None:
            kind = self.features.get(feature, {"type": "ACTION"})["type"]
        return "identity" if kind == "ACTION" else self.method(kind)

    def check_pictures(self) -> None:
        """Raises ValueError where pictures are normalised by stats, which is not done here."""
        for feature in self.features or {}:
            measured = any(name.startswith(f"{feature}.") for name in self.arrays)
            if feature.startswith(IMAGES.rstrip("s.")) and measured:
                method = self.of_observation(feature, "VISUAL")
                if method != "identity":
                    raise ValueError(
                        f"{self.where}: {feature} is normalised by {method}; only IDENTITY is "
                        "supported for pictures: run this policy in LeRobot"
                    )

    def method(self, kind: str) -> Normalisation:
        """LeRobot leaves alone what is not in the map."""
        name = self.norm_map.get(kind, "IDENTITY")
        if name not in NORMALISATIONS:
            raise ValueError(
                f"{self.where}: {kind} is normalised by {name}; expected one of "
                f"{', '.join(NORMALISATIONS)}"
            )
        return NORMALISATIONS[name]

    def stats(self, feature: str) -> dict[str, np.ndarray]:
        """A feature's numbers, by statistic; {} where there are none."""
        found = ((name, f"{feature}.{name}") for name in STATISTICS)
        return {name: self.arrays[key].read() for name, key in found if key in self.arrays}


def read_normaliser(folder: Path, step: Step) -> Normaliser:
    """Its tensors' file is named in the step: the number in that name changes between versions."""
    file = (
        processors.PREPROCESSOR if step.name == processors.NORMALISE else processors.POSTPROCESSOR
    )
    where = f"{folder / file}, step {step.name!r}"
    norm_map, epsilon = step.settings.get("norm_map"), step.settings.get("eps", 1e-8)
    if norm_map is None:
        raise ValueError(f'{where}: norm_map is missing; expected such as {{"STATE": ...}}')
    arrays = {}
    if step.state_file is not None:
        if not isinstance(step.state_file, str) or not re.fullmatch(r"[^/\\]+", step.state_file):
            raise ValueError(
                f"{where}: state_file is {step.state_file!r}; expected a name in the folder"
            )
        arrays = open_safetensors(folder / step.state_file)
    keys = step.settings.get("normalize_observation_keys")
    return Normaliser(where, step.settings.get("features"), norm_map, keys, epsilon, arrays)
