"""Recorded episodes as the page has them: what may be opened, what is asked, how chunks meet."""

import dataclasses
import io
import itertools
import json
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from models.chunking import prefix_weights
from playground.analysis.rollout_seam import RolloutSeamRequest, of_rollout
from playground.datasets import evaluate as command
from playground.datasets import job, lerobot, seams
from playground.datasets.job import EpisodeRequest, Predicted, Recorded, SeamRequest
from playground.datasets.lerobot import BUNDLED, open_dataset
from playground.datasets.matching import Choice, match
from playground.datasets.open_loop import Asking, Prediction, evaluate
from playground.datasets.source import Folder
from playground.policies import seam as joining
from playground.policies.seam import SeamChunks
from playground.robots.builtin import TABLETOP
from playground.serving.events import Phase, Result
from playground.tabletop.rollout import observe
from playground.tabletop.scene import Table, random_scene
from playground.trace import Options
from playground.ui import rollout_seam
from playground.ui.episodes import evaluation, reading, stats, store
from playground.ui.episodes.asked import Asked
from playground.ui.setup import Setups
from playground.views import episode as episode_view
from playground.views import seam as seam_view
from playground.views import theme, worms
from tests.support.table import CAMERAS, in_all
from tests.support.visitor import FAST, PI0

OPTIONS = Options(num_steps=4, seed=2)


class Loaded:
    """A worker that has loaded what it is given; only its metadata is asked for."""

    def __init__(self, infos):
        self.infos = infos

    def metadata(self, timeout_s=None):
        return self.infos


def recorded(**fields):
    word = {"dataset": BUNDLED, "revision": "", "public": True, "opening": "test", "episode": 1}
    return Recorded(**word | {"choice": Choice(cameras={}).model_dump_json()} | fields)


def results(events):
    return [event.value for event in events if isinstance(event, Result)]


# --- what a public page may open ----------------------------------------------------------------


@pytest.mark.parametrize("word", ["assets/episodes_tabletop", ".", "/etc", "../x", "~/x", "a/b/c"])
def test_a_public_page_opens_no_folder_and_does_not_say_whether_it_is_there(word, monkeypatch):
    """A name that could be the Hub's is asked of the Hub, though there is a folder of that name."""
    asked = []

    def hub(repository, revision=None, *, public=False):
        asked.append((repository, public))
        raise ValueError("the Hub has no such dataset")

    monkeypatch.setattr("playground.datasets.lerobot.Hub", hub)
    with pytest.raises(ValueError, match=r"no folders|the Hub has no such dataset"):
        open_dataset(word, public=True)
    assert asked == ([(word, True)] if word.startswith("assets/") else [])
    assert len(open_dataset(BUNDLED, public=True)) == 3


# --- what the worker answers --------------------------------------------------------------------


def test_frames_are_answered_as_the_policies_answer_them(policies):
    frames = (3, 40, 41)
    asked = tuple(policies), recorded(), frames, 2, "touch the blue cube", OPTIONS
    request = EpisodeRequest(*asked)
    events = list(job.predict(policies, request))
    assert [e.phase for e in events if isinstance(e, Phase) and e.policy == PI0] == [
        f"frame {done} of 3" for done in (0, 2, 3)
    ]
    dataset = open_dataset(BUNDLED)
    for name, policy in policies.items():
        found = [r for r in results(events) if r.policy == name]
        assert all(isinstance(r, Predicted) and not r.failures for r in found)
        assert np.concatenate([r.frames for r in found]).tolist() == list(frames)
        fit = match(dataset.info, policy.info, TABLETOP)
        episode = dataset.episode(1)
        chunks = np.concatenate([r.chunks for r in found])
        for frame, chunk in zip(frames, chunks, strict=True):
            raw = fit.observation(episode, frame, TABLETOP, "touch the blue cube")
            expected, _ = policy.chunk(raw, OPTIONS)
            np.testing.assert_allclose(chunk, expected[0], atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policies": ("other",)}, "no policy is called other"),
        ({"frames": (0, 500)}, "frames 0 to .*; 500 was asked"),
        ({"frames": ()}, "0 frames came"),
        ({"recorded": recorded(episode=7)}, "episodes 0 to 2; 7 was asked"),
        ({"recorded": recorded(dataset="/etc")}, "no folders"),
    ],
)
def test_what_cannot_be_asked_is_said(policies, fields, message):
    request = {"policies": (PI0,), "recorded": recorded(), "frames": (0,), "batch": 1}
    request |= {"prompt": None, "options": OPTIONS} | fields
    with pytest.raises(ValueError, match=message):
        list(job.predict(policies, EpisodeRequest(**request)))


# --- where two chunks meet ----------------------------------------------------------------------


def test_a_seam_is_two_questions_of_which_the_later_is_also_guided(policies):
    policy, since, delay = policies[PI0], 20, 6
    request = SeamRequest(PI0, recorded(), 36, since, delay, None, OPTIONS)
    (found,) = results(job.seam(policies, request))
    dataset = open_dataset(BUNDLED)
    fit, episode = match(dataset.info, policy.info, TABLETOP), dataset.episode(1)
    before, now = (fit.observation(episode, frame, TABLETOP) for frame in (16, 36))
    later = Options(num_steps=4, seed=3)
    np.testing.assert_allclose(found.old, policy.chunk(before, OPTIONS)[0][0], atol=2e-5)
    np.testing.assert_allclose(found.plain, policy.chunk(now, later)[0][0], atol=2e-5)
    np.testing.assert_array_equal(found.weights, prefix_weights(delay, 30, 50, "exp"))
    assert found.plain_ms > 0 < found.guided_ms
    # Step h of the new chunk is step since + h of the old one, whose end is held.
    planned = np.stack([found.old[min(since + h, 49)] for h in range(50)])
    want = policy.guided_chunk(now, later, planned, found.weights).actions
    np.testing.assert_allclose(found.guided, want, atol=2e-5)
    assert_steps(found, policy, now, later, since)


def test_where_a_policy_changes_its_mind_the_guided_chunk_keeps_to_the_old_plan(policies):
    """Where it is held fully, by half of what lies between the old plan and the plain chunk."""
    since, delay = 24, 6
    (found,) = results(
        job.seam(policies, SeamRequest(PI0, recorded(), 49, since, delay, None, OPTIONS))
    )
    plan = found.old[since : since + delay]
    apart = [np.abs(chunk[:delay] - plan).mean() for chunk in (found.guided, found.plain)]
    assert apart[0] < 0.5 * apart[1]


def test_a_delay_can_be_the_measured_one(policies, monkeypatch):
    """By a clock of which every look takes 50 ms: 2.5 control steps, so the third."""
    looks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: 0.05 * next(looks))
    monkeypatch.setattr(joining, "time", clock)
    request = SeamRequest(PI0, recorded(), 45, 25, None, None, OPTIONS)
    (found,) = results(job.seam(policies, request))
    assert (found.delay, found.guided_ms) == (3, pytest.approx(50))
    np.testing.assert_array_equal(found.weights, prefix_weights(3, 25, 50, "exp"))
    short = dataclasses.replace(request, since=2)
    with pytest.raises(ValueError, match="the answer takes 3; expected"):
        list(job.seam(policies, short))


def assert_steps(found, policy, now, later, since):
    """The Euler steps of the guided chunk, as the denoising player shows them: integrated by hand
    in units that are linear in the model's, they end at the chunk; the first estimate before its
    correction is the plain run's own; and the correction goes towards the old chunk."""
    times, steps = found.times, len(found.times) - 1
    np.testing.assert_allclose(times, 1 - np.arange(steps + 1) / steps, atol=1e-6)
    assert found.before.shape == found.after.shape == (steps, 50, 14)
    *_, done = policy.infer(now, later)
    np.testing.assert_allclose(found.before[0], done.trace.estimates[0, 0], atol=2e-4)
    noise = policy.to_robot(done.trace.x_t[0, :1], now)[0]
    x_t = noise.astype(np.float64)
    for t, to, estimate in zip(times, times[1:], found.after, strict=False):
        x_t = estimate + (to / t) * (x_t - estimate)  # a straight line from x_t to the estimate
    np.testing.assert_allclose(x_t, found.guided, atol=2e-4)
    held = found.weights == 1
    plan = found.old[since:][: held.sum()]
    apart = [np.abs(one[:, held] - plan).mean() for one in (found.before, found.after)]
    assert apart[1] < apart[0]


@pytest.mark.parametrize(
    ("name", "since", "delay", "message"),
    [
        (FAST, 20, 5, "writes tokens"),
        (PI0, 0, 0, "expected 1 to 49"),
        (PI0, 20, 21, "a delay of 0 to"),
        (PI0, 40, 11, "10 that are left"),
        (PI0, 46, 2, "frames 0 to"),
    ],
)
def test_what_has_no_seam_is_said(policies, name, since, delay, message):
    request = SeamRequest(name, recorded(), 45, since, delay, None, OPTIONS)
    with pytest.raises(ValueError, match=message):
        list(job.seam(policies, request))


def test_a_seam_of_a_rollout_is_at_what_the_policy_saw_there(policies):
    """Two chunks done by hand at the table, then both questions as above."""
    policy, since, delay, seed = policies[PI0], 15, 4, 2
    request = RolloutSeamRequest(PI0, "touch the red cube", 3, since, 2, delay, OPTIONS)
    (found,) = results(of_rollout(policies, request))
    table, seen, done = Table(random_scene(3)), [], []
    for number in range(3):
        seen.append(observe(table, "touch the red cube"))
        if number < 2:
            options = Options(num_steps=4, seed=seed + number)
            done.append(policy.chunk(seen[-1], options)[0][0])
            for command in done[-1][:since]:
                table.step(command)
    chunks = found.chunks
    np.testing.assert_allclose(chunks.old, done[1], atol=1e-3)
    np.testing.assert_allclose(found.commands[since:], done[1][:since], atol=1e-3)
    plain = policy.chunk(seen[2], Options(num_steps=4, seed=seed + 2))[0][0]
    np.testing.assert_allclose(chunks.plain, plain, atol=5e-3)
    plan = chunks.old[since : since + delay]
    apart = [np.abs(chunk[:delay] - plan).mean() for chunk in (chunks.guided, chunks.plain)]
    assert apart[0] < 0.9 * apart[1]
    joined = rollout_seam.Joined(policy.info, request)
    joined.take(Result(found))
    shown = joined.payload(found)
    assert (shown["done"], shown["first"], shown["span"]) == (True, since, since + 50)
    drawn = theme.unpacked(shown["recorded"])
    np.testing.assert_allclose(drawn[:since], found.commands[since:], atol=1e-5)
    assert np.isnan(drawn[since:]).all()


@pytest.mark.parametrize(
    ("name", "since", "question", "message"),
    [
        (FAST, 20, 1, "writes tokens"),
        (PI0, 50, 1, "expected 1 to 49 steps between"),
        (PI0, 20, 21, "expected 1 to 20"),
        (PI0, 49, 20, r"the rollout ended after \d+ chunks? of 49 steps .*an earlier question"),
    ],
)
def test_what_has_no_seam_in_a_rollout_is_said(policies, name, since, question, message):
    request = RolloutSeamRequest(name, "touch the red cube", 3, since, question, 1, OPTIONS)
    with pytest.raises(ValueError, match=message):
        list(of_rollout(policies, request))


def test_a_jump_is_counted_in_typical_steps():
    """The second dimension moves half of the time, the third never."""
    recorded = np.stack([np.arange(9) * 0.1, [0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1.0], np.ones(9)], 1)
    typical = seams.typical_step(recorded)
    np.testing.assert_allclose(typical, [0.1, 0.2, np.nan])
    old, new = np.zeros((10, 3)), np.zeros((10, 3))
    old[6], new[2] = [1, 2, 3], [1.2, 1.2, 5]
    found = seams.jump(old, new, since=5, delay=2, typical=typical)
    np.testing.assert_allclose(found.change, [0.2, -0.8, 2])
    np.testing.assert_allclose(found.steps, [2, 4, np.nan])
    assert found.largest == 1


# --- what the page keeps, and sends -------------------------------------------------------------


@pytest.fixture
def recordings():
    return store.Recordings(public=False)


@pytest.fixture
def client(recordings):
    served = FastAPI()
    served.include_router(store.routes(recordings))
    return TestClient(served)


def infos_of(policies):
    return {name: policy.info for name, policy in policies.items()}


@pytest.fixture
def setup(policies):
    robots = {name: policy.robot for name, policy in policies.items()}
    return Setups(Loaded(infos_of(policies)), robots).of()


def question_on(setup, opened, index=1, choice=None, prompt=None, anyway=False):
    choice, episode = choice or Choice(cameras={}), opened.episode(index)
    fit = reading.fit(setup, opened.dataset.info, episode, choice, anyway)
    return Asked(setup, opened, episode, prompt, choice, fit)


def test_pictures_are_served_by_frame(recordings, client):
    opened = recordings.open(BUNDLED)
    found = client.get(f"/episode/{opened.key}/1/0/30")
    assert found.headers["content-type"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(found.content)), np.float64)
    there = open_dataset(BUNDLED).episode(1).picture("observation.images.table", 30)
    assert np.abs(picture - there).mean() < 3
    for place in (
        f"{opened.key}/1/{len(CAMERAS)}/30",
        f"{opened.key}/1/0/999",
        f"{opened.key}/9/0/0",
        "x/1/0/0",
    ):
        assert client.get(f"/episode/{place}").status_code == 404
    for _ in range(40):  # an opening too many; the oldest go
        recordings.open(BUNDLED)
    assert client.get(f"/episode/{opened.key}/1/0/30").status_code == 404


def test_nobody_s_openings_push_out_those_of_others(recordings):
    """Nor reports: whoever keeps most gives way."""
    opened, key = recordings.open(BUNDLED, "one"), recordings.keep_report({"a.csv": "a"}, "one")
    for _ in range(70):
        last = recordings.open(BUNDLED, "another")
        recordings.keep_report({"a.csv": "b"}, "another")
    assert recordings.find(opened.key) is opened
    assert recordings.find(last.key) is last
    assert recordings.report(key, "a.csv") == "a"


@pytest.fixture
def strangers(goldens, monkeypatch):
    """Those of a public page. Datasets of the Hub, by name, are folders."""
    places = {"someone/usual": goldens / "datasets" / "v30_two_cameras"}

    def hub(repository, revision=None, *, public):
        assert public
        return Folder(places[repository])

    monkeypatch.setattr(lerobot, "Hub", hub)
    return places, store.Recordings(public=True)


def test_a_stranger_s_dataset_is_read_as_any_other(strangers):
    places, recordings = strangers
    opened = recordings.open("someone/usual")
    plain = store.Recordings(public=False).open(str(places["someone/usual"]))
    assert opened.dataset.info == plain.dataset.info
    for index in (1, 0):
        for name, values in plain.episode(index).values.items():
            np.testing.assert_array_equal(opened.episode(index).values[name], values)
        for camera in (1, 0):
            assert opened.picture(index, camera, 3) == plain.picture(index, camera, 3)
    with pytest.raises(ValueError, match=r"the episode has frames 0 to \d+; 999 was asked"):
        opened.picture(0, 0, 999)
    assert opened.size < 64 << 20


def test_a_small_file_of_much_memory_is_refused_before_the_page_reads_it(strangers, tmp_path):
    """4.5 KB that are 1.6 GB of text."""
    places, recordings = strangers
    root = tmp_path / "large"
    shutil.copytree(places["someone/usual"], root, copy_function=shutil.copy)
    (root / "meta").chmod(0o755)
    (root / "meta/tasks.parquet").unlink()
    tasks = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1500, np.int32)), ["a" * (1 << 20)])
    table = pa.table({"task_index": np.arange(1500), "task": tasks})
    pq.write_table(table, root / "meta/tasks.parquet", compression="zstd", store_schema=False)
    assert (root / "meta/tasks.parquet").stat().st_size < 5000
    places["someone/large"] = root
    with pytest.raises(ValueError, match=r"tasks.parquet cannot be read|too much memory"):
        recordings.open("someone/large")
    assert recordings.open("someone/usual").dataset.info.total_episodes


def test_a_damaged_video_costs_its_pictures(goldens, recordings, client):
    opened = recordings.open(str(goldens / "datasets" / "broken" / "truncated_mp4"))
    lengths = [opened.episode(index).length for index in range(len(opened.dataset))]
    places = [f"{index}/0/{length - 1}" for index, length in enumerate(lengths)]
    answers = [client.get(f"/episode/{opened.key}/{place}") for place in places]
    bad = [answer for answer in answers if answer.status_code == 410]
    assert bad
    assert all("file-000.mp4" in answer.text for answer in bad)


def test_an_owner_opens_folders_and_strangers_do_not(goldens, recordings):
    folder = str(goldens / "datasets" / "v30_table")
    assert len(recordings.open(f" {folder} ").dataset) == 3
    with pytest.raises(ValueError, match="no folders"):
        store.Recordings(public=True).open(folder)
    with pytest.raises(ValueError, match="name a dataset"):
        recordings.open("  ")
    with pytest.raises(ValueError, match="open a dataset first"):
        recordings.find("other")


def test_what_names_leave_open_is_asked_once_and_kept(goldens, setup, recordings):
    """Without a name the camera is missing; with it, and by what the browser keeps, it fits."""
    folder = goldens / "datasets" / "v30_tasks"
    opened = recordings.open(str(folder))
    info = opened.dataset.info
    features = {name.replace("table", "left"): f for name, f in info.features.items()}
    unnamed = info.model_copy(update={"features": features})
    choice = Choice(cameras={})
    found = reading.fit(setup, unnamed, opened.episode(0), choice, False)
    assert not found.matches
    # Of each camera once for both, and where to choose stands in it.
    assert len(found.reasons) == len(CAMERAS)
    reason = found.reasons[0]
    both = " and ".join(info.title for info in setup.infos.values())
    assert reason.startswith(f"It does not fit {both}: A picture is needed in base_0_rgb (table)")
    assert reason.endswith(
        "under “How the dataset is read” on the page, or in the file of --match."
    )
    with pytest.raises(ValueError, match="no policy here fits"):
        found.check()
    cameras = ["observation.images.left", "", "gone"]
    chosen, anyway = reading.choice_of(setup, unnamed, ["", "action", False, True, *cameras])
    assert chosen == Choice(actions="action", cameras={"base_0_rgb": "observation.images.left"})
    assert anyway
    chosen = chosen.model_copy(update={"cameras": in_all("observation.images.left")})
    fits = reading.fit(setup, unnamed, opened.episode(0), chosen, False)
    assert set(fits.matches) == set(setup.policies)
    kept = json.loads(json.dumps(reading.remember(None, "mine", chosen)))
    assert reading.remembered(kept, "mine") == chosen
    for nonsense in (None, "x", {"mine": 3}, {"mine": {"cameras": {"a": 1}}}, {"mine": {"x": 1}}):
        assert reading.remembered(nonsense, "mine") == Choice(cameras={})
    for number in range(60):
        kept = reading.remember(kept, str(number), choice)
    assert len(kept) == 50
    assert "59" in kept


def test_doubts_come_before_a_prediction(setup, recordings):
    opened = recordings.open(BUNDLED)
    slow = opened.dataset.info.model_copy(update={"fps": 30.0})
    found = reading.fit(setup, slow, opened.episode(0), Choice(cameras={}), False)
    assert any("30 frames a second" in doubt for doubt in found.doubts)
    with pytest.raises(ValueError, match="in spite of the doubts"):
        found.check()
    reading.fit(setup, slow, opened.episode(0), Choice(cameras={}), True).check()
    assert "30 frames a second" in reading.sentences(found)


def test_an_evaluation_on_the_page_is_that_of_the_command(policies, setup, recordings):
    """Every policy and two prompts, from the events of the worker's jobs; so are its files."""
    question = question_on(setup, recordings.open(BUNDLED), 2, prompt="touch the blue cube")
    running = evaluation.Running(question, every=40, executed=10, most=100)
    for request in running.requests:
        for event in job.predict(policies, request):
            running.take(event)
    found = {(e.policy.name, e.prompt): e for e in running.evaluations()}
    assert set(found) == {(n, p) for n in policies for p in (None, "touch the blue cube")}
    dataset, policy = open_dataset(BUNDLED), policies[PI0]
    fit = match(dataset.info, policy.info, TABLETOP)
    for prompt in (None, "touch the blue cube"):
        expected = command.run(dataset, policy, fit, [2], Asking(40, 8, prompt), 10)
        for row, there in zip(found[PI0, prompt].dimensions, expected.dimensions, strict=True):
            assert row.absolute == pytest.approx(there.absolute, abs=2e-6)
    key = running.keep(recordings).removeprefix("evaluation/")
    assert recordings.report(key, "errors.csv").count("\n") == 1 + 2 * len(policies) * 14
    assert "touch the blue cube" in recordings.report(key, "report.html")
    with pytest.raises(ValueError, match=r"up to 3 are run here. Take every"):
        evaluation.Running(question, every=1, executed=10, most=3)


def test_reports_are_files_to_save(recordings, client):
    key = recordings.keep_report({"report.html": "<b>hello</b>", "errors.csv": "a,b"})
    for name, kind in (("report.html", "text/html"), ("errors.csv", "text/csv")):
        found = client.get(f"/evaluation/{key}/{name}")
        assert found.headers["content-type"].startswith(kind)
        assert "attachment" in found.headers["content-disposition"]
    assert client.get(f"/evaluation/{key}/other").status_code == 404
    assert client.get("/evaluation/x/errors.csv").status_code == 404


def test_own_statistics_are_held_against_the_norm_stats(goldens, setup, recordings):
    seen = Choice(cameras=in_all("observation.images.table"))
    question = question_on(setup, recordings.open(str(goldens / "datasets" / "v30_table")), 0, seen)
    page = stats.page(question)
    assert "all 3 episodes" in page
    assert "averages the quantiles of the episodes" in page
    assert page.count("<section") == len(setup.policies)


# --- what the browser draws ---------------------------------------------------------------------


def test_an_episode_is_sent_in_the_robot_s_units(setup, recordings):
    opened = recordings.open(BUNDLED)
    question = question_on(setup, opened)
    info, episode = opened.dataset.info, question.episode
    shown = episode_view.payload(info, episode, "here", TABLETOP, question.fit.match, None)
    np.testing.assert_allclose(
        theme.unpacked(shown["actions"]["values"]), episode.values["action"], atol=1e-6
    )
    assert [dim["name"] for dim in shown["states"]["dims"]] == [d.name for d in TABLETOP.state]
    assert shown["tasks"] == [[0, episode.tasks[0]]]
    assert shown["cameras"][0]["url"] == "here/0/"
    alien = episode_view.payload(info, episode, "here", TABLETOP, None, None)
    assert alien["actions"]["dims"][0]["name"] == info.features["action"].dimension_names[0]
    json.dumps([shown, alien])


def test_a_frame_that_the_episode_does_not_have_is_refused(setup, recordings):
    """Before anything is looked up by it: the last one's state is not that of frame -1."""
    question = question_on(setup, recordings.open(BUNDLED))
    length = question.episode.length
    for frame in (-1, length, 2**53):
        with pytest.raises(ValueError, match=f"frames 0 to {length - 1}; {frame} was asked"):
            question.request([0, frame], 1, None)
    assert question.request([0, 5], 1, None).frames == (0, 5)


def test_what_a_component_sends_is_a_frame_or_the_first():
    assert episode_view.frame_of({"values": [7]}) == 7
    for other in (None, "x", {"values": []}, {"values": ["a"]}, {}):
        assert episode_view.frame_of(other) == 0


def test_errors_over_time_are_means_of_their_steps(policies):
    info = policies[PI0].info
    rng = np.random.default_rng(0)
    frames, recorded = np.array([0, 20, 40]), rng.normal(size=(60, 14))
    chunks = rng.normal(size=(3, 50, 14)).astype(np.float32)
    chunks[1] = np.nan
    prediction = Prediction(0, 50.0, frames, chunks, recorded, recorded, ((20, "damaged"),))
    found = evaluate(info, TABLETOP, [prediction], 30)
    series = worms.payload([found])["series"][0]
    errors = theme.unpacked(series["errors"])
    for span, length in enumerate((1, 30, 50)):
        for k, frame in enumerate(frames):
            steps = [h for h in range(length) if frame + h < 60]
            there = np.mean([np.abs(chunks[k, h] - recorded[frame + h]) for h in steps], axis=0)
            np.testing.assert_allclose(errors[span, k], there, rtol=1e-5)
    assert (series["failed"], series["failures"]) == (1, [[20, "damaged"]])
    many = dataclasses.replace(
        prediction, frames=np.arange(900), chunks=np.zeros((900, 50, 14), np.float32),
        recorded=np.zeros((960, 14)), states=np.zeros((960, 14)),
    )  # fmt: skip
    sent = worms.payload([evaluate(info, TABLETOP, [many], 30)])
    assert sent["series"][0]["chunks"]["shape"] == [900, 25, 14]
    assert sent["stride"] == 2


def test_a_seam_is_drawn_over_the_steps_of_both_chunks(policies):
    """Chunks that change with every step: the new one's sixth row follows the old one's 25th."""
    info, h = policies[PI0].info, np.arange(50)
    lines = (0.1 * h, 3.4 + 0.3 * (h - 5), 2.65 + 0.2 * (h - 5))
    old, plain, guided = (np.repeat(x[:, None], 14, axis=1).astype("f4") for x in lines)
    times, before = np.linspace(1, 0, 3).astype("f4"), np.stack([plain, 2 * plain])
    weights, after = np.linspace(1, 0, 50).astype("f4"), 0.5 * before
    chunks = SeamChunks(old, plain, guided, 5, weights, times, before, after, 21.0, 62.0)
    recorded = np.repeat(np.arange(60)[:, None] * 0.5, 14, axis=1)
    shown = seam_view.payload(info, chunks, recorded, frame=30, since=20)
    assert (shown["first"], shown["span"]) == (10, 70)
    drawn = {k: theme.unpacked(shown[k])[:, 0] for k in ("old", "plain", "guided", "recorded")}
    assert np.isfinite(drawn["old"]).sum() == 50
    assert np.isnan(drawn["plain"][:20]).all()
    np.testing.assert_array_equal(drawn["plain"][20:], plain[:, 0])
    np.testing.assert_allclose(drawn["recorded"][:50], recorded[10:60, 0])
    assert np.isnan(drawn["recorded"][50:]).all()
    jumps = {way["way"]: (way["change"], way["steps"]) for way in shown["ways"]}
    assert jumps["plain"] == pytest.approx((1.0, 2.0), abs=1e-5)
    assert jumps["guided"] == pytest.approx((0.25, 0.5), abs=1e-5)
    assert [one["steps"] for one in shown["latency"]] == [2, 4]
    steps = {k: theme.unpacked(shown[k]) for k in ("before", "after", "planned")}
    np.testing.assert_array_equal(steps["before"], before)
    np.testing.assert_array_equal(steps["after"], after)
    np.testing.assert_array_equal(np.isfinite(steps["planned"][:, 0]), h < 30)
    np.testing.assert_array_equal(steps["planned"][:30, 0], old[20:, 0])
    assert shown["times"] == [1.0, 0.5, 0.0]
