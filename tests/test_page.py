"""The page in a real browser, on the bundled policies: what a visitor does and sees.

One app serves all tests, started as a visitor's would be. What the page shows is held against the
same policies called from Python here.
"""

import io
import re
import shutil
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from playground.analysis import prompts, sensitivity
from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.robots.norm_stats import normalise
from playground.robots.transforms import load_image
from playground.trace import Options, RawObservation, load
from playground.views import attention, matters
from playground.views.actions import figure
from playground.views.mask import compare
from tests.support.table import CAMERAS, by_slot, in_all
from tests.support.visitor import (
    CARDS,
    FAST,
    LONG,
    NOT_LIVE,
    PI0,
    ROOT,
    answered,
    answers,
    drawn_lines,
    give,
    open_state,
    run,
    save_link,
    set_options,
    started,
    tab,
    trace_of,
    until,
)

pytestmark = pytest.mark.browser

# By tab, what is on show once it is drawn.
DRAWN = {
    "Actions and denoising": "#actions-plot .js-plotly-plot",
    "Attention": ".mask canvas",
    "Details": "pre.text",
    "Overview": "#glance .moves .path",
}


def test_page_can_be_used_while_the_policies_load(visit, app, policies):
    """Also the first to run: it starts the app."""
    page = visit(ready=False)
    expect(page.locator(".say")).to_contain_text(re.compile("Getting ready|Ready|From the cache"))
    run(page)  # the example it starts with
    answered(page)
    assert answers(f"{app}/readyz")
    expect(page.locator(".say")).to_have_text(re.compile("Done|From the cache"))
    for name in (PI0, FAST):
        expect(page.locator(CARDS[name])).to_contain_text(policies[name].info.badge)
        expect(page.locator(CARDS[name])).to_contain_text(policies[name].info.notice)


def test_page_says_why_no_policy_could_be_loaded(browser, tmp_path):
    folder = shutil.copytree(ROOT / "assets" / PI0, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with started(tmp_path, "--checkpoint", str(folder)) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator(".say")).to_contain_text("model.safetensors")
        reason = page.locator(".say").inner_text()
        run(page)
        expect(page.get_by_test_id("toast-body")).to_contain_text(reason)
        until(lambda: not answers(f"{address}/healthz"))
        page.close()


def test_another_robot_brings_its_slots_and_one_failure_leaves_the_other_s_answer(
    browser, tmp_path, photo
):
    with started(tmp_path, program=("-m", "tests.support.two_robots")) as address:
        page = browser.new_page()
        page.add_init_script(NOT_LIVE)
        page.goto(address)
        answered(page, "table")
        page.get_by_role("combobox", name="Robot").click()
        page.get_by_role("option", name="DROID").click()
        expect(page.locator("#overview .answer")).to_have_count(0)
        # No example will answer: words stand where a frame of its answer would.
        expect(page.locator("#overview .skeleton")).to_be_hidden()
        assert page.locator("#overview .waiting").bounding_box()["height"] > 40
        expect(page.locator("#glance")).to_be_hidden()
        open_state(page)
        expect(page.locator(".state input")).to_have_count(8)
        page.locator("#absent button").click()
        titles = page.locator(".slot code").filter(visible=True)
        assert titles.all_inner_texts() == [
            "base_0_rgb",
            "left_wrist_0_rgb / wrist_0_rgb",
            "right_wrist_0_rgb",
            "base_1_rgb",
        ]
        give(page, photo, slot=0)
        give(page, photo, slot=1)
        page.get_by_label("Prompt").fill("refuse")
        expect(page.locator("#picture-1 img")).to_be_visible()
        run(page)
        answered(page, PI0)
        expect(page.locator(CARDS[FAST])).to_contain_text("not <b>today</b>")
        tab(page, "Actions and denoising")
        expect(page.locator("#glance")).to_be_visible()
        until(lambda: len(drawn_lines(page, "pi0")) == 8)
        page.get_by_label("Prompt").fill("go on")
        page.get_by_role("combobox", name="Robot").focus()  # only to pass by
        page.keyboard.press("Tab")
        run(page)
        answered(page)
        expect(page.get_by_label("Prompt")).to_have_value("go on")
        expect(page.locator("#picture-1 img")).to_be_visible()
        tab(page, "Details")
        seen = page.locator(".cameras-seen")
        expect(seen.nth(0).locator("code")).to_have_text(["base_0_rgb", "left_wrist_0_rgb"])
        expect(seen.nth(1).locator("code")).to_have_text(["base_0_rgb", "wrist_0_rgb"])
        page.close()


def test_both_answers_equal_the_policies_called_from_python(visit, policies, photo):
    page = visit()
    prompt = "put the gripper on the red cube"
    state = np.array(TABLETOP.resting_state)
    for slot in range(len(CAMERAS)):
        give(page, photo, slot)
    page.get_by_label("Prompt").fill(prompt)
    open_state(page)
    for i, value in enumerate(state):
        page.locator(".state input").nth(i).fill(repr(float(value)))
    page.get_by_label("left elbow in rad").fill("2.25")
    state[2] = 2.25
    run(page)
    answered(page)

    observation = RawObservation("tabletop", in_all(load_image(photo)), {}, prompt, state)
    flow = trace_of(policies[PI0], observation)
    fast = trace_of(policies[FAST], observation)
    lines = drawn_lines(page, "pi0")
    np.testing.assert_allclose(np.array(lines).T, flow.actions[0], rtol=1e-4, atol=1e-5)
    written = drawn_lines(page, "pi0-FAST")
    if fast.actions is None:
        assert written == []
        expect(page.locator(CARDS[FAST])).to_contain_text("did not decode")
    else:
        np.testing.assert_allclose(np.array(written).T, fast.actions[0], rtol=1e-4, atol=1e-5)

    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert all(
        trace.info.badge.replace(" ", "-") in download.value.suggested_filename
        for trace in (flow, fast)
    )
    drawn = page.locator("#actions-plot .js-plotly-plot").bounding_box()
    with Image.open(download.value.path()) as picture:
        assert picture.size == pytest.approx((2 * drawn["width"], 2 * drawn["height"]), abs=4)
    assert drawn["height"] == pytest.approx(figure([flow, fast]).layout.height, abs=40)

    outside = page.locator(".state tr", has_text="left elbow").locator(".outside")
    expect(outside).to_have_count(
        len(policies)
    )  # one radian about the rest is what the norm stats span
    info = policies[PI0].info
    shown = page.locator(".state tr", has_text="left waist").locator(".judged").first.inner_text()
    expected = normalise(state, info.state_stats, info.normalisation)[0]
    assert float(shown.replace("−", "-")) == pytest.approx(expected, abs=0.006)

    tab(page, "Actions and denoising")
    expect(page.locator(".rail .token")).to_have_count(len(fast.tokens))
    tab(page, "Attention")
    expect(page.locator("#compare li")).to_have_text(compare(flow, fast))
    tab(page, "Details")
    expect(page.locator("pre.text").nth(1)).to_be_visible()
    texts = page.locator(".view[data-family] pre.text").all_inner_texts()
    assert [text.replace("⏎", "") for text in texts] == [flow.text, fast.text]
    pieces = page.locator(".pieces")
    assert pieces.nth(0).locator("li").count() == len(flow.prompt_tokens)
    assert pieces.nth(1).locator("li").count() == len(fast.prompt_tokens)
    seen = page.locator(".seen img").first.get_attribute("src").partition(",")[2]
    with urllib.request.urlopen(f"data:image/jpeg;base64,{seen}") as file:
        picture = load_image(file.read()).astype(int)
    assert np.abs(picture - flow.images["base_0_rgb"]).mean() < 4  # it travels as a JPEG

    with page.expect_download() as download:
        save_link(page, PI0).click()
    badge = flow.info.badge.replace(" ", "-")
    assert download.value.suggested_filename == f"pi0_tabletop-{badge}.npz"
    saved = load(download.value.path())
    np.testing.assert_allclose(saved.actions, flow.actions, rtol=1e-4, atol=1e-5)
    assert saved.inputs.image_sha256 == flow.inputs.image_sha256


def test_player_scrubs_without_the_server(visit):
    page = visit()
    tab(page, "Actions and denoising")
    expect(page.locator("#actions-plot .js-plotly-plot")).to_be_visible()  # the last of the answer
    slider = page.get_by_label("Euler step")
    expect(slider).to_be_visible()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    clock = page.locator(".clock").filter(visible=True).first
    before = clock.inner_text()
    slider.press("Home")
    expect(clock).to_contain_text("0 of 10")
    slider.press("ArrowRight")
    expect(clock).to_contain_text("1 of 10")
    assert clock.inner_text() != before
    page.get_by_role("button", name="Play").filter(visible=True).first.click()
    expect(clock).to_contain_text("10 of 10")
    # The page may still be fetching parts of itself; nothing may ask the program.
    assert [url for url in asked if "/assets/" not in url] == []


def test_second_visitor_waits_in_line_and_stop_lets_them_on(visit):
    first, second = visit(), visit()
    set_options(first, LONG)
    set_options(second, {"steps": 11})  # as nobody ran yet: what is known to be short would pass
    run(first)
    expect(first.locator(CARDS[PI0])).to_contain_text("step")
    run(second)
    expect(second.locator(".say")).to_contain_text("One run is before yours")
    expect(second.locator(CARDS[PI0])).to_contain_text("Waiting for its turn")
    first.get_by_role("button", name="Stop").click()
    expect(first.locator(".say")).to_contain_text("Stopped")
    expect(first.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    answered(second)
    expect(first.locator(".card", has_text="Answered")).to_have_count(0)


def test_closing_the_page_ends_its_run(visit, app):
    first, second = visit(), visit()
    set_options(first, LONG)
    run(first)
    expect(first.locator(CARDS[PI0])).to_contain_text("step")
    first.close()
    run(second)
    answered(second)


def test_live_chunk_shows_while_it_is_made_and_then_the_result(visit):
    page = visit()
    set_options(page, LONG | {"samples": 8})
    page.get_by_role("checkbox", name="pi0-FAST").uncheck()
    page.evaluate(
        """() => {
          window.chunks = new Set();
          const look = () => {
            const line = document.querySelector(".live .estimate");
            if (line) window.chunks.add(line.getAttribute("d"));
          };
          const all = {childList: true, subtree: true, attributes: true};
          new MutationObserver(look).observe(document, all);
        }"""
    )
    run(page)
    answered(page, PI0)
    expect(page.locator(".live .panel")).to_have_count(0)
    assert page.evaluate("window.chunks.size") > 1
    assert page.locator(CARDS[FAST]).get_by_text("Answered").count() == 0


def test_files_that_are_no_pictures_are_refused_and_nothing_else_is_lost(visit, photo, tmp_path):
    page = visit()
    page.get_by_label("Prompt").fill("keep this")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x", "<script>")
    for name, content, message in (
        ("picture.png", archive.getvalue(), "no readable PNG, JPEG or WebP image"),
        ("picture.jpg", photo.read_bytes()[:9000], "damaged or cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        give(page, tmp_path / name)
        dismiss(page, message)
        expect(page.locator("#picture-0 img")).to_have_count(0)
    run(page)
    dismiss(page, "needs a picture")
    expect(page.get_by_label("Prompt")).to_have_value("keep this")
    give(page, photo)
    expect(page.locator("#picture-0 img")).to_be_visible()
    run(page)
    answered(page)


def dismiss(page, message):
    """Closes the pop-up that says this: it may lie over what is clicked next, for ten seconds."""
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(message)
    toast.get_by_test_id("toast-close").click()
    expect(toast).to_have_count(0)


def test_markup_in_prompt_and_state_stays_text(visit):
    page = visit()
    attack = "<img src=x onerror=hacked=1><b>x</b>"
    page.get_by_label("Prompt").fill(attack)
    run(page)
    answered(page)
    for name in ("Actions and denoising", "Attention"):
        tab(page, name)
        expect(page.locator(DRAWN[name]).filter(visible=True).first).to_be_visible()
    tab(page, "Details")
    expect(page.locator("pre.text").first).to_contain_text(attack)
    open_state(page)
    page.get_by_label("left waist in rad").fill("<img src=x onerror='window.hacked=1'>")
    run(page)
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("left waist must be a number")
    expect(toast).to_contain_text("<img src=x")
    assert page.evaluate("window.hacked") is None
    expect(page.locator(CARDS[PI0])).to_contain_text("Answered in")  # the last answer stays


def test_measured_attention_is_that_of_the_run(visit, policies):
    page = visit()
    page.get_by_role("tab", name="Attention", exact=True).click()  # nobody asks for more
    example = first_example()
    for name in (PI0, FAST):
        trace = trace_of(policies[name], example, Options(attention=True))
        views = page.locator(f".right .view[data-family='{trace.info.family}']")
        expect(views.filter(has=page.locator(".masses")).locator("p.hidden").first).to_have_text(
            attention.describe(trace)
        )


def test_policies_that_are_not_chosen_take_no_room(visit):
    """Nor does an empty place for them, beside the masks of the two that are."""
    page = visit()
    tab(page, "Attention")
    masks = page.locator(".right .view[data-family]").filter(has=page.get_by_text("rows: queries"))
    shown = masks.locator("visible=true")
    empty = page.get_by_text("Run a policy to see who may attend").locator("visible=true")
    expect(shown).to_have_count(2)
    expect(empty).to_have_count(0)
    page.get_by_role("checkbox", name="pi0.5", exact=True).check()
    expect(empty).to_have_count(1)
    page.get_by_role("checkbox", name="pi0-FAST", exact=True).uncheck()
    expect(shown).to_have_count(1)
    run(page)
    expect(shown).to_have_count(2)
    expect(empty).to_have_count(0)


def test_what_matters_is_what_python_measures(visit, policies):
    page = visit()
    page.get_by_role("checkbox", name="pi0-FAST").uncheck()
    tab(page, "Prompts")
    # A tab's parts are put in when it is first opened; an answer must not overtake them.
    expect(page.locator("#board")).to_contain_text("Compare prompts to see")
    expect(page.locator("#own-prompts textarea")).to_be_visible()
    page.locator("#board-prompts textarea").fill("touch the blue cube\ntouch the green cube\nwave")
    page.locator("#compare-prompts").click()
    expect(page.locator("#board .matrix")).to_be_visible()
    texts = ["touch the blue cube", "touch the green cube", "wave"]
    compared = [
        prompts.answer(policies[PI0], first_example(), Options(), text, noises)
        for text, noises in zip(texts, (prompts.NOISES, 1, 1), strict=True)
    ]
    apart = prompts.distances(np.stack([answer.shares for answer in compared]))
    headline = prompts.headline(compared, {}, title="pi0")
    expect(page.locator("#board .headlines p")).to_have_text(headline)
    numbers = page.locator("#board .amount").all_inner_texts()[1:]
    for said, percent in zip(numbers, apart[0, 1:], strict=True):
        assert float(said.split(" %")[0]) == pytest.approx(percent, abs=0.51)
    cells = page.locator("#board .cells")  # read without a pointer
    cells.focus()
    cells.press("ArrowRight")
    one, other = prompts.clustered(apart)[:2]
    said = page.locator("#board .reading").inner_text()
    assert said.startswith(f"“{texts[one]}” against “{texts[other]}”: ")
    assert float(said.split()[-4]) == pytest.approx(apart[one, other], abs=0.06)
    start = page.get_by_role("button", name="Measure what matters")
    start.click()  # of everything, so that it lasts
    page.locator("#stop-matters").click()
    expect(page.locator("#matters-status")).to_contain_text("Stopped.")
    for other in ("Cameras", "State"):
        page.locator("#groups").get_by_label(other).uncheck()
    start.click()
    expect(page.locator("#matters-status")).to_have_text("Done.")
    request = sensitivity.SensitivityRequest(
        (PI0,), {PI0: first_example()}, Options(), groups=("prompt",)
    )
    *_, last = sensitivity.what_matters(policies, request)
    report = last.value
    words = [change for change in report.changes if change.word is not None]
    shown = page.locator("#matters .word small").all_inner_texts()
    assert shown == [matters.percent(change.percent) for change in words]
    assert len(shown) == len(report.prompt.split())
    expect(page.locator("#matters .badge").first).to_have_text(policies[PI0].info.badge)


def first_example():
    """What the page starts with."""
    example = examples(TABLETOP)[0]
    images = by_slot(example.images)
    return RawObservation("tabletop", images, {}, example.prompt, np.array(example.state))


def test_zoom_stays_while_the_axes_do(visit):
    page = visit()
    tab(page, "Actions and denoising")
    expect(page.locator("#actions-plot .js-plotly-plot")).to_be_visible()
    ranges = """() => {
      const plot = document.querySelector("#actions-plot .js-plotly-plot");
      window.before ??= plot;
      return plot && [plot.layout.xaxis.range, plot.layout.yaxis.range, plot !== window.before];
    }"""
    panel = page.locator("#actions-plot .nsewdrag").first
    panel.scroll_into_view_if_needed()
    whole, box = page.evaluate(ranges), panel.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 60, steps=5)
    page.mouse.up()
    until(lambda: page.evaluate(ranges) != whole)
    zoomed = page.evaluate(ranges)
    page.get_by_label("Prompt").fill("touch the red cube")
    run(page)
    until(lambda: page.evaluate(ranges) == [*zoomed[:2], True])
    page.get_by_label("normalised").click()  # another unit, other numbers
    until(lambda: (page.evaluate(ranges) or [None])[0] == [0, 49])


def test_units_chosen_while_an_answer_is_on_its_way_hold(visit):
    page = visit()
    tab(page, "Actions and denoising")
    shown = """() => document.querySelector("#actions-plot .js-plotly-plot")?.layout.uirevision"""
    for units in ("normalised", "robot units"):
        run(page)
        answered(page)  # it is said; what it is shown as comes after
        page.locator("#units").get_by_label(units).click()
        page.wait_for_timeout(2_000)
        until(lambda: page.evaluate(shown))  # the first plot takes its time
        until(lambda units=units: ("rad" in page.evaluate(shown)) == (units == "robot units"))


def test_one_answer_weighs_less_than_a_megabyte_and_a_half(visit):
    page = visit()
    page.get_by_role("tab", name="Attention", exact=True).click()
    page.get_by_label("Measure attention with each run").check()
    run(page)
    answered(page)
    tab(page, "Actions and denoising")
    expect(page.locator("#actions-plot .js-plotly-plot")).to_be_visible()  # its own code came too
    received = []
    watched = page.context.new_cdp_session(page)
    watched.send("Network.enable")
    watched.on("Network.dataReceived", lambda event: received.append(event["dataLength"]))
    page.get_by_label("Prompt").fill("touch the red cube")
    run(page)
    drawn = page.locator("#actions-words [data-recipe*='touch the red cube']")
    expect(drawn).to_have_count(1)
    page.wait_for_timeout(1000)
    assert 10_000 < sum(received) < 1_500_000, sorted(received)[-12:]


def test_controls_without_effect_are_closed_and_say_why(visit):
    page = visit()
    page.get_by_role("button", name="Advanced").click()
    expect(page.locator("#seed input")).to_be_enabled()
    expect(page.locator("#seed")).to_contain_text("No effect on pi0-FAST")
    page.get_by_role("checkbox", name="pi0", exact=True).uncheck()
    expect(page.locator("#seed input")).to_be_disabled()
    expect(page.locator("#seed")).to_contain_text("at temperature 0")
    expect(page.locator("#steps input[type=number]")).to_be_disabled()
    set_options(page, {"temperature": 0.5})
    expect(page.locator("#seed input")).to_be_enabled()


def test_phone_in_the_dark_fits_and_every_control_has_a_name(visit):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    for part in ("#prompt", "#run", "#glance .camera"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 844, part
    expect(page.locator("#glance .moves .path")).to_have_count(2)  # both policies' paths
    others = {"Prompts": "#board", "Causes": "#causes", "Run it": "#at-the-table"}
    for name, drawn in (DRAWN | others).items():
        found = page.get_by_role("tab", name=name)
        if not found.is_visible():
            page.get_by_role("button", name="More tabs").click()
            found = page.get_by_role("button", name=name)
        found.click()
        expect(page.locator(drawn).filter(visible=True).first).to_be_visible()
        until(lambda: page.evaluate("document.documentElement.scrollWidth") == 390)
        assert nameless(page) == []
        assert out_of_reach(page) == []


def out_of_reach(page):
    """Controls on show that the Tab key does not come to, nor an arrow key from a neighbour, or
    that do not show it."""
    page.keyboard.press("Tab")  # from here on a focus is shown as the keyboard's
    return page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, input, textarea, select, summary")]
          .filter(e => e.checkVisibility({ visibilityProperty: true }) && !e.disabled)
          .filter(e => e.type !== "file")
          .filter(e => {
            if (e.tabIndex < 0) return !e.closest("ol, ul")?.querySelector("[tabindex='0']");
            e.focus();
            const ring = [e, e.nextElementSibling, e.closest(".wrap")].filter(Boolean)
              .some(part => getComputedStyle(part).outlineStyle !== "none");
            return document.activeElement !== e || !(ring || e.closest("#prompt"));
          })
          .map(e => e.outerHTML.slice(0, 200))"""
    )


def nameless(page):
    """Controls on show that a screen reader could not name."""
    return page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select, canvas")]
          .filter(e => e.offsetParent && e.type !== "file" && !e.closest("[aria-hidden=true]"))
          .filter(e => ![e.ariaLabel, e.title, e.textContent, ...[...(e.labels || [])]
            .map(l => l.textContent)].some(text => text && text.trim()))
          .map(e => e.outerHTML.slice(0, 120))"""
    )


def test_results_of_others_cannot_be_had(visit, app):
    page = visit()
    link = save_link(page, PI0).get_attribute("href")
    assert answers(f"{app}/{link}")
    key = link.split("/")[1]
    assert len(key) >= 20
    for wrong in (f"trace/{key[:-1]}/{PI0}", f"trace/{key}/..%2f..%2fapp.py", "trace/x/y"):
        assert not answers(f"{app}/{wrong}")
    other = visit()
    assert save_link(other, PI0).get_attribute("href") != link
