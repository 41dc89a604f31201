"""Prompts side by side: where each leads on the picture, how much it changes the chunk, and which
prompts a policy tells apart."""

from collections.abc import Mapping, Sequence

import numpy as np

from playground.analysis.prompts import PromptAnswer, clustered, distances, headline
from playground.analysis.variants import without, words
from playground.robots.builtin import TABLETOP
from playground.tabletop import kinematics
from playground.trace import PolicyInfo
from playground.views import paths, theme

# gr.HTML(value, **COMPONENT) with value None or `payload(...)`.
COMPONENT = theme.component("prompts.js")


def payload(
    answers: Sequence[PromptAnswer],
    infos: Mapping[str, PolicyInfo],
    labels: Mapping[str, str],
    state: Sequence[float] | np.ndarray,
    picture: np.ndarray | None,
    of: int,
) -> dict[str, object]:
    """What the board draws, as plain JSON.

    answers: those there are, prompt by prompt, the first prompt first. infos: of the policies that
    answer. labels: by prompt, short names. state: what the paths begin at. picture: the square
    picture of the table's camera that the paths lie on, None where no paths are known. of: how
    many answers there will be.

    prompts: {text, label}. words: of the first prompt, [text, place of the prompt without it or
    None]. policies: {name, policy, headline, spread, change, failures, line,
    matrix}: change in % of range and failures by prompt; line packed [P, H + 1, 2], the moving
    gripper's pixels, NaN where there is none; matrix {order, values} once all prompts are there.
    """
    prompts = list(dict.fromkeys(answer.prompt for answer in answers))
    size = 0 if picture is None else len(picture)
    policies = []
    for name, info in infos.items():
        own = {answer.prompt: answer for answer in answers if answer.policy == name}
        if own:
            policies.append(_policy(info, [own.get(p) for p in prompts], labels, state, size))
    return {
        "prompts": [
            {"text": theme.plain(text), "label": theme.plain(labels.get(text, ""))}
            for text in prompts
        ],
        "words": _words(prompts),
        "picture": None if picture is None else theme.picture(picture),
        "policies": policies,
        "done": len(answers),
        "of": of,
    }


def _words(prompts: Sequence[str]) -> list[list]:
    first = prompts[0] if prompts else ""
    places = {text: place for place, text in enumerate(prompts)}
    return [
        [theme.plain(first[start:stop]), places.get(without(first, (start, stop)))]
        for start, stop in words(first)
    ]


def _policy(
    info: PolicyInfo,
    answers: Sequence[PromptAnswer | None],
    labels: Mapping[str, str],
    state: Sequence[float] | np.ndarray,
    size: int,
) -> dict[str, object]:
    known = [answer for answer in answers if answer is not None]
    shares = {a.prompt: a.shares for a in known if a.shares is not None}
    # Chunks that are not there are as far from all others as none: they stay out of the matrix.
    apart = distances(np.stack([*shares.values()])) if shares else np.zeros((0, 0))
    first = known[0] if known and known[0].shares is not None else None
    change = {
        prompt: float(apart[0, place]) if first else None for place, prompt in enumerate(shares)
    }
    order = clustered(apart)
    return {
        "name": info.name,
        "policy": theme.identity(info),
        "headline": theme.plain(headline(known, labels, title=info.title)) if known else "",
        "spread": first.spread if first else None,
        "change": [None if a is None else change.get(a.prompt) for a in answers],
        "failures": [
            None if a is None or not a.failure else theme.plain(a.failure) for a in answers
        ],
        "line": _line(answers, state, size) if size and info.robot == TABLETOP.name else None,
        "matrix": {
            "prompts": [theme.plain([*shares][place]) for place in order],
            "values": np.round(apart[np.ix_(order, order)], 2).tolist() if shares else [],
        },
    }


def _line(
    answers: Sequence[PromptAnswer | None], state: Sequence[float] | np.ndarray, size: int
) -> dict:
    """The path of the gripper that moves most, for each prompt."""
    horizon = max((len(a.actions) for a in answers if a and a.actions is not None), default=1)
    lines = np.full((len(answers), horizon + 1, 2), np.nan)
    for place, answer in enumerate(answers):
        if answer is not None and answer.actions is not None:
            arm = kinematics.moving_arm(np.array(state), answer.actions)
            lines[place] = paths.pixels(np.array(state), answer.actions, size)[arm]
    return theme.packed(np.round(lines, 1))
