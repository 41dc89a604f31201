"""The processor steps that LeRobot saves with a policy: which are known here, and what they mean.

`policy_preprocessor.json` and `policy_postprocessor.json` list what happens to the numbers before
and after the model. A step changes the answer, so one that is not known here is refused by its
name; it is never skipped. The same holds for a setting of a known step.

Sources: LeRobot 0.4.0 to 0.5.1 and main (0.6), `processor/` and `policies/pi*/processor_*.py`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.checkpoints.digests import read_json

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

RENAME = "rename_observations_processor"
RELATIVE, ABSOLUTE = "relative_actions_processor", "absolute_actions_processor"
NORMALISE, UNNORMALISE = "normalizer_processor", "unnormalizer_processor"
NEW_LINE, TOKENIZE = "pi0_new_line_processor", "tokenizer_processor"
PREPARE_PI05 = "pi05_prepare_state_tokenizer_processor_step"
PREPARE_FAST = "pi0_fast_prepare_state_tokenizer_processor_step"
ACTION_TOKENS = "action_tokenizer_processor"
DEVICE = "device_processor"

_CLASSES = {
    "RenameObservationsProcessorStep": RENAME,
    "AddBatchDimensionProcessorStep": "to_batch_processor",
    "AddBatchDimensionActionStep": "to_batch_processor_action",
    "AddBatchDimensionObservationStep": "to_batch_processor_observation",
    "AddBatchDimensionComplementaryDataStep": "to_batch_processor_complementary_data",
    "Pi0NewLineProcessor": NEW_LINE,
    "Pi05PrepareStateTokenizerProcessorStep": PREPARE_PI05,
    "Pi0FastPrepareStateAndLanguageTokenizerProcessorStep": PREPARE_FAST,
    "TokenizerProcessorStep": TOKENIZE,
    "ActionTokenizerProcessorStep": ACTION_TOKENS,
    "DeviceProcessorStep": DEVICE,
    "RelativeActionsProcessorStep": RELATIVE,
    "AbsoluteActionsProcessorStep": ABSOLUTE,
    "NormalizerProcessorStep": NORMALISE,
    "UnnormalizerProcessorStep": UNNORMALISE,
}
_RENAMED = {"delta_actions_processor": RELATIVE}  # LeRobot 0.5.1's name

FEATURE_TYPES = ("STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE")


class _Kind(NamedTuple):
    """What a setting may be that is read elsewhere."""

    expected: str
    valid: Callable[[Any], bool]


def is_switch(value: object) -> bool:
    return isinstance(value, bool)


def are_names(value: object) -> bool:
    """A list of names, or none given."""
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _are_features(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(x, dict) and x.get("type") in FEATURE_TYPES for x in value.values()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str) for x in value.values())


_ANY = ()  # a setting that changes no number
_COUNT = _Kind(
    "a number from 1 on", lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
)
_SWITCH, _NAMES = _Kind("true or false", is_switch), _Kind("a list of names or null", are_names)
_TEXT = _Kind("a name", lambda x: isinstance(x, str))
_PREPARE = {"max_state_dim": _COUNT, "task_key": ("task",)}
_NORMALISER: Mapping[str, tuple] = {
    "eps": _Kind("a small number, such as 1e-8", lambda x: isinstance(x, float) and 0 <= x < 1),
    "features": _Kind('an object such as {"action": {"type": "ACTION", ...}}', _are_features),
    "norm_map": _Kind(
        f'an object such as {{"STATE": "MEAN_STD"}} of {", ".join(FEATURE_TYPES)}',
        lambda x: _are_texts(x) and x.keys() <= set(FEATURE_TYPES),
    ),
    "normalize_observation_keys": _NAMES,
}
# By step: its settings, each with the values that mean what is done here, or with what it may be.
_KNOWN: dict[str, Mapping[str, tuple]] = {
    RENAME: {"rename_map": _Kind("an object of names", _are_texts)},
    **{name: {} for name in _CLASSES.values() if name.startswith("to_batch_processor")},
    NEW_LINE: {},
    PREPARE_PI05: {
        **_PREPARE,
        "include_state_in_prompt": (True,),
        "use_episode_metadata": (False,),
        **dict.fromkeys(
            (
                "metadata_missing_policy",
                "metadata_default_speed_steps",
                "metadata_default_quality",
                "metadata_default_mistake",
                "metadata_default_control_mode",
            ),
            _ANY,
        ),
    },
    PREPARE_FAST: _PREPARE,
    TOKENIZE: {
        "max_length": _COUNT,
        "tokenizer_name": _TEXT,
        "task_key": ("task",),
        "padding_side": ("right",),
        "padding": ("max_length",),
        "truncation": (True,),
    },
    ACTION_TOKENS: {
        "fast_skip_tokens": (128,),
        **dict.fromkeys(
            (
                "trust_remote_code",
                "max_action_tokens",
                "allow_truncation",
            ),
            _ANY,
        ),
        "paligemma_tokenizer_name": _TEXT,
        "action_tokenizer_name": _TEXT,
    },
    DEVICE: {"device": _ANY, "float_dtype": (None, "float32")},
    RELATIVE: {"enabled": _SWITCH, "exclude_joints": _NAMES, "action_names": _NAMES},
    ABSOLUTE: {"enabled": _SWITCH},
    NORMALISE: _NORMALISER,
    UNNORMALISE: _NORMALISER,
}
_BATCHING = tuple(name for name in _KNOWN if name.startswith("to_batch_processor"))

# What a file must and may hold, in this order; the steps of `_ANYWHERE` may stand anywhere.
_ANYWHERE = {RENAME, DEVICE, *_BATCHING}
_PROMPT_AND_STATE = {
    "pi0": ((NEW_LINE, TOKENIZE), (RELATIVE, NORMALISE)),
    "pi05": ((RELATIVE, NORMALISE, PREPARE_PI05, TOKENIZE),),
    "pi0_fast": ((RELATIVE, NORMALISE, PREPARE_FAST, TOKENIZE, ACTION_TOKENS),),
}
_BACK = ((UNNORMALISE, ABSOLUTE),)
_OPTIONAL = {RELATIVE, ABSOLUTE, ACTION_TOKENS}


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """name: in LeRobot's registry today; settings: its `config`; state_file: its tensors' file in
    the folder, or None; artifacts: its other files, by setting."""

    name: str
    settings: Mapping
    state_file: str | None
    artifacts: Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Processors:
    """The steps before and after the model, by name."""

    before: Mapping[str, Step]
    after: Mapping[str, Step]


def read_processors(folder: Path, family: str) -> Processors:
    """Both files of a policy's folder, checked. family: "pi0", "pi05" or "pi0_fast".

    Raises one ValueError for all that is wrong: a step or a setting that is not known, a step that
    is missing, stands twice or in another order than it is done in here.
    """
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}, so it was saved before LeRobot 0.4: migrate it with "
                "LeRobot's lerobot/processor/migrate_policy_normalization.py, and open the folder "
                "that it writes"
            )
    before = _read(folder / PREPROCESSOR, _PROMPT_AND_STATE[family])
    after = _read(folder / POSTPROCESSOR, _BACK)
    return Processors(before, after)


def _read(path: Path, sequences: Sequence[tuple[str, ...]]) -> dict[str, Step]:
    listed = read_json(path).get("steps")
    if not isinstance(listed, list) or not all(isinstance(step, dict) for step in listed):
        raise ValueError(f"{path}: expected a list of steps under 'steps'")
    steps, problems = [], []
    for entry in listed:
        step, found = _step(entry)
        problems += found
        if step is not None:
            steps.append(step)
    names = [step.name for step in steps]
    problems += _order_problems(names, sequences)
    if problems:
        raise ValueError("\n  ".join([f"{path} is not as this program works:", *problems]))
    return {step.name: step for step in steps}


def _step(entry: Mapping) -> tuple[Step | None, list[str]]:
    """One entry of a file, and what is wrong with it."""
    if entry.get("registry_name") is not None:
        given = str(entry["registry_name"])
        name = _RENAMED.get(given, given)
    else:
        given = str(entry.get("class"))
        name = _CLASSES.get(given.rsplit(".", 1)[-1], "")
    if name not in _KNOWN:
        near = difflib.get_close_matches(str(given), _KNOWN, n=1, cutoff=0.8)
        meant = f" (close to {near[0]})" if near else ""
        return None, [
            f"step {given!r}{meant} is not known here, and without it the answer would be another: "
            "run this policy in LeRobot, or take the step out of the file if the policy was "
            "trained without it"
        ]
    settings = entry.get("config") or {}
    if not isinstance(settings, dict):
        return None, [f"step {given!r}: its config is {settings!r}; expected an object"]
    problems = []
    for setting, value in settings.items():
        if setting not in _KNOWN[name]:
            problems.append(
                f"step {given!r}: its setting {setting} = {value!r} is not known here; run this "
                "policy in LeRobot"
            )
            continue
        known = _KNOWN[name][setting]
        if isinstance(known, _Kind):
            if not known.valid(value):
                problems.append(
                    f"step {given!r}: {setting} is {value!r}; expected {known.expected}"
                )
        elif known and value not in known:
            choice = " or ".join(map(repr, known))
            problems.append(f"step {given!r}: {setting} is {value!r}; only {choice} is supported")
    artifacts = entry.get("artifacts") or {}
    if not _are_texts(artifacts):
        problems.append(f"step {given!r}: artifacts is {artifacts!r}; expected an object of names")
    return Step(name, settings, entry.get("state_file"), artifacts), problems


def _order_problems(names: Sequence[str], sequences: Sequence[tuple[str, ...]]) -> list[str]:
    expected = {name for sequence in sequences for name in sequence}
    problems = [
        f"step {name!r} stands {names.count(name)} times; expected once"
        for name in sorted(set(names) & expected)
        if names.count(name) > 1
    ]
    for name in sorted(set(names) - expected - _ANYWHERE):
        problems.append(f"step {name!r} does not belong to a policy of this kind")
    for sequence in sequences:
        missing = [name for name in sequence if name not in names and name not in _OPTIONAL]
        problems += [f"step {name!r} is missing" for name in missing]
        found = [name for name in names if name in sequence]
        wanted = [name for name in sequence if name in found]
        if found != wanted and len(set(found)) == len(found):
            problems.append(f"the steps come in the order {found}; expected {wanted}")
    return problems


def enabled(step: Step | None) -> bool:
    """Whether a step that can be switched off is there and on."""
    return step is not None and step.settings.get("enabled", False)
