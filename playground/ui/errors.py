"""How a handler's errors reach whoever asked: as `gr.Error`, with a message that says what to mend.

Only what a visitor can mend is turned into one; anything else is a fault of ours and goes to the
log.
"""

import functools
import html
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gradio as gr

from playground.serving.queue import Busy
from playground.serving.worker import Down

EXPECTED = (ValueError, Busy, Down)

P = ParamSpec("P")
R = TypeVar("R")


def escaped(error: Exception | str) -> str:
    """A message for Gradio's pop-ups, which read markup."""
    return html.escape(str(error))


def status(text: str) -> str:
    """The line under a tab's buttons, which a screen reader reads out; "" without a text."""
    return f"<p class='status-line' role='status'>{escaped(text)}</p>" if text else ""


def for_page(handler: Callable[P, R]) -> Callable[P, R]:
    """The handler, or generator, with its expected errors as pop-ups of the page."""
    return _reported(handler, escaped)


def for_programs(handler: Callable[P, R]) -> Callable[P, R]:
    """The same for an endpoint: the message as it is."""
    return _reported(handler, str)


def _reported(handler: Callable, text: Callable[[Exception], str]) -> Callable:
    def raised(error):
        return gr.Error(text(error), print_exception=False)

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args, **kwargs):
            try:
                yield from handler(*args, **kwargs)
            except EXPECTED as error:
                raise raised(error) from error

        return generator

    @functools.wraps(handler)
    def function(*args, **kwargs):
        try:
            return handler(*args, **kwargs)
        except EXPECTED as error:
            raise raised(error) from error

    return function
