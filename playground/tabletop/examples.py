"""Draws the scenes that a page starts with: `python -m playground.tabletop.examples`.

Each example in `assets/examples` is a scene by its number, a prompt, and what the table's cameras
see there. `playground.robots.examples` reads them.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from playground.robots.builtin import TABLE_CAMERA, TABLETOP
from playground.robots.examples import EXAMPLES
from playground.tabletop.render import render_cameras
from playground.tabletop.scene import Table, random_scene

# By file name, the prompt and the number of the scene.
SCENES = {
    "tabletop-blue": ("touch the blue cube", 11),
    "tabletop-green": ("lift the green block", 23),
    "tabletop-red": ("pick up the red cube", 4),
    "tabletop-two": ("put the red cube on the blue cube", 8),
}


def draw(folder: Path) -> None:
    """Writes each example as a JSON file and a PNG for each camera."""
    cameras = TABLETOP.cameras("pi0")
    for name, (prompt, number) in SCENES.items():
        scene = random_scene(number)
        files = {}
        for slot, image in render_cameras(Table(scene)).items():
            camera = cameras[slot]
            files[camera] = f"{name}.png" if camera == TABLE_CAMERA else f"{name}-{camera}.png"
            Image.fromarray(image).save(folder / files[camera], optimize=True)
        example = {
            "robot": TABLETOP.name,
            "prompt": prompt,
            "scene": number,
            "state": list(scene.state),
            "images": files,
        }
        (folder / f"{name}.json").write_text(json.dumps(example, indent=1) + "\n", "utf-8")


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draws the page's examples.")
    parser.add_argument("--folder", type=Path, default=EXAMPLES, help="(%(default)s)")
    return parser


if __name__ == "__main__":
    draw(settings().parse_args().folder)
