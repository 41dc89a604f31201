"""Recorded episodes on the page, in one visit: opened, scrubbed, evaluated, joined."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from playground.datasets.lerobot import BUNDLED, open_dataset
from playground.datasets.matching import match
from playground.robots.builtin import TABLETOP
from playground.trace import Options
from tests.support.table import CAMERAS
from tests.support.visitor import LIMIT_MS, PI0, tab

pytestmark = pytest.mark.browser

FRAME = 12


def scrub(page, frame):
    """Moves to a frame, and waits for its picture and for both policies' answers there."""
    slider = page.locator("#recorded").get_by_label("Frame", exact=True)
    slider.evaluate("(s, to) => { s.value = to; s.dispatchEvent(new Event('input')) }", frame)
    settled(page, frame)


def settled(page, frame):
    pictures = page.locator("#recorded .recorded-camera img")
    for camera in range(len(CAMERAS)):
        expect(pictures.nth(camera)).to_have_attribute("data-frame", str(frame))
    expect(page.locator("#recorded .recorded-plots:not(.stale)")).to_be_visible()
    for policy in (0, 1):
        line = page.locator(f"#recorded .chunk-{policy}").first
        expect(line).to_have_attribute("d", re.compile("^M"))


def drawn(page, dimension):
    """Values of pi0's chunk as the panel of a dimension shows them, from its axis."""
    panel = page.locator("#recorded .panel").nth(dimension)
    path = panel.locator(".chunk-0").get_attribute("d")
    return np.array([float(y) for _, y in re.findall(r"[ML](\d+) (-?[\d.]+)", path)])


def test_an_episode_is_opened_scrubbed_evaluated_and_joined(visit, policies):
    page = visit()
    tab(page, "Run it")
    expect(page.locator("#on-episodes")).to_be_hidden()
    page.get_by_label("On recorded episodes").check()
    expect(page.locator("#at-the-table")).not_to_be_visible()
    page.get_by_role("button", name="Open the bundled episodes").click()
    expect(page.locator("#dataset-status")).to_contain_text("LeRobot v3.0, 3 episodes")
    settled(page, 0)

    scrub(page, FRAME)
    expect(page.locator("#recorded .task")).to_contain_text("touch the red cube")
    dataset = open_dataset(BUNDLED)
    policy, episode = policies[PI0], dataset.episode(0)
    fit = match(dataset.info, policy.info, TABLETOP)
    chunk, _ = policy.chunk(fit.observation(episode, FRAME, TABLETOP), Options())
    line = drawn(page, 7)  # the right waist, which moves: the same curve up to its axis
    assert np.corrcoef(line, -chunk[0, :, 7])[0, 1] > 0.999

    page.locator("#episode-prompt textarea").fill("touch the blue cube")
    page.get_by_role("button", name="Predict over the episode").click()
    expect(page.locator("#evaluate-status")).to_have_text("Done.", timeout=2 * LIMIT_MS)
    lines = page.locator("#evaluation .evaluated")
    expect(lines).to_have_count(2 * len(policies))
    expect(lines.last).to_contain_text("“touch the blue cube”")
    with page.expect_download() as download:
        page.get_by_role("link", name="Table (CSV)").click()
    assert download.value.path().read_text().count("\n") == 1 + 2 * len(policies) * 14
    worst = lines.first.locator(".jump").first
    frame = worst.inner_text()
    worst.click()
    settled(page, frame)

    page.get_by_role("button", name="Join two chunks at this frame").click()
    ways = page.locator("#seam .seam-ways li")
    expect(ways).to_have_count(2)
    expect(ways.last).to_contain_text("by real-time chunking: largest jump")
    step = page.get_by_label("Euler step of real-time chunking")
    step.fill("0")
    words = page.locator("#seam .correction-words")
    expect(words).to_contain_text("Step 0 of 10: the correction moves the estimate by up to")
    assert page.locator("#seam .correction .corrected").first.get_attribute("d").endswith("Z")
    page.get_by_role("button", name="Compare statistics").click()
    expect(page.locator("#own-stats-report")).to_contain_text("all 3 episodes")

    page.locator("#every input[type=number]").fill("1")
    page.locator("#every input[type=number]").press("Tab")
    page.get_by_role("button", name="Predict over the episode").click()
    page.locator("#stop-evaluate").click()  # it can be clicked while the evaluation goes on
    expect(page.locator("#evaluate-status")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Predict over the episode")).to_be_enabled()
    page.locator("#dataset input, #dataset textarea").first.fill("./nowhere")
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("there is no folder ./nowhere")
