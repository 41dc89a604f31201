"""The check of norm stats: every mistake that it is for is put in and found, and nothing else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect

from playground.analysis.norm_check import check
from playground.checkpoints import catalog, folder, stats
from playground.robots import builtin, norm_stats
from playground.trace import Stats
from playground.ui import norms
from playground.ui.setup import Setup, judged
from tests.support.visitor import open_state, tab
from tests.test_ui import info_of


def sound(robot, method):
    """A policy of a robot with stats in which nothing is odd."""
    info = info_of(robot, "pi0" if method == "z-score" else "pi05")
    dims = len(robot.actions)
    stats = Stats((0.1,) * dims, (0.5,) * dims, (-1.0,) * dims, (1.0,) * dims)
    return dataclasses.replace(info, normalisation=method, action_stats=stats)


def spoilt(info, part, **values):
    """The info with one dimension's stats changed: the last one's."""
    stats = getattr(info, f"{part}_stats")
    changed = {name: (*getattr(stats, name)[:-1], value) for name, value in values.items()}
    return dataclasses.replace(info, **{f"{part}_stats": dataclasses.replace(stats, **changed)})


METHODS = pytest.mark.parametrize("method", ["z-score", "quantile"])


def remarks(report):
    return {(row.part, row.name): row.remarks for row in report.rows if row.remarks}


@METHODS
@pytest.mark.parametrize("robot", [builtin.ALOHA, builtin.DROID, builtin.LIBERO])
def test_sound_stats(robot, method):
    report = check(sound(robot, method), robot)
    assert report.sound
    assert method in report.rule
    assert len(report.rows) == len(robot.state) + len(robot.actions)
    assert all(row.value is None for row in report.rows)


@METHODS
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"std": 0.0, "q01": 0.2, "q99": 0.2, "mean": 0.2}, "never moved"),
        ({"std": 2e-4, "q01": 0.1, "q99": 0.1008, "mean": 0.1}, "Tiny"),
        ({"mean": 3.0}, "mean lies outside q01..q99"),
    ],
)
@pytest.mark.parametrize("part", ["state", "action"])
def test_every_mistake_is_found_at_its_dimension(method, part, values, words):
    info = spoilt(sound(builtin.DROID, method), part, **values)
    ((key, (remark,)),) = remarks(check(info, builtin.DROID)).items()
    assert key == ({"state": "state", "action": "actions"}[part], "gripper")
    assert words in remark


def test_what_a_tiny_reach_does_is_said_in_numbers():
    """The remark's number is what `normalise` makes of such a change."""
    for method in ("z-score", "quantile"):
        info = spoilt(sound(builtin.DROID, method), "state", std=2e-4, q01=0.1, q99=0.1004)
        (remark, *_) = remarks(check(info, builtin.DROID))["state", "gripper"]
        stats = info.state_stats
        at = [norm_stats.normalise(np.full(8, x), stats, method)[-1] for x in (0.1, 0.11)]
        assert int(remark.split(" is ")[1].split()[0]) == pytest.approx(at[1] - at[0], rel=0.02)


def test_quantiles_that_meet_under_z_score():
    info = spoilt(sound(builtin.DROID, "z-score"), "state", q01=0.1, q99=0.1)
    assert "q01 = q99, though" in remarks(check(info, builtin.DROID))["state", "gripper"][0]


@METHODS
def test_stats_of_absolute_actions_where_offsets_are_predicted(method):
    """Only where the policy predicts offsets: ALOHA's joints, not its grippers."""
    info = sound(builtin.ALOHA, method)
    for dimension, odd in ((12, True), (13, False)):
        raised = {
            name: tuple(3.0 + x if i == dimension else x for i, x in enumerate(values))
            for name, values in dataclasses.asdict(info.action_stats).items()
            if name != "std"
        }
        stats = dataclasses.replace(info.action_stats, **raised)
        report = check(dataclasses.replace(info, action_stats=stats), builtin.ALOHA)
        assert bool(remarks(report)) == odd
        assert check(dataclasses.replace(info, action_stats=stats), builtin.ALOHA_SIM).sound


def test_no_quantiles():
    info = sound(builtin.DROID, "z-score")
    bare = dataclasses.replace(info.state_stats, q01=None, q99=None)
    info = dataclasses.replace(info, state_stats=bare)
    assert check(info, builtin.DROID, [0.1] * 8).sound
    found = remarks(check(info, builtin.DROID, [0.1] * 7 + [9.0]))
    assert "far from the mean of 0.1: 17.8 for the model" in found["state", "gripper"][0]


def test_normalisation_that_is_not_the_family_s():
    info = dataclasses.replace(sound(builtin.DROID, "z-score"), family="pi05", title="pi0.5")
    assert check(info, builtin.DROID).remarks == ("Unusual: openpi normalises pi0.5 by quantile.",)
    # LeRobot's pi0-FAST takes its normalisation from its folder.
    fast = dataclasses.replace(info, family="pi0_fast")
    assert check(fast, builtin.DROID).remarks
    fast = dataclasses.replace(fast, model_config={"convention": "lerobot", "action_dim": 8})
    assert not check(fast, builtin.DROID).remarks


def test_which_dimensions_are_padding():
    info = dataclasses.replace(sound(builtin.ALOHA, "z-score"), model_config={"action_dim": 32})
    padding = check(info, builtin.ALOHA).padding
    assert padding.startswith("Of the model's 32 dimensions, of the state the first 14 and of the")
    assert padding in norms.page(setup(info, builtin.ALOHA), [0.1] * 14).replace("&#x27;", "'")
    info = dataclasses.replace(info, family="pi05")  # its prompt holds the state
    assert "state" not in check(info, builtin.ALOHA).padding
    for change in ({"family": "pi0_fast"}, {"model_config": {"action_dim": 14}}):
        assert not check(dataclasses.replace(info, **change), builtin.ALOHA).padding


@given(st.floats(-2, 2, allow_nan=False))
def test_where_the_state_lies(value):
    """In the convention of the stats: ALOHA's differs from the robot's in signs."""
    for robot in (builtin.ALOHA, builtin.ALOHA_SIM):
        info = sound(robot, "quantile")
        state = np.full(14, 0.1)
        state[1] = value
        rows = check(info, robot, state).rows[:14]
        want = robot.state_to_model(state)
        np.testing.assert_allclose([row.value for row in rows], want)
        normalised = norm_stats.normalise(want, info.state_stats, "quantile")
        np.testing.assert_allclose([row.normalised for row in rows], normalised)
        assert bool(rows[1].remarks) == (abs(value) > 1 + 1e-6)
        # The number is the one that was given, and the model's only where it is another.
        given = f"The given state, {value:.4g} rad"
        assert all(given in remark for remark in rows[1].remarks)
        assert all((" as the model" in x) == robot.adapt_to_pi for x in rows[1].remarks)


def test_stats_of_more_dimensions_than_the_robot_has(goldens, tmp_path):
    """openpi's padding is silent; a dimension that moved is another robot's."""
    (tmp_path / "params").symlink_to(goldens / "pi05" / "params")
    place = tmp_path / "assets" / "physical-intelligence" / "libero"
    place.mkdir(parents=True)
    entry = None
    for std, odd in ((0.0, False), (0.3, True)):
        wide = Stats((0.0,) * 32, (0.5,) * 8 + (0.0,) * 23 + (std,), (-1.0,) * 32, (1.0,) * 32)
        norm_stats.write_norm_stats(place / "norm_stats.json", {"state": wide, "actions": wide})
        entry = folder.open_folder(tmp_path, "pi05_libero")
        notes = stats.stats_notes(entry)
        # LIBERO has eight numbers of state and seven actions.
        assert [note.split(",")[0] for note in notes] == [
            *(["The norm stats of state cover 32 dimensions"] if odd else []),
            "The norm stats of actions cover 32 dimensions",
        ]
        assert len(stats.norm_stats(entry)["actions"].mean) == 7
    info = dataclasses.replace(sound(builtin.LIBERO, "quantile"), stats_notes=notes)
    assert check(info, builtin.LIBERO).remarks == notes


@pytest.mark.parametrize("name", catalog.BUNDLED)
def test_the_bundled_policies(name, policies):
    """What the page shows of them: at rest nothing of the state is far out."""
    policy = policies[name]
    report = check(policy.info, policy.robot, policy.robot.resting_state)
    assert not report.remarks
    assert not any("given state" in text for row in report.rows for text in row.remarks)


# --- on the page, and for programs --------------------------------------------------------------


def setup(info, robot):
    return Setup(robot, ("p",), {"p": info}, (), {"p": robot})


def test_page_and_answer():
    info = spoilt(sound(builtin.DROID, "quantile"), "action", mean=3.0)
    info = dataclasses.replace(info, stats_notes=("<b>odd</b>",))
    here = setup(info, builtin.DROID)
    text = norms.page(here, ["2.5"] + [0.1] * 7)
    assert "&lt;b&gt;odd&lt;/b&gt;" in text
    assert "Actions, gripper: The mean lies outside" in text
    assert "State, joint 1: The given state, 2.5 rad, is outside the -1 to 1" in text
    assert "The given state" not in norms.page(here, ["x"] * 8)
    found = norms.answer(here, None, None)["p"]
    assert (found["method"], found["sound"]) == ("quantile", False)
    assert found["rows"][15]["remarks"]
    with pytest.raises(ValueError, match="no loaded policy is called q"):
        norms.answer(here, ["q"], None)
    with pytest.raises(ValueError, match="8 values"):
        norms.answer(here, None, [0.0])
    with pytest.raises(ValueError, match="still being loaded"):
        norms.answer(dataclasses.replace(here, infos={}), None, None)
    assert "being loaded" in norms.page(dataclasses.replace(here, infos={}), [0.0] * 8)
    assert judged(here, [0.1] * 8)


@pytest.mark.browser
def test_the_panel_follows_the_state(visit, policies):
    page = visit()
    tab(page, "Details")
    report = page.locator("#norms")
    expect(report.locator("h3")).to_have_count(len(policies))
    expect(report).to_contain_text("z-score")
    expect(report).not_to_contain_text("The given state")
    open_state(page)
    field = page.locator(".state input").first
    field.fill("3.1")
    field.press("Tab")
    expect(report).to_contain_text("The given state, 3.1 rad, is outside")
