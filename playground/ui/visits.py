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

import gradio as gr

from playground.trace import Options
from playground.ui import look, observation
from playground.ui.bench import MAX_PROMPT, Benches
from playground.ui.observation import DECODING, MAX_CAMERAS, MODES, Form

_MOST = 2000  # visitors that are remembered
# Names the entry in the browser's storage; the secret only keeps casual eyes out of it.
_STORAGE = {"storage_key": "pi0-playground", "secret": "pi0-playground-1"}
_REMEMBER = look.script("remember.js")


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
            files = dict(self._files.get(key, dict.fromkeys(range(MAX_CAMERAS))))
        return {slot: p if p and Path(p).is_file() else None for slot, p in files.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """browser: what the visitor's browser keeps, {"key", "form"}; key: the same key, once the page
    has been set, so that nothing is overwritten before."""

    browser: gr.BrowserState
    key: gr.State


def build() -> Memory:
    return Memory(gr.BrowserState(None, **_STORAGE), gr.State(None))


def wire(memory: Memory, visits: Visits, form: Form, measure: gr.Checkbox) -> None:
    """From now on, every change of the form is remembered."""
    own = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    kept = [
        *(form.robot, form.prompt, form.state, form.policies, *form.options, measure),
        *form.modes,
    ]
    changes = [part.change for part in kept] + [form.state.input]
    gr.on(changes, None, [memory.browser, *kept], memory.browser, js=_REMEMBER, **own)

    def remember(slot):
        def picture(key, file):
            if key:
                visits.put(key, slot, file and file["path"])

        return picture

    for slot, part in enumerate(form.pictures):
        part.change(remember(slot), [memory.key, part], None, preprocess=False, **own)


def restored(
    stored: object, memory: Memory, visits: Visits, every: Benches, form: Form, measure: gr.Checkbox
) -> dict:
    """Updates that set the page as its visitor left it; a newcomer gets a key and the page as it
    is. What a browser sends is not trusted: what makes no sense is forgotten."""
    key = stored.get("key") if isinstance(stored, dict) else None
    if not isinstance(key, str) or len(key) < 20:
        key = secrets.token_urlsafe(18)
        visits.begin(key)
        return {memory.browser: {"key": key, "form": None}, memory.key: key}
    try:
        updates = _put(stored["form"], visits.files(key), every, form, measure)
    except (KeyError, TypeError, ValueError):
        updates = {}
    return updates | {memory.key: key}


def _put(
    told: Sequence, files: dict[int, str | None], every: Benches, form: Form, measure: gr.Checkbox
) -> dict:
    """`told`: the values of what `wire` keeps, as they came; raises for what they cannot be."""
    robot, prompt, state, policies, *numbers, decoding, look = told[:11]
    modes = told[11:]
    bench = every.of(robot)
    options = Options(*map(_number, numbers), guided=DECODING[decoding])
    values = [value if isinstance(value, str) else _number(value) for value in state["values"]]
    if len(values) != len(bench.robot.state) or not isinstance(prompt, str):
        raise ValueError("not this robot's state, or no prompt")
    if len(modes) != MAX_CAMERAS or not set(modes) <= set(MODES):
        raise ValueError("no modes of the slots")
    chosen = [name for name in bench.policies if name in policies]
    pictures = [files.get(slot) for slot in range(MAX_CAMERAS)]
    prompt = prompt[:MAX_PROMPT]
    updates = observation.put(bench, form, prompt, values, chosen, options, pictures, modes)
    for slot in set(range(MAX_CAMERAS)) - files.keys():
        del updates[form.pictures[slot]]
    names = [(found.title, found.name) for found in every.robots()]
    return updates | {form.robot: gr.update(choices=names, value=robot), measure: bool(look)}


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"no number: {value!r:.40}")
    return value
