"""JSON that a person writes, read as a pydantic model: every mistake at once, named by its field.

A field's description says what is expected there, in words, and stands in the error.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic

from models.checkpoints.digests import read_json

Text = Annotated[str, pydantic.StringConstraints(pattern=r"\S")]
Count = Annotated[int, pydantic.Field(gt=0, le=1 << 20)]


class Description(pydantic.BaseModel):
    """What all such files have in common: no other fields, no values turned into other types."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Description)


def read(path: Path | str, model: type[Model], title: str) -> Model:
    """The model in a file; raises one ValueError, `title` and all that is wrong. {} in the title is
    the path."""
    said, found = parse(read_json(Path(path)), model)
    if said is None:
        raise refusal(title.format(path), found)
    return said


def parse(data: Mapping, model: type[Model]) -> tuple[Model | None, list[str]]:
    """The model, or None and what is wrong with the data."""
    try:
        return model.model_validate(data), []
    except pydantic.ValidationError as error:
        return None, _problems(error, model)


def refusal(title: str, found: list[str]) -> ValueError:
    """The error that tells all of them."""
    return ValueError("\n  ".join([title, *sorted(found)]))


def expected(model: type[Description], name: str) -> str:
    """What a field's value is, in words."""
    return model.model_fields[name].description or ""


def _problems(error: pydantic.ValidationError, model: type[Description]) -> list[str]:
    """Each mistake in a sentence: what came, and what was expected."""
    return list(dict.fromkeys(_problem(entry, model) for entry in error.errors()))


def _problem(entry: Mapping, model: type[Description]) -> str:
    where, words, fields = _place(entry["loc"], model)
    match entry["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(entry["loc"][-1]), fields, n=1)
            return f"no field is called {where!r}" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            return f"{where} is missing: {words}"
        case "value_error":
            return str(entry["ctx"]["error"])
    shown = json.dumps(entry["input"], default=repr)
    shown = shown if len(shown) < 80 else f"{shown[:76]} ..."
    return f"{where} is {shown}; expected {words}"


def _place(loc: Sequence[str | int], model: type[Description]) -> tuple[str, str, list[str]]:
    """Where a mistake is (`state[0].unit`), what is expected there in words, and the names of the
    fields that may stand there."""
    where, words, inner = "", "", model
    for step in loc:
        if isinstance(step, int):
            where += f"[{step}]"
            continue
        where += f".{step}" if where else step
        known = {} if inner is None else inner.model_fields
        fields = list(known)
        if step in known:
            field = known[step]
            words, inner = field.description or words, _model_of(field.annotation)
    return where, words, fields


def _model_of(annotation: object) -> type[Description] | None:
    """The model in a field's type, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Description):
        return annotation
    found = map(_model_of, getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
