"""What a visitor takes away from the page and finds again: saved runs, and a reload."""

import zipfile

import numpy as np
import pytest
from playwright.sync_api import expect

from playground import run_file
from playground.robots.transforms import load_image
from playground.trace import image_digest
from tests.support.table import CAMERAS
from tests.support.visitor import (
    FAST,
    LIMIT_MS,
    PI0,
    answered,
    drawn_lines,
    give,
    open_state,
    run,
    set_options,
    tab,
)

pytestmark = pytest.mark.browser


def saved(page, role, name, folder):
    """The file that a button or link saves."""
    with page.expect_download() as download:
        page.get_by_role(role, name=name).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def open_file(page, path):
    tab(page, "Details")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a recipe").click()
    chooser.value.set_files(path)


def test_a_saved_run_comes_back_as_it_was(visit, photo, policies, tmp_path):
    page = visit()
    give(page, photo)
    page.get_by_label("Prompt").fill("touch the “red” cube")
    open_state(page)
    page.get_by_label("left elbow in rad").fill("0.75")
    set_options(page, {"steps": 7, "seed": 5, "samples": 2, "max-tokens": 32})
    page.get_by_label("Decoding").click()
    page.get_by_role("option", name="constrained", exact=True).click()
    run(page)
    answered(page)
    lines = drawn_lines(page, "pi0")
    tab(page, "Details")
    whole = saved(page, "link", "Save everything (ZIP)", tmp_path)
    alone = saved(page, "button", "Save recipe (JSON)", tmp_path)
    for path in (whole, alone):
        for name in (PI0, FAST):
            assert run_file.filename(name, policies[name].info.badge) in path.name
    kept = run_file.read(whole.read_bytes())
    assert run_file.read(alone.read_bytes()).recipe == kept.recipe
    assert page.locator("#recipe pre").inner_text().strip() == alone.read_text().strip()
    options = kept.recipe.options
    assert (options.num_steps, options.seed, options.constrained) == (7, 5, True)
    given = load_image(photo)
    np.testing.assert_array_equal(kept.pictures[image_digest(given)], given)
    assert len(kept.pictures) == len(CAMERAS)

    other = visit()
    open_file(other, whole)
    status = other.locator("#recipe-status")
    expect(status).to_contain_text(f"{PI0} ({policies[PI0].info.badge}) repeated bit for bit")
    expect(status).to_contain_text(f"{FAST} ({policies[FAST].info.badge}) repeated bit for bit")
    expect(other.get_by_label("Prompt")).to_have_value("touch the “red” cube")
    open_state(other)
    expect(other.get_by_label("left elbow in rad")).to_have_value("0.75")
    other.get_by_role("button", name="Advanced").click()
    expect(other.get_by_label("Decoding")).to_have_value("constrained")
    assert drawn_lines(other, "pi0") == lines

    again = visit()
    open_file(again, alone)
    expect(again.locator("#recipe-status")).to_contain_text("The picture of base_0_rgb is not in")
    expect(again.get_by_label("Prompt")).to_have_value("touch the “red” cube")
    assert again.locator(".card", has_text="Answered").count() == 0


def test_the_zip_s_figures_need_nothing_else(visit, browser, tmp_path):
    page = visit()
    tab(page, "Details")
    path = saved(page, "link", "Save everything (ZIP)", tmp_path)
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "figures.html").write_bytes(archive.read("figures.html"))
    asked, errors = [], []
    figures = browser.new_page()
    figures.set_default_timeout(LIMIT_MS)
    figures.on("request", lambda request: asked.append(request.url))
    figures.on("pageerror", lambda error: errors.append(str(error)))
    figures.goto((tmp_path / "figures.html").as_uri())
    expect(figures.locator(".js-plotly-plot")).to_be_visible()
    expect(figures.get_by_label("Euler step")).to_be_visible()
    # Drawn once it is near the window, which hangs on how far the parts above it have come.
    figures.get_by_role("heading", name="Attention mask").scroll_into_view_if_needed()
    expect(figures.locator("canvas").first).to_be_visible()
    figures.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_saved_picture_leads_back_to_its_run(visit, tmp_path):
    page = visit()
    tab(page, "Actions and denoising")
    expect(page.locator("#actions-plot .js-plotly-plot")).to_be_visible()
    path = saved(page, "button", "Save picture", tmp_path)
    assert len(run_file.read(path.read_bytes()).recipe.policies) == 2
    other = visit()
    other.get_by_label("Prompt").fill("something else")
    open_file(other, path)  # its camera's picture is an example, so nothing is missing
    expect(other.locator("#recipe-status")).to_contain_text(f"{PI0} (")
    assert other.locator("#recipe-status").inner_text().count("repeated bit for bit") == 2


def test_a_file_that_is_no_recipe_is_refused_and_the_page_stays(visit, tmp_path):
    page = visit()
    page.get_by_label("Prompt").fill("keep this")
    for name, data, message in (
        ("x.json", b'{"format": 1}', "this JSON is no recipe"),
        ("x.zip", b"PK\x03\x04" + bytes(100), "this ZIP is no saved run"),
        ("x.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "carries no recipe"),
    ):
        (tmp_path / name).write_bytes(data)
        open_file(page, tmp_path / name)
        expect(page.get_by_test_id("toast-body").filter(has_text=message)).to_be_visible()
        expect(page.get_by_label("Prompt")).to_have_value("keep this")


def test_a_reload_keeps_what_was_put_in_and_shows_it_to_nobody_else(visit, photo):
    page = visit()

    def remembered(do, *given):
        """Does it, and waits until the browser's memory is another."""
        before = page.evaluate("JSON.stringify({...localStorage})")
        do(*given)
        changed = "before => JSON.stringify({...localStorage}) !== before"
        page.wait_for_function(changed, arg=before)

    open_state(page)
    give(page, photo)
    remembered(page.get_by_label("Prompt").fill, "keep this")
    remembered(page.get_by_label("left elbow in rad").fill, "0.75")
    expect(page.locator("#picture-0 img")).to_be_visible()
    remembered(page.get_by_role("checkbox", name="pi0-FAST").uncheck)
    remembered(set_options, page, {"steps": 7})
    picture = page.locator("#picture-0 img").get_attribute("src")
    # Gradio (6.31) calls whatever is under way an error when the page is left: nothing is.
    expect(page.locator("#foreign .foreign")).to_be_visible()
    expect(page.locator("#temperature input").first).to_be_disabled()
    # On a slow machine, updates of the loading page would come close together.
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 6})
    page.reload()
    answered(page, PI0)  # what was left is answered, without a click
    expect(page.get_by_label("Prompt")).to_have_value("keep this")
    open_state(page)
    expect(page.get_by_label("left elbow in rad")).to_have_value("0.75")
    expect(page.locator("#picture-0 img")).to_have_attribute("src", picture)
    expect(page.get_by_role("checkbox", name="pi0-FAST")).not_to_be_checked()
    page.get_by_role("button", name="Advanced").click()
    expect(page.locator("#steps input[type=number]")).to_have_value("7")
    held = page.evaluate("JSON.stringify({...localStorage})")
    assert len(held) < 10_000  # no picture

    other = visit()
    expect(other.get_by_label("Prompt")).not_to_have_value("keep this")
    assert other.locator("#picture-0 img").get_attribute("src") != picture
