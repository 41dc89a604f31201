"""Interventions: against a slow path in NumPy, and models whose answer is known."""

import dataclasses
import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from models import interventions, masks
from models.config import Pi0Config
from models.interventions import Patches, Written, places_of
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from playground.analysis import causal, connections, pairs, patching
from playground.analysis.pairs import Variant
from playground.policies.base import sample_noise
from playground.policies.places import hidden, text_parts
from playground.trace import Cut, Options
from playground.training.tokenizers import fit_action_tokenizer
from tests import test_analysis as small
from tests.support import slow_gemma
from tests.support.golden_models import case, close

QUICK = Options(num_steps=2, max_tokens=24)
RED, BLUE = "pick up the red cube", "pick up the blue cube"
FAMILIES = ["pi0", "pi05", "pi0_fast"]
each_family = pytest.mark.parametrize("family", FAMILIES)


def deep(family):
    """The small config with three layers."""
    config = small.FAST if family == "pi0_fast" else small.FLOW
    parts = {"language": dataclasses.replace(config.language, depth=3)}
    if family != "pi0_fast":
        expert = dataclasses.replace(config.action_expert, depth=3)
        parts |= {"action_expert": expert, "pi05": family == "pi05"}
    return dataclasses.replace(config, **parts)


@functools.cache
def model(family):
    """Random weights, none of them zero, small enough that tokens stay distinct."""
    draw, kind = np.random.default_rng(11), Pi0Fast if family == "pi0_fast" else Pi0
    return small.filled(kind, deep(family), lambda shape: 0.3 * draw.normal(size=shape))


@functools.cache
def policy(family):
    """That model as a policy of the table."""
    fast = family == "pi0_fast"
    chunks = fit_action_tokenizer(small.CHUNKS * 8, vocab_size=600) if fast else None
    return small.assemble(family, deep(family), model(family), small.tokenizer(), chunks)


# --- the slow path ------------------------------------------------------------------------------


class Slow:
    """One observation of a policy: unbatched, in NumPy, and in the order of embedding."""

    def __init__(self, policy, raw):
        self.policy, self.prepared = policy, policy.prepare(raw)
        self.model, self.depth = model(policy.info.family), policy.config.language.depth
        columns = policy.text_columns(self.prepared)
        self.observation = policy.observation(self.prepared, columns)
        fast = policy.info.family == "pi0_fast"
        embed = self.model.embed_inputs if fast else self.model.embed_prefix
        embedded = embed(self.observation, policy.image_tokens(self.prepared))
        self.tokens = np.asarray(embedded.tokens)[0]
        self.valid = np.asarray(embedded.input_mask)[0]
        self.text = len(self.tokens) - columns

    def find(self, *words):
        """Where the tokens of words stand, found by their ids."""
        ids = [small.tokenizer().encode(word) for word in words]
        assert all(len(found) == 1 for found in ids)
        places = [np.flatnonzero(self.prepared.prompt.tokens == found[0])[0] for found in ids]
        return self.text + np.array(places)

    def prefix(self, cut=lambda layer, query, key: False):
        """A Memory for each layer."""
        expert, size = self.model.gemma.language, len(self.tokens)
        positions = np.cumsum(self.valid) - 1
        allowed = [
            [[self.valid[q] and self.valid[k] and not cut(layer, q, k) for k in range(size)]
             for q in range(size)]
            for layer in range(self.depth)
        ]  # fmt: skip
        return slow_gemma.run(expert, self.tokens, positions, np.array(allowed))[1]

    def chunk(self, memories, visible, x, steps=2, guide=None):
        """pi0's normalised chunk [H, M] from noise x. visible: [L, Q or 1, S], which of the
        memories' tokens the suffix attends to. guide: v_t to another one at the same x and t."""
        for step in range(steps):
            v_t = self.velocity(memories, visible, x, 1 - step / steps)
            v_t = v_t if guide is None else guide(v_t, x, 1 - step / steps)
            x = x - v_t / steps
        return x

    def velocity(self, memories, visible, x, time):
        suffix, condition = self.model.embed_suffix(
            self.observation, jnp.asarray(x, jnp.float32)[None], jnp.array([time])
        )
        tokens = np.asarray(suffix.tokens)[0]
        among = np.ones((len(tokens), len(tokens)), bool)
        if not self.policy.config.pi05:
            among[0, 1:] = False  # the state attends to no action
        allowed = self.with_memory(visible, among)
        positions = self.valid.sum() + np.arange(len(tokens))
        condition = None if condition is None else np.asarray(condition)[0]
        expert = self.model.gemma.action
        out, _ = slow_gemma.run(expert, tokens, positions, allowed, memories, condition)
        head = self.model.action_out_proj
        out = out[-self.policy.config.action_horizon :]
        return out @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])

    def with_memory(self, visible, among):
        shape = (len(among), visible.shape[-1])
        return [np.concatenate([np.broadcast_to(v, shape), among], axis=1) for v in visible]

    def log_odds(self, memories, visible, written):
        """pi0-FAST's log p of the first chunk's tokens, less that of the second's."""
        a, b = (self.log_likelihood(memories, visible, ids) for ids in written)
        return a - b

    def log_likelihood(self, memories, visible, ids):
        gemma = self.model.gemma
        tokens = np.asarray(gemma.embed(jnp.array([ids])))[0]
        allowed = self.with_memory(visible, np.tri(len(ids), dtype=bool))
        positions = self.valid.sum() + 1 + np.arange(len(ids))  # openpi leaves one out
        out, _ = slow_gemma.run(gemma.language, tokens, positions, allowed, memories)
        logits = out @ np.asarray(gemma.embedding[...], np.float64).T
        logp = scipy.special.log_softmax(logits, axis=-1)
        return sum(logp[i, ids[i + 1]] for i in range(len(ids) - 1))


class SlowPair:
    """Both prompts' memories in a row; a patch shows the one's and hides the other's."""

    def __init__(self, policy, prompt, counterfactual):
        self.a, self.b = (Slow(policy, small.observe(p)) for p in (prompt, counterfactual))
        self.of_a, self.of_b = self.a.prefix(), self.b.prefix()
        self.memories = [
            slow_gemma.Memory(*(np.concatenate(both) for both in zip(*pair, strict=True)))
            for pair in zip(self.of_b, self.of_a, strict=True)
        ]
        size = policy.config.action_horizon, policy.config.action_dim
        self.noises = sample_noise(QUICK.seed, 2, *size)
        fast = policy.info.family == "pi0_fast"
        self.written = [written(policy, slow.prepared) for slow in (self.a, self.b) if fast]

    def visible(self, hide, show, layers):
        """[L, 1, S] with the counterfactual's tokens hidden and the prompt's shown in layers."""
        found = np.zeros((self.b.depth, 1, len(self.b.valid) + len(self.a.valid)), bool)
        found[:, 0, : len(self.b.valid)] = self.b.valid
        for layer in layers:
            found[layer, 0, hide] = False
            found[layer, 0, len(self.b.valid) + np.asarray(show)] = True
        return found

    def answer(self, slow, memories):
        """The chunks [N, H, M] of one prompt's run over these memories, or its log-odds."""
        visible = np.tile(slow.valid, (slow.depth, 1, 1))
        if self.written:
            return slow.log_odds(memories, visible, self.written)
        return np.array([slow.chunk(memories, visible, noise) for noise in self.noises])

    def slope(self, own, source, layer, step=0.01):
        """How fast the answer moves from the counterfactual's to the prompt's, as a share of the
        way, while the memory of tokens `own` moves to that of `source` in one layer."""
        found = []
        for by in (step, -step):
            moved = [x.copy() for x in self.of_b[layer]]
            for x, y in zip(moved, self.of_a[layer], strict=True):
                x[own] += by * (y[source] - x[own])
            memories = [*self.of_b]
            memories[layer] = slow_gemma.Memory(*moved)
            found.append(self.answer(self.b, memories))
        way = self.answer(self.a, self.of_a) - self.answer(self.b, self.of_b)
        return ((found[0] - found[1]) * way).sum() / (way**2).sum() / (2 * step)


def written(policy, prepared):
    """The tokens that pi0-FAST writes, without padding."""
    state = policy.prefilled(prepared, policy.text_columns(prepared), QUICK)
    return policy.written(state, QUICK)


# --- patches ------------------------------------------------------------------------------------


def group(runs, name):
    return next(places for found, places in runs.joined.groups if found.name == name)


PAIRS = {
    "equal": (RED, BLUE, "red / blue", [" red"], [" blue"]),
    "unequal": ("touch the red cube", RED, "touch / pick up", None, None),
}


@each_family
@pytest.mark.parametrize("lengths", PAIRS)
def test_patches_are_those_of_the_slow_path(family, lengths):
    """A word, an image patch and everything, in single layers and in all."""
    prompt, other, name, ours, theirs = PAIRS[lengths]
    net, slow = policy(family), SlowPair(policy(family), prompt, other)
    runs = pairs.pair(net, small.observe(prompt), other, QUICK, noises=2)
    own, source = slow.b, slow.a
    if ours is None:  # at the prompt's beginning pi0 has no space before the word
        space = "" if family == "pi0" else " "
        ours, theirs = [f"{space}touch"], [f"{space}pick", " up"]
    every = [np.flatnonzero(s.valid) for s in (own, source)]
    cases = [
        (Variant(group(runs, name), 1), own.find(*theirs), source.find(*ours), [1]),
        (Variant(runs.joined.patches[small.SLOTS[0]][[2]], None), [2], [2], range(3)),
        (Variant(group(runs, "everything"), 2), *every, [2]),
    ]
    got = runs.patched([variant for variant, *_ in cases])
    for found, (_, hide, show, layers) in zip(got, cases, strict=True):
        visible = slow.visible(hide, show, layers)
        if family == "pi0_fast":
            want = own.log_odds(slow.memories, visible, slow.written)
            assert abs(found - want) < 2e-3
        else:
            want = [own.chunk(slow.memories, visible, noise) for noise in slow.noises]
            close(found, np.array(want)[..., :14], 1e-3)
            assert np.abs(found - runs.own).max() > 1e-2  # it does something


@each_family
def test_everything_patched_is_the_prompts_own_run(family):
    net = policy(family)
    runs = pairs.pair(net, small.observe(RED), BLUE, QUICK, noises=2)
    assert runs.distinguished
    everything = Variant(group(runs, "everything"), None)
    ((recovered, _),) = runs.recovered(runs.patched([everything]))
    assert recovered == pytest.approx(1, abs=1e-3)


@each_family
@pytest.mark.parametrize("lengths", PAIRS)
def test_places_that_do_not_differ_need_no_run(family, lengths):
    """In layer 1 all but the changed words hold the same; patched there, nothing changes."""
    prompt, other, name, *_ = PAIRS[lengths]
    runs = pairs.pair(policy(family), small.observe(prompt), other, QUICK, noises=2)
    differing, everything = runs.differing(), group(runs, "everything")
    assert differing[0, group(runs, name)].any()
    assert not differing[0, np.concatenate([*runs.joined.patches.values()])].any()
    assert differing[1:, everything].any(axis=1).all()
    alike = Variant(everything[~differing[0, everything]], 0)
    (found,) = runs.patched([alike])
    np.testing.assert_allclose(found, runs.own, atol=2e-4)


@each_family
def test_a_run_patched_with_itself_is_the_same_bit_for_bit(family):
    net = policy(family)
    runs = pairs.pair(net, small.observe(RED), RED, QUICK, noises=2)
    everything, nothing = group(runs, "everything"), np.array([], int)
    a, b = runs.patched([Variant(everything, None), Variant(nothing, None)])
    np.testing.assert_array_equal(a, b)
    assert not runs.distinguished


@each_family
def test_slopes_are_those_of_a_small_step(family):
    """Of the slow path, a hundredth of the way: of a word in two layers, and of an image patch."""
    runs = pairs.pair(policy(family), small.observe(RED), BLUE, QUICK, noises=2)
    slow, slopes = SlowPair(policy(family), RED, BLUE), runs.slopes()
    assert slopes.shape == (3, len(runs.joined.own))
    word, patch = group(runs, "red / blue"), runs.joined.patches[small.SLOTS[0]][[2]]
    changed = slow.b.find(" blue"), slow.a.find(" red")
    cases = [(word, *changed, 0), (word, *changed, 2), (patch, [2], [2], 1)]
    got = [slopes[layer, places].sum() for places, *_, layer in cases]
    want = [slow.slope(own, source, layer) for _, own, source, layer in cases]
    np.testing.assert_allclose(got, want, rtol=0.02, atol=2e-4)
    assert max(map(abs, want)) > 0.01


@pytest.mark.parametrize("family", ["pi0", "pi0_fast"])
def test_of_ranked_patches_the_first_are_run_and_the_rest_estimated(family):
    net, raw = policy(family), small.observe(RED)
    every = patching.trace(net, raw, BLUE, QUICK, noises=1)
    assert every.exact == {}
    some = patching.trace(net, raw, BLUE, QUICK, noises=1, exact=3)
    ran, values, want = (
        np.concatenate([np.ravel(rows) for rows in found.values()])
        for found in (some.exact, some.patches, every.patches)
    )
    assert ran.sum() == 3
    assert some.of == every.of - len(ran) + 3
    np.testing.assert_allclose(values[ran], want[ran], atol=1e-4)
    assert np.abs(values[~ran]).max() <= np.abs(values).max()
    slot, row, column, _ = causal.top_patch(some)
    assert some.exact[slot][row][column]
    calls = 8 if family == "pi0_fast" else 16
    plan = (
        rf"\d+ patches in \d+ calls of {calls}, \d MB of keys .* about \d+ s at most once compiled"
    )
    assert re.fullmatch(plan, some.plan)
    assert every.recovered[-1][-1] == pytest.approx(some.recovered[-1][-1], abs=1e-4)


@pytest.mark.parametrize("family", ["pi0", "pi0_fast"])
def test_calls_fit_the_memory_plan(family, monkeypatch):
    """With room for one patch a call the numbers are the same as with sixteen rows a call."""
    net, raw = policy(family), small.observe(RED)
    how = {"noises": 2, "patches": False}
    want = patching.trace(net, raw, BLUE, QUICK, **how)
    size = pairs.pair(net, raw, BLUE, QUICK, noises=2).row_bytes()
    monkeypatch.setattr(patching, "_MOST_BYTES", 3 * size)
    got = patching.trace(net, raw, BLUE, QUICK, **how)
    assert " calls of 8, " in want.plan
    assert " calls of 1, " in got.plan
    np.testing.assert_allclose(got.recovered, want.recovered, atol=1e-4)


def test_a_large_model_runs_few_patches_a_call():
    """At pi0's full size: 18 layers, 3 cameras of 256 patches and 48 tokens of text, one head of
    256 numbers, in bfloat16. Four patches of four noises fit into 2 GB; of larger keys and values
    fewer do, and one always runs."""
    row = 18 * (3 * 256 + 48) * 256 * 2 * 2
    assert patching.variants_per_call(4, row) == 4
    assert 4 * (1 + 4) * row < 2 * 2**30
    assert [patching.variants_per_call(4, n * row) for n in (10, 30, 1000)] == [2, 1, 1]


# --- cut connections, hidden patches, guidance ----------------------------------------------------

CUTS = (
    Cut("text", "images", (2,)),
    Cut("actions", "text", (1, 3)),
    Cut("images", "base_0_rgb", (1,)),
)


def slow_cuts(slow, rows):
    """(the prefix's rule, what the suffix sees [L, 1, P]) of CUTS; rows: of the first camera."""
    images = np.arange(slow.text)[slow.valid[: slow.text]]
    texts = slow.text + np.flatnonzero(slow.valid[slow.text :])

    def cut(layer, query, key):
        text_to_images = layer == 1 and query in texts and key in images
        return text_to_images or (layer == 0 and query in images and key in rows)

    visible = np.tile(slow.valid, (slow.depth, 1, 1))
    visible[[0, 2], :, slow.text :] = False
    return cut, visible


@each_family
def test_cuts_are_those_of_the_slow_path(family):
    """In the prefix, in what follows it, and in these layers only."""
    net, raw = policy(family), small.observe(RED)
    slow, options = Slow(net, raw), dataclasses.replace(QUICK, cuts=CUTS)
    cut, visible = slow_cuts(slow, range(4))
    if family == "pi0":  # its state is a query of its own
        visible = np.repeat(visible, 4, axis=1)
        visible[:, 0] = slow.valid
    memories = slow.prefix(cut)
    if family == "pi0_fast":
        ids = [5, 9, 300, 12, 7]
        state = net.prefilled(slow.prepared, net.text_columns(slow.prepared), options)
        counted = Written(np.array([ids], np.int32), np.array([5], np.int32))
        got = interventions.log_likelihoods(model(family), state, counted)
        assert float(got[0, 0]) == pytest.approx(
            slow.log_likelihood(memories, visible, ids), abs=1e-3
        )
        plain = slow.log_likelihood(slow.prefix(), slow.valid[None, None].repeat(3, 0), ids)
        assert abs(float(got[0, 0]) - plain) > 0.05
        return
    chunks, _ = net.actions(raw, dataclasses.replace(options, num_samples=2, seed=4))
    noises = sample_noise(4, 2, 3, 14)
    close(chunks, [slow.chunk(memories, visible, noise) for noise in noises], 1e-3)
    whole = net.actions(raw, dataclasses.replace(QUICK, num_samples=2, seed=4))[0]
    assert np.abs(chunks - whole).max() > 1e-2


@each_family
def test_a_hidden_patch_is_hidden_everywhere(family):
    net, raw = policy(family), small.observe(RED)
    slow, report = Slow(net, raw), connections.occlusion(net, raw, QUICK, noises=2)
    assert report.failure is None
    assert report.done == report.of == sum(len(rows) ** 2 for rows in report.change.values())
    hide, visible = 2, np.tile(slow.valid, (slow.depth, 1, 1))
    visible[..., hide] = False
    memories = slow.prefix(lambda layer, query, key: key == hide)
    got, plain = report.change[small.SLOTS[0]][1][0], np.tile(slow.valid, (slow.depth, 1, 1))
    if family == "pi0_fast":
        ids = written(net, slow.prepared)
        want = slow.log_likelihood(slow.prefix(), plain, ids)
        assert got == pytest.approx(want - slow.log_likelihood(memories, visible, ids), abs=2e-3)
    else:
        noises, before = sample_noise(0, 2, 3, 14), slow.prefix()
        moved = [slow.chunk(memories, visible, x) - slow.chunk(before, plain, x) for x in noises]
        share = small.share_of_range(net.info)
        assert got == pytest.approx(np.abs(moved * share).mean(), rel=1e-2)
    change, looked = (
        np.concatenate([np.ravel(rows) for rows in maps.values()])
        for maps in (report.change, report.attention)
    )
    want = scipy.stats.spearmanr(change, looked).statistic
    assert report.rank_correlation == pytest.approx(want)


def test_equal_values_share_a_rank():
    a, b = np.array([0.5, 2, 2, -1, 2, 0.5]), np.array([3, 1, 4, 1, 5, 9])
    # By hand: ranks 2.5 5 5 1 5 2.5 and 3 1.5 4 1.5 5 6, both of mean 3.5
    assert connections.rank_correlation(a, b) == pytest.approx(3 / np.sqrt(15 * 17))
    assert connections.rank_correlation(a, np.ones(6)) is None


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_guidance_weighs_the_prompt(family):
    """w = 1 is the policy itself, bit for bit; other weights are the slow path's."""
    net, raw = policy(family), small.observe(RED)
    plain, _ = net.actions(raw, QUICK)
    same, _ = net.actions(raw, dataclasses.replace(QUICK, guidance=1.0))
    np.testing.assert_array_equal(plain, same)
    slow = Slow(net, raw)
    empty = Slow(net, dataclasses.replace(raw, prompt=""))
    memories, other = slow.prefix(), empty.prefix()
    visible, there = (np.tile(s.valid, (s.depth, 1, 1)) for s in (slow, empty))

    def guide(v_t, x, time):
        without = empty.velocity(other, there, x, time)
        return without + 2.5 * (v_t - without)

    (noise,) = sample_noise(0, 1, 3, 14)
    want = slow.chunk(memories, visible, noise, guide=guide)
    how = dataclasses.replace(QUICK, guidance=2.5)
    got, _ = net.actions(raw, how)
    close(got[0], want, 2e-3)
    *_, done = net.infer(raw, how)
    close(done.trace.actions_normalised, got, 1e-4)
    assert np.abs(got - plain).max() > 1e-2


@each_family
def test_cutting_what_padding_hides_changes_nothing(family):
    net, raw = policy(family), small.observe(RED)
    prepared = net.prepare(raw)
    places = net.places(prepared, net.text_columns(prepared))
    width, room = len(places.valid), QUICK.max_tokens
    room = net.config.suffix_len if isinstance(net.config, Pi0Config) else room
    hide = np.flatnonzero(~places.valid)
    assert len(hide)
    nothing = hidden(np.zeros((1, 0), int), width, 3, room)
    everything = hidden(hide[None], width, 3, room)
    args = (net.observation(prepared, net.text_columns(prepared)), net.image_tokens(prepared))
    if family == "pi0_fast":
        counted = Written(np.array([[5, 9, 12]], np.int32), np.array([3], np.int32))
        how = {"max_decoding_steps": room}
    else:
        counted, how = sample_noise(0, 2, 3, 14), {"num_steps": 2}
    a, b = (net.interventions.cut(*args, cuts, counted, **how) for cuts in (nothing, everything))
    np.testing.assert_array_equal(a, b)


@each_family
def test_cuts_that_leave_nothing_are_refused(family):
    net, raw = policy(family), small.observe(RED)
    blind = (Cut("text", "images"), Cut("text", "text", (2,)))
    for cuts, words in (
        (blind, "leave text with nothing to attend to"),
        ((Cut("actions", "elbow"),), "nothing is called 'elbow'"),
        ((Cut("actions", "text", (4,)),), "they go from 1 to 3"),
        ((Cut("actions", "text", ()),), "they go from 1 to 3"),
    ):
        report = connections.knockout(net, raw, dataclasses.replace(QUICK, cuts=cuts))
        assert words in report.failure
        with pytest.raises(ValueError, match=words):
            net.actions(raw, dataclasses.replace(QUICK, cuts=cuts))
        phases = []  # nobody is to hear of a prefix that will not run
        with pytest.raises(ValueError, match=words):
            phases += (e.phase for e in net.infer(raw, dataclasses.replace(QUICK, cuts=cuts)))
        assert not [phase for phase in phases if "prefix" in phase]


# --- models whose answer is known ---------------------------------------------------------------


def test_without_words_nothing_is_recovered():
    """And the report says that the prompts are not distinguished."""
    report = patching.trace(small.flow(small.no_words), small.observe(RED), BLUE, small.QUICK)
    assert (report.distinguished, report.done) == (False, report.of)
    assert {value for row in report.recovered for value in row} == {0.0}
    assert {value for rows in report.patches.values() for row in rows for value in row} == {0.0}
    assert "does not tell these prompts apart" in causal.headline(report)


def test_a_model_that_reads_one_word_recovers_by_that_word_alone():
    """Its second layer looks everywhere alike for "red"."""
    report = patching.trace(small.fast(), small.observe(RED), BLUE, small.QUICK)
    found = dict(zip((group.name for group in report.groups), report.recovered, strict=True))
    for name, row in found.items():
        want = [0, 1, 1] if name in ("red / blue", "everything") else [0, 0, 0]
        np.testing.assert_allclose(row, want, atol=1e-4, err_msg=name)
    (first, *_) = report.patches.values()
    np.testing.assert_allclose(first, 0, atol=1e-4)
    assert " is read directly: 100 %" in causal.headline(report)
    asked = {"policy": "fast", "observation": small.observe(RED), "options": small.QUICK}
    asked |= {"counterfactual": BLUE}
    for group, layer, chunk in (
        ("red / blue", 2, small.CHUNK_RED),
        ("the", None, small.CHUNK_ELSE),
    ):
        cell = patching.cell(small.fast(), causal.CellRequest(**asked, group=group, layer=layer))
        own = cell.prompt if chunk is small.CHUNK_RED else cell.counterfactual
        np.testing.assert_array_equal(cell.patched, own)
    assert not np.array_equal(cell.prompt, cell.counterfactual)


def test_the_interval_of_a_ratio_is_students():
    """Of equal weights it is the mean's own."""
    shares = np.array([0.2, 0.5, 0.9])
    found, (low, high) = pairs.ratio(shares, np.ones(3))
    half = 4.302653 * shares.std(ddof=1) / 3**0.5
    assert (found, low, high) == pytest.approx((shares.mean(), found - half, found + half))


def test_words_are_found_in_any_prompt():
    """pi0's text, and that of a prompt with the state in it."""
    parts = text_parts(["<bos>", "pick", "▁up", "▁the", "▁cu", "be", "<0x0A>"], False)
    assert [(p.text, p.tokens) for p in parts if p.kind == "word"] == [
        ("pick", (1,)), ("up", (2,)), ("the", (3,)), ("cube", (4, 5)),
    ]  # fmt: skip
    assert parts[-1].tokens == (0, 6)
    pieces = [
        "<bos>",
        "Task",
        ":",
        "▁touch",
        "▁it",
        ",",
        "▁State",
        ":",
        "▁1",
        "2",
        "▁7",
        ";",
        "\\n",
    ]
    parts = {p.text: p.tokens for p in text_parts(pieces, True)}
    assert (parts["touch"], parts["it"], parts["state"]) == ((3,), (4,), (8, 9, 10))
    assert parts["rest of the text"] == (0, 1, 2, 5, 6, 7, 11, 12)


# --- recorded models ----------------------------------------------------------------------------


@pytest.mark.usefixtures("goldens")
@each_family
def test_patches_on_the_recorded_models(family):
    """Random places of three layers, against the slow path on openpi's recorded weights."""
    record = case(family, "b1_all")
    net, draw = record.model(), np.random.default_rng(1)
    own = record.observation("infer_" if family == "pi0_fast" else "")
    source = dataclasses.replace(own, tokens=jnp.where(own.token_mask, own.tokens * 7 % 2048, 0))
    fast, depth = family == "pi0_fast", net.config.language.depth
    memories, states = [], []
    for observation in (own, source):
        embedded = (net.embed_inputs if fast else net.embed_prefix)(observation)
        valid = np.asarray(embedded.input_mask)[0]
        rule = [valid[:, None] & valid[None]] * depth
        tokens, places = np.asarray(embedded.tokens)[0], np.cumsum(valid) - 1
        memories.append(slow_gemma.run(net.gemma.language, tokens, places, rule)[1])
        how = {"max_decoding_steps": 8, "last_only": True} if fast else {}
        states.append(net.prefill(observation, **how)[0])
    where = draw.random((depth, 1, len(valid))) < 0.3
    rows = zip(memories[0], memories[1], where[:, 0, :, None], strict=True)
    mixed = [slow_gemma.Memory(np.where(w, b.k, a.k), np.where(w, b.v, a.v)) for a, b, w in rows]
    slow = Recorded(net, own, valid)
    visible = np.tile(valid, (depth, 1, 1))
    if fast:
        shift = int(masks.right_align_shift(valid[None])[0])
        patches = (np.roll(where, -shift, axis=-1), np.zeros_like(where))
        room = np.r_[np.arange(len(valid)), len(valid) + np.arange(8)]
        written = Written(np.array([[5, 9, 300, 12]], np.int32), np.array([4], np.int32))
        got = interventions.patched_likelihoods(
            net, states[0], Patches(places_of(states[1].cache, room), *patches), written
        )
        want = slow.log_likelihood(mixed, visible, [5, 9, 300, 12])
        assert float(got[0, 0]) == pytest.approx(want, abs=2e-3)
        return
    noise = draw.normal(size=(1, net.config.action_horizon, net.config.action_dim))
    patches = Patches(states[1].cache, where, np.zeros_like(where))
    args = (states[0], patches, own, jnp.asarray(noise, jnp.float32), 1)
    got = interventions.patched_chunks(net, *args)
    close(got[0, 0], slow.chunk(mixed, visible, noise[0], steps=1), 2e-3)


class Recorded(Slow):
    """The slow path on a model of its own."""

    def __init__(self, model, observation, valid):
        self.model, self.observation, self.valid = model, observation, valid
        self.depth, self.policy = model.config.language.depth, model
