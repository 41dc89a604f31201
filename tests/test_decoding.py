"""How tokens are chosen and when writing ends, against loops in plain Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import decoding
from models.decoding import (
    Constraint,
    DecodeOptions,
    DecodeState,
    StopAfter,
    TokenBuffer,
    next_token,
)
from models.gemma import KVCache
from models.tokenizer import EOS

START, END, VOCABULARY = (2, 3), 4, 6
STOP = StopAfter(START, END)


def written_length(row, stop):
    """How many tokens of a row are written: up to the end token, or to `end` behind `start`."""
    for count in range(1, len(row) + 1):
        before, last = row[: count - 1], row[count - 1]
        length = len(stop.start)
        starts = [tuple(before[i : i + length]) for i in range(len(before) - length + 1)]
        if last == EOS or (last == stop.end and stop.start in starts):
            return count
    return len(row) + 1  # not at its end yet


@settings(max_examples=40, derandomize=True)
@given(st.tuples(*[st.lists(st.sampled_from([EOS, *START, END, 5]), min_size=7, max_size=7)] * 2))
def test_a_row_ends_by_itself_and_stays_ended(rows):
    """`end` before `start` has been written stops nobody; a row that has ended is remembered."""
    options = DecodeOptions(stop=STOP)
    buffer = TokenBuffer.empty(2, 7, options)
    append = jax.jit(TokenBuffer.append)
    for count, tokens in enumerate(np.int32(rows).T, start=1):
        buffer = append(buffer, tokens, options)
        done = [written_length(row, STOP) <= count for row in rows]
        assert buffer.done.tolist() == done
        assert bool(buffer.all_done) == all(done)
        assert bool(buffer.unfinished) == (not all(done) and count < 7)
    np.testing.assert_array_equal(buffer.tokens, rows)


def test_without_a_stop_all_rows_have_to_end_in_the_same_step():
    """As in openpi, which does not remember rows that ended before."""
    options = DecodeOptions()
    buffer = TokenBuffer.empty(2, 4, options)
    for tokens, ended in (([EOS, 5], False), ([5, EOS], False), ([EOS, EOS], True)):
        buffer = buffer.append(jnp.int32(tokens), options)
        assert bool(buffer.all_done) == ended


def test_a_constraint_without_a_stop_is_refused():
    nothing = np.zeros((4, VOCABULARY), np.int32)
    constraint = Constraint(nothing, nothing, np.zeros(VOCABULARY, bool), 1, 1, START, END)
    with pytest.raises(ValueError, match="needs `stop`"):
        DecodeOptions(constraint=constraint)


@pytest.mark.parametrize("temperature", [0, 0.0, -1, float("nan")])
def test_a_temperature_that_nothing_can_be_drawn_at_is_refused(temperature):
    with pytest.raises(ValueError, match="above 0, or None for the likeliest"):
        DecodeOptions(temperature=temperature)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sample_is_drawn_from_the_logits_at_the_temperature(rows):
    """By Gumbel's trick from the split key's own bits, whatever JAX calls the function."""
    logits = jax.random.normal(jax.random.key(1), (rows, VOCABULARY))
    options = DecodeOptions(temperature=0.7)
    key, buffer = jax.random.key(8), TokenBuffer.empty(rows, 20, options)
    for index in range(20):
        following, step_key = jax.random.split(key)
        noise = jax.random.gumbel(step_key, logits.shape)
        buffer, key = next_token(logits, buffer, key, options)
        wanted = np.argmax(logits / 0.7 + noise, axis=-1)
        np.testing.assert_array_equal(buffer.tokens[:, index], wanted)
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(following))


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-20, 1e-6])
def test_the_likeliest_is_drawn_from_logits_at_next_to_no_temperature(temperature):
    """Numbers that float32 does not hold, or whose logits it does not."""
    logits = 100 * jax.random.normal(jax.random.key(1), (50, VOCABULARY))
    options = DecodeOptions(temperature=temperature)
    buffer = TokenBuffer.empty(50, 1, options)
    buffer, _ = jax.jit(next_token)(logits, buffer, jax.random.key(8), options)
    np.testing.assert_array_equal(buffer.tokens[:, 0], np.argmax(logits, axis=-1))


# --- speculative decoding -----------------------------------------------------------------------


class Chain:
    """A decoder that writes a given row of tokens, and counts how often it is asked. whole: how
    often one token was chosen among all that there are."""

    def __init__(self, tokens):
        self.gemma, self.fed, self.dtype, self.whole = self, [], jnp.float32, 0
        self.embedding = jnp.eye(VOCABULARY)
        self._tokens = tokens

    def logits(self, hidden, rows=None):
        self.whole += rows is None
        return hidden @ (self.embedding if rows is None else rows).T

    def begin(self):
        cache = KVCache((jnp.zeros((1, len(self._tokens), 1, 1)),), ())
        none = jnp.zeros((1, 0), bool)
        first = jax.nn.one_hot(jnp.array(self._tokens[:1]), VOCABULARY)
        return DecodeState(cache, none, jnp.zeros(1, int), first, jnp.int32(0))

    def feed(self, state, token):
        step = int(state.step)
        assert int(token[0]) == self._tokens[step], "a token that was not chosen was fed"
        self.fed.append(step)
        hidden = jax.nn.one_hot(jnp.array(self._tokens[step + 1 : step + 2]), VOCABULARY)
        return dataclasses.replace(state, step=state.step + 1), hidden, []


TOKENS = [2, 3, 5, 0, 4]


@pytest.mark.parametrize(
    ("draft_ids", "whole"),
    [
        (None, 4),
        # All are among them: drafts of two, verified, and nothing is fed twice.
        ([2, 3, 5, 0, 4], 0),
        # The first is not: there is no draft to pay for.
        ([5, 0], 4),
    ],
)
def test_a_draft_feeds_no_token_twice(draft_ids, whole, monkeypatch):
    monkeypatch.setattr(decoding, "DRAFT_LENGTH", 2)
    ids = None if draft_ids is None else jnp.array(draft_ids)
    options = DecodeOptions(stop=STOP, draft_ids=ids)
    chain = Chain(TOKENS)
    with jax.disable_jit():
        got = decoding.decode_all(chain, chain.begin(), jax.random.key(0), options)
    assert got[0].tolist() == TOKENS
    assert chain.fed == [0, 1, 2, 3]
    assert chain.whole == whole


@pytest.mark.parametrize("draft_ids", [None, [2, 3, 5, 0, 4]])
@pytest.mark.parametrize(("most", "written"), [(1, 1), (3, 3), (5, 5), (9, 5), (None, 5)])
def test_no_more_tokens_are_written_than_asked_for(draft_ids, most, written, monkeypatch):
    """However many there is room for, also in the middle of a draft; nothing is fed in vain."""
    monkeypatch.setattr(decoding, "DRAFT_LENGTH", 2)
    ids = None if draft_ids is None else jnp.array(draft_ids)
    options = DecodeOptions(max_tokens=most, stop=STOP, draft_ids=ids)
    for tokens in (TOKENS, [*TOKENS[:4], 5]):  # the second has no end of its own
        chain = Chain(tokens)
        with jax.disable_jit():
            got = decoding.decode_all(chain, chain.begin(), jax.random.key(0), options)
        assert got[0].tolist() == tokens[:written] + [0] * (5 - written)
        assert chain.fed == [*range(written - 1)]


class Misled(Chain):
    """Where another token is fed than its row has, it says nonsense from there on."""

    def feed(self, state, token):
        step, given = int(state.step), int(token[0])
        self.fed.append((step, given))
        follows = self._tokens[step + 1] if given == self._tokens[step] else 5
        hidden = jax.nn.one_hot(jnp.array([follows]), VOCABULARY)
        return dataclasses.replace(state, step=state.step + 1), hidden, []


def test_a_draft_that_goes_wrong_is_dropped_from_there_on(monkeypatch):
    """The model goes on behind the last token that was chosen, and feeds the right one again."""
    monkeypatch.setattr(decoding, "DRAFT_LENGTH", 3)
    options = DecodeOptions(stop=STOP, draft_ids=jnp.array([2, 5, 0, 4]))  # 3 is missing
    chain = Misled(TOKENS)
    with jax.disable_jit():
        got = decoding.decode_all(chain, chain.begin(), jax.random.key(0), options)
    assert got[0].tolist() == TOKENS
    assert any(token != TOKENS[step] for step, token in chain.fed), "no draft went wrong"
    assert dict(chain.fed) == dict(enumerate(TOKENS[:-1]))  # the last that was fed at each step
