"""What the page makes of inputs and events, without a browser."""

import contextlib
import dataclasses
import io
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from playground import codec
from playground.robots import conversion
from playground.robots.builtin import ALOHA, DROID, DROID_JOINT_POSITION, TABLETOP
from playground.robots.examples import examples
from playground.robots.norm_stats import normalise
from playground.serving.events import Done, Failed, Finished, Job, Phase, Queued, Step, TokenEvent
from playground.serving.queue import Busy
from playground.trace import Computation, DecodedToken, Options, RawObservation, Slot, load
from playground.ui import decoding, endpoint, example_cache, observation, prompt_bar, results
from playground.ui.handlers import Handlers
from playground.ui.progress import Progress
from playground.ui.request import AS_TRAINED
from playground.ui.request import jobs as jobs_of
from playground.ui.results import Results
from playground.ui.runs import Runs
from playground.ui.setup import Setups, judged
from tests.support.blocks import built
from tests.support.table import CAMERAS, by_slot, in_all
from tests.support.traces import fast_trace, pi0_trace, policy_info

GREY = np.full((4, 6, 3), 128, np.uint8)
ALL = dict.fromkeys(range(len(CAMERAS)), GREY)  # by place, of the simulated table


class Loaded:
    """A worker that has loaded what it is asked to; only its metadata is asked for."""

    def __init__(self, infos):
        self.infos = infos

    def metadata(self, timeout_s=None):
        if not self.infos:
            raise TimeoutError
        return self.infos


def info_of(robot, family):
    info = policy_info(family, robot.actions)
    spread = len(robot.state)
    stats = dataclasses.replace(
        info.state_stats,
        mean=(0.1,) * spread,
        std=(0.5,) * spread,
        q01=(-1.0,) * spread,
        q99=(1.0,) * spread,
    )
    return dataclasses.replace(
        info,
        robot=robot.name,
        slots=robot.slots(family),
        state=robot.state,
        actions=robot.actions,
        state_stats=stats,
    )


def setup_of(robot, *families):
    infos = {family: info_of(robot, family) for family in families}
    return Setups(Loaded(infos), dict.fromkeys(families, robot)).of(robot.name)


def jobs(setup, pictures, modes=None, *, prompt="go", state=None, policies=None):
    count = len(setup.cameras)
    return jobs_of(
        setup,
        policies=setup.policies if policies is None else policies,
        pictures=[pictures.get(i) for i in range(count)],
        modes=[(modes or {}).get(i, AS_TRAINED) for i in range(count)],
        prompt=prompt,
        state=setup.robot.resting_state if state is None else state,
        options=Options(),
    )


# --- one observation, several policies ----------------------------------------------------------


def test_policies_with_equal_slots_share_a_job():
    (job,) = jobs(setup_of(TABLETOP, "pi0", "pi0_fast"), ALL)
    assert job.policies == ("pi0", "pi0_fast")
    assert list(job.observation.images) == list(CAMERAS)
    assert job.observation.modes == {}


def test_one_picture_of_a_camera_reaches_each_policy_under_its_own_slot():
    setup = setup_of(DROID, "pi0", "pi0_fast")
    titles = [camera.title for camera in setup.cameras]
    wrist = titles.index("left_wrist_0_rgb / wrist_0_rgb")
    first = titles.index("base_0_rgb")
    assert sorted(titles) == sorted(
        ["base_0_rgb", "left_wrist_0_rgb / wrist_0_rgb", "right_wrist_0_rgb", "base_1_rgb"]
    )
    flow, fast = jobs(setup, {first: GREY, wrist: GREY + 1}, {titles.index("base_1_rgb"): "black"})
    assert (flow.policies, fast.policies) == (("pi0",), ("pi0_fast",))
    assert flow.observation.images["left_wrist_0_rgb"][0, 0, 0] == 129
    assert fast.observation.images["wrist_0_rgb"][0, 0, 0] == 129
    assert (flow.observation.modes, fast.observation.modes) == ({}, {"base_1_rgb": "black"})


@pytest.mark.parametrize("count", [7, 20])
def test_any_number_of_pictures_reaches_each_policy_s_own_slots(tmp_path, count):
    """A robot whose policies share its cameras unevenly, under names of their own: one lacks the
    last, the other the first two."""
    cameras = [f"camera {i}" for i in range(count)]
    flow_slots = tuple(Slot(f"flow {i}", cameras[i], True, "masked") for i in range(count - 1))
    fast_slots = tuple(Slot(f"fast {i}", cameras[i], True, "black") for i in range(2, count))
    robot = dataclasses.replace(TABLETOP, name="arm", flow_slots=flow_slots, fast_slots=fast_slots)
    infos = {family: info_of(robot, family) for family in ("pi0", "pi0_fast")}
    setups = Setups(Loaded(infos), dict.fromkeys(infos, robot))

    def lay_out():
        bar = prompt_bar.build(setups.of(), None)
        return observation.build(setups.of(), setups.most_cameras(), bar)

    _, form = built(lay_out)
    shown = observation.refreshed(setups.of(), setups.robots(), form)
    titles = [shown[title] for title in form.titles]
    assert all(f"camera {i}" in title for i, title in enumerate(titles))
    assert all(shown[column]["visible"] for column in form.columns)
    values = [part.value for part in form.inputs]
    values[2], values[3] = "go", {"values": list(robot.resting_state)}
    first = form.inputs.index(form.pictures[0])
    for i in range(count):
        path = tmp_path / f"{i}.png"
        Image.fromarray(GREY + i).save(path)
        values[first + i] = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    flow, fast = observation.request(setups, values).jobs(setups)
    levels = [
        {slot: picture[0, 0, 0] - 128 for slot, picture in job.observation.images.items()}
        for job in (flow, fast)
    ]
    assert levels[0] == {f"flow {i}": i for i in range(count - 1)}
    assert levels[1] == {f"fast {i}": i for i in range(2, count)}


def test_velocities_and_positions_are_told_apart_in_words():
    infos = {name: info_of(DROID, "pi0") for name in ("fast", "slow")}
    robots = {"fast": DROID, "slow": DROID_JOINT_POSITION}
    both = observation.robot_notes(Setups(Loaded(infos), robots).of())
    assert "<p class='fine'>fast: The actions are joint velocities, no positions" in both
    assert "<p class='fine'>slow: The actions are joint positions, no velocities" in both
    alone = observation.robot_notes(setup_of(DROID, "pi0"))
    assert alone.startswith("<p class='fine'>The actions are joint velocities, no positions")
    assert observation.robot_notes(setup_of(TABLETOP, "pi0")) == ""


def test_a_large_photo_is_taken_with_a_word(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr("gradio.Info", said.append)
    for width in (3000, 6000):
        Image.new("RGB", (width, 4000)).save(tmp_path / "photo.jpg")
        Handlers.check_picture(None, {"path": str(tmp_path / "photo.jpg")})
    assert said == [
        "This photo of 6000 x 4000 pixels is read at 3000 x 2000; the models see 224 x 224."
    ]


def test_page_can_be_used_before_policies_are_loaded_where_slots_are_alike():
    setups = Setups(Loaded({}), {"one": TABLETOP, "two": TABLETOP, "three": DROID})
    assert setups.robots() == [TABLETOP, DROID]
    setup = setups.of("tabletop")
    assert setup.policies == ("one", "two")
    (job,) = jobs(setup, ALL)
    assert job.policies == ("one", "two")
    with pytest.raises(ValueError, match="still being loaded"):
        jobs(setups.of("droid"), {0: GREY, 1: GREY})


def test_a_default_prompt_is_told_where_nothing_is_said():
    """To each policy its own; what is said holds for all."""
    setup = setup_of(ALOHA, "pi0", "pi05")
    towel = dataclasses.replace(setup.infos["pi0"], default_prompt="fold the towel")
    setup = dataclasses.replace(setup, infos=setup.infos | {"pi0": towel})
    prompts = {job.policies: job.observation.prompt for job in jobs(setup, {0: GREY}, prompt=" ")}
    assert prompts == {("pi0",): "fold the towel", ("pi05",): " "}
    (job,) = jobs(setup, {0: GREY}, prompt="open it")
    assert (job.policies, job.observation.prompt) == (("pi0", "pi05"), "open it")
    with pytest.raises(ValueError, match="still being loaded"):
        jobs(dataclasses.replace(setup, infos={}), {0: GREY}, prompt="")


def test_slot_that_is_masked_or_black_carries_no_picture():
    setup = setup_of(TABLETOP, "pi0")
    (job,) = jobs(setup, {0: GREY, 1: GREY, 2: GREY}, {1: "masked", 2: "black"})
    assert list(job.observation.images) == ["base_0_rgb"]
    assert job.observation.modes == {"left_wrist_0_rgb": "masked", "right_wrist_0_rgb": "black"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": {}}, "base_0_rgb needs a picture"),
        ({"pictures": {0: GREY}, "modes": {1: "filled"}}, "left_wrist_0_rgb needs a picture"),
        ({"modes": {1: "<b>"}}, "filled, masked or black"),
        ({"policies": []}, "choose at least one policy"),
        ({"policies": ["other"]}, "no loaded policy is called other"),
        ({"state": [0.0] * 13}, "14 values"),
        ({"state": [0.0] * 15}, "14 values"),
        ({"state": ["left"] + [0.0] * 13}, "left waist must be a number, 'left' came"),
        ({"state": [0.0] * 5 + [float("nan")] + [0.0] * 8}, "left wrist rotate cannot be nan"),
        ({"state": [float("-inf")] + [0.0] * 13}, "left waist cannot be -inf"),
        ({"state": [None] + [0.0] * 13}, "left waist must be a number"),
        ({"state": [0.0] * 13 + ["1e30"]}, "right gripper cannot be 1e"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_queue(change, message):
    setup = setup_of(TABLETOP, "pi0")
    with pytest.raises(ValueError, match=message):
        jobs(setup, **{"pictures": ALL, **change})


def test_unknown_robot_is_refused():
    setups = Setups(Loaded({"pi0": info_of(DROID, "pi0")}), {"pi0": DROID})
    with pytest.raises(ValueError, match="no policy here drives 'aloha'"):
        setups.of("aloha")


def test_table_follows_the_policy_s_own_conventions():
    """Two policies of one robot may differ in them."""
    infos = {name: info_of(ALOHA, "pi0") for name in ("ours", "theirs")}
    plain = dataclasses.replace(ALOHA, adapt_to_pi=False)
    setup = Setups(Loaded(infos), {"ours": ALOHA, "theirs": plain}).of("aloha")
    ours, theirs = judged(setup, [0.5] * 14)
    assert theirs["values"][1] == pytest.approx((0.5 - 0.1) / 0.5, abs=1e-4)
    assert ours["values"][1] == pytest.approx((-0.5 - 0.1) / 0.5, abs=1e-4)


@given(st.lists(st.floats(-3, 3), min_size=14, max_size=14))
def test_table_shows_what_the_model_gets(state):
    """ALOHA's state is converted before it is normalised; the table must not forget that."""
    setup = setup_of(ALOHA, "pi0", "pi0_fast")
    columns = judged(setup, state)
    raw = np.array(state)
    for column, info in zip(columns, setup.infos.values(), strict=True):
        given_images = {"base_0_rgb": GREY}
        observation = dataclasses.replace(
            jobs(setup, {0: GREY}, state=state)[0].observation, images=given_images
        )
        model = conversion.to_model(
            ALOHA, info.family, observation, info.state_stats, info.normalisation, 8
        )
        np.testing.assert_allclose(column["values"], model.state)
        found = [outside for _, _, outside in column["ranges"]]
        converted = ALOHA.state_to_model(raw)
        assert found == [not -1 <= value <= 1 for value in converted]


def test_table_judges_no_state_that_cannot_be():
    setup = setup_of(TABLETOP, "pi0")
    assert judged(setup, ["x"] * 14) == []
    (column,) = judged(setup, [0.0] * 14)
    stats = setup.infos["pi0"].state_stats
    np.testing.assert_allclose(column["values"], normalise(np.zeros(14), stats, "z-score"))


def test_every_example_can_be_run():
    setup = setup_of(TABLETOP, "pi0", "pi0_fast")
    here = examples(TABLETOP)
    assert len(here) >= 3
    for example in here:
        seen = dict(enumerate(by_slot(example.images).values()))
        (job,) = jobs(setup, seen, state=example.state)
        assert job.observation.images["base_0_rgb"].shape == (224, 224, 3)
        assert example.prompt


# --- where a run stands -------------------------------------------------------------------------


def progress():
    return Progress(setup_of(TABLETOP, "pi0", "pi0_fast"), ("pi0", "pi0_fast"))


def card(notes, name):
    return next(card for card in notes.payload()["policies"] if card["name"] == name)


def test_each_card_says_where_its_policy_runs():
    setup = setup_of(TABLETOP, "pi0", "pi0_fast")
    away = Computation("NVIDIA H100 80GB HBM3", "bfloat16", "default")
    fast = dataclasses.replace(setup.infos["pi0_fast"], computation=away)
    infos = {"pi0": setup.infos["pi0"], "pi0_fast": fast}
    notes = Progress(dataclasses.replace(setup, infos=infos), tuple(infos))
    assert "runs on the CPU" in card(notes, "pi0")["about"]
    assert "runs on NVIDIA H100" in card(notes, "pi0_fast")["about"]


def test_a_run_is_told_from_its_events():
    notes = progress()
    notes.take(Queued(3, 7.6))
    assert notes.payload()["say"] == "3 runs are before yours, about 8 s."
    notes.take(Queued(1, None))
    assert notes.payload()["say"] == "One run is before yours."
    notes.take(Phase("pi0", "downloading (0.3 of 6.5 GB)", 60.0))
    assert notes.payload()["say"].startswith("Getting ready: downloading (0.3 of 6.5 GB) pi0.")
    notes.take(Phase("pi0", "compiling", 60.0))
    assert notes.payload()["say"] == "Getting ready: compiling pi0. One run is before yours."
    notes.take(Queued(0, 0.0))
    notes.take(Phase("pi0", "compiling prefix", 60.0))
    assert notes.payload()["say"] == "pi0 compiling prefix."
    notes.take(Step("pi0", 3, 10, 0.7, np.zeros((50, 14))))
    assert card(notes, "pi0")["share"] == pytest.approx(0.3)
    assert "t 0.70 · τ 0.30" in card(notes, "pi0")["line"]
    assert notes.live()["pi0"] is not None
    assert card(notes, "pi0_fast")["state"] == "waiting"
    notes.take(Done("pi0", pi0_trace()))
    assert notes.live()["pi0"] is None
    token = DecodedToken(5, "<b>", 0.5, ())
    notes.take(TokenEvent("pi0_fast", 0, 64, token, None))
    assert "token 1 of at most 64" in card(notes, "pi0_fast")["line"]
    notes.take(Done("pi0_fast", fast_trace()))
    notes.take(Finished())
    assert notes.payload()["say"] == "Done."
    assert set(notes.traces) == {"pi0", "pi0_fast"}
    assert [stage for stage, _ in card(notes, "pi0")["stages"]] == [
        "preprocessing",
        "vision",
        "prefix",
        "denoising",
    ]


def test_an_answer_from_the_cache_says_so():
    setup = setup_of(TABLETOP, "pi0")
    for cached in (True, False):
        notes = Progress(setup, ["pi0"], cached=cached)
        notes.take(Done("pi0", pi0_trace()))
        assert card(notes, "pi0")["cached"] == cached


def test_policies_that_cannot_be_opened_are_not_said_to_be_loading():
    robots = {"mine": TABLETOP}
    notes = Progress(Setups(Loaded({}), robots).of("tabletop"))
    assert card(notes, "mine")["policy"]["badge"] == "loading"
    notes.fail("mine holds NaN")
    assert (notes.payload()["say"], notes.payload()["state"]) == ("mine holds NaN", "down")
    assert card(notes, "mine")["policy"]["badge"] == "not opened"


def test_one_policy_s_failure_leaves_the_other_s_answer():
    notes = progress()
    notes.take(Failed("pi0", "actions are not finite", "job1"))
    notes.take(Done("pi0_fast", fast_trace()))
    notes.take(Finished())
    assert list(notes.traces) == ["pi0_fast"]
    assert notes.failures == ["pi0: actions are not finite"]
    assert card(notes, "pi0")["failure"] == "actions are not finite"
    assert notes.payload()["say"] == "Not every policy could answer."


def test_a_stopped_run_keeps_what_was_finished():
    notes = progress()
    notes.take(Done("pi0", pi0_trace()))
    notes.take(Phase("pi0_fast", "prefix", 60.0))
    notes.stop()
    assert [card(notes, name)["state"] for name in ("pi0", "pi0_fast")] == ["done", "stopped"]
    assert list(notes.traces) == ["pi0"]
    assert "Stopped" in notes.payload()["say"]


def test_a_lost_job_says_so():
    notes = progress()
    notes.take(Failed(None, "The worker stopped in the middle of this job.", "job1"))
    assert notes.payload()["say"] == "The worker stopped in the middle of this job."
    assert card(notes, "pi0")["state"] == "failed"


def test_badges_stand_on_every_card_whatever_happens():
    notes = progress()
    for event in (Queued(1, None), Failed("pi0", "no", "1"), Done("pi0_fast", fast_trace())):
        notes.take(event)
        cards = notes.payload()["policies"]
        assert [card["policy"]["badge"] for card in cards] == ["untrained weights"] * 2


def test_who_never_says_goodbye_is_forgotten_in_the_end():
    runs = Runs(most=2)
    for visitor in ("first", "second", "first", "third"):
        runs.begin(visitor)
    assert [runs.begun(visitor) for visitor in ("first", "second", "third")] == [True, False, True]
    runs.forget("first")
    assert not runs.begun("first")


class Streamed:
    """A job's events; after it was closed no more come, as with the worker's own."""

    def __init__(self, *events):
        self.events, self.closed = list(events), False

    def __iter__(self):
        while self.events and not self.closed:
            yield self.events.pop(0)

    def close(self):
        self.closed = True


def test_a_run_ends_as_what_ended_it_says():
    runs, taken = Runs(), []
    whole = runs.follow("me", [Streamed("a", "b")], taken.append, every_s=0.0)
    assert len(list(whole)) == 2
    assert (whole.outcome, taken) == ("finished", ["a", "b"])

    stopped = runs.follow("me", [Streamed("c", "d")], taken.append, every_s=0.0)
    for _ in stopped:
        runs.stop("me")
    assert (stopped.outcome, taken[2:]) == ("stopped", ["c"])


def test_what_is_urgent_waits_for_no_clock():
    runs, taken = Runs(), []
    events = Streamed("a", "b", "answer", "c", "d")
    following = runs.follow("me", [events], taken.append, 1e6, lambda event: event == "answer")
    assert [list(taken) for _ in following] == [["a"], ["a", "b", "answer"]]
    assert taken == ["a", "b", "answer", "c", "d"]


def test_two_runs_that_start_at_once_are_never_asked_for_at_once():
    """However many calls of a visitor come together, each is asked for after the one before was
    ended, and only the last goes on."""
    runs, asked, followed = Runs(), [], []
    together = threading.Barrier(8)

    def submit():
        assert all(stream.closed for stream in asked)
        asked.append(Streamed("a", "b"))
        return asked[-1:]

    def visit():
        together.wait()
        streams = runs.start("me", submit)
        together.wait()
        following = runs.follow("me", streams, lambda event: None, every_s=0.0)
        list(following)
        followed.append((streams[0], following.outcome))

    with ThreadPoolExecutor(8) as threads:
        for visited in [threads.submit(visit) for _ in range(8)]:
            visited.result()
    outcomes = [outcome for stream, outcome in followed if stream is not asked[-1]]
    assert outcomes == ["replaced"] * 7
    assert (asked[-1], "finished") in followed
    assert runs.current("me") is None


def test_what_is_made_ahead_gives_way_to_who_waits():
    waits = iter([False, False, True, False, False, False, False, False])
    worker = SimpleNamespace(
        status=lambda: SimpleNamespace(running=False, waiting=int(next(waits)))
    )
    asked = []

    @contextlib.contextmanager
    def ask():
        stream = Streamed(Queued(0, None), "compiling prefix", "compiling denoise", "end")
        asked.append(stream)
        yield stream
        stream.close()

    found = example_cache.aside(worker, ask)
    assert found[1:] == ["compiling prefix", "compiling denoise", "end"]
    assert [len(stream.events) for stream in asked] == [1, 0]


def test_never_two_runs_of_a_visitor_are_in_the_queue():
    """The one before is closed before the newer one is asked for; another visitor's goes on."""
    runs, taken = Runs(), []
    mine, theirs = Streamed("a", "b"), Streamed("x", "y")
    before = runs.follow("me", [mine], taken.append, every_s=0.0)
    other = runs.follow("you", [theirs], taken.append, every_s=0.0)
    iterated, others = iter(before), iter(other)
    next(iterated)
    next(others)
    runs.replace("me")
    assert (mine.closed, theirs.closed) == (True, False)
    newer = runs.follow("me", [Streamed("c")], taken.append, every_s=0.0)
    list(newer)
    assert list(iterated) == []
    assert (before.outcome, newer.outcome) == ("replaced", "finished")
    assert len(list(others)) == 1
    assert other.outcome == "finished"


def test_a_run_that_is_replaced_before_its_first_event_changes_nothing(monkeypatch):
    """Of a generator that yields nothing, Gradio would empty the whole page."""
    monkeypatch.setattr("playground.ui.handlers.ExampleCache", lambda *_: None)
    setups = Setups(Loaded({"pi0": info_of(TABLETOP, "pi0")}), {"pi0": TABLETOP})
    status, check = SimpleNamespace(loading=""), lambda owner: None
    worker = SimpleNamespace(status=lambda: status, check=check)
    _, handlers = built(
        lambda: Handlers(setups, worker, Results(), SimpleNamespace(), None, gr.HTML(), None)
    )

    class Replaced(Streamed):
        def __iter__(self):
            handlers.runs.replace("me")
            return iter(())

    job = SimpleNamespace(policies=["pi0"])
    asked = SimpleNamespace(robot=TABLETOP.name, jobs=lambda *_, **__: [job])
    monkeypatch.setattr(observation, "request", lambda *_: asked)
    monkeypatch.setattr("playground.ui.runs.submit", lambda *_: [Replaced()])
    found = list(handlers.run(SimpleNamespace(session_hash="me"), "kept", False, None))
    assert found == [{handlers.strip: gr.skip()}]


def test_who_has_too_much_waiting_is_turned_away_before_a_picture_is_read(monkeypatch):
    read = []
    monkeypatch.setattr(decoding, "picture", read.append)

    def check(owner):
        raise Busy(3)

    setups = Setups(Loaded({"pi0": info_of(TABLETOP, "pi0")}), {"pi0": TABLETOP})
    called = endpoint.spelled_out(
        lambda request: request.jobs(setups), ("prompt", "images"), SimpleNamespace(check=check)
    )
    file = {"path": "x.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(gr.Error, match="try again in 3 s"):
        called("go", in_all(file))
    assert read == []


# --- what is kept -------------------------------------------------------------------------------


def test_results_are_found_by_their_key_alone():
    kept = Results()
    keys = [kept.keep({"pi0": pi0_trace(seed=seed)}) for seed in range(3)]
    assert len(set(keys)) == 3
    assert all(len(key) >= 20 for key in keys)
    assert kept.find(keys[1])["pi0"].actions is not None
    assert kept.find("guess") == {} == kept.find(None)
    kept.drop(keys[1])
    assert kept.find(keys[1]) == {}


def test_results_are_bounded_by_number_size_and_age():
    traces = {"pi0": pi0_trace()}
    few = Results(runs=2)
    first, *later = [few.keep(traces) for _ in range(3)]
    assert few.find(first) == {}
    assert all(few.find(key) for key in later)
    small = Results(size=1)
    first, last = small.keep(traces), small.keep(traces)
    assert small.find(first) == {}
    assert small.find(last)
    brief = Results(age_s=0.0)
    assert brief.find(brief.keep(traces)) == {}


def test_nobody_s_results_push_out_those_of_who_keeps_less():
    """Neither by their number nor by their size, until what is kept is spread evenly."""
    traces = {"pi0": pi0_trace()}
    size = results.Run(traces, (), "").size
    for bounds in ({"runs": 8}, {"size": 8 * size}):
        kept = Results(**bounds)
        one = kept.keep(traces, owner="one")
        two = [kept.keep(traces, owner="two") for _ in range(2)]
        many = [kept.keep(traces, owner="many") for _ in range(40)]
        assert all(map(kept.find, [one, *two]))
        assert [key for key in many if kept.find(key)] == many[-5:]
        others = [kept.keep(traces, owner=f"other {i}") for i in range(4)]
        assert all(map(kept.find, [one, *others]))
        assert sum(bool(kept.find(key)) for key in many) < 3


def test_results_are_counted_as_what_they_cost():
    """The values of Python beside the arrays, and pictures, each once."""
    trace = fast_trace(count=200)
    picture = np.zeros((10, 10, 3), np.uint8)
    bare = results.Run({"fast": trace}, (), "").size
    asked = [
        Job(
            (name,),
            RawObservation("tabletop", in_all(given), {}, "go", np.zeros(14)),
            Options(),
        )
        for name, given in (("pi0", picture), ("fast", picture.copy()))
    ]
    assert results.Run({"fast": trace}, asked, "").size == bare + 300
    tree, arrays = codec.pack(trace)
    text = json.dumps(tree)
    tracemalloc.start()
    read = codec.unpack(json.loads(text), arrays)
    cost, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.tokens == trace.tokens
    assert 0.7 * cost < bare - sum(array.nbytes for array in arrays.values()) < 3 * cost


def test_a_trace_is_saved_with_its_badge_in_name_and_content():
    kept = Results()
    app = FastAPI()
    app.include_router(results.routes(kept))
    client = TestClient(app)
    trace = pi0_trace()
    link = results.link(kept.keep({"pi0_test": trace}), "pi0_test")
    answer = client.get(f"/{link}")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    assert "pi0_test-untrained-weights.npz" in answer.headers["content-disposition"]
    saved = load(io.BytesIO(answer.content))
    np.testing.assert_array_equal(saved.actions, trace.actions)
    assert saved.info.badge == "untrained weights"
    assert client.get("/trace/guess/pi0_test").status_code == 404
    assert client.get(f"{link}x").status_code == 404
