"""Scenes by number, and what a page without the simulator says."""

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.tabletop import camera, job
from playground.ui import scenes
from tests.support.blocks import built
from tests.test_ui import setup_of


def row(seed):
    return built(lambda: scenes.build(setup_of(TABLETOP, "pi0"), seed))


def test_a_number_is_a_scene_and_none_a_fresh_one():
    assert scenes.number(12.0) == 12
    assert len({scenes.number(None) for _ in range(8)}) > 1
    for one, again in zip(*(scenes.draw(5).images.values() for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, again)
    assert scenes.draw(5).state != scenes.draw(6).state


def test_each_picture_of_a_scene_goes_to_its_own_slot():
    """Whatever their order; a slot whose camera the table lacks is empty."""
    wrist, base = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    drawn = scenes.Drawn({"left_wrist_0_rgb": wrist, "base_0_rgb": base}, (0.0,) * 14)
    setup = setup_of(TABLETOP, "pi0", "pi0_fast")
    assert [camera.title for camera in setup.cameras][:2] == ["base_0_rgb", "left_wrist_0_rgb"]
    assert [id(seen) for seen in drawn.pictures(setup)] == [id(base), id(wrist), id(None)]


@pytest.mark.parametrize("wrong", [-1, 1_000_000, 0.5, "4", True, [1]])
def test_what_is_no_scene_is_refused(wrong):
    with pytest.raises(ValueError, match="came"):
        scenes.number(wrong)


def test_a_picture_tells_its_scene_or_that_it_is_none_of_the_tables(tmp_path):
    row(None)
    pictures = {
        "drawn": scenes.draw(77).images["base_0_rgb"],
        "photo": np.zeros((40, 60, 3), np.uint8),
    }
    pictures |= {example.name: example.images["table"] for example in examples(TABLETOP)}
    expected = {"drawn": 77} | {example.name: example.scene for example in examples(TABLETOP)}
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(path)
        notice, seed = scenes.judge(TABLETOP.name, {"path": str(path)})
        assert seed == expected.get(name)
        assert (camera.FOREIGN in notice) == (name == "photo")
        assert scenes.judge("droid", {"path": str(path)}) == ("", None)
    assert scenes.judge(TABLETOP.name, None) == ("", None)


def test_without_the_simulator_the_button_is_gone_and_the_page_says_why(monkeypatch):
    monkeypatch.setattr(job, "available", lambda: False)
    page, scene = row(4)
    assert not scene.new.visible
    assert not scene.seed.visible
    said = [str(part.value) for part in page.blocks.values() if isinstance(part, gr.HTML)]
    assert any(job.MISSING in text for text in said)
