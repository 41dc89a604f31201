"""What must hold for any weights and inputs: padding and masked cameras change nothing, a batch is
its rows, a cache is an optimisation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from models import masks
from models.config import ExpertConfig, Pi0Config, Pi0FastConfig, VisionConfig
from models.gemma import Pair
from models.observation import Observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from models.tokenizer import EOS
from tests.support.golden_models import close, same

SLOTS = ("base", "left", "right")
VISION = VisionConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, image_size=8)
LANGUAGE = ExpertConfig(width=32, depth=2, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8)
ACTION = dataclasses.replace(LANGUAGE, width=16, mlp_dim=32)
FLOW = Pi0Config(
    vision=VISION,
    language=LANGUAGE,
    action_expert=ACTION,
    vocab_size=40,
    action_dim=5,
    action_horizon=4,
    max_token_len=6,
    pi05=False,
    dtype="float32",
    image_slots=SLOTS,
)
FAST = Pi0FastConfig(
    vision=VISION,
    language=LANGUAGE,
    vocab_size=12,
    action_dim=5,
    action_horizon=4,
    max_token_len=6,
    dtype="float32",
    image_slots=SLOTS,
)
STEPS, TOKENS = 3, 8
# One summation order against another, over a handful of layers.
ROUNDING = 2e-5

each_flow = pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
a_few = settings(max_examples=8, derandomize=True)
seeds = st.integers(0, 10_000)
lengths = st.integers(1, 6)
camera_sets = st.lists(st.sampled_from(SLOTS), min_size=1, unique=True)


@functools.cache
def net(config, max_token_len: int = 6):
    """Random weights, the same for every text length; no norm scale or gate stays at zero."""
    config = dataclasses.replace(config, max_token_len=max_token_len)
    model = (Pi0 if isinstance(config, Pi0Config) else Pi0Fast)(config, rngs=nnx.Rngs(7))
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    model = nnx.merge(graphdef, jax.tree.unflatten(tree, moved))
    programs = Pi0Programs if isinstance(config, Pi0Config) else Pi0FastPrograms
    return model, programs(model)


def observe(seed, lengths, text_len=6, cameras=SLOTS, vocab=40):
    """A random observation: prompts of these lengths in `text_len` places, these cameras there."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    tokens = rng.integers(2, vocab, (rows, 6))
    tokens = np.pad(tokens, ((0, 0), (0, text_len - 6)))
    images = {s: rng.uniform(-1, 1, (rows, 8, 8, 3)).astype(np.float32) for s in SLOTS}
    state = rng.normal(size=(rows, 5)).astype(np.float32)
    noise = rng.normal(size=(rows, 4, 5)).astype(np.float32)
    mask = np.arange(text_len) < np.array(lengths)[:, None]
    observation = Observation(
        images=images,
        image_masks={s: np.full(rows, s in cameras) for s in SLOTS},
        state=state,
        tokens=jnp.asarray(np.where(mask, tokens, 0), jnp.int32),
        token_mask=jnp.asarray(mask),
        token_ar_mask=jnp.zeros((rows, text_len), jnp.int32),
    )
    return observation, noise


def row(observation, i):
    return jax.tree.map(lambda x: x[i : i + 1], observation)


@each_flow
@a_few
@given(seed=seeds, length=lengths, cameras=camera_sets)
def test_text_padding_changes_no_action(pi05, seed, length, cameras):
    config = dataclasses.replace(FLOW, pi05=pi05)
    short, noise = observe(seed, [length], 6, cameras)
    long, _ = observe(seed, [length], 9, cameras)
    a = net(config, 6)[1].sample_actions(short, noise, num_steps=STEPS)
    b = net(config, 9)[1].sample_actions(long, noise, num_steps=STEPS)
    close(a, b, ROUNDING)


@each_flow
@a_few
@given(seed=seeds, length=lengths, cameras=camera_sets)
def test_masked_cameras_change_no_action(pi05, seed, length, cameras):
    """Their pixels do not matter, nor whether they are there at all."""
    run = net(dataclasses.replace(FLOW, pi05=pi05))[1]
    masked, noise = observe(seed, [length], cameras=cameras)
    actions = run.sample_actions(masked, noise, num_steps=STEPS)
    other = {s: v if s in cameras else 0.5 - v for s, v in masked.images.items()}
    repainted = dataclasses.replace(masked, images=other)
    close(run.sample_actions(repainted, noise, num_steps=STEPS), actions, 0)
    left_out = dataclasses.replace(
        masked, image_masks={s: v for s, v in masked.image_masks.items() if s in cameras}
    )
    close(run.sample_actions(left_out, noise, num_steps=STEPS), actions, ROUNDING)


@each_flow
@a_few
@given(seed=seeds, first=lengths, second=lengths)
def test_a_batch_is_its_rows(pi05, seed, first, second):
    run = net(dataclasses.replace(FLOW, pi05=pi05))[1]
    both, noise = observe(seed, [first, second])
    actions = run.sample_actions(both, noise, num_steps=STEPS)
    for i in range(2):
        alone = run.sample_actions(row(both, i), noise[i : i + 1], num_steps=STEPS)
        close(alone, actions[i : i + 1], ROUNDING)


@each_flow
@a_few
@given(seed=seeds, length=lengths, cameras=camera_sets, t=st.floats(0.01, 1))
def test_velocity_over_the_cache_is_velocity_in_one_pass(pi05, seed, length, cameras, t):
    model, run = net(dataclasses.replace(FLOW, pi05=pi05))
    observation, x_t = observe(seed, [length], cameras=cameras)
    prefix = run.prefill(observation)
    cached, _ = model.velocity(prefix, observation, x_t, jnp.float32(t))
    whole, _, _ = model.forward(observation, x_t, jnp.full((1,), t, jnp.float32))
    close(cached, whole, ROUNDING)


@pytest.mark.parametrize(("pi05", "listens"), [(False, True), (True, False)])
def test_who_listens_to_the_state(pi05, listens):
    """pi0 has a token for it; pi0.5 reads it in its prompt."""
    run = net(dataclasses.replace(FLOW, pi05=pi05))[1]
    observation, noise = observe(0, [4])
    nudged = dataclasses.replace(observation, state=observation.state + 1)
    a, b = (run.sample_actions(o, noise, num_steps=STEPS) for o in (observation, nudged))
    assert np.array_equal(a, b) != listens


@a_few
@given(seed=seeds, length=lengths)
def test_fast_text_padding_changes_no_token(seed, length):
    short, _ = observe(seed, [length], 6, vocab=12)
    long, _ = observe(seed, [length], 9, vocab=12)
    a = net(FAST, 6)[1].sample_actions(short, max_decoding_steps=TOKENS)
    b = net(FAST, 9)[1].sample_actions(long, max_decoding_steps=TOKENS)
    same(a, b)


@a_few
@given(seed=seeds, first=lengths, second=lengths)
def test_fast_rows_agree_up_to_their_own_end(seed, first, second):
    run = net(FAST)[1]
    both, _ = observe(seed, [first, second], vocab=12)
    tokens = np.asarray(run.sample_actions(both, max_decoding_steps=TOKENS))
    for i in range(2):
        alone = np.asarray(run.sample_actions(row(both, i), max_decoding_steps=TOKENS))[0]
        ends = np.flatnonzero(alone == EOS)
        own = ends[0] + 1 if ends.size else TOKENS
        same(tokens[i, :own], alone[:own])


@a_few
@given(seed=seeds, length=lengths)
def test_fast_cache_is_one_pass(seed, length):
    """Logits after each fed token equal those of one pass over everything written so far."""
    model, run = net(FAST)
    observation, _ = observe(seed, [length], vocab=12)
    state = run.prefill(observation, max_decoding_steps=TOKENS)
    written = np.random.default_rng(seed).integers(2, 12, (1, 5))
    cached = []
    for token in written.T:
        state, _ = model.decode_step(state, jnp.asarray(token))
        cached.append(state.logits)

    embedded = model.embed_inputs(observation)
    shift = masks.right_align_shift(embedded.input_mask)
    prefix = masks.roll_rows(embedded.tokens, shift)
    there = masks.roll_rows(embedded.input_mask, shift)
    tokens = jnp.concatenate([prefix, model.gemma.embed(jnp.asarray(written))], axis=1)
    valid = jnp.concatenate([there, jnp.ones((1, 5), bool)], axis=1)
    opens = np.r_[np.zeros(prefix.shape[1], bool), np.ones(5, bool)]
    # Positions skip one after the prefix, as decoding does.
    positions = masks.positions(valid) + opens
    outputs, _, _ = model.gemma(Pair(prefix=tokens), positions, masks.block_causal(valid, opens))
    close(jnp.stack(cached, axis=1), model.gemma.logits(outputs.prefix[:, -5:]), 1e-4)


@a_few
@given(st.data())
def test_block_mask_by_its_definition(data):
    """Against the sentence, cell by cell: i sees j if both are there and j's block is not later."""
    t = data.draw(st.integers(1, 7))
    bits = st.lists(st.booleans(), min_size=t, max_size=t)
    there, opens = np.array(data.draw(bits)), np.array(data.draw(bits))
    got = np.asarray(masks.block_causal(jnp.asarray(there)[None], opens))[0]
    for i in range(t):
        for j in range(t):
            not_later = opens[: j + 1].sum() <= opens[: i + 1].sum()
            assert got[i, j] == (there[i] and there[j] and not_later)


def test_the_docstring_of_block_causal():
    """The matrix drawn in models/masks.py is what the function gives."""
    opens = np.array([0, 0, 0, 0, 1, 1, 0])
    there = jnp.array([[1, 1, 1, 0, 1, 1, 1]], bool)
    drawn = [
        line.split()[-7:]
        for line in masks.block_causal.__doc__.splitlines()
        if len(line.split()) >= 8 and set(line.split()[-7:]) <= {"1", "."}
    ]
    want = np.array([[cell == "1" for cell in line] for line in drawn])
    assert want.shape == (7, 7)
    same(masks.block_causal(there, opens)[0], want)


@a_few
@given(seed=seeds, rows=st.integers(1, 3))
def test_right_alignment(seed, rows):
    """Valid tokens keep their order and the last one ends its row."""
    rng = np.random.default_rng(seed)
    there = rng.random((rows, 7)) < 0.6
    there[:, 0] = True
    values = rng.normal(size=(rows, 7, 2))
    shift = masks.right_align_shift(jnp.asarray(there))
    rolled, moved = masks.roll_rows(jnp.asarray(there), shift), masks.roll_rows(values, shift)
    assert np.asarray(rolled)[:, -1].all()
    for i in range(rows):
        close(np.asarray(moved)[i][np.asarray(rolled)[i]], values[i][there[i]], 0)
