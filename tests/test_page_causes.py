"""In the browser: a connection is cut and mended in the mask, the prompt is weighed, causes are
traced and saved."""

import csv

import pytest
from playwright.sync_api import expect

from playground.analysis import connections
from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.trace import Cut, Options, RawObservation
from tests.support.table import CAMERAS, by_slot
from tests.support.visitor import PI0


def test_a_block_is_cut_and_mended(visit, policies):
    page = visit(ready=False, query=f"?policies={PI0}&tab=Attention")
    measured = page.get_by_text("Heads (rows: layers)")
    expect(measured).to_be_visible()  # the last that happens of itself
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    page.locator(".scissors").get_by_text("click to cut").click()
    mask, cuts, paths = (
        page.locator(s) for s in ("canvas[role=application]", "#cuts button", "#cut-paths")
    )
    mask.scroll_into_view_if_needed()
    size = mask.bounding_box()
    mask.click(position={"x": 0.1 * size["width"], "y": 0.9 * size["height"]})
    expect(cuts).to_have_text(["actions → base 0 ×"])
    example = examples(TABLETOP)[0]
    images = by_slot(example.images)
    raw = RawObservation(TABLETOP.name, images, {}, example.prompt, example.state)
    options = Options(cuts=(Cut("actions", "base_0_rgb"),))
    change = connections.knockout(policies[PI0], raw, options).change
    expect(paths).to_contain_text(f"The chunk moves by {change:.1f} % of range")
    expect(page.locator("#strip .notes")).to_contain_text("connections are cut: actions to base_0")
    expect(page.get_by_text("Cut in this run: actions to base_0_rgb.").last).to_be_visible()
    expect(mask).to_be_focused()  # since the click, though the mask was drawn anew
    mask.press("Enter")
    expect(cuts).to_have_count(0)
    expect(page.locator("#strip .notes")).not_to_contain_text("connections are cut")
    expect(paths.locator("svg")).to_have_count(0)


def test_causes_are_traced_and_saved_and_the_prompt_is_weighed(visit, tmp_path):
    page = visit(ready=False, query=f"?policies={PI0}&tab=Causes")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    noises = page.locator("#causes-noises input[type=number]")
    noises.fill("1")
    noises.press("Tab")
    page.locator("#trace-causes").click()
    expect(page.locator("#causes-status")).to_contain_text("Done.")
    with page.expect_download() as saved:
        page.locator("#causes").get_by_role("button", name="Save as CSV").click()
    saved.value.save_as(tmp_path / "causes.csv")
    rows = list(csv.DictReader((tmp_path / "causes.csv").read_text().splitlines()))
    found = {(row["place"], row["layer"], row["patch"]): float(row["recovered"]) for row in rows}
    assert found["everything", "all layers", ""] == pytest.approx(1, abs=1e-3)
    assert sum(patch != "" for *_, patch in found) == 64 * len(CAMERAS)
    weight = page.locator("#guidance input[type=number]")
    weight.fill("2")
    weight.press("Tab")
    expect(page.locator("#causes-path")).to_contain_text("w = 2")
    expect(page.locator("#causes-path svg path").first).to_be_attached()
