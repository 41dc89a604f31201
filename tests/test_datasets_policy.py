"""Recorded episodes against a policy: what fits and what does not, statistics, and open loop."""

import csv
import dataclasses
import functools
import http.server
import io
import json
import os
import shutil
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from models.chunking import prefix_weights
from playground.analysis import norm_check
from playground.checkpoints.load import open_policy
from playground.datasets import evaluate as command
from playground.datasets import open_loop, record, room, source
from playground.datasets.lerobot import BUNDLED, Dataset, open_dataset
from playground.datasets.matching import Choice, match, read_choice, unit_doubts
from playground.datasets.open_loop import Asking
from playground.datasets.source import Hub
from playground.datasets.statistics import aggregation_note, own_stats
from playground.robots import norm_stats
from playground.robots.builtin import TABLETOP
from playground.robots.transforms import to_offsets
from playground.tabletop.tasks import Task
from playground.trace import Options
from playground.views import open_loop as view
from tests.support.table import CAMERAS, in_all

CAMERA = "observation.images.table"
SEEN = Choice(cameras=in_all(CAMERA))  # of data with that camera alone


@pytest.fixture(scope="module")
def policy():
    return open_policy("pi0_tabletop")


@pytest.fixture(scope="module")
def bundled():
    return open_dataset(BUNDLED)


@pytest.fixture(scope="module")
def fit(bundled, policy):
    return match(bundled.info, policy.info, TABLETOP)


def named(goldens, name):
    return open_dataset(str(goldens / "datasets" / name))


def changed(info, **fields):
    return info.model_copy(update=fields)


def feature(info, name, **fields):
    features = dict(info.features)
    features[name] = features[name].model_copy(update=fields)
    return changed(info, features=features)


# --- the bundled dataset ------------------------------------------------------------------------


def test_the_bundled_dataset_is_small_and_is_what_the_command_makes(bundled, tmp_path):
    """Of its numbers; pictures go through an encoder."""
    files = [p for p in Path("assets", BUNDLED).rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    made = record.perform(Task("touch", "red", "touch the {} cube"), record.SEED)
    episode = bundled.episode(0)
    np.testing.assert_allclose(episode.values["action"], made.actions, atol=1e-5)
    np.testing.assert_allclose(episode.values["observation.state"], made.states, atol=1e-5)
    assert set(episode.tasks) == {"touch the red cube"}
    assert np.abs(episode.picture(CAMERA, 20) - made.images[CAMERA][20].astype(int)).mean() < 5
    # With a second camera, whose pictures are smaller and another's negatives.
    small = made.images[CAMERA][:, ::4, ::4]
    seen = {CAMERA: small, "observation.images.side": 255 - small[:, 8:-8, 8:-8]}
    made = dataclasses.replace(made, images=seen)
    record.write(tmp_path / "again", [made, made])
    again = open_dataset(str(tmp_path / "again")).episode(1)
    np.testing.assert_array_equal(again.values["action"], made.actions)
    assert np.abs(again.picture(CAMERA, 20) - small[20].astype(int)).mean() < 8
    side = again.picture("observation.images.side", 20)
    assert np.abs(side - (255.0 - small[20, 8:-8, 8:-8])).mean() < 8


# --- what fits ----------------------------------------------------------------------------------


def test_names_decide_whatever_the_order(bundled, policy):
    names = list(reversed([n.name.upper() + ".pos" for n in TABLETOP.state]))
    info = feature(bundled.info, "observation.state", names={"motors": names})
    found = match(info, policy.info, TABLETOP)
    assert found.state.order == tuple(reversed(range(14)))
    assert any("another order" in note for note in found.notes)
    assert not found.doubts
    assert found.cameras == {s: f"observation.images.{name}" for s, name in CAMERAS.items()}


def test_another_robots_dataset_is_refused_with_every_reason(goldens, policy):
    info = named(goldens, "v30_two_cameras").info
    with pytest.raises(ValueError, match=r"action has 7 dimensions .*Tabletop 14") as error:
        match(info, policy.info, TABLETOP)
    for word in ("base_0_rgb", "observation.images.side", "observation.images.top"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="action has 7") as error:
        match(info, policy.info, TABLETOP, Choice(cameras={"base_0_rgb": "observation.images.top"}))
    assert "base_0_rgb" not in str(error.value)


def test_doubts_are_said(goldens, bundled, policy):
    slow = match(changed(bundled.info, fps=30.0), policy.info, TABLETOP)
    assert any("30 frames a second" in doubt and "50 steps" in doubt for doubt in slow.doubts)
    odd = feature(bundled.info, "action", names=[f"joint_{i}" for i in range(14)])
    assert any("names do not fit" in doubt for doubt in match(odd, policy.info, TABLETOP).doubts)
    nameless = match(named(goldens, "v30_tasks").info, policy.info, TABLETOP, SEEN)
    assert any("names no dimensions" in note for note in nameless.notes)
    assert not nameless.doubts


def test_degrees_are_recognised_and_converted(bundled, policy, fit):
    episode = bundled.episode(1)
    states = fit.states(episode)
    assert unit_doubts(states, TABLETOP.state, "state") == ()
    degrees = np.where([d.unit == "rad" for d in TABLETOP.state], np.degrees(states), states)
    (doubt,) = unit_doubts(degrees, TABLETOP.state, "state")
    assert "look like degrees" in doubt
    converted = match(bundled.info, policy.info, TABLETOP, Choice(degrees=True, cameras={}))
    np.testing.assert_allclose(converted.state.of(degrees), states, atol=1e-12)


def test_a_choice_is_kept_in_a_file(tmp_path):
    path = tmp_path / "match.json"
    path.write_text('{"state": "qpos", "cameras": {"base_0_rgb": "top"}}')
    assert read_choice(path) == Choice(state="qpos", cameras={"base_0_rgb": "top"})
    path.write_text('{"stat": "qpos"}')
    with pytest.raises(ValueError, match=r"match.json: stat"):
        read_choice(path)


# --- statistics ---------------------------------------------------------------------------------


def test_own_stats_are_what_the_policy_would_be_trained_with(goldens, policy):
    """Offsets from each chunk's own state over the whole horizon, the last action repeated."""
    dataset = named(goldens, "v30_table")
    found = match(dataset.info, policy.info, TABLETOP, SEEN)
    own = own_stats(dataset, policy.info, TABLETOP, found, range(len(dataset))).stats()
    chunks, states = [], []
    for episode in map(dataset.episode, range(3)):
        for i in range(episode.length):
            state = episode.values["observation.state"][i].astype(np.float64)
            chunk, _ = episode.chunk("action", i, policy.info.horizon)
            chunks.append(to_offsets(chunk.astype(np.float64), state, TABLETOP.offsets))
            states.append(state)
    for part, rows in (("actions", np.concatenate(chunks)), ("state", np.stack(states))):
        np.testing.assert_allclose(own[part].mean, rows.mean(0), atol=1e-9)
        np.testing.assert_allclose(own[part].std, rows.std(0), atol=1e-9)
        slack = np.ptp(rows, axis=0) * 0.005 + 1e-6
        for value, share in ((own[part].q01, 0.01), (own[part].q99, 0.99)):
            low, high = (
                np.quantile(rows, np.clip(share + d, 0, 1), axis=0) for d in (-0.005, 0.005)
            )
            assert (np.array(value) >= low - slack).all()
            assert (np.array(value) <= high + slack).all()


def test_a_person_is_told_that_lerobot_s_quantiles_are_averages(goldens, policy):
    dataset = named(goldens, "v30_table")
    found = match(dataset.info, policy.info, TABLETOP, SEEN)
    note = aggregation_note(dataset, own_stats(dataset, policy.info, TABLETOP, found, range(3)))
    assert "averages the quantiles of the episodes" in note
    small = open_dataset(BUNDLED)
    assert not aggregation_note(small, own_stats(small, policy.info, TABLETOP, found, range(3)))


def test_data_that_are_other_than_the_checkpoints(policy):
    stats = {"state": policy.info.state_stats, "actions": policy.info.action_stats}
    same = norm_check.against_data(policy.info, stats)
    assert len(same) == 28
    assert not any(row.remarks for row in same)
    shifted = tuple(m + 5 * s for m, s in zip(stats["state"].mean, stats["state"].std, strict=True))
    wide = tuple(10 * s for s in stats["actions"].std)
    other = {
        "state": dataclasses.replace(stats["state"], mean=shifted),
        "actions": dataclasses.replace(stats["actions"], std=wide),
    }
    rows = norm_check.against_data(policy.info, other)
    assert all(
        "5.0 reaches from" in row.remarks[0] for row in rows[:14] if row.checkpoint[1] > 1e-3
    )
    assert all("10 times wider" in row.remarks[0] for row in rows[14:] if row.checkpoint[1] > 1e-3)


# --- open loop ----------------------------------------------------------------------------------


def test_an_evaluation_is_a_plain_loop(bundled, policy, fit):
    """Frame by frame and dimension by dimension, over two episodes, in batches that do not fill."""
    asking, executed = Asking(every=15, batch=4, options=Options(num_steps=4, seed=3)), 20
    found = command.run(bundled, policy, fit, [0, 2], asking, executed)
    errors = {span: [] for span in open_loop.SPANS}
    recorded = []
    for index in (0, 2):
        episode = bundled.episode(index)
        actions = episode.values["action"].astype(np.float64)
        recorded.append(actions)
        for frame in range(0, episode.length, 15):
            raw = fit.observation(episode, frame, TABLETOP)
            assert raw.prompt == episode.tasks[frame]
            answer, _ = policy.actions(raw, asking.options)
            stats = (policy.info.action_stats, "z-score")
            chunk = norm_stats.unnormalise(answer[0], *stats)
            chunk += np.where(TABLETOP.offsets, raw.state, 0)
            for step in range(min(policy.info.horizon, episode.length - frame)):
                apart = np.abs(chunk[step] - actions[frame + step])
                errors["whole"].append(apart)
                if step < executed:
                    errors["executed"].append(apart)
                if step == 0:
                    errors["first"].append(apart)
    span = np.ptp(np.concatenate(recorded), axis=0)
    for span_name, rows in errors.items():
        expected = np.mean(rows, axis=0)
        got = [row.absolute[span_name] for row in found.dimensions]
        np.testing.assert_allclose(got, expected, atol=2e-5)
        moved = span > 0
        got = np.array([row.percent[span_name] for row in found.dimensions])
        np.testing.assert_allclose(got[moved], (100 * expected / span)[moved], rtol=1e-2, atol=0.01)
    assert not found.failures


def test_another_prompt_is_another_answer(bundled, policy, fit):
    asking = Asking(every=40, batch=4, options=Options(num_steps=4))
    recorded = command.run(bundled, policy, fit, [0], asking, 20)
    other = dataclasses.replace(asking, prompt="touch the blue cube")
    swapped = command.run(bundled, policy, fit, [0], other, 20)
    assert swapped.prompt == "touch the blue cube"
    assert swapped.mean_percent("whole") > 2 * recorded.mean_percent("whole")


def test_damaged_pictures_cost_their_frames(goldens, policy):
    dataset = named(goldens, "broken/truncated_mp4")
    fit = match(dataset.info, policy.info, TABLETOP, SEEN)
    asking = Asking(every=4, batch=4, options=Options(num_steps=4))
    found = command.run(dataset, policy, fit, [0, 1], asking, 10)
    assert 0 < len(found.failures) < 11
    assert all("file-000.mp4" in why for _, _, why in found.failures)


def test_what_is_written(bundled, policy, fit):
    """The table holds the figures; the page needs nothing from elsewhere, and says what it is."""
    asking = Asking(every=40, batch=4, options=Options(num_steps=4))
    found = command.run(bundled, policy, fit, [0, 1], asking, 20)
    rows = list(csv.DictReader(io.StringIO(view.table_csv([found]))))
    assert [row["dimension"] for row in rows] == [d.name for d in TABLETOP.actions]
    assert float(rows[3]["mae executed"]) == pytest.approx(found.dimensions[3].absolute["executed"])
    hostile = dataclasses.replace(found, prompt="<script>alert(1)</script>")
    page = view.report("A & B", [hostile], ["a <note>"], ())
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "not success" in page
    assert page.count("<svg") == 2 * 14
    assert page.count("<circle") == 14 * sum(len(p.frames) for p in found.predictions)


def test_the_command(tmp_path, monkeypatch, capsys, goldens):
    """From its arguments to its files; what does not fit is said before anything runs."""
    arguments = ["evaluate", BUNDLED, "--episodes", "0", "--every", "30", "--batch", "2"]
    arguments += ["--prompt", "touch the blue cube", "--out", str(tmp_path)]
    monkeypatch.setattr(command.load, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "errors.csv").read_text())))
    assert {row["prompt"] for row in rows} == {"the recorded task", "touch the blue cube"}
    assert "norm stats" in (tmp_path / "report.html").read_text()
    assert "not success" in capsys.readouterr().out
    slow = shutil.copytree(Path("assets", BUNDLED), tmp_path / "slow")
    info = json.loads((slow / "meta/info.json").read_text())
    (slow / "meta/info.json").write_text(json.dumps({**info, "fps": 25}))
    for dataset, words in (
        (str(slow), "these doubts come first"),
        (str(goldens / "datasets" / "v30_two_cameras"), "does not fit pi0"),
        ("./nowhere", "there is no folder"),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate", dataset, "--out", str(tmp_path / "none")])
        with pytest.raises(SystemExit, match=words):
            command.main()
    assert "25 frames a second" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_episodes_are_chosen():
    assert command.chosen_episodes("0,2-3, 2", 5) == [0, 2, 3]
    assert command.chosen_episodes("all", 3) == [0, 1, 2]
    assert len(command.chosen_episodes(None, 1000)) == command.FIRST_EPISODES
    for text in ("7", "2-9", "3-2", "x", ""):
        with pytest.raises(ValueError, match=r"episodes"):
            command.chosen_episodes(text, 5)


# --- real-time chunking through a policy --------------------------------------------------------


def test_a_guided_chunk_keeps_to_the_old_one(bundled, policy, fit):
    """In the robot's units, though the model counts from the new state. Between these frames the
    policy changes its mind by itself; elsewhere its chunks continue each other."""
    episode = bundled.episode(1)
    old, new = (fit.observation(episode, frame, TABLETOP) for frame in (20, 45))
    options = Options(num_steps=10, seed=1)
    (before, _), (plain, _) = policy.chunks([old, new], options)
    previous = np.concatenate([before[25:], np.repeat(before[-1:], 25, axis=0)])
    free = policy.guided_chunk(new, options, previous, prefix_weights(0, 25, 50, "zeros")).actions
    np.testing.assert_allclose(free, plain, atol=1e-5)
    weights = prefix_weights(10, 25, 50, "exp")
    held = policy.guided_chunk(new, options, previous, weights).actions
    apart = [np.abs(chunk - previous)[:10].mean() for chunk in (held, free)]
    assert apart[0] < 0.5 * apart[1]


# --- a dataset of the Hub -----------------------------------------------------------------------


class _HubOnDisk(http.server.BaseHTTPRequestHandler):
    """What of the Hub's HTTP API is asked for a dataset: its commit, a listing, files."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, root, asked, *args):
        self.root, self.asked = root, asked
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        api, files = "/api/datasets/me/mine/", f"/datasets/me/mine/resolve/{self.COMMIT}/"
        if path == f"{api}revision/main":
            return self.answer(json.dumps({"id": "me/mine", "sha": self.COMMIT}).encode())
        if path.startswith(f"{api}tree/{self.COMMIT}/"):
            folder = self.root / path.removeprefix(f"{api}tree/{self.COMMIT}/")
            found = [p for p in folder.rglob("*") if p.is_file()]
            names = [str(p.relative_to(self.root)) for p in found]
            items = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
            return self.answer(json.dumps(items).encode())
        file = self.root / path.removeprefix(files)
        if path.startswith(files) and file.is_file():
            self.asked.append(path.removeprefix(files))
            return self.answer(file.read_bytes())
        return self.answer(b"{}", 404, "EntryNotFound")

    def answer(self, body, status=200, error=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{abs(hash(body)):040x}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(goldens, tmp_path, monkeypatch):
    """(address, names of the files that were fetched) of a server with v30_many_files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    asked = []
    handler = functools.partial(_HubOnDisk, goldens / "datasets" / "v30_many_files", asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_what_strangers_choose_takes_no_more_of_the_disk_than_it_may(tmp_path, monkeypatch):
    """The datasets that were read longest ago go, whole; none that may be open."""
    monkeypatch.setattr(room, "MOST", 350)
    now, ages = time.time(), {"a/oldest": 9000, "a/old": 8000, "a/open": 60, "a/mine": 9999}
    homes = {name: tmp_path / f"datasets--{name.replace('/', '--')}" for name in ages}
    for name, home in homes.items():
        (home / "blobs").mkdir(parents=True)
        (home / "blobs" / "0").write_bytes(bytes(100))
        (home / "snapshots").mkdir()
        (home / "snapshots" / "link").symlink_to(home / "blobs" / "0")
        os.utime(home, (now - ages[name],) * 2)

    def left():
        return {name for name, home in homes.items() if home.exists()}

    room.make(tmp_path, "a/mine", 0)
    assert left() == {"a/old", "a/open", "a/mine"}  # 400 bytes were there
    room.make(tmp_path, "a/mine", 150)
    assert left() == {"a/open", "a/mine"}
    with pytest.raises(ValueError, match="all of that is in use"):
        room.make(tmp_path, "a/mine", 200)
    assert left() == {"a/open", "a/mine"}
    os.utime(homes["a/open"], (now - 9000,) * 2)
    room.use(tmp_path, "a/open")
    with pytest.raises(ValueError, match="all of that is in use"):
        room.make(tmp_path, "a/mine", 200)


def test_of_a_dataset_of_the_hub_only_what_an_episode_needs_is_fetched(hub, goldens, monkeypatch):
    address, asked = hub
    dataset = Dataset(Hub("me/mine", endpoint=address))
    assert dataset.revision == _HubOnDisk.COMMIT
    assert {name.split("/")[0] for name in asked} == {"meta"}
    episode, folder = dataset.episode(3), named(goldens, "v30_many_files").episode(3)
    np.testing.assert_array_equal(episode.values["action"], folder.values["action"])
    np.testing.assert_array_equal(episode.picture(CAMERA, 5), folder.picture(CAMERA, 5))
    fetched = set(asked)
    assert len([name for name in fetched if name.startswith("data/")]) == 1
    assert len([name for name in fetched if name.startswith("videos/")]) == 1
    assert len([name for name in fetched if name.startswith("meta/episodes/")]) < 5
    named_by_a_stranger = Hub("me/mine", endpoint=address, public=True)
    assert Dataset(named_by_a_stranger).episode(2).length == 24
    assert list(room.folder().glob("datasets--me--mine/snapshots/*/data"))
    with monkeypatch.context() as full:
        full.setattr(room, "MOST", 10)
        with pytest.raises(ValueError, match="all of that is in use: try again in half an hour"):
            named_by_a_stranger.path("meta/stats.json")
    monkeypatch.setattr(source, "MAX_PUBLIC_FILE", 10)
    with pytest.raises(
        ValueError, match=r"meta/stats.json of me/mine has 0 MB; a page that others"
    ):
        named_by_a_stranger.path("meta/stats.json")
    with pytest.raises(ValueError, match=r"meta/nothing.json is not there \(in me/mine"):
        Hub("me/mine", endpoint=address).path("meta/nothing.json")
    with pytest.raises(ValueError, match="expected owner/name"):
        Hub("mine")
