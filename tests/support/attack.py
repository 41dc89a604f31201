"""Strangers who mean harm, one of each kind, over HTTP: what a page must bear while others use it.

They come as through a proxy on the same machine, from one address that is not the visitors'. Each
goes on until it is stopped, and minds no refusal. What they send is made once: on a machine of
their own it would cost the page nothing either.
"""

import contextlib
import functools
import io
import json
import secrets
import socket
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from tests.support.table import in_all

_TIMEOUT_S = 60.0
_FROM = "203.0.113.7"
_MARK = {"_type": "gradio.FileData"}


class Attacker:
    """address: of the page; picture: one that the page takes."""

    def __init__(self, address: str, picture: Path):
        self._address, self._picture = address, picture
        self._http = httpx.Client(
            base_url=f"{address}/gradio_api",
            timeout=_TIMEOUT_S,
            headers={"x-forwarded-for": _FROM},
        )
        config = httpx.get(f"{address}/config", timeout=_TIMEOUT_S).json()
        self._parts = {part["id"]: part["props"] for part in config["components"]}
        self._functions = config["dependencies"]
        information = self._http.get("/info").json()["named_endpoints"]["/infer"]
        self._defaults = {
            one["parameter_name"]: one.get("parameter_default") for one in information["parameters"]
        }

    def _upload(self, data: bytes) -> dict:
        (path,) = self._http.post("/upload", files={"files": ("x.png", data)}).json()
        return {"path": path, "meta": _MARK}

    def _function(self, name: str) -> dict:
        return next(one for one in self._functions if one["api_name"] == name)

    def _join(self, function: dict, data: list) -> str:
        session = secrets.token_hex(6)
        body = {"fn_index": function["id"], "data": data, "session_hash": session}
        self._http.post("/queue/join", json=body)
        return session

    def long_path(self) -> None:
        file = {"path": "/tmp" + "/a" * 100_000, "meta": _MARK}
        self._http.post("/queue/join", json={"data": [file], "fn_index": 5, "session_hash": "x"})

    def many_values(self) -> None:
        body = b'{"data": [' + b"[]," * 100_000 + b"[]]}"
        self._http.post("/queue/join", content=body)

    def half_sent_heads(self) -> None:
        there = urlsplit(self._address)
        with contextlib.ExitStack() as held:
            for _ in range(50):
                connection = socket.create_connection((there.hostname, there.port), _TIMEOUT_S)
                held.enter_context(connection).sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\n")
            connection.settimeout(_TIMEOUT_S)
            connection.recv(1)

    def broken_upload(self) -> None:
        there = urlsplit(self._address)
        head = (
            f"POST /gradio_api/upload HTTP/1.1\r\nhost: {there.netloc}\r\n"
            "content-length: 9000000\r\ncontent-type: multipart/form-data; boundary=x\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        )
        with socket.create_connection((there.hostname, there.port), _TIMEOUT_S) as connection:
            connection.sendall(head.encode() + bytes(1 << 20))

    def pictures_of_many_scans(self) -> None:
        self._ask_of(self._upload(_many_scans()))

    def large_pictures(self) -> None:
        self._ask_of(self._upload(_large_picture()))

    def run_files_of_many_members(self) -> None:
        function = self._function("open_file")
        values = [self._parts[place].get("value") for place in function["inputs"]]
        self._join(function, [self._upload(_run_file()), *values[1:]])

    def answers_that_nobody_reads(self) -> None:
        self._ask_of(self._upload(self._picture.read_bytes()), num_steps=100, num_samples=32)

    def _ask_of(self, picture: dict, **options) -> None:
        """Asks and does not wait for the answer."""
        given = {"prompt": "touch the red cube", "images": in_all(picture), **options}
        self._join(self._function("infer"), list((self._defaults | given).values()))


@functools.cache
def _many_scans() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + data[-2:]


@functools.cache
def _large_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "PNG")
    return file.getvalue()


@functools.cache
def _run_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("recipe.json", json.dumps([[]] * 300_000))
    return file.getvalue()


KINDS: dict[str, Callable[[Attacker], None]] = {
    name: kind for name, kind in vars(Attacker).items() if name[0] != "_"
}


@contextlib.contextmanager
def under_way(
    address: str, picture: Path, kinds: Iterable[str] = KINDS, pause_s: float = 0.2
) -> Iterator[None]:
    """One attacker of each of these kinds, each a thread that repeats itself after a pause."""
    over = threading.Event()

    def attack(kind: Callable[[Attacker], None]) -> None:
        attacker = Attacker(address, picture)
        while not over.wait(pause_s):
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError):  # refused
                kind(attacker)

    threads = [threading.Thread(target=attack, args=(KINDS[kind],), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
