"""A policy's answers: the model's own numbers in the robot's units, whatever was reused; and the
trace's mask against openpi's recorded ones."""

import dataclasses
import io
import itertools
import math
import types

import jax
import numpy as np
import pytest

from models import compiled
from models.config import PI0
from models.fast_tokenizer import FastPrompt
from models.observation import Observation, uint8_to_float
from models.pi0 import Pi0
from models.tokenizer import EOS, Prompt
from playground import codec, trace
from playground.checkpoints import load
from playground.policies import base, token_layout
from playground.policies.base import CALL_DEADLINE_S, patience_s, sample_noise
from playground.robots import builtin, conversion
from playground.robots.builtin import ALOHA, TABLETOP
from playground.robots.examples import examples
from playground.robots.robot import NO_CAMERA
from playground.serving.events import Done, Phase, Step, TokenEvent
from playground.tabletop import camera
from playground.trace import ALLOWED, PADDING, Options, RawObservation, Stats, token_ids
from tests import test_analysis as small
from tests.support.golden_models import CONFIGS, case, close, same
from tests.support.table import CAMERAS, ONE_CAMERA, by_slot, in_all, random_pictures

QUICK = Options(num_steps=2, max_tokens=4)


@pytest.fixture(scope="module")
def flow():
    return load.untrained("pi0_tabletop")


@pytest.fixture(scope="module")
def fast():
    return load.untrained("pi0_fast_tabletop")


def observe(policy, seed=0, prompt="pick up the red cube", modes=None, nudge=0.0):
    state = np.array(policy.robot.resting_state) + nudge
    return RawObservation("tabletop", random_pictures(seed, 90, 120), modes or {}, prompt, state)


def run(policy, raw, options=QUICK):
    *events, done = policy.infer(raw, options)
    assert isinstance(done, Done)
    return done.trace, events


def test_a_large_model_on_a_cpu_is_given_time(flow):
    """It is taken for hung later than a small one, whose events announce what it is given."""
    short = patience_s(flow.config, flow.device)
    for seed in range(2):  # the second compiles nothing
        *_, events = run(flow, observe(flow, seed))
    deadlines = {event.deadline_s for event in events if isinstance(event, Phase)}
    assert deadlines == {CALL_DEADLINE_S + short}
    assert 0 < short < 30
    assert patience_s(PI0, flow.device) > 600
    assert patience_s(PI0, types.SimpleNamespace(platform="gpu")) == 0


def test_flow_trace_is_the_models_own_run(flow):
    """Against the model called directly, every camera in place and masked by its bit."""
    raw = observe(flow, modes=ONE_CAMERA)
    got, events = run(flow, raw, dataclasses.replace(QUICK, num_samples=2, seed=5))
    size = flow.info.image_size
    images = {slot: got.images[slot] for slot in flow.config.image_slots}
    assert images["base_0_rgb"].shape == (size, size, 3)
    assert not images["left_wrist_0_rgb"].any()
    observation = Observation(
        images={s: uint8_to_float(np.stack([i, i])) for s, i in images.items()},
        image_masks={s: np.full(2, s == "base_0_rgb") for s in images},
        state=np.repeat(flow.prepare(raw).state[None], 2, axis=0).astype(np.float32),
        tokens=np.repeat(flow.prepare(raw).prompt.tokens[None], 2, axis=0).astype(np.int32),
        token_mask=np.repeat(flow.prepare(raw).prompt.mask[None], 2, axis=0),
    )
    noise = sample_noise(5, 2, 50, 14)
    want = flow.programs.sample_trajectory(observation, noise, num_steps=2)
    close(got.x_t, want.x_t, 1e-4)
    close(got.v_t, want.v_t, 1e-4)
    close(got.actions_normalised, want.x_t[-1], 1e-4)
    close(got.estimates[-1] - got.actions, 0 * got.actions, 1e-4)  # the last step lands on t = 0
    steps = [e for e in events if not isinstance(e, Phase)]
    assert [type(e) for e in steps] == [Step, Step]
    assert [e.t for e in steps] == got.times[1:].tolist() == [0.5, 0.0]
    assert got.info.badge == "untrained weights"


def test_a_wider_models_trace_holds_the_robots_own_dimensions():
    draw, config = np.random.default_rng(3), dataclasses.replace(small.FLOW, action_dim=20)
    model = small.filled(Pi0, config, lambda shape: 0.1 * draw.normal(size=shape))
    policy = small.assemble("pi0", config, model, small.tokenizer(), None)
    got, _ = run(policy, small.observe())
    assert got.x_t.shape[-1] == 20
    assert got.actions.shape == (1, 3, 14)
    same(got.actions_normalised, got.x_t[-1][..., :14])


@pytest.mark.parametrize("kind", ["flow", "fast", "guidance"])
def test_both_ways_to_run_a_loop_tell_the_same(kind, request, monkeypatch):
    """Every event and number, of several samples and with attention, and after a run that was left
    at its first step."""
    policy = request.getfixturevalue("fast" if kind == "fast" else "flow")
    options = Options(10, 2, seed=5, max_tokens=20, attention=kind != "guidance", constrained=True)
    if kind == "guidance":
        options = dataclasses.replace(options, guidance=1.5)
    raw, found = observe(policy), []
    for at_once in (False, True):
        monkeypatch.setattr(policy, "at_once", at_once)
        left = policy.infer(raw, options)
        next(event for event in left if isinstance(event, Step | TokenEvent))
        left.close()
        found.append(run(policy, raw, options))
    (alone, before), (together, after) = found
    steps, others = ([e for e in es if not isinstance(e, Phase)] for es in (before, after))
    assert len(steps) == len(others) == (20 if kind == "fast" else 10)
    for name in alone.attention:
        close(together.attention[name], alone.attention[name], 1e-3)  # float16
    if kind == "fast":
        assert token_ids(together) == token_ids(alone)
        assert [(e.index, e.of) for e in others] == [(e.index, e.of) for e in steps]
        for one, other in zip(together.tokens, alone.tokens, strict=True):
            assert [i for i, *_ in one.runners_up] == [i for i, *_ in other.runners_up]
            close(one.probability, other.probability, 1e-5)
        np.testing.assert_allclose(together.partial_actions, alone.partial_actions, atol=1e-5)
        return
    assert [(e.step, e.of, e.t) for e in others] == [(e.step, e.of, e.t) for e in steps]
    for one, other in zip(others, steps, strict=True):
        close(one.actions, other.actions, 1e-5)
    for field in ("times", "x_t", "v_t", "estimates", "actions"):
        close(getattr(together, field), getattr(alone, field), 1e-4)


def test_pictures_together_are_the_pictures_alone(flow, monkeypatch):
    """In one call of the vision transformer, as a GPU takes them, or one by one; what is kept is
    by picture either way."""
    images = {
        slot: np.random.default_rng(i).integers(0, 256, (90, 120, 3), np.uint8)
        for i, slot in enumerate(flow.config.image_slots[:2])
    }
    modes = {flow.config.image_slots[2]: "masked"}
    raw = dataclasses.replace(observe(flow), images=images, modes=modes)
    alone, _ = run(flow, raw)
    flow.kept.image_tokens.clear()
    flow.kept.prefixes.clear()
    monkeypatch.setattr(flow, "pictures_a_call", len(flow.config.image_slots))
    together, events = run(flow, raw)
    assert sum("vision" in e.phase for e in events if isinstance(e, Phase)) == 1
    assert len(flow.kept.image_tokens) == 2
    assert together.reused == ()
    again, _ = run(flow, raw)
    assert again.reused == (*(f"image embedding of {slot}" for slot in images), "prefix")
    close(together.x_t, alone.x_t, 1e-5)


def test_a_policy_runs_its_steps_at_once_where_they_are_fast(flow, monkeypatch):
    for name in ("info", "at_once", "step_ms"):  # as they are, after the test
        monkeypatch.setattr(flow, name, getattr(flow, name))
    for step_ms, loop in ((base.FRAME_MS + 1, "step by step"), (base.FRAME_MS - 1, "one program")):
        flow.step_ms = step_ms
        assert flow.settle()
        assert not flow.settle()
        assert flow.at_once == (loop == "one program")
        assert flow.info.computation.loop == loop
    flow.step_ms = math.inf
    for _ in range(2):  # the first may compile, which is not counted
        run(flow, observe(flow))
    assert 0 < flow.step_ms < math.inf


def test_offsets_are_added_to_the_state_once(flow):
    """Every step of the chunk is an offset from the same state; grippers are absolute."""
    got, _ = run(flow, observe(flow))
    stats, state = flow.info.action_stats, np.array(flow.robot.resting_state)
    plain = got.actions_normalised * (np.array(stats.std) + 1e-6) + stats.mean
    close(got.actions, plain + np.where(flow.robot.offsets, state, 0), 1e-4)


def test_actions_become_absolute_before_they_take_the_robots_convention():
    """With offsets for the grippers too, whose convention is no mere change of sign."""
    robot = dataclasses.replace(ALOHA, offsets=(True,) * 14)
    plain = Stats((0.0,) * 14, (1.0,) * 14, None, None)
    rng = np.random.default_rng(0)
    state = np.array(robot.resting_state) + rng.uniform(0, 0.1, 14)
    offsets = rng.uniform(-0.1, 0.1, (1, 3, 14))
    got = conversion.from_model(robot, offsets, state, plain, "z-score")
    absolute = offsets * (1 + 1e-6) + robot.state_to_model(state)
    close(got, robot.actions_from_model(absolute), 1e-6)
    too_late = robot.actions_from_model(offsets * (1 + 1e-6)) + state
    assert np.abs(got - too_late).max() > 1e-3


def test_a_fast_prompt_holds_the_robots_own_dimensions(fast, monkeypatch):
    """Not those that a model is padded to."""
    wider = dataclasses.replace(fast.config, action_dim=fast.config.action_dim + 4)
    monkeypatch.setattr(fast, "config", wider)
    prepared = fast.prepare(observe(fast))
    bins = prepared.prompt.text.partition("State: ")[2].partition(";")[0].split()
    assert len(bins) == len(prepared.state) == len(fast.info.state) < wider.action_dim


def test_reuse_changes_no_number(flow):
    """Image and prefix caches: another state, seed and step count on the same pictures."""
    first, _ = run(flow, observe(flow, seed=3))
    assert not first.reused
    for raw, options in [
        (observe(flow, seed=3, nudge=0.1), QUICK),
        (observe(flow, seed=3), dataclasses.replace(QUICK, seed=9)),
        (observe(flow, seed=3), dataclasses.replace(QUICK, num_steps=3)),
        (observe(flow, seed=3, prompt="touch the blue cube"), QUICK),
    ]:
        got, _ = run(flow, raw, options)
        assert "image embedding of base_0_rgb" in got.reused
        assert ("prefix" in got.reused) == (raw.prompt == "pick up the red cube")
        fresh, _ = run(load.untrained("pi0_tabletop"), raw, options)
        assert not fresh.reused
        close(got.actions, fresh.actions, 1e-5)
        assert not np.allclose(got.actions, first.actions, atol=1e-3)
    other = observe(flow, seed=44)  # another picture in the same slot
    got, _ = run(flow, other)
    assert not got.reused
    fresh, _ = run(load.untrained("pi0_tabletop"), other)
    close(got.actions, fresh.actions, 1e-5)


def test_a_robot_neither_fills_nor_uses_what_is_kept_for_visitors():
    for name in ("pi0_tabletop", "pi0_fast_tabletop"):
        policy = load.untrained(name)
        of_visitor, of_robot = observe(policy, seed=11), observe(policy, seed=12)
        run(policy, of_visitor)
        sizes = [len(kept) for kept in (policy.kept.image_tokens, policy.kept.prefixes)]
        policy.chunk(of_robot, QUICK)
        assert sizes == [len(kept) for kept in (policy.kept.image_tokens, policy.kept.prefixes)]
        assert run(policy, of_visitor)[0].reused
        got, _ = run(policy, of_robot)
        assert "prefix" not in got.reused
        assert not any("base" in reused for reused in got.reused)
        # And its own frames, however many, are not kept: a slot without a camera is.
        for seed in range(13, 17):
            policy.chunk(observe(policy, seed=seed), QUICK)
        assert len(policy.kept_of_robots.prefixes) == 1
        assert len(policy.kept_of_robots.image_tokens) <= 8


def test_text_padding_left_out_changes_no_number(flow, fast):
    """Measured attention is shown over every place, so a run that measures it leaves none out."""
    measured = dataclasses.replace(QUICK, attention=True)
    for policy, tolerance in ((flow, 1e-5), (fast, 0)):
        for modes in ({}, {"left_wrist_0_rgb": "masked"}):
            got, _ = run(policy, observe(policy, seed=6, modes=modes))
            whole, _ = run(policy, observe(policy, seed=6, modes=modes), measured)
            assert got.inputs.modes == whole.inputs.modes
            np.testing.assert_array_equal(got.mask, whole.mask)
            if policy is flow:
                close(got.x_t, whole.x_t, tolerance)
            else:
                assert [t.id for t in got.tokens] == [t.id for t in whole.tokens]
                chances = [[t.probability for t in r.tokens] for r in (got, whole)]
                close(*chances, 1e-5)
    prompt = flow.prepare(observe(flow)).prompt
    assert prompt.mask.sum() < 32 < len(prompt.tokens)
    (prefix, _) = next(reversed(flow.kept.prefixes.values()))
    seen = 64 * len(CAMERAS.keys() - modes.keys())
    assert prefix.input_mask.shape == (1, seen + len(prompt.tokens))  # the last run measured
    run(flow, observe(flow, seed=6, prompt="touch the blue cube"))
    (prefix, _) = next(reversed(flow.kept.prefixes.values()))
    assert prefix.input_mask.shape == (1, 64 * len(CAMERAS) + 32)


def test_a_sample_is_its_seed(flow):
    many, _ = run(flow, observe(flow), dataclasses.replace(QUICK, num_samples=3, seed=4))
    alone, _ = run(flow, observe(flow), dataclasses.replace(QUICK, seed=6))
    close(many.actions[2], alone.actions[0], 1e-4)


def test_black_is_seen_and_masked_is_not(flow, fast):
    for policy in (flow, fast):
        masked, _ = run(policy, observe(policy, modes={"left_wrist_0_rgb": "masked"}))
        black, _ = run(policy, observe(policy, modes={"left_wrist_0_rgb": "black"}))
        attended = [
            (t.mask[:, block.start : block.stop] == ALLOWED).any()
            for t in (masked, black)
            for block in t.blocks
            if block.name == "left_wrist_0_rgb"
        ]
        if policy is flow:
            assert attended == [False, True]
            assert not np.allclose(masked.actions, black.actions, atol=1e-4)


def test_fast_says_why_there_is_no_chunk(fast):
    got, events = run(fast, observe(fast))
    assert got.actions is None
    assert "Action: " in got.decode_failure
    assert np.isnan(got.partial_actions).all()
    assert len(got.tokens) == 4 == sum(isinstance(e, TokenEvent) for e in events)
    for token in got.tokens:
        assert token.id not in [other for other, _, _ in token.runners_up]
        assert token.probability >= max(p for _, _, p in token.runners_up)


def test_fast_tokens_are_the_models_own(fast):
    got, _ = run(fast, observe(fast), dataclasses.replace(QUICK, temperature=1.0, seed=2))
    again, _ = run(fast, observe(fast), dataclasses.replace(QUICK, temperature=1.0, seed=2))
    other, _ = run(fast, observe(fast), dataclasses.replace(QUICK, temperature=1.0, seed=3))
    assert [t.id for t in got.tokens] == [t.id for t in again.tokens]
    assert [t.id for t in got.tokens] != [t.id for t in other.tokens]


def test_programs_that_visitors_choose_are_bounded(fast, monkeypatch):
    """Room for more tokens is another one; what was dropped is announced and compiled again, and
    gives the same."""
    before, _ = run(fast, observe(fast))
    assert compiled.num_programs() > 0
    dropped = compiled.times_dropped()
    monkeypatch.setattr(compiled, "MAX_PROGRAMS", compiled.num_programs())
    run(fast, observe(fast), dataclasses.replace(QUICK, max_tokens=65))
    assert compiled.num_programs() > compiled.MAX_PROGRAMS
    again, events = run(fast, observe(fast))
    assert compiled.times_dropped() == dropped + 1
    assert 0 < compiled.num_programs() <= compiled.MAX_PROGRAMS
    assert "compiling decode" in [event.phase for event in events if isinstance(event, Phase)]
    assert again.tokens == before.tokens
    _, events = run(fast, observe(fast))
    assert "decode" in [event.phase for event in events if isinstance(event, Phase)]
    assert compiled.times_dropped() == dropped + 1


def test_no_temperature_and_no_number_of_tokens_is_a_program_of_its_own(fast):
    """Visitors choose them, and a program takes seconds to compile."""

    def written(temperature, max_tokens):
        options = Options(temperature=temperature, max_tokens=max_tokens, constrained=False)
        trace, events = run(fast, observe(fast), options)
        fast.actions(observe(fast), options)
        phases = [event.phase for event in events if isinstance(event, Phase)]
        return [token.id for token in trace.tokens], phases

    first, greedy = written(0.3, 4)[0], written(0.0, 4)[0]
    known = compiled.num_programs()
    for temperature, max_tokens in itertools.product((0.0, 0.3, 1, 10.0), (1, 5, 31, 32)):
        tokens, phases = written(temperature, max_tokens)
        assert compiled.num_programs() == known
        assert not [phase for phase in phases if phase.startswith("compiling")]
        assert len(tokens) <= max_tokens
        if len(tokens) < max_tokens:
            assert tokens[-1] == EOS
        if temperature in (0, 0.3):
            same = greedy if temperature == 0 else first
            assert tokens[:4] == same[:max_tokens]
    assert written(10.0, 32)[0] != written(0.0, 32)[0]


@pytest.fixture(scope="module")
def bundled_fast():
    return load.open_policy("pi0_fast_tabletop")


def test_constrained_decoding_keeps_a_chunk_decodable_however_wild_the_draw(bundled_fast):
    """Step by step and as a whole, at a temperature at which free decoding fails."""
    (example, *_) = examples(TABLETOP)
    state = np.array(example.state)
    raw = RawObservation("tabletop", by_slot(example.images), {}, "touch the red cube", state)
    for seed in range(3):
        wild = Options(temperature=3.0, seed=seed, max_tokens=512, constrained=True)
        got, _ = run(bundled_fast, raw, wild)
        assert got.decode_failure is None
        assert any("tokens were drawn from those" in warning for warning in got.warnings)
        own, _ = run(bundled_fast, raw, dataclasses.replace(wild, constrained=None))
        assert [t.id for t in own.tokens] == [t.id for t in got.tokens]
        whole, failure = bundled_fast.actions(raw, wild)
        assert failure is None
        close(whole, got.actions_normalised, 1e-5)
        free, _ = run(bundled_fast, raw, dataclasses.replace(wild, constrained=False))
        assert free.decode_failure
        assert not any("Constrained" in warning for warning in free.warnings)


def test_constrained_decoding_changes_nothing_that_decodes(bundled_fast):
    """And says so where it does: of the examples, and of pictures of noise."""
    raws = [observe(bundled_fast, seed) for seed in range(6)]
    raws += [
        RawObservation("tabletop", by_slot(e.images), {}, e.prompt, np.array(e.state))
        for e in examples(TABLETOP)
    ]
    same, mended = 0, 0
    for raw in raws:
        free, own = (run(bundled_fast, raw, Options(constrained=how))[0] for how in (False, None))
        assert own.decode_failure is None
        if free.decode_failure is None:
            same += 1
            assert [t.id for t in own.tokens] == [t.id for t in free.tokens]
            assert all(token.likeliest for token in own.tokens)
        else:
            mended += 1
            against = sum(not token.likeliest for token in own.tokens)
            assert against
            warned = f"Constrained decoding: at {against} of {len(own.tokens)} tokens"
            assert any(warned in warning for warning in own.warnings)
    assert same
    assert mended


def test_attention_is_spread_over_the_columns_shown(flow, fast):
    """Rows sum to one over allowed cells; nothing stands where the mask blocks."""
    for policy in (flow, fast):
        got, _ = run(policy, observe(policy), dataclasses.replace(QUICK, attention=True))
        suffix, prefix = got.attention["suffix"], got.attention["prefix"]
        rows = got.mask[-suffix.shape[-2] :] if policy is flow else got.mask[-4:]
        if policy is fast:
            suffix = suffix[..., 0, :].transpose(1, 2, 0, 3)  # tokens become the rows
        shown = suffix[..., : got.mask.shape[1]].astype(np.float32)
        close(shown.sum(axis=-1), np.ones(shown.shape[:-1]), 5e-3)
        assert not shown[..., rows != ALLOWED].any()
        size = prefix.shape[-2]
        inside = prefix[..., :size].astype(np.float32)
        allowed = got.mask[:size, :size] == ALLOWED
        alive = allowed.any(axis=1)
        assert not inside[..., alive, :][..., ~allowed[alive]].any()


def test_heads_are_averaged_where_attention_is_too_large(monkeypatch):
    draw = np.random.default_rng(0)
    steps = [draw.random((2, 3, 4, 5)).astype(np.float16) for _ in range(2)]
    prefix = [draw.random((1, 3, 6, 5)).astype(np.float16) for _ in range(2)]
    whole = token_layout.attention(steps, prefix)
    np.testing.assert_array_equal(whole["suffix"], steps)
    np.testing.assert_array_equal(whole["prefix"], [layer[0] for layer in prefix])
    monkeypatch.setattr(token_layout, "MAX_ATTENTION_BYTES", whole["prefix"].nbytes)
    found = token_layout.attention(steps, prefix)
    np.testing.assert_array_equal(found["prefix"], whole["prefix"])
    mean = np.mean(steps, axis=2, keepdims=True, dtype=np.float32)
    np.testing.assert_allclose(found["suffix"], mean, rtol=1e-3)


@pytest.mark.usefixtures("goldens")
@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("name", ["b1_all", "b2_rightmasked"])
def test_flow_mask_is_openpis(family, name):
    record = case(family, name)
    for i, want in enumerate(record["full_attn_mask"]):
        valid = record["tokenized_prompt_mask"][i]
        prompt = Prompt(record["tokenized_prompt"][i].astype(np.int64), valid, "", 0)
        fields = token_layout.flow(CONFIGS[family], prompt, modes(record, i), str)
        same(fields["mask"] == ALLOWED, want)
        check_blocks(fields)


@pytest.mark.usefixtures("goldens")
@pytest.mark.parametrize("name", ["b1_all", "b2_lens", "b2_masked", "b1_basemasked"])
def test_fast_mask_is_openpis(name):
    record = case("pi0_fast", name)
    config, ran = CONFIGS["pi0_fast"], int(record["steps_run"])
    for i in range(len(record["images"])):
        valid = record["infer_tokenized_prompt_mask"][i]
        ids = record["infer_tokenized_prompt"][i].astype(np.int64)
        prompt = FastPrompt(ids, valid, 0 * ids, valid & False, "", 0)
        fields = token_layout.fast(config, prompt, modes(record, i), str, ["x"] * ran)
        got, length = fields["mask"] == ALLOWED, config.prefix_len
        if "aligned_attn_mask" in record:
            same(got[:length, :length], record["aligned_attn_mask"][i])
        assert not got[:length, length:].any()
        decode = record["steps_attn_mask"][:, i].reshape(ran, -1)[:, : length + ran]
        same(got[length:], decode)
        check_blocks(fields)


@pytest.mark.parametrize("ran", [0, 1, 600])
def test_fast_mask_goes_on_by_its_rule_however_much_is_written(ran):
    """Each token sees what the first sees of the prefix, and those written up to itself."""
    config = CONFIGS["pi0_fast"]
    valid = np.arange(config.max_token_len) < 20
    prompt = FastPrompt(np.int64(valid), valid, 0 * valid, valid & False, "", 0)
    filled = dict.fromkeys(config.image_slots, "filled")
    fields = token_layout.fast(config, prompt, filled, str, ["x"] * ran)
    rows = fields["mask"][config.prefix_len :] == ALLOWED
    visible = np.arange(config.prefix_len) >= config.max_token_len - 20  # padding comes first
    same(rows, np.hstack([np.tile(visible, (ran, 1)), np.tri(ran, dtype=bool)]))
    valid = np.r_[visible, np.ones(ran, bool)]
    beside = ~(valid[:, None] & valid) & (fields["mask"] != ALLOWED)
    same(fields["mask"] == PADDING, beside)
    check_blocks(fields)


def modes(record, i):
    there = dict(zip(record.meta["camera_order"], record["image_masks"][i], strict=True))
    return {slot: "filled" if here else "masked" for slot, here in there.items()}


def check_blocks(fields):
    """Blocks tile the columns, and text stands where there is text."""
    edges = [0, *(block.stop for block in fields["blocks"])]
    assert [block.start for block in fields["blocks"]] == edges[:-1]
    assert edges[-1] == len(fields["token_texts"]) == len(fields["mask"])
    for block in fields["blocks"]:
        texts = fields["token_texts"][block.start : block.stop]
        assert all(texts) == (block.kind not in ("image", "padding"))


def test_refusals_name_what_is_wrong(flow):
    raw = observe(flow)
    for change, words in [
        ({"robot": "droid"}, "droid"),
        ({"images": {}}, "base_0_rgb"),
        ({"state": raw.state[:3]}, "14"),
        ({"state": raw.state * np.nan}, "left waist"),
        ({"modes": {"base_0_rgb": "blurred"}}, "blurred"),
    ]:
        with pytest.raises(ValueError, match=words):
            list(flow.infer(dataclasses.replace(raw, **change), QUICK))
    for option, value in [("num_steps", 0), ("num_samples", 99), ("temperature", -1)]:
        with pytest.raises(ValueError, match=option):
            list(flow.infer(raw, dataclasses.replace(QUICK, **{option: value})))


def test_damaged_weights_draw_nothing(flow):
    """An answer that is not finite is refused, not shown."""
    broken = load.untrained("pi0_tabletop")
    info = broken.info
    wild = dataclasses.replace(info.action_stats, std=(float("inf"),) * 14)
    broken.info = dataclasses.replace(info, action_stats=wild)
    with pytest.raises(ValueError, match="not finite"):
        list(broken.infer(observe(broken), QUICK))


@pytest.mark.parametrize("kind", ["flow", "fast"])
def test_a_trace_survives_its_file(kind, request):
    policy = request.getfixturevalue(kind)
    got, _ = run(policy, observe(policy), dataclasses.replace(QUICK, attention=True))
    file = io.BytesIO()
    trace.save(got, file)
    back = trace.load(file)
    flat, tree = jax.tree.flatten(codec.pack(got))
    again, same_tree = jax.tree.flatten(codec.pack(back))
    assert tree == same_tree
    for a, b in zip(flat, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_that_are_no_traces_are_refused():
    for data in (b"", b"PK\x05\x06" + bytes(18), b"\x80\x04]."):
        with pytest.raises(ValueError, match="not a saved trace"):
            trace.load(io.BytesIO(data))


def test_a_picture_that_the_tables_camera_did_not_take_is_told(flow):
    (example, *_) = examples(TABLETOP)
    table, state = example.images["table"], np.array(example.state)
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for image, on_table in ((table, True), (photo, False)):
        raw = RawObservation("tabletop", in_all(image), {}, "touch the red cube", state)
        assert flow.prepare(raw).on_table is on_table
        assert (camera.FOREIGN in flow.prepare(raw).warnings) != on_table
    # Of a gripper's camera nothing is expected; what fills a slot without one is a stranger's.
    cameras = zip(TABLETOP.flow_slots, (builtin.TABLE_CAMERA, "wrist", NO_CAMERA), strict=True)
    slots = tuple(
        dataclasses.replace(slot, camera=name, required=name != NO_CAMERA) for slot, name in cameras
    )
    gripper = load.untrained("pi0_tabletop")
    gripper.robot = dataclasses.replace(TABLETOP, flow_slots=slots)
    gripper.info = dataclasses.replace(gripper.info, slots=slots)
    given = {"base_0_rgb": table, "left_wrist_0_rgb": photo}
    seen = RawObservation("tabletop", given, {}, "touch the red cube", state)
    assert gripper.prepare(seen).on_table is True
    for slot in ("base_0_rgb", "right_wrist_0_rgb"):
        strange = dataclasses.replace(seen, images={**given, slot: photo})
        assert gripper.prepare(strange).on_table is False
    # The camera of the table, blanked, stays where it is.
    modes = {"base_0_rgb": "black", **ONE_CAMERA}
    blank = RawObservation("tabletop", {}, modes, "touch the red cube", state)
    assert flow.prepare(blank).on_table is True
    assert camera.FOREIGN not in flow.prepare(blank).warnings
