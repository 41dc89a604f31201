"""Compiled programs outlive the process, so that a program is compiled once for each machine."""

import functools
import hashlib
import logging
import os
import platform
import tempfile
import zlib
from pathlib import Path

import jax

MAX_SIZE = 4 << 30  # bytes on disk; a program has some 0.5 MB
_LOG = logging.getLogger(__name__)
_ZSTD = b"\x28\xb5\x2f\xfd"  # JAX's compression from Python 3.14 on


def keep_compiled_programs() -> None:
    """Has JAX keep them in a folder that nobody else can write: whoever can put a program there can
    have it run. CPU programs fit one kind of processor only, so each kind has a folder of its own.
    `PI0_PLAYGROUND_CACHE` moves it. Where there can be no such folder, programs are compiled at
    each start, and a line of the log says so. Kept is what took 0.2 s to compile, or as long as
    JAX's own variable says, up to MAX_SIZE: visitors choose what is compiled."""
    try:
        folder = _private_folder()
        _drop_damaged(folder)
        _note_use(folder)
    # RuntimeError: of a user whom the system does not know, who has no home.
    except (OSError, RuntimeError) as error:
        _LOG.warning(
            "compiled programs are not kept (%s); PI0_PLAYGROUND_CACHE names another folder", error
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", MAX_SIZE)


def _private_folder() -> Path:
    """Of this user's own, and writable; raises OSError where there is none."""
    home = os.environ.get("PI0_PLAYGROUND_CACHE") or Path.home() / ".cache" / "pi0-playground"
    folder = Path(home) / "programs" / processor_digest()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder.parent, folder):
        path.chmod(0o700)  # which only its owner may
    with tempfile.TemporaryFile(dir=folder):
        return folder


@functools.cache
def processor_digest() -> str:
    """A short digest of the processor's kind and abilities."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    kind = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.machine(), *sorted(kind or lines)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _drop_damaged(folder: Path) -> None:
    """Of a process that was killed, or a disk that failed, an entry may be incomplete: the checksum
    of its compression says so. JAX compiles such a program anew, but keeps the damaged entry, so
    that it would compile at every start. Entries in zstd are left to JAX."""
    for entry in folder.glob("*-cache"):
        data = entry.read_bytes()
        try:
            if not data.startswith(_ZSTD):
                zlib.decompress(data)
        except zlib.error:
            entry.unlink(missing_ok=True)


def _note_use(folder: Path) -> None:
    """JAX (0.9) drops what was used longest ago, and keeps nothing more where of one entry it does
    not know when that was: one that was kept without a bound, or by a process that was killed."""
    for entry in folder.glob("*-cache"):
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        if not used.exists() or used.stat().st_size != 8:
            used.write_bytes(entry.stat().st_mtime_ns.to_bytes(8, "little"))
