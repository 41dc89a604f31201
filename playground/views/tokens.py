"""The token rail: what pi0-FAST wrote, how sure it was, and what the tokens so far decode to."""

import numpy as np

from playground.trace import FastTrace, Trace, is_constrained
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("player.js", "panels.js", "camera.js", "tokens.js")


def payload(trace: Trace, camera: dict[str, object] | None = None) -> dict[str, object]:
    """What the rail draws, as plain JSON. T tokens, H horizon, D real dimensions.

    tokens    {id, text, p, likeliest, others: [[id, text, p], ...]} in the order they came
    partial   packed [T, H, D], robot units, NaN where the tokens so far do not decode
    actions   packed [H, D], the whole chunk; None when the tokens did not decode
    failure   why they did not, or None
    camera    the paths over the picture, as `views.paths.tokens` has them, or None

    Raises ValueError for a trace of a flow policy (see denoising.py).
    """
    if not isinstance(trace, FastTrace):
        raise ValueError(
            f"{trace.info.title} left no tokens: the rail is for pi0-FAST, "
            "denoising.payload for flow policies"
        )
    return {
        "policy": theme.identity(trace.info),
        "summary": describe(trace),
        "dims": theme.dimensions(trace.info.actions),
        "hz": trace.info.control_hz,
        "horizon": trace.info.horizon,
        "tokens": [
            {
                "id": token.id,
                "text": theme.plain(token.text),
                "p": float(token.probability),
                "likeliest": token.likeliest,
                "others": [[i, theme.plain(text), float(p)] for i, text, p in token.runners_up],
            }
            for token in trace.tokens
        ],
        "partial": theme.packed(trace.partial_actions),
        "actions": None if trace.actions is None else theme.packed(trace.actions[0]),
        "failure": trace.decode_failure and theme.plain(trace.decode_failure),
        "camera": camera,
    }


def describe(trace: FastTrace) -> str:
    """The rail in words: how many tokens, how sure, where the model hesitated, what came of it."""
    chances = np.array([token.probability for token in trace.tokens])
    least = int(chances.argmin())
    text = (
        f"{trace.info.title} ({trace.info.badge}) wrote {len(chances)} tokens with a median "
        f"probability of {np.median(chances):.0%}; the least sure was token {least + 1}, "
        f"{trace.tokens[least].text!r}, at {chances[least]:.0%}. "
    )
    passed = sum(not token.likeliest for token in trace.tokens)
    if passed:
        why = "constrained decoding" if is_constrained(trace.info, trace.options) else "the draw"
        text += f"At {passed} of them {why} passed over a likelier token. "
    if trace.actions is None:
        text += f"They did not decode to a chunk: {trace.decode_failure}"
    else:
        text += f"They decode to a chunk of {trace.actions.shape[1]} steps."
    return theme.plain(text)
