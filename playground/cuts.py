"""Cut connections as text: "actions>text:1,3" in the form and in links, "actions to text in layers
1, 3" for people."""

import re
from collections.abc import Sequence

from playground.trace import Cut

_SPELLED = re.compile(r"([^>:;]{1,100})>([^>:;]{1,100})(?::(\d{1,3}(?:,\d{1,3}){0,99}))?")


def spelled(one: Cut) -> str:
    """As `read` takes it: without layers, it is all of them."""
    layers = "" if one.layers is None else ":" + ",".join(map(str, one.layers))
    return f"{one.query}>{one.key}{layers}"


def read(text: str) -> Cut:
    """Raises ValueError for what `spelled` could not have written."""
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise ValueError(
            f"a cut is written like actions>text:1,3 (queries, keys, layers); {text!r:.60} came"
        )
    query, key, layers = found.groups()
    return Cut(query, key, None if layers is None else tuple(map(int, layers.split(","))))


def in_words(cuts: Sequence[Cut]) -> str:
    """What does not attend to what: "actions to text; text to images in layers 1, 3"."""
    return "; ".join(f"{one.query} to {one.key}{_layers(one)}" for one in cuts)


def _layers(one: Cut) -> str:
    if one.layers is None:
        return ""
    return f" in layer{'s' * (len(one.layers) > 1)} {', '.join(map(str, one.layers))}"
