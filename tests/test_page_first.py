"""The first screen: the answer before anybody asks, and one glance at a whole run."""

import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from playground.analysis.variants import rewordings
from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.tabletop import kinematics
from playground.tabletop.scene import random_scene
from playground.trace import Options, RawObservation
from playground.views import overview, theme
from tests.support.table import by_slot
from tests.support.visitor import FAST, PI0, answered, run, trace_of

pytestmark = pytest.mark.browser

# Adds up what the page's parts moved without anybody's doing, as browsers report it, and which.
SHIFTS = """
  window.shift = 0;
  window.moved = [];
  new PerformanceObserver((list) => {
    for (const { hadRecentInput, value, sources } of list.getEntries()) {
      if (hadRecentInput) continue;
      window.shift += value;
      window.moved.push([value, ...sources.map(({ node, previousRect, currentRect }) =>
        [node?.outerHTML?.slice(0, 80), previousRect.toJSON(), currentRect.toJSON()])]);
    }
  }).observe({ type: "layout-shift", buffered: true });
"""
# Keeps what stands there when the first of two policies has answered.
EARLY = """
  addEventListener("playground-row", () => {
    const rows = [...document.querySelectorAll("#overview .answer")];
    window.early = { rows, stale: rows.map((row) => row.classList.contains("stale")) };
  });
"""
FOCUSED = """() => [document.activeElement].map(
  (e) => e.getAttribute("aria-label") || e.textContent.trim())[0]"""


def observation(prompt):
    example = examples(TABLETOP)[0]
    images = by_slot(example.images)
    return RawObservation("tabletop", images, {}, prompt, np.array(example.state))


def path(page, policy):
    """[points, 2] of the moving gripper in a policy's row."""
    line = page.locator(f"#overview [data-policy='{policy}'] .camera .moves .path").first
    numbers = re.findall(r"-?[\d.]+", line.get_attribute("d"))
    return np.array([float(number) for number in numbers]).reshape(-1, 2)


def expected(trace, chunk):
    state = np.array(trace.inputs.state)
    arm = kinematics.moving_arm(state, trace.actions[0])
    tips = kinematics.tip_paths(np.concatenate([[state], chunk]))[arm]
    return kinematics.project(tips, trace.info.image_size)


def test_first_screen_has_the_answer_and_one_scrubber_moves_all_of_it(visit, policies):
    visit()  # from here on the answer is kept
    page = visit(script=SHIFTS)
    assert page.evaluate("window.shift") < 0.05, page.evaluate("window.moved")
    for part in ("#prompt", "#run", "#overview .answer >> nth=0", "#overview .answer >> nth=1"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900, part
    example = examples(TABLETOP)[0]
    cubes = {f"{c} cube": (x, y) for c, (x, y, _) in random_scene(example.scene).cubes.items()}
    traces = {name: trace_of(policies[name], observation(example.prompt)) for name in (PI0, FAST)}
    for name, trace in traces.items():
        row = page.locator(f"#overview [data-policy='{name}']")
        expect(row.locator(".sentence")).to_have_text(overview.sentence(trace, cubes))
        np.testing.assert_allclose(path(page, name), expected(trace, trace.actions[0]), atol=0.06)

    slider = page.get_by_label("Denoising step or token")
    tokens = len(traces[FAST].tokens)
    assert int(slider.get_attribute("max")) == tokens
    decoded = np.isfinite(traces[FAST].partial_actions).all(axis=(1, 2))
    token = int(np.flatnonzero(decoded[: tokens // 2])[-1]) + 1
    step = token * 10 // tokens
    slider.evaluate("(s, to) => { s.value = to; s.dispatchEvent(new Event('input')) }", token)
    readouts = page.locator("#overview .readout")
    expect(readouts.nth(0)).to_contain_text(f"step {step} of 10")
    expect(readouts.nth(1)).to_have_text(f"token {token} of {tokens}")
    estimate = traces[PI0].estimates[step, 0]
    np.testing.assert_allclose(path(page, PI0), expected(traces[PI0], estimate), atol=0.06)
    partial = traces[FAST].partial_actions[token - 1]
    np.testing.assert_allclose(path(page, FAST), expected(traces[FAST], partial), atol=0.06)
    expect(page.locator("#overview .stop.now")).to_have_count(1)
    expect(page.locator("#overview .chips .token:not(.later)")).to_have_count(token)

    page.locator("#overview .curve").first.hover()  # an action step, in every row's path
    marks = page.locator("#overview .moves .mark[d^=M]")
    expect(marks).to_have_count(2)
    page.mouse.move(0, 0)
    expect(marks).to_have_count(0)

    page.get_by_role("tab", name="Overview").focus()  # and all of it without a pointer
    reached = set()
    while (name := page.evaluate(FOCUSED)) != "How to read this" and len(reached) < 40:
        reached.add(name)
        page.keyboard.press("Tab")
    assert reached >= {"Play", "Denoising step or token", "Loop", "Path", "Action step", "Mask"}
    steps = page.get_by_role("slider", name="Action step").first
    steps.press("End")
    expect(marks).to_have_count(2)
    expect(steps).to_have_attribute("aria-valuenow", str(len(estimate) - 1))
    steps.press("Escape")
    expect(marks).to_have_count(0)

    page.evaluate("[window.shift, window.moved] = [0, []]")
    run(page)
    answered(page)
    assert page.evaluate("window.shift") < 0.05, page.evaluate("window.moved")
    top = page.locator("#prompt").bounding_box()["y"]
    page.get_by_label("Prompt").fill("touch the red cube " * 14)  # longer than pi0 reads
    run(page)
    answered(page)
    expect(page.locator("#strip .warned")).to_contain_text("cut off")
    assert page.locator("#prompt").bounding_box()["y"] == top


def test_at_the_last_token_the_estimate_is_the_chunk_where_nothing_moves_too(visit):
    page = visit(ready=False, query=f"?prompt=touch+the+red+cube&scene=4&policies={FAST}")
    final = page.locator("#overview .curve .final").first
    expect(final).to_have_attribute("d", re.compile("L"))
    drawn = page.evaluate("""[...document.querySelectorAll("#overview .curve")].map((curve) =>
        [".estimate", ".final"].map((layer) => curve.querySelector(layer).getAttribute("d")))""")
    points = r"[-\d.]+ ([-\d.]+)"
    heights = np.array([[re.findall(points, d) for d in pair] for pair in drawn], float)
    assert heights.shape == (14, 2, 50)
    assert np.abs(heights[:, 0] - heights[:, 1]).max() < 1  # of 100
    assert (np.ptp(heights, axis=(1, 2)) < 1).any()  # one does not move


def test_the_first_answer_is_shown_before_the_second_is_there(visit):
    page = visit(script=EARLY)
    # A slow machine may show two updates that come close together as one.
    for colour in ("green", "blue", "red") * 4:
        page.get_by_label("Prompt").fill(f"touch the {colour} cube")
        run(page)
        answered(page)
        if stale := page.evaluate("window.early?.stale"):
            break
    assert stale == [False, True]  # of pi0-FAST the answer of before
    now = "[...document.querySelectorAll('#overview .answer')]"
    same = page.evaluate(f"{now}.map((row, i) => row === early.rows[i])")
    assert same == [True, False]  # what stood there stays: nothing is drawn twice
    expect(page.locator("#overview .answer.stale")).to_have_count(0)
    expect(page.locator("#overview .answer .sentence").first).to_contain_text(f"{colour} cube")


def test_a_prompt_is_answered_while_it_is_typed_and_at_a_click(visit, policies):
    page = visit(live=True)
    field = page.get_by_label("Prompt")
    field.press("End")
    for _ in "blue cube":
        field.press("Backspace")
    field.press_sequentially("red cube")
    said = page.locator("#overview .sentence").first
    # Nobody clicked Run. A slow machine answers "touch the red" on the way, too.
    whole = "playgroundRun.policies.pi0_tabletop.received.text.includes('touch the red cube')"
    page.wait_for_function(whole)
    expect(said).to_contain_text("the red cube")
    trace = trace_of(policies[PI0], observation("touch the red cube"))
    np.testing.assert_allclose(path(page, PI0), expected(trace, trace.actions[0]), atol=0.06)
    answered(page)

    page.get_by_role("button", name="Run “touch the green cube”").click()
    expect(said).to_contain_text("the green cube")
    expect(field).to_have_value("touch the green cube")
    page.get_by_label("Live").uncheck()
    answered(page)
    field.fill("")
    field.press_sequentially("touch the blue cube")
    page.wait_for_timeout(600)
    expect(said).to_contain_text("the green cube")
    field.press("Enter")
    expect(said).to_contain_text("the blue cube")

    field.fill("put the red block on the blue block")
    page.get_by_role("button", name="red ↔ blue: Run “put the blue block on the red block”").click()
    expect(field).to_have_value("put the blue block on the red block")
    reworded = "cube: Run “put the blue cube on the red cube”"
    expect(page.get_by_role("button", name=reworded)).to_be_visible()
    repeated = "Run “put the red block on the red block”"
    expect(page.get_by_role("button", name=repeated)).to_have_count(0)
    # What the tab Prompts compares is made in Python, and is among them.
    buttons = page.locator(".rewordings button").all()
    offered = {button.get_attribute("title") for button in buttons}
    made = rewordings("put the blue block on the red block", TABLETOP.name)
    assert len(made) == 4
    assert {text for _, text in made} <= offered


def test_a_link_reopens_what_is_shown(visit, policies):
    """Copied on one page, opened by another visitor: the same bits, in the same tab."""
    query = "?prompt=touch+the+red+cube&scene=11&seed=3&steps=4&policies=pi0_tabletop&tab=Details"
    page = visit(ready=False, query=query)
    answered(page, PI0)
    expect(page.get_by_role("tab", name="Details")).to_have_attribute("aria-selected", "true")
    assert "prompt" not in page.url  # a reload shows what the visitor made of it
    wanted = trace_of(
        policies[PI0], observation("touch the red cube"), Options(num_steps=4, seed=3)
    )
    sent = page.evaluate("window.playgroundRun.policies.pi0_tabletop.flow.robot")
    np.testing.assert_array_equal(theme.unpacked(sent)[-1], wanted.actions)
    page.get_by_role("button", name="Copy link").click()
    copied = page.get_by_label("Link to what is shown")
    expect(copied).to_have_value(re.compile("prompt="))
    shown = parse_qs(urlsplit(copied.input_value()).query)
    assert shown.items() >= parse_qs(query[1:]).items()
