"""What runs inside a worker's process in its tests: policies that are scripts, not models.

Apart from the tests, since each of their engines imports this: it needs nothing that is slow to
import.
"""

import dataclasses
import os
import signal
import sys
import time

from playground import codec
from playground.serving.events import Done, Phase, Result, Step
from playground.serving.shelf import Shelf
from tests.support.traces import pi0_trace, policy_info


class Scripted:
    """Does what the words of the prompt say, and answers with the state it was given."""

    def __init__(self, name):
        self.name = name
        self.info = policy_info("pi0", title=name)

    def infer(self, observation, options):
        self.options = options
        try:
            for number, word in enumerate(observation.prompt.split()):
                verb, _, value = word.partition("=")
                yield from getattr(self, verb)(number, value, observation)
            trace = pi0_trace(steps=1, horizon=4, patches=1, prompt=observation.prompt)
            trace.versions["state"] = observation.state.tobytes().hex()
            yield Done(self.name, trace)
        finally:
            if "leaves" in observation.images:  # an observation can say where to note the end
                note(bytes(observation.images["leaves"]).decode(), "left")

    def step(self, number, value, observation):
        yield Step(self.name, number, 1, 0.5, observation.state)

    def note(self, number, value, observation):
        note(value, f"{self.name} {observation.state[0]:g}")
        yield Phase(self.name, "noted", 60.0)

    def pid(self, number, value, observation):
        note(value, str(os.getpid()))
        yield Phase(self.name, "noted", 60.0)

    def gate(self, number, value, observation):
        yield Phase(self.name, "gate", 60.0)
        wait_for_file(value)

    def endless(self, number, value, observation):
        while True:
            yield Step(self.name, number, 1, 0.5, observation.state)
            time.sleep(0.05)

    def die(self, number, value, observation):
        yield Phase(self.name, "die", 60.0)
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, number, value, observation):
        yield Phase(self.name, "hang", 0.3)
        time.sleep(600)

    def brief(self, number, value, observation):
        yield Phase(self.name, "brief", 1.5)

    def silent(self, number, value, observation):
        """For a while, before fast's run says its first word."""
        time.sleep(2.0 if self.name == "fast" else 0.0)
        yield Phase(self.name, "silent", 60.0)

    def stop(self, number, value, observation):
        os.kill(os.getpid(), signal.SIGSTOP)
        yield Phase(self.name, "stopped", 60.0)

    def refuse(self, number, value, observation):
        yield Phase(self.name, "refuse", 60.0)
        raise ValueError("the state has 3 values, expected 14")

    def break_(self, number, value, observation):
        yield Phase(self.name, "break", 60.0)
        raise RuntimeError("a secret in /etc/passwd")

    def exhaust(self, number, value, observation):
        """With more samples than that, in the middle of the run."""
        import jax

        yield Phase(self.name, "exhaust", 60.0)
        yield Step(self.name, number, 1, 0.5, observation.state)
        if self.options.num_samples > int(value):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 B.")


def note(path, line):
    with open(path, "a") as file:
        file.write(line + "\n")


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def policies(names=("pi0", "fast")):
    return {name: Scripted(name) for name in names}


def policies_behind(door):
    """Announces its loading, which lasts until a file is there."""
    yield Phase("pi0", "loading", 60.0)
    wait_for_file(door)
    return policies()


def refusing():
    raise ValueError("the checkpoint at hand needs 12.3 GB, the device has 8.0 GB")


def broken(tries):
    """Hangs the second time, and breaks at all others."""
    if not os.path.exists(tries) or os.path.getsize(tries) != len("raised\n"):
        note(tries, "raised")
        raise RuntimeError("cannot load")
    note(tries, "hung")
    return loading_hangs()


def loading_hangs():
    yield Phase("pi0", "loading", 0.3)
    time.sleep(600)


def with_jax():
    import jax

    assert jax.__version__
    return policies()


@codec.register
@dataclasses.dataclass(frozen=True)
class Given:
    """A request of the kinds below."""

    value: object = None
    policies: tuple[str, ...] = ()


def echo(policies, request):
    yield Result(request.value)


def flood(policies, request):
    for number in range(request.value):
        yield Result(number)


def process_id(policies, request):
    yield Result((os.getpid(), "jax" in sys.modules))


def where(policies, request):
    """What is held there, and the process."""
    yield Result((os.getpid(), tuple(policies)))


def gate(policies, request):
    """Says where it is, and waits for a file."""
    yield Phase(request.policies[0], "at the gate", 60.0)
    yield Result(os.getpid())
    wait_for_file(request.value)


def shelf(most):
    """Of three policies, in any order so many at once."""
    infos = {name: policy_info("pi0", title=name) for name in ("a", "b", "c")}

    def open_one(name):
        yield Phase(name, "loading", 60.0)
        return Scripted(name)

    return Shelf(infos, open_one, lambda names: len(names) <= most)


_KINDS = ("echo", "flood", "process_id", "where", "gate")
KINDS = {kind: f"{__name__}:{kind}" for kind in _KINDS}
