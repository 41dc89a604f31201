"""How the page looks: theme, style sheet, and the components that are the page's own.

Nothing is fetched from anywhere: fonts are those of the visitor's system.
"""

from pathlib import Path
from typing import Any

from gradio.themes import Base

from playground.views import theme as views

BROWSER = Path(__file__).parent / "browser"

TITLE = "pi0 playground"

# Of what the page does for itself: programs find no endpoint, and nothing is veiled meanwhile. Nor
# does any component hear how far it is: with each word of that, Gradio's browser (6.31) copied all
# that the handler's outputs hold.
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "show_progress_on": [],
}

_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

# Colour is left to the policies; the page itself is grey, and its one primary button is ink.
THEME = Base(
    primary_hue="slate",
    secondary_hue="slate",
    neutral_hue="slate",
    radius_size="md",
    spacing_size="md",
    text_size="md",
    font=_SANS,
    font_mono=_MONO,
).set(
    body_background_fill="#F7F8FA",
    body_background_fill_dark="#121418",
    background_fill_primary="#FFFFFF",
    background_fill_primary_dark="#1A1D22",
    background_fill_secondary="#F3F4F7",
    background_fill_secondary_dark="#21252B",
    block_background_fill="#FFFFFF",
    block_background_fill_dark="#1A1D22",
    block_border_color="#E3E6EB",
    block_border_color_dark="#2E333B",
    border_color_primary="#DDE1E7",
    border_color_primary_dark="#343A43",
    body_text_color="#1B2027",
    body_text_color_dark="#E8EBF0",
    body_text_color_subdued="#59616D",
    body_text_color_subdued_dark="#A3ACB9",
    input_background_fill="#FFFFFF",
    input_background_fill_dark="#14171B",
    button_primary_background_fill="#1B2027",
    button_primary_background_fill_hover="#333B47",
    button_primary_background_fill_dark="#E8EBF0",
    button_primary_background_fill_hover_dark="#FFFFFF",
    button_primary_text_color="#FFFFFF",
    button_primary_text_color_dark="#15181C",
    block_title_text_color="*body_text_color_subdued",
    block_title_text_color_dark="*body_text_color_subdued",
    block_label_text_color="*body_text_color_subdued",
    block_label_text_color_dark="*body_text_color_subdued",
    block_shadow="none",
    block_shadow_dark="none",
)


def css() -> str:
    return (BROWSER / "page.css").read_text(encoding="utf-8") + views.COLOURS_CSS + views.PLOT_CSS


def head() -> str:
    """What the document's head gets: the page stays hidden until `gate.js` takes this away."""
    gate = (BROWSER / "gate.css").read_text(encoding="utf-8")
    return f'<style id="gate">{gate}</style><style>{views.VIEWS_CSS}</style>'


def script(name: str) -> str:
    """A file of `browser/`, for an event's `js`."""
    return (BROWSER / name).read_text(encoding="utf-8")


def component(*scripts: str) -> dict[str, Any]:
    """Like `playground.views.theme.component`, for scripts of this folder's `browser/` too."""
    own = {path.name for path in BROWSER.glob("*.js")}
    return views.component(*(str(BROWSER / name) if name in own else name for name in scripts))
