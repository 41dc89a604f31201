"""Datasets of LeRobot: what it wrote, read back as it reads it itself; and what is broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from playground.datasets import video
from playground.datasets.info import read_info
from playground.datasets.lerobot import open_dataset
from playground.datasets.source import Folder
from playground.datasets.video import FrameError
from tests.conftest import GOLDENS
from tests.test_strangers_files import many_scans

GOOD = (
    *("v30_table", "v21_table", "v30_small", "v30_png", "v30_two_cameras", "v30_tasks"),
    *("v30_many_files", "v30_lerobot06", "v30_converted", "v21_av1"),
)
CAMERA = "observation.images.table"


@pytest.fixture
def datasets(goldens):
    return goldens / "datasets"


@pytest.mark.parametrize("name", GOOD)
def test_reads_what_lerobot_reads(datasets, name):
    """Numbers and tasks exactly; pictures within what decoders differ by."""
    recorded = datasets / "readback" / name
    frames = json.loads((recorded / "frames.json").read_text())
    arrays = dict(np.load(recorded / "frames.npz", allow_pickle=False))
    chunks = dict(np.load(recorded / "chunks.npz", allow_pickle=False))
    meta = json.loads((recorded / "meta.json").read_text())
    dataset = open_dataset(str(datasets / name))
    assert dataset.info.total_frames == meta["length"]
    opened = {f["episode_index"]: dataset.episode(f["episode_index"]) for f in frames}
    assert sum(episode.length for episode in opened.values()) == meta["length"]
    for i, frame in enumerate(frames):
        episode, at = opened[frame["episode_index"]], frame["frame_index"]
        assert episode.tasks[at] == frame["task"]
        assert episode.times[at] == np.float32(frame["timestamp"])
        for feature, rows in arrays.items():
            values = episode.values[feature]
            np.testing.assert_array_equal(values[at], rows[i].reshape(values.shape[1:]))
            assert values.dtype == rows.dtype
        actions, beyond = episode.chunk("action", at, 20)
        np.testing.assert_array_equal(actions, chunks["action"][i])
        np.testing.assert_array_equal(beyond, chunks["action_is_pad"][i])
        for camera, file in frame["images"].items():
            expected = np.asarray(Image.open(recorded / file), np.int16)
            apart = np.abs(episode.picture(camera, at).astype(np.int16) - expected)
            assert apart.max() <= 4, (camera, at)
            assert apart.mean() <= 1, (camera, at)


@pytest.mark.parametrize("name", GOOD)
def test_statistics_are_those_that_lerobot_loads(datasets, name):
    recorded = json.loads((datasets / "readback" / name / "stats.json").read_text())
    stats = open_dataset(str(datasets / name)).recorded_stats()
    for feature, expected in recorded.items():
        for statistic, recorded in expected.items():
            value = stats[feature][statistic]
            assert list(value.shape) == recorded["shape"], (feature, statistic)
            np.testing.assert_allclose(value, recorded["value"], rtol=1e-12, atol=1e-12)


def test_frames_in_any_order_are_the_same(datasets):
    """Decoding on from the last frame, and from a key frame."""
    dataset = open_dataset(str(datasets / "v30_table"))
    forward = list(dataset.episode(1).pictures(CAMERA, range(12)))
    again = dataset.episode(1)
    for frame in (7, 3, 4, 11, 0, 9, 9, 8):
        np.testing.assert_array_equal(again.picture(CAMERA, frame), forward[frame])


def test_hevc(tmp_path, datasets, monkeypatch):
    """A third codec that LeRobot writes: the same frames, encoded anew."""
    av = pytest.importorskip("av")
    root = shutil.copytree(datasets / "v30_small", tmp_path / "hevc", copy_function=shutil.copy)
    dataset = open_dataset(str(datasets / "v30_small"))
    frames = [f for i in range(2) for f in dataset.episode(i).pictures(CAMERA, range(20 + 4 * i))]
    (file,) = root.rglob("*.mp4")
    file.parent.chmod(0o755)
    file.unlink()
    with av.open(str(file), "w") as container:
        stream = container.add_stream(
            "libx265", rate=50, options={"crf": "8", "x265-params": "log-level=none"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    decoded = open_dataset(str(root)).episode(1).pictures(CAMERA, range(24))
    for got, want in zip(decoded, frames[20:], strict=True):
        assert np.abs(got.astype(np.int16) - want).mean() < 4
    # No frame that is reached from a key frame only by decoding for long.
    monkeypatch.setattr(video, "MOST_PIXELS", 30 * frames[0].shape[0] * frames[0].shape[1])
    assert open_dataset(str(root)).episode(1).picture(CAMERA, 5).shape == frames[0].shape
    with pytest.raises(FrameError, match="no key frame for long before"):
        open_dataset(str(root)).episode(1).picture(CAMERA, 23)


# --- broken ones --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("path_data_outside", r"meta/info.json: data_path .*out of the dataset's folder"),
        ("path_video_outside", r"meta/info.json: video_path .*out of the dataset's folder"),
        ("path_format", r"meta/info.json: data_path .*at most 9 digits"),
        ("version_9_9", r"meta/info.json: codebase_version is 'v9.9'; expected v3.0 or v2.1"),
        ("info_cut", r"meta/info.json is not JSON, or was cut off"),
    ],
)
def test_broken_datasets_do_not_open(datasets, name, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(str(datasets / "broken" / name))


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("episode_length", 1, r"meta/episodes/.*file-000.parquet, row 1 says .*length 40; .* 24"),
        ("episode_length_v21", 0, r"episodes.jsonl says .*length 30; data/.*parquet has 24 rows"),
        (
            "nan_state",
            0,
            r"file-000.parquet: observation.state\[2\] is nan at frame 7 of episode 0",
        ),
        ("task_unknown", 0, r"parquet: task_index is 7 at frame 3 of .*tasks.parquet has \[0, 1\]"),
    ],
)
def test_broken_episodes_do_not_open(datasets, name, broken, message):
    """The others do."""
    dataset = open_dataset(str(datasets / "broken" / name))
    with pytest.raises(ValueError, match=message):
        dataset.episode(broken)
    assert dataset.episode(1 - broken).length


def test_missing_statistics_are_missed_only_by_who_asks(datasets):
    dataset = open_dataset(str(datasets / "broken" / "no_stats"))
    assert dataset.episode(0).length == 20
    with pytest.raises(ValueError, match=r"meta/stats.json is not there"):
        dataset.recorded_stats()


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("truncated_mp4", 20, r"videos/.*file-000.mp4 is damaged: no frame at 0.\d+ s"),
        ("truncated_mp4_v21", 24, r"episode_000001.mp4 is damaged"),
        ("missing_mp4", 44, r"videos/.*file-000.mp4 is not there"),
    ],
)
def test_a_damaged_video_costs_its_frames(datasets, name, lost, message):
    """As many as LeRobot loses; states and actions stay."""
    dataset = open_dataset(str(datasets / "broken" / name))
    failures = []
    for index in range(len(dataset)):
        episode = dataset.episode(index)
        assert np.isfinite(episode.values["action"]).all()
        pictures = list(episode.pictures(CAMERA, range(episode.length)))
        failures += [picture for picture in pictures if isinstance(picture, FrameError)]
    assert len(failures) == lost
    with pytest.raises(FrameError, match=message):
        raise failures[0]


def test_a_recorded_jpeg_has_few_scans(tmp_path, datasets):
    """As a visitor's picture: each scan decodes the whole."""
    root = shutil.copytree(datasets / "v30_png", tmp_path / "jpeg", copy_function=shutil.copy)
    (data,) = (root / "data").rglob("*.parquet")
    data.parent.chmod(0o755)
    table = pq.read_table(data)
    place = table.column_names.index(CAMERA)
    rows = table.column(CAMERA).to_pylist()
    for frame, count in enumerate((10, 2000)):
        rows[frame]["bytes"] = many_scans(count, side=112)
    data.unlink()
    changed = pa.array(rows, table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), changed), data)
    episode = open_dataset(str(root)).episode(0)
    assert episode.picture(CAMERA, 0).shape == (112, 112, 3)
    with pytest.raises(FrameError, match="more than 100 scans"):
        episode.picture(CAMERA, 1)


def test_links_do_not_lead_out(tmp_path, datasets):
    root = shutil.copytree(datasets / "v30_small", tmp_path / "linked", copy_function=shutil.copy)
    (file,) = (root / "data").rglob("*.parquet")
    file.parent.chmod(0o755)
    file.unlink()
    file.symlink_to(next((datasets / "v30_small" / "data").rglob("*.parquet")))
    with pytest.raises(ValueError, match=r"file-000.parquet is a link that leads out"):
        open_dataset(str(root)).episode(0)
    with pytest.raises(ValueError, match="leads out"):
        Folder(root).path("../linked/meta/info.json")


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(ValueError, match=r"meta/info.json is not there"):
        open_dataset(str(tmp_path))
    with pytest.raises(ValueError, match="there is no folder"):
        open_dataset("./nowhere/at_all")
    with pytest.raises(ValueError, match="there is no folder"):
        open_dataset("nothing")


# --- mutated metadata ---------------------------------------------------------------------------

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["../{chunk_index}", "{0.__class__}", "{chunk_index:>99d}", "/etc/{x}", "{", "a:b"]
    ),
    st.lists(st.integers(-3, 3), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
_INFO = json.loads(
    (GOLDENS / "datasets" / "v30_small" / "meta" / "info.json").read_text()
    if GOLDENS.is_dir()
    else "{}"
)


def _places(tree, path=()):
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items if isinstance(tree, (dict, list)) else ():
        yield from (
            _places(value, (*path, key)) if isinstance(value, (dict, list)) else [(*path, key)]
        )


def _or_error(call):
    """(value, "") or, of a ValueError, (None, message)."""
    try:
        return call(), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.usefixtures("goldens")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_info_is_read_or_refused(tmp_path, data):
    """A ValueError with the file's name, or an info that keeps its promises; nothing else."""
    tree = json.loads(json.dumps(_INFO))
    place = data.draw(st.sampled_from([p for p in _places(_INFO) if p]))
    node = tree
    for key in place[:-1]:
        node = node[key]
    if data.draw(st.booleans()):
        node[place[-1]] = data.draw(_ODD)
    else:
        del node[place[-1]]
    path = tmp_path / "info.json"
    path.write_text(json.dumps(tree))
    info, problem = _or_error(lambda: read_info(path))
    if info is None:
        assert "meta/info.json" in problem
    else:
        assert ".." not in Path(info.data_file(chunk_index=1, file_index=2)).parts
        assert all(len(f.picture_size) == 2 for f in info.cameras.values())
        assert all(f.dimension_names is None or f.shape for f in info.features.values())


@pytest.mark.parametrize("file", ["data", "meta/episodes", "meta/tasks.parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_damaged_parquet_is_read_or_refused(tmp_path, datasets, file, place, byte):
    root = tmp_path / "copy"
    if not root.exists():
        shutil.copytree(datasets / "v30_small", root, copy_function=shutil.copy)
        for folder in [root, *root.rglob("*")]:
            folder.chmod(0o755)
    target = root / file
    target = target if target.suffix else next(target.rglob("*.parquet"))
    whole = target.read_bytes()
    at = int(place * len(whole))
    target.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])

    def read():
        dataset = open_dataset(str(root))
        return [dataset.episode(i).length for i in range(2)]

    lengths, problem = _or_error(read)
    target.write_bytes(whole)
    assert lengths == [20, 24] or "parquet" in problem
