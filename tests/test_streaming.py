"""Updates of a generator, as Gradio's browser reads them: all messages first, edits in place."""

import asyncio
import copy
import functools
import types

import gradio as gr
import pytest
from gradio_client.utils import apply_diff

from playground.ui import streaming
from tests.support.blocks import in_a_loop, in_a_thread

SKIP = {"__type__": "update"}
PRIVATE = {"api_visibility": "private"}


def sent(yields, *, api_visibility, blocks=streaming.Blocks):
    """What each message holds for each output, the last one of the generator's end. `yields`: the
    values of the outputs, by yield."""
    page = in_a_loop(functools.partial(blocks, analytics_enabled=False))
    function = types.SimpleNamespace(outputs=yields[0], api_visibility=api_visibility)
    send = functools.partial(page.handle_streaming_diffs, function, session_hash="s", run="r")
    messages = [send(copy.deepcopy(values), final=False) for values in yields]
    messages.append(send([None for _ in yields[0]], final=True))
    assert not page.pending_diff_streams
    return messages


def read_together(messages):
    """What a browser finds in each message that reads them only when all have come."""
    first, *later, last = copy.deepcopy(messages)
    found, held = [first], list(first)
    for edits in later:
        held = [_edited(value, each) for value, each in zip(held, edits, strict=True)]
        found.append(held)
    return [*found, last]


def _edited(value, edits):
    """As `apply_diff` does, but in place where the value has parts that can be."""
    edited = apply_diff(value, edits)
    if not isinstance(value, dict | list) or any(not path for _, path, _ in edits):
        return edited
    value.clear()
    value.update(edited) if isinstance(value, dict) else value.extend(edited)
    return value


CARD = {"say": "Done.", "policies": [{"state": "done"}]}
READY = gr.update(interactive=True, value="Run")


def test_what_a_yield_sets_outlasts_the_next_one_that_skips_it():
    yields = [[CARD, READY], [SKIP, SKIP]]
    first, second, last = read_together(sent(yields, **PRIVATE))
    assert first == [CARD, READY]
    assert second == last == [SKIP, SKIP]
    by_gradio = read_together(sent(yields, **PRIVATE, blocks=gr.Blocks))
    assert by_gradio[0] == [SKIP, SKIP]  # else Gradio has mended it, and so the class can go


@pytest.mark.parametrize(
    "values",
    [
        [CARD, CARD | {"say": "Stopped."}, SKIP, CARD],
        ["", "a", "ab", SKIP, "c"],
        [None, [1], [1, 2], gr.update(visible=False), [3]],
        [SKIP, CARD, CARD, READY, gr.update(value=CARD)],
    ],
)
def test_messages_read_as_they_come_hold_what_was_yielded(values):
    first, *later, last = sent([[value] for value in values], **PRIVATE)
    held = first[0]
    assert held == values[0]
    for (edits,), value in zip(later, values[1:], strict=True):
        held = apply_diff(held, edits)
        assert held == value
    assert last == [SKIP]


def test_what_grows_is_sent_as_what_is_new():
    film = {"frames": [{"picture": "x" * 1000}]}
    longer = {"frames": [*film["frames"], {"picture": "y"}]}
    assert sent([[film], [longer]], **PRIVATE)[1] == [
        [["add", ["frames", 1], {"picture": "y"}]],
    ]


def test_a_program_gets_the_last_answer_at_the_end():
    assert sent([[CARD], [READY]], api_visibility="public")[-1] == [READY]


@pytest.mark.parametrize("given", [[None, "a"], ["many", "a"], [1, "c"], [99, "a"]])
def test_a_value_that_no_field_holds_is_refused_without_a_traceback(given):
    """In the log, where Gradio prints one of each error but those marked."""

    def page():
        with streaming.Blocks(analytics_enabled=False) as blocks:
            inputs = [gr.Slider(0, 10), gr.Radio(["a", "b"])]
            gr.Button().click(lambda *_: None, inputs, None)
        return blocks

    async def ask():
        blocks = page()
        (function,) = blocks.fns.values()
        assert await blocks.preprocess_data(function, [1, "a"], None) == [1, "a"]
        with pytest.raises(gr.Error) as refused:
            await blocks.preprocess_data(function, given, None)
        return refused.value

    error = in_a_thread(lambda: asyncio.run(ask()))
    assert not error.print_exception
    assert len(error.message) > 20
