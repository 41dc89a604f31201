"""The observations in `assets/examples`, which a page starts with."""

import dataclasses
import json

import numpy as np

from playground.assets import ASSETS
from playground.robots import transforms
from playground.robots.robot import Robot

EXAMPLES = ASSETS / "examples"


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """images: by the camera's name, uint8 [height, width, 3]. scene: the number of the table's
    scene that they show."""

    name: str
    prompt: str
    state: tuple[float, ...]
    images: dict[str, np.ndarray]
    scene: int | None


def examples(robot: Robot) -> list[Example]:
    """Those that belong to the robot."""
    found = []
    for path in sorted(EXAMPLES.glob("*.json")):
        fields = json.loads(path.read_text("utf-8"))
        if fields["robot"] == robot.name:
            images = {
                camera: transforms.load_image(EXAMPLES / file)
                for camera, file in fields["images"].items()
            }
            state, scene = tuple(fields["state"]), fields.get("scene")
            found.append(Example(path.stem, fields["prompt"], state, images, scene))
    return found
