"""The program: its settings, and what its process may load. test_page.py runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

import app
from playground import choice

ROOT = Path(__file__).resolve().parents[1]


def test_page_s_process_loads_no_model_code():
    """One process owns the device; the page's must not so much as import what would take it."""
    script = (
        "import sys, app, playground.health, playground.ui.page\n"
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
    told = app.settings().parse_args([])
    assert (told.host, told.port, told.checkpoint) == ("127.0.0.1", 7860, [])
    told = app.settings().parse_args(["--host", "::1", "--port", "80", "--checkpoint", "pi0_droid"])
    assert (told.host, told.port, told.checkpoint) == ("::1", 80, ["pi0_droid"])


def test_a_space_s_address_is_taken(monkeypatch):
    """Hugging Face sets these where it starts app.py."""
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7861")
    told = app.settings().parse_args([])
    assert (told.host, told.port) == ("0.0.0.0", 7861)


def test_what_is_opened_by_default_and_by_name():
    asked, robots = choice.chosen([])
    assert asked == ["pi0_tabletop", "pi0_fast_tabletop"]
    assert {robot.name for robot in robots.values()} == {"tabletop"}
    asked, robots = choice.chosen(["pi0_droid", "pi0_fast_droid"])
    assert {name: robot.name for name, robot in robots.items()} == dict.fromkeys(asked, "droid")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "pi0_drod"], "pi0_droid"),
        (["--checkpoint", "./nowhere"], "nowhere"),
        (["--port", "http"], "--port"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_line(arguments, words):
    run = subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert words in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("goldens")
def test_a_folder_of_ones_own(goldens):
    """openpi's does not say which config made it; nothing is guessed."""
    with pytest.raises(ValueError, match="which config"):
        choice.chosen([str(goldens / "pi0")])
    asked, robots = choice.chosen([str(goldens / "pi0")], "pi0_aloha")
    assert asked[0]["config"] == "pi0_aloha"
    assert [robot.name for robot in robots.values()] == ["aloha"]
