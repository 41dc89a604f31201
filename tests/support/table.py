"""Observations at the simulated table, through as many cameras as the bundled policies have."""

from playground.robots.builtin import TABLETOP
from playground.robots.robot import NO_CAMERA

# By camera slot, the robot's own name of the camera.
CAMERAS = {slot.name: slot.camera for slot in TABLETOP.flow_slots if slot.camera != NO_CAMERA}

# The modes of a run that sees through the table's camera alone.
ONE_CAMERA = {"left_wrist_0_rgb": "masked", "right_wrist_0_rgb": "masked"}


def in_all(picture):
    """By camera slot, one picture for all of them."""
    return dict.fromkeys(CAMERAS, picture)


def by_slot(images):
    """By camera slot, what is there by the cameras' names: an example's pictures."""
    return {slot: images[camera] for slot, camera in CAMERAS.items()}
