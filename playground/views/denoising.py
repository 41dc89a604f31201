"""The denoising player: how a flow policy's chunk comes out of noise, step by step."""

import numpy as np

from playground.trace import FlowTrace, Trace
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("player.js", "panels.js", "camera.js", "denoising.js")


def payload(trace: Trace, camera: dict[str, object] | None = None) -> dict[str, object]:
    """What the player draws, as plain JSON. S Euler steps, N samples, H horizon, D real dimensions.

    x, v      packed [S + 1, N, H, D] and [S, N, H, D], in the model's (normalised) units; the
              browser computes x_t - t v_t and |v_t| from them
    robot     packed [S + 1, N, H, D]: the estimates in the robot's units, then the actions
    camera    the paths over the picture, as `views.paths.denoising` has them, or None

    Raises ValueError for a trace of pi0-FAST (see tokens.py).
    """
    if not isinstance(trace, FlowTrace):
        raise ValueError(
            f"{trace.info.title} left no x_t to play: the player is for flow policies, "
            "tokens.payload for pi0-FAST"
        )
    width = len(trace.info.actions)
    return {
        "policy": theme.identity(trace.info),
        "summary": describe(trace),
        "dims": theme.dimensions(trace.info.actions),
        "hz": trace.info.control_hz,
        "times": [float(t) for t in trace.times],
        "x": theme.packed(trace.x_t[..., :width]),
        "v": theme.packed(trace.v_t[..., :width]),
        "robot": theme.packed(np.concatenate([trace.estimates, trace.actions[None]])),
        "camera": camera,
    }


def describe(trace: FlowTrace) -> str:
    """The player in words: where the estimate settles and how far the seeds lie apart."""
    steps, samples = trace.v_t.shape[:2]
    span = np.maximum(np.ptp(trace.actions, axis=(0, 1)), 1e-6)
    off = np.abs(trace.estimates - trace.actions).mean(axis=(1, 2)) / span  # [S, D]
    late = np.flatnonzero(off.mean(axis=1) > 0.05)
    settled = int(late[-1]) + 1 if len(late) else 0
    text = (
        f"{trace.info.title} ({trace.info.badge}) went from noise at t = 1 to the chunk at t = 0 "
        f"in {steps} Euler steps. "
    )
    if settled >= steps:
        text += "The estimate moved by more than 5 % of the chunk's range up to the last step."
    else:
        text += (
            f"From step {settled} on, the estimate lies within 5 % of the chunk's range of the end."
        )
    if samples > 1:
        spread = trace.actions.std(axis=0, ddof=1).mean(axis=0)  # [D]
        widest = int((spread / span).argmax())
        dim = trace.info.actions[widest]
        text += (
            f" Over {samples} seeds {dim.name} differs most: "
            f"{spread[widest]:.3g} {dim.unit} standard deviation."
        )
    return theme.plain(text)
