"""What looks wrong about a robot's request: sentences for who watches it."""

import itertools

import numpy as np
from PIL import Image

from playground.robots.ranges import far_actions, far_states
from playground.robots.robot import Robot
from playground.serving.robot_traffic import Exchange
from playground.trace import PolicyInfo

_BLACK = 16  # of 255: no pixel of a picture is brighter
_SMALL = 12  # pixels a side, of pictures that are compared
_MOVED = 12.0  # of 255 on average; less than that is one and the same view
_MOST_NAMES = 4


def warnings(
    exchange: Exchange, before: Exchange | None, info: PolicyInfo, robot: Robot
) -> list[str]:
    """exchange: what is judged, and the one before it; info, robot: of the policy that answered, or
    in shadow mode of one that answers beside it."""
    observation = exchange.observation
    found = far_states(robot, info, observation.state)
    cameras = {slot.name: slot.camera or slot.name for slot in info.slots}
    images = {cameras.get(name, name): image for name, image in observation.images.items()}
    found += [f"Camera {n} is black." for n, image in images.items() if image.max() <= _BLACK]
    if before is not None:
        former = {cameras.get(n, n): image for n, image in before.observation.images.items()}
        found += _of_cameras(images, former, _has_moved(exchange, before))
        if before.observation.prompt != observation.prompt:
            found.append(f"The prompt has changed; it was “{before.observation.prompt:.200}”.")
    if beyond := far_actions(robot, info, exchange.actions, observation.state):
        names = ", ".join(beyond[:_MOST_NAMES])
        more = f" and {len(beyond) - _MOST_NAMES} more" if len(beyond) > _MOST_NAMES else ""
        found.append(
            f"The chunk goes beyond the training data in {names}{more}; a robot's limits may clip "
            "it."
        )
    return found


def _has_moved(exchange: Exchange, before: Exchange) -> bool:
    return not np.array_equal(exchange.observation.state, before.observation.state)


def _of_cameras(
    images: dict[str, np.ndarray], former: dict[str, np.ndarray], moved: bool
) -> list[str]:
    """Cameras that show the very picture of the request before, though the robot has moved, and
    pairs that show each what the other one showed."""
    both = [name for name in images if name in former]
    still = [n for n in both if moved and np.array_equal(images[n], former[n])]
    found = [f"Camera {n} shows the very picture of the request before." for n in still]
    now, then = ({n: _small(found[n]) for n in both} for found in (images, former))
    for a, b in itertools.combinations(both, 2):
        stayed = _apart(now[a], then[a]) + _apart(now[b], then[b])
        swapped = _apart(now[a], then[b]) + _apart(now[b], then[a])
        if stayed > 2 * _MOVED and swapped < 0.5 * stayed:
            found.append(f"Cameras {a} and {b} seem to have changed places.")
    return found


def _small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((_SMALL, _SMALL), Image.Resampling.BOX), float)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())
