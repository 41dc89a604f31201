"""LeRobot's folders as policies: what its own processors and decoding were recorded to do, held
through `Policy`."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from models.checkpoints.assembly import load_lerobot
from models.fast_tokenizer import FastActionTokenizer, FastPrompt, FastTokenizer
from models.tokenizer import BOS, UNK, PaligemmaTokenizer
from playground.checkpoints import catalog, load
from playground.checkpoints import folder as local
from playground.checkpoints import stats as stats_of
from playground.robots import conversion
from playground.serving.events import Done, TokenEvent
from playground.trace import ALLOWED, Options, RawObservation
from playground.training import tokenizers
from tests.support.golden_models import close
from tests.test_chains import shallow
from tests.test_lerobot import CONFIG, case

ARM = {
    "name": "my_arm",
    "control_hz": 10,
    "cameras": {"base_0_rgb": "front", "base_1_rgb": "side", "wrist_0_rgb": "wrist"},
    "state": [{"name": f"joint {i}", "unit": "rad"} for i in range(8)],
    "actions": [{"name": f"joint {i}", "unit": "rad"} for i in range(7)],
    "offsets": [False] * 7,
    "resting_state": [0.0] * 8,
}
ROBOTS = {"pi0": "aloha_sim", "pi05": "libero", "pi0_fast": "my_arm.json"}


@pytest.fixture(scope="module")
def entries(goldens, tmp_path_factory):
    """By family, the golden folder's with its robot."""
    folder = tmp_path_factory.mktemp("robots")
    (folder / "my_arm.json").write_text(json.dumps(ARM))
    robot = {f: str(folder / r) if r.endswith(".json") else r for f, r in ROBOTS.items()}
    return {f: local.open_folder(goldens / "lerobot" / f, robot=robot[f]) for f in ROBOTS}


def test_the_published_action_tokenizer_is_the_default(entries):
    assert entries["pi0_fast"].action_tokenizer == catalog.FAST_TOKENIZER
    assert entries["pi05"].action_tokenizer is None


@pytest.fixture(scope="module")
def texts(goldens):
    return PaligemmaTokenizer(
        goldens / "transforms" / "sentencepiece" / "tiny_paligemma.model", "lerobot"
    )


@pytest.fixture(scope="module")
def actions(goldens):
    return FastActionTokenizer.load(goldens / "transforms" / "fast")


def assembled(entry, model, texts, actions):
    """As it is loaded, but for its weights and tokenizers."""
    stats = stats_of.norm_stats(entry)
    info = load.describe(entry, model.config, revision="", badge="", notice="", stats=stats)
    return load.assemble(info, entry, model, texts, actions)


@pytest.mark.parametrize("family", ROBOTS)
def test_the_way_in_and_back(goldens, entries, texts, actions, family):
    """LeRobot's own processors: prompt, state and actions, from the robot's units and back."""
    entry = entries[family]
    config = dataclasses.replace(entry.config, vocab_size=texts.vocab_size)
    policy = assembled(entry, shallow(config), texts, actions)
    record = np.load(goldens / "lerobot" / family / "processing.npz")
    black = {slot.name: "black" for slot in entry.slots}
    for i, task in enumerate(record["tasks"]):
        raw = RawObservation(entry.robot.name, {}, black, str(task), record["state"][i])
        prepared = policy.prepare(raw)
        close(prepared.state, record["state_normalized"][i], 2e-6)
        prompt = prepared.prompt
        assert prompt.text == record["prompts"][i]
        ids = prompt.tokens[prompt.mask].tolist()
        ends = [BOS] if family == "pi0_fast" else []
        assert ids == [BOS, *texts.encode(prompt.text), *ends]
        close(policy.to_robot(record["model_action"][i], raw), record["action_unnormalized"][i],
              2e-6)  # fmt: skip


def test_a_long_prompt_is_cut_off_before_the_start_token(texts, actions):
    """LeRobot cuts the prompt to 96 tokens, then adds it."""
    tokenizer, state = FastTokenizer(texts, actions), np.zeros(8)
    long = tokenizer.tokenize("pick up the cube " * 40, state, 97)
    assert long.tokens[-1] == BOS
    assert long.mask.all()
    assert long.truncated == tokenizer.tokenize("pick up the cube " * 40, state, 98).truncated + 1
    with pytest.raises(ValueError, match="openpi's rules only"):
        tokenizer.tokenize("pick", state, 97, np.zeros((10, 7)))


def test_ids_stay_ids(texts, actions):
    """LeRobot maps ids, not their text: what only text loses is kept, special tokens are not."""
    tokenizer, chunk = FastTokenizer(texts, actions), np.linspace(-1, 1, 70).reshape(10, 7)
    codes = [tokenizer.swap(code) for code in actions.encode(chunk)]
    marker, end = map(texts.encode, ("Action: ", "|"))
    for written in (
        [*marker, *codes, *end, 1],
        [*marker, UNK, *codes, BOS, *end, *codes],  # some versions put one before "|"
        [*texts.encode("Hello"), *marker, *codes, 0, 0],
    ):
        got = tokenizer.extract_actions(written, 10, 7)
        assert (got.failure, got.skipped) == (None, ())
        close(got.actions, actions.decode(actions.encode(chunk), 10, 7).actions, 0)
    # A space is a token like any other: skipped, and reported.
    space = texts.encode(" ")
    got = tokenizer.extract_actions([*marker, *space, *codes, *end], 10, 7)
    assert got.failure is None
    assert len(got.skipped) == len(space)
    assert tokenizer.action_ids(codes) is None


# --- LeRobot's decoding -------------------------------------------------------------------------


def small_text(path):
    """Writes a sentencepiece model of the golden pi0-FAST's 1,024 tokens: 496 of text, 400 of
    actions and 128 above them."""
    whole = tokenizers.train(vocab_size=496, count=2000)
    cut = (whole.index(tokenizers.more_piece(f"<loc{i:04}>")) for i in (0, 624))
    path.write_bytes(whole[: next(cut)] + whole[next(cut) :])
    return path


def few_actions():
    """A FAST tokenizer for them."""
    chunks = np.random.default_rng(0).normal(size=(64, 10, 7)).cumsum(axis=1) / 5
    return tokenizers.fit_action_tokenizer(chunks, vocab_size=400)


@pytest.fixture(scope="module")
def fast(goldens, entries, tmp_path_factory):
    """pi0-FAST with the golden weights."""
    texts = PaligemmaTokenizer(
        small_text(tmp_path_factory.mktemp("text") / "text.model"), "lerobot"
    )
    model = load_lerobot(goldens / "lerobot" / "pi0_fast", CONFIG["pi0_fast"])
    return assembled(entries["pi0_fast"], model, texts, few_actions())


def given(policy, row):
    """The recorded observation, whose prompt was drawn by chance."""
    record, slots = case("pi0_fast"), policy.config.image_slots
    ids = record["tokenized_prompt"][row][record["tokenized_prompt_mask"][row]]
    ids = np.r_[ids, BOS]
    empty = policy.config.max_token_len - len(ids)
    prompt = FastPrompt(
        np.pad(ids, (0, empty)), np.arange(empty + len(ids)) < len(ids),
        *np.zeros((2, empty + len(ids)), int), "", 0,
    )  # fmt: skip
    there = dict(zip(slots, record["image_masks"][row], strict=True))
    images = dict(zip(slots, record["images"][row], strict=True))
    raw = RawObservation(
        policy.robot.name,
        {slot: image for slot, image in images.items() if there[slot]},
        {slot: "masked" for slot in slots if not there[slot]},
        "",
        np.zeros(8),
    )
    return raw, prompt


def run(policy, raw, options):
    events = list(policy.infer(raw, options))
    assert isinstance(events[-1], Done)
    written = [event.token for event in events if isinstance(event, TokenEvent)]
    assert list(events[-1].trace.tokens) == written
    return events[-1].trace


@pytest.mark.parametrize("row", [0, 1])
def test_fast_writes_lerobots_tokens(fast, monkeypatch, row):
    """The second without its last camera, whose place is in the middle of the sequence. Trimmed to
    the text's places or not, with measured attention or without."""
    record = case("pi0_fast")
    raw, prompt = given(fast, row)
    monkeypatch.setattr(fast, "tokenize", lambda *_: prompt)
    trace = run(fast, raw, Options(max_tokens=12))
    shown = run(fast, raw, Options(max_tokens=12, attention=True))
    want = record["tokens_greedy"][row].tolist()
    assert [token.id for token in trace.tokens] == want
    assert [token.id for token in shown.tokens] == want
    odds = jax.nn.softmax(record["steps_logits"][:, row], axis=-1)[np.arange(12), want]
    for tokens in (trace.tokens, shown.tokens):
        close([token.probability for token in tokens], odds, 1e-5)
    check_columns(shown, len(prompt.tokens[prompt.mask]))


def check_columns(trace, prompt_len):
    """The mask by hand, and measured attention in it."""
    seen, writes = [], []
    for block in trace.blocks:
        masked = trace.inputs.modes.get(block.name) == "masked" or block.kind == "padding"
        seen += [not masked and block.kind != "generated"] * (block.stop - block.start)
        writes += [block.kind == "generated"] * (block.stop - block.start)
        if block.kind == "text":
            assert block.stop - block.start == prompt_len
            assert trace.token_texts[block.stop - 1] == "<bos>"
    seen, writes = np.array(seen), np.array(writes)
    place = np.arange(len(seen))
    want = np.where(writes[:, None], seen | writes & (place <= place[:, None]), seen)
    want &= (seen | writes)[:, None]
    allowed = trace.mask == ALLOWED
    np.testing.assert_array_equal(allowed, want)
    suffix = np.float32(trace.attention["suffix"])[
        ..., 0, : len(seen)
    ]  # [tokens, layers, heads, C]
    close(suffix.sum(axis=-1), np.ones(suffix.shape[:-1]), 5e-3)
    for weights, row in zip(suffix, allowed[writes], strict=True):
        assert not weights[..., ~row].any()
    prefix = np.float32(trace.attention["prefix"])
    assert not prefix[:, :, seen[: prefix.shape[2]]][..., ~seen[: prefix.shape[3]]].any()


def test_constrained_and_in_one_piece(fast):
    """Constrained decoding gives a chunk, and the loop in one piece, drafts included, the same."""
    raw, _ = given(fast, 1)
    raw = dataclasses.replace(raw, prompt="pick up the Red cube")
    options = Options(max_tokens=90, constrained=True)
    trace = run(fast, raw, options)
    assert trace.decode_failure is None
    chunks, failure = fast.actions(raw, options)
    assert failure is None
    np.testing.assert_array_equal(chunks, trace.actions_normalised)
    back = conversion.from_model(
        fast.robot, chunks, raw.state, fast.info.action_stats, fast.info.normalisation
    )
    close(trace.actions, back, 1e-6)


# --- cameras ------------------------------------------------------------------------------------


def test_cameras_are_called_as_in_the_data(goldens, tmp_path):
    """LeRobot's slots have the data's names; a robot's file says which camera fills which, and the
    others are masked, also for pi0-FAST."""
    for path in (goldens / "lerobot" / "pi0_fast").iterdir():
        if path.is_file() and not path.name.endswith(".npz"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "config.json").read_text()
    for slot, name in (("base_0_rgb", "top"), ("base_1_rgb", "hand.cam")):
        text = text.replace(f"images.{slot}", f"images.{name}")
    (tmp_path / "config.json").write_text(text)
    robot = tmp_path / "arm.json"
    robot.write_text(json.dumps({**ARM, "cameras": {"hand.cam": "wrist", "top": "ceiling"}}))
    entry = local.open_folder(tmp_path, robot=str(robot))
    assert entry.config.image_slots == ("top", "hand.cam", "wrist_0_rgb")
    assert [(s.name, s.camera, s.required, s.when_missing) for s in entry.slots] == [
        ("top", "ceiling", True, "masked"),
        ("hand.cam", "wrist", True, "masked"),
        ("wrist_0_rgb", "", False, "masked"),
    ]
    robot.write_text(json.dumps(ARM))
    with pytest.raises(ValueError, match=r"the slots are top, hand\.cam, wrist_0_rgb"):
        local.open_folder(tmp_path, robot=str(robot))
