"""What people have on disk, recognised by what is in it: what opens gives the same weights whatever
its layout, and what does not is named as what it is."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from models.checkpoints.assembly import load_lerobot, load_openpi, save_openpi, to_openpi
from playground.checkpoints import load, stats
from playground.checkpoints.folder import open_folder
from playground.checkpoints.recognise import recognise
from playground.checkpoints.resolve import Request, requests, resolve
from tests.test_lerobot import CONFIG

SIZES = {
    "vocab_size": 1024,
    "vision": {"width": 48, "depth": 2, "mlp_dim": 96, "num_heads": 4},
    "language": {"width": 64, "depth": 3, "mlp_dim": 128, "head_dim": 16},
    "action_expert": {"width": 32, "depth": 3, "mlp_dim": 64, "head_dim": 16},
}


@pytest.fixture
def pytorch(goldens, tmp_path):
    """A folder as openpi's PyTorch training leaves it: tied embeddings, no `model.` in names."""
    folder = tmp_path / "29999"
    shutil.copytree(goldens / "pi0" / "assets", folder / "assets", copy_function=shutil.copyfile)
    published = goldens / "lerobot" / "pi0" / "model_published_layout.safetensors"
    shutil.copyfile(published, folder / "model.safetensors")
    described = {"base": "pi0_aloha", "name": "mine", "action_horizon": 10, **SIZES}
    (tmp_path / "mine.json").write_text(json.dumps(described))
    return folder


def same_weights(model, expected):
    got = to_openpi(model)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def loaded(entry, dtype=None):
    if entry.kind == "openpi":
        return load_openpi(entry.folder, entry.config, dtype=dtype)
    return load_lerobot(entry.folder, entry.config, dtype=dtype)


def test_openpis_pytorch_is_the_same_as_its_orbax(goldens, pytorch, tmp_path):
    entry = open_folder(pytorch, str(tmp_path / "mine.json"))
    assert (entry.kind, entry.convention, entry.family) == ("openpi_pytorch", "openpi", "pi0")
    reference = load_lerobot(goldens / "lerobot" / "pi0", CONFIG["pi0"])
    save_openpi(reference, tmp_path / "orbax")
    shutil.copytree(pytorch / "assets", tmp_path / "orbax" / "assets")
    orbax = open_folder(tmp_path / "orbax", str(tmp_path / "mine.json"))
    assert stats.norm_stats(entry) == stats.norm_stats(orbax)
    assert load.precision(entry) == load.precision(orbax)
    same_weights(loaded(entry), to_openpi(loaded(orbax)))


def test_openpis_pytorch_in_bfloat16_and_in_shards(pytorch, tmp_path):
    entry = open_folder(pytorch, str(tmp_path / "mine.json"))
    want = to_openpi(loaded(entry, "bfloat16"))
    path = pytorch / "model.safetensors"
    arrays = safetensors.numpy.load(path.read_bytes())
    path.unlink()
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in arrays.items()}
    names = sorted(halves)
    files = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        part = {name: halves[name] for name in names if files[name] == file}
        (pytorch / file).write_bytes(safetensors.numpy.save(part))
    index = pytorch / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    entry = open_folder(pytorch, str(tmp_path / "mine.json"))
    model = loaded(entry)
    assert model.action_in_proj.kernel[...].dtype == jnp.bfloat16
    same_weights(model, want)
    # A shard of another save is noticed before anything is loaded.
    strange = files | {"strange": files[names[0]]}
    index.write_text(json.dumps({"weight_map": strange}))
    with pytest.raises(ValueError, match=r"1 arrays differ, such as strange"):
        open_folder(pytorch, str(tmp_path / "mine.json"))


# --- what it is instead -------------------------------------------------------------------------


def touch(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def run_of_openpi(folder):
    for step in (5000, 29999, 10000):
        touch(folder / str(step) / "params" / "manifest.ocdbt")


def run_with_named_steps(folder):
    for step in ("step_19999", "step_5000"):
        touch(folder / "checkpoints" / step / "params" / "manifest.ocdbt")


def run_of_lerobot(folder):
    for step in ("030000", "100000"):
        place = folder / "checkpoints" / step / "pretrained_model"
        touch(place / "config.json", b'{"type": "pi05"}')
        touch(place / "model.safetensors")


def unfinished(folder):
    touch(folder / "params.orbax-checkpoint-tmp-17" / "d" / "data")


def one_host(folder):
    touch(folder / "params" / "ocdbt.process_1" / "d" / "data")


def cut_off(folder):
    touch(folder / "params" / "_METADATA", b"{}")


def zarr3(folder):
    touch(folder / "params" / "params.action_in_proj.bias" / "zarr.json", b"{}")


def not_ocdbt(folder):
    touch(folder / "params" / "params.action_in_proj.bias" / ".zarray", b"{}")


def pointers(folder):
    touch(folder / "config.json", b'{"type": "pi0"}')
    note = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14000000000\n"
    touch(folder / "model.safetensors", note)


def another_policy(folder):
    touch(folder / "config.json", b'{"type": "act"}')
    touch(folder / "model.safetensors", safetensors.numpy.save({"a": np.zeros(1, np.float32)}))


def another_model(folder):
    touch(folder / "model.safetensors", safetensors.numpy.save({"bert.w": np.zeros(1, np.float32)}))


def adapters_only(folder):
    touch(folder / "config.json", b'{"type": "pi0"}')
    touch(folder / "adapter_config.json", b'{"base_model_name_or_path": "lerobot/pi0_base"}')


def no_weights(folder):
    touch(folder / "config.json", b'{"type": "pi0"}')


def pickled(folder):
    touch(folder / "config.json", b'{"type": "pi0"}')
    touch(folder / "pytorch_model.bin")


def several_adapters(folder):
    touch(folder / "config.json", b'{"type": "pi0"}')
    for name in ("two", "one"):
        touch(folder / name / "adapter_config.json", b"{}")


def nothing(folder):
    folder.mkdir()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (run_of_openpi, r"the last is .*/29999:\n  5000/\n  10000/\n  29999/   <- the last$"),
        (run_with_named_steps, r"the last is .*/checkpoints/step_19999:"),
        (run_of_lerobot, r"the last is .*/checkpoints/100000/pretrained_model:"),
        (unfinished, "whose saving was not finished .*an earlier step"),
        (one_host, "one of several hosts' files"),
        (cut_off, "its download or saving was cut off"),
        (zarr3, "as zarr version 3; openpi writes version 2"),
        (not_ocdbt, "without OCDBT, one folder an array"),
        (pointers, r"holds Git LFS pointers, not files \(model\.safetensors\): run `git lfs pull`"),
        (another_policy, "a policy of type 'act'; this program opens pi0, pi05 and pi0_fast"),
        (another_model, r"no policy of this family: its arrays are bert\.w"),
        (adapters_only, r"without all that goes with PEFT adapters: expected adapter_model\.safe"),
        (no_weights, r"has no model\.safetensors, whole or in shards"),
        (pickled, r"has its weights in pytorch_model\.bin, a pickle, which is never opened"),
        (several_adapters, r"PEFT adapters under names of their own \(one, two\): move the files"),
        (nothing, "is no checkpoint of openpi's or LeRobot's: .*nothing in it"),
    ],
)
def test_what_a_folder_is_instead(tmp_path, build, message):
    build(tmp_path / "it")
    with pytest.raises(ValueError, match=message):
        recognise(tmp_path / "it")


def test_a_step_that_is_still_being_written(tmp_path):
    """All of it may be there already but for Orbax's last act, which gives it its name."""
    step = tmp_path / "29999.orbax-checkpoint-tmp-3"
    touch(step / "params" / "manifest.ocdbt")
    for folder in (step, step / "params"):
        with pytest.raises(ValueError, match="whose saving was not finished"):
            recognise(folder)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("https://huggingface.co/lerobot/pi0_base/tree/main", "ask for hf://lerobot/pi0_base, to"),
        ("s3://b/c", "is an address, and a folder is asked for: copy it here first"),
        ("owner/policy", "If it is a name on the Hugging Face hub, ask for hf://owner/policy"),
        ("29999/config.json", "is a file of a checkpoint's: give its folder, 29999"),
        (" ", "no checkpoint is named"),
    ],
)
def test_what_is_no_folder_at_all(word, message):
    with pytest.raises(ValueError, match=message):
        resolve(Request(word))


def test_a_file_or_nothing_where_a_folder_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        recognise(tmp_path / "nowhere")
    touch(tmp_path / "model.safetensors")
    touch(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"notes\.txt is a file, and a folder is asked for"):
        recognise(tmp_path / "notes.txt")
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(
            ValueError, match=f"a file of a checkpoint's: give its folder, {tmp_path}"
        ):
            resolve(Request(str(tmp_path / name), robot="libero"))
    (asked,) = requests([str(tmp_path / "config.json")], robot="libero")
    assert asked.robot == "libero"


# --- PEFT ---------------------------------------------------------------------------------------

LAYER = "paligemma_with_expert.gemma_expert.model.layers.1.self_attn.q_proj"


@pytest.fixture
def adapted(goldens, tmp_path):
    """PEFT's adapters of one projection beside a whole head, for the golden pi0."""
    base, folder = tmp_path / "base", tmp_path / "adapted"
    for place in (base, folder):
        place.mkdir()
        for path in (goldens / "lerobot" / "pi0").iterdir():
            if path.is_file() and path.suffix != ".npz":
                shutil.copyfile(path, place / path.name)
    (folder / "model.safetensors").unlink()
    (folder / "model_published_layout.safetensors").unlink()
    rng = np.random.default_rng(0)
    arrays = {
        f"base_model.model.model.{LAYER}.lora_A.weight": rng.normal(size=(4, 32)),
        f"base_model.model.model.{LAYER}.lora_B.weight": rng.normal(size=(128, 4)),
        "base_model.model.model.state_proj.bias": rng.normal(size=32),
    }
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(arrays))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none"}
    config |= {"base_model_name_or_path": str(base), "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, list(arrays.values())


@pytest.mark.parametrize(("rooted", "scale"), [(False, 2.0), (True, 4.0)])
def test_peft_adapters_are_merged(adapted, rooted, scale):
    folder, (a, b, bias) = adapted
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": rooted}))
    entry = open_folder(folder, robot="aloha_sim")
    base = entry.base_folder
    arrays = safetensors.numpy.load((base / "model.safetensors").read_bytes())
    arrays[f"model.{LAYER}.weight"] += np.float32(scale) * (b @ a)
    arrays["model.state_proj.bias"] = bias
    want = folder.parent / "want"
    shutil.copytree(base, want)
    (want / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))
    got = load_lerobot(folder, CONFIG["pi0"], base=base)
    same_weights(got, to_openpi(load_lerobot(want, CONFIG["pi0"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of type 'IA3'; only plain LoRA"),
        ({"use_dora": True}, "use_dora = True is more than plain LoRA"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern = .* is more than plain LoRA"),
        ({"base_model_name_or_path": "lerobot/pi0_base"}, "whose weights are not on this machine"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5; expected a name"),
        # These began by changing the model's own weights.
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is more than plain LoRA"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a number above 0"),
        ({"r": 64}, r"A \[4, 32\] and B \[128, 4\] beside \[128, 32\] with r = 64"),
        ({"target_modules": ["q_proj", "v_proj"]}, "names 'v_proj', which has no adapters"),
    ],
)
def test_adapters_of_another_kind_are_named(adapted, monkeypatch, tmp_path, change, message):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "nothing"))
    folder, _ = adapted
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_lerobot(folder, CONFIG["pi0"], base=open_folder(folder, robot="aloha_sim").base_folder)


@pytest.mark.parametrize(
    ("shapes", "dtype", "message"),
    [
        (((0, 32), (128, 0)), np.float32, r"A \[0, 32\] and B \[128, 0\] beside"),
        (((4, 32, 1), (128, 4, 1)), np.float32, r"A \[4, 32, 1\] and B \[128, 4, 1\] beside"),
        (((4, 32), (128, 4)), np.int8, "lora_A.weight: I8, expected one of float32"),
        (None, np.float32, "there are no adapters in it"),
    ],
)
def test_adapters_of_other_shapes_or_types(adapted, shapes, dtype, message):
    folder, _ = adapted
    names = [f"base_model.model.{LAYER}.lora_{x}.weight" for x in "AB"]
    arrays = {n: np.ones(s, dtype) for n, s in zip(names, shapes or (), strict=bool(shapes))}
    (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(arrays))
    base = open_folder(folder, robot="aloha_sim").base_folder
    with pytest.raises(ValueError, match=message):
        load_lerobot(folder, CONFIG["pi0"], base=base)


def test_whole_weights_beside_adapters_are_no_choice_of_ours(adapted):
    folder, _ = adapted
    shutil.copyfile(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds whole weights .* and PEFT adapters .*take away"):
        open_folder(folder, robot="aloha_sim")


def test_an_adapter_that_fits_no_weight_is_named(adapted):
    folder, _ = adapted
    name = f"base_model.model.model.{LAYER.replace('q_proj', 'x_proj')}"
    arrays = {
        f"{name}.lora_A.weight": np.zeros((4, 32), np.float32),
        f"{name}.lora_magnitude_vector": np.zeros(128, np.float32),
    }
    (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(arrays))
    base = open_folder(folder, robot="aloha_sim").base_folder
    with pytest.raises(ValueError, match="is no plain LoRA of this model") as error:
        load_lerobot(folder, CONFIG["pi0"], base=base)
    assert "x_proj.lora_A.weight: no weight beside it" in str(error.value)
    assert "x_proj.lora_magnitude_vector: no such array in the model" in str(error.value)
