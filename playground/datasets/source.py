"""Where a dataset's files are: a folder of this machine, or a dataset of the Hugging Face Hub, of
which only the files that somebody asks for are fetched.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Protocol

from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from playground.datasets import room

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Of a dataset that a stranger chooses. LeRobot itself begins another file at 100 MB of rows and at
# 200 or 500 MB of video.
MAX_PUBLIC_FILE = 1 << 29


class Source(Protocol):
    """Where files come from. title: for people; revision: the commit, "" for a folder."""

    title: str
    revision: str

    def path(self, name: str) -> Path:
        """The file called `name` (relative, with "/") on this machine, fetched if need be.

        Raises ValueError that names it: outside the dataset, or not there.
        """
        ...

    def listing(self, folder: str) -> list[str]:
        """Names of all files below a folder of the dataset, sorted; [] where there is none."""
        ...


def is_repository(word: str) -> bool:
    """Whether that could be the name of a dataset on the Hub."""
    return bool(_REPOSITORY.fullmatch(word))


def inside(name: str) -> str:
    """The name, if it stays in the dataset's folder; else raises ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\\0:]", name) or not path.parts:
        raise ValueError(f"{name!r} leads out of the dataset's folder")
    return str(path)


class Folder:
    """A dataset in a folder of this machine."""

    def __init__(self, root: str | Path):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}")
        self.title, self.revision = root.name, ""
        self._root = root
        # Links must not lead out of the folder. The Hub's cache keeps its files as links to blobs.
        self._homes = [root.resolve()]
        if root.resolve().parent.name == "snapshots":
            self._homes.append(root.resolve().parent.parent / "blobs")

    def path(self, name: str) -> Path:
        path = self._root / inside(name)
        if not any(path.resolve().is_relative_to(home) for home in self._homes):
            raise ValueError(f"{name} is a link that leads out of the dataset's folder")
        if not path.is_file():
            raise ValueError(f"{name} is not there (in {self._root})")
        return path

    def listing(self, folder: str) -> list[str]:
        found = (self._root / inside(folder)).rglob("*")
        return sorted(path.relative_to(self._root).as_posix() for path in found if path.is_file())


class Hub:
    """A dataset of the Hub at one commit.

    repository: "owner/name". revision: a branch, tag or commit; the newest of `main` if None.
    endpoint: another server than the Hub. public: strangers choose the dataset; it is read without
    this machine's login, and no file of more than MAX_PUBLIC_FILE. Raises ValueError for what is no
    such name, not there, or cannot be reached.
    """

    def __init__(
        self,
        repository: str,
        revision: str | None = None,
        endpoint: str | None = None,
        *,
        public: bool = False,
    ):
        if not is_repository(repository):
            raise ValueError(f"{repository!r} is no dataset of the Hub: expected owner/name")
        self.title, self.revision, self._endpoint = repository, revision or "", endpoint
        self._public, self._token = public, False if public else None
        self._cache = room.folder() if public else None
        self._api = HfApi(endpoint=endpoint, token=self._token)
        # What lies in the cache under a commit may be private: for strangers the Hub is asked.
        if revision is not None and _COMMIT.fullmatch(revision) and not public:
            self.revision = revision
            return
        try:
            found = self._api.dataset_info(repository, revision=revision or "main")
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"the Hub has no dataset {repository} at {revision or 'main'}, or it is private "
                "(then log in with `hf auth login`)"
            ) from error
        except (HfHubHTTPError, OSError) as error:
            raise ValueError(
                f"cannot ask the Hub for {repository}, is there a network? ({error})"
            ) from error
        self.revision = found.sha or "main"

    def path(self, name: str) -> Path:
        name = inside(name)
        where = {"repo_type": "dataset", "revision": self.revision, "endpoint": self._endpoint}
        try:
            if self._cache is not None:
                room.use(self._cache, self.title)
                self._check_size(name, where, self._cache)
            found = hf_hub_download(
                self.title, name, token=self._token, cache_dir=self._cache, **where
            )
        except EntryNotFoundError as error:
            raise ValueError(f"{name} is not there (in {self.title} of the Hub)") from error
        except (HfHubHTTPError, OSError) as error:
            raise ValueError(f"cannot get {name} of {self.title} from the Hub: {error}") from error
        return Path(found)

    def _check_size(self, name: str, where: dict[str, str | None], cache: Path) -> None:
        """Asks the Hub how large a file is that is not here yet, and makes room for it."""
        kept = {"cache_dir": cache, "repo_type": "dataset", "revision": self.revision}
        if isinstance(try_to_load_from_cache(self.title, name, **kept), str):
            return
        url = hf_hub_url(self.title, name, **where)
        size = get_hf_file_metadata(url, token=self._token, endpoint=self._endpoint).size or 0
        if size > MAX_PUBLIC_FILE:
            raise ValueError(
                f"{name} of {self.title} has {size >> 20} MB; a page that others than its owner "
                f"can reach takes files of at most {MAX_PUBLIC_FILE >> 20} MB"
            )
        room.make(cache, self.title, size)

    def listing(self, folder: str) -> list[str]:
        try:
            tree = self._api.list_repo_tree(
                self.title,
                inside(folder),
                recursive=True,
                revision=self.revision,
                repo_type="dataset",
            )
            return sorted(item.path for item in tree if hasattr(item, "size"))
        except EntryNotFoundError:
            return []
        except (HfHubHTTPError, OSError) as error:
            raise ValueError(f"cannot list {folder} of {self.title} on the Hub: {error}") from error
