"""A policy's first runs, so that nobody waits for a compiler."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from playground.policies.base import Policy
from playground.serving.events import Step, TokenEvent
from playground.trace import Options, RawObservation

_LOG = logging.getLogger(__name__)


class CompiledAhead:
    """While this is open, a thread compiles what a default run of a policy needs. `policy` gives
    one with shapes in place of weights. A failure is logged and no more: the warm-up compiles what
    is missing, and fails where that cannot be compiled."""

    def __init__(self, policy: Callable[[], Policy]):
        self._policy, self._stopped = policy, threading.Event()
        self._thread = threading.Thread(target=self._compile, daemon=True)
        self.compiled: Policy | None = None  # to be kept until the policy with weights is there

    def _compile(self) -> None:
        try:
            self.compiled = self._policy()
            raw = grey_picture(self.compiled)
            self.compiled.compile_ahead(raw, Options(), lambda: not self._stopped.is_set())
        except Exception:
            _LOG.warning("nothing is compiled ahead", exc_info=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None):
        """Waits for it; after an error, for the program that it is at."""
        if kind is not None:
            self._stopped.set()
        self._thread.join()


def warm_up(policy: Policy) -> None:
    """Compiles what a default run needs, by runs on a grey picture and the resting state, and has
    the policy choose how its steps run by what one takes."""
    _try(policy)
    if policy.settle():
        _try(policy)


def grey_picture(policy: Policy) -> RawObservation:
    """From every camera that the policy needs, at the resting pose."""
    info = policy.info
    grey = np.full((info.image_size, info.image_size, 3), 128, np.uint8)
    images = {slot.name: grey for slot in info.slots if slot.required}
    return RawObservation(info.robot, images, {}, "", np.array(policy.robot.resting_state))


def _try(policy: Policy) -> None:
    """One run, of pi0-FAST no more than two tokens, for the rest run the same programs; and the
    first step or tokens of another, which compiles nothing."""
    raw = grey_picture(policy)
    for event in policy.infer(raw, Options()):
        if isinstance(event, TokenEvent) and event.index == 1:
            break
    for event in policy.infer(raw, Options()):
        if isinstance(event, Step | TokenEvent):
            break
