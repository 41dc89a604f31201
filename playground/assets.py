"""Where the files lie that come with the project: policies, tokenizer, episodes and examples."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
