"""The simulated table: geometry against mujoco, the expert in the closed loop, the pictures."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from playground.assets import ASSETS
from playground.robots.builtin import TABLETOP
from playground.robots.examples import EXAMPLES
from playground.serving.events import Done, Phase, Result
from playground.tabletop import expert, kinematics
from playground.tabletop import render as renderer
from playground.tabletop.examples import draw
from playground.tabletop.job import RolloutRequest
from playground.tabletop.job import rollout as rollout_job
from playground.tabletop.measured import success
from playground.tabletop.outcome import Outcome
from playground.tabletop.render import render, render_cameras
from playground.tabletop.rollout import UNJUDGED_S, ask_expert, observe, rollout
from playground.tabletop.scene import (
    CAMERAS,
    COLOURS,
    HOME,
    MIN_APART,
    RGBA,
    WORKSPACE,
    Scene,
    Table,
    build_model,
    nearer_arm,
    random_scene,
)
from playground.tabletop.tasks import (
    HELD_OUT_WORDINGS,
    TWO_CUBES,
    VERBS,
    WORDINGS,
    Referee,
    Task,
    parse,
    placement,
    requests,
)
from playground.trace import Options
from tests.support import traces

ARMS = kinematics.ARMS
SIZE = 112


def part(state: np.ndarray, arm: str) -> np.ndarray:
    start = 7 * ARMS.index(arm)
    return state[start : start + 7]


def scene_with(cubes: dict[str, tuple[float, float]]) -> Scene:
    return Scene({colour: (x, y, 0.0) for colour, (x, y) in cubes.items()}, tuple(HOME))


SPREAD = {"red": (-0.1, 0.45), "green": (0.0, 0.58), "blue": (0.12, 0.48)}


def test_the_robot_on_the_page_has_the_cameras_of_the_table_there():
    for family in ("pi0", "pi0_fast"):
        assert list(TABLETOP.cameras(family)) == list(CAMERAS)


def test_scenes_are_what_the_figures_assume():
    scenes = [random_scene(seed) for seed in range(300)]
    places = np.array([[scene.cubes[c][:2] for c in COLOURS] for scene in scenes])
    (left, right), (near, far) = WORKSPACE
    assert right - left >= 0.30
    assert far - near >= 0.20
    assert (places >= [left, near]).all()
    assert (places <= [right, far]).all()
    gaps = np.linalg.norm(places - np.roll(places, 1, axis=1), axis=-1)
    assert gaps.min() >= MIN_APART >= 0.08
    # The whole of it is used, evenly: quarters of the width hold a quarter each.
    quarters = np.histogram(places[..., 0], bins=4, range=(left, right))[0] / places[..., 0].size
    assert np.abs(quarters - 0.25).max() < 0.06


def test_a_seed_is_a_scene():
    assert random_scene(5) == random_scene(5)
    assert random_scene(5) != random_scene(6)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_forward_kinematics_is_mujocos(seed):
    rng = np.random.default_rng(seed)
    state = HOME + rng.uniform(-0.7, 0.7, 14)
    table = Table(scene_with(SPREAD))
    table.set_state(state)
    for arm in ARMS:
        ours = kinematics.tip_positions(arm, part(state, arm)[:6])
        np.testing.assert_allclose(ours, table.tip(arm), atol=5e-6)


@settings(max_examples=60)
@given(x=st.floats(-0.16, 0.16), y=st.floats(0.38, 0.62), z=st.floats(0.01, 0.15))
def test_the_nearer_arm_reaches_all_over_the_workspace_within_its_limits(x, y, z):
    model, arm, goal = build_model(), nearer_arm(x), np.array([x, y, z])
    joints = kinematics.solve(arm, goal, expert.PITCH)
    np.testing.assert_allclose(kinematics.tip_positions(arm, joints), goal, atol=1e-9)
    for name, value in zip(
        ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
        joints,
        strict=True,
    ):
        low, high = model.joint(f"vx300s_{arm}/{name}").range
        assert low <= value <= high, name


# Of one arm, by Trossen Robotics (interbotix_ros_manipulators, vx300s.urdf.xacro): limits in rad,
# of the fingers in m, and masses in kg.
LIMITS = {
    "waist": (-3.14158, 3.14158),
    "shoulder": (-1.85005, 1.25664),
    "elbow": (-1.76278, 1.6057),
    "forearm_roll": (-3.14158, 3.14158),
    "wrist_angle": (-1.8675, 2.23402),
    "wrist_rotate": (-3.14158, 3.14158),
    "left_finger": (0.021, 0.057),
    "right_finger": (-0.057, -0.021),
}
MASSES = {
    "shoulder_link": 0.798614,
    "upper_arm_link": 0.792592,
    "upper_forearm_link": 0.322228,
    "lower_forearm_link": 0.414823,
    "wrist_link": 0.115395,
    "gripper_link": 0.251652,
    "left_finger_link": 0.034796,
    "right_finger_link": 0.034796,
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_arms_are_the_published_ones(arm):
    model = build_model()
    for name, limits in LIMITS.items():
        found = model.joint(f"vx300s_{arm}/{name}").range
        np.testing.assert_allclose(found, limits, err_msg=name)
    for name, mass in MASSES.items():
        assert model.body(f"vx300s_{arm}/{name}").mass == pytest.approx(mass, abs=1e-6), name


def test_out_of_reach_is_the_nearest_pose_not_nan():
    joints = kinematics.solve("left", np.array([2.0, 0.5, 0.1]), 1.4)
    assert np.isfinite(joints).all()


def test_projection_is_where_the_picture_shows_the_cubes():
    table = Table(scene_with(SPREAD))
    image = render(table, SIZE).astype(float) / 255
    for colour in COLOURS:
        # Its brightest face: the pixels whose hue is the cube's.
        share = image / image.sum(-1, keepdims=True)
        wanted = np.array(RGBA[colour]) / sum(RGBA[colour])
        rows, columns = np.nonzero(np.abs(share - wanted).max(-1) < 0.12)
        seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        expected = kinematics.project(table.cube(colour), SIZE)
        assert np.linalg.norm(seen - expected) < 2.0, colour


def test_the_camera_sees_the_whole_workspace():
    (left, right), (near, far) = WORKSPACE
    corners = np.array([(x, y, z) for x in (left, right) for y in (near, far) for z in (0.0, 0.15)])
    pixels = kinematics.project(corners, SIZE)
    assert (pixels > 0).all()
    assert (pixels < SIZE).all()


def test_mujocos_own_camera_agrees_with_the_projection():
    model = build_model()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = model.camera("table").id
    np.testing.assert_allclose(data.cam_xpos[camera], kinematics.CAMERA_POSITION, atol=1e-9)
    np.testing.assert_allclose(
        data.cam_xmat[camera].reshape(3, 3), kinematics.camera_rotation(), atol=1e-7
    )


def test_pictures_repeat_and_show_changes():
    table = Table(scene_with(SPREAD))
    first = render(table, SIZE)
    assert first.dtype == np.uint8
    assert first.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(first, render(table, SIZE))
    moved = Table(scene_with(SPREAD | {"red": (0.02, 0.42)}))
    assert (np.abs(first.astype(int) - render(moved, SIZE)).max(-1) > 40).sum() > 60


def test_the_shipped_policies_table_looks_as_when_they_were_trained(tmp_path):
    """The examples as the command draws them now; pictures by their pixels."""
    draw(tmp_path)
    shown = {path.name: path for path in EXAMPLES.iterdir()}
    drawn = {path.name: path for path in tmp_path.iterdir()}
    assert shown.keys() == drawn.keys()
    for name, path in drawn.items():
        if name.endswith(".json"):
            assert path.read_text() == shown[name].read_text()
        else:
            np.testing.assert_array_equal(Image.open(path), Image.open(shown[name]))


@pytest.mark.parametrize("camera", CAMERAS.values())
def test_where_no_ray_was_cast_there_is_nothing_to_see(camera, monkeypatch):
    for seed in range(4):
        table = Table(random_scene(seed))
        for action in ask_expert(table, Task("pick", COLOURS[seed % 3], "{}"))[: 14 * seed]:
            table.step(action)
        image = render(table, 64, camera)
        with monkeypatch.context() as everywhere:
            everywhere.setattr(renderer, "marked", lambda low, high, size: np.ones(size**2, bool))
            np.testing.assert_array_equal(image, render(table, 64, camera))


def test_the_planes_are_where_mujoco_has_them():
    table, rng = Table(scene_with(SPREAD)), np.random.default_rng(3)
    origin, rays = np.array([0.05, 0.45, 0.5]), rng.standard_normal((300, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    found = renderer.planes_along(origin, rays.T)
    only_planes = np.array([0, 1, 0, 0, 0, 0], np.uint8)
    geom = np.zeros(1, np.int32)
    for ray, distance in zip(rays, found.distances, strict=True):
        other = mujoco.mj_ray(table.model, table.data, origin, ray, only_planes, 1, -1, geom)
        assert distance == pytest.approx(other if other >= 0 else np.inf, abs=1e-9)


@pytest.mark.parametrize("arm", ARMS)
def test_a_gripper_sees_what_lies_between_its_fingers(arm):
    place = (-0.1 if arm == "left" else 0.1, 0.48)
    table = Table(scene_with({"red": place, "green": (0.0, 0.6), "blue": (0.0, 0.4)}))
    state = HOME.copy()
    start = 7 * ARMS.index(arm)
    state[start : start + 6] = kinematics.solve(arm, np.array([*place, 0.04]), expert.PITCH)
    table.set_state(state)
    images = render_cameras(table)
    middle = images[f"{arm}_wrist_0_rgb"][30:80, 35:77].astype(int)
    red = (middle[..., 0] > 2 * middle[..., 1]) & (middle[..., 0] > 2 * middle[..., 2])
    assert red.mean() > 0.2
    assert {image.shape[0] for image in images.values()} == {112, 224}


def test_rendering_needs_no_graphics_library():
    code = (
        "import sys\n"
        "from playground.tabletop.scene import Table, random_scene\n"
        "from playground.tabletop.render import render\n"
        "assert render(Table(random_scene(0)), 32).std() > 5\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('OpenGL', 'dm_control')]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_state_is_what_was_commanded_once_the_arms_have_settled():
    table = Table(scene_with(SPREAD))
    target = HOME.copy()
    target[[0, 1, 6, 9, 13]] = (0.2, -0.8, 0.9, 1.1, 0.2)
    for _ in range(100):
        table.step(target)
    np.testing.assert_allclose(table.state(), target, atol=0.01)


@pytest.mark.parametrize("verb", VERBS)
def test_the_expert_succeeds_in_the_closed_loop(verb):
    for seed in range(6):
        table = Table(random_scene(1000 + seed))
        other = COLOURS[(seed + 1 + seed // 3) % 3] if verb in TWO_CUBES else ""
        task = Task(verb, COLOURS[seed % 3], WORDINGS[verb][0], other)
        steps = 0
        referee = Referee(table, task)
        outcome = None
        while outcome is None:
            for action in ask_expert(table, task)[:25]:
                table.step(action)
                steps += 1
                outcome = outcome or referee.watch(table)
        assert outcome.success, (seed, outcome)


def test_the_expert_arrives_within_a_chunk():
    for seed in range(20):
        table = Table(random_scene(2000 + seed))
        for colour in COLOURS:
            cube = table.cube(colour)
            chunk = ask_expert(table, Task("touch", colour, "{}"))
            arm = nearer_arm(cube[0])
            assert kinematics.moving_arm(table.state(), chunk) == arm
            tip = kinematics.tip_paths(chunk)[arm][-1]
            assert np.linalg.norm(tip[:2] - cube[:2]) < 0.005
            assert abs(tip[2] - cube[2]) < 0.03


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), pick=st.booleans())
def test_the_experts_chunks_are_smooth_and_begin_where_the_arms_are(seed, pick):
    scene = random_scene(seed)
    cube = np.array([*scene.cubes["red"][:2], 0.02])
    chunk = expert.chunk(np.array(scene.state), cube, np.array(-1), np.array(pick))
    steps = np.diff(np.concatenate([[scene.state], chunk]), axis=0)
    joints = np.delete(steps, [6, 13], axis=1)
    assert np.abs(joints).max() < 0.16  # rad in 20 ms
    assert np.abs(joints[0]).max() < 0.01


def test_the_expert_works_on_batches_as_on_single_states():
    states = np.array([random_scene(seed).state for seed in range(4)])
    cubes = np.array([[*random_scene(seed).cubes["green"][:2], 0.02] for seed in range(4)])
    holders, picks = np.array([-1, 0, 1, -1]), np.array([True, True, True, False])
    places = np.array([[0.05, 0.5, 0.06], [np.nan] * 3, [0.05, 0.5, 0.06], [np.nan] * 3])
    placed = np.array([True, False, False, False])
    together = expert.chunk(states, cubes, holders, picks, places, placed)
    for i in range(4):
        put = (places[i], placed[i]) if i in (0, 2) else ()
        alone = expert.chunk(states[i], cubes[i], holders[i], picks[i], *put)
        np.testing.assert_allclose(together[i], alone, atol=1e-12)


def test_touching_the_wrong_cube_first_is_a_failure():
    table = Table(scene_with(SPREAD))
    referee = Referee(table, Task("touch", "blue", "touch the {} cube"))
    for action in np.concatenate([ask_expert(table, Task("touch", "red", "{}"))] * 2):
        table.step(action)
        if outcome := referee.watch(table):
            break
    assert not outcome.success
    assert "red" in outcome.reason


@pytest.mark.parametrize(
    ("up_cm", "held", "steps", "red_moved_cm", "verdict"),
    [
        (5.1, True, 25, 0, True),
        (5.1, True, 24, 0, None),  # not yet for 0.5 s
        (4.9, True, 499, 0, None),
        (4.9, True, 500, 0, False),  # after 10 s
        (5.1, False, 100, 0, None),
        (5.1, True, 25, 1.9, True),
        (5.1, True, 25, 2.1, False),
    ],
)
def test_a_cube_is_picked_up_when_it_is_held_5_cm_up_for_half_a_second(
    up_cm, held, steps, red_moved_cm, verdict
):
    places = {colour: np.array([x, y, 0.02]) for colour, (x, y) in SPREAD.items()}
    touching = {"red": (), "green": ("left",) if held else (), "blue": ()}
    seen = SimpleNamespace(cube=lambda c: places[c].copy(), touching=lambda: touching)
    referee = Referee(seen, Task("pick", "green", "pick up the {} cube"))
    places["green"][2] += 0.01 * up_cm
    places["red"][0] += 0.01 * red_moved_cm
    for _ in range(steps):
        outcome = referee.watch(seen)
        if outcome is not None:
            break
    assert verdict == (outcome and outcome.success)


@pytest.mark.parametrize(
    ("verb", "red", "touched", "steps", "verdict"),
    [
        ("put_on", (0.12, 0.48, 0.06), False, 25, True),
        ("put_on", (0.12, 0.48, 0.06), False, 24, None),
        ("put_on", (0.12, 0.48, 0.06), True, 749, None),  # not released
        ("put_on", (0.12, 0.48, 0.06), True, 750, False),  # after 15 s
        ("put_on", (0.135, 0.48, 0.06), False, 25, True),
        ("put_on", (0.145, 0.48, 0.06), False, 100, None),  # 2.5 cm off
        ("put_on", (0.12, 0.48, 0.09), False, 100, None),  # in the air
        ("put_on", (0.06, 0.48, 0.02), False, 100, None),
        ("put_next", (0.06, 0.48, 0.02), False, 25, True),
        ("put_next", (0.12, 0.555, 0.02), False, 25, True),
        ("put_next", (0.12, 0.565, 0.02), False, 100, None),  # 8.5 cm apart
        ("put_next", (0.12, 0.48, 0.06), False, 100, None),
    ],
)
def test_a_cube_is_put_when_it_stands_in_its_place_released(verb, red, touched, steps, verdict):
    places = {colour: np.array([x, y, 0.02]) for colour, (x, y) in SPREAD.items()}
    touching = {"red": ("left",) if touched else (), "green": (), "blue": ()}
    seen = SimpleNamespace(cube=lambda c: places[c].copy(), touching=lambda: touching)
    referee = Referee(seen, Task(verb, "red", "{} {}", "blue"))
    places["red"] = np.array(red)
    for _ in range(steps):
        outcome = referee.watch(seen)
        if outcome is not None:
            break
    assert verdict == (outcome and outcome.success)


def test_moving_what_a_cube_is_put_on_is_a_failure():
    places = {colour: np.array([x, y, 0.02]) for colour, (x, y) in SPREAD.items()}
    seen = SimpleNamespace(
        cube=lambda c: places[c].copy(), touching=lambda: dict.fromkeys(COLOURS, ())
    )
    referee = Referee(seen, Task("put_on", "red", "{} {}", "blue"))
    places["blue"][0] += 0.021
    outcome = referee.watch(seen)
    assert not outcome.success
    assert "blue" in outcome.reason


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), on=st.booleans())
def test_the_place_for_a_cube_is_free_and_counts_as_right(seed, on):
    scene = random_scene(seed)
    cube, other, third = (np.array([*scene.cubes[c][:2], 0.02]) for c in COLOURS)
    place, placed = placement(np.array(on), cube, other, third)
    assert not placed  # cubes start 10 cm apart
    assert placement(np.array(on), place, other, third)[1]
    assert np.linalg.norm((place - third)[:2]) > 0.05  # two cubes side by side are 4 cm apart


def test_doing_nothing_runs_out_of_time():
    table = Table(scene_with(SPREAD))
    task = Task("touch", "red", "touch the {} cube")
    frames = list(rollout(table, task.prompt, lambda raw: np.tile(raw.state, (50, 1)), every=None))
    assert not frames[-1].outcome.success
    assert frames[-1].time_s == pytest.approx(6.0)


def test_a_rollout_looks_again_after_as_many_steps_as_it_was_told():
    table = Table(scene_with(SPREAD))
    task = Task("touch", "red", "touch the {} cube")
    looks = []

    def infer(raw):
        looks.append(raw)
        return ask_expert(table, task)

    frames = list(rollout(table, task.prompt, infer, execute=20, every=10))
    assert frames[-1].outcome.success
    times = [frame.time_s for frame in frames if frame.executed == 0]
    np.testing.assert_allclose(times, 0.4 * np.arange(len(times)))
    assert len(looks) == len(times) >= 2
    assert all(raw.prompt == "touch the red cube" for raw in looks)
    with pytest.raises(ValueError, match="1 to 50"):
        next(rollout(table, task.prompt, infer, execute=0))


def test_what_a_policy_is_shown_fits_its_robot():
    from playground.robots.builtin import TABLETOP
    from playground.robots.robot import slot_modes

    raw = observe(Table(scene_with(SPREAD)), "pick up the red cube")
    for family in ("pi0", "pi0_fast"):
        modes = slot_modes(TABLETOP.slots(family), raw)
        assert list(modes.values()) == ["filled"] * 3
    assert raw.state.shape == (len(TABLETOP.state),)
    np.testing.assert_allclose(TABLETOP.resting_state, HOME)


def test_held_out_words_are_held_out_and_prompts_read_back():
    for verb, colour, other in requests():
        assert not set(WORDINGS[verb]) & set(HELD_OUT_WORDINGS[verb])
        for wording in (*WORDINGS[verb], *HELD_OUT_WORDINGS[verb]):
            task = Task(verb, colour, wording, other)
            assert parse(task.prompt) == task
    assert parse("make me a sandwich") is None
    assert parse("put the red cube on the red cube") is None
    assert len(requests()) == 2 * 3 + 2 * 6


# --- the worker's job ---------------------------------------------------------------------------


class Answers:
    """A policy whose chunks are given: `chunk(observation)`, None for one that does not decode."""

    def __init__(self, chunk, robot="tabletop"):
        self.info = dataclasses.replace(traces.policy_info("pi0_fast"), robot=robot)
        self.chunk = chunk
        self.asked, self.seeds = [], []

    def infer(self, observation, options):
        self.asked.append(observation)
        self.seeds.append(options.seed)
        yield Phase(self.info.name, "decode", 10.0)
        chunk = self.chunk(observation)
        trace = traces.fast_trace(failure="too few" if chunk is None else None)
        actions = None if chunk is None else chunk[None].astype(np.float32)
        yield Done(self.info.name, dataclasses.replace(trace, actions=actions))


def results(policy, **arguments):
    request = RolloutRequest("it", "touch the red cube", scene=4, execute=25, options=Options())
    request = dataclasses.replace(request, **arguments)
    return [e.value for e in rollout_job({"it": policy}, request) if isinstance(e, Result)]


def test_a_rollouts_frames_say_what_happened():
    twin = Table(random_scene(4))  # the expert's own view: it starts alike and is given the state
    task = Task("touch", "red", "touch the {} cube")

    def expert_chunk(observation):
        cube = twin.cube("red")
        return expert.chunk(observation.state, cube, np.array(-1), np.array(task.verb == "pick"))

    policy = Answers(expert_chunk)
    frames = results(policy)
    np.testing.assert_array_equal(frames[0].image, render(twin))
    assert frames[-1].outcome == Outcome(True, "touched the red cube first")
    assert all(frame.outcome is None for frame in frames[:-1])
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    assert times[1] == pytest.approx(0.1)
    first = [frame for frame in frames if frame.look == 1]
    np.testing.assert_allclose(first[0].chunk, expert_chunk(policy.asked[0]), rtol=1e-6)
    assert [frame.executed for frame in first] == [0, 5, 10, 15, 20]
    assert [set(frame.seen) for frame in first] == [set(policy.asked[0].images)] + 4 * [set()]
    np.testing.assert_array_equal(first[0].seen["base_0_rgb"], policy.asked[0].images["base_0_rgb"])
    assert len(policy.asked) == frames[-1].look


@pytest.mark.parametrize(
    ("prompt", "figure", "done"),
    [
        ("touch the red cube", "touch", "touched the named cube first"),
        ("Grab the green block.", "pick up", "picked up the named cube"),
        ("put the red cube on the blue cube", "put on", "put the named cube on the other cube"),
        ("put the red cube beside the blue cube", "put next to", "put the named cube next to"),
    ],
)
def test_with_the_outcome_it_is_told_how_often_the_policy_succeeds(prompt, figure, done):
    """As published; of other weights and tasks nothing was measured."""
    evaluation = json.loads((ASSETS / "pi0_tabletop" / "evaluation.json").read_text())
    outcomes = evaluation["figures"][f"closed loop {figure}"]["outcomes"]
    (right,) = [count for reason, count in outcomes.items() if reason.startswith(done)]
    policy = Answers(lambda observation: None)
    policy.info = dataclasses.replace(
        policy.info, name="pi0_tabletop", revision=evaluation["revision"]
    )
    *before, last = results(policy, prompt=prompt, execute=50)
    assert f" in {right} of {sum(outcomes.values())} episodes." in last.measured
    assert f" {evaluation['executed_steps']} steps of each chunk executed" in last.measured
    assert {frame.measured for frame in before} == {""}
    assert success(policy.info, "fold the towel") == ""
    assert success(dataclasses.replace(policy.info, revision="other"), prompt) == ""


def test_a_chunk_that_does_not_decode_moves_nothing_and_is_told():
    frames = results(Answers(lambda observation: None), execute=50)
    assert frames[-1].outcome.reason == "not done within 6 s"
    assert all(frame.chunk is None and frame.failure == "too few" for frame in frames)
    moved = np.abs(frames[0].image.astype(int) - frames[-1].image).max(-1) > 40
    assert moved.sum() < 60  # of 50176 pixels


def test_a_prompt_without_a_task_runs_unjudged():
    policy = Answers(lambda o: np.tile(o.state, (50, 1)))
    frames = results(policy, prompt="dance", execute=50)
    assert frames[-1].outcome.success is None
    assert frames[-1].time_s == pytest.approx(UNJUDGED_S)
    assert policy.seeds == list(range(10))  # noise of its own at every look


def test_a_policy_of_another_robot_has_no_rollout():
    with pytest.raises(ValueError, match="drives aloha, not the simulated table"):
        results(Answers(lambda o: None, robot="aloha"))
