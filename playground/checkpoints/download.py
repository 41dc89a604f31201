"""Getting published files: checkpoints and PaliGemma's tokenizer from Google's public buckets, the
FAST tokenizer from the Hugging Face hub.

Where a file goes is openpi's own cache, `OPENPI_DATA_HOME` (by default `~/.cache/openpi`), under
openpi's own names, so that either finds what the other got. What is there is not asked of the
network again. A download goes to a name of its own (`.incoming`), continues where it broke off, is
compared with the size and hash that the server publishes, and takes its place at once when it is
whole. Its SHA-256 are then recorded beside it (`SHA256SUMS`), and hold from then on.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TypeVar

import filelock
import google_crc32c

from models.checkpoints.digests import (
    ADAPTERS,
    CONFIG,
    DIGESTS,
    record_digests,
    sha256,
    weights_file,
    write_file,
)
from playground.checkpoints.catalog import PALIGEMMA_TOKENIZER
from playground.checkpoints.entry import Entry

T = TypeVar("T")

# bytes done, bytes in all, the file at hand
Progress = Callable[[int, int, str], None]

# Of the hub's files, those that are data.
DESCRIPTION_FILES = ("*.json", "policy_*.safetensors")
POLICY_FILES, TOKENIZER_FILES = ("*.json", "*.safetensors"), ("*.json",)

TIMEOUT_S = 60.0
REACHABLE_S = 5.0
ATTEMPTS = 5
PIECE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Servers:
    """Where addresses lead: `gs://bucket/path` and `hf://owner/name`."""

    buckets: str = "https://storage.googleapis.com"
    hub: str = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    wait_s: float = 1.0  # before the second attempt; twice as long before each next one


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """A file as its server publishes it. version: changes when the file does. digest: of an
    algorithm's name and the hexadecimal value, or None where the server tells none."""

    name: str
    url: str
    size: int
    version: str
    digest: tuple[str, str] | None


def obtain(entry: Entry, progress: Progress | None = None, servers: Servers | None = None) -> Entry:
    """The entry with its checkpoint, and pi0-FAST's action tokenizer, in folders of this machine.

    Raises ValueError as `fetch` does, and for an entry that is published nowhere.
    """
    if entry.folder is None and entry.address is None:
        raise ValueError(f"{entry.name} has no files to fetch. {entry.notice}")
    folder, tokenizer = entry.folder, entry.action_tokenizer
    for part, address, needs in _published(entry):
        patterns = POLICY_FILES if part == "checkpoint" else TOKENIZER_FILES
        path = fetch(address, progress, needs=needs, patterns=patterns, servers=servers)
        if part == "checkpoint":
            folder = path
        else:
            tokenizer = str(path)
    return dataclasses.replace(entry, folder=folder, action_tokenizer=tokenizer)


def missing(entry: Entry) -> list[str]:
    """The addresses of what opening it would fetch. Asks the network nothing."""
    needed = [(address, needs) for _, address, needs in _published(entry)]
    if entry.kind != "bundled" and entry.text_tokenizer is None:
        needed.append((PALIGEMMA_TOKENIZER, ()))
    return [address for address, needs in needed if not _is_whole(local_path(address), needs)]


def reachable(addresses: Iterable[str], servers: Servers | None = None) -> bool:
    """Whether the servers of these addresses answer at all, within seconds."""
    servers = servers or Servers()
    for scheme in {urllib.parse.urlsplit(address).scheme for address in addresses}:
        try:
            with urllib.request.urlopen(
                servers.hub if scheme == "hf" else servers.buckets, timeout=REACHABLE_S
            ):
                pass
        except urllib.error.HTTPError:
            continue  # it answers, with what it thinks of such a request
        except (OSError, http.client.HTTPException):
            return False
    return True


def _published(entry: Entry) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(part, address, names it needs) of what is not in a folder of this machine's."""
    if entry.folder is None and entry.address is not None:
        needs = ("params/manifest.ocdbt", f"assets/{entry.asset_id}/norm_stats.json")
        yield "checkpoint", entry.address, needs
    tokenizer = entry.action_tokenizer
    if tokenizer is not None and not Path(tokenizer).is_dir():
        yield "tokenizer", f"hf://{tokenizer}", ("processor_config.json",)


def cache_folder() -> Path:
    return Path(os.environ.get("OPENPI_DATA_HOME", "~/.cache/openpi")).expanduser().absolute()


def local_path(address: str) -> Path:
    """Where an address's files are or will be. Raises ValueError for any other kind of address."""
    parts = urllib.parse.urlsplit(address)
    path = _relative(parts.path.strip("/"))
    if parts.scheme == "gs":
        return cache_folder() / parts.netloc / path
    if parts.scheme == "hf":
        return cache_folder() / "huggingface" / parts.netloc / path
    raise ValueError(f"cannot fetch {address!r}: expected gs://bucket/path or hf://owner/name")


def fetch(
    address: str,
    progress: Progress | None = None,
    *,
    needs: tuple[str, ...] = (),
    patterns: tuple[str, ...] = TOKENIZER_FILES,
    servers: Servers | None = None,
) -> Path:
    """The file or folder at an address, on this machine; downloads what is not there yet.

    patterns: of the hub's files, which to get; never anybody's code. needs: names that the folder
    must have to count as whole, for openpi may have fetched a part of it. Raises ValueError that
    names the file: missing, unreadable, not what was published, or no room; what has come is kept,
    and the next call goes on from it.
    """
    path, servers = local_path(address), servers or Servers()
    if not _is_whole(path, needs):
        with _as_value_error(address):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The name of openpi's lock, so that it and this wait for each other.
            with filelock.FileLock(path.with_suffix(".lock")):
                if not _is_whole(path, needs):
                    report = progress or (lambda *_: None)
                    if address.startswith("hf:"):
                        _download_hub(address, path, report, servers, patterns)
                    else:
                        _download(address, path, report, servers)
    if not _is_whole(path, needs):
        absent = [name for name in needs if not (path / name).exists()]
        raise ValueError(f"{address} has no {' and no '.join(absent)}")
    _hold(path)
    return path


def fetch_policy(
    address: str, progress: Progress | None = None, *, description_only: bool = False
) -> Path:
    """LeRobot's policy in a repository of the hub, on this machine: all of its data, or only what
    describes it, which is small. Raises ValueError as `fetch` does."""
    path, report = local_path(address), progress or (lambda *_: None)
    patterns = DESCRIPTION_FILES if description_only else POLICY_FILES

    def whole() -> bool:
        weights = weights_file(path) is not None or (path / ADAPTERS).is_file()
        return (path / CONFIG).is_file() and (description_only or weights)

    if not whole():
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            if not whole():
                _download_hub(address, path, report, Servers(), patterns)
        if not whole():
            raise ValueError(
                f"{address} is no policy of LeRobot's: it has no {CONFIG} or no weights"
            )
        if not description_only:
            record_digests(path)
    return path


def _is_whole(path: Path, needs: tuple[str, ...]) -> bool:
    return path.exists() and all((path / name).exists() for name in needs)


def _hold(path: Path) -> None:
    """Records the digests at first use. A file is compared with them at once; a folder's are when
    its checkpoint is read (`verify_digests`)."""
    if path.is_dir():
        if not (path / DIGESTS).exists() and os.access(path, os.W_OK):
            record_digests(path)
        return
    record = path.with_name(path.name + ".sha256")
    if record.exists():
        if record.read_text().split()[:1] != [sha256(path)]:
            raise ValueError(
                f"{path} has changed since it was fetched; remove it to fetch it again"
            )
    elif os.access(path.parent, os.W_OK):
        write_file(record, f"{sha256(path)}  {path.name}\n".encode())


# --- what there is ------------------------------------------------------------------------------


_HASHES = {"md5": "md5Hash", "crc32c": "crc32c"}  # ours, and the bucket's name for it


def _list_bucket(bucket: str, prefix: str, server: str) -> tuple[list[Remote], bool]:
    """Source: Google Cloud Storage's JSON API, objects.list."""
    items, page = [], ""
    while page is not None:
        fields = "nextPageToken,items(name,size,md5Hash,crc32c,generation)"
        query = {"prefix": prefix, "fields": fields, **({"pageToken": page} if page else {})}
        address = f"{server}/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
        answer = _get_json(address)
        items += answer.get("items", [])
        page = answer.get("nextPageToken")
    exact = [item for item in items if item["name"] == prefix and int(item["size"])]
    below = [item for item in items if item["name"].startswith(prefix + "/")]
    remotes = []
    for item in exact or below:
        name = PurePosixPath(prefix).name if exact else item["name"].removeprefix(prefix + "/")
        if not name or name.endswith("/"):
            continue  # a stand-in for a folder
        url = f"{server}/{bucket}/{urllib.parse.quote(item['name'])}"
        # Objects put together of several have no MD5.
        digest = next(((k, item[v]) for k, v in _HASHES.items() if v in item), None)
        remotes.append(
            Remote(
                _relative(name),
                f"{url}?generation={item['generation']}",
                int(item["size"]),
                str(item["generation"]),
                digest and (digest[0], base64.b64decode(digest[1]).hex()),
            )
        )
    return remotes, bool(exact)


def _relative(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"a server names a file {name!r}, which lies outside its folder")
    return str(path)


def _get_json(url: str):
    with _open(url) as answer:
        return json.loads(answer.read())


def _open(url: str, start: int = 0):
    request = urllib.request.Request(url, headers={"User-Agent": "pi0-playground"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


# --- getting it ---------------------------------------------------------------------------------


def _download(address: str, path: Path, progress: Progress, servers: Servers) -> None:
    parts = urllib.parse.urlsplit(address)
    remotes, single = _retried(
        lambda: _list_bucket(parts.netloc, parts.path.strip("/"), servers.buckets), servers.wait_s
    )
    if not remotes:
        raise ValueError(f"there is nothing at {address}")
    incoming = path.with_name(path.name + ".incoming")
    missing = [r for r in remotes if not any(_is_it(r, f / r.name) for f in (path, incoming))]
    _check_room(path.parent, sum(remote.size for remote in missing))
    total = sum(remote.size for remote in remotes)
    done = total - sum(remote.size for remote in missing)
    for remote in missing:
        for came in _get(remote, incoming / remote.name, servers.wait_s):
            progress(done + came, total, remote.name)
        done += remote.size
    progress(done, total, "")
    wanted = {incoming / remote.name for remote in remotes}
    for stray in [f for f in incoming.rglob("*") if f.is_file() and f not in wanted]:
        stray.unlink()  # begun of an earlier version
    if single:
        os.replace(incoming / remotes[0].name, path)
    elif path.exists():
        # openpi has been here and fetched a part; what it has is kept.
        for remote in missing:
            target = path / remote.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(incoming / remote.name, target)
    else:
        os.replace(incoming, path)
    shutil.rmtree(incoming, ignore_errors=True)


def _download_hub(
    address: str, path: Path, progress: Progress, servers: Servers, patterns: tuple[str, ...]
) -> None:
    """A model repository's files, at the commit that is newest now, each compared with the hub's
    hash: Git's own of files in Git, a SHA-256 of large ones."""
    import huggingface_hub  # takes half a second

    parts = urllib.parse.urlsplit(address)
    repository = parts.netloc + parts.path
    api = huggingface_hub.HfApi(endpoint=servers.hub)
    with _of_the_hub(address):
        info = api.model_info(repository, files_metadata=True)
    files = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, p) for p in patterns)]
    if not files:
        raise ValueError(f"there is nothing at {address} ({', '.join(patterns)})")
    total, done = sum(file.size or 0 for file in files), 0
    incoming = path.with_name(path.name + ".incoming")
    _check_room(path.parent, total)
    for file in files:
        name = _relative(file.rfilename)
        digest = ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id or "")
        remote = Remote(name, address, file.size or 0, info.sha or "", digest)
        if not any(_is_it(remote, folder / name) for folder in (path, incoming)):
            counter = _counter(progress, done, total, name)
            with _of_the_hub(address):
                _get_from_hub(api, repository, remote, incoming, counter)
        done += remote.size
        progress(done, total, name)
    shutil.rmtree(incoming / ".cache", ignore_errors=True)
    for file in [f for f in incoming.rglob("*") if f.is_file()]:
        target = path / file.relative_to(incoming)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(incoming, ignore_errors=True)


def _get_from_hub(api, repository: str, remote: Remote, folder: Path, counter: type) -> None:
    """One file, once more if it came with other bytes than the hub tells."""
    for again in (False, True):
        api.hf_hub_download(
            repository,
            remote.name,
            revision=remote.version,
            local_dir=folder,
            force_download=again,
            tqdm_class=counter,
        )
        if _is_it(remote, folder / remote.name):
            return
    raise ValueError(
        f"{remote.url}: {remote.name} does not have the hash that the hub publishes, twice over; "
        "something on the way changes files"
    )


@contextlib.contextmanager
def _of_the_hub(address: str) -> Iterator[None]:
    """The library's failures, of its own kinds and its HTTP client's, as ValueErrors."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        answer = getattr(getattr(error, "response", None), "status_code", None)
        if answer in (401, 403):
            hint = (
                "it is private or wants its terms accepted: do so on its page, and `hf auth login`"
            )
        elif answer == 404:
            hint = "there is no such repository or file"
        else:
            hint = (
                f"is there a network? Without one, copy it from elsewhere to {local_path(address)}"
            )
        raise ValueError(f"cannot get {address}, {hint} ({error})") from error


def _counter(progress: Progress, done: int, total: int, name: str) -> type:
    """A progress bar as huggingface_hub wants one, which shows nothing and reports."""
    from huggingface_hub.utils import tqdm

    class Counter(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": True})
            self._came = kwargs.get("initial", 0) or 0

        def update(self, n=1):
            self._came += n or 0
            progress(done + int(self._came), total, name)

    return Counter


def _is_it(remote: Remote, path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    return remote.digest is None or _digest(path, remote.digest[0]) == remote.digest[1]


def _digest(path: Path, algorithm: str) -> str:
    """Hexadecimal; "git" is the name that Git gives to a file's content."""
    if algorithm == "git":
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    with path.open("rb") as file:
        if algorithm == "crc32c":
            code = google_crc32c.Checksum()
            while piece := file.read(1 << 20):
                code.update(piece)
            return code.hexdigest().decode()
        new = lambda: hashlib.new(algorithm, usedforsecurity=False)  # noqa: E731
        return hashlib.file_digest(file, new).hexdigest()


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"no room in {folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; "
            "OPENPI_DATA_HOME chooses another place"
        )


def _get(remote: Remote, path: Path, wait_s: float) -> Iterator[int]:
    """Downloads one file, going on from what is there; yields how many bytes there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another version of the file has another name: two are never joined.
    part = path.with_name(f"{path.name}.{remote.version}.part")
    failures = spoilt = 0
    while True:
        before = _size(part)
        try:
            yield from go_on(remote, part)
            if _is_it(remote, part):
                os.replace(part, path)
                return
            part.unlink()
            spoilt += 1
            if spoilt > 1:
                raise ValueError(f"{remote.name} came twice, and not as the server publishes it")
            continue
        except _TRANSIENT as error:
            if _is_final(error):
                raise
            # Whoever gets on is not failing.
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise
        time.sleep(wait_s * 2 ** (failures - 1))


def go_on(remote: Remote, part: Path) -> Iterator[int]:
    start = _size(part)
    if start >= remote.size:
        yield start
        return
    with _open(remote.url, start) as answer:
        if start and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends all of it again
        with part.open("ab" if start else "wb") as file:
            while piece := answer.read(min(PIECE, remote.size - start)):
                file.write(piece)
                start += len(piece)
                yield start
    if start < remote.size:
        raise http.client.IncompleteRead(b"", remote.size - start)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- failures -----------------------------------------------------------------------------------

_TRANSIENT = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    json.JSONDecodeError,
)


def _is_final(error: Exception) -> bool:
    """Whether trying again is of no use: the server has understood, and refuses."""
    if not isinstance(error, urllib.error.HTTPError):
        return False
    return 400 <= error.code < 500 and error.code not in (408, 416, 429)


def _retried(ask: Callable[[], T], wait_s: float) -> T:
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except _TRANSIENT as error:
            if _is_final(error) or attempt == ATTEMPTS - 1:
                raise
        time.sleep(wait_s * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def _as_value_error(address: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise ValueError(f"cannot get {address}: {error.url} answers {error.code}") from error
    except _TRANSIENT as error:
        raise ValueError(
            f"cannot get {address}, is there a network? Without one, copy it from elsewhere to "
            f"{local_path(address)} ({error})"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot keep {address} in {cache_folder()}: {error}") from error
