"""`python app.py --robots`, a robot, and the page that watches it."""

import io
import re
import socket
import urllib.request

import numpy as np
import pytest
from playwright.sync_api import expect

from playground import trace
from playground.serving import robot_traffic
from playground.tabletop import robot as simulated
from playground.trace import image_digest
from tests.support.table import by_slot
from tests.support.visitor import PI0, answered, save_link, started, tab

POLICY = ("--checkpoint", PI0)


@pytest.fixture(scope="module")
def robots_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def app(tmp_path_factory, robots_port):
    """In place of the session's: one that serves robots."""
    with started(
        tmp_path_factory.mktemp("robots"), *POLICY, "--robots", str(robots_port)
    ) as address:
        yield address


def test_a_robot_is_watched_and_frozen_into_the_page(app, visit, robots_port):
    """What it saw and did stands on the page bit for bit, in the run that it is frozen into, and
    in the episode that is saved."""
    # It is let in once everything is loaded and compiled, and so is the page.
    server = simulated.PolicyServer(f"ws://127.0.0.1:{robots_port}")
    page = visit(ready=False)
    answered(page, PI0)
    tab(page, "Robot")
    asked = []

    def infer(message):
        reply = server.infer(message)
        asked.append((message, reply["actions"]))
        return reply

    for scene in range(2):
        outcome, _ = simulated.drive(infer, "touch the red cube", scene)
        assert outcome.success, outcome.reason
    assert len(asked) > 1
    rows = page.locator(".robots tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("tabletop")
    expect(page.locator(".robot-shown")).to_contain_text(f"Request {len(asked) - 1},")
    expect(page.locator(".robot-shown .seen img")).to_have_count(3)
    expect(page.locator(".robot-shown .panel")).to_have_count(14)
    link = page.get_by_role("link", name="Save the episode").get_attribute("href")
    server.close()
    message, actions = asked[-1]
    page.get_by_role("button", name="Freeze into the page").click()
    answered(page, PI0)
    expect(page.locator("#prompt textarea")).to_have_value("touch the red cube")
    with urllib.request.urlopen(f"{app}/{save_link(page, PI0).get_attribute('href')}") as file:
        run = trace.load(io.BytesIO(file.read()))
    assert run.inputs.image_sha256 == {
        slot: image_digest(picture) for slot, picture in by_slot(message["images"]).items()
    }
    np.testing.assert_array_equal(np.float32(run.inputs.state), message["state"])
    assert run.options.seed == len(asked) - 1
    # One compiled loop for the robot, step by step for the page.
    np.testing.assert_array_equal(run.actions[0], actions)
    with urllib.request.urlopen(f"{app}/{link}") as file:
        saved = robot_traffic.load(io.BytesIO(file.read()))
    np.testing.assert_array_equal(saved.actions, np.stack([chunk for _, chunk in asked]))
    assert re.fullmatch(r"robot/\d+", link)
