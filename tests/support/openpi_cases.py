"""Recorded cases of openpi's tokenizers and transforms, and the one table of where we differ.

A test calls `hold(case, ours, check)`: our result has to pass `check` against the recorded one, or
our ValueError has to stand where openpi raised anything, or DIFFERENCES has to say why not. A row
of the table that no longer describes a difference fails, too.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from playground.trace import Stats


@dataclasses.dataclass(frozen=True)
class Difference:
    """cases: a pattern of case names. ours: "raises" a ValueError that matches `match`, where
    openpi goes on; gives an "other" result; or has "nothing" like it, so the case is not run."""

    cases: str
    ours: Literal["raises", "other", "nothing"]
    reason: str
    match: str = ""


# Shared by all cases and not listed again:
# - Errors are ValueErrors with a message of our own, whatever type openpi raises.
# - Functions take and return arrays; there are no trees of keys, and no argument is changed.
# - Normalised and unnormalised values are always float64; openpi's follow the stats' type.
# - Chunks and prompts go one at a time; openpi's batches are compared row by row.
DIFFERENCES = (
    # tokenizers
    Difference("prompt/pi05/state_nan", "raises", "NaN becomes bin 255 there", "finite"),
    Difference("prompt/pi05/state_outside", "raises", "infinity becomes a bin there", "finite"),
    Difference("encode/fast/extreme_plus5", "raises", "characters are lost there", r"\[158\]"),
    Difference("encode/fast/extreme_minus5", "raises", "values are clamped there", r"\[-158\]"),
    Difference("encode/fast/extreme_one_value", "raises", "characters are lost there", "no token"),
    Difference("encode/fast/private_use", "raises", "bytes are lost there", r"\[57546\]"),
    Difference("encode/fast/coefficient_hole", "raises", "a value is lost there", r"\[-79\]"),
    Difference("encode/fast/minus_inf_single", "raises", "-inf is clamped there", "NaN or huge"),
    Difference("encode/fast/empty_batch", "nothing", "there are no batches"),
    Difference("decode/bad/no_rows", "nothing", "there are no batches"),
    Difference("decode/bad/float_ids", "raises", "a row of zeros there", "whole numbers"),
    Difference("decode/bad/id_beyond_u32", "other", "any id beyond the vocabulary is skipped"),
    Difference("decode/fast/extreme_one_value", "other", "half a character is an action of 16,000"),
    Difference("decode/bad/lone_*", "other", "half a character is an action of 6,500 there"),
    Difference("decode/bad/lead_then_ascii", "other", "half a character is an action of 6,500"),
    # normalisation
    Difference(
        "Normalize/*/stats_dim1", "raises", "one value serves all dimensions there", "cover 1"
    ),
    Difference("Unnormalize/*/stats_dim1", "raises", "odd results there", "cover 1"),
    Difference("Unnormalize/*/stats_shorter", "raises", "surplus dimensions pass there", "cover"),
    Difference("*ormalize/*/missing_key*", "nothing", "there are no trees of keys"),
    Difference("*ormalize/none", "nothing", "a policy without norm stats is not run"),
    Difference("*Actions/no_actions", "nothing", "there are no trees of keys"),
    Difference("PadStatesAndActions/40_35_to_32", "raises", "passes unpadded there", "do not fit"),
    # images
    Difference("resize_pil/float32_same_size", "raises", "floats pass if the size fits", "uint8"),
    Difference("float_to_uint8/*", "raises", "values outside 0..1 wrap around there", "0..1"),
    Difference("*/hwc_image", "other", "a picture with channels last is transposed there"),
    Difference("DroidInputs/*/height3_hwc", "raises", "which axis is colour is guessed", "height"),
    # robots
    Difference("AlohaInputs/adapt_False/state_16", "raises", "a wrong state passes there", "14"),
    Difference("AlohaInputs/*/gripper_nan", "raises", "NaN goes on into the model there", "nan"),
    Difference("AlohaOutputs/adapt_False/dim7", "raises", "half an action passes there", "14"),
    Difference("DroidOutputs/dim5", "raises", "half an action passes there", "8 actions"),
    Difference("LiberoOutputs/dim5", "raises", "half an action passes there", "7 actions"),
    # parts of openpi that have no counterpart here
    Difference("make_bool_mask/*", "nothing", "masks are data: test_robots checks them"),
    Difference("InjectDefaultPrompt/*", "nothing", "an argument of from_openpi: test_robots"),
    Difference("SubsampleActions/*", "nothing", "openpi's training data only"),
    Difference("RepackTransform/*", "nothing", "openpi's training data only"),
    Difference("resize_jax/*float32*", "nothing", "pictures are resized as uint8, once, by Pillow"),
    Difference("resize_torch/*", "nothing", "there is no PyTorch here"),
    Difference("Observation/*", "nothing", "models.Observation is built at its final sizes"),
    Difference("preprocess_observation/*", "nothing", "the same"),
)


def difference(name: str) -> Difference | None:
    """The row for a case; at most one."""
    rows = [row for row in DIFFERENCES if fnmatch.fnmatchcase(name, row.cases)]
    assert len(rows) <= 1, f"{name}: {[row.cases for row in rows]}"
    return rows[0] if rows else None


def hold(name: str, failed: bool, ours: Callable, check: Callable[..., None]) -> None:
    """Holds our result against a recorded case; `failed` says that openpi raised there."""
    row = difference(name)
    if row is not None and row.ours == "nothing":
        return
    if row is not None and row.ours == "raises":
        assert not failed, f"{name} raises in openpi, too: no difference"
        with pytest.raises(ValueError, match=row.match):
            ours()
    elif failed:
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            ours()
    elif row is not None:
        with pytest.raises(AssertionError):
            check(ours())
    else:
        try:
            check(ours())
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{name}: {error}") from error


class Recorded:
    """Cases of one pair of files `<name>.json`, `<name>.npz`, with their trees as values."""

    def __init__(self, folder: Path, name: str):
        self.data = json.loads((folder / f"{name}.json").read_text("utf-8"))
        arrays = folder / f"{name}.npz"
        self.arrays: dict[str, np.ndarray] = {}
        if arrays.exists():
            with np.load(arrays, allow_pickle=False) as file:
                self.arrays = dict(file)
        for array in self.arrays.values():
            array.flags.writeable = False  # whoever changes an argument fails

    def tree(self, node: dict):
        kind = node["kind"]
        if kind == "dict":
            return {key: self.tree(item) for key, item in node["items"].items()}
        if kind in ("array", "np_scalar"):
            return self.arrays[node["key"]]
        if kind == "bytes_utf8":
            return node["value"].encode()
        if kind == "str0d":
            return np.array(node["value"])
        return None if kind == "none" else node["value"]


def cases(recorded: Recorded, pattern: str) -> Iterator[tuple]:
    """(name, params, inputs, outputs or None where openpi raised) of the matching cases."""
    found = [c for c in recorded.data["cases"] if fnmatch.fnmatchcase(c["name"], pattern)]
    assert found, pattern
    for case in found:
        outputs = recorded.tree(case["outputs"]) if "outputs" in case else None
        yield case["name"], case["params"], recorded.tree(case["inputs"]), outputs


def to_stats(entry: dict) -> Stats:
    vectors = (entry.get(name) for name in ("mean", "std", "q01", "q99"))
    return Stats(*(None if v is None else tuple(np.float64(v).tolist()) for v in vectors))


def close(ours, theirs) -> None:
    theirs = np.asarray(theirs)
    rtol = 2e-6 if theirs.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


def equal(ours, theirs) -> None:
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == np.asarray(theirs).dtype
