"""The page on scripted policies of two robots, for what the bundled ones cannot show: choosing a
robot, slots that differ between policies, one policy failing.

    python -m tests.support.two_robots PORT
"""

import dataclasses
import sys

from playground.robots.builtin import DROID, TABLETOP
from playground.serving import health
from playground.serving.events import Done, Phase
from playground.serving.worker import Worker
from playground.trace import image_digest
from playground.ui import page, results
from tests.support.traces import fast_trace, pi0_trace, policy_info

ROBOTS = {"table": TABLETOP, "pi0_droid": DROID, "fast_droid": DROID}


class Scripted:
    """Answers with a trace made by hand; pi0-FAST refuses the prompt "refuse"."""

    def __init__(self, name):
        robot = ROBOTS[name]
        self.fast = name.startswith("fast")
        family = "pi0_fast" if self.fast else "pi0"
        self.info = dataclasses.replace(
            policy_info(family, robot.actions),
            name=name,
            robot=robot.name,
            slots=robot.slots(family),
            state=robot.state,
            state_stats=None,
        )

    def infer(self, observation, options):
        yield Phase(self.info.name, "prefix", 60.0)
        if self.fast and observation.prompt == "refuse":
            raise ValueError("not <b>today</b>")
        make = fast_trace if self.fast else pi0_trace
        trace = make(dims=self.info.actions, prompt=observation.prompt)
        modes = {slot: "filled" for slot in observation.images}
        modes = {slot.name: modes.get(slot.name, slot.when_missing) for slot in self.info.slots}
        inputs = dataclasses.replace(
            trace.inputs,
            state=tuple(map(float, observation.state)),
            modes=modes,
            image_sha256={slot: image_digest(i) for slot, i in observation.images.items()},
        )
        fields = {"info": self.info, "inputs": inputs, "options": options}
        yield Done(self.info.name, dataclasses.replace(trace, **fields, images=observation.images))


def load():
    return {name: Scripted(name) for name in ROBOTS}


def main():
    worker, kept = Worker("tests.support.two_robots:load", {}), results.Results()
    demo = page.build(worker, ROBOTS, kept)
    page.serve(demo, "127.0.0.1", int(sys.argv[1])).include_router(health.routes(worker))
    health.wait_for_signal()
    worker.close()
    demo.close()


if __name__ == "__main__":
    main()
