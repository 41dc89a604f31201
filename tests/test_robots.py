"""Robots against openpi's recorded transforms, named configs and whole chains."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.robots import builtin, conversion, norm_stats, transforms
from playground.robots.builtin import ALOHA, ALOHA_SIM, DROID, LIBERO, TABLETOP
from playground.robots.robot import NO_CAMERA, check_state, slot_modes
from playground.trace import RawObservation, Stats
from tests.support.openpi_cases import Recorded, cases, close, equal, hold

FAMILIES = ("pi0", "pi05", "pi0_fast")
VARIANTS = (
    *builtin.OBSERVED.values(),
    builtin.ALOHA_SIM,
    builtin.DROID_JOINT_POSITION,
    builtin.LIBERO_OFFSETS,
)


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "transforms"


@pytest.fixture(scope="module")
def recorded(folder):
    return Recorded(folder, "transforms")


@pytest.fixture(scope="module")
def presets(folder):
    return {
        name: config
        for name, config in Recorded(folder, "presets").data["configs"].items()
        if "robot" in config
    }


def adapted(robot, adapt):
    return dataclasses.replace(robot, adapt_to_pi=adapt)


def raw(robot, **changes):
    """A picture for every slot that must have one, and the resting state."""
    images = {
        slot.name: np.full((30, 40, 3), 90, np.uint8) for slot in robot.flow_slots if slot.required
    }
    given = RawObservation(robot.name, images, {}, "pick up the cube", robot.resting_state)
    return dataclasses.replace(given, **changes)


def no_stats(dims):
    return Stats((0.0,) * dims, (1.0 - norm_stats.EPSILON,) * dims, None, None)


# --- against openpi -----------------------------------------------------------------------------


def check_inputs(recorded, pattern, robot_of, family_of):
    for name, params, inputs, outputs in cases(recorded, pattern):
        robot, family = robot_of(params), family_of(params)

        def ours(robot=robot, family=family, inputs=inputs):
            observation = conversion.from_openpi(robot, family, inputs, default_prompt="none given")
            state = robot.state_to_model(check_state(robot, observation.state))
            modes = slot_modes(robot.slots(family), observation)
            actions = robot.actions_to_model(inputs["actions"]) if "actions" in inputs else None
            return observation, state, modes, actions

        def check(result, outputs=outputs):
            observation, state, modes, actions = result
            np.testing.assert_allclose(state, outputs["state"], rtol=1e-12, atol=1e-15)
            assert modes.keys() == outputs["image"].keys()
            for slot, mode in modes.items():
                assert (mode != "masked") == outputs["image_mask"][slot]
                if mode == "filled":
                    equal(observation.images[slot], outputs["image"][slot])
                else:
                    assert not outputs["image"][slot].any()
            if actions is not None:
                np.testing.assert_allclose(actions, outputs["actions"], rtol=1e-12, atol=1e-15)
            prompt = outputs.get("prompt", "none given")
            assert observation.prompt == (prompt if isinstance(prompt, str) else prompt.item())

        hold(name, outputs is None, ours, check)


def test_aloha_observations_equal_openpi(recorded):
    check_inputs(
        recorded, "AlohaInputs/*", lambda p: adapted(ALOHA, p["adapt_to_pi"]), lambda p: "pi0"
    )


def test_droid_observations_equal_openpi(recorded):
    check_inputs(recorded, "DroidInputs/*", lambda p: DROID, lambda p: p["model_type"])


def test_libero_observations_equal_openpi(recorded):
    check_inputs(recorded, "LiberoInputs/*", lambda p: LIBERO, lambda p: p["model_type"])


def test_an_aloha_picture_with_channels_last_is_taken_as_it_is(recorded):
    for _, _, inputs, _ in cases(recorded, "AlohaInputs/*/hwc_image"):
        observation = conversion.from_openpi(ALOHA, "pi0", inputs, "")
        equal(observation.images["base_0_rgb"], inputs["images"]["cam_high"])


@pytest.mark.parametrize("robot", [ALOHA, DROID, LIBERO], ids=lambda robot: robot.name)
def test_actions_equal_openpi(recorded, robot):
    for name, params, inputs, outputs in cases(recorded, f"{robot.name.title()}Outputs/*"):
        here = adapted(robot, params.get("adapt_to_pi", False))
        here = dataclasses.replace(here, offsets=())
        stats = no_stats(len(robot.actions))
        hold(
            name,
            outputs is None,
            lambda here=here, inputs=inputs, stats=stats: conversion.from_model(
                here, inputs["actions"], here.resting_state, stats, "z-score"
            ),
            lambda actions, outputs=outputs: close(actions, outputs["actions"]),
        )


def test_aloha_grippers_equal_openpi(recorded):
    for _, _, inputs, outputs in cases(recorded, "aloha_gripper/state_sweep"):
        close(ALOHA.state_to_model(inputs["states"]), outputs["states"])
    for _, _, inputs, outputs in cases(recorded, "aloha_gripper/action_encode_sweep"):
        close(ALOHA.actions_from_model(inputs["actions"]), outputs["actions"])
    for _, _, inputs, outputs in cases(recorded, "aloha_gripper/action_inverse_sweep"):
        close(ALOHA.actions_to_model(inputs["actions"]), outputs["actions"])
        back = ALOHA.actions_from_model(ALOHA.actions_to_model(inputs["actions"]))
        np.testing.assert_allclose(back, inputs["actions"], atol=1e-12)


def test_robots_agree_with_openpis_named_configs(presets):
    seen = set()
    for name, config in presets.items():
        robot = builtin.OBSERVED[config["robot"]]
        assert len(robot.state) == config["state_dim"], name
        assert len(robot.actions) == config["action_dim_robot"], name
        assert robot.adapt_to_pi == bool(config.get("adapt_to_pi")), name
        slots = robot.slots(config["model_type"])
        assert [slot.name for slot in slots] == list(config["cameras"]), name
        for slot, camera in zip(slots, config["cameras"].values(), strict=True):
            assert camera["source"] == (slot.camera or "black image"), name
            if slot.camera == NO_CAMERA:
                assert camera["mask"] == (slot.when_missing == "black"), name
        offsets = tuple(config["delta_action_mask"] or ())
        variants = [v for v in VARIANTS if v.name == robot.name and v.offsets == offsets]
        assert variants, f"no variant of {robot.name} has the offsets of {name}"
        seen |= {id(variant) for variant in variants}
    assert seen == {id(variant) for variant in VARIANTS if variant.name != "tabletop"}


# --- the robots as data -------------------------------------------------------------------------


@pytest.mark.parametrize("robot", VARIANTS, ids=lambda robot: robot.title)
def test_a_robot_is_complete(robot):
    assert len(robot.resting_state) == len(robot.state)
    assert len(robot.offsets) in (0, len(robot.actions))
    for dimensions in (robot.state, robot.actions):
        names = [dimension.name for dimension in dimensions]
        assert len(set(names)) == len(names)
        assert all(dimension.unit for dimension in dimensions)
    for family in FAMILIES:
        slots = robot.slots(family)
        assert sum(slot.required for slot in slots) >= 1
        assert not any(slot.required for slot in slots if slot.camera == NO_CAMERA)
        conversion.to_model(
            robot,
            family,
            raw(robot, images={s.name: np.zeros((9, 9, 3), np.uint8) for s in slots if s.required}),
            no_stats(len(robot.state)),
            "z-score",
            28,
        )
    # What is offset when predicted is absolute when shown.
    for dimension, offset in zip(robot.actions, robot.offsets, strict=bool(robot.offsets)):
        if offset and robot.name != "libero":
            assert dimension.meaning == "absolute"


def test_the_tabletop_is_aloha_without_its_conventions():
    assert TABLETOP.state == TABLETOP.actions == ALOHA.state
    assert TABLETOP.control_hz == 50
    state = np.linspace(-1, 1, 14)
    np.testing.assert_array_equal(TABLETOP.state_to_model(state), state)
    # An arm that the model wants to leave alone (zeros) stays; its gripper goes where it is sent.
    actions = conversion.from_model(TABLETOP, np.zeros((5, 32)), state, no_stats(14), "z-score")
    joints = [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_allclose(actions[:, joints], np.broadcast_to(state[joints], (5, 12)))
    assert not actions[:, [6, 13]].any()


@given(st.integers(0, 2**32))
def test_actions_survive_the_way_to_the_model_and_back(seed):
    draw = np.random.default_rng(seed)
    for robot in VARIANTS:
        dims = len(robot.actions)
        actions, state = draw.normal(size=(2, 6, dims)), draw.uniform(0, 0.5, len(robot.state))
        stats = Stats(*(tuple(draw.uniform(0.1, 1, dims)) for _ in range(2)), None, None)
        there = robot.actions_to_model(actions)
        if robot.offsets:
            there = transforms.to_offsets(there, robot.state_to_model(state), robot.offsets)
        there = transforms.pad(norm_stats.normalise(there, stats, "z-score"), 32)
        back = conversion.from_model(robot, there, state, stats, "z-score")
        np.testing.assert_allclose(back, actions, atol=1e-9)


@given(st.integers(0, 2**32))
def test_a_state_is_normalised_in_the_model_s_convention(seed):
    """The stats are of it, not of the robot's own."""
    draw = np.random.default_rng(seed)
    dims = len(ALOHA.state)
    mean, std = draw.uniform(0.1, 1, (2, dims))
    stats = Stats(tuple(mean), tuple(std), None, None)
    state = draw.uniform(0, 0.5, dims)
    found = conversion.to_model(ALOHA, "pi0", raw(ALOHA, state=state), stats, "z-score", 8).state
    expected = (ALOHA.state_to_model(state) - mean) / (std + norm_stats.EPSILON)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.abs(expected - (state - mean) / (std + norm_stats.EPSILON)).max() > 1e-3


# --- slots and modes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "expected"), [("pi0", "masked"), ("pi05", "masked"), ("pi0_fast", "black")]
)
def test_a_missing_camera_differs_by_family(family, expected):
    modes = slot_modes(LIBERO.slots(family), raw(LIBERO))
    assert list(modes.values()) == ["filled", "filled", expected]


@pytest.mark.parametrize("family", ["pi0", "pi05", "pi0_fast"])
def test_the_table_s_policies_ask_for_all_pictures_they_were_trained_on(family):
    every = raw(TABLETOP)
    assert list(slot_modes(TABLETOP.slots(family), every).values()) == ["filled"] * 3
    for slot in every.images:
        images = {name: image for name, image in every.images.items() if name != slot}
        with pytest.raises(ValueError, match=f"{slot} needs a picture .*masked or black"):
            slot_modes(TABLETOP.slots(family), dataclasses.replace(every, images=images))


def test_modes_override_and_black_is_black():
    stats = no_stats(14)
    picture = np.full((30, 40, 3), 200, np.uint8)
    images = {"base_0_rgb": picture, "left_wrist_0_rgb": picture}
    modes = {"base_0_rgb": "masked", "right_wrist_0_rgb": "black"}
    observation = raw(ALOHA, images=images, modes=modes)
    result = conversion.to_model(ALOHA, "pi0", observation, stats, "z-score", 56)
    assert result.modes == {
        "base_0_rgb": "masked",
        "left_wrist_0_rgb": "filled",
        "right_wrist_0_rgb": "black",
    }
    assert not result.images["base_0_rgb"].any()
    assert not result.images["right_wrist_0_rgb"].any()
    # 30 x 40 fills a square's width and leaves bars of 7 rows above and below.
    filled = result.images["left_wrist_0_rgb"]
    assert filled.shape == (56, 56, 3)
    assert (filled[7:49] == 200).all()
    assert not filled[:7].any()
    assert not filled[49:].any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": {}}, "base_0_rgb needs a picture .cam_high."),
        ({"modes": {"right_wrist_0_rgb": "filled"}}, "right_wrist_0_rgb needs a picture"),
        ({"modes": {"base_0_rgb": "blurred"}}, "not 'blurred'"),
        ({"modes": {"base_1_rgb": "black"}}, r"no camera slots \['base_1_rgb'\]"),
        (
            {"images": {"cam_high": np.zeros((9, 9, 3), np.uint8)}},
            r"no camera slots \['cam_high'\]",
        ),
        ({"state": np.zeros(7)}, r"14 values .left waist.*; \[7\] came"),
        ({"state": np.zeros((1, 14))}, r"\[1, 14\] came"),
        ({"state": ["a"] * 14}, "must be numbers"),
        ({"state": [*np.zeros(13), np.nan]}, "right gripper cannot be nan"),
        ({"state": [np.inf, *np.zeros(13)]}, "left waist cannot be inf"),
        ({"state": [0, 1e30, *np.zeros(12)]}, r"left shoulder cannot be 1e\+30"),
    ],
)
def test_observations_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        conversion.to_model(
            ALOHA_SIM, "pi0", raw(ALOHA_SIM, **changes), no_stats(14), "z-score", 28
        )


def test_openpi_observations_that_do_not_fit_are_refused():
    picture = np.zeros((9, 8, 3), np.uint8)
    complete = {"state": np.zeros(14), "images": {"cam_high": picture}, "prompt": "go"}
    assert conversion.from_openpi(ALOHA, "pi0", complete).prompt == "go"
    for changes, match in (
        ({"prompt": None}, "needs a prompt, NoneType came"),
        ({"images": {"cam_high": picture, "cam_front": picture}}, "no cameras"),
        ({"images": {"cam_low": picture}}, "lacks 'images/cam_high'"),
    ):
        with pytest.raises(ValueError, match=match):
            conversion.from_openpi(ALOHA, "pi0", complete | changes)
    with pytest.raises(ValueError, match="observation/gripper_position"):
        conversion.from_openpi(DROID, "pi0", {"observation": {"joint_position": np.zeros(7)}})


def test_too_few_actions_are_refused():
    with pytest.raises(ValueError, match="LIBERO has 7 actions, the model gave 6"):
        conversion.from_model(LIBERO, np.zeros((5, 6)), np.zeros(8), no_stats(7), "z-score")
