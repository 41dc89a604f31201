"""A policy's first runs, so that nobody waits for a compiler."""

import numpy as np

from playground.policies.base import Policy
from playground.serving.events import Step, TokenEvent
from playground.trace import Options, RawObservation


def warm_up(policy: Policy) -> None:
    """Compiles what a default run needs, by runs on a grey picture and the resting state, and has
    the policy choose how its steps run by what one takes."""
    _try(policy)
    if policy.settle():
        _try(policy)


def _try(policy: Policy) -> None:
    """One run, of pi0-FAST no more than two tokens, for the rest run the same programs; and the
    first step or tokens of another, which compiles nothing."""
    info = policy.info
    grey = np.full((info.image_size, info.image_size, 3), 128, np.uint8)
    images = {slot.name: grey for slot in info.slots if slot.required}
    state = np.array(policy.robot.resting_state)
    raw = RawObservation(info.robot, images, {}, "", state)
    for event in policy.infer(raw, Options()):
        if isinstance(event, TokenEvent) and event.index == 1:
            break
    for event in policy.infer(raw, Options()):
        if isinstance(event, Step | TokenEvent):
            break
