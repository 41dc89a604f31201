"""A robot in a JSON file: it drives a policy like one of ours, and mistakes are reported."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.checkpoints.schema import read_openpi_file
from playground.robots import conversion
from playground.robots.robot_file import RobotFile, read_robot
from playground.trace import RawObservation, Stats

ARM = {
    "name": "my_arm",
    "control_hz": 20,
    "cameras": {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"},
    "state": [{"name": "joint 1", "unit": "rad"}, {"name": "gripper", "unit": "0 to 1"}],
    "actions": [{"name": "joint 1", "unit": "rad"}, {"name": "gripper", "unit": "0 to 1"}],
    "offsets": [True, False],
    "resting_state": [0.0, 0.5],
}
CONFIG = {
    "name": "my_run",
    "family": "pi0",
    "robot": "my_arm.json",
    "action_horizon": 50,
    "max_token_len": 48,
    "normalisation": "z-score",
    "asset_id": "my_dataset",
}


def write(folder, name, data):
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_offsets_come_back_absolute_and_missing_slots_as_openpi_has_them(tmp_path):
    arm = read_robot(write(tmp_path, "arm.json", ARM))
    assert [slot.when_missing for slot in arm.flow_slots] == ["masked"] * 3
    assert [slot.when_missing for slot in arm.fast_slots] == ["black"] * 3
    assert [slot.required for slot in arm.flow_slots] == [True, True, False]

    stats = Stats((0.0, 0.0), (1.0, 1.0), None, None)
    state = np.array([0.25, 0.5])
    chunk = conversion.from_model(arm, np.full((3, 32), 0.1), state, stats, "z-score")
    np.testing.assert_allclose(chunk, [[0.35, 0.1]] * 3, atol=1e-5)

    picture = np.zeros((4, 4, 3), np.uint8)
    raw = RawObservation("my_arm", {"base_0_rgb": picture}, {}, "go", state)
    with pytest.raises(ValueError, match="left_wrist_0_rgb needs a picture"):
        conversion.to_model(arm, "pi0", raw, stats, "z-score", 8)


def test_a_config_names_the_file_beside_it(tmp_path):
    write(tmp_path, "my_arm.json", ARM)
    entry = read_openpi_file(write(tmp_path, "run.json", CONFIG))
    assert entry.robot == read_robot(tmp_path / "my_arm.json")
    assert entry.config.image_slots == ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    fast = (
        entry.config.action_dim,
        read_openpi_file(
            write(
                tmp_path, "fast.json", CONFIG | {"family": "pi0_fast", "normalisation": "quantile"}
            )
        ),
    )
    assert fast[0] == 32
    assert fast[1].config.action_dim == 2


def test_slots_of_fast_on_droid_are_known_and_pi0_cannot_have_them(tmp_path):
    cameras = {"base_0_rgb": "front", "wrist_0_rgb": "wrist"}
    write(tmp_path, "my_arm.json", ARM | {"cameras": cameras})
    fast = CONFIG | {"family": "pi0_fast", "normalisation": "quantile"}
    slots = read_openpi_file(write(tmp_path, "run.json", fast)).slots
    assert {slot.name: slot.camera for slot in slots} == cameras | {"base_1_rgb": ""}
    with pytest.raises(ValueError, match=r"cameras \['wrist'\] fill no slot of a pi0 policy"):
        read_openpi_file(write(tmp_path, "run.json", CONFIG))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_hz": 0}, "control_hz is 0; expected how many actions a second"),
        ({"control_hz": None}, "control_hz is null"),
        ({"cameras": {"cam_high": "front"}}, "the slots are base_0_rgb"),
        ({"cameras": {"left_wrist_0_rgb": "a", "wrist_0_rgb": "b"}}, "two kinds of policy"),
        ({"state": [{"name": "joint 1"}]}, r"state\[0\]\.unit is missing: a unit"),
        ({"actions": [{"name": "a", "unit": "m", "min": 0}]}, r"no field is called 'actions\[0\]"),
        ({"resting_state": [0.0]}, "resting_state has 1 values, state 2"),
        ({"offsets": [True]}, "offsets has 1 values, actions 2"),
        ({"name": "aloha"}, "a robot here already"),
        ({"speed": 1}, "no field is called 'speed'"),
        ({"state": ARM["state"][:1] * 2}, "state names joint 1 twice"),
    ],
)
def test_a_mistake_is_reported_with_what_was_expected(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_robot(write(tmp_path, "arm.json", ARM | change))


def test_an_offset_without_a_state_is_refused(tmp_path):
    more = ARM["actions"] + [{"name": "lift", "unit": "m"}]
    change = {"actions": more, "offsets": [True, False, True]}
    with pytest.raises(ValueError, match=r"dimensions \[2\] have no state"):
        read_robot(write(tmp_path, "arm.json", ARM | change))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(RobotFile.model_fields)), value=JSON)
def test_whatever_a_field_holds_a_robot_or_a_readable_error_comes(tmp_path_factory, name, value):
    path = write(tmp_path_factory.getbasetemp(), "any.json", ARM | {name: value})
    refusal = None
    try:
        robot = read_robot(path)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert len(robot.resting_state) == len(robot.state)
        assert len(robot.offsets) in (0, len(robot.actions))
    else:
        assert str(path) in refusal


def test_every_missing_field_is_told_at_once(tmp_path):
    with pytest.raises(ValueError, match="describes no robot") as error:
        read_robot(write(tmp_path, "arm.json", {}))
    required = {name: x for name, x in RobotFile.model_fields.items() if x.is_required()}
    assert len(required) == 7
    for name, field in required.items():
        assert f"{name} is missing: {field.description}" in str(error.value)
