"""Downloads from a local server that breaks off, refuses, and flips bytes."""

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import filelock
import pytest

from models.checkpoints import digests
from playground.checkpoints import catalog, download
from playground.checkpoints.download import Servers
from playground.checkpoints.folder import open_folder
from playground.checkpoints.resolve import Request, resolve

ADDRESS = "gs://openpi-assets/checkpoints/pi0_droid"
PREFIX = "checkpoints/pi0_droid"
CONTENT = {
    "params/manifest.ocdbt": b"manifest" * 20,
    "params/d/0123": bytes(range(256)) * 1000,
    "params/_METADATA": b"{}",
    "assets/droid/norm_stats.json": b'{"norm_stats": {}}',
}
NEEDS = ("params/manifest.ocdbt", "assets/droid/norm_stats.json")


class Faults:
    """What the server holds and how it misbehaves; what it was asked for."""

    def __init__(self):
        self.objects: dict[tuple[str, str], bytes] = {}
        self.generation = 1
        self.hash = "md5Hash"  # or crc32c, or None: what the listing tells
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        self.break_after: dict[str, list[int]] = {}  # by ending: bytes until the line drops
        self.spoil: dict[str, int] = {}  # by ending: how many answers come with a flipped byte
        self.status: dict[str, list[int]] = {}  # by ending: answers instead of the file
        self.ignore_ranges = False

    def put(self, bucket, prefix, content):
        for name, data in content.items():
            self.objects[bucket, f"{prefix}/{name}" if name else prefix] = data


def checksum(data: bytes) -> bytes:
    """CRC-32C bit by bit, big-endian, as a bucket tells it."""
    code = 0xFFFFFFFF
    for byte in data:
        code ^= byte
        for _ in range(8):
            code = code >> 1 ^ (0x82F63B78 if code & 1 else 0)
    return (code ^ 0xFFFFFFFF).to_bytes(4, "big")


def _match(table, path):
    return next((key for key in table if path.endswith(key)), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        faults = self.server.faults
        faults.asked.append(path)
        if (key := _match(faults.status, path)) and faults.status[key]:
            self._send(faults.status[key].pop(0), b"no")
        elif path.startswith("/storage/v1/b/"):
            self._list(path.split("/")[4], urllib.parse.parse_qs(parts.query))
        elif path.startswith("/api/models/"):
            self._hub(path)
        else:
            bucket, _, name = path.strip("/").partition("/")
            data = faults.objects.get((bucket, name)) or faults.objects.get(("hub", path))
            self._object(path, data)

    def _list(self, bucket, query):
        """Two files a page, as a real listing of many would come."""
        faults = self.server.faults
        prefix, start = query["prefix"][0], int(query.get("pageToken", ["0"])[0])
        names = sorted(n for b, n in faults.objects if b == bucket and n.startswith(prefix))
        items = []
        for name in names[start : start + 2]:
            data = faults.objects[bucket, name]
            item = {"name": name, "size": str(len(data)), "generation": str(faults.generation)}
            if faults.hash is not None:
                digest = hashlib.md5(data).digest() if faults.hash == "md5Hash" else checksum(data)
                item[faults.hash] = base64.b64encode(digest).decode()
            items.append(item)
        answer = {"items": items} if items else {}
        if start + 2 < len(names):
            answer["nextPageToken"] = str(start + 2)
        self._send(200, json.dumps(answer).encode())

    def do_HEAD(self):
        """What huggingface_hub asks before it gets a file."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        data = self.server.faults.objects.get(("hub", path))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        if data is not None:
            self.send_header("X-Repo-Commit", "c0ffee")
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()

    def _hub(self, path):
        files = []
        repository = path.split("/revision/")[0].removeprefix("/api/models")
        for (bucket, name), data in self.server.faults.objects.items():
            if bucket == "hub" and name.startswith(f"{repository}/"):
                git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                file = {"rfilename": name.split("/c0ffee/")[1], "size": len(data), "blobId": git}
                if name.endswith(("tokenizer.json", ".safetensors")):
                    sha = hashlib.sha256(data).hexdigest()
                    file["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
                files.append(file)
        answer = {"id": repository.strip("/"), "sha": "c0ffee", "siblings": files}
        self._send(200, json.dumps(answer).encode())

    def _object(self, path, data):
        faults = self.server.faults
        if data is None:
            self._send(404, b"no")
            return
        if (key := _match(faults.spoil, path)) and faults.spoil[key]:
            faults.spoil[key] -= 1
            data = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        asked = self.headers.get("Range")
        faults.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if faults.ignore_ranges:
            start = 0
        data = data[start:]
        limit = None
        if (key := _match(faults.break_after, path)) and faults.break_after[key]:
            limit = faults.break_after[key].pop(0)
        self._send(206 if start else 200, data, limit)

    def _send(self, status, data, limit=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:limit])
        if limit is not None:
            self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.faults = Faults()
        httpd.faults.put("openpi-assets", PREFIX, CONTENT)
        # A neighbour whose name begins the same way is none of it.
        httpd.faults.put("openpi-assets", PREFIX + "_2", {"params/x": b"x"})
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def faults(server):
    return server.faults


@pytest.fixture
def fetch(server):
    address = f"http://127.0.0.1:{server.server_port}"
    servers = Servers(buckets=address, hub=address, wait_s=0.0)

    def fetch(what=ADDRESS, **options):
        return download.fetch(what, servers=servers, **options)

    fetch.servers = servers
    return fetch


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }


def nothing_left_over(path):
    return {p.name for p in path.parent.iterdir()} <= {path.name, path.stem + ".lock"}


def test_a_checkpoint(fetch, faults, tmp_path):
    calls = []
    path = fetch(needs=NEEDS, progress=lambda *call: calls.append(call))
    # Where openpi itself puts it and looks for it.
    assert path == tmp_path / "cache" / "openpi-assets" / "checkpoints" / "pi0_droid"
    assert content(path) == CONTENT
    assert nothing_left_over(path)
    digests.verify_digests(path)
    size = sum(map(len, CONTENT.values()))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1] == (size, size, "")
    # With the files in place nothing is asked of the network.
    faults.asked.clear()
    assert fetch(needs=NEEDS) == path
    assert faults.asked == []


def test_a_line_that_drops(fetch, faults):
    """It goes on from where it broke off, again and again."""
    faults.break_after["0123"] = [100_000, 1, 50_000, 0, 0, 0, 90_000]
    assert content(fetch()) == CONTENT
    starts = [int(r[6:-1]) for r in faults.ranges if r]
    assert starts[:3] == [100_000, 100_001, 150_001]
    assert starts[-1] == 240_001


def test_a_line_that_is_dead(fetch, faults):
    faults.break_after["0123"] = [100_000] + [0] * 20
    with pytest.raises(ValueError, match="cannot get gs://openpi-assets/checkpoints/pi0_droid, is"):
        fetch()
    path = download.local_path(ADDRESS)
    assert not path.exists()
    # The next call goes on; what is whole is not fetched again.
    faults.break_after.clear()
    faults.asked.clear()
    faults.ranges.clear()
    assert content(fetch()) == CONTENT
    assert faults.ranges.count("bytes=100000-") == 1
    assert not any(name.endswith("_METADATA") for name in faults.asked)
    assert nothing_left_over(path)


def test_a_server_that_sends_all_again(fetch, faults):
    faults.break_after["0123"] = [1000]
    faults.ignore_ranges = True
    assert content(fetch()) == CONTENT


def test_a_file_that_changed_meanwhile(fetch, faults):
    faults.break_after["0123"] = [1000] + [0] * 20
    with pytest.raises(ValueError, match="is there a network"):
        fetch()
    faults.break_after.clear()
    new = {**CONTENT, "params/d/0123": bytes(reversed(CONTENT["params/d/0123"]))}
    faults.put("openpi-assets", PREFIX, new)
    faults.generation = 2
    faults.hash = None
    assert content(fetch()) == new


@pytest.mark.parametrize("hash", ["md5Hash", "crc32c"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_flipped_byte(fetch, faults, hash, times):
    faults.hash = hash
    faults.spoil["0123"] = times
    if times == 1:
        assert content(fetch()) == CONTENT
        return
    with pytest.raises(ValueError, match="params/d/0123 came twice, and not as the server publish"):
        fetch()
    assert not download.local_path(ADDRESS).exists()


def test_refusals(fetch, faults):
    with pytest.raises(ValueError, match="there is nothing at gs://openpi-assets/checkpoints/no"):
        fetch("gs://openpi-assets/checkpoints/none")
    faults.status["0123"] = [404]
    with pytest.raises(ValueError, match=r"pi0_droid: http://127.0.0.1.*0123.* answers 404"):
        fetch()
    faults.status["/o"] = [403]
    with pytest.raises(ValueError, match="answers 403"):
        fetch()
    # A busy server is asked again.
    faults.status = {"/o": [503, 429], "0123": [500, 503]}
    assert content(fetch()) == CONTENT
    with pytest.raises(
        ValueError, match="cannot fetch 'https://x/y': expected gs://bucket/path or"
    ):
        fetch("https://x/y")


def test_no_network(fetch, monkeypatch):
    servers = Servers(buckets="http://127.0.0.1:9", wait_s=0.0)
    # It says where the file belongs, for who has it on another machine.
    place = rf"is there a network\?.* copy it from elsewhere to {download.local_path(ADDRESS)}"
    with pytest.raises(ValueError, match=rf"cannot get gs://openpi-assets.*{place}"):
        download.fetch(ADDRESS, servers=servers)


def test_names_that_leave_the_folder(fetch, faults):
    faults.put("openpi-assets", PREFIX, {"../../evil": b"x"})
    with pytest.raises(ValueError, match="lies outside its folder"):
        fetch()
    with pytest.raises(ValueError, match="lies outside its folder"):
        fetch("gs://openpi-assets/../../evil")


def test_what_openpi_has_serves(fetch, faults):
    path = download.local_path(ADDRESS)
    for name, data in CONTENT.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    assert fetch(needs=NEEDS) == path
    assert faults.asked == []
    # From the first use on its bytes are held.
    (path / "params/d/0123").write_bytes(b"other")
    with pytest.raises(ValueError, match="params/d/0123: its bytes have changed"):
        digests.verify_digests(path)


def test_a_part_that_openpi_has_is_completed(fetch, faults):
    """openpi fetches a base model's `params` alone when it trains."""
    path = download.local_path(ADDRESS)
    for name in ("params/manifest.ocdbt", "params/d/0123"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(CONTENT[name])
    assert content(fetch(needs=NEEDS)) == CONTENT
    fetched = [name for name in faults.asked if not name.startswith("/storage")]
    assert len(fetched) == 2
    assert nothing_left_over(path)
    with pytest.raises(ValueError, match=r"pi0_droid has no assets/mars/norm_stats\.json"):
        fetch(needs=("assets/mars/norm_stats.json",))


def test_two_at_once(fetch, faults):
    """The second waits for the first, and fetches nothing."""
    path = download.local_path(ADDRESS)
    path.parent.mkdir(parents=True)
    results = []
    with filelock.FileLock(path.with_suffix(".lock")):
        threads = [threading.Thread(target=lambda: results.append(fetch())) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert faults.asked == []
    for thread in threads:
        thread.join()
    assert results == [path] * 3
    assert content(path) == CONTENT
    objects = [name for name in faults.asked if not name.startswith("/storage")]
    assert len(objects) == len(CONTENT)


def test_no_room(fetch, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(ValueError, match=r"no room in .*OPENPI_DATA_HOME chooses another place"):
        fetch()


def test_a_disk_that_fills_up(fetch, faults, monkeypatch, tmp_path):
    """Seen only while writing: what has come stays, nothing is taken for whole."""

    def full(remote, part):
        part.write_bytes(b"some")
        raise OSError(28, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(download, "go_on", full)
        with pytest.raises(ValueError, match=r"cannot keep .* in .*No space left on device"):
            fetch()
    assert not download.local_path(ADDRESS).exists()


def test_one_file(fetch, faults, tmp_path):
    address = "gs://big_vision/paligemma_tokenizer.model"
    faults.put("big_vision", "paligemma_tokenizer.model", {"": b"pieces" * 50})
    path = fetch(address)
    assert path == tmp_path / "cache" / "big_vision" / "paligemma_tokenizer.model"
    assert path.read_bytes() == b"pieces" * 50
    assert fetch(address) == path
    assert not (path.parent / "paligemma_tokenizer.model.incoming").exists()
    path.write_bytes(b"PIECES" * 50)
    with pytest.raises(ValueError, match="has changed since it was fetched; remove it to fetch"):
        fetch(address)
    path.unlink()
    assert fetch(address).read_bytes() == b"pieces" * 50


HUB = {
    "tokenizer.json": b'{"model": 1}' * 30,
    "processor_config.json": b'{"scale": 10}' * 30,
    "processing_action_tokenizer.py": b"import os",
}


def test_a_tokenizer_from_the_hub(fetch, faults, tmp_path):
    faults.put("hub", "/physical-intelligence/fast/resolve/c0ffee", HUB)
    faults.spoil = {"processor_config.json": 1, "tokenizer.json": 1}
    path = fetch("hf://physical-intelligence/fast")
    assert path == tmp_path / "cache" / "huggingface" / "physical-intelligence" / "fast"
    # Never anybody's code.
    assert content(path) == {k: v for k, v in HUB.items() if k.endswith(".json")}
    digests.verify_digests(path)


def test_everything_of_an_entry(fetch, faults, tmp_path):
    faults.put("openpi-assets", "checkpoints/pi0_fast_droid", CONTENT)
    faults.put("hub", "/physical-intelligence/fast/resolve/c0ffee", HUB)
    entry = catalog.named("pi0_fast_droid")
    ours = download.obtain(entry, servers=fetch.servers)
    assert content(ours.folder) == CONTENT
    assert (tmp_path / "cache") in ours.folder.parents
    assert content(tmp_path / "cache" / "huggingface" / "physical-intelligence" / "fast")
    assert ours.action_tokenizer == str(
        tmp_path / "cache" / "huggingface" / "physical-intelligence" / "fast"
    )
    assert ours.config == entry.config
    assert download.obtain(ours, servers=fetch.servers) == ours
    with pytest.raises(ValueError, match=r"has no files to fetch\. openpi publishes no checkpoint"):
        download.obtain(catalog.named("pi0_libero"), servers=fetch.servers)


def test_a_policy_on_the_hub(goldens, faults, server, monkeypatch):
    """First what describes it, then its weights, each as it lies there."""
    place, folder = "/lerobot/pi05_base/resolve/c0ffee", goldens / "lerobot" / "pi05"
    data = {
        p.name: p.read_bytes() for p in folder.glob("*") if p.suffix in (".json", ".safetensors")
    }
    faults.put("hub", place, data | {"modeling.py": b"import os"})
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "Servers", lambda: Servers(hub=address))
    request = Request("lerobot/pi05_base", robot="libero")
    entry = resolve(request)
    described = set(data) - {"model.safetensors"}
    assert set(content(entry.folder)) == described
    assert entry.notice.startswith("Not verified: published as a base model. ")
    came = []
    download.fetch_policy(entry.address, lambda *now: came.append(now))
    assert content(entry.folder) == data
    assert came[-1][:2] == (sum(map(len, data.values())),) * 2
    digests.verify_digests(entry.folder)
    own = open_folder(folder, robot="libero")
    again = resolve(request)
    assert (again.config, again.robot, again.rules) == (own.config, own.robot, own.rules)
    assert again.address == "hf://lerobot/pi05_base"
    faults.asked.clear()
    resolve(request)
    assert not faults.asked


def test_a_policy_that_is_not_on_the_hub(server, monkeypatch):
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "Servers", lambda: Servers(hub=address))
    with pytest.raises(ValueError, match=r"there is nothing at hf://me/nothing \(\*"):
        resolve(Request("hf://me/nothing", robot="libero"))
