"""What this process holds of the host's memory, in bytes."""

import contextlib
import gc
import re
import resource
from pathlib import Path

_LINUX = Path("/proc/self")


def peak_bytes() -> int:
    """The most since the program began, or since `begin_anew`. On Linux not by `getrusage`, which
    begins with what the program that started this one had held."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", (_LINUX / "status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def begin_anew() -> int:
    """From now on the peak counts anew. Gives what it begins with: the peak so far where only Linux
    could forget it."""
    gc.collect()
    with contextlib.suppress(OSError):
        (_LINUX / "clear_refs").write_text("5")
    return peak_bytes()
