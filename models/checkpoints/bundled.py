"""Our own layout for small policies: `model.safetensors`, named by nnx path, and `config.json`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from models import config as configs
from models.checkpoints.arrays import DTYPES, check, has_nonfinite, open_safetensors
from models.checkpoints.assembly import Policy, abstract_model, fill, parameters_of
from models.checkpoints.digests import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    read_bundled,
    sha256,
    verify_digests,
    write_file,
)
from models.compiled import Device
from models.config import Config


def save_bundled(
    folder: Path | str,
    config: Config,
    model: Policy,
    metadata: Mapping | None = None,
    *,
    storage: str = "float32",
) -> None:
    """Writes a small policy: its weights, its config and whatever JSON goes with it.

    storage: "float32", "bfloat16" or "float16". The same model gives the same bytes. Raises
    ValueError if a weight is not finite in that precision.
    """
    if storage not in DTYPES:
        raise ValueError(f"storage is {storage!r}; expected one of {', '.join(DTYPES)}")
    arrays: dict[str, np.ndarray] = {}
    for name, value in sorted(parameters_of(model).items()):
        with np.errstate(over="ignore"):
            arrays[name] = np.ascontiguousarray(value, DTYPES[storage])
        if has_nonfinite(arrays[name]):
            raise ValueError(f"{name} is not finite in {storage}, so this model is not saved")
    weights = safetensors.numpy.save(arrays)
    description = {
        "format": FORMAT,
        "config": configs.to_dict(config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, weights)
    write_file(folder / CONFIG, text.encode())


def load_bundled(folder: Path | str, device: Device | None = None) -> tuple[Config, Policy]:
    """The config and model that `save_bundled` wrote, parameters in the config's precision and on
    the device (None: the default one).

    Raises ValueError if either file is missing, damaged, or does not fit the other.
    """
    folder = Path(folder)
    description = read_bundled(folder)
    verify_digests(folder)
    config = configs.from_dict(description["config"])
    weights = folder / WEIGHTS
    arrays = open_safetensors(weights)
    if sha256(weights) != description["weights_sha256"]:
        raise ValueError(
            f"{weights} is not the file that {CONFIG} beside it was written with; get both again"
        )
    abstract = abstract_model(config)
    check(
        f"{weights} does not fit {CONFIG} beside it:",
        {name: parameter.shape for name, parameter in parameters_of(abstract).items()},
        {name: (stored.shape, stored.dtype) for name, stored in arrays.items()},
    )
    values = ((name, stored.read()) for name, stored in arrays.items())
    return config, fill(abstract, values, config.dtype, device)
