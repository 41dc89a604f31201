"""The simulated table on the page: paths over the picture, scenes, cached examples, rollouts."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.robots.transforms import load_image
from playground.tabletop import camera, kinematics
from playground.tabletop.rollout import Episode
from playground.tabletop.scene import Table, random_scene
from playground.trace import Options, RawObservation, load
from playground.ui import example_cache, scenes
from playground.views import paths
from tests.support.table import by_slot
from tests.support.visitor import (
    CARDS,
    FAST,
    PI0,
    answered,
    give,
    run,
    save_link,
    set_options,
    tab,
    trace_of,
)

pytestmark = pytest.mark.browser


def drawn(page, where, kind="path"):
    """[points, 2] of the moving gripper, first sample, in the picture's pixels."""
    line = page.locator(f"{where} .camera .moves .{kind}").first
    expect(line).to_have_attribute("d", re.compile("^M"))
    found = re.findall(r"-?[\d.]+", line.get_attribute("d"))
    return np.array([float(number) for number in found]).reshape(-1, 2)


def expected(trace, chunk):
    """The path of the gripper that moves."""
    state = np.array(trace.inputs.state)
    arm = kinematics.moving_arm(state, trace.actions[0])
    tips = kinematics.tip_paths(np.concatenate([[state], chunk]))[arm]
    return kinematics.project(tips, trace.info.image_size)


def observation_of(seed, prompt):
    drawn = scenes.draw(seed)
    state = np.array(drawn.state)
    return RawObservation("tabletop", drawn.images, {}, prompt, state)


def scene_of(page):
    return page.locator("#scene input").input_value()


def test_a_new_scene_runs_and_its_paths_are_kinematics(visit, policies):
    page = visit()
    page.get_by_label("Prompt").first.fill("touch the red cube")
    before = scene_of(page)
    page.get_by_role("button", name="New scene").click()
    answered(page)
    seed = scene_of(page)
    assert seed != before
    expect(page.get_by_label("Prompt").first).to_have_value("touch the red cube")
    trace = trace_of(policies[PI0], observation_of(int(seed), "touch the red cube"))
    found = drawn(page, "[data-family=pi0]")
    np.testing.assert_allclose(found, expected(trace, trace.actions[0]), atol=0.06)
    cubes = {f"{c} cube": (x, y) for c, (x, y, _) in random_scene(int(seed)).cubes.items()}
    said = page.locator("#overview .answer[data-family=pi0] .sentence")
    expect(said).to_have_text(paths.sentence(trace, cubes))

    tab(page, "Actions and denoising")
    slider = page.get_by_label("Euler step")
    for step in (0, 4):
        slider.evaluate("(s, to) => { s.value = to; s.dispatchEvent(new Event('input')) }", step)
        found = drawn(page, ".view[data-family=pi0]:has(.transport)")
        np.testing.assert_allclose(found, expected(trace, trace.estimates[step, 0]), atol=0.06)

    # A number is a scene: given again, it is the same one.
    other = visit()
    other.locator("#scene input").fill(seed)
    other.locator("#scene input").press("Enter")
    answered(other)
    shown = other.locator("#picture-0 img").get_attribute("src")
    np.testing.assert_array_equal(
        load_image(other.request.get(shown).body()), scenes.draw(int(seed)).images["base_0_rgb"]
    )


def test_a_photograph_of_ones_own_has_a_lasting_notice_and_no_path(visit, photo):
    page = visit()
    notice = page.locator("#foreign")
    expect(notice).not_to_be_visible()
    give(page, photo)
    expect(notice).to_have_text(camera.FOREIGN)
    assert scene_of(page) == ""
    run(page)
    answered(page)
    for policy in (PI0, FAST):
        expect(page.locator(CARDS[policy])).to_contain_text(camera.FOREIGN)
    expect(page.locator("#overview .caveat").first).to_have_text(camera.FOREIGN)
    expect(page.locator("#overview .camera .path")).to_have_count(0)
    with page.expect_download() as download:
        save_link(page, PI0).click()
    assert camera.FOREIGN in load(download.value.path()).warnings
    page.get_by_role("button", name="New scene").click()
    expect(notice).not_to_be_visible()


def test_an_example_answers_from_the_cache_as_it_would_anew(visit, policies):
    page = visit()
    (index, example) = next((i, e) for i, e in enumerate(examples(TABLETOP)) if "green" in e.prompt)
    button = page.locator("#examples button").nth(index)
    say = page.locator(".say")

    def click_until(words):
        """The cache fills while nobody waits, and an option takes a moment to arrive."""
        for _ in range(60):
            button.click()
            answered(page)
            if say.inner_text().startswith(words):
                return
        raise AssertionError(f"{words!r} was never said; the last was {say.inner_text()!r}")

    click_until("From the cache: this example ran before")
    expect(page.locator(CARDS[PI0])).to_contain_text(example_cache.REUSED)
    assert scene_of(page) == str(example.scene)
    state = np.array(example.state)
    images = by_slot(example.images)
    trace = trace_of(policies[PI0], RawObservation("tabletop", images, {}, example.prompt, state))
    found = drawn(page, "[data-family=pi0]")
    np.testing.assert_allclose(found, expected(trace, trace.actions[0]), atol=0.06)

    set_options(page, {"seed": 7})
    click_until("Done.")


def test_every_example_is_the_scene_it_says():
    for example in examples(TABLETOP):
        scene = scenes.draw(example.scene)
        np.testing.assert_array_equal(example.images["table"], scene.images["base_0_rgb"])
        np.testing.assert_allclose(example.state, scene.state)


def test_a_rollout_streams_frames_and_ends_as_the_referee_says(visit, policies):
    page = visit()
    page.get_by_label("Prompt").first.fill("touch the green cube")
    tab(page, "Run it")
    expect(page.locator("#rollout-prompt textarea")).to_have_value("touch the green cube")
    expect(page.locator("#rollout-scene input")).to_have_value(scene_of(page))
    page.locator("#rollout-scene input").fill("4")
    page.get_by_role("button", name="Start").click()
    film = page.locator("#rollout")
    slider = film.get_by_label("Frame")
    expect(slider).to_be_visible()
    expect(film.locator(".verdict")).to_be_visible()

    table = Table(random_scene(4))
    episode = Episode(table, "touch the green cube", every=None)
    first = None
    while episode.outcome is None:
        trace = trace_of(policies[PI0], episode.look(), Options())
        first = first or trace
        *_, last = episode.act(trace.actions[0])
    word = "Success" if last.outcome.success else "Failure"
    verdict = f"{word} after {last.time_s:.1f} s: {last.outcome.reason}."
    expect(film.locator(".verdict")).to_contain_text(f"{verdict} Measured on scenes")
    expect(film).to_contain_text("small bundled policy")
    expect(film).to_contain_text("Simulation of the table, scene 4")
    expect(film.locator(".film .cameras-seen img")).to_have_count(3)

    asked = []
    page.on("request", lambda request: asked.append(request.url))
    clock = film.locator(".clock")
    expect(clock).to_contain_text(f"{last.time_s:.1f} s")
    pictures = set()
    for frame, time in ((0, "0.0 s"), (1, "0.1 s"), (6, "0.6 s")):
        slider.evaluate("(s, to) => { s.value = to; s.dispatchEvent(new Event('input')) }", frame)
        expect(clock).to_contain_text(time)
        pictures.add(film.locator(".photo img").get_attribute("src"))
        if frame < 5:  # of the first chunk, what is left of it
            chunk = kinematics.project(
                kinematics.tip_paths(np.concatenate([[first.inputs.state], first.actions[0]]))[
                    kinematics.moving_arm(np.array(first.inputs.state), first.actions[0])
                ],
                224,
            )
            found = drawn(page, "#rollout")
            np.testing.assert_allclose(found, chunk[5 * frame :], atol=0.06)
    assert len(pictures) == 3
    assert [url for url in asked if not url.startswith("data:")] == []


def roll_for_long(page):
    tab(page, "Run it")
    page.locator("#rollout-prompt textarea").fill("dance")  # nobody judges: it would run for 10 s
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#rollout .camera")).to_be_visible()


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stopped_rollout_lets_others_on(visit, how):
    first, second = visit(), visit()
    roll_for_long(first)
    run(second)
    expect(second.locator(".say")).to_contain_text("One run is before yours")
    if how == "stop":
        first.locator("#rollout-stop").click()
        expect(first.locator("#rollout .verdict")).to_contain_text("Stopped after")
        expect(first.get_by_role("button", name="Start")).to_be_enabled()
    else:
        first.close()
    answered(second)


def test_what_cannot_be_rolled_out_is_said(visit):
    page = visit()
    tab(page, "Run it")
    page.locator("#rollout-scene input").fill("-3")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("scenes go from 0")
    expect(page.get_by_role("button", name="Start")).to_be_enabled()


def test_a_plain_run_and_a_rollout_of_one_visitor_do_not_end_each_other(visit):
    page = visit()
    roll_for_long(page)
    run(page)
    expect(page.locator(".say")).to_contain_text("One run is before yours")
    expect(page.locator("#rollout .verdict")).not_to_be_visible()
    page.locator("#rollout-stop").click()
    expect(page.locator("#rollout .verdict")).to_contain_text("Stopped after")
    answered(page)
