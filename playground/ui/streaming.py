"""How the page's inputs come in, and how its generators reach the browser.

Gradio (6.31) sends of each yield what differs from the one before, and its browser applies that in
place, to objects which it has not shown yet if two messages come close together. A component that
the later yield skips then loses what the earlier one set. And it sends the last yield a second time
when the generator ends, perhaps over what a person has changed meanwhile.
"""

import gradio as gr
from gradio import utils
from gradio.exceptions import ComponentProcessingError

_UNREADABLE = (
    "A value came that its field cannot hold: text or nothing for a number, or a choice that is "
    "not offered. The page's own fields, or /gradio_api/info, say what each takes."
)


class Blocks(gr.Blocks):
    """A page whose generators' yields all arrive, each once, and whose log has no traceback of
    what a caller got wrong."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call: bool = False):
        """What the components make of a call's inputs. Raises gr.Error, which the log leaves out,
        for those that a component does not take."""
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            error.print_exception = False
            raise
        except ComponentProcessingError as error:
            raise gr.Error(_UNREADABLE, print_exception=False) from error

    def handle_streaming_diffs(
        self,
        block_fn,
        data: list,
        session_hash: str | None,
        run: str | None,
        final: bool,
        simple_format: bool = False,
    ) -> list:
        """data: a value or an update for each output of `block_fn`. run: tells one call of it from
        others; None where nobody can ask for later yields. final: the generator has ended, and
        `data` holds nothing. Returns what is sent: whole values at first, then lists of edits."""
        private = block_fn.api_visibility == "private"  # a program reads its result from the end
        if session_hash is None or run is None or simple_format or (final and not private):
            return super().handle_streaming_diffs(
                block_fn, data, session_hash, run, final, simple_format
            )
        if final:
            self._pop_run_diffs(session_hash, run)
            return [gr.skip() for _ in block_fn.outputs]
        runs = self.pending_diff_streams[session_hash]
        before, runs[run] = runs.get(run), list(data)
        return data if before is None else list(map(_edits, before, data))


def _edits(before: object, now: object) -> list:
    """What makes the one from the other. Only values of one kind are edited in place: of two such
    that arrive together, the later one is shown."""
    if before == now:
        return []
    if _is_update(before) or _is_update(now):
        return [["replace", [], now]]
    return utils.diff(before, now)


def _is_update(value: object) -> bool:
    return isinstance(value, dict) and "__type__" in value
