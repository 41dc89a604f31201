"""What fits into memory, judged before anything is loaded; and freed memory that is kept.

The plan counts what stays (weights, cached image tokens and prefixes) and the most that passes
(one call's activations, or an array on its way to the device).
"""

import ctypes
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from models.checkpoints.openpi import rows
from models.config import Config, DType, Pi0Config
from models.decoding import DRAFT_LENGTH
from playground.checkpoints.entry import Entry
from playground.policies.base import KEPT_IMAGES, KEPT_PREFIXES, MAX_SAMPLES, MAX_TOKENS

_SIZES = {"float32": 4, "bfloat16": 2}
FRACTIONS = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
# What JAX takes of a GPU when nobody says how much: its own 75 % of 16 GB would not hold both 3B
# policies, and the rest would serve nobody.
_FRACTION = 0.92
_FLAGS = "XLA_FLAGS"
_BY_LAYER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
_GAPS = 0.03  # of the memory is lost between allocations
_PYTHON = 1_000_000_000  # bytes that the process takes on the host without any model


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one policy.

    weights, caches: they stay
    working: the most that one call takes beside them
    staging: the most that the host holds for an array on its way to the device
    loading: the most that staging and the weights loaded by then come to
    on_host: whether it runs on the host's processor even where there is another device
    """

    name: str
    weights: int
    caches: int
    working: int
    staging: int
    loading: int
    on_host: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Bytes that are free. device: None where the device computes in the host's memory, or does
    not tell; host: None where it is not known."""

    device: int | None
    host: int | None
    shared: bool


def need(name: str, config: Config, storage: DType, *, on_host: bool = False) -> Need:
    """What a policy takes with its weights in `storage` and its arithmetic in the config's type.

    Loading is counted as of openpi's files in float32, largest array first
    (models/checkpoints/assembly.py).
    """
    stored, computed = _SIZES[storage], _SIZES[config.dtype]
    weights, loading, staging = 0, 0, 0
    arrays = sorted((math.prod(row.stored_shape) for row in rows(config)), reverse=True)
    for count in arrays:
        staging = max(staging, 2 * 4 * count)
        loading = max(loading, weights + 2 * 4 * count)
        weights += stored * count
    images = KEPT_IMAGES * config.vision.num_tokens * config.language.width * computed
    return Need(
        name=name,
        weights=weights,
        caches=images + KEPT_PREFIXES * _prefix(config, computed),
        # Weights that are computed with in another type are widened as they come (`prepare`).
        working=_working(config, computed) + (stored != computed) * 4 * _widened(config),
        staging=staging,
        loading=max(loading, weights),
        on_host=on_host,
    )


def precision(entry: Entry, *, cpu: bool) -> tuple[Config, DType]:
    """(the config with the type it computes in, the type of its weights). Real checkpoints are
    stored in bfloat16, as openpi serves them. A CPU computes in float32 all the same: its bfloat16
    products are many times slower."""
    config = entry.config
    if entry.kind in ("bundled", "untrained"):
        return config, config.dtype
    if cpu:
        config = dataclasses.replace(config, dtype="float32")
    return config, "bfloat16"


def _prefix(config: Config, size: int) -> int:
    """Keys and values of one prefix; for pi0-FAST with room for the tokens to come."""
    language, room = config.language, 0 if isinstance(config, Pi0Config) else MAX_TOKENS
    a_place = 2 * language.depth * language.num_kv_heads * language.head_dim * size
    return (config.prefix_len + room) * a_place


def _working(config: Config, size: int) -> int:
    """The largest of the calls: a camera, a prefix, all samples of one loop."""
    vision, language, places = config.vision, config.language, config.prefix_len
    camera = _layer(vision, vision.num_tokens, vision.num_tokens, size)
    if isinstance(config, Pi0Config):
        expert, columns = config.action_expert, places + config.suffix_len
        samples = MAX_SAMPLES * (_layer(expert, config.suffix_len, columns, size))
        prefixes = MAX_SAMPLES * _prefix(config, size)
        return max(camera, _layer(language, places, places, size), samples + prefixes)
    # Those of a draft's tokens, and them again as they lie for its verification.
    logits = 2 * DRAFT_LENGTH * config.vocab_size * 4
    prefix = _layer(language, places, places + MAX_TOKENS, size)
    return max(camera, prefix) + 2 * _prefix(config, size) + logits


def _layer(layer, rows: int, columns: int, size: int) -> int:
    """What one transformer layer holds at once for `rows` tokens over `columns` keys: the scores in
    float32 and their softmax, the MLP's hidden arrays, and a handful of residuals."""
    scores = 2 * layer.num_heads * rows * columns * 4
    return scores + rows * (3 * layer.mlp_dim + 8 * layer.width) * size


def _widened(config: Config) -> int:
    """Elements of what is widened at once: one layer's widest pair of matrices, or the table that
    pi0-FAST's logits are made with."""
    table = 0 if isinstance(config, Pi0Config) else config.vocab_size
    return config.language.width * max(2 * config.language.mlp_dim, table)


def check(needs: Sequence[Need], machine: Machine) -> None:
    """Raises ValueError where the policies do not fit together, with what came, what is there and
    how to mend it. What is not known is not judged."""
    if machine.shared:
        stay = [n.weights + n.caches for n in needs]
        loading = max(sum(stay[:i]) + n.loading for i, n in enumerate(needs))
        most = max(_resident(needs), loading) + _PYTHON
        _compare("memory", needs, most, machine.host, _MORE_HOST)
    else:
        away = [n for n in needs if not n.on_host]
        _compare("device memory", away, _resident(away), machine.device, _MORE_DEVICE)
        here = _resident([n for n in needs if n.on_host]) + max(n.staging for n in needs)
        _compare("host memory", needs, here + _PYTHON, machine.host, _MORE_HOST)


def _resident(needs: Sequence[Need]) -> int:
    """What they come to while they are asked one after the other."""
    return sum(n.weights + n.caches for n in needs) + max((n.working for n in needs), default=0)


_MORE_HOST = "a machine with more memory, or one where less of it is in use"
_MORE_DEVICE = (
    f"a larger GPU, one where less is in use, or a larger share of it ({FRACTIONS[0]}, if set)"
)


def _compare(where: str, needs: Sequence[Need], wanted: int, free: int | None, mend: str) -> None:
    if free is None or wanted <= free * (1 - _GAPS):
        return
    parts = ", ".join(f"{n.name} with {_gb(n.weights)} of weights" for n in needs)
    fewer = "Open fewer policies at once, or use " if len(needs) > 1 else "Use "
    raise ValueError(
        f"{parts}: loading and running needs {_gb(wanted)} of {where}, and {_gb(free)} are free. "
        f"{fewer}{mend}."
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


# --- this machine -------------------------------------------------------------------------------


def prepare(*, narrow: bool = False) -> None:
    """Once, before JAX starts: its share of a GPU, unless the environment says; and freed memory is
    kept for the next call. narrow: whether weights may be stored in a narrower type than is
    computed in; a CPU then widens them layer by layer.

    For the sake of concurrency XLA would widen all layers of a program at once: 0.44 GB each of the
    3B models' 18 in a prefix. The C library hands a large buffer back to the kernel when it is
    freed, and gets the next one page by page and zeroed. A call of a model allocates tens of MB and
    frees them: up to 512 MB stay here.
    """
    if not any(os.environ.get(name) for name in FRACTIONS):
        os.environ[FRACTIONS[1]] = str(_FRACTION)
    if narrow:
        os.environ[_FLAGS] = f"{_BY_LAYER} {os.environ.get(_FLAGS, '')}"  # theirs win
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "mallopt"):
        for option, value in _MALLOC:
            library.mallopt(option, value)


# malloc.h's M_ARENA_MAX (all threads share the one arena that may grow), M_MMAP_THRESHOLD and
# M_TRIM_THRESHOLD.
_MALLOC = ((-8, 1), (-3, 256 << 20), (-1, 512 << 20))


def machine() -> Machine:
    """This one, as it is now."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    free = None if limit is None else limit - stats.get("bytes_in_use", 0)
    return Machine(free, host_free(Path("/")), shared=device.platform == "cpu")


def empty_machine(gpu_gb: float | None) -> Machine:
    """This one, as if nothing else used it, without starting JAX. gpu_gb: of the GPU that JAX would
    run on, None without one."""
    device = None if gpu_gb is None else int(gpu_gb * 1e9 * _FRACTION)
    return Machine(device, host_memory(Path("/")), shared=gpu_gb is None)


def host_free(root: Path) -> int | None:
    """What is available to this process: the machine's, or what its container may still take.
    Reads `proc` and `sys` under `root`; None where there is no such thing."""
    return _least(_meminfo(root, "MemAvailable"), _group(root, used=True))


def host_memory(root: Path) -> int | None:
    """All there is, in use or not."""
    return _least(_meminfo(root, "MemTotal"), _group(root, used=False))


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)


def _meminfo(root: Path, name: str) -> int | None:
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _group(root: Path, *, used: bool) -> int | None:
    """Of a container's limit, less what it uses; None without one, or without a limit ("max")."""
    group = root / "sys/fs/cgroup"
    try:
        most = int((group / "memory.max").read_text())
        return most - int((group / "memory.current").read_text()) if used else most
    except (OSError, ValueError):
        return None
