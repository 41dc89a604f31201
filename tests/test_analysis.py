"""What matters: constructed models whose answer is known, variants as promised, and sentences that
claim no more than was measured."""

import copy
import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ExpertConfig, Pi0Config, Pi0FastConfig, VisionConfig
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.tokenizer import ACTION_END, ACTION_MARKER, EOS, PaligemmaTokenizer
from playground import codec
from playground.analysis.sensitivity import (
    Base,
    Change,
    Comparison,
    SensitivityRequest,
    interval,
    measure,
    share_of_range,
    what_matters,
)
from playground.analysis.variants import GROUPS, dimension_groups, garble, shuffle, variants, words
from playground.checkpoints import load
from playground.checkpoints.entry import Entry
from playground.robots.builtin import ALOHA, DROID, LIBERO, TABLETOP
from playground.serving.events import Done, Finished, Phase, Result
from playground.serving.worker import Worker
from playground.trace import Options, RawObservation, Stats
from playground.training.tokenizers import fit_action_tokenizer
from playground.views import matters
from tests.support.table import CAMERAS, random_pictures

SLOTS = tuple(slot.name for slot in TABLETOP.flow_slots)
VISION = VisionConfig(width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=14, image_size=28)
LANGUAGE = ExpertConfig(width=32, depth=1, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16)
COMMON = {
    "vision": VISION,
    "language": LANGUAGE,
    "vocab_size": 2432,
    "action_dim": 14,
    "action_horizon": 3,
    "dtype": "float32",
    "image_slots": SLOTS,
}
FLOW = Pi0Config(
    **COMMON,
    action_expert=dataclasses.replace(LANGUAGE, width=16, mlp_dim=16),
    max_token_len=100,
    pi05=False,
)
FAST = Pi0FastConfig(
    **COMMON | {"language": dataclasses.replace(LANGUAGE, depth=2)}, max_token_len=120
)
QUICK = Options(num_steps=2, max_tokens=8)
WARM = 0.5  # where some of pi0-FAST's seeds lose the thread
RED = "pick up the red cube"

rng = np.random.default_rng(0)
MIDDLE, DEVIATION = rng.normal(size=14), rng.uniform(0.2, 0.6, 14)
STATE_STATS = Stats(
    tuple(np.array(TABLETOP.resting_state) + 0.05),
    (0.2,) * 14,
    tuple(np.array(TABLETOP.resting_state) - 0.4),
    tuple(np.array(TABLETOP.resting_state) + 0.6),
)
ACTION_STATS = Stats(
    tuple(MIDDLE), tuple(DEVIATION), tuple(MIDDLE - 2 * DEVIATION), tuple(MIDDLE + 3 * DEVIATION)
)
EXTENT = 5 * DEVIATION


def observe(prompt=RED, seed=0, **images):
    pictures = random_pictures(seed, 28, 28)
    state = np.array(TABLETOP.resting_state) + np.linspace(-0.1, 0.1, 14)
    return RawObservation("tabletop", pictures | images, {}, prompt, state)


def tokenizer():
    return PaligemmaTokenizer(load.TOKENIZER)


def assemble(name, config, model, text, chunks):
    """A policy of the bundled table around a model."""
    quantile = isinstance(config, Pi0FastConfig)
    entry = Entry(
        name=name,
        title=name,
        config=config,
        robot=TABLETOP,
        normalisation="quantile" if quantile else "z-score",
        state_in_prompt=quantile or config.pi05,
        asset_id="",
    )
    info = load.describe(
        entry,
        config,
        revision="test",
        badge="untrained weights",
        notice="Random.",
        stats={"state": STATE_STATS, "actions": ACTION_STATS},
    )
    return load.assemble(info, entry, model, text, chunks)


def filled(model, config, values):
    """A model whose every weight comes from `values(shape)`."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))
    fill = lambda leaf: jnp.asarray(values(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(fill, state))


def nothing(model):
    pass


def no_words(model):
    model.gemma.embedding[...] *= 0


def no_sight(model):
    model.vision.head.kernel[...] *= 0
    model.vision.head.bias[...] *= 0


def no_state(model):
    model.state_proj.kernel[...] *= 0


def constant_head(model):
    model.action_out_proj.kernel[...] *= 0


@functools.cache
def flow(change=nothing, pi05=False):
    """pi0 or pi0.5 with random weights, none of them zero, then changed."""
    config = dataclasses.replace(FLOW, pi05=pi05)
    draw = np.random.default_rng(1)
    model = filled(Pi0, config, lambda shape: 0.4 * draw.normal(size=shape))
    change(model)
    name = "pi05" if pi05 else "pi0"
    policy = assemble(name, config, model, tokenizer(), None)
    if change is not nothing:  # the same programs over other weights: nothing compiles again
        programs = vars(flow(pi05=pi05).programs)
        for name, program in programs.items():
            setattr(policy.programs, name, copy.copy(program))
            getattr(policy.programs, name).state = nnx.split(model)[1]
    return policy


CHUNK_RED, CHUNK_ELSE = np.zeros((3, 14)), np.zeros((3, 14))
CHUNK_RED[:, [0, 8]] = 1.0, -0.5
CHUNK_ELSE[:, [0, 8]] = -1.0, 0.5
CHUNK_ELSE[1, 3] = 0.7
CHUNKS = CHUNK_RED, CHUNK_ELSE


@functools.cache
def fast():
    """pi0-FAST with weights set by hand, so that its answer is known: it writes one chunk where it
    reads "red", another one where it does not, and nothing that decodes where it reads "green".

    Layer 1 maps each written token to the next one; layer 2 looks everywhere alike, and a colour
    that it finds speaks for a token at the place where the chunk is chosen.
    """
    text = tokenizer()
    chunks = fit_action_tokenizer(CHUNKS * 8, vocab_size=600)
    model = filled(Pi0Fast, FAST, np.zeros)
    policy = assemble("fast", FAST, model, text, chunks)
    first, second = ([policy.tokenizer.swap(i) for i in chunks.encode(c)] for c in CHUNKS)
    colon = text.encode(ACTION_MARKER)
    (end,), line = text.encode(ACTION_END), text.encode("\n")[-1]
    (red,), (green,) = text.encode(" red"), text.encode(" green")
    ids = [line, *colon, *first, *second, end, EOS, red, green]
    place = {token: i for i, token in enumerate(ids)}
    steps = itertools.chain(
        *map(itertools.pairwise, ([line, *colon], [*first, end], [*second, end], [end, EOS]))
    )

    table, width = np.zeros((2432, 32), np.float32), 32
    for token, i in place.items():
        table[token, i] = 1
    model.gemma.embedding[...] = table
    chain, look = model.gemma.language.blocks
    chain.gate[...] = chain.up[...] = np.eye(width, dtype=np.float32)
    down = np.zeros((width, width), np.float32)
    for token, following in steps:
        down[place[token], place[following]] = 1
    down[place[colon[-1]], place[second[0]]] = 0.4  # what is written unless a colour speaks up
    chain.down[...] = down
    value, out = np.zeros((width, 16), np.float32), np.zeros((width, width), np.float32)
    value[place[red], 0] = value[place[green], 1] = 1
    out[0, place[first[0]]] = out[16, place[first[0]]] = 120  # both heads
    out[1, place[line]] = out[17, place[line]] = 120
    look.value[...], look.out[...] = value, out
    return assemble("fast", FAST, model, text, chunks)


@functools.cache
def measured(
    policy, noises=3, raw_seed=0, prompts=("touch the red cube", "lift the blue block now")
):
    found, _ = variants(observe(seed=raw_seed), TABLETOP, STATE_STATS, alternatives=prompts, seed=3)
    base, changes = measure(policy, observe(seed=raw_seed), QUICK, found, noises)
    return base, {change.variant: change for change in changes}


# --- the quick way is the same run ---------------------------------------------------------------


@pytest.mark.parametrize("policy", [flow, fast], ids=["pi0", "fast"])
@pytest.mark.parametrize("modes", [{}, {SLOTS[0]: "masked"}], ids=["filled", "masked"])
def test_whole_loops_are_the_stepwise_run(policy, modes):
    raw = dataclasses.replace(observe(), modes=modes)
    options = dataclasses.replace(QUICK, num_samples=3, seed=5)
    *_, done = policy().infer(raw, options)
    assert isinstance(done, Done)
    chunks, failure = policy().actions(raw, options)
    np.testing.assert_allclose(chunks, done.trace.actions_normalised, atol=1e-5)
    assert chunks.dtype == np.float32
    assert failure is None


def test_whole_loops_of_fast_draw_what_each_seed_draws():
    """At this temperature some seeds lose the thread."""
    found = set()
    for seed in range(6):
        options = dataclasses.replace(QUICK, temperature=WARM, seed=seed)
        *_, done = fast().infer(observe(), options)
        chunks, failure = fast().actions(observe(), options)
        assert failure == done.trace.decode_failure
        assert (chunks is None) == (done.trace.actions is None)
        found.add(failure)
    assert len(found) > 1


# --- models whose answer is known ---------------------------------------------------------------


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
def test_without_words_prompts_of_equal_length_change_nothing(pi05):
    raw = observe()
    found, _ = variants(raw, TABLETOP, None, groups=["prompt"], alternatives=["lift it up now ok"])
    base, changes = measure(flow(no_words, pi05), raw, QUICK, found, noises=3)
    equal = [change.percent for change in changes if change.tokens == base.tokens]
    others = [change.percent for change in changes if change.tokens != base.tokens]
    assert len(equal) >= 2
    assert equal == [0.0] * len(equal)
    assert min(others) > 0  # another number of empty tokens dilutes attention
    _, heard = measure(flow(pi05=pi05), raw, QUICK, found, noises=3)
    assert min(change.percent for change in heard) > 0


def test_without_sight_a_black_camera_changes_nothing():
    raw = observe()
    found, _ = variants(raw, TABLETOP, None, groups=["camera"])
    _, changes = measure(flow(no_sight), raw, QUICK, found, noises=3)
    names = [slot.removesuffix("_rgb").replace("_", " ") for slot in CAMERAS]
    # What is masked draws no attention.
    expected = {f"{name} {mode}": mode == "black" for name in names for mode in ("black", "masked")}
    assert {c.variant: c.percent == 0 for c in changes} == expected
    assert not any(c.same_input for c in changes)
    _, seen = measure(flow(), raw, QUICK, found, noises=3)
    assert min(change.percent for change in seen) > 0


def test_a_constant_head_changes_with_nothing():
    """Other noises still give other chunks."""
    raw = observe()
    found, _ = variants(raw, TABLETOP, STATE_STATS)
    base, changes = measure(flow(constant_head), raw, QUICK, found, noises=3)
    assert {change.group for change in changes} == set(GROUPS)
    for change in changes:
        assert change.samples == (0.0,) * 3
        assert change.dimensions == (0.0,) * 14
        assert change.times_spread == 0
    assert base.spread > 1


def test_who_listens_to_the_state():
    raw = observe()
    found, _ = variants(raw, TABLETOP, STATE_STATS, groups=["state"])
    assert len(found) == 6
    for policy, deaf in ((flow(), False), (flow(no_state), True)):
        _, changes = measure(policy, raw, QUICK, found, noises=3)
        assert [change.percent == 0 for change in changes] == [deaf] * 6


def test_fast_answers_as_it_was_built_to():
    """It hears one word. The size of the change follows from the two chunks."""
    base, changes = measured(fast())
    codes = fast().tokenizer.fast
    red, other = (codes.decode(codes.encode(c), 3, 14).actions for c in (CHUNK_RED, CHUNK_ELSE))
    # Quantile normalisation: 2 units are the range.
    want = 100 * np.abs(red - other).mean(axis=0) / 2
    for name in ("empty", "without “red”", "other task: touch the blue cube"):
        np.testing.assert_allclose(changes[name].dimensions, want, rtol=1e-4)
        assert changes[name].percent == pytest.approx(want.mean(), rel=1e-4)
    listened = {name for name, change in changes.items() if change.percent}
    assert listened == {
        "empty",
        "garbled",
        "without “red”",
        "other task: touch the blue cube",
        "yours: lift the blue block now",
    }
    assert not base.random
    assert base.runs == 1
    assert {change.interval for change in changes.values()} == {None}
    assert {change.times_spread for change in changes.values()} == {None}


def test_a_failed_decode_is_said_and_has_no_number():
    base, changes = measured(fast())
    failed = changes["other task: pick up the green cube"]
    assert failed.percent is failed.interval is failed.times_spread is None
    assert failed.dimensions == ()
    said = matters.sentence(base, failed)
    assert "no number" in said
    assert "0 coefficients came" in said
    green = observe("pick up the green cube")
    found, _ = variants(green, TABLETOP, None)
    base, changes = measure(fast(), green, QUICK, found)
    assert "0 coefficients came" in base.failure
    assert all(c.percent is None and "unchanged observation" in c.failure for c in changes)
    assert "no number" in " ".join(matters.summary(base, changes))


def test_fast_without_spread_divides_by_nothing():
    """So close to 0 every seed writes the same."""
    raw = observe()
    found, _ = variants(raw, TABLETOP, None, groups=["prompt"])
    cool = dataclasses.replace(QUICK, temperature=0.02)
    base, changes = measure(fast(), raw, cool, found, noises=3)
    assert (base.random, base.runs, base.spread) == (True, 3, 0.0)
    red, up = (next(c for c in changes if c.variant == f"without “{w}”") for w in ("red", "up"))
    assert red.interval == pytest.approx((red.percent, red.percent))
    assert red.times_spread is None
    assert matters.verdict(base, red) == "beyond"
    assert "seed spread" not in matters.sentence(base, red)
    assert matters.verdict(base, up) == "none"


# --- the numbers --------------------------------------------------------------------------------


def test_scores_are_what_their_definition_says():
    """From the policy's traces in robot units, where a step of the state is taken out again."""
    raw, policy = observe(), flow()
    found, _ = variants(raw, TABLETOP, STATE_STATS, groups=["prompt", "state"])
    base, changes = measure(policy, raw, dataclasses.replace(QUICK, seed=4), found, noises=3)

    def chunks(raw):
        *_, done = policy.infer(raw, dataclasses.replace(QUICK, seed=4, num_samples=3))
        return done.trace.actions - np.where(TABLETOP.offsets, raw.state, 0)

    unchanged = chunks(raw)
    for variant, change in list(zip(found, changes, strict=True))[::4]:
        difference = np.abs(chunks(variant.changed) - unchanged).mean(axis=1) / EXTENT * 100
        np.testing.assert_allclose(change.samples, difference.mean(axis=1), rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(change.dimensions, difference.mean(axis=0), rtol=2e-2, atol=4e-3)
    pairs = [np.abs(unchanged[i] - unchanged[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    spread = (np.mean(pairs, axis=0).mean(axis=0) / EXTENT * 100).mean()
    assert base.spread == pytest.approx(spread, rel=1e-3)
    assert changes[0].times_spread == pytest.approx(changes[0].percent / spread, rel=1e-3)


def test_order_of_variants_and_number_of_noises_change_no_score():
    raw = observe()
    found, _ = variants(raw, TABLETOP, STATE_STATS, groups=["prompt", "state"])
    _, one = measure(flow(), raw, QUICK, found, noises=3)
    _, other = measure(flow(), raw, QUICK, found[::-1], noises=3)
    assert one == other[::-1]
    _, fewer = measure(flow(), raw, QUICK, found[:2], noises=1)
    for a, b in zip(fewer, one, strict=False):
        assert a.samples == pytest.approx(b.samples[:1], rel=1e-2, abs=1e-3)


def test_one_noise_has_no_interval_and_no_spread():
    found, _ = variants(observe(), TABLETOP, None, groups=["camera"])
    base, (change, *_) = measure(flow(), observe(), QUICK, found, noises=1)
    assert base.spread is change.interval is change.times_spread is None
    assert "interval" not in matters.sentence(base, change)
    assert "no interval" in matters.summary(base, [change])[0]


def test_intervals_hold_what_they_promise():
    low, high = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    # A table of Student's t: 3.182 at 3 degrees of freedom.
    half = 3.182 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-3)
    assert interval(np.array([0.1, 5.0]))[0] == 0
    assert interval(np.array([3.0])) is None
    draws = np.random.default_rng(2).normal(5, 1, (3000, 4))
    held = [low <= 5 <= high for low, high in map(interval, draws)]
    assert 0.935 < np.mean(held) < 0.965


def test_ranges_come_from_quantiles_else_from_deviations():
    info = flow().info
    np.testing.assert_allclose(share_of_range(info), 100 * DEVIATION / EXTENT, rtol=1e-4)
    as_is = dataclasses.replace(info, action_normalisation="identity")
    np.testing.assert_allclose(share_of_range(as_is), 100 / np.array(EXTENT), rtol=1e-4)
    plain = dataclasses.replace(ACTION_STATS, q01=None, q99=None)
    info = dataclasses.replace(info, action_stats=plain)
    np.testing.assert_allclose(share_of_range(info), np.full(14, 25), rtol=1e-4)
    std = (0.0, *DEVIATION[1:])
    still = dataclasses.replace(info, action_stats=dataclasses.replace(plain, std=std))
    assert np.isnan(share_of_range(still)).tolist() == [True] + [False] * 13
    none = dataclasses.replace(info, action_stats=dataclasses.replace(plain, std=(0.0,) * 14))
    with pytest.raises(ValueError, match="no action of pi0 has a range"):
        share_of_range(none)


def test_a_policy_that_cannot_answer_is_said():
    other = dataclasses.replace(observe(), robot="droid")
    base, _ = measure(flow(), other, QUICK, [])
    assert "pi0 drives tabletop" in base.failure
    with pytest.raises(ValueError, match="noises is 0"):
        Comparison(flow(), observe(), QUICK, 0)


# --- variants -----------------------------------------------------------------------------------

prompts = st.text(st.sampled_from("ab ABcé_.\n1"), max_size=24)


@settings(derandomize=True)
@given(prompts, st.integers(0, 99))
def test_prompt_variants_are_what_they_say(prompt, seed):
    raw = observe(prompt)
    found, left_out = variants(raw, TABLETOP, None, groups=["prompt"], seed=seed)
    again, _ = variants(raw, TABLETOP, None, groups=["prompt"], seed=seed)
    assert [v.changed.prompt for v in found] == [v.changed.prompt for v in again]
    assert len({v.name for v in found}) == len(found)
    spans = words(prompt)
    said = [prompt[a:b] for a, b in spans]
    for variant in found:
        text = variant.changed.prompt
        parts = [text[a:b] for a, b in words(text)]
        assert text != prompt
        if variant.name == "empty":
            assert text == ""
        elif variant.name == "shuffled":
            assert sorted(parts) == sorted(said)
            assert [p.lower() for p in parts] != [s.lower() for s in said]
        elif variant.name == "garbled":
            assert len(text) == len(prompt)
            for new, old in zip(text, prompt, strict=True):
                assert (
                    (new != old and new.isupper() == old.isupper())
                    if old.isalpha()
                    else (new == old)
                )
        elif variant.word:
            place = spans.index(variant.word)
            assert parts == said[:place] + said[place + 1 :]
    assert sum(v.word is not None for v in found) == len(spans)
    assert bool(spans) or any("empty" in text for text in left_out)
    shuffled = any(v.name == "shuffled" for v in found)
    assert shuffled == (len({s.lower() for s in said}) > 1)


def test_shuffling_and_garbling_give_up_where_nothing_can_differ():
    draw = np.random.default_rng(0)
    assert shuffle("red RED red", draw) is None
    assert garble("1 2 3", draw) is None
    assert all(shuffle("up down", draw) == "down up" for _ in range(9))


def test_camera_variants():
    raw = observe(**{SLOTS[1]: np.zeros((4, 4, 3), np.uint8)})
    raw.modes[SLOTS[2]] = "black"
    raw.images.pop(SLOTS[2], None)
    found, _ = variants(raw, TABLETOP, None, groups=["camera"])
    assert [v.name for v in found] == [
        "base 0 black",
        "base 0 masked",
        "left wrist 0 black",
        "left wrist 0 masked",
    ]
    assert found[3].changed.modes == {SLOTS[1]: "masked", SLOTS[2]: "black"}
    assert list(found[3].changed.images) == [SLOTS[0]]
    assert len(raw.images) == 2
    bare = dataclasses.replace(raw, images={}, modes=dict.fromkeys(SLOTS, "black"))
    assert variants(bare, TABLETOP, None, groups=["camera"]) == (
        (),
        ("No camera holds a picture: there is none to take away.",),
    )


@pytest.mark.parametrize("robot", [ALOHA, DROID, LIBERO, TABLETOP], ids=lambda r: r.name)
def test_nudges_move_one_group_by_one_deviation_towards_the_mean(robot):
    draw = np.random.default_rng(3)
    dims = len(robot.state)
    state = np.array(robot.resting_state) + draw.uniform(0.01, 0.02, dims)
    here = robot.state_to_model(state)
    mean, std = here + draw.choice([-1, 1], dims) * 0.1, draw.uniform(1e-3, 3e-3, dims)
    std[1] = 0
    stats = Stats(tuple(mean), tuple(std), None, None)
    raw = RawObservation(robot.name, {}, {}, "", state)
    found, _ = variants(raw, robot, stats, groups=["state"])
    moved = np.zeros(dims)
    for variant in found:
        step = robot.state_to_model(variant.changed.state) - here
        if variant.name.endswith("nudged"):
            assert not (moved * step).any()
            moved += step
    # Linear in all but ALOHA's gripper, whose crank bends a little.
    np.testing.assert_allclose(moved, np.sign(mean - here) * std, rtol=0.05, atol=1e-7)
    assert {v.name for v in found} >= {"all zeros", "at rest"}
    labels = [label for label, _ in dimension_groups(robot.state)]
    assert len([v for v in found if v.name.endswith("nudged")]) == len(labels)
    assert sorted(i for _, group in dimension_groups(robot.state) for i in group) == [*range(dims)]


def test_dimension_groups_have_names_that_people_use():
    assert [label for label, _ in dimension_groups(DROID.state)] == [
        "joint 1 to joint 7",
        "gripper",
    ]
    assert [label for label, _ in dimension_groups(ALOHA.state)] == [
        "left waist to left wrist rotate",
        "left gripper",
        "right waist to right wrist rotate",
        "right gripper",
    ]


def test_what_cannot_be_varied_is_said():
    rest = dataclasses.replace(observe("red"), state=np.array(TABLETOP.resting_state))
    still = dataclasses.replace(STATE_STATS, std=(0.0,) * 14)
    found, left_out = variants(rest, TABLETOP, still)
    assert not {"at rest", "shuffled"} & {v.name for v in found}
    assert "The state is at rest already." in left_out
    assert sum("never moved" in text for text in left_out) == 4
    _, left_out = variants(observe("w " * 30), TABLETOP, None)
    assert any("only the first 24" in text for text in left_out)
    for wrong in (
        {"groups": ["prompts"]},
        {"alternatives": ["x"] * 9},
        {"other_tasks": ["x" * 3000]},
    ):
        with pytest.raises(ValueError, match=r"group|at most"):
            variants(rest, TABLETOP, None, **wrong)


def test_a_state_that_is_not_the_robots_is_refused():
    with pytest.raises(ValueError, match="Tabletop's state has 14 values"):
        variants(dataclasses.replace(observe(), state=np.zeros(8)), TABLETOP, STATE_STATS)


def test_what_a_policy_cannot_tell_apart_is_not_called_deaf():
    """pi0-FAST reads lower case; pi0 does not."""
    found, _ = variants(
        observe(), TABLETOP, None, groups=["prompt"], alternatives=["Pick up the RED cube"]
    )
    for policy, same in ((fast(), True), (flow(), False)):
        base, changes = measure(policy, observe(), QUICK, found, noises=3)
        change = next(c for c in changes if c.variant.startswith("yours"))
        assert change.same_input == same
        assert ("very same input" in matters.sentence(base, change)) == same
        assert "not change at all" not in matters.sentence(base, change)
        assert sum(c.same_input for c in changes) == same


# --- words and pictures -------------------------------------------------------------------------

BASE = Base(
    "pi0", "pi0", "pi0", "untrained weights", "Random.", "r", ("a", "b"), True, 4, spread=2.0
)


def change(name, percent, bounds=None, group="prompt", **fields):
    return Change(
        "pi0",
        name,
        group,
        name,
        percent=percent,
        interval=bounds or (percent, percent),
        samples=(percent,) * 4,
        dimensions=(percent, percent),
        times_spread=percent / 2,
        **{"word": None, **fields},
    )


def test_verdicts_follow_the_interval():
    assert matters.verdict(BASE, change("x", 0.0)) == "none"
    assert matters.verdict(BASE, change("x", 1.0, (0.5, 2.0))) == "within"
    assert matters.verdict(BASE, change("x", 1.9, (0.5, 2.1))) == "near"
    assert matters.verdict(BASE, change("x", 3.0, (1.9, 4.0))) == "near"
    assert matters.verdict(BASE, change("x", 3.0, (2.1, 4.0))) == "beyond"
    assert matters.verdict(dataclasses.replace(BASE, spread=None), change("x", 9.0)) == "changed"


def test_sentences_claim_what_was_measured():
    say = functools.partial(matters.sentence, BASE)
    assert say(change("the word “red” left out", 31.4, (25.2, 37.3))) == (
        "With the word “red” left out, the chunk changes by 31 % of range (95 % interval 25 to "
        "37 %), 16 times the seed spread."
    )
    assert "no more than another seed does (0.5 times" in say(change("x", 1.0))
    assert "not clearly more than another seed does (0.95" in say(change("x", 1.9, (0.5, 2.1)))
    for name in ("the verb left out", "base 0 black"):
        said = say(change(name, 0.0))
        assert said == f"With {name}, the chunk does not change at all."
        assert "changes" not in said
    large = dataclasses.replace(change("x", 5.0), dimensions=(30.0, None))
    assert "most in a (30 %)" in say(large)
    assert "less than 0.01 %" in say(change("x", 0.0001))
    odd = dataclasses.replace(change("x", 5.0), warnings=("Far out.", "b", "c"))
    assert say(odd).endswith("Mind: Far out. (And 2 more warnings.)")


def test_summary_names_every_change_once():
    mixed = [
        change("the word “red” left out", 31.0, (25.0, 37.0)),
        change("without “up”", 0.0, word=(4, 6)),
        change("without “the”", 0.0, word=(7, 9)),
        change("base 0 black", 1.0, (0.5, 1.5), group="camera"),
        dataclasses.replace(change("elsewhere", 9.0), policy="another"),
    ]
    assert matters.summary(BASE, mixed) == [
        "pi0 (untrained weights), 4 noises; another seed alone changes the chunk by 2 % of range.",
        "The chunk changes with the word “red” left out by 31 % of range (95 % interval 25 to "
        "37 %), 16 times the seed spread; it does not change at all with any one of “up” and "
        "“the” left out.",
        "The chunk changes, but no more than between seeds, with base 0 black.",
    ]


@pytest.fixture(scope="module")
def full_report():
    request = SensitivityRequest(
        policies=("pi0", "fast"),
        observations={"pi0": observe(), "fast": observe()},
        options=QUICK,
        noises=3,
        alternatives=('<img src=x onerror="x()">',),
    )
    return list(what_matters({"pi0": flow(), "fast": fast()}, request))


def test_what_matters_tells_its_progress(full_report):
    phases, results = full_report[::2], full_report[1::2]
    assert all(isinstance(event, Phase) and event.deadline_s >= 300 for event in phases)
    assert all(isinstance(event, Result) for event in results)
    reports = [event.value for event in results]
    assert [report.done for report in reports] == [*range(1, reports[-1].of + 1)]
    last = reports[-1]
    assert [base.policy for base in last.bases] == ["pi0", "fast"]
    assert len(last.changes) == last.of - 2
    own = [c.variant for c in last.changes if c.policy == "pi0"]
    assert own == [c.variant for c in last.changes if c.policy == "fast"]
    assert [c.group for c in last.changes] == sorted(
        (c.group for c in last.changes), key=GROUPS.index
    )
    found, _ = variants(
        observe(), TABLETOP, STATE_STATS, alternatives=('<img src=x onerror="x()">',)
    )
    _, alone = measure(flow(), observe(), QUICK, found, noises=3)
    assert tuple(c for c in last.changes if c.policy == "pi0") == alone


def test_reports_travel_and_come_back(full_report):
    report = full_report[-1].value
    tree, arrays = codec.pack(report)
    assert not arrays
    assert codec.unpack(json.loads(json.dumps(tree)), {}) == report
    # What programs get.
    assert len(json.dumps(dataclasses.asdict(report), allow_nan=False)) < 100_000


def test_the_report_is_drawn_with_every_number(full_report):
    report = full_report[-1].value
    drawn = matters.payload(report)
    json.dumps(drawn, allow_nan=False)
    variants = [one for group in drawn["groups"] for one in group["variants"]]
    rows = {(one["name"], row["policy"]): row for one in variants for row in one["rows"]}
    assert len(rows) == len(report.changes)
    bases = {base.policy: base for base in report.bases}
    for change in report.changes:
        row, base = rows[change.variant, change.policy], bases[change.policy]
        assert row["sentence"] == matters.sentence(base, change)
        assert row["percent"] == (None if change.same_input else change.percent)
        assert row["spread"] == (base.spread or 0)
        assert (row["short"] == "no number") == (change.failure is not None)
        if row["percent"]:
            assert row["amount"] == matters.percent(change.percent)
            assert (row["interval"], max(row["dimensions"])[0]) == (change.interval, 1)
            assert max(change.interval or [0]) <= drawn["widest"]
    assert {row["short"] for row in rows.values()} >= {"no number", "not at all", None}
    for name, said in drawn["policies"].items():
        assert said["policy"]["badge"] == "untrained weights"
        assert "".join(text for text, *_ in said["words"]) == report.prompt
        own = [c for c in report.changes if c.policy == name and c.word is not None]
        amounts = [amount for _, amount, effect, _ in said["words"] if effect is not None]
        assert amounts == [None if c.percent is None else matters.percent(c.percent) for c in own]
        assert len(said["sentences"]) == 1 + sum(c.policy == name for c in report.changes)
    halfway = matters.payload(full_report[7].value)
    assert (halfway["done"], halfway["policies"]["pi0"]["sentences"]) == (4, [])


def test_what_matters_refuses_what_it_cannot_take():
    good = SensitivityRequest(("pi0",), {"pi0": observe()}, QUICK)
    for wrong, message in (
        ({"policies": ("pi1",)}, "no policy is called pi1"),
        ({"policies": ()}, "no policy is called nothing"),
        ({"policies": ("pi0", "pi0")}, "measured once; pi0, pi0 came"),
        ({"noises": 40}, "noises is 40"),
        ({"groups": ("words",)}, "no group of variants is called"),
        ({"observations": {"fast": observe()}}, "no observation for pi0"),
    ):
        with pytest.raises(ValueError, match=message):
            list(what_matters({"pi0": flow()}, dataclasses.replace(good, **wrong)))


def loaded():
    return {"fast": fast()}


def test_what_matters_is_a_kind_of_job():
    kinds = {"what_matters": "playground.analysis.sensitivity:what_matters"}
    with Worker(f"{__name__}:loaded", {}, kinds=kinds) as worker:
        request = SensitivityRequest(("fast",), {"fast": observe()}, QUICK)
        events = list(worker.call("what_matters", request))
    assert isinstance(events[-1], Finished)
    report = events[-2].value
    assert report.done == report.of
    _, want = measure(fast(), observe(), QUICK, variants(observe(), TABLETOP, STATE_STATS)[0])
    assert report.changes == want
