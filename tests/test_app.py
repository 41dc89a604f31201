"""The program: its settings, and what its process may load. test_page.py runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

import app

ROOT = Path(__file__).resolve().parents[1]


def test_page_s_process_loads_no_model_code():
    """One process owns the device; the page's must not so much as import what would take it."""
    script = "import sys, app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "gradio" in found
    assert "playground" in found
    assert not {"jax", "jaxlib", "flax", "orbax", "mujoco"} & set(found)


def test_settings(monkeypatch):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    told = app.settings([])
    assert (told.host, told.port) == ("127.0.0.1", 7860)
    assert list(told.policies) == ["pi0_tabletop", "pi0_fast_tabletop"]
    told = app.settings(["--host", "::1", "--port", "80", "--policies", "pi0_tabletop"])
    assert (told.host, told.port, told.policies) == ("::1", 80, ["pi0_tabletop"])


def test_a_space_s_address_is_taken(monkeypatch):
    """Hugging Face sets these where it starts app.py."""
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7861")
    told = app.settings([])
    assert (told.host, told.port) == ("0.0.0.0", 7861)


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        app.settings(["--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--host", "--port", "--policies"))
