"""What a result may depend on besides its recipe: versions of what computes, and the machine."""

import contextlib
import functools
import importlib.metadata
import os
import platform

from playground.serving.compile_cache import processor_digest

_COMPUTING = ("jax", "jaxlib", "flax", "numpy", "pillow", "sentencepiece")


def versions() -> dict[str, str]:
    """By name. On a machine and versions that are equal, a run repeats bit for bit."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _COMPUTING:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    # How many threads share a sum decides the order of its terms.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.machine()} {processor_digest()}, {cores} cores"
    return {
        **found,
        "python": platform.python_version(),
        "machine": machine,
    }
