"""openpi's own client, in an environment of its own (it needs numpy below 2)."""

import io
import json
import os
import struct
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

HERE = Path(__file__).parent
_LIMIT_S = 120
# The client needs typing_extensions, and does not say so.
_STOCK = ("openpi-client==0.1.2", "typing_extensions")


@pytest.fixture(scope="session")
def stock_python(request, tmp_path_factory):
    """A Python with openpi-client 0.1.2, made once and kept in pytest's cache, if it has one."""
    if request.config.pluginmanager.hasplugin("cacheprovider"):
        folder = Path(request.config.cache.mkdir("openpi-client-0.1.2"))
    else:
        folder = tmp_path_factory.mktemp("openpi-client")
    with FileLock(f"{folder}.lock"):  # pytest's workers share it
        if not (folder / "done").exists():
            _install(folder)
    return folder / "bin" / "python"


def _install(folder):
    venv.create(folder, clear=True, with_pip=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", *_STOCK]
    if subprocess.run(command, capture_output=True).returncode:
        if os.environ.get("CI"):
            pytest.fail("openpi-client 0.1.2 could not be installed")
        pytest.skip("openpi-client 0.1.2 cannot be installed here")
    (folder / "done").touch()


class StockClient:
    """openpi's own client in a process of its own, see tests/support/stock_openpi_client.py."""

    def __init__(self, python, url, broker=""):
        command = [python, HERE / "stock_openpi_client.py", url, str(broker)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.metadata = json.loads(self._read()["metadata"].item())

    def infer(self, message):
        flat = {}
        for key, value in message.items():
            for inner, item in value.items() if isinstance(value, dict) else [("", value)]:
                flat[f"{key}/{inner}" if inner else key] = item
        file = io.BytesIO()
        np.savez(file, **flat)
        self._process.stdin.write(struct.pack("<Q", file.tell()) + file.getvalue())
        self._process.stdin.flush()
        return self._read()

    def _read(self):
        (size,) = struct.unpack("<Q", self._process.stdout.read(8))
        return dict(np.load(io.BytesIO(self._process.stdout.read(size))))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(_LIMIT_S)
        self._process.stdout.close()
