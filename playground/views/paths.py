"""The grippers' paths over the camera picture: forward kinematics of a chunk, where it is known.

Known are the arms and the camera of the simulated table, and nothing else: for another robot, or
a picture that another camera took, no path is drawn.
"""

from collections.abc import Mapping

import numpy as np

from playground.robots import conversion
from playground.robots.builtin import TABLETOP
from playground.tabletop import camera, kinematics
from playground.trace import FastTrace, FlowTrace, Trace
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = theme.component("camera.js", "paths.js")

NAMES = {arm: f"{arm} gripper" for arm in kinematics.ARMS}
_SLOT = next(slot.name for slot in TABLETOP.flow_slots if slot.camera == "table")
_STAYS = 0.01  # m; a gripper that goes less far is said to stay
_IDLE = 0.06  # m; in a sentence for everybody, less than that is next to nothing
_NEAR = 0.045  # m beside the middle of an object; a cube is 4 cm wide
_AT = 0.05  # m above the table: at a cube, not above it


def pixels(state: np.ndarray, chunks: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """By arm, the pixels (column, row) float [..., H + 1, 2] on the table's picture of `size` that
    chunks [..., H, 14] lead the fingertips over, from `state` [14] on. NaN stays NaN."""
    chunks = np.asarray(chunks, np.float64)
    start = np.broadcast_to(state, (*chunks.shape[:-2], 1, chunks.shape[-1]))
    start = np.where(np.isnan(chunks[..., :1, :]), np.nan, start)  # nothing decoded: no path at all
    tips = kinematics.tip_paths(np.concatenate([start, chunks], axis=-2))
    return {arm: kinematics.project(path, size) for arm, path in tips.items()}


def payload(trace: Trace) -> dict[str, object] | None:
    """The chunk on the picture, for the browser; None for robots whose kinematics are not known."""
    if trace.on_table is None:
        return None
    chunks = () if trace.actions is None else trace.actions[None]
    return {
        "policy": theme.identity(trace.info),
        "camera": _over(trace, chunks),
        "words": theme.plain(describe(trace)),
        "foreign": "" if trace.on_table else camera.FOREIGN,
    }


def denoising(trace: FlowTrace) -> dict[str, object] | None:
    """For `views.denoising.payload`: at every stop the path of the estimate x_t - t v_t, in the end
    that of the chunk, and the path that x_t itself would be; None where nothing can be drawn."""
    if not trace.on_table:
        return None
    info, state = trace.info, np.array(trace.inputs.state)
    noise = conversion.from_model(
        TABLETOP, trace.x_t, state, info.stats("actions"), info.method("actions")
    )
    return _over(trace, np.concatenate([trace.estimates, trace.actions[None]]), noise)


def tokens(trace: FastTrace) -> dict[str, object] | None:
    """For `views.tokens.payload`: after every token the path of the chunk decoded so far."""
    if not trace.on_table:
        return None
    return _over(trace, trace.partial_actions[:, None])


def describe(trace: Trace) -> str:
    """The paths in words."""
    who = f"{trace.info.title} ({trace.info.badge})"
    if trace.actions is None:
        return f"{who}: the tokens did not decode, so nothing would move."
    parts = []
    first, *others = sorted(kinematics.ARMS, key=lambda arm: arm != _mover(trace))
    for arm in (first, *others):
        path = _tips(trace, trace.actions[0], arm)
        far = np.linalg.norm(path - path[0], axis=-1)
        if far.max() < _STAYS:
            parts.append(f"the {NAMES[arm]} stays where it is")
        else:
            parts.append(
                f"the {NAMES[arm]} moves {100 * far[-1]:.0f} cm and ends "
                f"{max(0.0, 100 * path[-1, 2]):.1f} cm above the table"
            )
    return f"{who}: {theme.listed(parts)}."


def sentence(trace: Trace, objects: Mapping[str, tuple[float, float]]) -> str:
    """The paths in plain words, with the object that each gripper comes to; "" where no path is
    known. objects: by name, where things lie on the table (x, y in metres)."""
    if not trace.on_table:
        return ""
    if trace.actions is None:
        return "The tokens did not decode, so nothing would move."
    parts = []
    for arm in sorted(kinematics.ARMS, key=lambda arm: arm != _mover(trace)):
        path = _tips(trace, trace.actions[0], arm)
        far = np.linalg.norm(path - path[0], axis=-1)
        if far.max() < _IDLE:
            parts.append(f"the {NAMES[arm]} hardly moves")
            continue
        parts.append(f"the {NAMES[arm]} goes {100 * far[-1]:.0f} cm and {_end(path[-1], objects)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _end(tip: np.ndarray, objects: Mapping[str, tuple[float, float]]) -> str:
    """Where a path ends. tip: (x, y, z) in metres."""
    up = max(0.0, float(tip[2]))
    apart = {name: float(np.hypot(*(tip[:2] - np.array(at)))) for name, at in objects.items()}
    nearest = min(apart, key=apart.__getitem__, default=None)
    if nearest is not None and apart[nearest] < _NEAR:
        return f"ends {'at' if up < _AT else 'above'} the {nearest}, {100 * up:.0f} cm up"
    if nearest is not None:
        return (
            f"ends {100 * up:.0f} cm above the table, {100 * apart[nearest]:.0f} cm from the "
            f"{nearest}"
        )
    return f"ends {100 * up:.0f} cm above the table"


def _tips(trace: Trace, chunk: np.ndarray, arm: str) -> np.ndarray:
    whole = np.concatenate([[trace.inputs.state], chunk])
    return kinematics.tip_paths(whole)[arm]


def _mover(trace: Trace) -> str:
    """The arm to look at."""
    if trace.actions is None:
        return kinematics.ARMS[0]
    return kinematics.moving_arm(np.array(trace.inputs.state), trace.actions[0])


def _over(trace: Trace, chunks, noise=None) -> dict[str, object]:
    """image: what the model was shown. grippers: name, whether it is the one that moves, points
    packed [frames, N, H + 1, 2] in the image's pixels; noise packed [frames, N, H, 2] or None."""
    image, state = trace.images[_SLOT], np.array(trace.inputs.state)
    size, mover = len(image), _mover(trace)
    grippers = []
    if len(chunks) and trace.on_table:
        lines = pixels(state, chunks, size)
        clouds = {} if noise is None else pixels(state, noise, size)
        grippers = [
            gripper(arm, points, clouds.get(arm), moves=arm == mover)
            for arm, points in lines.items()
        ]
    return {"image": theme.picture(image), "grippers": grippers}


def gripper(
    arm: str, points: np.ndarray, cloud: np.ndarray | None = None, *, moves: bool
) -> dict[str, object]:
    """One gripper for `camera.js`: paths as `pixels` gives them, [frames, N, H + 1, 2]."""
    return {
        "name": NAMES[arm],
        "moves": moves,
        "points": theme.packed(np.round(points, 1)),
        "noise": None if cloud is None else theme.packed(np.round(cloud[..., 1:, :], 1)),
    }
