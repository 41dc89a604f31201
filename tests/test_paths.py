"""The grippers' paths over the picture, against the table's own geometry."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from playground.robots.builtin import TABLETOP
from playground.robots.conversion import from_model
from playground.tabletop import camera, kinematics
from playground.tabletop.rollout import ask_expert, observe
from playground.tabletop.scene import Table, random_scene
from playground.tabletop.tasks import Task
from playground.trace import Inputs
from playground.views import denoising, paths, theme, tokens
from tests.support import traces

SIZE = 112


def at_the_table(trace, seed=3, chunk=None):
    """A made-up trace as if the table's camera had been shown, from a scene's state."""
    raw = observe(Table(random_scene(seed)), "touch the red cube")
    picture = raw.images["base_0_rgb"][::2, ::2]
    modes = {slot: "masked" for slot in trace.images} | {"base_0_rgb": "filled"}
    return dataclasses.replace(
        trace,
        info=dataclasses.replace(trace.info, robot=TABLETOP.name),
        inputs=Inputs(raw.prompt, tuple(raw.state.tolist()), modes, {}),
        on_table=True,
        images={**trace.images, "base_0_rgb": picture},
        actions=trace.actions if chunk is None else chunk[None].astype(np.float32),
    )


def expert_chunk(seed=3, colour="red"):
    return ask_expert(Table(random_scene(seed)), Task("touch", colour, "{}"))


def points_of(view, arm):
    (gripper,) = [g for g in view["grippers"] if g["name"] == f"{arm} gripper"]
    return theme.unpacked(gripper["points"])


def test_the_path_runs_from_where_the_tip_is_to_the_named_cube():
    for colour in ("red", "green", "blue"):
        table = Table(random_scene(3))
        chunk = expert_chunk(3, colour)
        sent = paths.payload(at_the_table(traces.pi0_trace(), chunk=chunk))["camera"]
        (mover,) = [g["name"].split()[0] for g in sent["grippers"] if g["moves"]]
        assert (mover == "left") == (table.cube(colour)[0] < 0)
        path = points_of(sent, mover)[0, 0]
        assert path.shape == (51, 2)
        np.testing.assert_allclose(path[0], kinematics.project(table.tip(mover), SIZE), atol=0.06)
        cube = kinematics.project(table.cube(colour), SIZE)
        assert np.linalg.norm(path[-1] - cube) < 4  # pixels of 112; a cube is 10 wide
        assert sent["image"]["width"] == SIZE


def test_every_step_of_every_sample_has_its_path_and_its_noise():
    trace = at_the_table(traces.pi0_trace(samples=3, steps=5))
    view = paths.denoising(trace)
    state = np.array(trace.inputs.state)
    noise = from_model(
        TABLETOP, trace.x_t, state, trace.info.action_stats, trace.info.normalisation
    )
    chunks = np.concatenate([trace.estimates, trace.actions[None]])
    for arm in kinematics.ARMS:
        found = points_of(view, arm)
        assert found.shape == (6, 3, 51, 2)
        expected = kinematics.project(kinematics.tip_paths(chunks)[arm], SIZE)
        np.testing.assert_allclose(found[:, :, 1:], expected, atol=0.08)
        (cloud,) = [g["noise"] for g in view["grippers"] if g["name"] == f"{arm} gripper"]
        expected = kinematics.project(kinematics.tip_paths(noise)[arm], SIZE)
        np.testing.assert_allclose(theme.unpacked(cloud), expected, atol=0.2)
    assert denoising.payload(trace, view)["camera"] is view


def test_tokens_draw_the_chunk_so_far_and_nothing_where_nothing_decodes():
    trace = at_the_table(traces.fast_trace())
    partial = trace.partial_actions.copy()
    partial[0] = np.nan
    trace = dataclasses.replace(trace, partial_actions=partial)
    view = paths.tokens(trace)
    found = points_of(view, "right")
    assert found.shape == (len(trace.tokens), 1, 51, 2)
    assert np.isnan(found[0]).all()
    expected = kinematics.project(kinematics.tip_paths(partial[-1])["right"], SIZE)
    np.testing.assert_allclose(found[-1, 0, 1:], expected, atol=0.08)
    assert tokens.payload(trace, view)["camera"] is view


def test_a_failed_decode_has_no_path_and_says_so():
    sent = paths.payload(at_the_table(traces.fast_trace(failure="too few coefficients")))
    assert sent["camera"]["grippers"] == []
    assert "did not decode" in sent["words"]


def test_nothing_is_drawn_where_the_geometry_is_not_known():
    assert paths.payload(traces.pi0_trace()) is None
    assert paths.denoising(traces.pi0_trace()) is None
    here = at_the_table(traces.pi0_trace())
    photo = traces.camera_image(0, SIZE)
    shown = {**here.images, "base_0_rgb": photo}
    elsewhere = dataclasses.replace(here, images=shown, on_table=False)
    assert paths.denoising(elsewhere) is None
    sent = paths.payload(elsewhere)
    assert sent["camera"]["grippers"] == []
    assert sent["foreign"] == camera.FOREIGN


def test_words_say_which_gripper_moves_how_far():
    trace = at_the_table(traces.pi0_trace(), chunk=expert_chunk())
    start, ends = np.array(trace.inputs.state), trace.actions[0, -1]
    words = paths.describe(trace)
    mover = kinematics.moving_arm(start, trace.actions[0])
    went = np.linalg.norm(kinematics.tip_paths(ends)[mover] - kinematics.tip_paths(start)[mover])
    assert f"the {mover} gripper moves {100 * went:.0f} cm" in words
    assert trace.info.badge in words


@pytest.mark.parametrize("size", [56, 112, 224])
def test_the_tables_own_pictures_are_known_at_any_size_and_no_others(size):
    for seed in range(200, 206):
        picture = observe(Table(random_scene(seed)), "").images["base_0_rgb"]
        assert camera.shows_table(picture[:: 224 // size, :: 224 // size])
    assert not camera.shows_table(traces.camera_image(1, size))
    for grey in (0, 128, 200, 255):
        assert not camera.shows_table(np.full((size, size, 3), grey, np.uint8))
    assert not camera.shows_table(picture[:, : size // 2])
    assert not camera.shows_table(np.ascontiguousarray(picture[::-1]))


def test_drawing_paths_needs_neither_model_nor_simulator():
    code = (
        "import sys; import playground.views.paths, playground.tabletop.kinematics\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('jax', 'mujoco', 'flax')]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
