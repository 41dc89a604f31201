"""The page in a browser: `python -m playground.tools.bench --page`.

Starts the page on the bundled policies, drives headless Chromium, and prints how long a visitor
waits and how many CPU-seconds the page's process, its worker and the browser take meanwhile. Times
are the browser's own clock, from the click to the frame after the drawing; CPU-seconds count until
nothing happens any more. Playwright is in requirements-dev.txt.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playground.tools.browser import CHROMIUM, FLAGS

_LIMIT_S = 180
_POLL_MS = 100  # asked at each frame, the browser would be busy with answering
_FRAMES = 20
_SIZES = ((1440, 900), (390, 844))
_DRAWN_MS = 1500  # after which an opened tab is drawn
_QUIET_S = 1.2  # after what was measured: the rest of its work counts, too
_ROOT = Path(__file__).resolve().parents[2]
# Stamps the frame after an answer is drawn, and after the plot of the tab Actions is.
_STAMPS = """
  window.stamps = {};
  window.shift = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shift += entry.value; }))
    .observe({ type: "layout-shift", buffered: true });
  const stamp = (name) => requestAnimationFrame(() => setTimeout(() => { window.stamps[name] = performance.now(); }));
  addEventListener("playground-row", () => window.stamps.path || stamp("path"));
  addEventListener("playground-run", () => window.playgroundRun && (window.stamps.path || stamp("path")));
  addEventListener("click", () => { window.stamps = { begun: performance.now() }; }, true);
  addEventListener("input", (event) => { if (event.isTrusted) window.stamps = { begun: performance.now() }; }, true);
  addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
    const run = document.querySelector("#run");
    const ready = run && run.textContent.trim() === "Run" && !run.disabled;
    for (const name of window.stamps.path ? ["usable", "everything"] : window.stamps.begun ? [] : ["usable"])
      if (ready && !window.stamps[name]) stamp(name);
    const matrix = document.querySelector("#board .matrix");
    if (matrix !== window.matrix) { window.matrix = matrix; if (matrix) stamp("board"); }
    const heads = document.querySelector("#tabs .heads");
    if (heads !== window.heads) { window.heads = heads; if (heads) stamp("attention"); }
    const measured = document.querySelector("#matters-status")?.textContent.includes("Done.");
    if (measured !== window.measured) { window.measured = measured; if (measured) stamp("matters"); }
    const plot = document.querySelector("#actions-plot .js-plotly-plot .plot-container");
    if (plot !== window.plotted) { window.plotted = plot; if (plot) stamp("plot"); }
    const frame = document.querySelector("#recorded .recorded-camera img")?.dataset.frame;
    if (frame !== window.pictured) { window.pictured = frame; stamp("picture"); }
    const plots = document.querySelector("#recorded .recorded-plots:not(.stale)");
    const lines = plots ? [...plots.querySelectorAll(".panel:first-child .chunk")] : [];
    const drawn = lines.filter((line) => line.getAttribute("d")).length;
    if (drawn !== window.drawn) { window.drawn = drawn; if (drawn) stamp(drawn < lines.length ? "answer" : "answers"); }
  }).observe(document.body, { childList: true, subtree: true, attributes: true, characterData: true }));
"""  # noqa: E501
_VIOLATIONS = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .filter((v) => ["serious", "critical"].includes(v.impact))
  .flatMap((v) => v.nodes.map(({ html }) => `${v.impact}: ${v.id}: ${html.slice(0, 160)}`))"""


def main(arguments: argparse.Namespace) -> None:
    rows = []
    with _page() as (address, page_process), _browser() as chromium:
        clock = _Clock(page_process)
        for name, measured in _cases(chromium, address, clock, arguments):
            rows.append({"case": name, **measured})
            print(_line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def _cases(chromium, address, clock, arguments) -> Iterator[tuple[str, dict]]:
    """(what was done, seconds and CPU-seconds: medians)."""
    if arguments.scrub:
        yield from _scrubbed(chromium, address, clock)
        return
    loads = [_loaded(chromium, address, clock) for _ in range(arguments.repeats)]
    yield "page load to usable", _medians([found["usable"] for found, _ in loads])
    yield "page load to first answer drawn", _medians([found["path"] for found, _ in loads])
    yield "layout shift of a load", _shifts([page for _, page in loads])
    for _, page in loads[1:]:
        page.context.close()
    _, page = loads[0]
    page.evaluate("window.shift = 0")
    prompts = itertools.cycle(
        f"{verb} the {colour} {thing}"
        for verb in ("lift", "touch", "grab", "tap", "pick up")
        for colour in ("red", "green", "blue")
        for thing in ("cube", "block")
    )

    def click() -> None:
        page.locator("#prompt textarea").fill(next(prompts))
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Run", exact=True).click()

    def letter() -> None:
        page.locator("#prompt textarea").press_sequentially("s")

    first = [clock.measured(page, click, ("path", "everything"))]
    yield "first click to path", _medians([found["path"] for found in first])
    yield "first click to everything", _medians([found["everything"] for found in first])
    again = [clock.measured(page, click, ("path", "everything")) for _ in range(arguments.repeats)]
    yield "click to path", _medians([found["path"] for found in again])
    yield "click to everything", _medians([found["everything"] for found in again])
    yield f"layout shift of {len(first + again)} clicks", _shifts([page])
    page.get_by_label("Live").check()
    page.wait_for_timeout(500)
    typed = [clock.measured(page, letter, ("path",)) for _ in range(arguments.repeats)]
    yield "typed letter to path (200 ms of it a pause)", _medians([f["path"] for f in typed])
    page.get_by_label("Live").uncheck()
    yield from _compared(page, clock, arguments.repeats)
    opened = clock.measured(page, _opening(page, "Attention"), ("attention",))
    yield "the tab Attention, first time, measured", _medians([opened["attention"]])
    opened = clock.measured(page, _opening(page, "Actions and denoising"), ("plot",))
    yield "the tab Actions, first time, to its plot", _medians([opened["plot"]])
    plotted = [clock.measured(page, click, ("plot",)) for _ in range(arguments.repeats)]
    yield "click to plot in the tab Actions", _medians([found["plot"] for found in plotted])
    if arguments.axe:
        yield from _accessible(page, arguments.axe)
    page.context.close()


def _opening(page, tab: str) -> Callable[[], None]:
    return lambda: page.get_by_role("tab", name=tab, exact=True).click()


def _compared(page, clock, repeats: int) -> Iterator[tuple[str, dict]]:
    """The default sets of the tab Prompts, each whole: the board, and what matters."""
    _opening(page, "Prompts")()
    for name, button in (("board", "Compare prompts"), ("matters", "Measure what matters")):
        start = page.get_by_role("button", name=button, exact=True).click
        found = [clock.measured(page, start, (name,))[name] for _ in range(1 + repeats)]
        yield f"{button}, first time", _medians(found[:1])
        yield f"{button}, again", _medians(found[1:])


def _shifts(pages) -> dict[str, float]:
    """The largest sum of what moved on one of the pages, those that somebody's doing began, too."""
    return {"layout shift": max(page.evaluate("window.shift") for page in pages)}


def _scrubbed(chromium, address, clock) -> Iterator[tuple[str, dict]]:
    """From a key to the next frame's picture and to both policies' chunks there, over the bundled
    episodes: medians, and the shortest."""
    _, page = _loaded(chromium, address, clock)
    page.get_by_role("tab", name="Run it").click()
    page.get_by_label("On recorded episodes").check()
    page.get_by_role("button", name="Open the bundled episodes").click()
    page.wait_for_function("window.stamps.answers > 0", timeout=_LIMIT_S * 1000, polling=_POLL_MS)
    slider = page.locator("#recorded").get_by_label("Frame", exact=True)
    found = [
        clock.measured(page, lambda: slider.press("ArrowRight"), ("picture", "answers"))
        for _ in range(_FRAMES)
    ]
    for name in ("picture", "answers"):
        figures = [one[name] for one in found]
        least = min(one["seconds"] for one in figures)
        yield f"a frame to its {name}", {**_medians(figures), "least seconds": round(least, 3)}
    page.context.close()


def _accessible(page, axe: Path) -> Iterator[tuple[str, dict]]:
    """What axe-core finds in each tab that is serious, on a screen and a phone, light and dark."""
    page.add_script_tag(path=str(axe))
    for (width, height), dark in itertools.product(_SIZES, (False, True)):
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        how = f"{width} x {height}, {'dark' if dark else 'light'}"
        for tab in page.get_by_role("tab").all():
            tab.click()
            page.wait_for_timeout(_DRAWN_MS)
            found = {"found": page.evaluate(_VIOLATIONS)}
            yield f"serious by axe-core in {tab.inner_text()}, {how}", found


class _Clock:
    """Seconds as the browser counts them, and CPU-seconds of all processes behind a page."""

    def __init__(self, page_process: int):
        self._page = page_process

    def measured(self, page, act: Callable[[], None], names: tuple[str, ...]) -> dict[str, dict]:
        """By name of a stamp, seconds until it and the CPU-seconds of the whole."""
        before = self.cpu()
        act()
        for name in names:
            page.wait_for_function(
                f"window.stamps.{name} > 0", timeout=_LIMIT_S * 1000, polling=_POLL_MS
            )
        page.wait_for_timeout(_QUIET_S * 1000)
        stamps = page.evaluate("window.stamps")
        after = self.cpu()
        spent = {f"{part} CPU-s": after[part] - before[part] for part in after}
        began = stamps.get("begun", 0)
        return {name: {"seconds": (stamps[name] - began) / 1000, **spent} for name in names}

    def cpu(self) -> dict[str, float]:
        """CPU-seconds so far, those of ended children included."""
        children = _children()
        workers = _descendants(self._page, children)
        browser = _descendants(os.getpid(), children) - workers - {self._page}
        return {
            "page": _cpu_s(self._page),
            "worker": sum(map(_cpu_s, workers)),
            "browser": sum(map(_cpu_s, browser)),
        }


def _loaded(chromium, address, clock) -> tuple[dict, Any]:
    """A new visitor's page, and what opening it took."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(_LIMIT_S * 1000)
    page.add_init_script("localStorage.setItem('pi0-playground-live', 'off')")
    page.add_init_script(_STAMPS)
    return clock.measured(page, lambda: page.goto(address), ("usable", "path")), page


@contextlib.contextmanager
def _page():
    """(address, process number) of a page whose policies are loaded and which keeps the examples'
    answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)],
        cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _LIMIT_S
        while not _answers(f"{address}/readyz"):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("The page did not start: run `python app.py` to see why.")
            time.sleep(0.2)
        _wait_for_idle(process.pid)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_for_idle(page_process: int) -> None:
    """Until the worker has done what it does of itself after a start."""
    deadline, quiet = time.monotonic() + _LIMIT_S, 0
    while quiet < 3 and time.monotonic() < deadline:
        before = sum(map(_cpu_s, _descendants(page_process, _children())))
        time.sleep(1)
        spent = sum(map(_cpu_s, _descendants(page_process, _children()))) - before
        quiet = quiet + 1 if spent < 0.1 else 0


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False


@contextlib.contextmanager
def _browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("--page drives a browser: pip install -r requirements-dev.txt")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=FLAGS)


# --- processes ----------------------------------------------------------------------------------


def _stat(process: int) -> list[str]:
    """Fields of /proc/N/stat from the state on; [] for a process that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s(process: int) -> float:
    return sum(map(int, _stat(process)[11:15])) / os.sysconf("SC_CLK_TCK")


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))):
            found.setdefault(int(stat[1]), []).append(int(folder.name))
    return found


def _descendants(process: int, children: dict[int, list[int]]) -> set[int]:
    own = set(children.get(process, ()))
    return own.union(*(_descendants(child, children) for child in own))


# --- figures ------------------------------------------------------------------------------------


def _medians(found: list[dict]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}


def _line(row: dict) -> str:
    if "found" in row:
        return "\n  ".join([f"{row['case']}: {len(row['found'])}", *row["found"]])
    figures = "   ".join(f"{name} {value:7.3f}" for name, value in row.items() if name != "case")
    return f"{row['case']:<46} {figures}"
