"""Checkpoint folders: openpi's arrays byte for byte, and what is refused, by name."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import threading
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import config
from models.checkpoints import assembly, openpi
from models.checkpoints import digests as files
from models.checkpoints.arrays import DTYPES, Stored, check_files, has_nonfinite
from models.checkpoints.bundled import load_bundled, save_bundled
from models.checkpoints.staging import Piece, take_all
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from tests.support.golden_models import CONFIGS

FOLDERS = [
    ("pi0", "params"),
    ("pi05", "params"),
    ("pi0_fast", "params"),
    ("pi0_fast", "params_fsdp4"),
]
# A model of a few thousand parameters with every kind of module, and more than one kv head.
SMALL_VISION = config.VisionConfig(
    width=12, depth=2, mlp_dim=20, num_heads=3, patch_size=2, image_size=6
)
SMALL_EXPERT = config.ExpertConfig(
    width=10, depth=3, mlp_dim=14, num_heads=4, num_kv_heads=2, head_dim=6
)
SMALL = {
    "pi0": config.Pi0Config(
        vision=SMALL_VISION,
        language=SMALL_EXPERT,
        action_expert=dataclasses.replace(SMALL_EXPERT, width=8, mlp_dim=9),
        vocab_size=30,
        action_dim=5,
        action_horizon=4,
        max_token_len=6,
        pi05=False,
        dtype="float32",
        image_slots=("base_0_rgb",),
    ),
    "pi0_fast": config.Pi0FastConfig(
        vision=SMALL_VISION,
        language=SMALL_EXPERT,
        vocab_size=30,
        action_dim=5,
        action_horizon=4,
        max_token_len=6,
        dtype="float32",
        image_slots=("base_0_rgb",),
    ),
}
SMALL["pi05"] = dataclasses.replace(SMALL["pi0"], pi05=True)


def random_model(cfg):
    cls = Pi0Fast if isinstance(cfg, config.Pi0FastConfig) else Pi0
    graphdef, state = nnx.split(cls(cfg, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state)
    )


def random_arrays(cfg):
    rng = np.random.default_rng(0)
    manifest = openpi.openpi_manifest(cfg)
    return {path: rng.standard_normal(shape, np.float32) for path, (shape, _) in manifest.items()}


def parameters(model):
    return {name: np.asarray(value) for name, value in assembly.parameters_of(model).items()}


def digests(goldens, family):
    return json.loads((goldens / family / "params_digest.json").read_text())


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array, "<f4")).hexdigest()


def editable(source: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    target.chmod(0o755)
    return target


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# --- openpi's arrays ----------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), FOLDERS)
def test_every_array_is_read_as_openpi_wrote_it(goldens, family, name):
    arrays = openpi.open_openpi(goldens / family / name)
    expected = digests(goldens, family)
    assert arrays.keys() == expected.keys()
    for path, stored in arrays.items():
        assert list(stored.shape) == expected[path]["shape"]
        assert sha256(stored.read()) == expected[path]["sha256_le"], path


@pytest.mark.parametrize(("family", "name"), FOLDERS)
def test_a_loaded_model_holds_every_array(goldens, family, name):
    """What each module does with its array is held by the parity tests."""
    model = assembly.load_openpi(goldens / family / name, CONFIGS[family])
    arrays = assembly.to_openpi(model)
    expected = digests(goldens, family)
    assert arrays.keys() == expected.keys()
    for path, array in arrays.items():
        assert sha256(array) == expected[path]["sha256_le"], path
    assert model.config == CONFIGS[family]


@pytest.mark.parametrize("family", ["pi0", "pi05", "pi0_fast"])
def test_full_size_manifests(goldens, family):
    stored = json.loads((goldens / "param_manifests" / f"{family}.json").read_text())
    expected = {k: (tuple(v["shape"]), v["dtype"]) for k, v in stored["params"].items()}
    preset = {"pi0": config.PI0, "pi05": config.PI05, "pi0_fast": config.PI0_FAST}[family]
    manifest = openpi.openpi_manifest(preset)
    assert {k: (shape, str(dtype)) for k, (shape, dtype) in manifest.items()} == expected
    count = sum(int(np.prod(shape)) for shape, _ in manifest.values())
    assert count == stored["total_parameters"]


@pytest.mark.parametrize("family", SMALL)
def test_table_covers_every_parameter_once(family):
    """Several kv heads, widths that all differ: shapes cannot agree by accident."""
    cfg = SMALL[family]
    filled = [
        path
        for row in openpi.rows(cfg)
        for layer in range(row.layers or 1)
        for path in row.module_paths(layer)
    ]
    assert len(filled) == len(set(filled))
    assert set(filled) == assembly.parameters_of(assembly.abstract_model(cfg)).keys()


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_openpi_round_trip(tmp_path, family, kv_heads):
    """As many kv heads as query heads: openpi joins all three projections in one array."""
    cfg = SMALL[family]
    experts = {"language": cfg.language}
    if family != "pi0_fast":
        experts["action_expert"] = cfg.action_expert
    cfg = dataclasses.replace(
        cfg,
        **{k: dataclasses.replace(v, num_kv_heads=kv_heads) for k, v in experts.items()},
    )
    model = random_model(cfg)
    assembly.save_openpi(model, tmp_path / "saved")
    loaded = parameters(assembly.load_openpi(tmp_path / "saved", cfg))
    original = parameters(model)
    assert loaded.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    names = openpi.open_openpi(tmp_path / "saved" / "params").keys()
    assert ("PaliGemma/llm/layers/attn/qkv_einsum/w" in names) == (kv_heads == 4)


def test_precision(goldens, tmp_path):
    stored = parameters(assembly.load_openpi(goldens / "pi05", CONFIGS["pi05"], dtype=None))
    half = assembly.load_openpi(goldens / "pi05", CONFIGS["pi05"], dtype="bfloat16")
    for name, value in parameters(half).items():
        assert value.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(value, stored[name].astype(ml_dtypes.bfloat16))
    # What was stored in bfloat16 stays so unless asked otherwise.
    assembly.save_openpi(half, tmp_path)
    again = parameters(assembly.load_openpi(tmp_path, CONFIGS["pi05"]))
    assert {str(value.dtype) for value in again.values()} == {"bfloat16"}
    wide = assembly.load_openpi(tmp_path, CONFIGS["pi05"], dtype="float32")
    for name, value in parameters(wide).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[name].astype(np.float32))


def test_progress(goldens):
    calls = []
    assembly.load_openpi(goldens / "pi0", CONFIGS["pi0"], progress=lambda *call: calls.append(call))
    done, total, names = zip(*calls, strict=True)
    size = sum(4 * int(np.prod(x["shape"])) for x in digests(goldens, "pi0").values())
    assert set(total) == {size}
    assert done[0] == 0
    assert done[-1] == size
    assert sorted(done) == list(done)
    assert set(names) == digests(goldens, "pi0").keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_several_arrays_at_a_time_hold_no_more_than_one_by_one(dtype):
    """When an array is read, those still held, by us or by JAX, and the parameters placed by then
    come to no more than with one array after the other."""
    arrays, read, held = random_arrays(SMALL["pi05"]), {}, []
    lock = threading.Lock()

    def stored(path):
        def layers(*_):
            array = arrays[path].copy()
            with lock:
                read[path] = weakref.ref(array)
                held.append([name for name, ref in read.items() if ref() is not None])
            if openpi.is_stacked(path):
                yield from array
            else:
                yield array

        count = len(arrays[path]) if openpi.is_stacked(path) else 1
        return Stored(arrays[path].shape, arrays[path].dtype, layers, count, count)

    opened = {path: stored(path) for path in arrays}
    model = assembly.assemble(SMALL["pi05"], opened, where="memory", dtype=dtype)
    assert len(read) == len(arrays)
    sizes = {path: array.nbytes for path, array in opened.items()}
    assert sum(sizes.values()) == sum(4 * v.size for v in assembly.parameters_of(model).values())
    share, placed, most = 0.5 if dtype == "bfloat16" else 1.0, 0.0, 0.0
    for size in sorted(sizes.values(), reverse=True):
        most = max(most, placed + 2 * size)
        placed += share * size
    for count, (path, at_once) in enumerate(zip(read, held, strict=True)):
        staged = sum(sizes[name] for name in at_once)
        taken = sum(share * sizes[name] for name in [*read][:count] if name not in at_once)
        assert taken + 2 * staged <= max(most, placed), path


def test_pieces_are_taken_several_at_a_time_and_the_first_error_ends_it():
    """Two that fit beside each other meet; what does not fit waits; after a failure no other piece
    begins."""
    meeting, begun, taken, calls = threading.Barrier(2), threading.Event(), [], []
    large = Piece("large", 100, 50, lambda: taken.append(begun.wait(0.2)))
    next_ = Piece("next", 70, 35, begun.set)
    pair = [Piece(name, 10, 5, lambda: meeting.wait(60) and None) for name in "ab"]
    take_all([large, next_, *pair], lambda *call: calls.append(call))
    assert taken.pop() is False
    assert [done for done, *_ in calls] == sorted(done for done, *_ in calls)
    assert calls[-1][:2] == (190, 190)

    def fail():
        raise ValueError("b is damaged")

    def take(name):
        return lambda: taken.append(name)

    pieces = [Piece("a", 100, 100, take("a")), Piece("b", 100, 100, fail)]
    pieces += [Piece("c", 200, 100, take("c"))]
    with pytest.raises(ValueError, match="b is damaged"):
        take_all(pieces, lambda *_: None)
    assert taken == ["a"]


def test_largest_arrays_come_first(goldens):
    """While there is the most room: reading one takes its compressed and its decoded bytes."""
    sizes = {path: np.prod(x["shape"]) for path, x in digests(goldens, "pi0").items()}
    order = []
    assembly.load_openpi(
        goldens / "pi0", CONFIGS["pi0"], progress=lambda _, __, name: order.append(sizes[name])
    )
    assert order == sorted(order, reverse=True)


# --- what is refused ----------------------------------------------------------------------------


def test_every_mismatch_in_one_error(tmp_path):
    arrays = random_arrays(SMALL["pi0"])
    del arrays["state_proj/bias"]
    del arrays["PaliGemma/llm/final_norm/scale"]
    arrays["novel/kernel"] = np.zeros((2, 3), np.float32)
    arrays["action_in_proj/kernel"] = np.zeros((8, 5), np.float32)
    arrays["action_out_proj/bias"] = np.zeros(5, np.int32)
    assembly.write_openpi(arrays, tmp_path)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        assembly.load_openpi(tmp_path, SMALL["pi0"])
    assert str(error.value).splitlines() == [
        f"{tmp_path} does not fit the config (pi0):",
        "  missing (2):",
        "    PaliGemma/llm/final_norm/scale [10]",
        "    state_proj/bias [8]",
        "  not expected (1):",
        "    novel/kernel [2, 3]",
        "  wrong shape (1):",
        "    action_in_proj/kernel: found [8, 5], expected [5, 8]",
        "  wrong type (1):",
        "    action_out_proj/bias: found int32, expected one of float32, bfloat16, float16",
    ]


def test_a_model_of_other_sizes_is_told_in_few_lines(tmp_path):
    small = SMALL["pi0"]
    vision = dataclasses.replace(small.vision, width=2 * small.vision.width)
    language = dataclasses.replace(small.language, width=2 * small.language.width)
    assembly.write_openpi(random_arrays(small), tmp_path)
    with pytest.raises(ValueError, match=r"wrong shape \(\d\d\):") as error:
        assembly.load_openpi(tmp_path, dataclasses.replace(small, vision=vision, language=language))
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[-2:] == [
        "    ...",
        "The model has other sizes: its config has to tell them, if they are not openpi's.",
    ]


@pytest.mark.parametrize("theirs", SMALL)
@pytest.mark.parametrize("ours", SMALL)
def test_a_checkpoint_of_another_family_is_named(tmp_path, ours, theirs):
    assembly.write_openpi(random_arrays(SMALL[theirs]), tmp_path)
    if ours == theirs:
        assembly.load_openpi(tmp_path, SMALL[ours])
        return
    hint = f"It looks like a {theirs} checkpoint; the config is {ours}'s."
    with pytest.raises(ValueError, match=re.escape(hint)):
        assembly.load_openpi(tmp_path, SMALL[ours])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite(tmp_path, value, dtype):
    path = "PaliGemma/llm/layers/mlp/linear"
    arrays = {k: v.astype(dtype) for k, v in random_arrays(SMALL["pi0"]).items()}
    arrays[path][1, 3, 2] = value
    assembly.write_openpi(arrays, tmp_path)
    with pytest.raises(ValueError, match=f"{path}, layer 1 holds NaN or infinity"):
        assembly.load_openpi(tmp_path, SMALL["pi0"], dtype="float32")


@settings(max_examples=200)
@given(st.data(), st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]))
def test_has_nonfinite(data, dtype):
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    x = data.draw(hnp.arrays(bits, hnp.array_shapes(max_dims=2, max_side=4))).view(dtype)
    finite = np.isfinite(x.astype(np.float32)).all()
    assert has_nonfinite(x) == (not finite)
    assert has_nonfinite(x.T) == (not finite)


@pytest.fixture
def saved(goldens, tmp_path):
    """The golden pi0 checkpoint, to be damaged."""
    return editable(goldens / "pi0", tmp_path / "pi0")


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        assembly.load_openpi(folder, CONFIGS["pi0"])


def test_wrong_folders(goldens, saved, tmp_path):
    refused(tmp_path / "nowhere", "there is no such folder")
    refused(tmp_path, "expected a folder with params/ in it")
    run = tmp_path / "run"
    for step in ("20000", "9999", "assets"):
        (run / step).mkdir(parents=True)
    refused(run, r"steps \(9999, 20000\); choose the folder of one of them")
    refused(goldens / "lerobot" / "pi0", "it is a LeRobot checkpoint or a bundled policy")
    (saved / "params" / "manifest.ocdbt").unlink()
    refused(saved, "manifest.ocdbt is missing, so its download or saving was cut off")
    refused(saved / "params", "manifest.ocdbt is missing")


def test_missing_shard(saved):
    largest(saved / "params").unlink()
    refused(saved, r"cannot read params\.\S+: a file of the checkpoint is missing or damaged")


def test_cut_off_shard(saved):
    shard = largest(saved / "params")
    shard.write_bytes(shard.read_bytes()[:1000])
    refused(saved, r"cannot read params\.\S+: a file of the checkpoint is missing or damaged")


@pytest.mark.parametrize("kept", [None, 0])
def test_an_index_of_several_floors(tmp_path, kept):
    """Small nodes make one; each data file is missed in turn."""
    config = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 10}
    base = {"driver": "file", "path": f"{tmp_path}/"}
    database = ts.KvStore.open({"driver": "ocdbt", "base": base, "config": config}).result()
    for i in range(40):
        database[f"{i:03}"] = bytes(50)
    check_files(tmp_path)
    needed = set()
    for path in (tmp_path / "d").iterdir():
        whole = path.read_bytes()
        path.unlink() if kept is None else path.write_bytes(whole[:kept])
        try:
            check_files(tmp_path)
            assert all(database[f"{i:03}"] == bytes(50) for i in range(40))
        except ValueError:
            needed.add(path)
        path.write_bytes(whole)
    assert len(needed) > 10


def test_damaged_index(saved):
    for path in [saved / "params" / "manifest.ocdbt", *(saved / "params" / "d").iterdir()]:
        flip(path, 60)
        refused(saved, "a file of the checkpoint is missing or damaged")
        flip(path, 60)
    assembly.load_openpi(saved, CONFIGS["pi0"])


def test_flipped_byte_in_a_weight(saved):
    """OCDBT does not guard the arrays' own bytes; recorded digests do."""
    files.record_digests(saved)
    assembly.load_openpi(saved, CONFIGS["pi0"])
    shard = largest(saved / "params")
    flip(shard, shard.stat().st_size // 2)
    name = shard.relative_to(saved).as_posix()
    for folder in (saved, saved / "params"):
        refused(folder, f"not what SHA256SUMS says(.|\n)*{name}: its bytes have changed")
    shard.unlink()
    refused(saved, f"{name}: missing")


def test_digests_are_those_of_sha256sum(saved):
    files.record_digests(saved)
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("no sha256sum here")
    subprocess.run([command, "--check", "--quiet", "SHA256SUMS"], cwd=saved, check=True)
    (saved / "SHA256SUMS").write_text("no digest\n")
    refused(saved, "line 1: expected a SHA-256 and a name")


def test_revision_follows_the_weights(goldens, saved):
    revision = files.revision(saved)
    assert re.fullmatch("[0-9a-f]{12}", revision)
    assert files.revision(goldens / "pi0") == revision
    assert files.revision(saved / "params") == revision
    files.record_digests(saved)
    assert files.revision(saved) == revision
    (saved / "SHA256SUMS").unlink()
    flip(largest(saved / "params"), 500)
    assert files.revision(saved) != revision


# --- bundled policies ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
def test_bundled_round_trip(tmp_path, family, storage):
    model, metadata = random_model(SMALL[family]), {"badge": "untrained weights", "seed": 3}
    save_bundled(tmp_path / "a", SMALL[family], model, metadata, storage=storage)
    cfg, loaded = load_bundled(tmp_path / "a")
    assert cfg == SMALL[family] == loaded.config
    assert files.read_bundled(tmp_path / "a")["metadata"] == metadata
    original = parameters(model)
    assert parameters(loaded).keys() == original.keys()
    for name, value in parameters(loaded).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, original[name].astype(DTYPES[storage]))
    save_bundled(tmp_path / "b", SMALL[family], model, metadata, storage=storage)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    digest = hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert files.revision(tmp_path / "a") == digest[:12]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_bundled_in_bfloat16(tmp_path):
    cfg = dataclasses.replace(SMALL["pi0"], dtype="bfloat16")
    save_bundled(tmp_path, cfg, random_model(cfg))
    _, loaded = load_bundled(tmp_path)
    assert {str(value.dtype) for value in parameters(loaded).values()} == {"bfloat16"}


def test_bundled_weights_beyond_the_storage(tmp_path):
    model = random_model(SMALL["pi0"])
    model.action_in_proj.bias[...] = jnp.full(8, 1e5)
    with pytest.raises(ValueError, match="action_in_proj/bias is not finite in float16"):
        save_bundled(tmp_path, SMALL["pi0"], model, storage="float16")
    with pytest.raises(ValueError, match="storage is 'int8'; expected one of float32"):
        save_bundled(tmp_path, SMALL["pi0"], model, storage="int8")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def bundled(tmp_path):
    save_bundled(tmp_path / "policy", SMALL["pi0"], random_model(SMALL["pi0"]))
    return tmp_path / "policy"


def edit_config(folder, change):
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "is of format 2; this version reads 1"),
        (lambda d: d.pop("weights_sha256"), "expected config, format, metadata, weights_sha256"),
        (lambda d: d.update(weights_sha256="0" * 64), "is not the file that config.json beside"),
        (lambda d: d["config"].update(model="pi1"), "'model' is 'pi1'"),
        (lambda d: d["config"].pop("vocab_size"), "missing fields .*vocab_size"),
        (lambda d: d["config"].update(dtype="float16"), "'float16'; expected float32 or bfloat16"),
        (lambda d: d["config"].update(vocab_size=31), r"gemma/embedding: found \[30, 10\], exp"),
        (lambda d: d["config"]["vision"].update(depth=1), r"not expected \(16\)"),
    ],
)
def test_bundled_config_that_does_not_fit(bundled, change, message):
    edit_config(bundled, change)
    with pytest.raises(ValueError, match=message):
        load_bundled(bundled)


def test_bundled_files_that_are_damaged(bundled, tmp_path):
    weights = bundled / "model.safetensors"
    data = weights.read_bytes()
    flip(weights, len(data) - 5)
    with pytest.raises(ValueError, match=r"is not the file that config\.json beside it"):
        load_bundled(bundled)
    weights.write_bytes(data)
    for name in ("norm_stats.json", "README.md"):
        (bundled / name).write_text("{}")
    files.record_digests(bundled)
    (bundled / "README.md").write_text("May be edited.")
    load_bundled(bundled)
    (bundled / "norm_stats.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"norm_stats\.json: its bytes have changed"):
        load_bundled(bundled)
    (bundled / "SHA256SUMS").unlink()
    weights.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="missing, cut off or no safetensors file"):
        load_bundled(bundled)
    weights.unlink()
    with pytest.raises(ValueError, match="missing, cut off or no safetensors file"):
        load_bundled(bundled)
    (bundled / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read "):
        load_bundled(bundled)
    with pytest.raises(ValueError, match="cannot read "):
        load_bundled(tmp_path / "nowhere")
