"""Observations at the simulated table, through as many cameras as the bundled policies have."""

import numpy as np

from playground.robots.builtin import TABLETOP

# By camera slot, the robot's own name of the camera.
CAMERAS = TABLETOP.cameras("pi0")

# The modes of a run that sees through the table's camera alone.
ONE_CAMERA = {"left_wrist_0_rgb": "masked", "right_wrist_0_rgb": "masked"}


def random_pictures(seed, height, width):
    """By camera slot, uint8 [height, width, 3] of noise, another one in each."""
    return {
        slot: np.random.default_rng([seed, number]).integers(0, 256, (height, width, 3), np.uint8)
        for number, slot in enumerate(CAMERAS)
    }


def in_all(picture):
    """By camera slot, one picture for all of them."""
    return dict.fromkeys(CAMERAS, picture)


def by_slot(images):
    """By camera slot, what is there by the cameras' names: an example's pictures."""
    return {slot: images[camera] for slot, camera in CAMERAS.items()}
