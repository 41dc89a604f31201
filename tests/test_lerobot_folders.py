"""Folders of LeRobot's as people have them: what its processors, versions and stats change in the
numbers, each held to LeRobot's own rule, worked out here."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints.assembly import random_model
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import folder as local
from playground.checkpoints import stats as stats_of
from playground.policies.base import picture_digest
from playground.policies.flow import FlowPolicy
from playground.robots import conversion
from playground.trace import Options, RawObservation
from tests.support.golden_models import close
from tests.test_chains import shallow
from tests.test_lerobot import CONFIG, edit, step_of, switch_relative
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


def normalised_last(description):
    """The state would be written before it is normalised."""
    step = step_of(description, NORMALISER)
    description["steps"].remove(step)
    description["steps"].append(step)


def missing(description):
    prepare = "pi05_prepare_state_tokenizer_processor_step"
    description["steps"].remove(step_of(description, prepare))


def setting(step, **values):
    """Another value of a known setting."""
    return lambda description: step_of(description, step)["config"].update(values)


NORMALISER, TOKENISER = "normalizer_processor", "tokenizer_processor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra, r"step 'wiener_processor' .* is not known here"),
        (extra_class, r"step 'my_robot\.Deblur' is not known here"),
        (unknown_setting, r"its setting clip = 5\.0 is not known here"),
        (episode_metadata, "use_episode_metadata is True; only False is supported"),
        (tokenised_left, "padding_side is 'left'; only 'right' is supported"),
        (normalised_last, "the steps come in the order"),
        (setting("relative_actions_processor", enabled="yes"), "enabled is 'yes'; expected true"),
        (setting("relative_actions_processor", action_names=5), "action_names is 5; expected a l"),
        (setting("rename_observations_processor", rename_map=[]), r"rename_map is \[\]; expected"),
        (setting(NORMALISER, norm_map={"state": "QUANTILES"}), "norm_map is .* of STATE, VISUAL"),
        (setting(NORMALISER, norm_map={"STATE": []}), "norm_map is .*; expected an object such"),
        (setting(NORMALISER, features={"action": 7}), "features is .*; expected an object such"),
        (setting(TOKENISER, max_length=None), "max_length is None; expected a number from 1 on"),
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


def test_pictures_that_stats_would_change(folder):
    place, feature = folder / "pi05", "observation.images.base_0_rgb"
    change_rules(place, VISUAL="MEAN_STD")
    # LeRobot leaves alone what has no stats.
    plain = local.open_folder(place, robot="libero")
    assert plain.normalisation == "quantile"
    stats = {f"{feature}.{name}": np.ones((3, 1, 1), np.float32) for name in ("mean", "std")}
    change_stats(place, lambda arrays: arrays.update(stats))
    with pytest.raises(ValueError, match=f"{feature} is normalised by z-score; only IDENTITY"):
        local.open_folder(place, robot="libero")


def test_another_text_tokenizer_is_asked_for(folder):
    def change(description):
        step = step_of(description, TOKENISER)
        step["config"]["tokenizer_name"] = "google/gemma-2b"
        del step["artifacts"]

    edit(folder / "pi05" / "policy_preprocessor.json", change)
    with pytest.raises(ValueError, match="trained with the text tokenizer 'google/gemma-2b', wh"):
        local.open_folder(folder / "pi05", robot="libero")
    assert described(folder / "pi05", text_tokenizer="mine.model").text_tokenizer is not None


def test_how_lerobot_would_run_it_is_said(folder):
    edit(folder / "pi05" / "config.json", lambda d: d.update(num_inference_steps=4))
    assert "LeRobot takes 4 Euler steps with it." in described(folder / "pi05").notice
    edit(folder / "pi0_fast" / "config.json", lambda d: d.update(temperature=0.7))
    assert "at a temperature of 0.7." in described(folder / "pi0_fast").notice


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


def test_the_step_says_how_wide_the_state_was_padded(folder):
    saved_by_04(folder / "pi05")
    prepare = "pi05_prepare_state_tokenizer_processor_step"
    edit(folder / "pi05" / "policy_preprocessor.json", setting(prepare, max_state_dim=20))
    assert described(folder / "pi05").rules.prompt_state_dims == 20


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
    monkeypatch.setattr(policy.programs, "embed_images", given.append)
    white = np.full((100, 200, 3), 255, np.uint8)
    slots = [slot.name for slot in entry.slots]
    raw = RawObservation("libero", {slots[0]: white, slots[1]: white}, {}, "pick", np.zeros(8))
    prepared = policy.prepare(raw)
    want = np.full((224, 224, 3), bar, np.float32)
    want[56:168] = 1
    close(policy.pixels(prepared, slots[0]), want, 0)
    # A black picture of the same shape is not the same as bars, even where its pixels are.
    narrow = dataclasses.replace(raw, images={s: 0 * p for s, p in raw.images.items()})
    square = dataclasses.replace(
        raw, images={s: np.zeros((100, 100, 3), np.uint8) for s in raw.images}
    )
    digests = {picture_digest(policy.prepare(x), slots[0], policy.rules) for x in (narrow, square)}
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


def test_stats_of_every_step_are_explained(folder):
    def change(arrays):
        arrays["action.mean"] = np.zeros((10, 7), np.float32)

    change_stats(folder / "pi05", change)
    with pytest.raises(ValueError, match=r"mean \[10, 7\].* every step of a chunk are not supp"):
        local.open_folder(folder / "pi05", robot="libero")


def narrowed(folder, count):
    """A fine-tune of a base model on a robot of fewer dimensions: its stats are the robot's."""

    def change(arrays):
        for name in [n for n in arrays if n.startswith(("action.", "observation.state."))]:
            arrays[name] = arrays[name][:count]

    change_stats(folder, change)
    edit(
        folder / "config.json",
        lambda d: (
            d["input_features"]["observation.state"].update(shape=[32]),
            d["output_features"]["action"].update(shape=[32]),
        ),
    )


def test_the_stats_decide_how_wide_a_robot_is(folder):
    narrowed(folder / "pi0", 6)
    arm = {**ARM, "cameras": {"base_0_rgb": "front"}, "offsets": [False] * 6}
    six = {part: ARM[part][:6] for part in ("state", "actions", "resting_state")}
    (folder / "arm.json").write_text(json.dumps({**arm, **six}))
    entry = local.open_folder(folder / "pi0", robot=str(folder / "arm.json"))
    assert [len(x.mean) for x in stats_of.norm_stats(entry).values()] == [6, 6]
    assert entry.config.action_dim == 32
    # pi0-FAST writes the robot's own dimensions.
    narrowed(folder / "pi0_fast", 6)
    arm["cameras"] = ARM["cameras"]
    (folder / "arm.json").write_text(json.dumps({**arm, **six}))
    fast = local.open_folder(folder / "pi0_fast", robot=str(folder / "arm.json"))
    assert fast.config.action_dim == 6


def widened(folder, count):
    def change(arrays):
        for name in [n for n in arrays if n.startswith("observation.state.")]:
            arrays[name] = np.resize(arrays[name], count)

    change_stats(folder, change)


def test_a_state_wider_than_the_model(folder, texts):
    """pi0.5 writes it into the prompt, all of it; pi0's model has no room, which config.json
    tells."""
    widened(folder / "pi05", 40)
    wide = [{"name": f"joint {i}", "unit": "rad"} for i in range(40)]
    arm = {**ARM, "cameras": {"base_0_rgb": "front"}, "state": wide, "resting_state": [0.0] * 40}
    (folder / "arm.json").write_text(json.dumps(arm))
    entry = local.open_folder(folder / "pi05", robot=str(folder / "arm.json"))
    assert len(prompt_state(entry, texts, np.zeros(40))) == 40
    config = dataclasses.replace(CONFIG["pi05"], vocab_size=texts.vocab_size)
    policy = assembled(entry, random_model(config), texts, None)
    raw = RawObservation(
        "my_arm", {}, {slot.name: "masked" for slot in entry.slots}, "pick", np.zeros(40)
    )
    chunks, failure = policy.actions(raw, Options(num_steps=1))
    assert (chunks.shape, failure) == ((1, 10, 7), None)
    edit(folder / "pi05" / "config.json", lambda d: d.update(max_state_dim=64))
    assert local.open_folder(folder / "pi05", robot=str(folder / "arm.json")).config == entry.config
    widened(folder / "pi0", 40)
    with pytest.raises(ValueError, match=r"state has 40 dimensions, and the model room for 32"):
        local.open_folder(folder / "pi0", robot="aloha_sim")


# --- other rules --------------------------------------------------------------------------------


def by_lerobots_rule(rule, values, arrays, feature, *, back=False):
    """`_apply_transform` of LeRobot's `processor/normalize_processor.py`, without its epsilons."""
    names = {
        "MEAN_STD": ("mean", "std"),
        "QUANTILES": ("q01", "q99"),
        "QUANTILE10": ("q10", "q90"),
        "MIN_MAX": ("min", "max"),
    }
    if rule == "IDENTITY":
        return values
    first, second = (arrays[f"{feature}.{name}"] for name in names[rule])
    if rule == "MEAN_STD":
        return values * second + first if back else (values - first) / second
    span = second - first
    return (values + 1) / 2 * span + first if back else 2 * (values - first) / span - 1


def change_rules(place, **rules):
    for file, step in STATE_FILES:
        edit(place / file, lambda d: step_of(d, step)["config"]["norm_map"].update(rules))  # noqa: B023


@pytest.mark.parametrize(
    ("state_rule", "action_rule"),
    [
        ("MIN_MAX", "MIN_MAX"),
        ("IDENTITY", "IDENTITY"),
        ("QUANTILE10", "QUANTILE10"),
        ("MEAN_STD", "IDENTITY"),
        ("MIN_MAX", "QUANTILES"),
        ("QUANTILES", "MEAN_STD"),
    ],
)
def test_lerobots_other_rules(folder, texts, state_rule, action_rule):
    """Also another for the state than for the actions."""
    place, rng, arrays = folder / "pi05", np.random.default_rng(0), {}
    change_rules(place, STATE=state_rule, ACTION=action_rule)

    def change(found):
        """Other numbers in each, and nothing beyond what the rules need."""
        for name in ("observation.state", "action"):
            width = len(found[f"{name}.mean"])
            order = np.sort(rng.normal(size=(7, width)), axis=0)
            named = zip(("min", "q01", "q10", "mean", "q90", "q99", "max"), order, strict=True)
            arrays.update({f"{name}.{n}": x for n, x in named if f"{name}.{n}" not in arrays})
            arrays.setdefault(f"{name}.std", 1 + rng.random(width))
            needed = {state_rule, action_rule} - {"MIN_MAX", "IDENTITY"}
            for key in [key for key in found if key.startswith(name)]:
                del found[key]
            found.update({n: x for n, x in arrays.items() if n.startswith(name)} if needed else {})
            if needed or {state_rule, action_rule} == {"MIN_MAX"}:
                found[f"{name}.min"] = arrays[f"{name}.min"]
                found[f"{name}.max"] = arrays[f"{name}.max"]

    change_stats(place, change)
    entry = local.open_folder(place, robot="libero")
    config = dataclasses.replace(entry.config, vocab_size=texts.vocab_size)
    policy = assembled(entry, shallow(config), texts, None)
    state = rng.normal(size=8)
    images = {slot.name: np.zeros((8, 8, 3), np.uint8) for slot in entry.slots if slot.required}
    raw = RawObservation("libero", images, {}, "pick", state)
    want = by_lerobots_rule(state_rule, state, arrays, "observation.state")
    close(policy.prepare(raw).state, want, 1e-5)
    said = rng.normal(size=(10, 32))
    want = by_lerobots_rule(action_rule, said[:, :7], arrays, "action", back=True)
    close(policy.to_robot(said, raw), want, 1e-5)


@pytest.mark.parametrize(
    ("features", "method"),
    [
        ({}, "identity"),
        ({"observation.state": {"type": "ENV"}}, "identity"),
        ({"observation.state": {"type": "STATE"}}, "quantile"),
    ],
)
def test_a_state_that_is_no_feature_is_left_alone(folder, features, method):
    """`_normalize_observation` of LeRobot's `processor/normalize_processor.py` goes through the
    step's features, and takes the rule of each from its type."""
    place = folder / "pi05"
    edit(place / "policy_preprocessor.json", setting(NORMALISER, features=features))
    assert local.open_folder(place, robot="libero").methods == {
        "state": method,
        "actions": "quantile",
    }


def test_a_range_of_zero_takes_the_epsilon_of_its_own_step(folder):
    place = folder / "pi05"
    change_stats(place, lambda arrays: arrays.update({"action.q99": arrays["action.q01"]}))
    edit(place / "policy_postprocessor.json", setting("unnormalizer_processor", eps=0.5))
    entry = local.open_folder(place, robot="libero")
    stats = stats_of.norm_stats(entry)["actions"]
    said = np.full((1, 32), 0.25)
    got = conversion.from_model(entry.robot, said, np.zeros(8), stats, entry.normalisation)
    close(got[0], 1.25 / 2 * 0.5 + np.array(stats.q01), 1e-6)


def test_which_names_the_training_data_had(folder):
    edit(
        folder / "pi05" / "policy_preprocessor.json",
        lambda d: step_of(d, "rename_observations_processor")["config"].update(
            rename_map={"observation.images.top": "observation.images.base_0_rgb"}
        ),
    )
    notice = local.open_folder(folder / "pi05", robot="libero").notice
    assert "In its training data base_0_rgb was observation.images.top." in notice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_features": None}, "output_features is None; expected an object such as"),
        ({"input_features": {}}, "'observation.state' is missing in input_features"),
        ({"paligemma_variant": []}, r"paligemma_variant is \[\]; expected one of gemma_2b, "),
        ({"use_relative_actions": "yes"}, "use_relative_actions is 'yes'; expected true or false"),
        ({"chunk_size": 10**9}, "chunk_size is 1000000000; expected a number from 1 to 65536"),
        ({"chunk_size": "50"}, "chunk_size is '50'; expected a number from 1 to 65536"),
    ],
)
def test_no_type_error_reaches_anyone(folder, change, message):
    edit(folder / "pi0" / "config.json", lambda d: d.update(change))
    with pytest.raises(ValueError, match=message):
        local.open_folder(folder / "pi0", robot="aloha_sim")


def test_a_state_in_another_unit_is_warned_of(folder, texts):
    """Also where the stats have no quantiles: degrees against radians."""
    entry = local.open_folder(folder / "pi0", robot="aloha_sim")

    def no_quantiles(arrays):
        for name in [n for n in arrays if n.rpartition(".")[2].startswith("q")]:
            del arrays[name]

    change_stats(folder / "pi0", no_quantiles)
    config = dataclasses.replace(entry.config, vocab_size=texts.vocab_size)
    policy = assembled(entry, shallow(config), texts, None)
    assert policy.info.state_stats.q01 is None
    black = {slot.name: "black" for slot in entry.slots}
    mean, std = (np.array(getattr(policy.info.state_stats, name)) for name in ("mean", "std"))
    raw = RawObservation("aloha", {}, black, "pick", mean + 3.9 * std)
    assert policy.prepare(raw).warnings == ()
    state = np.where(np.arange(14) == 1, mean + 50 * std, mean)
    (warning,) = policy.prepare(dataclasses.replace(raw, state=state)).warnings
    assert "4 standard deviations around the mean of the training data" in warning
    assert warning.startswith("left shoulder is ")


@pytest.mark.parametrize("family", ["pi0", "pi05", "pi0_fast"])
def test_a_base_model_is_opened_for_looking(folder, family):
    """It has no stats and the model's own widths: numbers pass as they are, and it says so."""

    def change(arrays):
        arrays.clear()
        arrays["observation.images.base_0_rgb.mean"] = np.zeros((3, 1, 1), np.float32)

    narrowed(folder / family, 6)
    change_stats(folder / family, change)
    switch_relative(folder / family)
    robot = str(folder / "arm.json") if family == "pi0_fast" else "libero"
    entry = local.open_folder(folder / family, robot=robot)
    assert "A base model, without norm stats: it drives no robot" in entry.notice
    stats, said = stats_of.norm_stats(entry), np.arange(64.0).reshape(2, 32)
    width = len(entry.robot.actions)
    state = np.zeros(len(entry.robot.state))
    back = conversion.from_model(entry.robot, said, state, stats["actions"], entry.normalisation)
    np.testing.assert_array_equal(back, said[:, :width])
    assert entry.config.action_dim == (width if family == "pi0_fast" else 32)


# --- properties ---------------------------------------------------------------------------------

PRE, POST = (file for file, _ in STATE_FILES)


def steps_of(path, change):
    edit(path, lambda d: change(d["steps"]))


def renumbered(folder):
    described = json.loads((folder / PRE).read_text())
    old = step_of(described, "normalizer_processor")["state_file"]
    (folder / old).rename(folder / "other.safetensors")
    path = folder / PRE
    path.write_text(path.read_text().replace(old, "other.safetensors"))


def without_unnormaliser(description):
    description["steps"].remove(step_of(description, "unnormalizer_processor"))


def absolute_first(folder):
    """The state would be added to actions that are normalised yet."""
    switch_relative(folder)
    step = "absolute_actions_processor"
    steps_of(folder / POST, lambda s: s.sort(key=lambda one: one["registry_name"] != step))


# What says the same in other words, and what says something else, each of which may come in any
# number and order. Only the second kind may be refused, and all of it must be. Steps are named, not
# counted: after another change, a place may hold a step that means nothing.
HARMLESS = [
    named_delta,
    renumbered,
    lambda folder: steps_of(
        folder / PRE, lambda s: s.append({"registry_name": "to_batch_processor", "config": {}})
    ),
    lambda folder: steps_of(
        folder / PRE, lambda s: s.insert(0, {"class": "lerobot.x.DeviceProcessorStep"})
    ),
    lambda folder: edit(folder / "config.json", lambda d: d.update(optimizer_lr=1.0)),
]
HARMFUL = [
    lambda folder: edit(folder / PRE, extra),
    lambda folder: edit(folder / PRE, extra_class),
    lambda folder: edit(folder / PRE, unknown_setting),
    lambda folder: edit(folder / PRE, episode_metadata),
    lambda folder: edit(folder / PRE, tokenised_left),
    lambda folder: edit(folder / POST, extra),
    lambda folder: edit(folder / POST, without_unnormaliser),
    absolute_first,
    lambda folder: edit(folder / PRE, normalised_last),
    lambda folder: steps_of(
        folder / PRE, lambda s: s.append({"registry_name": "pi0_new_line_processor"})
    ),
    lambda folder: edit(folder / "config.json", lambda d: d.update(use_relative_actions=True)),
    lambda folder: edit(folder / "config.json", lambda d: d.update(use_visual_memory=True)),
    lambda folder: change_stats(folder, lambda arrays: arrays["action.q99"].__isub__(1e3)),
    lambda folder: change_stats(folder, lambda arrays: arrays.pop("action.q01")),
]


def check_meanings(goldens, folder, same, other):
    """Makes the golden folder with the changes `same` and `other`: it opens as it was without any
    of `other`, else not."""
    folder.mkdir()
    for path in (goldens / "lerobot" / "pi05").iterdir():
        if path.is_file() and path.suffix != ".npz" and not path.name.startswith("model"):
            shutil.copyfile(path, folder / path.name)
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    plain = local.open_folder(folder, robot="libero")
    expected = plain, stats_of.norm_stats(plain)
    for change in other[:1]:
        change(folder)
    for change in other[1:]:
        with contextlib.suppress(ValueError):  # the first took the step that this one changes
            change(folder)
    for change in same:
        change(folder)
    try:
        entry = local.open_folder(folder, robot="libero")
        opened = entry, stats_of.norm_stats(entry)
    except ValueError:
        assert other
    else:
        assert not other
        assert opened == expected


@pytest.mark.parametrize("index", range(len(HARMFUL)))
def test_no_folder_opens_with_this_meaning_dropped(goldens, tmp_path, index):
    """Each alone, so that no other is the reason for the refusal."""
    check_meanings(goldens, tmp_path / "pi05", [], [HARMFUL[index]])


@settings(max_examples=30)
@given(
    same=st.lists(st.sampled_from(HARMLESS), unique=True, max_size=3),
    other=st.lists(st.sampled_from(HARMFUL), unique=True, max_size=2),
)
def test_no_folder_opens_with_a_meaning_dropped(goldens, tmp_path_factory, same, other):
    check_meanings(goldens, tmp_path_factory.mktemp("any") / "pi05", same, other)


# Settings that change the answer, by file and place; a step is found by its name.
MEANT = {
    "config.json": [
        ("chunk_size",),
        ("max_action_dim",),
        ("paligemma_variant",),
        ("action_expert_variant",),
        ("use_relative_actions",),
        ("min_period",),
        ("max_period",),
        ("image_resolution",),
        ("use_visual_memory",),
        ("n_obs_steps",),
        ("input_features", "observation.images.base_0_rgb", "type"),
    ],
    PRE: [
        ("relative_actions_processor", "enabled"),
        (NORMALISER, "norm_map", "STATE"),
        (NORMALISER, "features", "observation.state", "type"),
        (NORMALISER, "normalize_observation_keys"),
        (TOKENISER, "max_length"),
        (TOKENISER, "padding_side"),
        (TOKENISER, "task_key"),
        (TOKENISER, "truncation"),
    ],
    POST: [
        ("absolute_actions_processor", "enabled"),
        ("unnormalizer_processor", "norm_map", "ACTION"),
    ],
}
ODD = [
    None,
    [],
    {},
    [[]],
    {"a": 1},
    ["x"],
    "x",
    "",
    "NaN",
    0,
    -1,
    2.5,
    7,
    10**30,
    1e308,
    True,
    False,
]


def put(folder, file, place, value):
    """Sets a value; what was there (None for nothing)."""
    path = folder / file
    description = json.loads(path.read_text())
    node, names = description, place
    if file != "config.json":
        node, names = step_of(description, place[0])["config"], place[1:]
    for name in names[:-1]:
        node = node[name]
    before = node.get(names[-1])
    node[names[-1]] = value
    path.write_text(json.dumps(description))
    return before


@pytest.mark.parametrize("file", MEANT)
def test_no_odd_value_is_read_as_the_usual_one(folder, file):
    """It is refused by a ValueError, or the entry is another."""
    place = folder / "pi05"
    path = place / file
    plain, text = local.open_folder(place, robot="libero"), path.read_text()
    for names in MEANT[file]:
        for value in ODD:
            before = put(place, file, names, value)
            if value in (before, None):
                path.write_text(text)
                continue
            try:
                opened = local.open_folder(place, robot="libero")
            except ValueError:
                opened = None
            assert opened != plain, (names, value)
            path.write_text(text)
