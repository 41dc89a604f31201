"""A reload of the page keeps what a visitor has put in.

Text and numbers stay in the visitor's own browser. Pictures are private and large: the browser
keeps only a random key, and this server remembers which of its files the key stands for, as long as
it keeps files. Whoever lacks the key finds nothing.
"""

import collections
import dataclasses
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from playground.trace import Options
from playground.ui import appearance, cuts, observation
from playground.ui.observation import DECODING, MODES, Form
from playground.ui.request import MAX_PROMPT
from playground.ui.setup import Setups

_MOST = 2000  # visitors that are remembered
_MOST_SLOTS = 64  # more than any robot has
# Names the entry in the browser's storage; the secret only keeps casual eyes out of it.
_STORAGE, _SECRET = "pi0-playground", "pi0-playground-1"
_REMEMBER = appearance.script("remember.js")


class Visits:
    """The files in each visitor's camera slots. Safe from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[str, dict[int, str | None]] = collections.OrderedDict()

    def begin(self, key: str) -> None:
        """A visitor who has changed no slot yet."""
        with self._lock:
            self._files.setdefault(key, {})
            self._files.move_to_end(key)
            while len(self._files) > _MOST:
                self._files.popitem(last=False)

    def put(self, key: str, slot: int, path: str | None) -> None:
        self.begin(key)
        with self._lock:
            self._files[key][slot] = path

    def files(self, key: str) -> dict[int, str | None]:
        """Of the slots that were changed; None for emptied ones, and where the file is gone. All
        slots are empty for a visitor who is no longer remembered."""
        with self._lock:
            files = dict(self._files.get(key, dict.fromkeys(range(_MOST_SLOTS))))
        return {slot: p if p and Path(p).is_file() else None for slot, p in files.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """browser: what the visitor's browser keeps, {"key", "form"}; key: the same key, once the page
    has been set, so that nothing is overwritten before."""

    browser: gr.BrowserState
    key: gr.State


def build() -> Memory:
    return Memory(gr.BrowserState(None, storage_key=_STORAGE, secret=_SECRET), gr.State(None))


def wire(memory: Memory, visits: Visits, form: Form, measure: gr.Checkbox) -> None:
    """From now on, every change of the form is remembered."""
    own = appearance.PRIVATE
    kept = [
        *(form.robot, form.prompt, form.state, form.policies, *form.options, form.cuts, measure),
        *form.modes,
    ]
    changes = [part.change for part in kept] + [form.state.input]
    gr.on(changes, None, [memory.browser, *kept], memory.browser, js=_REMEMBER, queue=False, **own)

    def remember(slot):
        def picture(key, file):
            if key:
                visits.put(key, slot, file and file["path"])

        return picture

    for slot, part in enumerate(form.pictures):
        part.change(remember(slot), [memory.key, part], None, preprocess=False, **own)


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """updates: what sets the page as its visitor left it. robot, policies, temperature: what is
    chosen then, as the controls that depend on them need it."""

    updates: dict
    robot: str | None = None
    policies: Sequence[str] | None = None
    temperature: float = 0.0


def restored(
    stored: Any, memory: Memory, visits: Visits, setups: Setups, form: Form, measure: gr.Checkbox
) -> Restored:
    """A newcomer gets a key and the page as it is. What a browser sends is not trusted: what makes
    no sense is forgotten."""
    key = stored.get("key") if isinstance(stored, dict) else None
    if not isinstance(key, str) or len(key) < 20:
        key = secrets.token_urlsafe(18)
        visits.begin(key)
        return Restored({memory.browser: {"key": key, "form": None}, memory.key: key})
    try:
        found = _put(stored["form"], visits.files(key), setups, form, measure)
    except (KeyError, TypeError, ValueError):
        found = Restored({})
    return dataclasses.replace(found, updates=found.updates | {memory.key: key})


def _put(
    kept: Sequence, files: dict[int, str | None], setups: Setups, form: Form, measure: gr.Checkbox
) -> Restored:
    """`kept`: the values of what `wire` keeps, as they came; raises for what they cannot be."""
    robot, prompt, state, policies, *numbers, decoding, guidance, cut, attention = kept[:13]
    modes = kept[13:]
    setup = setups.of(robot)
    steps, samples, seed, temperature, max_tokens = numbers
    options = Options(
        num_steps=_whole(steps),
        num_samples=_whole(samples),
        seed=_whole(seed),
        temperature=_number(temperature),
        max_tokens=_whole(max_tokens),
        constrained=DECODING[decoding],
        guidance=_number(guidance),
        cuts=cuts.chosen(cut),
    )
    values = [value if isinstance(value, str) else _number(value) for value in state["values"]]
    if len(values) != len(setup.robot.state) or not isinstance(prompt, str):
        raise ValueError("not this robot's state, or no prompt")
    if len(modes) != len(form.modes) or not set(modes) <= set(MODES):
        raise ValueError("no modes of the slots")
    chosen = [name for name in setup.policies if name in policies]
    pictures = [files.get(slot) for slot in range(len(form.pictures))]
    prompt = prompt[:MAX_PROMPT]
    updates = observation.put(setup, form, prompt, values, chosen, options, pictures, modes)
    for slot in set(range(len(form.pictures))) - files.keys():
        del updates[form.pictures[slot]]
    names = [(found.title, found.name) for found in setups.robots()]
    updates |= {form.robot: gr.update(choices=names, value=robot), measure: bool(attention)}
    return Restored(updates, robot, chosen, options.temperature)


def _whole(value) -> int:
    number = _number(value)
    if number % 1:
        raise TypeError(f"no whole number: {value!r:.40}")
    return int(number)


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"no number: {value!r:.40}")
    return value
