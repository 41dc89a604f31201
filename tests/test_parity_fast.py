"""pi0-FAST against recorded runs of openpi, stage by stage (tolerances: the goldens' README)."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoding, masks, pi0_fast
from models.decoding import Constraint, DecodeOptions, StopAfter
from models.pi0_fast import Pi0FastPrograms
from tests.support.golden_models import case, close, near, same
from tests.test_parity_flow import BFLOAT16_LAYERS, check_attention

pytestmark = pytest.mark.usefixtures("goldens")

TRAIN = ["b1_all", "b2_lens", "b2_masked", "b1_basemasked"]
ENDS = ["b1_eos", "b2_eos_apart", "b2_eos_together"]
BFLOAT16 = ["b2_bf16", "b1_bf16_params"]
each_case = pytest.mark.parametrize("name", TRAIN + ENDS)


@functools.cache
def programs(name):
    return Pi0FastPrograms(case("pi0_fast", name).model())


@pytest.mark.parametrize("name", [*TRAIN, *ENDS, *BFLOAT16])
def test_loss(name):
    record = case("pi0_fast", name)
    loss = jax.jit(record.model().compute_loss)(record.observation("train_"))
    assert loss.dtype == jnp.float32
    if name in BFLOAT16:
        near(loss, record["loss"], 0.001)
    else:
        close(loss, record["loss"], 1e-5)


@pytest.mark.parametrize("name", TRAIN)
def test_training_pass(name):
    record = case("pi0_fast", name)
    net, observation = record.model(), record.observation("train_")
    embedded = net.embed_inputs(observation)
    if "train_tokens" in record:
        close(embedded.tokens, record["train_tokens"], 3e-5)
    same(embedded.input_mask, record["train_input_mask"])
    same(embedded.ar_mask, record["train_ar_mask"])
    mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)
    if "train_attn_mask" in record:
        same(mask, record["train_attn_mask"])
    outputs, attention = net.forward(observation)
    hidden = outputs[:, -(observation.tokens.shape[1] - 1) :]
    if "train_pre_logits" in record:
        close(hidden, record["train_pre_logits"], 1e-4)
    if "train_target_logp" in record:
        close(net.log_probabilities(observation), record["train_target_logp"], 1e-4)
    if "train_logits_top5_ids" in record:
        logits = np.asarray(net.gemma.logits(hidden))
        check_top5(logits, record, "train_logits")
    if "probs" in record:
        check_attention(attention, record, mask[:, :-1, :-1])


def check_top5(logits, record, name):
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :5]
    same(order, record[f"{name}_top5_ids"])
    close(np.take_along_axis(logits, order, -1), record[f"{name}_top5_values"], 1e-4)


@each_case
def test_prefill(name):
    record = case("pi0_fast", name)
    net, observation = record.model(), record.observation("infer_")
    steps = record["tokens_greedy"].shape[1]
    embedded = net.embed_inputs(observation)
    if "infer_prompt_tokens" in record:
        text = record["infer_prompt_tokens"].shape[1]
        close(embedded.tokens[:, -text:], record["infer_prompt_tokens"], 3e-5)
    same(embedded.input_mask, record["infer_input_mask"])
    same(embedded.ar_mask, record["infer_ar_mask"])
    mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)
    shift = masks.right_align_shift(embedded.input_mask)
    aligned = masks.roll_rows(embedded.input_mask, shift)
    same(aligned, record["aligned_input_mask"])
    if "infer_attn_mask" in record:
        same(mask, record["infer_attn_mask"])
        aligned_mask = masks.roll_rows(masks.roll_rows(mask, shift, 1), shift, 2)
        same(aligned_mask, record["aligned_attn_mask"])
        rebuilt = masks.block_causal(aligned, masks.roll_rows(embedded.ar_mask, shift))
        same(rebuilt, record["aligned_attn_mask"])
    same(masks.positions(aligned), record["prefill_positions"])
    state, attention = net.prefill(observation, max_decoding_steps=steps)
    close(state.logits, record["prefill_last_logits"], 1e-4)
    same(attention[0].shape[2:], (net.config.prefix_len, net.config.prefix_len + steps))
    if "prefill_k" in record:
        length = record["prefill_k"].shape[2]
        for ours, theirs in (("k", "prefill_k"), ("v", "prefill_v")):
            cache = jnp.stack([layer[:, :length] for layer in ours_of(state, ours)])
            close(cache, record[theirs], 1e-4)
            assert not np.any([layer[:, length:] for layer in ours_of(state, ours)])


def ours_of(state, name):
    return state.cache.k if name == "k" else state.cache.v


@each_case
def test_every_decoding_step(name):
    """Fed with openpi's tokens: logits before each, masks, and what the cache holds at the end."""
    record = case("pi0_fast", name)
    net, observation = record.model(), record.observation("infer_")
    tokens = record["tokens_greedy"].astype(np.int32)
    steps, prefix_len = tokens.shape[1], net.config.prefix_len
    state = programs(name).prefill(observation, max_decoding_steps=steps)
    feed = jax.jit(lambda state, token: net.decode_step(state, token)[0])
    for i in range(int(record["steps_run"])):
        logits = np.asarray(state.logits)
        top5 = (f"steps_logits_top5_{part}" for part in ("ids", "values"))
        check_top5(logits, {key: record[key][i] for key in top5}, "steps_logits")
        if "steps_logits" in record:
            close(logits, record["steps_logits"][i], 1e-4)
        mask = masks.decode_mask(state.visible, state.step, prefix_len + steps)
        same(mask[:, 0], record["steps_attn_mask"][i].reshape(mask[:, 0].shape))
        same(state.first_position + state.step, record["steps_positions"][i].reshape(-1))
        state = feed(state, tokens[:, i])
    if "decoded_k" in record:
        close(jnp.stack([k[:, prefix_len:] for k in state.cache.k]), record["decoded_k"], 1e-4)
        close(jnp.stack([v[:, prefix_len:] for v in state.cache.v]), record["decoded_v"], 1e-4)


@each_case
def test_greedy_tokens(name):
    record = case("pi0_fast", name)
    steps = record["tokens_greedy"].shape[1]
    tokens = programs(name).sample_actions(record.observation("infer_"), max_decoding_steps=steps)
    same(tokens, record["tokens_greedy"])


@pytest.mark.parametrize("name", ["b1_all", "b2_lens"])
def test_sampled_tokens(name):
    record = case("pi0_fast", name)
    tokens = programs(name).sample_actions(
        record.observation("infer_"),
        jax.random.key(int(record["sample_seed"])),
        DecodeOptions(temperature=float(record["temperature"])),
        max_decoding_steps=record["tokens_sampled"].shape[1],
    )
    same(tokens, record["tokens_sampled"])


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16(name):
    """Greedy tokens as long as the best is well ahead of the second."""
    record = case("pi0_fast", name)
    steps = record["tokens_greedy"].shape[1]
    observation = record.observation("infer_")
    state = programs(name).prefill(observation, max_decoding_steps=steps)
    assert state.cache.k[0].dtype == jnp.bfloat16
    near(state.logits, record["prefill_last_logits"], 0.038)
    if "prefill_k" in record:
        length = record["prefill_k"].shape[2]
        for layer, bound in enumerate(BFLOAT16_LAYERS):
            near(state.cache.k[layer][:, :length], record["prefill_k"][layer], bound)
            near(state.cache.v[layer][:, :length], record["prefill_v"][layer], bound)
    tokens = np.asarray(programs(name).decode_all(state))
    for row, margins in enumerate(record["steps_margin"].T):
        doubtful = np.flatnonzero(margins < 0.3)
        sure = doubtful[0] if doubtful.size else len(margins)
        same(tokens[row, :sure], record["tokens_greedy"][row, :sure])


@pytest.mark.parametrize("temperature", [None, 0.8])
def test_stepwise_equals_whole_loop(temperature, monkeypatch):
    """Tokens one by one, four by one program at a time, and all by one."""
    first, measured = None, []
    record = case("pi0_fast", "b2_lens")
    run, observation = programs("b2_lens"), record.observation("infer_")
    key, options = jax.random.key(3), DecodeOptions(temperature=temperature)
    whole = np.asarray(run.sample_actions(observation, key, options, max_decoding_steps=9))
    state = run.prefill(observation, max_decoding_steps=9)
    monkeypatch.setattr(pi0_fast, "BLOCK", 4)
    for attention, at_once in itertools.product((False, True), (False, True)):
        parts = list(run.decode(state, key, options, attention=attention, at_once=at_once))
        assert [part.num_steps for part in parts] == ([4, 4, 1] if at_once else [1] * 9)
        written = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        same(written.token.T, whole)
        best = np.argsort(-written.top_probabilities, axis=-1, kind="stable")
        same(best, np.broadcast_to(np.arange(5), best.shape))
        if temperature is None:
            same(written.token, written.top_ids[..., 0])
            close(written.probability, written.top_probabilities[..., 0], 0)
        first = first or written
        close(written.probability, first.probability, 1e-5)
        close(written.top_probabilities, first.top_probabilities, 1e-5)
        if attention:
            weights = np.stack(written.attention)
            close(weights.sum(axis=-1), np.ones(weights.shape[:-1]), 1e-5)
            measured.append(weights)
    close(*measured, 1e-5)


def test_stop_ends_rows_early_and_changes_no_token_before():
    """A row ends at `end`, but only once `start` has been written; both ways of running agree."""
    record = case("pi0_fast", "b2_lens")
    run, observation = programs("b2_lens"), record.observation("infer_")
    plain = np.asarray(run.sample_actions(observation, max_decoding_steps=16))
    for start_at, end_at in ((2, 5), (6, 3)):
        stop = StopAfter(
            tuple(int(t) for t in plain[0, start_at : start_at + 2]), int(plain[0, end_at])
        )
        options = DecodeOptions(stop=stop)
        got = np.asarray(run.sample_actions(observation, None, options, max_decoding_steps=16))
        expected = max(stop_length(row, stop) for row in plain)
        same(got[:, :expected], plain[:, :expected])
        assert not got[:, expected:].any()
        state = run.prefill(observation, max_decoding_steps=16)
        for at_once in (False, True):
            parts = list(run.decode(state, None, options, at_once=at_once))
            same(np.concatenate([p.token for p in parts]).T, plain[:, :expected])


def stop_length(row, stop):
    """By hand: how many tokens of a row are written."""
    for i in range(len(row)):
        if row[i] == 1:
            return i + 1
        before = [tuple(row[j : j + 2]) for j in range(i - 1)]
        if row[i] == stop.end and stop.start in before:
            return i + 1
    return len(row)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_draft_changes_no_token(constrained, monkeypatch):
    """Whatever it is made of: all that is written, all but one in the middle, or something else;
    over several drafts, for rows of their own, with an end."""
    monkeypatch.setattr(decoding, "DRAFT_LENGTH", 4)
    record = case("pi0_fast", "b2_lens")
    run, vocabulary = Pi0FastPrograms(record.model()), record.model().config.vocab_size
    state = run.prefill(record.observation("infer_"), max_decoding_steps=16)
    options = DecodeOptions()
    if constrained:
        completed = np.where(np.arange(vocabulary) < 9, -1, 1) * np.array([[1], [0], [0], [0]])
        completed, zeros = completed.astype(np.int32), np.zeros(vocabulary, bool)
        constraint = Constraint(completed, 0 * completed, zeros, 9, 9, start=(5, 6), end=7)
        options = DecodeOptions(stop=StopAfter((5, 6), 7), constraint=constraint)
    plain = np.asarray(run.decode_all(state, None, options))
    written = np.unique(plain)
    assert len(written) > 8
    for ids in (written, np.setdiff1d(written, plain[0, 9]), np.arange(1000, 1003)):
        drafted = dataclasses.replace(options, draft_ids=jnp.asarray(ids, jnp.int32))
        same(run.decode_all(state, None, drafted), plain)
