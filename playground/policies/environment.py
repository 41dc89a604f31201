"""What a result may depend on besides its recipe: versions of what computes, and the machine."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

_COMPUTING = ("jax", "jaxlib", "flax", "numpy", "pillow", "sentencepiece")


def versions() -> dict[str, str]:
    """By name. On a machine and versions that are equal, a run repeats bit for bit."""
    found = {name: importlib.metadata.version(name) for name in _COMPUTING}
    # How many threads share a sum decides the order of its terms.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.machine()} {kind()}, {cores} cores"
    return {
        **found,
        "python": platform.python_version(),
        "machine": machine,
        "device": jax.devices()[0].device_kind,
    }


@functools.cache
def kind() -> str:
    """A short digest of the processor's kind and abilities."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else [platform.processor()]
    found = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), *sorted(found or lines)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
