"""Training curves as a picture, with Pillow alone."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 360, 200, 36
_INK, _FAINT, _LINE = (40, 44, 52), (214, 217, 222), (37, 99, 235)
_SKIPPED = ("step", "looks", "seconds_a_step")


def draw(log: Path, picture: Path, title: str) -> None:
    """One small plot a column of the log (CSV), three a row; nothing for a log without rows."""
    if not log.exists():
        return
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    names = [name for name in rows[0] if name not in _SKIPPED]
    steps = np.array([float(row["step"]) for row in rows])
    lines = -(-len(names) // 3)
    image = Image.new("RGB", (3 * _WIDTH, lines * _HEIGHT + 24), "white")
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, 6), f"{title}: {int(steps[-1]):,} steps", fill=_INK)
    for index, name in enumerate(names):
        corner = (index % 3 * _WIDTH, index // 3 * _HEIGHT + 24)
        _plot(pen, corner, name, steps, np.array([float(row[name]) for row in rows]))
    image.save(picture)


def _plot(pen: ImageDraw.ImageDraw, corner, name: str, steps: np.ndarray, values: np.ndarray):
    left, top = corner[0] + _MARGIN, corner[1] + 20
    right, bottom = corner[0] + _WIDTH - 12, corner[1] + _HEIGHT - 18
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return
    # The first steps of a loss would flatten all that follows.
    low, high = float(values.min()), float(np.quantile(values, 0.97))
    high = max(high, low + 1e-9)
    pen.rectangle((left, top, right, bottom), outline=_FAINT)
    pen.text((left, corner[1] + 4), name, fill=_INK)
    pen.text((left + 3, top + 2), f"{high:.3g}", fill=_INK)
    pen.text((left + 3, bottom - 13), f"{low:.3g}", fill=_INK)
    x = left + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (right - left)
    y = bottom - np.clip((values - low) / (high - low), 0, 1) * (bottom - top)
    pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=_LINE, width=2)
