"""Training of the bundled policies: what is learned, repeatably, and how it is judged."""

import csv
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from safetensors.numpy import load_file

from models.checkpoints.bundled import save_bundled
from models.compiled import compiled
from models.config import PI0_FAST_TABLETOP, PI0_TABLETOP
from models.fast_tokenizer import FastActionTokenizer
from models.observation import Observation, uint8_to_float
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.tokenizer import state_bins
from playground.robots import conversion
from playground.robots.builtin import TABLETOP
from playground.robots.robot import slot_modes
from playground.tabletop import kinematics
from playground.tabletop.rollout import ask_expert, observe
from playground.tabletop.scene import CAMERAS, COLOURS, Table, nearer_arm, random_scene
from playground.tabletop.tasks import ONE_CUBE, VERBS, WORDINGS, Task, requests
from playground.training import (
    batches,
    commands,
    demonstrations,
    export,
    first_chunks,
    intervals,
    losses,
    tokenizers,
    train,
)
from playground.training.asker import Asker

ROOT = Path(__file__).parents[1]
TINY_VISION = dataclasses.replace(PI0_TABLETOP.vision, width=32, depth=1, mlp_dim=32, num_heads=2)
TINY_EXPERT = dataclasses.replace(
    PI0_TABLETOP.language, width=32, depth=2, mlp_dim=32, num_heads=2, head_dim=16
)
TINY = {
    "pi0": dataclasses.replace(
        PI0_TABLETOP, vision=TINY_VISION, language=TINY_EXPERT, action_expert=TINY_EXPERT
    ),
    "pi0_fast": dataclasses.replace(PI0_FAST_TABLETOP, vision=TINY_VISION, language=TINY_EXPERT),
}
SCHEDULE = train.Schedule(steps=8, sight=2, images=3, prompts=2, draws=2, warmup=2)


@pytest.fixture(scope="module")
def looks() -> demonstrations.Looks:
    """One small shard: real pictures, a few of them in mid-motion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstrations, "STARTS", 4)
        patch.setattr(demonstrations, "EPISODES", 2)
        return demonstrations.make_shard(seed=0, shard=3)


@pytest.fixture(scope="module")
def stats(looks):
    return batches.norm_stats(looks)


@pytest.fixture(scope="module")
def fast_folder(looks, stats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "fast"
    batches.fit_fast(looks, stats, folder, limit=200)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "CONFIGS", TINY)
    monkeypatch.setattr(export, "CONFIGS", TINY)


def batcher(looks, stats, name, fast_folder=None):
    return batches.Batcher(looks, TINY[name], stats, fast_folder, seed=0)


def rows_of(batch, looks) -> list[int]:
    """Which looks a batch is of, found by their pictures."""
    return [
        int(np.flatnonzero((looks.images[:, 0] == image).all((1, 2, 3)))[0])
        for image in batch.images
    ]


# --- demonstrations and batches -----------------------------------------------------------------


def test_a_shard_repeats_and_holds_starts_and_later_looks(looks, monkeypatch):
    monkeypatch.setattr(demonstrations, "STARTS", 1)
    monkeypatch.setattr(demonstrations, "EPISODES", 0)
    first, again = (demonstrations.make_shard(0, 3) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images[0], looks.images[0])
    other = demonstrations.make_shard(0, 4)
    assert (first.cubes != other.cubes).any()
    assert looks.starts.sum() == 6
    assert (~looks.starts).sum() > 4


def test_a_folder_tells_the_command_that_made_it(tmp_path):
    asked = ["--folder", str(tmp_path), "--shards", "0", "--workers", "1"]
    module = "playground.training.demonstrations"
    subprocess.run([sys.executable, "-m", module, *asked], check=True, cwd=ROOT)
    command = ["python", "-m", module, *asked]
    commands.note(tmp_path, command)  # as when it goes on after a stop
    assert commands.noted(tmp_path) == [shlex.join(command)]


def test_no_demonstrations_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"playground\.training\.demonstrations"):
        demonstrations.load(tmp_path)


def test_looks_at_a_table_that_a_cube_has_left_are_not_trained_on(looks, tmp_path):
    cubes = looks.cubes.copy()
    cubes[1, 2] = 0.41, 0.5, 0.02  # knocked aside
    cubes[2, 0, 2] = -170  # fallen
    cubes[4, 1, 1] = 0.74  # out of reach
    folder = write_shard(dataclasses.replace(looks, cubes=cubes), tmp_path / "data")
    loaded = demonstrations.load(folder)
    kept = np.setdiff1d(np.arange(len(looks)), [1, 2, 4])
    for field in dataclasses.fields(looks):
        np.testing.assert_array_equal(
            getattr(loaded, field.name),
            (cubes if field.name == "cubes" else getattr(looks, field.name))[kept],
        )


def test_wherever_a_cube_is_carried_is_in_reach():
    rng, every = np.random.default_rng(7), requests(tuple(v for v in VERBS if v != "touch"))
    for number in range(12):
        table, highest = Table(random_scene(rng)), 0.0
        verb, colour, other = every[rng.integers(len(every))]
        for _ in range(4):
            for action in ask_expert(table, Task(verb, colour, "{} {}", other)):
                table.step(action)
                cubes = np.stack([table.cube(each) for each in COLOURS])
                highest = max(highest, cubes[:, 2].max())
                assert demonstrations.in_reach(cubes[None]).all(), (number, verb)
        assert highest > 0.06, (number, verb)


def test_what_two_cubes_are_named_in_is_labelled_by_the_expert_at_the_table():
    table = Table(random_scene(11))
    *now, holders = demonstrations.look(table)
    images, pixels, state, cubes = (np.asarray(part)[None] for part in now)
    one = demonstrations.Looks(images, pixels, state, cubes, holders[None], np.array([True]))
    asked = demonstrations.requests_asked()
    assert len(asked) == 18
    found = demonstrations.labels(one, np.zeros(18, int), asked)
    for chunk, (verb, cube, other) in zip(found, asked, strict=True):
        named = COLOURS[other] if other >= 0 else ""
        task = Task(VERBS[verb], COLOURS[cube], "{} {}", named)
        np.testing.assert_allclose(chunk, ask_expert(table, task), atol=1e-9)


def test_the_grippers_pictures_show_the_cubes_where_the_batch_says(looks):
    stats = batches.norm_stats(looks)
    source = batches.Batcher(looks, TINY["pi0"], stats, None, seed=0)
    batch = source.batch(0, 8, 18)
    assert batch.wrist_images.shape == (8, 2, 112, 112, 3)
    patch, hits, shown = TINY_VISION.patch_size, 0, 0
    for pictures, patches in zip(batch.wrist_images, batch.wrist_patches, strict=True):
        for picture, camera_patches in zip(pictures, patches, strict=True):
            for cube, number in enumerate(camera_patches):
                if number < 0:
                    continue
                row, column = np.array(divmod(number, 112 // patch)) * patch
                pixels = picture[row : row + patch, column : column + patch].reshape(-1, 3)
                bright = pixels.astype(int).max(-1) - pixels.astype(int).min(-1) > 60
                hits += np.any(bright & (pixels.argmax(-1) == cube))
                shown += 1
    # A finger or another cube may be in the way.
    assert hits > 0.8 * shown > 10
    texts = [
        source.text.decode(tokens[mask].tolist())
        for tokens, mask in zip(batch.tokens, batch.token_mask, strict=True)
    ]
    for text, named, other in zip(texts, batch.named, batch.others, strict=True):
        order = sorted((text.find(colour), i) for i, colour in enumerate(COLOURS))
        in_text = [i for place, i in order if place >= 0]
        assert in_text == [i for i in (named, other) if i >= 0]


def test_normalised_chunks_go_back_to_the_experts_joint_targets(looks, stats):
    every = demonstrations.requests_asked()
    batch = batcher(looks, stats, "pi0").batch(0, 4, len(every))
    for i, row in enumerate(np.repeat(rows_of(batch, looks), len(every))):
        state = looks.states[row]
        chunk = conversion.from_model(
            TABLETOP, batch.actions[i].astype(np.float64), state, stats["actions"], "z-score"
        )
        asked = every[(every[:, 1] == batch.named[i]) & (every[:, 2] == batch.others[i])]
        assert len(asked) == 2  # touch or pick up, put on or next to
        wanted = demonstrations.labels(looks, np.full(2, row), asked)
        assert min(np.abs(chunk - w).max() for w in wanted) < 1e-4


def test_a_picture_gets_different_requests_and_each_prompt_names_its_cube(looks, stats):
    source = batcher(looks, stats, "pi0")
    batch = source.batch(5, 3, 18)
    for image in range(3):
        rows = slice(18 * image, 18 * image + 18)
        assert sorted(batch.named[rows]) == [0] * 6 + [1] * 6 + [2] * 6
        assert sorted(batch.others[rows]) == [-1] * 6 + [0] * 4 + [1] * 4 + [2] * 4
    named = zip(batch.tokens, batch.token_mask, batch.named, batch.others, strict=True)
    for tokens, mask, *cubes in named:
        text = source.text.decode(tokens[mask].tolist())
        assert {i for i, c in enumerate(COLOURS) if c in text} == set(cubes) - {-1}
    again = source.batch(5, 3, 18)
    for field in dataclasses.fields(batch):
        np.testing.assert_array_equal(getattr(batch, field.name), getattr(again, field.name))


def test_a_look_at_a_held_cube_is_asked_to_go_on_with_it(looks, stats):
    holders = np.full_like(looks.holders, -1)
    holders[:, 1] = np.arange(len(looks)) % 2 - 1  # the second cube, by a hand, in every other look
    held = dataclasses.replace(looks, holders=holders)
    source = batches.Batcher(held, TINY["pi0"], stats, None, seed=0)
    firsts = []
    for step in range(8):
        batch = source.batch(step, 6, 3)
        for row, named in zip(rows_of(batch, looks), batch.named[::3].tolist(), strict=True):
            firsts.append((row % 2 == 1, named))
    assert {named for odd, named in firsts if odd} == {1}
    assert {named for odd, named in firsts if not odd} == {0, 1, 2}


def test_no_training_prompt_is_cut(looks, stats, fast_folder):
    for name in TINY:
        source = batcher(looks, stats, name, fast_folder)
        for step in range(6):
            masks = source.batch(step, 4, 18).token_mask
            most = batches.FAST_TEXT if name == "pi0_fast" else batches.PI0_TEXT
            assert masks.sum(axis=1).max() < most, name
    longest = max(len(w.format("green", "green").split()) for v in VERBS for w in WORDINGS[v])
    assert longest < batches.PI0_TEXT


def test_the_places_the_losses_ask_for_are_where_the_picture_shows_the_cubes(looks, stats):
    batch = batcher(looks, stats, "pi0").batch(1, 6, 1)
    places = batch.places * batches.PLACE_UNIT + batches.PLACE_MIDDLE
    size, patch = batch.images.shape[1], TINY_VISION.patch_size
    column, row = np.moveaxis(kinematics.project(places, size) // patch, -1, 0)
    np.testing.assert_array_equal(batch.patches, row * (size // patch) + column)


def test_what_the_auxiliary_losses_ask_of_fast_is_what_its_tokens_tell(looks, stats, fast_folder):
    source = batcher(looks, stats, "pi0_fast", fast_folder)
    batch = source.batch(2, 4, 3)
    chunk = batch.actions.shape[1:]
    for tokens, mask, counts in zip(batch.tokens, batch.token_mask, batch.counts, strict=True):
        ids = source.fast.action_ids(tokens[mask].tolist())
        written = counts[counts >= 0]
        assert len(written) == len(ids) + 1
        # A chunk cut after any token decodes into this many coefficients.
        for place, count in enumerate(written):
            text = source.fast.fast.joined(ids[:place])
            assert count == len(text.decode(errors="ignore"))
        assert written[-1] == chunk[0] * chunk[1]
        # It stands where the next token is an action's, or the end.
        assert tokens[np.flatnonzero(counts >= 0) + 1].tolist()[:-1] == [
            source.fast.swap(i) for i in ids
        ]
    # What is to come are the waves that the chunk is made of, and then nothing.
    steps = np.arange(chunk[0])
    for row, place in ((0, 0), (1, 3), (5, 6)):
        at = np.flatnonzero(batch.counts[row] >= 0)[place]
        first = batch.counts[row, at]
        for index, value in enumerate(batch.upcoming[row, at], start=first):
            k, d = divmod(index, chunk[1])
            wave = np.cos(np.pi * k * (steps + 0.5) / chunk[0]) * np.sqrt((1 + (k > 0)) / chunk[0])
            assert value == pytest.approx(wave @ batch.actions[row, :, d], abs=1e-4)
    assert not batch.upcoming[batch.counts == chunk[0] * chunk[1]].any()
    # A number of the state ends where its digits do.
    for tokens, state, ends in zip(batch.tokens, batch.states, batch.numbers, strict=True):
        for dim, end in enumerate(ends):
            text = source.text.decode(tokens[: end + 1].tolist())
            assert text.endswith(f" {state_bins(state)[dim]}")


# --- losses -------------------------------------------------------------------------------------


def observation_of(policy, batch, count):
    """The batch as the models' own compute_loss takes it, every camera with its pictures."""
    config = policy.config
    images = jnp.repeat(uint8_to_float(batch.images), count, axis=0)
    black = jnp.full_like(images, -1.0)
    fast = hasattr(policy, "embed_inputs")
    rows = len(images)
    return Observation(
        images={s: images if i == 0 else black for i, s in enumerate(config.image_slots)},
        image_masks={s: jnp.full(rows, i == 0 or fast) for i, s in enumerate(config.image_slots)},
        state=batch.states,
        tokens=batch.tokens,
        token_mask=batch.token_mask,
        token_ar_mask=batch.ar_mask,
        token_loss_mask=batch.loss_mask,
    )


@pytest.mark.slow
def test_flow_loss_is_the_models_own(looks, stats):
    batch = batcher(looks, stats, "pi0").batch(0, 2, 2)
    policy = losses.Trainee(TINY["pi0"], rngs=nnx.Rngs(0)).policy
    key = jax.random.key(3)
    tokens = jnp.repeat(policy.embed_images(uint8_to_float(batch.images)), 2, axis=0)
    slot = policy.config.image_slots[0]
    only = dataclasses.replace(
        observation_of(policy, batch, 2), images={}, image_masks={slot: jnp.ones(4, bool)}
    )
    flow_loss = compiled(policy, losses.flow_loss, ("draws",))
    ours, _, _ = flow_loss(only, {slot: tokens}, batch.actions, key, draws=1)
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.actions.shape)
    time = jax.random.beta(time_key, 1.5, 1.0, (4,)) * 0.999 + 0.001
    full = observation_of(policy, batch, 2)
    wanted = compiled(policy, Pi0.compute_loss)(key, full, batch.actions, noise, time)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_every_camera_is_learned_from_in_its_own_slot(looks):
    """pi0.5 over three pictures; what is minimised of it is the model's own loss."""
    config = dataclasses.replace(TINY["pi0"], pi05=True)
    trainee = losses.Trainee(config, rngs=nnx.Rngs(0))
    stats = batches.norm_stats(looks)
    batch = batches.Batcher(looks, config, stats, None, seed=0).batch(0, 2, 2)
    key, policy = jax.random.key(3), trainee.policy
    _, figures = compiled(trainee, losses.loss, ("draws",))(batch, key, draws=1)

    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.actions.shape)
    time = jax.random.beta(time_key, 1.5, 1.0, (4,)) * 0.999 + 0.001
    pictures = [batch.images, batch.wrist_images[:, 0], batch.wrist_images[:, 1]]
    images = [jnp.repeat(uint8_to_float(picture), 2, axis=0) for picture in pictures]
    full = dataclasses.replace(
        observation_of(policy, batch, 2),
        images=dict(zip(config.image_slots, images, strict=True)),
        image_masks={slot: jnp.ones(4, bool) for slot in config.image_slots},
    )
    wanted = compiled(policy, Pi0.compute_loss)(key, full, batch.actions, noise, time)
    np.testing.assert_allclose(figures["policy"], jnp.mean(wanted), rtol=1e-4)
    assert batch.tokens.shape[1] > batches.PI0_TEXT  # the state is part of pi0.5's prompt


@pytest.mark.slow
def test_fast_learns_tokens_where_decoding_puts_them(looks, stats, fast_folder):
    """Training's logits, teacher forced, are those of prefill and one decoding step a token."""
    batch = batcher(looks, stats, "pi0_fast", fast_folder).batch(0, 1, 1)
    policy = losses.Trainee(TINY["pi0_fast"], rngs=nnx.Rngs(0)).policy
    slots = policy.config.image_slots
    full = observation_of(policy, batch, 1)
    tokens = {slot: policy.embed_images(full.images[slot]) for slot in slots}
    loss, _, _ = compiled(policy, losses.fast_loss)(full, tokens)

    postfix = batch.ar_mask[0].astype(bool)
    written = batch.tokens[0][postfix]
    # Decoding counts places by the config's prompt length.
    policy.config = dataclasses.replace(policy.config, max_token_len=batch.tokens.shape[1])
    asked = dataclasses.replace(
        full,
        tokens=np.where(postfix, 0, batch.tokens),
        token_mask=batch.token_mask & ~postfix,
        token_ar_mask=np.zeros_like(batch.ar_mask),
    )
    prefill = compiled(policy, Pi0Fast.prefill, ("max_decoding_steps",))
    feed = compiled(policy, Pi0Fast.decode_step)
    state, _ = prefill(asked, tokens, max_decoding_steps=len(written))
    found = []
    for token in written:
        found.append(jax.nn.log_softmax(state.logits[0])[token])
        state, _ = feed(state, jnp.array([token], jnp.int32))
    np.testing.assert_allclose(loss[0], -np.mean(found), rtol=1e-4)


def test_at_first_neighbours_pass_for_the_token(looks, stats, fast_folder):
    """What is wanted of each action token is spread over those that tell nearly the same."""
    source = batcher(looks, stats, "pi0_fast", fast_folder)
    batch, fast = source.batch(0, 1, 1), source.fast
    policy = losses.Trainee(TINY["pi0_fast"], rngs=nnx.Rngs(0)).policy
    full = observation_of(policy, batch, 1)
    tokens = {slot: policy.embed_images(full.images[slot]) for slot in policy.config.image_slots}
    fast_loss = compiled(policy, losses.fast_loss)
    spread, outputs, _ = fast_loss(full, tokens, batch.alike)

    text = outputs[0, -(batch.tokens.shape[1] - 1) :]
    logp = np.asarray(jax.nn.log_softmax(policy.gemma.logits(text), axis=-1))
    costs = []
    for place, token in enumerate(batch.tokens[0, 1:]):
        if not batch.loss_mask[0, place + 1]:
            continue
        coefficients = fast.fast.coefficients(fast.swap(int(token)))
        if not coefficients or not 0 <= fast.swap(int(token)) < fast.fast.vocab_size:
            costs.append(logp[place, token])
            continue
        odds = {}
        for other in range(fast.fast.vocab_size):
            near = fast.fast.coefficients(other)
            if near and len(near) == len(coefficients):
                gap = sum((a - b) ** 2 for a, b in zip(near, coefficients, strict=True))
                odds[fast.swap(other)] = np.exp(-gap / (2 * batches.ALIKE**2))
        total = sum(odds.values())
        costs.append(sum(logp[place, t] * p / total for t, p in odds.items()))
    np.testing.assert_allclose(spread[0], -np.mean(costs), rtol=1e-4)
    exact, _, _ = fast_loss(full, tokens)
    assert abs(float(exact[0] - spread[0])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_few_steps_on_one_batch_lower_every_part_of_the_loss(name, looks, stats, fast_folder):
    schedule = dataclasses.replace(SCHEDULE, steps=60, warmup=5, peak=5e-3)
    batch = batcher(looks, stats, name, fast_folder).batch(0, 3, 2)
    graph, params = nnx.split(losses.Trainee(TINY[name], rngs=nnx.Rngs(0)))
    trainer = train.Trainer(schedule, graph, train.optimiser(schedule))
    state = jax.tree.map(jnp.copy, trainer.begin(params))
    seen = []
    for _ in range(40):
        state, figures = trainer.step(state, batch, False)
        seen.append({key: float(value) for key, value in figures.items()})
    parts = ("policy", "cube place off", "named place off", "named place off in words")
    for part in (*parts, "state off", "upcoming off") if name == "pi0_fast" else parts:
        assert seen[-1][part] < 0.8 * seen[0][part], part
    # The average follows, but is not the last step.
    leaf = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    assert np.abs(leaf(state["ema"]) - leaf(state["params"])).max() > 0


def test_the_layers_matrices_are_updated_by_muon_and_all_else_by_adamw():
    """Muon's update of a matrix has singular values that are all about the same, whatever the
    gradient's are; AdamW's, after two equal gradients, is of one size everywhere."""
    schedule = dataclasses.replace(SCHEDULE, decay=0.0, clip=1e9)
    shallow = dataclasses.replace(TINY_EXPERT, depth=1)
    config = dataclasses.replace(TINY["pi0"], language=shallow, action_expert=shallow, pi05=True)
    _, params = nnx.split(losses.Trainee(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(3)
    gradients = jax.tree.map(
        lambda x: jnp.asarray(rng.lognormal(0, 2, x.shape) * rng.choice([-1, 1], x.shape)), params
    )
    tx = train.optimiser(schedule)
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(2):  # the first has a rate of zero
        updates, state = step(gradients, state, params)
    # Nesterov's momentum of AdamW, beta 0.9, with its two corrections (Dozat 2016).
    size = 0.9 * (1 - 0.9**2) / (1 - 0.9**3) + 0.1 / (1 - 0.9**2)
    by_muon = []
    for path, update in nnx.to_flat_state(updates):
        update = np.asarray(update[...]) / (schedule.peak / schedule.warmup)
        if np.abs(np.abs(update) - size).max() > 1e-3:
            by_muon.append([part for part in path if part != "kernel"][-1])
            values = np.linalg.svd(update, compute_uv=False)
            assert values.mean() ** 2 > 0.9 * np.mean(values**2), path
            # Steps of AdamW's usual size: a root mean square of 0.2 times the rate.
            assert 0.1 < np.sqrt(np.mean(update**2)) < 0.3, path
    gemma = ["query", "key", "value", "out", "gate", "up", "down"]
    vision = ["query", "key", "value", "out", "mlp_in", "mlp_out"]
    # Of the action expert's two adaptive norms, too: a vector of the time is multiplied by them.
    adaptive = ["modulation"] * 2
    assert sorted(by_muon) == sorted(2 * gemma + vision + adaptive)


def test_what_another_policy_learned_is_taken_over(tmp_path, monkeypatch):
    """pi0-FAST begins with a pi0's sight and language; the action expert has no place in it."""
    monkeypatch.setattr(train, "CONFIGS", TINY)
    pi0 = losses.Trainee(TINY["pi0"], rngs=nnx.Rngs(1)).policy
    save_bundled(tmp_path, TINY["pi0"], pi0, {}, storage="float32")
    graph, params = nnx.split(train.trainee_of("pi0_fast", 0))
    begun = train.Trainer(SCHEDULE, graph, train.optimiser(SCHEDULE)).begin(params)
    after = nnx.merge(graph, train.warm_start(begun, tmp_path)["params"])
    picture = jnp.linspace(-1, 1, 112 * 112 * 3).reshape(1, 112, 112, 3)
    np.testing.assert_array_equal(
        after.policy.embed_images(picture), pi0.embed_images(picture[0][None])
    )
    words = jnp.array([[2, 300, 301]])
    np.testing.assert_array_equal(after.policy.gemma.embed(words), pi0.gemma.embed(words))

    monkeypatch.setitem(TINY, "pi0", dataclasses.replace(TINY["pi0"], vision=PI0_TABLETOP.vision))
    wider = losses.Trainee(TINY["pi0"], rngs=nnx.Rngs(1)).policy
    save_bundled(tmp_path / "wider", TINY["pi0"], wider, {}, storage="float32")
    with pytest.raises(ValueError, match="other sizes"):
        train.warm_start(begun, tmp_path / "wider")


def test_finer_tokens_begin_as_the_coarser_ones_of_nearly_the_same_coefficients(
    looks, stats, fast_folder, tmp_path, tiny
):
    old = FastActionTokenizer.load(fast_folder)
    policy = losses.Trainee(TINY["pi0_fast"], rngs=nnx.Rngs(1)).policy
    save_bundled(tmp_path, TINY["pi0_fast"], policy, {}, storage="float32")
    shutil.copytree(fast_folder, tmp_path / "fast")
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(40, 50, 14)).cumsum(axis=1) / 20
    new = tokenizers.fit_action_tokenizer(chunks, vocab_size=400, scale=old.scale * 1.4)
    new.save(tmp_path / "new")
    graph, params = nnx.split(train.trainee_of("pi0_fast", 0))
    begun = train.Trainer(SCHEDULE, graph, train.optimiser(SCHEDULE)).begin(params)

    def table(fast):
        after = nnx.merge(graph, train.warm_start(begun, tmp_path, fast)["params"])
        return np.asarray(after.policy.gemma.embedding[...])

    learned, first = np.asarray(policy.gemma.embedding[...]), policy.config.vocab_size - 129
    np.testing.assert_array_equal(table(fast_folder), learned)
    found = table(tmp_path / "new")
    ones = {c[0] / old.scale: i for i in range(old.vocab_size)
            if (c := old.coefficients(i)) and len(c) == 1}  # fmt: skip
    for i in range(new.vocab_size):
        if (coefficients := new.coefficients(i)) and len(coefficients) == 1:
            apart = np.abs(np.array(list(ones)) - coefficients[0] / new.scale)
            alike = [list(ones.values())[j] for j in np.flatnonzero(apart < apart.min() + 1e-9)]
            assert any((found[first - i] == learned[first - j]).all() for j in alike), coefficients
    words = slice(0, first - max(old.vocab_size, new.vocab_size))
    np.testing.assert_array_equal(found[words], learned[words])


# --- the commands -------------------------------------------------------------------------------


def write_shard(looks, folder):
    folder.mkdir()
    names = [field.name for field in dataclasses.fields(looks)]
    np.savez(folder / "shard_00000.npz", **{name: getattr(looks, name) for name in names})
    return folder


def commands_on(card):
    """The lines of the card's block of commands."""
    lines = card.read_text().splitlines()
    return lines[lines.index("```bash") + 1 : lines.index("```")]


def weights_of(run):
    graph, params = nnx.split(train.trainee_of("pi0", SCHEDULE.seed))
    like = train.Trainer(SCHEDULE, graph, train.optimiser(SCHEDULE)).begin(params)
    state = train.restore(train.checkpoints(run), like)
    assert int(state["step"]) == SCHEDULE.steps
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state["ema"])])


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights_and_is_exported(looks, tmp_path, tiny):
    data = write_shard(looks, tmp_path / "data")
    train.train("pi0", SCHEDULE, tmp_path / "whole", data)
    # The schedule stays eight steps long; only the work stops after five.
    graph_run = tmp_path / "halves"

    class Stop(train.Event):
        asked = 0

        def is_set(self):
            # Twice a step: stopped during the fifth.
            Stop.asked += 1
            return Stop.asked > 8

    begun = ["python", "-m", "playground.training.train", "pi0", "--run", "my runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Event", Stop)
        train.train("pi0", SCHEDULE, graph_run, data, command=begun)
    assert train.checkpoints(graph_run).latest_step() == 5
    train.train("pi0", SCHEDULE, graph_run, data, command=[*begun, "--steps", "8"])
    np.testing.assert_allclose(weights_of(graph_run), weights_of(tmp_path / "whole"), atol=1e-6)

    (graph_run / "log.csv").write_text("step,looks,seconds_a_step,loss\n8,30,0.1,1.5\n")
    train.draw(graph_run / "log.csv", graph_run / "curves.png", "pi0")
    folder = tmp_path / "next" / "pi0_tabletop"
    export.export("pi0", folder, graph_run)
    by = "python -m playground.training"
    assert "\n\n- Model code" in (folder / "README.md").read_text()  # a list, not more text
    assert commands_on(folder / "README.md") == [
        f"# what made {data} was not noted",
        f"{by}.train pi0 --run 'my runs'",
        f"{by}.train pi0 --run 'my runs' --steps 8  # from step 5",
        f"{by}.export pi0 --run {graph_run} --folder {folder} --weights average",
    ]
    names = set(load_file(folder / "model.safetensors"))
    assert names
    assert not any("grounding" in name for name in names)
    schedule = json.loads((folder / "training.json").read_text())
    assert schedule["steps"] == SCHEDULE.steps
    assert schedule["looks"] == 30

    asker = Asker(folder, rows=2)
    table = Table(random_scene(1))
    raw = observe(table, "touch the red cube")
    other = dataclasses.replace(raw, prompt="pick up the blue cube")
    both = asker.chunks([raw, other], seed=4)
    # A batch of prompts answers as the page's policy does, one at a time.
    from playground.serving.events import Done
    from playground.trace import Options

    for asked, chunk in zip((raw, other), both, strict=True):
        events = list(asker.policy.infer(asked, Options(seed=4)))
        assert isinstance(events[-1], Done)
        np.testing.assert_allclose(chunk, events[-1].trace.actions[0], atol=2e-4)


def test_the_log_is_a_table_with_every_figure(tmp_path):
    train.log_row(tmp_path, 50, 0.5, [{"loss": 1.0}, {"loss": 2.0}], 10)
    train.log_row(tmp_path, 100, 0.5, [dict.fromkeys(train.FIGURES, 3.0)], 10)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["1.5", "3.0"]
    assert set(train.FIGURES) < set(rows[0])


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (7, 20), (20, 20), (590, 600)])
def test_intervals_of_shares_are_wilsons(hits, n):
    found = intervals.share([True] * hits + [False] * (n - hits))
    known = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose([found["low"], found["high"]], [known.low, known.high], atol=1e-4)


def answers(chunk_of, verbs=ONE_CUBE) -> list[list[first_chunks.Answer]]:
    found = []
    for index in range(40):
        table = Table(first_chunks.held_out_scene(index))
        state = table.state()
        tasks = [Task(verb, c, WORDINGS[verb][0], other) for verb, c, other in requests(verbs)]
        found.append([first_chunks.answer(table, t, state, chunk_of(table, t)) for t in tasks])
    return found


def test_the_expert_gets_full_marks_and_deafness_shows():
    good = answers(ask_expert)
    marks = first_chunks.figures(good, good, flow=False)
    for name in ("correct arm", "named cube nearest", "colour swapped", "verb swapped"):
        assert marks[name]["value"] == 1.0, name
    assert marks["tip error cm"]["value"] < 0.01
    assert marks["chunks that do not decode"]["value"] == 0.0
    shuffled = first_chunks.controls(good, good)[
        "prompts permuted across colours, named cube nearest"
    ]
    assert shuffled["low"] < 1 / 3 < shuffled["high"]

    deaf = answers(lambda table, task: ask_expert(table, Task("touch", "red", "{}")))
    marks = first_chunks.figures(deaf, deaf, flow=True)
    assert marks["named cube nearest"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert marks["colour swapped"]["value"] == 0.0
    assert marks["verb swapped"]["value"] == 0.0


def test_who_hears_which_cube_is_put_on_which_goes_to_the_one_named_first():
    asked = {"verbs": ("put_on",)}
    heard = first_chunks.roles_swapped(answers(ask_expert, **asked))
    assert (heard["value"], heard["n"]) == (1.0, 40 * 3)
    # One who hears which two, but not in which order.
    muddled = answers(
        lambda table, t: ask_expert(
            table,
            dataclasses.replace(t, colour=min(t.colour, t.other), other=max(t.colour, t.other)),
        ),
        **asked,
    )
    assert first_chunks.roles_swapped(muddled)["value"] == 0.0


def test_a_hidden_camera_is_one_that_the_observation_lacks():
    raw = observe(Table(first_chunks.held_out_scene(0)), "touch the red cube")
    for family, mode in (("pi0", "masked"), ("pi0_fast", "black")):
        for slot in CAMERAS:
            shown = first_chunks.without(slot, mode, raw)
            modes = slot_modes(TABLETOP.slots(family), shown)
            assert {name: given for name, given in modes.items() if given != "filled"} == {
                slot: mode
            }
            assert slot not in shown.images
    assert not any(image.any() for image in first_chunks.blackened(raw).images.values())


def test_a_chunk_that_does_not_decode_counts_against_the_policy():
    table = Table(first_chunks.held_out_scene(0))
    task = Task("touch", "red", "touch the {} cube")
    found = first_chunks.answer(table, task, table.state(), None)
    assert not found.decoded
    assert found.arm == ""
    rest = kinematics.tip_paths(table.state())[nearer_arm(found.cube[0])]  # where the arm stays
    cm = 100 * np.linalg.norm(rest - found.expert_tip)
    assert found.error_cm == pytest.approx(cm, rel=1e-6)
    assert 5 < cm < 50
    tasks = [Task(verb, c, "{}") for verb in ONE_CUBE for c in COLOURS]
    scene = [first_chunks.answer(table, t, table.state(), None) for t in tasks]
    marks = first_chunks.figures([scene], [scene], flow=False)
    assert marks["named cube nearest"]["value"] == 0.0
    assert marks["chunks that do not decode"]["value"] == 1.0
