"""Robots as they are served: who is connected, what one of them sees, and the chunk that it was
given, after those that it has executed."""

from collections.abc import Mapping, Sequence

import numpy as np

from playground.robots import transforms
from playground.robots.robot import Robot
from playground.serving.robot_traffic import Connected, Exchange, differences
from playground.serving.robot_warnings import warnings
from playground.trace import PolicyInfo
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(...)`.
COMPONENT = theme.component("cameras.js", "panels.js", "robot.js")

_PAST = 4  # chunks before the one on show
_SIZE = 224  # pixels a side, of pictures as they are shown
_OWN_SERVER = "its own server"


def payload(
    robots: Sequence[Connected],
    kept: Sequence[Exchange],
    number: int | None,
    infos: Mapping[str, PolicyInfo],
    conventions: Mapping[str, Robot],
) -> dict[str, object]:
    """robots: at the moment; kept: the requests of the one on show, oldest first; number: which of
    them, the newest without; infos, conventions: by policy."""
    found: dict[str, object] = {
        "robots": [_summary(robot, infos) for robot in robots],
        "numbers": [exchange.number for exchange in kept],
        "shown": None,
        "apart": None,
    }
    if kept:
        places = {exchange.number: place for place, exchange in enumerate(kept)}
        place = places.get(number, len(kept) - 1) if number is not None else len(kept) - 1
        judge = _judge(kept[place], infos)
        if judge is not None:
            found["shown"] = _shown(kept, place, judge, infos, conventions[judge.name])
            found["apart"] = _apart(kept, infos)
    return found


def _summary(robot: Connected, infos: Mapping[str, PolicyInfo]) -> dict[str, object]:
    latency = robot.latency_ms
    return {
        "connection": robot.connection,
        "robot": theme.plain(robot.robot) or "a robot",
        "policy": theme.plain(_title(robot.policy, infos)),
        "requests": robot.requests,
        "per_s": robot.per_s,
        "p50": latency and latency[0],
        "p95": latency and latency[1],
        "period_ms": 1000 / robot.hz if robot.hz else None,
        "problem": theme.plain(robot.problem),
    }


def _title(policy: str, infos: Mapping[str, PolicyInfo]) -> str:
    if not policy:
        return _OWN_SERVER
    return infos[policy].title if policy in infos else policy


def _judge(exchange: Exchange, infos: Mapping[str, PolicyInfo]) -> PolicyInfo | None:
    """Whose dimensions and norm stats count: those of the policy that answered; in shadow mode, of
    the first that drives this robot. None where none here does."""
    if exchange.policy in infos:
        return infos[exchange.policy]
    robot = exchange.observation.robot
    return next((info for info in infos.values() if info.robot == robot), None)


def _shown(
    kept: Sequence[Exchange],
    place: int,
    info: PolicyInfo,
    infos: Mapping[str, PolicyInfo],
    robot: Robot,
) -> dict[str, object]:
    exchange = kept[place]
    before = kept[place - 1] if place else None
    cameras = {slot.name: slot.camera or slot.name for slot in info.slots}
    own = exchange.policy in infos
    return {
        "connection": exchange.connection,
        "number": exchange.number,
        "time_s": exchange.time_s,
        "latency_ms": exchange.latency_ms,
        "prompt": theme.plain(exchange.observation.prompt),
        "policy": theme.identity(info) if own else None,
        "who": theme.plain(_title(exchange.policy, infos)),
        "seed": exchange.seed,
        "cameras": [
            {"name": theme.plain(cameras.get(name, name)), "url": _picture(image)}
            for name, image in exchange.observation.images.items()
        ],
        "dims": theme.dimensions(info.actions)
        if exchange.actions.shape[-1] == len(info.actions)
        else [{"name": str(i), "unit": "", "meaning": "absolute"}
              for i in range(exchange.actions.shape[-1])],
        "hz": info.control_hz,
        "lines": [*_executed(kept, place, info.control_hz), *_chunks(exchange, infos)],
        "warnings": [theme.plain(text) for text in warnings(exchange, before, info, robot)],
    }  # fmt: skip


def _picture(image: np.ndarray) -> str:
    small = transforms.resize_with_pad(image, _SIZE, _SIZE)
    return str(theme.picture(small, 80)["url"])


def _executed(kept: Sequence[Exchange], place: int, hz: float) -> list[dict[str, object]]:
    """The last chunks as far as they can have been executed before the next request came, by the
    clock; `start` counts steps from the chunk on show."""
    lines, start = [], 0
    for index in range(place - 1, max(-1, place - 1 - _PAST), -1):
        former, later = kept[index], kept[index + 1]
        if former.actions.shape[1:] != kept[place].actions.shape[1:]:
            break
        passed = round((later.time_s - former.time_s) * hz)
        steps = min(max(passed, 1), len(former.actions))
        start -= steps
        actions = former.actions[:steps]
        lines.append({"kind": "past", "start": start, "values": theme.packed(actions)})
    return lines[::-1]


def _chunks(exchange: Exchange, infos: Mapping[str, PolicyInfo]) -> list[dict[str, object]]:
    """The chunk, and those that were answered beside it in the same dimensions."""
    family = infos[exchange.policy].family if exchange.policy in infos else None
    lines = []
    for policy, actions in exchange.beside.items():
        if policy in infos and actions.shape[1:] == exchange.actions.shape[1:]:
            whose = {"family": infos[policy].family, "title": theme.plain(infos[policy].title)}
            lines.append({"kind": "beside", "start": 0, "values": theme.packed(actions), **whose})
    now = {"kind": "now", "start": 0, "values": theme.packed(exchange.actions), "family": family}
    return [*lines, now]


def _apart(
    kept: Sequence[Exchange], infos: Mapping[str, PolicyInfo]
) -> list[dict[str, object]] | None:
    """How far each policy's answers lay from the robot's own server's over time; None outside
    shadow mode."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for exchange in kept:
        for policy, apart in differences(exchange).items():
            if policy in infos and len(apart) == len(infos[policy].actions):
                found.setdefault(policy, {})[exchange.number] = apart
    if not found:
        return None
    return [
        {
            "policy": theme.identity(infos[policy]),
            "dims": theme.dimensions(infos[policy].actions),
            "numbers": list(rows),
            "values": theme.packed(np.stack(list(rows.values()))),
            "mean": np.mean(list(rows.values()), axis=0).tolist(),
        }
        for policy, rows in found.items()
    ]
