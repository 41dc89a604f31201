"""The program: its settings, and what its process may load. test_page.py runs it."""

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import app
from playground.checkpoints import catalog, resolve
from playground.ui import program

ROOT = Path(__file__).resolve().parents[1]


def test_page_s_process_loads_no_model_code():
    """One process owns the device; the page's must not so much as import what would take it."""
    script = (
        "import sys, app, playground.serving.health, playground.ui.page\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gradio" in found
    assert "playground" in found
    assert not {"jax", "jaxlib", "flax", "orbax", "mujoco"} & set(found)


def test_settings(monkeypatch):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    given = app.settings().parse_args([])
    assert (given.host, given.port, given.checkpoint) == ("127.0.0.1", 7860, [])
    given = app.settings().parse_args(
        ["--host", "::1", "--port", "80", "--checkpoint", "pi0_droid"]
    )
    assert (given.host, given.port, given.checkpoint) == ("::1", 80, ["pi0_droid"])


def test_a_space_s_address_is_taken(monkeypatch):
    """Hugging Face sets these where it starts app.py."""
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7861")
    given = app.settings().parse_args([])
    assert (given.host, given.port) == ("0.0.0.0", 7861)


def test_what_is_opened_by_default_and_by_name():
    assert robots_by_name([]) == dict.fromkeys(catalog.BUNDLED, "tabletop")
    droid = ["pi0_droid", "pi0_fast_droid"]
    assert robots_by_name(droid) == dict.fromkeys(droid, "droid")


def robots_by_name(checkpoints, config=None):
    """Of what opens when these are asked for."""
    entries = resolve.resolve_all(resolve.requests(checkpoints, config))
    return {entry.name: entry.robot.name for entry in entries}


def started(*arguments, **environment):
    """Of a program that ends by itself."""
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_packages_that_a_variable_names_are_installed_first(tmp_path):
    """With the program as it was asked for afterwards; what pip cannot get is said in a line."""
    wheel = tmp_path / "for_a_gpu-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        about = "for_a_gpu-1.0.dist-info"
        file.writestr("sitecustomize.py", "print('begun with it')")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: for-a-gpu\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    site = str(tmp_path / "site")
    pip = {"PIP_TARGET": site, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PYTHONPATH": site}
    run = started("--checkpoint", "pi0_drod", PI0_PLAYGROUND_INSTALL=str(wheel), **pip)
    assert run.stdout.splitlines()[-1] == "begun with it"
    assert "did you mean pi0_droid" in run.stderr.splitlines()[-1]
    run = started(PI0_PLAYGROUND_INSTALL="for-a-gpu-not", **pip)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("pip could not install for-a-gpu-not")


def test_a_port_that_is_taken_is_said_in_a_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        run = started("--port", str(port := other.getsockname()[1]))
    assert run.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "pi0_drod"], "pi0_droid"),
        (["--checkpoint", "./nowhere"], "nowhere"),
        (["--port", "http"], "--port"),
        (["--shadow", "robot:8000"], "a policy server is ws://HOST:PORT, not 'robot:8000'"),
        (["--port", "99999"], "a port is a number from 1 to 65535, not '99999'"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_line(arguments, words):
    run = started(*arguments)
    assert run.returncode == 2
    assert words in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_settings_that_cannot_be_are_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    for name, value, words in (
        ("GRADIO_SERVER_PORT", "abc", "a port is a number from 1 to 65535, not 'abc'"),
        ("GRADIO_TEMP_DIR", str(tmp_path / "file"), "no folder for visitors' files"),
    ):
        run = started(**{name: value})
        assert run.returncode == 2
        assert words in run.stderr.splitlines()[-1]
        assert "Traceback" not in run.stderr


class Closed:
    def close(self):
        pass


def test_visitors_files_are_this_user_s_alone(monkeypatch, tmp_path):
    """In a folder of each start's own, or in the one that is named."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    folders = []
    for _ in range(2):
        files = program.private_folder(Closed())
        folders.append(Path(os.environ.pop("GRADIO_TEMP_DIR")))
        assert folders[-1].stat().st_mode & 0o777 == 0o700
        files.cleanup()
        assert not folders[-1].exists()
    assert folders[0] != folders[1]
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "named"))
    assert program.private_folder(Closed()) is None
    assert (tmp_path / "named").stat().st_mode & 0o777 == 0o700


def test_an_address_of_ipv6_is_opened(tmp_path):
    """And the page is served under it; the worker's process is none of this test's."""
    code = """
import sys, gradio as gr, httpx
from playground.ui import page
with gr.Blocks(analytics_enabled=False) as blocks:
    gr.HTML()
page.serve(blocks, "::1", int(sys.argv[1]))
print(blocks.local_url, httpx.get(blocks.local_url).status_code)
"""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = str(probe.getsockname()[1])
    run = subprocess.run(
        [sys.executable, "-c", code, port],
        cwd=ROOT,
        env={**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines()[-1] == f"http://[::1]:{port}/ 200", run.stderr


@pytest.mark.usefixtures("goldens")
def test_a_folder_of_ones_own(goldens):
    """openpi's does not say which config made it; nothing is guessed."""
    with pytest.raises(ValueError, match="which config"):
        robots_by_name([str(goldens / "pi0")])
    assert list(robots_by_name([str(goldens / "pi0")], "pi0_aloha").values()) == ["aloha"]
