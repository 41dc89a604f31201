"""What all views share: a hue for each policy family, and how arrays, pictures and code travel.

The components of this folder run in the browser: Python sends one JSON value, the code beside it
(`browser/*.js`, `browser/views.css`) draws it, and nothing comes back. `component(...)` gives the
arguments of `gr.HTML` that make one.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from playground.analysis.measured import Measured
from playground.trace import Family, PolicyInfo

# After Okabe and Ito's colour-blind-safe set, moved until each keeps a contrast of 3 on white and
# on Gradio's dark blocks; lighter ones for dark pages.
HUES: dict[Family, str] = {"pi0": "#0B7BBF", "pi05": "#008F68", "pi0_fast": "#D55E00"}
DARK_HUES: dict[Family, str] = {"pi0": "#4FB0EA", "pi05": "#33C492", "pi0_fast": "#FF9148"}
NEUTRAL = "#767B84"  # text and axes that have to read on light and on dark
FAINT = "rgba(128, 134, 145, 0.22)"  # grid lines
WASH = "rgba(128, 134, 145, 0.12)"  # shaded regions


def _properties(names: str, hues: dict[Family, str]) -> str:
    return "".join(f"{names}{family}: {hue};" for family, hue in hues.items())


# Of the whole document: --hue-<family> suits the page's theme, --paint-<family> lies on pictures,
# which are the same in light and dark. What carries data-family finds its own as --hue, --paint.
COLOURS_CSS = (
    f":root {{ {_properties('--hue-', HUES)} {_properties('--paint-', HUES)} "
    f"--hue: var(--body-text-color); --paint: {HUES['pi0']}; }}\n"
    f".dark {{ {_properties('--hue-', DARK_HUES)} --hue: var(--body-text-color); }}\n"
    + "".join(
        f'[data-family="{family}"] {{ --hue: var(--hue-{family}); '
        f"--paint: var(--paint-{family}); }}\n"
        for family in HUES
    )
)

# Plotly draws text in one colour; this style sheet gives it the page's own in both themes.
PLOT_CSS = ".js-plotly-plot .plotly text { fill: var(--body-text-color) !important; }"

# Above this many values an array travels in 16 bits a value instead of 32.
EXACT_VALUES = 16_384
_NAN_CODE = 65_535

_BROWSER = Path(__file__).parent / "browser"

# The style sheet of all components, once for the whole document: as a component's own, Gradio would
# read it again with each value. As strong as rules that name an element by its id.
VIEWS_CSS = (
    f":is(#component, .views) {{ {(_BROWSER / 'views.css').read_text(encoding='utf-8')} }}\n"
)


def component(*scripts: str) -> dict[str, Any]:
    """Arguments for `gr.HTML` that make a component out of files in `browser/`, run in this order.

    The template never changes, so Gradio leaves the elements alone when the value does: zoom,
    position and focus survive an update. The document needs `VIEWS_CSS` and `COLOURS_CSS`.
    """
    code = [(_BROWSER / name).read_text(encoding="utf-8") for name in ("core.js", *scripts)]
    return {
        "html_template": '<div class="views"><div class="view"></div></div>',
        "js_on_load": "\n".join(code),
        "apply_default_css": False,
    }


def identity(info: PolicyInfo | Measured) -> dict[str, str]:
    """What a component says about the policy whose output it draws."""
    return {
        "family": info.family,
        "title": plain(info.title),
        "badge": plain(info.badge),
        "notice": plain(info.notice),
    }


def dimensions(dims) -> list[dict[str, str]]:
    """Name, unit and meaning of each dimension, for the browser."""
    return [{"name": plain(d.name), "unit": plain(d.unit), "meaning": d.meaning} for d in dims]


def plain(text: str) -> str:
    """Text that every JSON writer takes: lone surrogates (a cut byte sequence) become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def packed(values: np.ndarray) -> dict[str, object]:
    """An array of floats as base64 with its shape, for `unpack` in browser/core.js.

    Little-endian float32, exact, up to EXACT_VALUES values; beyond that uint16 between the `low`
    and `high` of each index of the last axis (off by at most a 131,068th of that range). NaN stays
    NaN in both.
    """
    values = np.asarray(values, np.float32)
    low = high = None
    raw = values.astype("<f4")
    if values.size > EXACT_VALUES:
        columns = values.reshape(-1, values.shape[-1])
        known = ~np.isnan(columns)
        floor = np.where(known, columns, np.inf).min(axis=0)
        top = np.where(known, columns, -np.inf).max(axis=0)
        floor, top = np.where(floor <= top, floor, 0), np.where(floor <= top, top, 0)
        span = np.where(top > floor, top - floor, 1).astype(np.float64)
        codes = np.rint((values.astype(np.float64) - floor) / span * (_NAN_CODE - 1))
        raw = np.where(np.isnan(codes), _NAN_CODE, codes).astype("<u2")
        low, high = floor.astype(float).tolist(), (floor + span).astype(float).tolist()
    data = base64.b64encode(np.ascontiguousarray(raw).data).decode("ascii")
    return {"shape": list(values.shape), "data": data, "low": low, "high": high}


def unpacked(field: dict) -> np.ndarray:
    """The array in a `packed` field, float32: what browser/core.js draws from it."""
    raw = base64.b64decode(field["data"])
    if field["low"] is None:
        return np.frombuffer(raw, "<f4").reshape(field["shape"])
    codes = np.frombuffer(raw, "<u2").reshape(field["shape"])
    low, high = np.array(field["low"]), np.array(field["high"])
    values = low + codes / (_NAN_CODE - 1) * (high - low)
    return np.where(codes == _NAN_CODE, np.nan, values).astype(np.float32)


def picture(image: np.ndarray, quality: int = 88) -> dict[str, object]:
    """uint8 [height, width, 3] as a JPEG data URL with its size in pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"expected an image of uint8 [height, width, 3], got {image.dtype} {image.shape}"
        )
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"url": url, "width": image.shape[1], "height": image.shape[0]}


def listed(items: list[str]) -> str:
    """["a", "b", "c"] as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
