"""Where the files lie that come with the project: bundled policies, episode and examples."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
