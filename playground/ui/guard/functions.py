"""Which functions of the page may be called by whom, and what each may be given.

A function is given the values of components, and a component of each kind sends values of one kind
alone; a kind that is not listed here sends nothing. So a handler gets what the page's own form can
hold, whoever sends it. What the endpoints for programs take, they check themselves.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.components.api_component import Api
from gradio.utils import get_type_hints

from playground.ui.guard.refused import Refused

_MAX_CHOICES = 256
_MAX_TEXT = 1000  # characters, where a field has no bound of its own; a browser minds that one


_LARGEST = 2**53  # to a browser, numbers beyond are no whole ones


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_set(value: Any) -> bool:
    """What a field or a slider may hold: Python reads 1e999 and NaN, which no handler counts to."""
    return value is None or (_is_number(value) and -_LARGEST <= value <= _LARGEST)


def _is_choice(value: Any) -> bool:
    return isinstance(value, str) or _is_set(value)


def _are_choices(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= _MAX_CHOICES
    return value is None or (few and all(isinstance(one, str) for one in value))


def _is_shown(value: Any) -> bool:
    return isinstance(value, dict | str | None)


def _is_table(value: Any) -> bool:
    cells = value.get("values") if isinstance(value, dict) else None
    return isinstance(cells, list) and all(
        isinstance(cell, str) or (cell is not None and _is_set(cell)) for cell in cells
    )


# What a component sends, in words, and whether a value is that. Files have been looked up before.
KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    gr.Image: ("a file", lambda v: isinstance(v, dict | None)),
    gr.UploadButton: ("a file", lambda v: isinstance(v, dict | None)),
    gr.Textbox: ("a text", lambda v: isinstance(v, str | None)),
    gr.Radio: ("a choice", _is_choice),
    gr.CheckboxGroup: ("a list of texts", _are_choices),
    gr.Slider: ("a number", _is_set),
    gr.Number: ("a number", _is_set),
    gr.Checkbox: ("true or false", lambda v: isinstance(v, bool | None)),
    gr.HTML: ("what it shows", _is_shown),
    gr.BrowserState: ("what the page keeps", lambda v: True),  # `visits` trusts none of it
    gr.State: ("nothing", lambda v: True),  # Gradio takes its own
    Api: ("any value", lambda v: True),
}


class Functions:
    """Of a page whose functions are all known."""

    def __init__(self, page: gr.Blocks):
        self._page = page

    def of_page(self, number: object) -> BlockFunction:
        """What the page may call by its number, itself or for a program."""
        function = self._page.fns.get(number) if type(number) is int else None
        if function is None or function.fn is None:
            raise Refused(404, "There is no such function.")
        return function

    def of_program(self, name: str) -> BlockFunction:
        """An endpoint by its name; the page's own functions are none."""
        for function in self._page.fns.values():
            if function.api_name == name and function.api_visibility == "public":
                return function
        raise Refused(404, "There is no such endpoint.")

    def check(self, function: BlockFunction, given: object) -> None:
        """Raises Refused for what the function's own components could not have sent."""
        parts = function.inputs
        if not isinstance(given, list) or len(given) != len(parts):
            raise Refused(422, f"{len(parts)} values are expected, in a list.")
        for part, value in zip(parts, given, strict=True):
            words, well = _kind(part)
            if isinstance(part, gr.Textbox) and len(str(value)) > (part.max_length or _MAX_TEXT):
                raise Refused(422, f"{part.label}: this text is too long.")
            if not well(value):
                name = getattr(part, "label", None) or type(part).__name__
                raise Refused(422, f"{name}: {words} is expected, {value!r:.60} came.")

    def check_event(self, function: BlockFunction, event: object) -> None:
        """Raises Refused for what no event of the function's components says, where it reads
        that."""
        if not function.collects_event_data:
            return
        # What a component of our own says has its own keys.
        selects = gr.SelectData in get_type_hints(function.fn).values()
        if not isinstance(event, dict) or (selects and not event.keys() >= {"index", "value"}):
            raise Refused(422, "This function needs to know what was clicked.")

    def check_names(self, function: BlockFunction, given: Mapping[str, object]) -> None:
        """Of an endpoint that is given values by name. Raises Refused for names that it does not
        have, and for values that it needs."""
        endpoint = self._endpoints[f"/{function.api_name}"]
        parameters = {one["parameter_name"]: one for one in endpoint["parameters"]}
        if unknown := sorted(given.keys() - parameters.keys()):
            raise Refused(422, f"There is no parameter {unknown[0]!r:.60}.")
        for name, one in parameters.items():
            if name not in given and not one["parameter_has_default"]:
                raise Refused(422, f"The parameter {name} is missing.")

    @functools.cached_property
    def _endpoints(self) -> dict:
        return self._page.get_api_info()["named_endpoints"]


def _kind(part: object) -> tuple[str, Callable[[Any], bool]]:
    if isinstance(part, gr.Dropdown):
        return ("a list of texts", _are_choices) if part.multiselect else ("a choice", _is_choice)
    if isinstance(part, gr.HTML) and isinstance(part.value, dict) and "values" in part.value:
        return "a table of values", _is_table
    return KINDS[type(part)]
