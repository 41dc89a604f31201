"""A recorded episode to scrub, and what policies predict at one of its frames."""

from collections.abc import Mapping, Sequence

import numpy as np

from playground.datasets.info import Info
from playground.datasets.lerobot import Episode
from playground.datasets.matching import Match
from playground.robots.robot import Robot
from playground.tabletop import kinematics
from playground.trace import Dimension, PolicyInfo
from playground.views import paths, theme

# gr.HTML(at(frame), episode=None or payload(...), answer=None or answer(...), **COMPONENT)
COMPONENT = theme.component("player.js", "panels.js", "camera.js", "episode.js")


def at(frame: int) -> dict[str, object]:
    """The frame that is looked at: what the component sends when it has changed."""
    return {"values": [frame]}


def frame_of(value: object) -> int:
    """The frame in what the component sends; 0 in anything else."""
    values = value.get("values") if isinstance(value, dict) else None
    return int(values[0]) if values and isinstance(values[0], int | float) else 0


def payload(
    info: Info,
    episode: Episode,
    where: str,
    robot: Robot,
    match: Match | None,
    table: str | None = None,
) -> dict[str, object]:
    """What the browser needs to scrub: n frames, S and D dimensions of state and actions.

    where: address of the pictures, to be followed by the camera's number and the frame. match:
    how the episode is the robot's; None where it is not, and then its own columns are shown. table:
    the camera on whose pictures paths can be drawn, if any.

    tasks: [first frame, text] wherever the text changes; states, actions: {dims, values packed
    [n, S]}; cameras: {name, url, width, height, table}.
    """
    cameras = []
    for number, (name, feature) in enumerate(info.cameras.items()):
        rows, columns = feature.picture_size
        size = {"width": columns, "height": rows, "table": name == table}
        cameras.append({"name": theme.plain(name), "url": f"{where}/{number}/", **size})
    states, actions = _columns(info, episode, robot, match)
    return {
        "index": episode.index,
        "length": episode.length,
        "fps": episode.fps,
        "tasks": _tasks(episode.tasks),
        "cameras": cameras,
        "states": states,
        "actions": actions,
    }


def answer(
    frame: int,
    chunks: Mapping[str, np.ndarray],
    infos: Mapping[str, PolicyInfo],
    failures: Mapping[str, str],
    start: tuple[np.ndarray, int] | None = None,
    say: str = "",
) -> dict[str, object]:
    """What policies predict at a frame, for the same component.

    chunks: by policy [H, D] in the robot's units, those there are so far; failures: why there is
    none. start: the robot's state at this frame and the width of the picture that paths are to be
    drawn on, None for no paths. say: one sentence, "" for none.
    """
    policies = []
    for name, info in infos.items():
        chunk = chunks.get(name)
        policies.append(
            {
                "policy": theme.identity(info),
                "horizon": info.horizon,
                "chunk": None if chunk is None else theme.packed(chunk),
                "failure": theme.plain(failures.get(name, "")),
                "grippers": _grippers(chunk, start),
            }
        )
    return {"frame": frame, "policies": policies, "say": theme.plain(say)}


def _tasks(tasks: Sequence[str]) -> list[list]:
    changes = [i for i in range(len(tasks)) if i == 0 or tasks[i] != tasks[i - 1]]
    return [[i, theme.plain(tasks[i])] for i in changes]


def _columns(
    info: Info, episode: Episode, robot: Robot, match: Match | None
) -> tuple[dict | None, dict | None]:
    if match is not None:
        states, actions = match.states(episode), match.recorded(episode)
        return _column(robot.state, states), _column(robot.actions, actions)
    found = []
    for name in ("observation.state", "action"):
        feature = info.numbers.get(name)
        if feature is None:
            found.append(None)
            continue
        names = feature.dimension_names or [f"{name} {i}" for i in range(feature.shape[0])]
        dims = [Dimension(theme.plain(n), "") for n in names]
        found.append(_column(dims, episode.values[name]))
    return found[0], found[1]


def _column(dims: Sequence[Dimension], values: np.ndarray) -> dict[str, object]:
    return {"dims": theme.dimensions(dims), "values": theme.packed(values)}


def _grippers(chunk: np.ndarray | None, start: tuple[np.ndarray, int] | None) -> list[dict]:
    """Of the arm that moves: two policies' paths on one picture are enough to read."""
    if chunk is None or start is None:
        return []
    state, width = start
    mover = kinematics.moving_arm(state, chunk)
    points = paths.pixels(state, chunk[None, None], width)[mover]
    return [paths.gripper(mover, points, moves=True)]
