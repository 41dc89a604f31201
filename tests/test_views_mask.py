"""The mask view: every cell arrives, and its sentences follow the cells, not the policy's name."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from playground.trace import ALLOWED, BLOCKED, PADDING, TokenBlock
from playground.views import mask
from tests.support import traces


def cells(sent):
    """The matrix that the browser builds from a payload."""
    expand = [np.repeat(runs[::2], runs[1::2]) for runs in sent["patterns"]]
    return np.array([expand[pattern] for pattern in sent["rows"]], np.uint8)


def block(trace, name):
    return next(b for b in trace.blocks if b.name == name)


@given(arrays(np.uint8, (12, 12), elements=st.sampled_from([BLOCKED, ALLOWED, PADDING])))
def test_every_cell_arrives(matrix):
    trace = traces.pi0_trace(patches=1, text_len=8, horizon=1)
    trace = dataclasses.replace(trace, mask=matrix, token_texts=("a",) * 12)
    assert sum(b.stop - b.start for b in trace.blocks) == 13  # one more: rows may be fewer
    sent = json.loads(json.dumps(mask.payload(trace)))
    np.testing.assert_array_equal(cells(sent), matrix)
    flags = np.zeros(12, bool)
    for start, stop in sent["padding"]:
        flags[start:stop] = True
    np.testing.assert_array_equal(flags, np.diagonal(matrix) == PADDING)


@pytest.mark.parametrize("build", [traces.pi0_trace, traces.fast_trace])
def test_payload_follows_the_trace(build):
    trace = build()
    sent = json.loads(json.dumps(mask.payload(trace)))
    np.testing.assert_array_equal(cells(sent), trace.mask)
    assert [(b["name"], b["start"], b["stop"]) for b in sent["blocks"]] == [
        (b.name, b.start, b.stop) for b in trace.blocks
    ]
    assert {i: text for i, text in sent["texts"]} == {
        i: text for i, text in enumerate(trace.token_texts) if text
    }


def test_full_size_masks_stay_light():
    flow = traces.pi0_trace(patches=256, text_len=48)
    fast = traces.fast_trace(patches=256, text_len=250, count=256)
    assert flow.mask.shape == (867, 867)
    assert fast.mask.shape == (1274, 1274)
    for trace in (flow, fast):
        assert len(json.dumps(mask.payload(trace))) < 60_000


def test_prefix_and_suffix_part_where_the_second_pass_begins():
    flow, flow5 = traces.pi0_trace(), traces.pi0_trace(family="pi05")
    fast = traces.fast_trace()
    assert mask.suffix_start(flow) == block(flow, "state").start
    assert mask.suffix_start(flow5) == block(flow5, "actions").start
    assert mask.suffix_start(fast) == block(fast, "generated").start


def test_padding_queries_are_masked_cameras_and_text_padding():
    trace = traces.pi0_trace()
    hidden = np.flatnonzero(mask.padding_queries(trace))
    ranges = [block(trace, "right_wrist_0_rgb"), block(trace, "padding")]
    assert hidden.tolist() == [i for b in ranges for i in range(b.start, b.stop)]


def test_relation_counts_real_queries_only():
    trace = traces.pi0_trace()
    text, state, chunk = (block(trace, name) for name in ("text", "state", "actions"))
    hidden = block(trace, "right_wrist_0_rgb")
    assert mask.relation(trace, chunk, text) == "all"
    assert mask.relation(trace, text, chunk) == "none"
    assert mask.relation(trace, hidden, text) == ""
    changed = trace.mask.copy()
    changed[chunk.start, state.start] = BLOCKED
    partly = dataclasses.replace(trace, mask=changed)
    assert mask.relation(partly, chunk, state) == "part"


def test_describing_groups_blocks_with_equal_rights():
    text = mask.describe(traces.pi0_trace())
    assert "base 0, left wrist 0 and text may attend to base 0, left wrist 0 and text;" in text
    assert "state may attend to base 0, left wrist 0, text and state;" in text
    assert "right wrist" not in text  # masked: no token may attend to it
    assert "part of generated" in mask.describe(traces.fast_trace())


# --- compare ------------------------------------------------------------------------------------


def compared(a, b):
    return " ".join(mask.compare(a, b))


def test_pi0_against_fast():
    flow, fast = traces.pi0_trace(), traces.fast_trace()
    text = compared(flow, fast)
    assert (
        "pi0-FAST attends to the camera right wrist 0, which is black, while in pi0 no token may "
        "attend to it." in text
    )
    assert "pi0: all actions see each other" in text
    assert "pi0-FAST: each of the generated tokens sees only itself and those before it." in text
    assert "In both, images and text never see the actions." in text
    assert (
        "pi0: the state is a token of its own. pi0-FAST: the state is written in the text" in text
    )
    padding = block(fast, "padding").stop
    assert f"right-aligned, so {padding} columns of padding come first" in text


def test_order_of_the_arguments_changes_only_the_order_of_the_sentences():
    flow, fast = traces.pi0_trace(), traces.fast_trace()
    forth, back = compared(flow, fast), compared(fast, flow)
    parts = [{part.rstrip(".") for part in text.split(". ")} for text in (forth, back)]
    assert parts[0] == parts[1]


def test_sentences_follow_the_cells_and_not_the_family():
    flow = traces.pi0_trace()
    text, chunk = block(flow, "text"), block(flow, "actions")
    base = block(flow, "base_0_rgb")

    leaky = flow.mask.copy()
    leaky[text.start : text.stop, chunk.start : chunk.stop] = ALLOWED
    said = compared(flow, dataclasses.replace(flow, mask=leaky))
    assert "images and text never see the actions. pi0: text may attend to the actions." in said

    causal = flow.mask.copy()
    size = chunk.stop - chunk.start
    lower = np.where(np.tri(size, dtype=bool), ALLOWED, BLOCKED)
    causal[chunk.start :, chunk.start :] = lower
    said = compared(flow, dataclasses.replace(flow, mask=causal))
    assert "each of the actions sees only itself and those before it" in said

    blind = flow.mask.copy()
    blind[:, base.start : base.stop] = PADDING
    blind[base.start : base.stop] = PADDING
    said = compared(flow, dataclasses.replace(flow, mask=blind))
    assert "attends to the camera base 0 while in pi0 no token may attend to it" in said
    assert "black" not in said


def test_several_cameras_share_a_sentence():
    modes = {"base_0_rgb": "filled", "left_wrist_0_rgb": "masked", "right_wrist_0_rgb": "masked"}
    black = {slot: mode.replace("masked", "black") for slot, mode in modes.items()}
    text = compared(traces.pi0_trace(modes=modes), traces.fast_trace(modes=black))
    assert "the cameras left wrist 0 and right wrist 0, which are black, while in pi0" in text


def test_padding_that_only_one_has():
    full = traces.pi0_trace(text_len=7)  # the prompt fills the text
    full = dataclasses.replace(full, blocks=tuple(b for b in full.blocks if b.stop > b.start))
    text = compared(full, traces.pi0_trace(text_len=16, title="padded"))
    assert text.count("padding") == 1
    assert "padded: 9 columns of padding come after the text." in text


def test_equal_masks_are_said_to_be_equal():
    trace = traces.pi0_trace()
    again = traces.pi0_trace(seed=9, title="again")
    assert "In both, images and text never see the actions" in compared(trace, again)
    bare = dataclasses.replace(
        trace,
        blocks=(TokenBlock("text", "text", 0, 4),),
        mask=np.full((4, 4), ALLOWED, np.uint8),
        text="",
    )
    assert "follow the same rules" in compared(bare, bare)
