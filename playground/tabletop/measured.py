"""How often a bundled policy does what it is asked, by the evaluation beside its weights."""

import json
from pathlib import Path

from playground.tabletop.scene import Verb
from playground.tabletop.tasks import parse
from playground.trace import PolicyInfo

_ASSETS = Path(__file__).resolve().parents[2] / "assets"
_DOES: dict[Verb, tuple[str, str]] = {
    "touch": ("closed loop touch", "touches a named cube"),
    "pick": ("closed loop pick up", "picks up a named cube"),
    "put_on": ("closed loop put on", "puts one cube on another"),
    "put_next": ("closed loop put next to", "puts one cube next to another"),
}


def success(info: PolicyInfo, prompt: str) -> str:
    """A sentence with the published rate of the task that a prompt names (of
    `playground.training.evaluate`); "" for other prompts, policies and weights."""
    task, file = parse(prompt), _ASSETS / info.name / "evaluation.json"
    if task is None or not file.is_file():
        return ""
    evaluation = json.loads(file.read_text("utf-8"))
    if evaluation["revision"] != info.revision:
        return ""
    figure, does = _DOES[task.verb]
    found = evaluation["figures"][figure]
    return (
        f"Measured on scenes that training never saw, {info.title} {does} in "
        f"{round(found['value'] * found['n'])} of {found['n']} episodes."
    )
