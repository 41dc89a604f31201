"""JSON that a person writes, checked field by field: every mistake is told at once."""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Field(NamedTuple):
    """what: a value in words, for the error that says what was expected."""

    what: str
    valid: Callable[[object], bool]


def one_of(choices: Iterable[str]) -> Field:
    choices = tuple(choices)
    return Field(choice_of(choices), lambda x: isinstance(x, str) and x in choices)


def choice_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"


def is_text(x: object) -> bool:
    return isinstance(x, str) and bool(x.strip())


def is_count(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0


def is_flag(x: object) -> bool:
    return isinstance(x, bool)


def is_number(x: object) -> bool:
    """A finite one, no boolean."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def problems(
    data: Mapping[str, object],
    fields: Mapping[str, Field],
    required: Iterable[str],
    where: str = "",
) -> list[str]:
    """What is wrong with `data`, one by one: unknown names, wrong values, missing fields."""
    found = []
    for name in data.keys() - fields.keys():
        near = difflib.get_close_matches(name, fields, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        found.append(f"no field is called {where + name!r}{meant}")
    for name, value in data.items():
        if name in fields and not fields[name].valid(value):
            shown = json.dumps(value)
            shown = shown if len(shown) < 80 else f"{shown[:76]} ..."
            found.append(f"{where}{name} is {shown}; expected {fields[name].what}")
    missing = [name for name in required if name not in data]
    return found + [f"{where}{name} is missing: {fields[name].what}" for name in missing]
