"""LeRobot's checkpoints against recorded runs of LeRobot's own policies."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from models import config, pi0
from models.checkpoints import lerobot, lerobot_config, openpi
from models.checkpoints.assembly import load_lerobot, to_openpi
from models.decoding import DecodeOptions
from models.observation import Observation, uint8_to_float
from tests.support.golden_models import ACTION, CONFIGS, GOLDENS, LANGUAGE, Case, close
from tests.test_lora import recorded_time_embedding

FAMILIES = ["pi0", "pi05", "pi0_fast"]
EXPERTS = {
    "language": dataclasses.replace(LANGUAGE, num_heads=8),
    "action_expert": dataclasses.replace(ACTION, num_heads=8),
}
CONFIG = {
    "pi0": dataclasses.replace(CONFIGS["pi0"], vocab_size=1024, **EXPERTS),
    "pi05": dataclasses.replace(CONFIGS["pi05"], vocab_size=1024, **EXPERTS),
    "pi0_fast": dataclasses.replace(
        CONFIGS["pi0_fast"],
        vocab_size=1024,
        action_dim=7,
        max_token_len=97,
        language=EXPERTS["language"],
        convention="lerobot",
    ),
}
TABLE = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
flow = pytest.mark.parametrize("family", ["pi0", "pi05"])


@functools.cache
def load(family):
    return load_lerobot(GOLDENS / "lerobot" / family, CONFIG[family])


@functools.cache
def case(family) -> Case:
    arrays = np.load(GOLDENS / "lerobot" / family / "case_b2.npz", allow_pickle=False)
    return Case(family, "b2", arrays, json.loads(str(arrays["meta"])))


def observation(family, **fields) -> Observation:
    record, slots = case(family), CONFIG[family].image_slots
    assert tuple(record.meta["camera_order"]) == slots
    fields = {
        "images": {s: uint8_to_float(record["images"][:, i]) for i, s in enumerate(slots)},
        "image_masks": {s: record["image_masks"][:, i] for i, s in enumerate(slots)},
        # pi0.5 and FAST have none: nothing may depend on it.
        "state": record["state"] if "state" in record else np.full((2, 32), np.nan, np.float32),
        "tokens": record["tokenized_prompt"],
        "token_mask": record["tokenized_prompt_mask"],
        **fields,
    }
    return Observation(**jax.tree.map(jnp.asarray, fields))


# --- numbers ------------------------------------------------------------------------------------


@flow
def test_flow_policies(goldens, monkeypatch, family):
    record, model, seen = case(family), load(family), observation(family)
    prefix = model.embed_prefix(seen).tokens
    close(prefix[:, record["prefix_rows"]], record["prefix_tokens_rows"], 3e-5)
    for steps in (10, 5):
        actions = jax.jit(model.sample_actions, static_argnums=2)(seen, record["noise"], steps)
        close(actions, record[f"actions_{steps}"], 2e-3)
    monkeypatch.setattr(pi0, "time_embedding", recorded_time_embedding(record))
    actions = jax.jit(model.sample_actions)(seen, record["noise"])
    close(actions, record["actions_10"], 1e-4)
    loss = jax.jit(model.compute_loss)(
        jax.random.key(0), seen, record["actions"], record["loss_noise"], record["loss_time"]
    )
    close(loss, record["loss_per_element"].mean(axis=-1), 2e-4)


@flow
def test_two_cameras_through_the_policy(goldens, monkeypatch, family):
    """The third camera absent, the state as wide as the robot's: LeRobot pads, masks and cuts."""
    record, model = case(family), load(family)
    described = lerobot_config.read_lerobot(goldens / "lerobot" / family)
    full = observation(family)
    absent = described.cameras[2]
    state = np.array(full.state)
    state[:, described.state_dim :] = 0
    seen = dataclasses.replace(
        full,
        images={**full.images, absent: jnp.full_like(full.images[absent], -1)},
        image_masks={**full.image_masks, absent: jnp.zeros(2, bool)},
        state=jnp.asarray(state),
    )
    for slot in described.cameras[:2]:
        seen.image_masks[slot] = jnp.ones(2, bool)
    monkeypatch.setattr(pi0, "time_embedding", recorded_time_embedding(record))
    actions = jax.jit(model.sample_actions)(seen, record["noise"])
    close(actions[..., : described.action_dim], record["policy_chunk_two_cameras"], 1e-4)


def fast_observation(place, tail=None):
    """The recorded prompts with LeRobot's start token: behind the padding as LeRobot has it, or
    at the prompt's end as our tokenizer does. tail: tokens after it, their mask [B, T]."""
    record = case("pi0_fast")
    tokens, there = record["tokenized_prompt"], record["tokenized_prompt_mask"]
    tokens, there = (np.pad(x, ((0, 0), (0, 1))) for x in (tokens, there))
    ends = there.sum(axis=1) if place == "prompt's end" else [-1, -1]
    for row, end in enumerate(ends):
        tokens[row, end], there[row, end] = 2, True
    causal = np.zeros_like(tokens)
    if tail is not None:
        causal[:, -1] = 1  # in training it opens the causal part
        tokens, there, causal = (
            np.concatenate(parts, axis=1)
            for parts in ((tokens, tail[0]), (there, tail[1]), (causal, np.ones_like(tail[0])))
        )
    return observation("pi0_fast", tokens=tokens, token_mask=there, token_ar_mask=causal)


@pytest.mark.parametrize("place", ["behind the padding", "prompt's end"])
def test_fast(goldens, place):
    record, model, seen = case("pi0_fast"), load("pi0_fast"), fast_observation(place)
    tokens = record["tokens_greedy"]
    state, _ = jax.jit(model.prefill, static_argnames="max_decoding_steps")(
        seen, max_decoding_steps=12
    )
    feed = jax.jit(lambda state, token: model.decode_step(state, token)[0])
    for logits, token in zip(record["steps_logits"], tokens.T, strict=True):
        close(state.logits, logits, 1e-4)
        state = feed(state, token)
    whole = jax.jit(model.sample_actions, static_argnames="max_decoding_steps")
    for draft_ids in (None, np.unique(tokens)):
        got = whole(seen, None, DecodeOptions(draft_ids=draft_ids), max_decoding_steps=12)
        np.testing.assert_array_equal(got, tokens)


def test_fast_training_pass(goldens):
    record, model = case("pi0_fast"), load("pi0_fast")
    tokens, valid = record["action_tokens"], record["action_token_mask"]
    assert (tokens[:, 0] == 2).all()
    seen = fast_observation("behind the padding", (tokens[:, 1:], valid[:, 1:]))
    hidden, _ = jax.jit(model.forward)(seen)
    tail = hidden[:, 1 - tokens.shape[1] :]
    close(model.gemma.logits(tail[:, :6]), record["train_logits"], 1e-4)
    logp = jax.jit(model.log_probabilities)(seen)[:, 1 - tokens.shape[1] :]
    close(-np.average(logp, weights=valid[:, 1:]), record["loss"], 1e-5)


# --- names --------------------------------------------------------------------------------------


def test_published_layout(goldens):
    """Without `model.` and with the token table under another name: the same arrays."""
    folder = goldens / "lerobot" / "pi0"
    saved = lerobot.open_lerobot(folder / "model.safetensors", CONFIG["pi0"])
    published = lerobot.open_lerobot(folder / "model_published_layout.safetensors", CONFIG["pi0"])
    assert saved.keys() == published.keys() == openpi.openpi_manifest(CONFIG["pi0"]).keys()
    for path, stored in saved.items():
        np.testing.assert_array_equal(stored.read(), published[path].read(), err_msg=path)


@pytest.mark.parametrize("dtype", ["dtype", "dtype_if_bfloat16"])
@pytest.mark.parametrize("version", ["main", "saved_by_0.4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_manifests(goldens, tmp_path, family, version, dtype):
    """Every name of the real files finds its array: a file with their header and no data."""
    manifest = json.loads((goldens / f"lerobot/lerobot_manifests/{family}.json").read_text())
    names = manifest["params"]
    if version != "main":
        names = {k: v for k, v in names.items() if k not in manifest["variants"][version]["absent"]}
    elif family == "pi0_fast":
        # The two token tables would be compared, and zeros are not worth reading.
        names = {k: v for k, v in names.items() if not k.endswith(LM_HEAD)}
    kinds = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}
    header, end = {}, 0
    for name, entry in names.items():
        kind, size = kinds[entry[dtype]]
        start, end = end, end + int(np.prod(entry["shape"])) * size
        header[name] = {"dtype": kind, "shape": entry["shape"], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole: takes no space
    preset = {"pi0": config.PI0, "pi05": config.PI05, "pi0_fast": config.PI0_FAST}[family]
    arrays = lerobot.open_lerobot(path, preset)
    expected = {name: shape for name, (shape, _) in openpi.openpi_manifest(preset).items()}
    assert {name: stored.shape for name, stored in arrays.items()} == expected
    kinds = {str(stored.dtype) for stored in arrays.values()}
    assert kinds == ({"float32"} if dtype == "dtype" else {"float32", "bfloat16"})


@pytest.fixture
def folder(goldens, tmp_path):
    """A copy of the golden folders to be changed."""
    shutil.copytree(goldens / "lerobot", tmp_path / "lerobot", copy_function=shutil.copyfile)
    for path in (tmp_path / "lerobot").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "lerobot"


def rewrite(folder, change):
    """The folder with its arrays changed, by names without `model.`."""
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load(path.read_bytes())
    arrays = {name.removeprefix("model."): value for name, value in arrays.items()}
    change(arrays)
    path.write_bytes(safetensors.numpy.save(arrays))
    return folder


def same_as_golden(folder, family):
    loaded = to_openpi(load_lerobot(folder, CONFIG[family]))
    expected = to_openpi(load(family))
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def test_fast_with_two_token_tables(folder):
    def untie(arrays):
        arrays[LM_HEAD] = arrays[TABLE] + 1

    # The flow policies write no text, so their output layer may be anything.
    same_as_golden(rewrite(folder / "pi0", untie), "pi0")
    with pytest.raises(ValueError, match="lm_head and embed_tokens differ"):
        load_lerobot(rewrite(folder / "pi0_fast", untie), CONFIG["pi0_fast"])

    def only_head(arrays):
        arrays[LM_HEAD] = arrays.pop(TABLE)
        arrays[LM_HEAD] -= 1

    tied = rewrite(folder / "pi0_fast", lambda a: a.update({LM_HEAD: a[TABLE].copy()}))
    same_as_golden(tied, "pi0_fast")
    rewrite(folder / "pi0_fast", only_head)
    loaded = load_lerobot(folder / "pi0_fast", CONFIG["pi0_fast"]).gemma.embedding[...]
    np.testing.assert_array_equal(loaded, load("pi0_fast").gemma.embedding[...] - 1)


def test_pi05_under_pi0s_names(folder):
    """LeRobot's own loader accepts these."""

    def rename(arrays):
        for name in [name for name in arrays if name.startswith("time_mlp_")]:
            arrays["action_" + name] = arrays.pop(name)
        arrays["state_proj.weight"] = np.zeros((32, 32), np.float32)
        arrays["state_proj.bias"] = np.zeros(32, np.float32)

    same_as_golden(rewrite(folder / "pi05", rename), "pi05")


def test_bfloat16_file(folder):
    def halve(arrays):
        for name in arrays:
            if ".mlp." in name:
                arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)

    rewrite(folder / "pi0", halve)
    model = load_lerobot(folder / "pi0", CONFIG["pi0"])
    block, full = model.gemma.language.blocks[2], load("pi0").gemma.language.blocks[2]
    assert block.down[...].dtype == jnp.bfloat16
    assert block.query[...].dtype == jnp.float32
    np.testing.assert_array_equal(block.down[...], full.down[...].astype(jnp.bfloat16))
    wide = load_lerobot(folder / "pi0", CONFIG["pi0"], dtype="float32")
    assert wide.gemma.language.blocks[2].down[...].dtype == jnp.float32


def test_every_mismatch_in_one_error(folder):
    layer = "paligemma_with_expert.gemma_expert.model.layers.{}.self_attn.k_proj.weight"

    def spoil(arrays):
        for i in range(3):
            del arrays[layer.format(i)]
        arrays["proprio_history_proj.bias"] = np.zeros(4, np.float32)
        arrays["action_in_proj.weight"] = np.ascontiguousarray(
            arrays["action_in_proj.weight"].T[:5]
        )
        arrays["state_proj.bias"] = arrays["state_proj.bias"].astype(np.float64)

    rewrite(folder / "pi0", spoil)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        load_lerobot(folder / "pi0", CONFIG["pi0"])
    assert str(error.value).splitlines()[1:] == [
        "  missing (3):",
        f"    {layer.format('*')} [16, 32]  (3 of them)",
        "  not expected (1):",
        "    proprio_history_proj.bias [4]",
        "  wrong shape (1):",
        "    action_in_proj.weight: found [5, 32], expected [32, 32]",
        "  wrong type (1):",
        "    state_proj.bias: found F64, expected one of float32, bfloat16, float16",
    ]


def test_folders_without_weights(folder):
    (folder / "pi0" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors$"):
        load_lerobot(folder / "pi0")


# --- config.json and the processors -------------------------------------------------------------


@pytest.mark.parametrize(("family", "preset"), [("pi0", config.PI0), ("pi05", config.PI05)])
def test_config_of_the_flow_policies(goldens, family, preset):
    described = lerobot_config.read_lerobot(goldens / "lerobot" / family)
    assert described.config == dataclasses.replace(preset, action_horizon=10, dtype="float32")
    assert described.num_steps == 10


def test_config_of_fast(goldens):
    described = lerobot_config.read_lerobot(goldens / "lerobot" / "pi0_fast")
    assert described.config == dataclasses.replace(
        config.PI0_FAST,
        action_dim=7,
        action_horizon=10,
        max_token_len=97,
        dtype="float32",
        convention="lerobot",
    )
    assert described.num_steps is None
    # A saved config tells the convention; one from before it is openpi's.
    saved = config.to_dict(described.config)
    assert config.from_dict(saved) == described.config
    assert config.from_dict({k: v for k, v in saved.items() if k != "convention"}) == (
        dataclasses.replace(described.config, convention="openpi")
    )
    with pytest.raises(ValueError, match="'jax'; expected openpi or lerobot"):
        config.from_dict({**saved, "convention": "jax"})


def switch_relative(folder, **settings):
    """Relative actions, in the three places that say so."""
    on = settings.setdefault("enabled", True)
    for file, name, values in (
        ("policy_preprocessor.json", "relative_actions_processor", settings),
        ("policy_postprocessor.json", "absolute_actions_processor", {"enabled": on}),
    ):
        edit(folder / file, lambda d: step_of(d, name)["config"].update(values))  # noqa: B023
    edit(folder / "config.json", lambda d: d.update(use_relative_actions=on))


def step_of(description, name):
    (step,) = [step for step in description["steps"] if step.get("registry_name") == name]
    return step


def test_which_actions_are_offsets(folder):
    """All, but for those whose names hold an excluded part."""
    assert lerobot_config.read_lerobot(folder / "pi05").offsets == (False,) * 7

    def relative(**change):
        step = {"enabled": True, "exclude_joints": ["Gripper", ""], "action_names": None, **change}
        switch_relative(folder / "pi05", **step)
        return lerobot_config.read_lerobot(folder / "pi05").offsets

    assert relative() == (True,) * 7
    names = ["x", "left_gripper.pos", "GRIPPER", "grip"]
    assert relative(action_names=names) == (True, False, False, True, True, True, True)
    assert relative(action_names=names, exclude_joints=[]) == (True,) * 7


def test_fast_tokenizer_of_a_folder(folder):
    """The one that was saved with the policy, even if config.json has another's name."""
    place = folder / "pi0_fast"
    # The golden folder has a placeholder in its place.
    assert lerobot_config.read_lerobot(place).action_tokenizer == "lerobot/fast-action-tokenizer"
    (place / "action_tokenizer" / "processor_config.json").write_text("{}")
    edit(place / "config.json", lambda d: d.update(action_tokenizer_name="somebody/else"))
    assert lerobot_config.read_lerobot(place).action_tokenizer == str(place / "action_tokenizer")

    def by_name(description):  # as versions that save none
        step = description["steps"][6]
        del step["artifacts"]
        step["config"]["action_tokenizer_name"] = "me/fast"

    edit(place / "policy_preprocessor.json", by_name)
    assert lerobot_config.read_lerobot(place).action_tokenizer == "me/fast"
    edit(place / "policy_preprocessor.json", lambda d: d["steps"].pop(6))
    edit(place / "config.json", lambda d: d.pop("action_tokenizer_name"))
    with pytest.raises(ValueError, match=r"config\.json: 'action_tokenizer_name' is missing"):
        lerobot_config.read_lerobot(place)


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_stats_and_rule(goldens, family):
    """LeRobot's own results follow from the data that was read."""
    described = lerobot_config.read_lerobot(goldens / "lerobot" / family)
    record = np.load(goldens / "lerobot" / family / "processing.npz")
    assert record["state"].shape[-1] == described.state_dim
    assert record["action"].shape[-1] == described.action_dim
    expected = "quantile" if family == "pi05" else "z-score"
    assert described.normalisation == {"state": expected, "actions": expected}
    for name, kind in (("state", "state"), ("action", "actions")):
        stats, x = described.stats[kind], record[name]
        if expected == "z-score":
            low, size, shift = stats["mean"], stats["std"] + described.epsilon[kind], 0
        else:
            width = stats["q99"] - stats["q01"]
            size = np.where(width == 0, described.epsilon[kind], width) / 2
            low, shift = stats["q01"], 1
        close((x - low) / size - shift, record[f"{name}_normalized"], 1e-5)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_stats_are_found_through_the_state_file(folder):
    before = lerobot_config.read_lerobot(folder / "pi05").stats
    old = folder / "pi05" / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    old.rename(folder / "pi05" / "stats.safetensors")
    with pytest.raises(ValueError, match="step_3_normalizer_processor"):
        lerobot_config.read_lerobot(folder / "pi05")

    def point(to):
        return lambda d: d["steps"][3].update(state_file=to)

    processor = folder / "pi05" / "policy_preprocessor.json"
    edit(processor, point("stats.safetensors"))
    after = lerobot_config.read_lerobot(folder / "pi05").stats
    for kind in ("state", "actions"):
        assert after[kind].keys() == before[kind].keys() >= {"mean", "std", "q01", "q99"}
        for name, value in before[kind].items():
            np.testing.assert_array_equal(after[kind][name], value)
    edit(processor, point("../pi0/model.safetensors"))
    with pytest.raises(ValueError, match="expected a name in the folder"):
        lerobot_config.read_lerobot(folder / "pi05")
    # A base model carries none.
    edit(processor, lambda d: d["steps"][3].pop("state_file"))
    assert lerobot_config.read_lerobot(folder / "pi05").stats["state"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "pi0fast"}, "policy type is 'pi0fast'; expected pi0, pi05 or pi0_fast"),
        ({"chunk_size": None}, "'chunk_size' is missing"),
        ({"paligemma_variant": "gemma_7b"}, "paligemma_variant is 'gemma_7b'; expected one of"),
        ({"use_proprioceptive_memory": True}, "use_proprioceptive_memory is True; only False"),
        ({"image_resolution": [448, 448]}, r"image_resolution is \[448, 448\]; only \[224, 224\]"),
        ({"max_state_dim": 16}, "max_state_dim is 16 and max_action_dim 32"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
    ],
)
def test_config_that_cannot_be_run(folder, change, message):
    def spoil(settings):
        for name, value in change.items():
            if value is None:
                del settings[name]
            else:
                settings[name] = value

    edit(folder / "pi0" / "config.json", spoil)
    with pytest.raises(ValueError, match=message):
        load_lerobot(folder / "pi0")


def test_unknown_normalisation(folder):
    edit(
        folder / "pi0" / "policy_postprocessor.json",
        lambda d: d["steps"][0]["config"]["norm_map"].update(ACTION="QUANTILE20"),
    )
    with pytest.raises(ValueError, match="ACTION is normalised by QUANTILE20; expected one of"):
        lerobot_config.read_lerobot(folder / "pi0")
