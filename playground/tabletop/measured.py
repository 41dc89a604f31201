"""How often a bundled policy does what it is asked, by the evaluation beside its weights."""

import json

from playground.assets import ASSETS
from playground.tabletop.scene import Verb
from playground.tabletop.tasks import parse
from playground.trace import PolicyInfo

# The closed loop of each verb, as the evaluation file names it.
FIGURES: dict[Verb, str] = {
    "touch": "closed loop touch",
    "pick": "closed loop pick up",
    "put_on": "closed loop put on",
    "put_next": "closed loop put next to",
}
_DOES: dict[Verb, str] = {
    "touch": "touches a named cube",
    "pick": "picks up a named cube",
    "put_on": "puts one cube on another",
    "put_next": "puts one cube next to another",
}


def success(info: PolicyInfo, prompt: str) -> str:
    """A sentence with the published rate of the task that a prompt names (of
    `playground.training.evaluate`); "" for other prompts, policies and weights."""
    task, file = parse(prompt), ASSETS / info.name / "evaluation.json"
    if task is None or not file.is_file():
        return ""
    evaluation = json.loads(file.read_text("utf-8"))
    if evaluation["revision"] != info.revision:
        return ""
    found = evaluation["figures"][FIGURES[task.verb]]
    return (
        f"Measured on scenes that training never saw, with {evaluation['executed_steps']} steps of "
        f"each chunk executed: {info.title} {_DOES[task.verb]} in "
        f"{round(found['value'] * found['n'])} of {found['n']} episodes."
    )
