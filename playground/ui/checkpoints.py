"""Opening other checkpoints from the page: the program starts anew on them, and the page follows.

Only where the page is this machine's own: elsewhere one visitor would choose for all.
"""

import argparse
import dataclasses
import html
import ipaddress
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from gradio.context import Context

from playground.checkpoints import download, resolve
from playground.checkpoints.catalog import entries
from playground.checkpoints.entry import Entry
from playground.serving.worker import Down, Worker
from playground.ui import appearance, errors

_ROOT = Path(__file__).resolve().parents[2]
_OTHER = "Names, a checkpoint folder, or a JSON file that names one (type and press Enter)"


class Reopening:
    """How the program starts anew, with what it needs of `started`, the command line it was started
    with. What the page asks for may still turn out damaged while it is loaded: then the former
    checkpoints are opened again, and the page says why.

    asked: set once the program is to start anew, with `arguments`. otherwise: the former ones,
    while those asked for are not loaded; because: why it is the former ones again, else "".
    """

    def __init__(self, started: argparse.Namespace):
        arguments = (started.checkpoint, started.config, started.robot, started.asset_id)
        self._current = _arguments(*arguments)
        self.asked = threading.Event()
        self.arguments: list[str] | None = None
        self.otherwise = json.loads(started.otherwise) if started.otherwise else None
        self.because = started.because

    def ask(self, checkpoints: Sequence[str], config: str, robot: str, asset_id: str) -> None:
        """Has `app.py` end the program and start it anew. Raises ValueError, and ends nothing, for
        what cannot be opened."""
        typed = _typed(config, robot, asset_id)
        resolve.resolve_all(_requests(checkpoints, typed))
        self._again([*_arguments(checkpoints, *typed), "--otherwise", json.dumps(self._current)])

    def watch(self, worker: Worker, pause_s: float = 5.0) -> threading.Thread | None:
        """Goes back to the former checkpoints if the worker stays down without having loaded. The
        thread that sees to it, or None where there are none to go back to.

        pause_s: before it does. A browser may be fetching this start's page; one that finds nobody
            does not try again.
        """
        if self.otherwise is None:
            return None
        arguments = (worker, self.otherwise, pause_s)
        thread = threading.Thread(target=self._watch, args=arguments, daemon=True)
        thread.start()
        return thread

    def _watch(self, worker: Worker, otherwise: list[str], pause_s: float) -> None:
        try:
            worker.metadata()
        except Down as error:
            if worker.status().state == "down":
                time.sleep(pause_s)
                self._again([*otherwise, "--because", str(error)])

    def _again(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.asked.set()


def _typed(*fields: str) -> list[str | None]:
    return [field.strip() or None for field in fields]


def _requests(checkpoints: Sequence[str], typed: Sequence[str | None]) -> list[resolve.Request]:
    if not checkpoints:
        raise ValueError("choose at least one checkpoint")
    return resolve.requests(checkpoints, *typed)


def findings(
    checkpoints: Sequence[str], config: str, robot: str, asset_id: str
) -> tuple[str, bool]:
    """What `app.py --check` says of the checkpoints, and whether all would open. From a process of
    its own: it needs JAX, which the page does without. Raises ValueError as `Reopening.ask`."""
    requests = _requests(checkpoints, _typed(config, robot, asset_id))
    asked = json.dumps([dataclasses.asdict(request) for request in requests])
    command = [sys.executable, "-m", "playground.checkpoints.check", asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
    if done.returncode not in (0, 1):
        raise ValueError(f"these checkpoints could not be checked: {done.stderr.strip()[-500:]}")
    return done.stdout.strip(), done.returncode == 0


def _arguments(
    checkpoints: Sequence[str], config: str | None, robot: str | None, asset_id: str | None
) -> list[str]:
    flags = {"--config": config, "--robot": robot, "--asset-id": asset_id}
    options = [part for flag, value in flags.items() if value for part in (flag, value)]
    return [*options, *(["--checkpoint", *checkpoints] if checkpoints else [])]


def is_private(host: str) -> bool:
    """Whether a page at this address is seen from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tell(reopening: Reopening) -> None:
    """Why the former checkpoints are open again, on top of the page."""
    if reopening.because:
        text = "What you chose could not be opened; the earlier checkpoints are open again."
        text = f"<strong>{text}</strong> {html.escape(reopening.because)}"
        gr.HTML(f"<p class='refusal' role='alert'>{text}</p>", apply_default_css=False)


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
        with gr.Row():
            check_button = gr.Button("Check", elem_id="check-checkpoints", min_width=80)
            open_button = gr.Button("Open", elem_id="open-checkpoints", min_width=80)
        status = gr.HTML("", apply_default_css=False, elem_id="reopening")

    @errors.for_page
    def check(*given):
        yield _said("Reading what describes them; weights are not loaded.")
        yield _said("", findings(*given)[0])

    @errors.for_page
    def ask(checkpoints, *fields):
        given = checkpoints, *fields
        resolve.resolve_all(_requests(checkpoints, _typed(*fields)))
        yield _said("Checking before anything is closed.")
        text, opens = findings(*given)
        if opens:
            reopening.ask(*given)
            yield _said("Opening; the page comes back by itself.", text)
        else:
            yield _said("Nothing was opened, and the policies here stay.", text)

    own = appearance.PRIVATE
    follow = {"fn": None, "js": appearance.script("reopen.js"), **own}
    asked = [chosen, config, robot, asset_id]
    check_button.click(check, asked, status, **own)
    open_button.click(ask, asked, status, **own)
    # Watched from the click on: the start that answered it may end before its answer arrives.
    open_button.click(**follow)
    if reopening.otherwise is not None:
        assert Context.root_block is not None  # called inside the page
        Context.root_block.load(**follow)


def _said(sentence: str, report: str = "") -> str:
    lines = f"<p class='fine'>{sentence}</p>" if sentence else ""
    return lines + (f"<pre>{html.escape(report)}</pre>" if report else "")


def _label(entry: Entry) -> str:
    if entry.kind == "bundled":
        return f"{entry.name} (bundled)"
    if entry.address is None:
        return f"{entry.name} (a folder of your own only)"
    here = "to be downloaded" if download.missing(entry) else "here"
    return f"{entry.name} ({entry.num_bytes / 1e9:.0f} GB, {here})"
