"""What is seen from outside: /metrics and the log."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from playground.serving import logs, metrics
from playground.serving.events import Job
from playground.serving.robot_traffic import Traffic
from playground.serving.worker import Worker
from playground.trace import Options, RawObservation

ROOT = Path(__file__).resolve().parents[1]
SECRET = "step break_ sesame"  # a script of tests/support/scripted.py that fails in the end


def observation(prompt):
    return RawObservation("aloha", {}, {}, prompt, np.zeros(14))


def samples(text):
    families = text_string_to_metric_families(text)
    return {
        (s.name.removeprefix("pi0_playground_"), *sorted(s.labels.values())): s.value
        for family in families
        for s in family.samples
    }


@pytest.fixture(scope="module")
def read():
    """What /metrics says after a job that was done and one that failed."""
    traffic = Traffic()
    with Worker("tests.support.scripted:policies", {}) as worker:
        measured = metrics.Metrics(worker, traffic)
        app = FastAPI()
        app.include_router(metrics.routes(measured))
        traffic.answered(traffic.joined("aloha", "pi0", 50.0), 0.0, 20.0)
        for prompt in ("step step", SECRET):
            with worker.infer(Job(("pi0",), observation(prompt), Options())) as events:
                list(events)
        with worker.infer(Job(("pi0",), observation("step"), Options())) as events:
            list(events)  # the end of the job before has been counted
        answer = TestClient(app).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def test_jobs_times_robots_and_memory_are_counted(read):
    found = samples(read)
    assert found["jobs_total", "failed", "infer"] == 1
    assert found["jobs_total", "done", "infer"] >= 1
    assert found["job_wait_seconds_count", "infer"] >= 2
    assert found["stage_seconds_count", "denoise", "pi0"] >= 1
    assert found["worker_ready",] == 1
    assert found["worker_state", "up"] == 1
    assert found["robots_connected",] == found["robot_requests_total",] == 1
    for process in ("page", "worker"):
        assert found[f"{process}_process_resident_memory_bytes",] > 1e6


def test_names_follow_prometheus(read):
    """https://prometheus.io/docs/practices/naming: a prefix, base units, counts end in _total."""
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", read, re.MULTILINE))
    assert len(types) > 12
    for name, kind in types.items():
        assert name.startswith("pi0_playground_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|millis|mb)\b", name)
        assert f"# HELP {name} " in read


def test_the_dashboard_asks_for_what_there_is(read):
    dashboard = (ROOT / "docs" / "grafana.json").read_text()
    asked = set(re.findall(r"pi0_playground_[a-z_]+", dashboard))
    known = {f"pi0_playground_{name}" for name, *_ in samples(read)}
    # Without a hit, a counter with labels has no sample yet.
    assert asked - known <= {"pi0_playground_cache_hits_total"}
    assert len(json.loads(dashboard)["panels"]) == 9


def test_a_cache_that_answered_is_named_without_its_camera():
    with Worker("tests.support.scripted:policies", {}) as worker:
        measured = metrics.Metrics(worker, Traffic())
        about = {"timings_ms": {"vision": 2000}, "reused": ["image embedding of base", "prefix"]}
        fields = {"kind": "infer", "outcome": "done", "waited_s": 1, "ran_s": 2}
        measured.ended(fields | {"policies": {"pi0": about}})
        measured.ended({"job": "x", "outcome": "given up"})
        found = samples(measured.text().decode())
    assert found["cache_hits_total", "image embedding", "pi0"] == 1
    assert found["cache_hits_total", "pi0", "prefix"] == 1
    assert found["stage_seconds_sum", "pi0", "vision"] == 2
    assert found["jobs_total", "given up", "none"] == 1


# --- the log ------------------------------------------------------------------------------------


def line(message, **more):
    record = logging.makeLogRecord({"msg": message, "name": "x", "levelname": "INFO", **more})
    return json.loads(logs.JsonLines().format(record))


def test_a_line_is_one_json_object():
    found = line('{"event": "ended", "ran_s": 2}')
    assert (found["event"], found["ran_s"], found["level"]) == ("ended", 2, "info")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert line("{no json")["message"] == "{no json"
    assert line("two\nlines")["message"] == "two\nlines"
    try:
        raise ValueError("a\nb")
    except ValueError:
        found = line("broke", exc_info=sys.exc_info())
    assert "ValueError: a\nb" in found["traceback"]


def test_every_line_of_the_program_and_of_its_worker_is_json_and_none_holds_a_prompt():
    script = f"""
import numpy as np
from playground.serving import logs
from playground.serving.events import Job
from playground.serving.worker import Worker
from playground.trace import Options, RawObservation

logs.configure(as_json=True)
raw = RawObservation("aloha", {{}}, {{}}, {SECRET!r}, np.zeros(14))
with Worker("tests.test_metrics:warning_policies", {{}}) as worker:
    with worker.infer(Job(("pi0",), raw, Options())) as events:
        list(events)
    worker.close()
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [json.loads(text) for text in run.stderr.splitlines()]
    events = [one.get("event") for one in found]
    assert {"started", "ready", "failed", "ended"} <= set(events)
    assert any(one.get("message") == "of the worker" for one in found)
    assert "sesame" not in run.stderr


def warning_policies():
    logging.getLogger("a.test").warning("of the worker")
    from tests.support.scripted import policies

    return policies()
