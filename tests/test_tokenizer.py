"""Tokenizers against openpi's recorded ones, and what must hold for any text, chunk and ids."""

import codecs
import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.decoding import (
    Constraint,
    DecodeOptions,
    StopAfter,
    TokenBuffer,
    constrained,
    next_token,
)
from models.fast_tokenizer import FastActionTokenizer, FastTokenizer
from models.tokenizer import BOS, EOS, PaligemmaTokenizer, state_bins
from playground.training import tokenizers as training
from tests.support.openpi_cases import DIFFERENCES, Recorded, difference, hold


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "transforms"


@pytest.fixture(scope="module")
def tiny(folder):
    return PaligemmaTokenizer(folder / "sentencepiece" / "tiny_paligemma.model")


@pytest.fixture(scope="module")
def recorded_fast(folder):
    return {name: FastActionTokenizer.load(folder / name) for name in ("fast", "fast_2048")}


@pytest.fixture(scope="module")
def small():
    return PaligemmaTokenizer(training.MODEL)


def smooth_chunks(count, horizon=20, dim=5, seed=0):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        knots = draw.uniform(-1, 1, (4, dim))
        steps = np.linspace(0, 3, horizon)
        yield np.stack([np.interp(steps, range(4), column) for column in knots.T], axis=1)


@pytest.fixture(scope="module")
def fitted():
    return training.fit_action_tokenizer(smooth_chunks(300), vocab_size=400)


# --- against openpi -----------------------------------------------------------------------------


def test_prompts_equal_openpi(folder, tiny):
    for case in Recorded(folder, "paligemma_prompt").data["cases"]:
        state = np.array(case["state"], case["state_dtype"]) if "state" in case else None

        def check(prompt, case=case):
            assert prompt.tokens.tolist() == case["tokens"]
            assert prompt.mask.tolist() == case["mask"]
            assert prompt.text == case["text_of_valid_tokens"]
            assert (prompt.tokens.dtype, prompt.mask.dtype) == (np.int64, bool)

        hold(
            f"prompt/{case['name']}",
            False,
            lambda case=case, state=state: tiny.tokenize(case["prompt"], case["max_len"], state),
            check,
        )


def test_the_newline_is_encoded_on_its_own_behind_the_text(small, monkeypatch):
    """Whether a vocabulary joins it to a word or not."""
    whole, encoded = small.encode, []
    monkeypatch.setattr(small, "encode", lambda text: encoded.append(text) or whole(text))
    prompt = small.tokenize("pick up\nthe cube", 40)
    assert encoded == ["pick up the cube", "\n"]
    ids = [BOS, *whole("pick up the cube"), *whole("\n")]
    assert prompt.tokens[prompt.mask].tolist() == ids


def test_state_outside_the_range_has_openpis_bins(folder):
    (case,) = [
        case
        for case in Recorded(folder, "paligemma_prompt").data["cases"]
        if case["name"] == "pi05/state_outside"
    ]
    bins = re.search("State: (.*);", case["text_of_valid_tokens"])[1].split()
    state = np.array(case["state"])
    finite = np.isfinite(state)
    assert state_bins(state[finite]).tolist() == [
        int(b) for b, kept in zip(bins, finite, strict=True) if kept
    ]


def test_raw_encoding_equals_sentencepiece(folder, tiny):
    data = Recorded(folder, "paligemma_prompt").data
    for case in data["raw_encode"]:
        assert tiny.encode(case["text"]) == case["ids"]
        assert [tiny.piece(i) for i in case["ids"]] == case["pieces"]
        assert tiny.decode(case["ids"]) == case["decoded"]
    for case in data["raw_decode"]:
        assert tiny.decode(case["ids"]) == case["text"]


def test_fast_encoding_equals_the_published_processor(folder, recorded_fast):
    recorded = Recorded(folder, "fast_cases")
    for case in recorded.data["encode"]:
        actions = recorded.arrays[case["key"]]
        tokenizer = recorded_fast[case["tokenizer"]]
        rows = list(actions) if actions.ndim >= 3 else [actions]

        def check(ids, case=case):
            assert ids == case["tokens"]

        hold(
            f"encode/{case['name']}",
            "error" in case,
            lambda rows=rows, tokenizer=tokenizer: [tokenizer.encode(row) for row in rows],
            check,
        )


def test_fast_decoding_equals_the_published_processor(folder, recorded_fast):
    recorded = Recorded(folder, "fast_cases")
    for case in recorded.data["decode"]:
        sizes = (case["time_horizon"], case["action_dim"])
        counts = iter(re.findall(r"size (\d+)|have shape \((\d+), (\d+)\)", case["stdout"]))

        def check(decodings, case=case, counts=counts):
            failed = 0
            for decoding, theirs in zip(decodings, recorded.arrays[case["key"]], strict=True):
                if decoding.failure is None:
                    np.testing.assert_allclose(decoding.actions, theirs, rtol=0, atol=1e-9)
                    continue
                failed += 1
                assert decoding.actions is None
                if "coefficients came" in decoding.failure:
                    size, rows, columns = next(counts)
                    count = int(size) if size else int(rows) * int(columns)
                    assert f"{count} coefficients came" in decoding.failure
            assert failed == case["num_failed_rows"]

        hold(
            f"decode/{case['name']}",
            "error" in case,
            lambda case=case, sizes=sizes: [
                recorded_fast[case["tokenizer"]].decode(row, *sizes) for row in case["tokens"]
            ],
            check,
        )


def test_half_characters_are_named(folder, recorded_fast):
    for case in Recorded(folder, "fast_cases").data["decode"]:
        if case["name"] in ("bad/lone_lead_byte", "bad/lone_continuation_byte"):
            (row,) = case["tokens"]
            decoding = recorded_fast["fast"].decode(row, case["time_horizon"], case["action_dim"])
            broken = next(i for i in row if recorded_fast["fast"].coefficients(i) is None)
            assert decoding.failure.startswith(f"id {broken} at position {row.index(broken)} ")


def test_what_each_action_token_stands_for(folder, recorded_fast):
    recorded = Recorded(folder, "fast_cases").data["coefficients_of_each_token"]
    tokenizer = recorded_fast[recorded["tokenizer"]]
    assert len(recorded["values"]) == tokenizer.vocab_size
    replacement = 0xFFFD + tokenizer.min_token
    for token, values in enumerate(recorded["values"]):
        ours = tokenizer.coefficients(token)
        assert (replacement in values) if ours is None else (list(ours) == values)


def test_fast_prompts_equal_openpi(folder, tiny, recorded_fast):
    recorded = Recorded(folder, "fast_prompt")
    tokenizers = {name: FastTokenizer(tiny, fast) for name, fast in recorded_fast.items()}
    for case in recorded.data["tokenize"]:
        actions = recorded.arrays[case["actions_key"]] if "actions_key" in case else None
        prompt = tokenizers[case["tokenizer"]].tokenize(
            case["prompt"], recorded.arrays[case["state_key"]], case["max_len"], actions
        )
        ours = (prompt.tokens, prompt.mask, prompt.ar_mask, prompt.loss_mask)
        theirs = [case[key] for key in ("tokens", "token_mask", "ar_mask", "loss_mask")]
        assert [array.tolist() for array in ours] == theirs, case["name"]
        assert [str(array.dtype) for array in ours] == case["dtypes"], case["name"]


def test_actions_out_of_generated_text_equal_openpi(folder, tiny, recorded_fast):
    recorded = Recorded(folder, "fast_prompt")
    tokenizers = {name: FastTokenizer(tiny, fast) for name, fast in recorded_fast.items()}
    for case in recorded.data["extract_actions"]:
        decoding = tokenizers[case["tokenizer"]].extract_actions(
            case["tokens"], case["action_horizon"], case["action_dim"]
        )
        theirs = recorded.arrays[case["key"]]
        # Zeros without a message mean no marker, zeros with one a failure; nothing else is zero.
        assert (decoding.actions is None) == case["all_zero"], case["name"]
        if decoding.actions is None:
            assert ("no 'Action: '" in decoding.failure) == (not case["stdout"]), case["name"]
        else:
            np.testing.assert_allclose(decoding.actions, theirs, rtol=0, atol=1e-9)
        strays = ("text_inside", "space_inside", "unk_inside", "high_fast_ids", "byte_pieces")
        if decoding.failure is None:
            assert bool(decoding.skipped) == (case["name"] in strays), case["name"]


# --- what must hold for anything ----------------------------------------------------------------

any_text = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=300)


@given(text=st.text(max_size=300))
def test_any_text_comes_back(small, text):
    # U+2581 is how sentencepiece writes a space.
    assert small.decode(small.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize(
    ("text", "read"),
    [("a\ud83db", "a\ufffdb"), ("\ude00", "\ufffd"), ("\ud83d\ude00", "😀"), ("a\0b", "a\0b")],
)
def test_halves_of_characters_do_no_harm(small, text, read):
    assert small.decode(small.encode(text)) == read
    assert small.tokenize(text, 48).text == f"{read}\n"


@given(
    text=any_text,
    max_len=st.integers(1, 250),
    state=st.none() | st.lists(st.floats(-3, 3), max_size=14).map(np.array),
)
def test_any_prompt_fits(small, fitted, text, max_len, state):
    prompts = [small.tokenize(text, max_len, state)]
    if state is not None:
        prompts.append(FastTokenizer(small, fitted).tokenize(text, state, max_len))
    for prompt in prompts:
        valid = int(prompt.mask.sum())
        assert prompt.tokens.shape == prompt.mask.shape == (max_len,)
        assert prompt.mask[:valid].all()
        assert prompt.tokens[0] == BOS
        assert not prompt.tokens[valid:].any()
        assert prompt.truncated == 0 or valid == max_len
        assert prompt.text == small.decode(prompt.tokens[:valid])


def test_a_long_prompt_says_what_was_cut(small):
    whole = small.tokenize("pick up the red cube " * 500, 10_000)
    cut = small.tokenize("pick up the red cube " * 500, 48)
    assert (whole.truncated, cut.truncated) == (0, int(whole.mask.sum()) - 48)
    assert whole.text.startswith(cut.text)


@given(st.lists(st.floats(-1, 1, exclude_max=True), min_size=1, max_size=20))
def test_bins_hold_their_values(values):
    left = -1 + state_bins(np.array(values)) / 128
    assert ((left <= values) & (values < left + 1 / 128)).all()


@given(data=st.data(), scale=st.sampled_from([5, 10, 40]))
@settings(max_examples=30)
def test_fast_round_trip_within_rounding(data, scale):
    tokenizer = training.fit_action_tokenizer(
        smooth_chunks(40, seed=scale), vocab_size=600, scale=scale
    )
    seed = data.draw(st.integers(0, 10_000))
    (chunk,) = smooth_chunks(1, horizon=20, dim=5, seed=seed)
    decoding = tokenizer.decode(tokenizer.encode(chunk), 20, 5)
    # Each coefficient is off by at most half a step, and the transform keeps distances.
    error = np.linalg.norm(decoding.actions - chunk, axis=0)
    assert decoding.failure is None
    assert (error <= 0.5 / scale * np.sqrt(20) + 1e-9).all()


@given(st.lists(st.integers(-200, 700), max_size=60))
@example([400])
def test_any_ids_decode_or_say_why(fitted, ids):
    decoding = fitted.decode(ids, 4, 3)
    assert (decoding.actions is None) != (decoding.failure is None)
    assert list(decoding.skipped) == [i for i in ids if i >= fitted.vocab_size]
    if decoding.actions is not None:
        assert decoding.actions.shape == (4, 3)


@given(seed=st.integers(0, 1000), cut=st.integers(0, 40))
def test_partial_decoding_has_the_coefficients_so_far(fitted, seed, cut):
    (chunk,) = smooth_chunks(1, seed=seed)
    ids = fitted.encode(chunk)
    whole = fitted.decode(ids, 20, 5).actions
    np.testing.assert_array_equal(fitted.decode_partials([ids], 20, 5)[0], whole)
    known = [fitted.coefficients(i) for i in ids[:cut]]
    partial = fitted.decode_partials([ids[:cut]], 20, 5)[0]
    if None in known:
        return  # the cut may split a character
    count = sum(map(len, known))
    assert (partial is None) == (count == 0)
    if partial is not None:
        spectrum = scipy.fft.dct(whole, axis=0, norm="ortho").ravel()
        spectrum[count:] = 0
        ours = scipy.fft.dct(partial, axis=0, norm="ortho").ravel()
        np.testing.assert_allclose(ours, spectrum, rtol=0, atol=1e-9)


def test_partial_decoding_is_none_where_decoding_can_only_fail(fitted):
    (chunk,) = smooth_chunks(1)
    ids = fitted.encode(chunk)
    assert fitted.decode_partials([[*ids, ids[0]]], 20, 5)[0] is None
    assert fitted.decode_partials([[-1, *ids]], 20, 5)[0] is None
    assert fitted.decode_partials([[]], 20, 5)[0] is None


def test_generated_tokens_become_actions(small, fitted):
    tokenizer = FastTokenizer(small, fitted)
    (chunk,) = smooth_chunks(1, seed=5)
    prompt = tokenizer.tokenize("touch the red cube", np.zeros(5), 200, chunk)
    generated = prompt.tokens[prompt.loss_mask].tolist()
    assert small.decode(generated).startswith("Action: <loc")
    assert generated[-1] == EOS
    expected = fitted.decode(fitted.encode(chunk), 20, 5).actions
    np.testing.assert_array_equal(tokenizer.extract_actions(generated, 20, 5).actions, expected)
    # Complete from the bar on, and nothing after it counts.
    bar = len(generated) - 2
    more = [*generated, *small.encode("Action: nonsense"), 0, 0]
    np.testing.assert_array_equal(tokenizer.extract_actions(more, 20, 5).actions, expected)
    # While tokens come, the partial chunk ends at the whole one.
    (partial,) = tokenizer.extract_partials(generated[:bar], bar - 1, 20, 5)
    np.testing.assert_array_equal(partial, expected)
    assert tokenizer.extract_partials(generated[:2], 0, 20, 5) == [None, None]


def test_fast_saves_and_loads(tmp_path, fitted):
    fitted.save(tmp_path)
    loaded = FastActionTokenizer.load(tmp_path)
    for chunk in smooth_chunks(20, seed=7):
        assert loaded.encode(chunk) == fitted.encode(chunk)
    assert (loaded.scale, loaded.min_token, loaded.vocab_size) == (10, fitted.min_token, 400)
    assert loaded.row == 5


def test_fit_leaves_no_holes(fitted):
    # Half as far again as the data, every value by itself: nothing vanishes, nothing shifts.
    spectra = [scipy.fft.dct(c, axis=0, norm="ortho") * 10 for c in smooth_chunks(300)]
    lowest, highest = (round(1.5 * f(spectra)) for f in (np.min, np.max))
    assert lowest < -20
    assert highest > 20
    for value in range(lowest + 2, highest - 1):
        ids = fitted.encode(np.array([[value / 10, 0.0]]))
        assert fitted.decode(ids, 1, 2).actions.round(9).tolist() == [[value / 10, 0.0]]


def test_zeros_are_tokens_of_nothing_but_zero_coefficients(tiny, recorded_fast):
    """Part of a character is none: of it no coefficient is known yet."""
    fast = recorded_fast["fast"]
    tokenizer = FastTokenizer(tiny, fast)
    zeros = tokenizer.constraint(tiny.vocab_size, 20, 5).zeros
    known = {i: fast.coefficients(i) for i in range(fast.vocab_size)}
    assert None in known.values()
    assert set(np.flatnonzero(zeros)) == {
        tokenizer.swap(i) for i, values in known.items() if values and set(values) == {0}
    }


@pytest.mark.parametrize("kind", ["published", "whole chunk", "frequency by frequency"])
@settings(max_examples=10, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_whatever_is_drawn_under_the_constraint_decodes(
    small, tiny, recorded_fast, fitted, kind, seed
):
    """Action tokens drawn blindly, parts of characters among them; without it none of it does."""
    row = 5 if kind == "frequency by frequency" else None
    fast = FastActionTokenizer(fitted.bpe, fitted.scale, fitted.min_token, row)
    text, fast = (tiny, recorded_fast["fast"]) if kind == "published" else (small, fast)
    tokenizer = FastTokenizer(text, fast)
    constraint = tokenizer.constraint(text.vocab_size, 20, 5)
    free = DecodeOptions(stop=StopAfter(constraint.start, constraint.end))
    constrained = dataclasses.replace(free, constraint=constraint)
    ids = [tokenizer.swap(i) for i in range(fast.vocab_size)]
    draws = np.random.default_rng(seed).normal(size=(140, text.vocab_size))
    draws += 20 * np.isin(np.arange(text.vocab_size), ids)
    # Tokens of many coefficients would soon be at the end.
    draws -= 4 * (constraint.completed[0] > 5)

    def written(options):
        buffer = TokenBuffer.empty(1, 150, options)
        for token in constraint.start:
            buffer = _write(jax.nn.one_hot([token], text.vocab_size), buffer, free)
        for logits in draws:
            buffer = _write(jnp.float32(logits)[None], buffer, options)
            if buffer.all_done:
                break
        return np.asarray(buffer.tokens)[0].tolist()

    assert tokenizer.extract_actions(written(free), 20, 5).actions is None
    ids = written(constrained)
    assert tokenizer.extract_actions(ids, 20, 5).failure is None
    count, crossed = 0, []
    for token in tokenizer.action_ids(ids):
        coefficients = fast.coefficients(token) or ()
        if count % 5 + len(coefficients) > 5:
            crossed.append(any(coefficients))
        count += len(coefficients)
    assert any(crossed) == (row is None)


@jax.jit
def _write(logits, buffer, options):
    return next_token(logits, buffer, jax.random.key(0), options)[0]


def test_a_token_that_begins_one_coefficient_too_many_may_not_come():
    """Of four tokens: start, end, one coefficient, and one with the first half of another."""
    completed, missing = np.full((4, 4), -1, np.int32), np.zeros((4, 4), np.int32)
    completed[0, 2:], missing[0, 3] = 1, 1
    for total, allowed in ((1, [2]), (2, [2, 3])):
        constraint = Constraint(completed, missing, np.zeros(4, bool), total, total, (0,), 1)
        options = DecodeOptions(stop=StopAfter((0,), 1), constraint=constraint)
        buffer = TokenBuffer.empty(1, 4, options).append(jnp.int32([0]), options)
        logits = constrained(jnp.zeros((1, 4)), buffer, constraint)
        assert np.flatnonzero(np.isfinite(logits[0])).tolist() == allowed


def test_a_coefficient_in_two_halves_counts_once():
    """Of seven tokens: start's second, end, both halves of a coefficient, one coefficient, two
    zeros, start's first. Three coefficients in groups of two; what stands before is none of them,
    and behind the end everything may come."""
    completed, missing = np.full((4, 7), -1, np.int32), np.zeros((4, 7), np.int32)
    completed[0, [0, 2, 4, 5, 6]], missing[0, 2], missing[:, [0, 6]] = [3, 0, 1, 2, 3], 1, 1
    completed[1, 3] = 1
    zeros = np.arange(7) == 5
    constraint = Constraint(completed, missing, zeros, 3, 2, (6, 0), 1)
    options = DecodeOptions(stop=StopAfter((6, 0), 1), constraint=constraint)
    buffer = TokenBuffer.empty(1, 7, options)
    for token, allowed in ((6, [6]), (0, [0]), (2, [2, 4, 5]), (3, [3]), (5, [2, 4, 5]), (1, [1])):
        logits = constrained(jnp.zeros((1, 7)), buffer, constraint)
        assert np.flatnonzero(np.isfinite(logits[0])).tolist() == allowed
        buffer = buffer.append(jnp.int32([token]), options)
    assert buffer.all_done
    assert np.isfinite(constrained(jnp.zeros((1, 7)), buffer, constraint)).all()


def test_the_constraint_follows_bytes_as_python_does(recorded_fast):
    """Of every token of the recorded vocabularies, wherever in a character it may come."""
    length = {1: 0xC2, 2: 0xE1, 3: 0xF1}
    for fast in recorded_fast.values():
        for token, missing in itertools.product(range(fast.vocab_size), range(4)):
            decoder = codecs.getincrementaldecoder("utf-8")()
            decoder.decode(bytes([length[missing]]) if missing else b"")
            try:
                completed = len(decoder.decode(fast.token_bytes(token)))
            except UnicodeDecodeError:
                assert fast.complete(token, missing) is None
                continue
            pending = decoder.getstate()[0]
            starts = [n for n, first in length.items() if pending and pending[0] >= first & 0xF0]
            left = max(starts) + 1 - len(pending) if starts else 0
            assert fast.complete(token, missing) == (completed, left)


# --- refusals -----------------------------------------------------------------------------------


def test_the_layout_of_transformers_5_is_read(tmp_path, fitted):
    """LeRobot saves so: the vocabulary in a folder of its own."""
    fitted.save(tmp_path)
    (tmp_path / "bpe_tokenizer").mkdir()
    (tmp_path / "tokenizer.json").rename(tmp_path / "bpe_tokenizer" / "tokenizer.json")
    chunk = next(smooth_chunks(1, seed=3))
    assert FastActionTokenizer.load(tmp_path).encode(chunk) == fitted.encode(chunk)


def test_broken_files_are_refused(tmp_path, small, fitted):
    with pytest.raises(ValueError, match=r"cannot read a sentencepiece model from .*nowhere"):
        PaligemmaTokenizer(tmp_path / "nowhere.model")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(ValueError, match="cannot read a sentencepiece model"):
        PaligemmaTokenizer(tmp_path / "text.model")
    with pytest.raises(ValueError, match="no FAST tokenizer in"):
        FastActionTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match=r"tokenizer\.json does not parse"):
        FastActionTokenizer.load(tmp_path)
    fitted.save(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"scale": 0, "min_token": -5}')
    with pytest.raises(ValueError, match="positive scale"):
        FastActionTokenizer.load(tmp_path)


def test_other_layouts_are_refused(tmp_path, fitted):
    without_tail = training.train(vocab_size=700, count=2000)
    without_tail = without_tail[: without_tail.index(b"<loc0000>") - 4]
    (tmp_path / "plain.model").write_bytes(without_tail)
    plain = PaligemmaTokenizer(tmp_path / "plain.model")
    assert plain.tokenize("pick up the cube", 20).truncated == 0  # pi0 needs no <loc>
    with pytest.raises(ValueError, match="does not carry 400 action tokens"):
        FastTokenizer(plain, fitted)


def test_no_fitted_token_ends_within_a_frequency_and_begins_in_another(fitted):
    """So that a model which must reach 20 x 5 coefficients exactly can count frequencies."""
    crossed = 0
    for chunk in smooth_chunks(50, seed=3):
        place = 0
        for token in fitted.encode(chunk):
            count = len(fitted.coefficients(token) or ())
            first, last = place // 5, (place + count - 1) // 5
            crossed += last > first
            assert first == last or (place % 5, count % 5) == (0, 0), token
            place += count
    assert crossed  # empty frequencies go together


def test_bad_arguments_are_refused(small, fitted):
    with pytest.raises(ValueError, match="prompt must be text, got bytes"):
        small.tokenize(b"pick", 48)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        small.tokenize("pick", 0)
    with pytest.raises(ValueError, match="vector of finite numbers"):
        small.tokenize("pick", 48, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="outside the vocabulary of 2432"):
        small.decode([5, 2432])
    with pytest.raises(ValueError, match=r"\[steps, dimensions\], got \[7\]"):
        fitted.encode(np.zeros(7))
    with pytest.raises(ValueError, match="actions normalised with the stats"):
        fitted.encode(np.full((20, 5), 50.0))
    with pytest.raises(ValueError, match="vocab_size 50 is too small"):
        training.fit_action_tokenizer(smooth_chunks(10), vocab_size=50)
    with pytest.raises(ValueError, match="lower the scale"):
        training.fit_action_tokenizer(smooth_chunks(10), scale=1e5)
    with pytest.raises(ValueError, match="at least one chunk"):
        training.fit_action_tokenizer([])


# --- the shipped model --------------------------------------------------------------------------


def test_shipped_model_has_paligemmas_layout(small):
    assert [small.piece(i) for i in range(5)] == ["<pad>", "<eos>", "<bos>", "<unk>", "\n"]
    tail = [small.piece(i) for i in range(small.vocab_size - 1152, small.vocab_size)]
    assert tail == [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
    assert [small.piece(i) for i in small.encode(" 128\n|")] == ["▁", "1", "2", "8", "\n", "|"]


def test_shipped_model_keeps_words_whole(small):
    for colour in training.COLOURS:
        for cube in training.CUBES:
            for sentence in ("pick up the {} {}", "touch the {} {}", "push the {} {} to the left"):
                text = sentence.format(colour, cube)
                assert len(small.encode(text)) == len(text.split()), text
    # A user's own words fall into a few pieces, never into bytes.
    own = "Robot, could you kindly bring the strawberry yoghurt over here before it melts?"
    pieces = [small.piece(i) for i in small.encode(own)]
    assert not any(piece.startswith("<0x") for piece in pieces)
    assert len(pieces) < len(own) / 2


def test_training_is_deterministic():
    assert training.train(700, count=2000) == training.train(700, count=2000)


def test_fit_fast_reports_what_it_saved(tmp_path):
    chunks = list(smooth_chunks(200))
    report = training.fit_fast(chunks, tmp_path, vocab_size=400)
    loaded = FastActionTokenizer.load(tmp_path)
    lengths = [len(loaded.encode(chunk)) for chunk in chunks]
    assert report.tokens[2] == max(lengths)
    errors = [loaded.decode(loaded.encode(c), *c.shape).actions - c for c in chunks]
    assert report.error[0] == pytest.approx(np.abs(errors).max())


def test_rows_about_tokenizers_are_in_use(folder):
    """A row that matches no case describes nothing."""
    prompts = Recorded(folder, "paligemma_prompt").data["cases"]
    fast = Recorded(folder, "fast_cases").data
    names = [f"prompt/{case['name']}" for case in prompts]
    names += [f"{kind}/{case['name']}" for kind in ("encode", "decode") for case in fast[kind]]
    rows = {row.cases for name in names if (row := difference(name))}
    ours = {r.cases for r in DIFFERENCES if r.cases.split("/")[0] in ("prompt", "encode", "decode")}
    assert rows == ours
