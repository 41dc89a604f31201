"""The plan of docs/scaling.md: its simulation against what is known of queues, and its figures."""

import re
import shlex
import subprocess

import numpy as np
import pytest
import yaml

from playground.tools import scaling
from playground.ui import arguments
from tests.conftest import ROOT


@pytest.mark.parametrize("busy", [0.3, 0.8])
def test_one_engine_waits_as_pollaczek_and_khinchine_say(busy):
    """M/D/1: a mean wait of rho s / (2 (1 - rho))."""
    run_s = 0.02
    hour = scaling.simulate(scaling.arrivals(int(busy * 3600 / run_s)), run_s, 1, places=10**9)
    assert hour.busy == pytest.approx(busy, rel=0.02)
    assert hour.mean_wait_s == pytest.approx(busy * run_s / (2 * (1 - busy)), rel=0.1)


def test_places_engines_and_waits_add_up():
    at_once = np.zeros(10)
    hour = scaling.simulate(at_once, 1.0, engines=2, places=4)
    assert (hour.longest, hour.refused) == (4, 0.4)  # two run, four wait, four are refused
    assert hour.mean_wait_s == pytest.approx((0 + 0 + 1 + 1 + 2 + 2) / 6)
    assert scaling.enough(at_once, 1.0, wait_s=1.0).engines == 5


def test_the_plan_is_what_the_command_prints():
    text = (ROOT / "docs" / "scaling.md").read_text()
    rows = re.findall(r"^\| [\d,]+ \| [\d,]+ \| \d+ \|.*$", text, re.MULTILINE)
    assert rows == scaling.rows(scaling.settings().parse_args([]))


def test_the_head_s_command_can_stand_before_ray_start():
    """KubeRay joins what a container is to run and its own command to one line of bash."""
    head = yaml.safe_load((ROOT / "docs" / "kuberay-values.yaml").read_text())["head"]
    ours = " ".join([*head["command"], *head.get("args", [])])
    assert "ray start" not in ours  # or KubeRay would add nothing
    line = f" {ours}  && ulimit -n 65536; ray start --head --num-cpus=0 --block"
    subprocess.run(["bash", "-n", "-c", line], check=True)
    asked = shlex.split(re.search(r"python app\.py (.*)\) & true", ours)[1])
    args = arguments.checked(arguments.settings().parse_args(asked))
    assert (args.engine, args.replicas) == ("ray", (2, 24))
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert (ports["page"], ports["gcs-server"]) == (args.port, 6379)
