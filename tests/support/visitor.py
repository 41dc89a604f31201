"""What tests of the page share: the app, the browser, a visitor, and what a visitor does.

One app serves all tests, started as a visitor's would be. `tests/conftest.py` makes the fixtures
known.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Error, Page, expect, sync_playwright

from playground.serving.events import Done
from playground.tools.browser import CHROMIUM, FLAGS
from playground.trace import Options

ROOT = Path(__file__).resolve().parents[2]
LIMIT_MS = 90_000  # for what must happen, on however slow a machine
PI0, FAST = "pi0_tabletop", "pi0_fast_tabletop"
CARDS = {PI0: ".card[data-family='pi0']", FAST: ".card[data-family='pi0_fast']"}
CARDS["table"] = CARDS[PI0]
NOT_LIVE = "localStorage.setItem('pi0-playground-live', 'off')"
LONG = {"steps": 100, "samples": 32}  # a run that lasts for seconds


# --- the app, the browser, a visitor ------------------------------------------------------------


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The app's address as soon as it answers; its policies may still be loading."""
    folder = tmp_path_factory.mktemp("app")
    with started(folder, "--mcp") as address:
        yield address
    log = (folder / "log").read_text()
    assert "Traceback" not in log, log


@contextlib.contextmanager
def started(folder, *arguments, program=("app.py", "--port"), environment=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *program, str(port), *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "GRADIO_TEMP_DIR": str(folder / "files"),
                **(environment or {}),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or answers(address))
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    assert status == 0, log.read_text()


class Leaving:
    """Tells what a page complains of only because it is being left: Gradio's client (6.31) then
    closes its own stream, and calls each of its calls that were under way an error."""

    SCRIPT = "addEventListener('beforeunload', () => console.debug('leaving'))"
    COMPLAINTS = ("AbortError: signal is aborted without reason", "Connection errored out.")

    def __init__(self, page):
        self._now = False
        page.on("console", lambda message: message.text == "leaving" and self._is(True))
        page.on("domcontentloaded", lambda _: self._is(False))  # the next document

    def _is(self, now):
        self._now = now

    def is_why(self, text):
        return self._now and any(complaint in text for complaint in self.COMPLAINTS)


def until(condition):
    deadline = time.monotonic() + LIMIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False


@pytest.fixture(scope="session")
def browser():
    """Chromium, the system's or Playwright's own. Without one: a failure where CI=true, a skip
    elsewhere."""
    expect.set_options(timeout=LIMIT_MS)
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            if path or os.environ.get("CI") == "true":
                raise
            pytest.skip(str(error).splitlines()[0])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(app, browser):
    """Opens the page as a new visitor; script: runs before the page's own; query: of the address,
    with its question mark. In the end no console
    may have complained, and nothing may have been fetched from anywhere else."""
    opened, complaints = [], []

    def open_page(*, ready=True, live=False, script="", query="", **context) -> Page:
        page = browser.new_context(
            # Still pictures: a path would come from where it was, over a quarter of a second.
            **{
                "viewport": {"width": 1440, "height": 900},
                "reduced_motion": "reduce",
                **context,
            }
        ).new_page()
        page.set_default_timeout(LIMIT_MS)
        leaving = Leaving(page)

        def complain(text):
            if not leaving.is_why(text):
                complaints.append(text)

        page.on("console", lambda m: m.type == "error" and complain(m.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith((app, "data:", "blob:")) or complaints.append(r.url),
        )
        if not live:  # or a prompt that a test fills in would run before the test asks
            page.add_init_script(NOT_LIVE)
        page.add_init_script(Leaving.SCRIPT)
        page.add_init_script(script)
        page.goto(app + query)
        opened.append(page)
        if ready:
            answered(page)  # the first example, without a click
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert complaints == [], complaints


@pytest.fixture(scope="session")
def policies():
    """The same policies in this process."""
    from playground.checkpoints.catalog import BUNDLED
    from playground.checkpoints.load import open_policy
    from playground.serving.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    return {name: open_policy(name) for name in BUNDLED}


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A photograph that Gradio ships, as a phone saves it: on its side, by its EXIF orientation."""
    import gradio

    assets = Path(gradio.__file__).parent / "media_assets" / "images"
    picture = Image.open(assets / "cheetah.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    picture.save(path, quality=85, exif=exif)
    return path


def give(page, path, slot=0):
    """Puts a file into a slot, after taking out what is there."""
    place = page.locator(f"#picture-{slot}")
    if place.get_by_label("Remove Image").count():
        place.get_by_label("Remove Image").click()
    place.locator("input[type=file]").first.set_input_files(path)


def set_options(page, values):
    if not page.locator("#steps").count():
        page.get_by_role("button", name="Advanced").click()
    fields = {page.locator(f"#{name} input[type=number]"): value for name, value in values.items()}
    for field in fields:
        expect(field).not_to_have_value("")  # what is typed before its first value comes is lost

    def typed():
        """As a person would: Gradio (6.31) takes a value back that was typed while the opened
        accordion was still being filled."""
        wrong = {f: v for f, v in fields.items() if f.input_value() != str(v)}
        for field, value in wrong.items():
            field.fill(str(value))
            field.press("Tab")
        return not wrong

    until(typed)


def run(page):
    page.get_by_role("button", name="Run", exact=True).click()


def answered(page, *names):
    """Waits for another answer than the last one that was waited for."""
    another = "() => window.playgroundRun && window.playgroundRun.key !== window.answered"
    page.wait_for_function(another, timeout=LIMIT_MS)
    page.evaluate("window.answered = window.playgroundRun.key")
    for name in names or (PI0, FAST):
        expect(page.locator(CARDS[name])).to_contain_text("Answered in")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled(timeout=LIMIT_MS)


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def open_state(page):
    if not page.locator(".state input").count():
        page.locator("#state-of-robot button").first.click()


def save_link(page, name):
    """The link to a policy's trace, in its opened chip."""
    card = page.locator(CARDS[name])
    if card.get_attribute("open") is None:
        card.locator("summary").click()
    return card.get_by_role("link", name="Save trace")


def trace_of(policy, observation, options=Options()):  # noqa: B008
    *_, last = policy.infer(observation, options)
    assert isinstance(last, Done)
    return last.trace


def drawn_lines(page, title):
    """By panel, in the order drawn, the values of a policy's first sample."""
    tab(page, "Actions and denoising")
    expect(page.locator("#actions-plot .js-plotly-plot")).to_be_visible(timeout=LIMIT_MS)
    return page.evaluate(
        """title => document.querySelector("#actions-plot .js-plotly-plot")._fullData
          .filter(t => t.name === title && t.mode === "lines" && t._length > 1 && t.line.width > 2)
          .map(t => Array.from(t.y))""",
        title,
    )
