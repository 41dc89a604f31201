"""The catalogue against openpi's own configs; folders and JSON configs, clear ones and not."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models import config
from models.checkpoints.assembly import write_openpi
from models.checkpoints.bundled import save_bundled
from models.checkpoints.digests import params_folder
from models.checkpoints.lora import GEMMA_2B_LORA, GEMMA_300M_LORA, Adapters, Lora
from models.checkpoints.openpi import open_openpi
from playground.checkpoints import catalog, schema
from playground.checkpoints import folder as local
from playground.checkpoints import stats as stats_of
from playground.robots import builtin, norm_stats
from playground.robots.robot import NO_CAMERA
from playground.trace import Stats
from tests.test_checkpoint import SMALL, random_model

NAMES = [entry.name for entry in catalog.OPENPI]


@pytest.fixture(scope="module")
def presets(goldens):
    return json.loads((goldens / "transforms" / "presets.json").read_text())["configs"]


# --- openpi's configs ---------------------------------------------------------------------------


def test_every_config_is_offered_or_explained(presets):
    assert len(set(NAMES)) == len(NAMES)
    assert {*NAMES, *catalog.NOT_OFFERED} == presets.keys()
    assert not catalog.NOT_OFFERED.keys() & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_openpis(presets, name):
    entry, preset = catalog.named(name), presets[name]
    assert entry.family == preset["model_type"]
    assert entry.config.action_dim == preset["action_dim"]
    assert entry.config.action_horizon == preset["action_horizon"]
    assert entry.config.max_token_len == preset["max_token_len"]
    assert entry.config.vision == config.SIGLIP_SO400M
    assert entry.config.language == config.GEMMA_2B
    assert entry.config.dtype == "bfloat16"
    assert entry.state_in_prompt == preset["state_in_prompt"]
    assert entry.asset_id == preset["asset_id"]
    assert (entry.normalisation == "quantile") == preset["use_quantile_norm"]
    assert entry.default_prompt == preset["default_prompt"]
    assert entry.kind == "openpi"
    lora = preset["paligemma_variant"] == "gemma_2b_lora"
    assert (entry.adapters is not None) == lora
    if entry.family == "pi0_fast":
        own = (preset["fast_tokenizer_kwargs"] or {}).get("fast_tokenizer_path")
        named = own or preset["fast_tokenizer"].removeprefix("FASTTokenizer (").rstrip(")")
        assert entry.action_tokenizer == named
        assert entry.adapters in (None, Adapters(GEMMA_2B_LORA))
    else:
        assert entry.action_tokenizer is None
        assert entry.config.action_expert == config.GEMMA_300M
        assert entry.adapters in (None, Adapters(GEMMA_2B_LORA, GEMMA_300M_LORA))
        assert (preset["action_expert_variant"] == "gemma_300m_lora") == lora


@pytest.mark.parametrize("name", NAMES)
def test_robot_is_openpis(presets, name):
    entry, preset = catalog.named(name), presets[name]
    if "create_fails" in preset:
        assert entry.robot == builtin.DROID
        assert entry.notice.startswith("Not verified: of RoboArena.")
        return
    assert entry.robot.name == preset["robot"]
    assert len(entry.robot.state) == preset["state_dim"]
    assert len(entry.robot.actions) == preset["action_dim_robot"]
    assert list(entry.robot.offsets) == (preset["delta_action_mask"] or [])
    assert entry.robot.adapt_to_pi == preset.get("adapt_to_pi", False)
    # openpi's cameras, by slot: where the picture comes from and whether it is attended to.
    assert {slot.name for slot in entry.slots} == preset["cameras"].keys()
    assert set(entry.config.image_slots) == preset["cameras"].keys()
    for slot in entry.slots:
        camera = preset["cameras"][slot.name]
        if slot.camera == NO_CAMERA:
            assert camera["source"] == "black image"
            assert (slot.when_missing == "black") == camera["mask"]
        else:
            assert camera == {"source": slot.camera, "mask": True}


@pytest.mark.parametrize("name", NAMES)
def test_address_is_openpis(presets, name):
    entry, preset = catalog.named(name), presets[name]
    published = preset["checkpoints"]
    if name == "pi0_fast_libero":
        published = [x["url"] for x in preset["checkpoints_not_in_this_revision"]]
        assert "no longer" in entry.notice
    assert ([entry.address] if entry.address else []) == published
    assert bool(entry.licence) == bool(published)
    assert published or "no checkpoint" in entry.notice


def test_prompt_formats():
    assert catalog.named("pi0_droid").prompt_format == "text"
    assert catalog.named("pi05_droid").prompt_format == "text and state"
    assert catalog.named("pi05_libero").prompt_format == "text"
    assert catalog.named("pi0_fast_droid").prompt_format == "FAST"


def test_sizes(goldens):
    for name in ("pi0_aloha", "pi05_aloha", "pi0_fast_droid"):
        entry = catalog.named(name)
        manifest = json.loads((goldens / f"param_manifests/{entry.family}.json").read_text())
        assert entry.num_parameters == manifest["total_parameters"]
        assert entry.num_bytes == 4 * manifest["total_parameters"]


def test_default_pair_can_be_compared():
    first, second = (catalog.named(name) for name in catalog.DEFAULT_PAIR)
    assert first.robot == second.robot
    assert first.config.action_horizon == second.config.action_horizon
    assert {first.family, second.family} == {"pi0", "pi0_fast"}
    assert first.address
    assert second.address


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'pi0_driod'; did you mean pi0_droid\b"):
        catalog.named("pi0_driod")
    with pytest.raises(ValueError, match="cannot be opened here: its actions are FSQ codes"):
        catalog.named("paligemma_vq_droid")
    with pytest.raises(ValueError, match=r"did you mean .*pi05_libero"):
        catalog.named("???")


def test_nothing_here_loads_jax():
    program = (
        "import sys, playground.checkpoints.catalog, playground.checkpoints.folder\n"
        "print('jax' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


# --- bundled ------------------------------------------------------------------------------------


def save(folder, family, **metadata):
    metadata = {"robot": "tabletop", "normalisation": "quantile", **metadata}
    save_bundled(folder, SMALL[family], random_model(SMALL[family]), metadata)
    stats = {
        key: Stats((0.0,) * 14, (1.0,) * 14, (-1.0,) * 14, (1.0,) * 14)
        for key in ("state", "actions")
    }
    norm_stats.write_norm_stats(folder / "norm_stats.json", stats)
    return stats


@pytest.mark.parametrize("family", SMALL)
def test_bundled(tmp_path, family):
    folder = tmp_path / "small"
    stats = save(folder, family)
    entry = catalog.named("small", assets=tmp_path)
    assert entry == local.open_folder(folder) == catalog.bundled(folder)
    assert entry.config == SMALL[family]
    assert entry.robot == builtin.TABLETOP
    assert entry.normalisation == "quantile"
    assert entry.kind == "bundled"
    assert entry.folder == folder
    assert entry.action_tokenizer == (str(folder / "fast") if family == "pi0_fast" else None)
    assert stats_of.norm_stats(entry) == stats
    assert list(catalog.entries(assets=tmp_path)) == ["small", *NAMES]


def test_bundled_that_says_too_little(tmp_path):
    save(tmp_path / "a", "pi0", robot="fridge")
    with pytest.raises(ValueError, match="names robot 'fridge' and normalisation 'quantile'; exp"):
        local.open_folder(tmp_path / "a")


# --- a folder of one's own ----------------------------------------------------------------------

GOLDEN_FOLDERS = [
    ("pi0", "pi0_aloha", 14, 14),
    ("pi05", "pi05_libero", 8, 7),
    ("pi0_fast", "pi0_fast_droid", 8, 8),
    ("lora/pi0", "pi0_aloha", 14, 14),
    ("lora/pi0_fast", "pi0_fast_droid", 8, 8),
]


@pytest.mark.parametrize(("folder", "name", "state", "actions"), GOLDEN_FOLDERS)
def test_openpi_folder(goldens, folder, name, state, actions):
    entry = local.open_folder(goldens / folder, name)
    expected = dataclasses.replace(
        catalog.named(name), folder=goldens / folder, address=None, licence="", notice=""
    )
    assert entry == expected
    assert local.open_folder(goldens / folder / "params", name) == expected
    stats = stats_of.norm_stats(entry)
    stored = json.loads(
        (goldens / folder / "assets" / entry.asset_id / "norm_stats.json").read_text()
    )
    for key, count in (("state", state), ("actions", actions)):
        assert stats[key].mean == tuple(stored["norm_stats"][key]["mean"])
        assert len(stats[key].mean) == count


def test_what_is_named_is_what_is_opened(goldens, tmp_path):
    """Parameters beside others, under a name of their own: those, and no sibling's."""
    run = tmp_path / "29999"
    shutil.copytree(goldens / "pi0" / "params", run / "params", copy_function=shutil.copyfile)
    shutil.copytree(goldens / "pi0" / "assets", run / "assets", copy_function=shutil.copyfile)
    raw = {"action_in_proj/kernel": np.full((32, 32), 7.0, np.float32)}
    arrays = {path: x.read() for path, x in open_openpi(goldens / "pi0" / "params").items()}
    write_openpi({**arrays, **raw}, tmp_path / "other")
    (tmp_path / "other" / "params").rename(run / "params_raw")
    shown = {}
    for name in ("params", "params_raw"):
        entry = local.open_folder(run / name, "pi0_aloha")
        opened = open_openpi(params_folder(entry.params or entry.folder))
        shown[name] = opened["action_in_proj/kernel"].read()
        assert stats_of.norm_stats(entry) == stats_of.norm_stats(
            local.open_folder(run, "pi0_aloha")
        )
    np.testing.assert_array_equal(shown["params_raw"], 7.0)
    np.testing.assert_array_equal(shown["params"], arrays["action_in_proj/kernel"])


def test_what_a_folder_does_not_say_is_asked(goldens, tmp_path):
    names = "--config .*pi05_droid, pi05_libero, "
    with pytest.raises(ValueError, match=rf"is a pi05 checkpoint, and does not say which.*{names}"):
        local.open_folder(goldens / "pi05")
    with pytest.raises(
        ValueError, match="is a pi0_fast checkpoint, and pi0_droid a config for pi0"
    ):
        local.open_folder(goldens / "pi0_fast", "pi0_droid")
    with pytest.raises(
        ValueError, match=r"no norm stats for 'droid' .*some for trossen: choose with --asset-id"
    ):
        local.open_folder(goldens / "pi0", "pi0_droid")
    # Said, the stats are taken; that they are another robot's shows in their number.
    entry = local.open_folder(
        goldens / "pi05", "pi05_droid", asset_id="physical-intelligence/libero"
    )
    with pytest.raises(ValueError, match="cover 7 dimensions, 8 are needed"):
        stats_of.norm_stats(entry)
    shutil.copytree(goldens / "pi0" / "params", tmp_path / "params")
    with pytest.raises(
        ValueError, match=r"no norm stats for 'trossen' .*none at all: copy assets/"
    ):
        local.open_folder(tmp_path, "pi0_aloha")
    with pytest.raises(ValueError, match="there is no such folder"):
        local.open_folder(tmp_path / "nowhere", "pi0_aloha")


def test_stats_without_quantiles(goldens, tmp_path):
    source = goldens / "pi05"
    shutil.copytree(source, tmp_path / "pi05", copy_function=shutil.copyfile)
    path = tmp_path / "pi05/assets/physical-intelligence/libero/norm_stats.json"
    path.parent.chmod(0o755)
    stats = json.loads(path.read_text())
    for entry in stats["norm_stats"].values():
        del entry["q01"], entry["q99"]
    path.write_text(json.dumps(stats))
    with pytest.raises(
        ValueError, match=r"normalised by quantiles, and the norm stats .* have none"
    ):
        stats_of.norm_stats(local.open_folder(tmp_path / "pi05", "pi05_libero"))
    del stats["norm_stats"]["actions"]
    path.write_text(json.dumps(stats))
    with pytest.raises(ValueError, match="lack actions"):
        stats_of.norm_stats(local.open_folder(tmp_path / "pi05", "pi05_libero"))


# --- LeRobot's folders --------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "robot"), [("pi0", "aloha_sim"), ("pi05", "libero")])
def test_lerobot_folder(goldens, family, robot):
    """Its stats give LeRobot's own numbers under the one rule that policies know."""
    folder = goldens / "lerobot" / family
    entry = local.open_folder(folder, robot=robot)
    assert entry.kind == "lerobot"
    assert entry.family == family
    assert entry.config.action_horizon == 10
    assert entry.config.image_slots == tuple(slot.name for slot in entry.slots)
    stats, method = stats_of.norm_stats(entry), entry.normalisation
    assert method == ("quantile" if family == "pi05" else "z-score")
    record = np.load(folder / "processing.npz")
    ours = norm_stats.normalise(record["state"], stats["state"], method)
    np.testing.assert_allclose(ours, record["state_normalized"], rtol=0, atol=2e-6)
    ours = norm_stats.unnormalise(record["model_action"], stats["actions"], method)
    np.testing.assert_allclose(ours, record["action_unnormalized"], rtol=0, atol=2e-6)


def test_lerobot_folder_that_is_not_clear(goldens):
    folder = goldens / "lerobot"
    with pytest.raises(ValueError, match="not say which robot it drives: give --robot with one of"):
        local.open_folder(folder / "pi0")
    with pytest.raises(ValueError, match="no robot is called 'ur5': one of aloha, "):
        local.open_folder(folder / "pi0", robot="ur5")
    with pytest.raises(ValueError, match="14 state dimensions, DROID has 8; it has 14 action dim"):
        local.open_folder(folder / "pi0", robot="droid")
    with pytest.raises(ValueError, match=r"its actions are absolute.*itself fits aloha_sim;"):
        local.open_folder(folder / "pi0", robot="aloha")
    with pytest.raises(ValueError, match=r"expected \['base_0_rgb', 'left_wrist_0_rgb'\] among th"):
        local.open_folder(folder / "pi0_fast", robot="libero")


def test_what_lerobot_s_folder_leaves_out(goldens, tmp_path):
    folder, path = goldens / "lerobot" / "pi0", tmp_path / "mine.json"
    fields = {"name": "mine", "robot": "aloha_sim", "vocab_size": 1024, "default_prompt": "fold"}
    path.write_text(json.dumps(fields))
    entry = local.open_folder(folder, str(path))
    assert (entry.name, entry.default_prompt) == ("mine", "fold")
    assert entry.config == dataclasses.replace(
        local.open_folder(folder, robot="aloha_sim").config, vocab_size=1024
    )
    path.write_text(json.dumps({"name": "mine", "family": "pi0"}))
    with pytest.raises(
        ValueError, match=r"no field is called 'family'\n  robot is missing: one of"
    ):
        local.open_folder(folder, str(path))
    path.write_text(json.dumps({**fields, "action_tokenizer": "me/fast"}))
    with pytest.raises(ValueError, match="a pi0 policy has no action_tokenizer"):
        local.open_folder(folder, str(path))
    with pytest.raises(ValueError, match=r"says itself how it was made: .*not 'pi0_aloha'"):
        local.open_folder(folder, "pi0_aloha")


def test_settings_that_serve_for_nothing(goldens):
    with pytest.raises(ValueError, match=r"\(openpi\) takes no robot"):
        local.open_folder(goldens / "pi0", "pi0_aloha", robot="aloha")
    with pytest.raises(ValueError, match=r"\(lerobot\) takes no asset_id"):
        local.open_folder(goldens / "lerobot" / "pi0", robot="aloha_sim", asset_id="trossen")


# --- a fine-tune's config -----------------------------------------------------------------------

COMPLETE = {
    "name": "my_droid",
    "family": "pi05",
    "robot": "droid_joint_position",
    "action_horizon": 16,
    "max_token_len": 200,
    "normalisation": "quantile",
    "state_in_prompt": True,
    "asset_id": "my/data",
}


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(data))
        return schema.read_openpi_file(path)

    return read


@pytest.mark.parametrize("entry", catalog.OPENPI, ids=NAMES)
def test_base_alone_is_the_same_config(read, entry):
    ours = read({"base": entry.name, "name": entry.name, "title": entry.title})
    assert ours == dataclasses.replace(entry, address=None, licence="", notice="")


def test_complete_config(read):
    entry = read(COMPLETE)
    expected = dataclasses.replace(
        config.PI05, action_horizon=16, max_token_len=200, image_slots=config.PI0_SLOTS
    )
    assert entry.config == expected
    assert entry.robot == builtin.DROID_JOINT_POSITION
    assert (entry.name, entry.title, entry.asset_id) == ("my_droid", "my_droid", "my/data")
    assert entry.prompt_format == "text and state"
    assert entry.adapters is None


def test_what_a_config_may_change(read):
    entry = read(
        {
            "base": "pi0_aloha_sim",
            "name": "mine",
            "action_horizon": 25,
            "action_dim": 14,
            "default_prompt": "fold",
            "offsets": [True] * 13 + [False],
            "adapt_to_pi": False,
            "lora": {
                "language": "gemma_2b_lora",
                "action": {"rank": 8, "alpha": 4, "rslora": True},
            },
        }
    )
    assert entry.config.action_horizon == 25
    assert entry.config.action_dim == 14
    assert entry.default_prompt == "fold"
    assert entry.robot.offsets == (True,) * 13 + (False,)
    assert not entry.robot.adapt_to_pi
    assert entry.adapters == Adapters(GEMMA_2B_LORA, Lora(8, 4.0, rslora=True))
    assert entry.asset_id == "lerobot/aloha_sim_transfer_cube_human"
    fast = read({"base": "pi0_fast_droid", "name": "x", "action_tokenizer": "me/fast"})
    assert fast.action_tokenizer == "me/fast"
    # Slots and dimensions follow the robot.
    moved = read({"base": "pi0_fast_droid", "name": "x", "robot": "libero"})
    assert moved.config.action_dim == 7
    assert moved.config.image_slots == config.PI0_SLOTS


def test_a_model_of_other_sizes(read):
    language = {"width": 64, "depth": 3, "head_dim": 16}
    fields = {"vision": {"depth": 2}, "language": language, "action_expert": language}
    small = read({**COMPLETE, **fields, "vocab_size": 512}).config
    assert small.vocab_size == 512
    assert small.vision == dataclasses.replace(config.SIGLIP_SO400M, depth=2)
    assert small.language == dataclasses.replace(config.GEMMA_2B, **language)
    assert small.action_expert == dataclasses.replace(config.GEMMA_300M, **language)
    with pytest.raises(ValueError, match="so depth must agree: language has 3, action expert has"):
        read({**COMPLETE, "language": language})
    with pytest.raises(ValueError, match=r"language\.width is 0; expected a number from 1 on"):
        read({**COMPLETE, "language": {"width": 0}})
    with pytest.raises(ValueError, match=r"no field is called 'vision\.height'"):
        read({**COMPLETE, "vision": {"height": 9}})


def test_files_are_found_from_where_the_config_is(read, tmp_path):
    (tmp_path / "fast").mkdir()
    fields = {"base": "pi0_fast_droid", "name": "x", "action_tokenizer": "fast"}
    entry = read({**fields, "text_tokenizer": "text.model", "folder": "run/3"})
    assert entry.action_tokenizer == str(tmp_path / "fast")
    assert entry.text_tokenizer == tmp_path / "text.model"
    assert schema.folder_in(tmp_path / "config.json") == tmp_path / "run/3"
    read(fields)
    with pytest.raises(ValueError, match="names no folder"):
        schema.folder_in(tmp_path / "config.json")


def test_everything_wrong_in_one_error(read):
    with pytest.raises(ValueError, match="is no complete config") as error:
        read(
            {"name": "", "family": "pi05", "robot": "fridge", "action_horizon": True, "speed": 3}
            | {"normalization": "z-score"}
        )
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "action_horizon is true; expected the number of steps in a chunk",
        "asset_id is missing: the folder below assets/ that has norm_stats.json",
        "max_token_len is missing: the number of text tokens",
        'name is ""; expected a name',
        "no field is called 'normalization'; did you mean normalisation?",
        "no field is called 'speed'",
        "normalisation is missing: one of z-score, quantile",
        'robot is "fridge"; expected one of aloha, aloha_sim, droid, droid_joint_position, libero, '
        "libero_offsets, tabletop, or a file that describes yours (.json)",
        "state_in_prompt is missing: true or false (openpi's discrete_state_input)",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "pi0_droid"}, "family is pi05, and the base's is pi0"),
        ({"base": "nothing"}, "base: no policy is called 'nothing'"),
        ({"family": "pi0"}, "state_in_prompt is false for every pi0 policy"),
        (
            {"family": "pi0_fast", "state_in_prompt": False},
            "state_in_prompt is true for every pi0_fast policy",
        ),
        (
            {"family": "pi0_fast", "action_dim": 32},
            "action_dim of a pi0_fast policy is its robot's: 8",
        ),
        ({"action_tokenizer": "me/fast"}, "a pi05 policy has no action_tokenizer"),
        ({"offsets": [True]}, r"offsets has 1 values, DROID \(joint positions\) 8 actions"),
        ({"adapt_to_pi": True}, "adapt_to_pi is for ALOHA only"),
        ({"lora": {}}, "lora is {}; expected null, or an object"),
        ({"lora": {"vision": "gemma_2b_lora"}}, "lora is .*vision.*; expected null, or an object"),
        (
            {"lora": {"language": "gemma_2b"}},
            'lora is {"language": "gemma_2b"}; expected null, or an object',
        ),
        (
            {"lora": {"action": {"rank": 4, "alpha": 0, "rslora": False}}},
            'lora is {"action": {"rank": 4, "alpha": 0,',
        ),
        ({"lora": {"action": {"rank": 4, "alpha": 8}}}, "lora is .*; expected null"),
        (
            {"family": "pi0_fast", "lora": {"action": "gemma_300m_lora"}},
            "lora: a pi0_fast policy has no action expert",
        ),
    ],
)
def test_contradictions(read, change, message):
    with pytest.raises(ValueError, match=message):
        read({**COMPLETE, **change})


def test_file_that_is_no_config(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, found list"):
        schema.read_openpi_file(path)
    with pytest.raises(ValueError, match="cannot read "):
        schema.read_openpi_file(tmp_path / "none.json")


def test_folder_with_a_config_file(goldens, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**COMPLETE, "asset_id": "physical-intelligence/libero"}))
    entry = local.open_folder(goldens / "pi05", str(path))
    assert entry.name == "my_droid"
    assert entry.folder == goldens / "pi05"
