"""What one run says, in plain values: the answers that programs get from the page's endpoints, for
notebooks too.

    policy = open_policy("pi0_tabletop")  # playground.checkpoints.load
    trace = run(policy, observation, Options(attention=True))
    chunk(trace)["actions"], denoising(trace)["speeds"], attention(trace)["mass"]

Each takes a trace and gives a dict that JSON can hold, with the policy's badge and notice, which
belong wherever the numbers are shown; with `arrays=True` its numbers stay NumPy arrays, which take
a fifth of the memory that lists of them do. Measured numbers are rounded to 6 decimals; a trace
holds them in full. S Euler steps, N samples, H horizon, D the robot's action dimensions, L layers,
K heads.
"""

from typing import Any, Literal

import numpy as np

from playground.serving.events import Done
from playground.trace import FastTrace, Options, RawObservation, Trace
from playground.views import attention as measured
from playground.views import mask, theme


def run(policy, observation: RawObservation, options: Options | None = None) -> Trace:
    """The trace of one run, from beginning to end. policy: a `playground.policies.base.Policy`.
    Raises ValueError for what it cannot take."""
    *_, last = policy.infer(observation, options or Options())
    assert isinstance(last, Done)
    return last.trace


def chunk(trace: Trace, *, arrays: bool = False) -> dict[str, Any]:
    """What the policy would do.

    actions: [N, H, D] in the robot's units, in full; None where FAST's tokens did not decode, and
    then decode_failure says why. dimensions: {name, unit, meaning} of D. timings_ms: by stage.
    """
    found = _of(trace) | {
        "actions": trace.actions,
        "decode_failure": trace.decode_failure,
        "dimensions": theme.dimensions(trace.info.actions),
        "control_hz": trace.info.control_hz,
        "timings_ms": trace.timings_ms,
        "warnings": list(trace.warnings),
    }
    return found if arrays else in_lists(found)


def denoising(trace: Trace, *, arrays: bool = False) -> dict[str, Any]:
    """How the chunk came about, step by step.

    Of a policy that denoises: times (t of every x_t, S + 1 from 1 to 0; the papers' tau is 1 - t),
    estimates [S, N, H, D] (x_t - t v_t of each step, in the robot's units), speeds [S, D] (root
    mean square of the normalised v_t over samples and chunk). Of pi0-FAST: tokens, each {id, text,
    probability, runners_up: [[id, text, probability], ...]} with decodes, whether the tokens so far
    decode to a chunk.
    """
    shared = _of(trace) | {"decode_failure": trace.decode_failure}
    if isinstance(trace, FastTrace):
        decodes = np.all(np.isfinite(trace.partial_actions), axis=(1, 2))
        return shared | {
            "tokens": [
                {
                    "id": token.id,
                    "text": theme.plain(token.text),
                    "probability": token.probability,
                    "runners_up": [[i, theme.plain(t), p] for i, t, p in token.runners_up],
                    "decodes": bool(whole),
                }
                for token, whole in zip(trace.tokens, decodes, strict=True)
            ]
        }
    v_t = trace.v_t[..., : len(trace.info.actions)].astype(np.float64)
    found = shared | {
        "times": _rounded(trace.times),
        "estimates": _rounded(trace.estimates),
        "speeds": _rounded(np.sqrt((v_t**2).mean(axis=(1, 2)))),
    }
    return found if arrays else in_lists(found)


def attention_mask(trace: Trace) -> dict[str, Any]:
    """Who may attend to whom in this very run (a rule, not a measurement).

    blocks: {name, kind, start, stop} of the columns, in order. mask: a text for each query, a digit
    for each column: 0 blocked, 1 allowed, 2 padding. token_texts: of each column. summary: the mask
    in words.
    """
    return _of(trace) | {
        "blocks": _blocks(trace),
        "mask": ["".join(map(str, row)) for row in trace.mask.tolist()],
        "token_texts": [theme.plain(text) for text in trace.token_texts],
        "summary": mask.describe(trace),
    }


def attention(
    trace: Trace, which: Literal["suffix", "prefix"] = "suffix", *, arrays: bool = False
) -> dict[str, Any]:
    """Where the model looked: measured weights, averaged over queries. Weight is not cause.

    which: the queries; "suffix" are state and actions, or FAST's tokens, "prefix" the text.
    mass [P, L, K, blocks]: the weight on each block, P Euler steps (times), or 1. cameras: by slot
    [L, side, side], the weight on each patch, averaged over steps and heads too. Raises ValueError
    for a run without `Options(attention=True)`, and for any other `which`.
    """
    if which not in ("suffix", "prefix"):
        raise ValueError(f"which is 'suffix' or 'prefix', not {which!r}")
    weights, _, times = measured.measurement(trace, which)
    weights = weights.astype(np.float32).mean(axis=3)  # [P, L, K, C]
    blocks = trace.blocks
    cameras = {}
    for block in (block for block in blocks if block.kind == "image"):
        patches = weights[..., block.start : block.stop].mean(axis=(0, 2))
        side = round(patches.shape[-1] ** 0.5)
        cameras[block.name] = _rounded(patches.reshape(-1, side, side))
    mass = np.stack([weights[..., b.start : b.stop].sum(axis=-1) for b in blocks], axis=-1)
    found = _of(trace) | {
        "blocks": _blocks(trace),
        "times": _rounded(times),
        "mass": _rounded(mass),
        "cameras": cameras,
        "caveat": measured.CAVEAT,
    }
    return found if arrays else in_lists(found)


def _of(trace: Trace) -> dict[str, Any]:
    return {"badge": trace.info.badge, "notice": trace.info.notice}


def _blocks(trace: Trace) -> list[dict[str, Any]]:
    return [
        {"name": b.name, "kind": b.kind, "start": b.start, "stop": b.stop} for b in trace.blocks
    ]


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(values, np.float64), 6)


def in_lists(summary: dict[str, Any]) -> dict[str, Any]:
    """The same, for JSON."""
    return {name: _in_lists(value) for name, value in summary.items()}


def _in_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return in_lists(value)
    return value.tolist() if isinstance(value, np.ndarray) else value


def arrays_of(summary: dict[str, Any], within: str = "") -> dict[str, np.ndarray]:
    """The arrays of a summary, those in objects as "cameras.base_0_rgb" for example."""
    found = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            found |= arrays_of(value, f"{within}{name}.")
        elif isinstance(value, np.ndarray):
            found[within + name] = value
    return found


def without_arrays(summary: dict[str, Any]) -> dict[str, Any]:
    """The same with null in each array's place."""
    return {
        name: without_arrays(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, np.ndarray)
        else value
        for name, value in summary.items()
    }
