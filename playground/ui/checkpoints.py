"""Opening other checkpoints from the page: the program starts anew on them, and the page follows.

Only where the page is this machine's own: elsewhere one visitor would choose for all.
"""

import ipaddress
import os
import signal
from collections.abc import Sequence

import gradio as gr

from playground import choice, download
from playground.catalog import Entry, entries
from playground.ui import bench as benches
from playground.ui import look

_OTHER = "Names, a checkpoint folder, or a JSON file that names one (type and press Enter)"


class Reopening:
    """arguments: of the command line, once the page has asked to start anew; else None."""

    def __init__(self):
        self.arguments: list[str] | None = None

    def ask(self, checkpoints: Sequence[str], config: str, robot: str, asset_id: str) -> None:
        """Ends the program as a signal would; `app.py` then starts it anew. Raises ValueError, and
        ends nothing, for what cannot be opened."""
        if not checkpoints:
            raise ValueError("choose at least one checkpoint")
        told = {
            "--config": config.strip(),
            "--robot": robot.strip(),
            "--asset-id": asset_id.strip(),
        }
        choice.chosen(checkpoints, *(value or None for value in told.values()))
        options = [part for flag, value in told.items() if value for part in (flag, value)]
        self.arguments = [*options, "--checkpoint", *checkpoints]
        os.kill(os.getpid(), signal.SIGTERM)


def is_private(host: str) -> bool:
    """Whether a page at this address is seen from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def build(reopening: Reopening) -> None:
    """The panel, to be called inside a column."""
    with gr.Accordion("Open other checkpoints", open=False, elem_id="checkpoints"):
        chosen = gr.Dropdown(
            [(_label(entry), entry.name) for entry in entries().values()],
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="Checkpoints",
            info=_OTHER,
            elem_id="chosen-checkpoints",
        )
        config = gr.Textbox(label="Config of the folder", placeholder="pi0_libero, or my_run.json")
        robot = gr.Textbox(label="Robot of a LeRobot folder", placeholder="libero, or my_arm.json")
        asset_id = gr.Textbox(label="Norm stats, if not the config's", placeholder="my_dataset")
        start = gr.Button("Open", elem_id="open-checkpoints")
        status = gr.HTML("", apply_default_css=False, elem_id="reopening")

    def ask(*given):
        try:
            reopening.ask(*given)
        except ValueError as error:
            raise gr.Error(benches.words(error), print_exception=False) from error
        return "<p class='fine'>Opening; the page comes back by itself.</p>"

    own = {"api_visibility": "private", "show_progress": "hidden"}
    start.click(ask, [chosen, config, robot, asset_id], status, **own).success(
        None, js=look.script("reopen.js"), **own
    )


def _label(entry: Entry) -> str:
    if entry.kind == "bundled":
        return f"{entry.name} (bundled)"
    if entry.address is None:
        return f"{entry.name} (a folder of your own only)"
    here = "to be downloaded" if download.missing(entry) else "here"
    return f"{entry.name} ({entry.num_bytes / 1e9:.0f} GB, {here})"
