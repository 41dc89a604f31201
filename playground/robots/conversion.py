"""Between a robot's terms and a model's, one function per direction; and what openpi's clients
send.

Sources: openpi's `policies/{aloha,droid,libero}_policy.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from playground.robots import norm_stats, transforms
from playground.robots.norm_stats import Method
from playground.robots.robot import Robot, check_state, slot_modes
from playground.trace import Family, RawObservation, SlotMode, Stats


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInput:
    """An observation in the model's terms.

    images: by slot, in the order of the slots, uint8 [size, size, 3]; black where none is filled
    bars: by slot, bool [size, size]: which pixels are black bars beside a picture of another shape
    modes: by slot; "masked" hides it from attention, "black" and "filled" are attended to
    state: float64 [S], normalised, not padded to the model's dimension
    """

    images: dict[str, np.ndarray]
    bars: dict[str, np.ndarray]
    modes: dict[str, SlotMode]
    state: np.ndarray


def to_model(
    robot: Robot,
    family: Family,
    raw: RawObservation,
    stats: Stats,
    method: Method,
    image_size: int,
) -> ModelInput:
    """An observation in the model's terms. `stats` are the state's, over the robot's dimensions.

    Raises ValueError for a slot the robot does not have, a required picture that is missing, and a
    state of the wrong length or with values that cannot be.
    """
    state = check_state(robot, raw.state)
    modes = slot_modes(robot.slots(family), raw)
    images = {
        slot: transforms.resize_with_pad(raw.images[slot], image_size, image_size)
        if mode == "filled"
        else np.zeros((image_size, image_size, 3), np.uint8)
        for slot, mode in modes.items()
    }
    bars = {
        slot: _bars(raw.images[slot], image_size)
        if mode == "filled"
        else np.zeros((image_size, image_size), bool)
        for slot, mode in modes.items()
    }
    state = norm_stats.normalise(robot.state_to_model(state), stats, method)
    return ModelInput(images, bars, modes, state)


def _bars(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    return transforms.letterbox(height, width, size, size)


def from_model(
    robot: Robot,
    actions: np.ndarray,
    state: np.ndarray,
    stats: Stats,
    method: Method,
) -> np.ndarray:
    """The model's actions [..., H, M] in the robot's units, float64 [..., H, D]: the dimensions the
    robot has, unnormalised, made absolute, in its convention. `state` [S] is the raw one that went
    in; `stats` are the actions', over the robot's dimensions."""
    dims = len(robot.actions)
    if actions.shape[-1] < dims:
        raise ValueError(f"{robot.title} has {dims} actions, the model gave {actions.shape[-1]}")
    actions = norm_stats.unnormalise(np.asarray(actions)[..., :dims], stats, method)
    if robot.offsets:
        actions = transforms.to_absolute(actions, robot.state_to_model(state), robot.offsets)
    return robot.actions_from_model(actions)


def from_openpi(
    robot: Robot, family: Family, observation: Mapping, default_prompt: str | None = None
) -> RawObservation:
    """An observation as openpi's clients send it, nested or with keys joined by "/".

    Pictures are uint8 or floats in 0..1, channels first or last. Raises ValueError where openpi
    raises KeyError, and where it would go on with a wrong picture.
    """
    flat = _flatten(observation)
    cameras = robot.cameras(family)
    known = {*cameras.values(), *robot.unused_cameras}
    prefix = robot.camera_key.format("")
    unknown = [
        key
        for key, value in flat.items()
        if key.startswith(prefix) and np.ndim(value) == 3 and key.removeprefix(prefix) not in known
    ]
    if unknown:
        raise ValueError(f"{robot.title} has no cameras {unknown}; it has {sorted(known)}")
    if missing := [key for key in robot.state_keys if key not in flat]:
        raise ValueError(f"the observation lacks {missing}; it has {sorted(flat)}")
    keys = {slot: robot.camera_key.format(camera) for slot, camera in cameras.items()}
    for slot in robot.slots(family):
        if slot.required and keys[slot.name] not in flat:
            raise ValueError(f"the observation lacks {keys[slot.name]!r}; it has {sorted(flat)}")
    prompt = flat.get("prompt", default_prompt)
    prompt = prompt.item() if isinstance(prompt, np.ndarray) else prompt
    prompt = prompt.decode() if isinstance(prompt, bytes) else prompt
    if not isinstance(prompt, str):
        raise ValueError(f"the observation needs a prompt, {type(prompt).__name__} came")
    return RawObservation(
        robot=robot.name,
        images={n: transforms.as_image(flat[key]) for n, key in keys.items() if key in flat},
        modes={},
        prompt=prompt,
        state=np.concatenate([np.atleast_1d(flat[key]) for key in robot.state_keys]),
    )


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}/") if nested else {f"{prefix}{key}": value}
    return flat
