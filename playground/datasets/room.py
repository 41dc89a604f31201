"""Where datasets of the Hub are kept that strangers choose, and how much of the disk they may take.

They have a folder of their own, laid out as the Hub's library does it: what the owner of the
machine has fetched is neither counted nor removed.
"""

import os
import shutil
import time
from pathlib import Path

import filelock
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

MOST = 20 << 30  # bytes of all datasets together
# A dataset that was read in this time may be open somewhere, and stays.
IN_USE_S = 1800.0


def folder() -> Path:
    """Beside the Hub's own cache."""
    return Path(constants.HF_HUB_CACHE).parent / "pi0-playground-visitors"


def use(root: Path, repository: str) -> None:
    """Notes that a dataset is read now."""
    home = _home(root, repository)
    home.mkdir(parents=True, exist_ok=True)
    os.utime(home)


def make(root: Path, repository: str, needed: int) -> None:
    """Makes room for `needed` bytes of a dataset: those that were read longest ago are removed.

    Raises ValueError where only datasets are left that were read within the last half hour.
    """
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / "room.lock"):
        homes = [path for path in root.glob("datasets--*") if path.is_dir()]
        sizes = {home: _size(home) for home in homes}
        oldest = sorted(homes, key=lambda home: home.stat().st_mtime)
        over = sum(sizes.values()) + needed - MOST
        for home in oldest:
            if over <= 0:
                return
            idle = time.time() - home.stat().st_mtime
            if home != _home(root, repository) and idle > IN_USE_S:
                shutil.rmtree(home, ignore_errors=True)
                over -= sizes[home]
        if over > 0:
            raise ValueError(
                f"this page keeps {MOST >> 30} GB of its visitors' datasets, and all of that is in "
                "use: try again in half an hour"
            )


def _home(root: Path, repository: str) -> Path:
    return root / repo_folder_name(repo_id=repository, repo_type="dataset")


def _size(home: Path) -> int:
    """Of the files themselves; the snapshots are links to them."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
