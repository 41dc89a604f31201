"""Folders of LeRobot's as people have them: what its processors, versions and stats change in the
numbers, each held to LeRobot's own rule, worked out here."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import folder as local
from playground.checkpoints import stats as stats_of
from playground.policies.flow import FlowPolicy
from playground.robots import conversion
from playground.trace import RawObservation
from tests.support.golden_models import close
from tests.test_chains import shallow
from tests.test_lerobot import edit, step_of, switch_relative
from tests.test_lerobot_policy import ARM, assembled

STATE_FILES = (
    ("policy_preprocessor.json", "normalizer_processor"),
    ("policy_postprocessor.json", "unnormalizer_processor"),
)
OFF = {"relative_actions_processor", "absolute_actions_processor"}


@pytest.fixture
def folder(goldens, tmp_path):
    """Copies of the golden folders without their weights, to be changed."""
    for family in ("pi0", "pi05", "pi0_fast"):
        (tmp_path / family).mkdir()
        for path in (goldens / "lerobot" / family).iterdir():
            if path.is_file() and path.suffix != ".npz" and not path.name.startswith("model"):
                shutil.copyfile(path, tmp_path / family / path.name)
        weights = {"nothing": np.zeros(1, np.float32)}
        safetensors.numpy.save_file(weights, tmp_path / family / "model.safetensors")
    (tmp_path / "arm.json").write_text(json.dumps(ARM))
    return tmp_path


@pytest.fixture(scope="module")
def texts(goldens):
    return PaligemmaTokenizer(
        goldens / "transforms" / "sentencepiece" / "tiny_paligemma.model", "lerobot"
    )


def without_relative_steps(path):
    edit(path, lambda d: d.update(steps=[s for s in d["steps"] if s["registry_name"] not in OFF]))


def before_05_1(folder):
    """As LeRobot knew no relative actions."""
    for file, _ in STATE_FILES:
        without_relative_steps(folder / file)
    gone = ("use_relative_actions", "relative_exclude_joints", "use_proprioceptive_memory")
    edit(folder / "config.json", lambda d: [d.pop(name, None) for name in gone])


def saved_by_04(folder):
    """Also with the mark that its weights carry."""
    before_05_1(folder)
    names = [
        f"model.paligemma_with_expert.paligemma.{name}.weight"
        for name in ("model.language_model.embed_tokens", "lm_head")
    ]
    arrays = {names[1]: np.zeros((2, 2), np.float32)}
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={names[0]: names[1]})


def change_stats(folder, change):
    """Both files' arrays, by LeRobot's names."""
    for file, step in STATE_FILES:
        described = json.loads((folder / file).read_text())
        path = folder / step_of(described, step)["state_file"]
        arrays = safetensors.numpy.load(path.read_bytes())
        change(arrays)
        path.write_bytes(safetensors.numpy.save(arrays))


# --- relative actions ---------------------------------------------------------------------------


def named_delta(folder):
    path = folder / "policy_preprocessor.json"
    path.write_text(path.read_text().replace("relative_actions_proc", "delta_actions_proc"))


def by_class(folder):
    def change(description):
        step = step_of(description, "relative_actions_processor")
        del step["registry_name"]
        step["class"] = "lerobot.processor.relative_action_processor.RelativeActionsProcessorStep"

    edit(folder / "policy_preprocessor.json", change)


def only_in_config(folder):
    for file, _ in STATE_FILES:
        without_relative_steps(folder / file)


@pytest.mark.parametrize("how", [named_delta, by_class, only_in_config])
def test_relative_actions_come_back_absolute(folder, how):
    """action = what the model says, unnormalised, + the state, but for excluded dimensions."""
    place = folder / "pi05"
    names = [*(f"joint_{i}" for i in range(6)), "left_gripper"]
    switch_relative(place, exclude_joints=["gripper"], action_names=names)
    edit(
        place / "config.json",
        lambda d: d.update(relative_exclude_joints=["gripper"], action_feature_names=names),
    )
    how(place)
    arm = {**ARM, "cameras": {"base_0_rgb": "front"}}
    (folder / "arm.json").write_text(json.dumps({**arm, "offsets": [True] * 6 + [False]}))
    entry = local.open_folder(place, robot=str(folder / "arm.json"))
    stats = stats_of.norm_stats(entry)["actions"]
    rng = np.random.default_rng(0)
    state, said = rng.normal(size=8), rng.normal(size=(10, 32))
    got = conversion.from_model(entry.robot, said, state, stats, entry.normalisation)
    file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    own = safetensors.numpy.load((place / file).read_bytes())
    low, high = own["action.q01"].astype(float), own["action.q99"].astype(float)
    want = (said[:, :7] + 1) * (high - low) / 2 + low
    want[:, :6] += state[:6]
    close(got, want, 1e-6)
    (folder / "arm.json").write_text(json.dumps({**arm, "offsets": [False] * 7}))
    with pytest.raises(ValueError, match="its actions are offsets at 0, 1, 2, 3, 4, 5, those of"):
        local.open_folder(place, robot=str(folder / "arm.json"))


def test_what_contradicts_itself_on_relative_actions(folder):
    edit(folder / "pi05" / "config.json", lambda d: d.update(use_relative_actions=True))
    with pytest.raises(ValueError, match="contradicts itself on relative actions"):
        local.open_folder(folder / "pi05", robot="libero")


# --- steps --------------------------------------------------------------------------------------


def extra(description):
    description["steps"].insert(2, {"registry_name": "wiener_processor", "config": {}})


def extra_class(description):
    description["steps"].insert(2, {"class": "my_robot.Deblur", "config": {}})


def unknown_setting(description):
    step_of(description, "normalizer_processor")["config"]["clip"] = 5.0


def episode_metadata(description):
    prepare = "pi05_prepare_state_tokenizer_processor_step"
    step_of(description, prepare)["config"]["use_episode_metadata"] = True


def tokenised_left(description):
    step_of(description, "tokenizer_processor")["config"]["padding_side"] = "left"


def other_order(description):
    steps = description["steps"]
    steps.append(steps.pop(3))  # the state would be written before it is normalised


def missing(description):
    description["steps"].pop(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra, r"step 'wiener_processor' .* is not known here"),
        (extra_class, r"step 'my_robot\.Deblur' is not known here"),
        (unknown_setting, r"its setting clip = 5\.0 is not known here"),
        (episode_metadata, "use_episode_metadata is True; only False is supported"),
        (tokenised_left, "padding_side is 'left'; only 'right' is supported"),
        (other_order, "the steps come in the order"),
        (missing, "'pi05_prepare_state_tokenizer_processor_step' is missing"),
    ],
)
def test_no_step_is_skipped(folder, change, message):
    edit(folder / "pi05" / "policy_preprocessor.json", change)
    with pytest.raises(ValueError, match=message):
        local.open_folder(folder / "pi05", robot="libero")


def test_all_problems_of_a_processor_at_once(folder):
    def change(description):
        extra(description)
        tokenised_left(description)
        missing(description)

    edit(folder / "pi05" / "policy_preprocessor.json", change)
    with pytest.raises(ValueError, match="is not as this program works") as error:
        local.open_folder(folder / "pi05", robot="libero")
    assert len(str(error.value).splitlines()) == 4


def test_a_folder_from_before_processors(folder):
    (folder / "pi0" / "policy_preprocessor.json").unlink()
    with pytest.raises(ValueError, match=r"before LeRobot 0\.4: migrate it"):
        local.open_folder(folder / "pi0", robot="aloha_sim")


# --- versions -----------------------------------------------------------------------------------


def described(folder, **more):
    robot = {"pi05": "libero", "pi0": "aloha_sim", "pi0_fast": "../arm.json"}[folder.name]
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", "robot": robot, **more}))
    return local.open_folder(folder, str(path))


def prompt_state(entry, texts, state):
    """The numbers of the state in the prompt."""
    config = dataclasses.replace(entry.config, vocab_size=texts.vocab_size)
    policy = assembled(entry, shallow(config), texts, None)
    black = {slot.name: "black" for slot in entry.slots}
    raw = RawObservation(entry.robot.name, {}, black, "pick", state)
    text = policy.prepare(raw).prompt.text
    return text.partition("State: ")[2].partition(";")[0].split()


def test_the_prompt_of_04_has_a_padded_state(goldens, folder, texts):
    """32 numbers, of which the robot has 8: a normalised 0 is written as 128."""
    saved_by_04(folder / "pi05")
    record = np.load(goldens / "lerobot" / "pi05" / "processing.npz")
    state = record["state"][0]
    new = str(record["prompts"][0]).partition("State: ")[2].partition(";")[0].split()
    assert len(new) == 8
    entry = described(folder / "pi05")
    assert "saved by LeRobot 0.4" in entry.notice
    assert prompt_state(entry, texts, state) == [*new, *["128"] * 24]
    later = described(folder / "pi05", lerobot_version="0.5")
    assert prompt_state(later, texts, state) == new


@pytest.mark.parametrize(
    ("change", "version", "notice"),
    [
        (lambda folder: None, "0.5", False),
        (before_05_1, None, True),
        (saved_by_04, "0.4", False),
    ],
)
@pytest.mark.parametrize("family", ["pi0", "pi05", "pi0_fast"])
def test_which_lerobot_saved_a_folder(folder, family, change, version, notice):
    change(folder / family)
    entry = described(folder / family)
    assert ("does not show whether LeRobot 0.4" in entry.notice) == notice
    old = version == "0.4"
    assert entry.rules.bar_value == (-3 if old else -1)
    assert entry.rules.prompt_state_dims == (32 if old and family != "pi0" else 0)
    with pytest.raises(ValueError, match=r"lerobot_version is 0\.4; expected"):
        described(folder / family, lerobot_version=0.4)


@pytest.mark.parametrize(("change", "bar"), [(lambda folder: None, -1), (saved_by_04, -3)])
def test_the_bars_beside_a_wide_picture(folder, texts, monkeypatch, change, bar):
    """A white picture twice as wide as high: 56 rows of bar, 112 of picture, 56 of bar."""
    change(folder / "pi05")
    entry = described(folder / "pi05")
    config = dataclasses.replace(entry.config, vocab_size=texts.vocab_size)
    policy = assembled(entry, shallow(config), texts, None)
    assert isinstance(policy, FlowPolicy)
    given = []
    monkeypatch.setattr(policy._programs, "embed_images", given.append)
    white = np.full((100, 200, 3), 255, np.uint8)
    slots = [slot.name for slot in entry.slots]
    raw = RawObservation("libero", {slots[0]: white, slots[1]: white}, {}, "pick", np.zeros(8))
    prepared = policy.prepare(raw)
    want = np.full((224, 224, 3), bar, np.float32)
    want[56:168] = 1
    close(policy._pixels(prepared, slots[0]), want, 0)
    # A black picture of the same shape is not the same as bars, even where its pixels are.
    narrow = dataclasses.replace(raw, images={s: 0 * p for s, p in raw.images.items()})
    square = dataclasses.replace(
        raw, images={s: np.zeros((100, 100, 3), np.uint8) for s in raw.images}
    )
    digests = {policy._picture_digest(policy.prepare(x), slots[0]) for x in (narrow, square)}
    assert len(digests) == (2 if bar == -3 else 1)


# --- stats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observation.state.std", -1.0, r"state: std\[3\] is -1; a standard deviation"),
        ("action.mean", np.nan, r"actions: mean\[3\] is nan; expected finite"),
        ("action.std", np.inf, r"actions: std\[3\] is inf; expected finite"),
        ("observation.state.q99", -1e3, r"state: q99\[3\] is -1000, below q01\[3\]"),
    ],
)
def test_stats_are_checked_like_openpis(folder, name, value, message):
    def change(arrays):
        if name in arrays:
            arrays[name][3] = value

    change_stats(folder / "pi05", change)
    with pytest.raises(ValueError, match=message):
        stats_of.norm_stats(local.open_folder(folder / "pi05", robot="libero"))
