"""A robot's request, read: from the frame that it sent to an observation for a policy."""

import dataclasses
from collections.abc import Mapping

from playground.robots.builtin import DROID
from playground.robots.conversion import from_openpi
from playground.robots.robot import Robot, check_state
from playground.serving import robot_messages
from playground.trace import PolicyInfo, RawObservation

_MAX_PROMPT = 10_000  # characters


def read(data: str | bytes) -> dict:
    """The map that a frame holds; raises ValueError for anything else."""
    if isinstance(data, str):
        raise ValueError("an observation is a binary frame of msgpack, not text")
    request = robot_messages.unpack(data)
    if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
        raise ValueError("an observation is a map whose keys are text")
    return request


def observation(request: Mapping, info: PolicyInfo, robot: Robot) -> RawObservation:
    """What the policy is to be asked; raises ValueError that says what does not fit the robot."""
    request = _renumbered(request, robot)
    found = from_openpi(robot, info.family, request, info.default_prompt)
    if len(found.prompt) > _MAX_PROMPT:
        raise ValueError(f"the prompt has more than {_MAX_PROMPT:,} characters")
    return dataclasses.replace(found, state=check_state(robot, found.state))


def _renumbered(request: Mapping, robot: Robot) -> Mapping:
    """RoboArena counts external cameras from 0, DROID from 1: a camera 0 tells which it is."""
    first = "observation/exterior_image_0_left"
    if robot.name != DROID.name or first not in request:
        return request
    renamed = {}
    for key, value in request.items():
        for index in range(3):
            if key.startswith(f"observation/exterior_image_{index}_"):
                key = key.replace(f"image_{index}_", f"image_{index + 1}_")
                break
        renamed[key] = value
    return renamed
