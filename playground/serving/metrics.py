"""What Prometheus asks for at /metrics: jobs, waits, stages, caches, robots and memory.

Nothing in it is about one visitor: labels are kinds of jobs, policies and stages.
"""

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from playground.serving.robot_traffic import Traffic
from playground.serving.worker import Worker

_PREFIX = "pi0_playground"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STATES = ("loading", "up", "down", "closed")


class Metrics:
    """Counts from now on. worker: whose jobs; traffic: the robots'."""

    def __init__(self, worker: Worker, traffic: Traffic):
        self.registry = CollectorRegistry()
        of = {"namespace": _PREFIX, "registry": self.registry}
        self._jobs = Counter("jobs", "Jobs that ended.", ["kind", "outcome"], **of)
        timed = {"buckets": _SECONDS, **of}
        self._waits = Histogram(
            "job_wait_seconds", "From the request of a job to its start.", ["kind"], **timed
        )
        self._runs = Histogram(
            "job_run_seconds", "From the start of a job to its end.", ["kind"], **timed
        )
        self._stages = Histogram(
            "stage_seconds", "Parts of a policy's run.", ["policy", "stage"], **timed
        )
        self._reused = Counter(
            "cache_hits", "Parts of a run that were not computed anew.", ["policy", "cache"], **of
        )
        self.registry.register(_Now(worker, traffic))
        ProcessCollector(namespace=f"{_PREFIX}_page", registry=self.registry)
        # A process that is gone has no numbers.
        pid = lambda: worker.process() or -1  # noqa: E731
        ProcessCollector(namespace=f"{_PREFIX}_worker", pid=pid, registry=self.registry)
        worker.observe(self.ended)

    def ended(self, fields: dict) -> None:
        """fields: as `Worker.observe` gives them."""
        kind = fields.get("kind", "none")  # of a job that never ran
        self._jobs.labels(kind, fields["outcome"]).inc()
        if "ran_s" not in fields:
            return
        self._waits.labels(kind).observe(fields["waited_s"])
        self._runs.labels(kind).observe(fields["ran_s"])
        for policy, about in fields["policies"].items():
            for stage, ms in about["timings_ms"].items():
                self._stages.labels(policy, stage).observe(ms / 1e3)
            for what in about["reused"]:
                self._reused.labels(policy, what.partition(" of ")[0]).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Now(Collector):
    """What is asked for at the moment of asking."""

    def __init__(self, worker: Worker, traffic: Traffic):
        self._worker, self._traffic = worker, traffic

    def collect(self) -> Iterator[Metric]:
        status, robots = self._worker.status(), self._traffic.robots()
        yield _gauge("jobs_waiting", "Jobs in the queue.", status.waiting)
        yield _gauge("jobs_running", "Jobs that the worker is at.", int(status.running))
        states = GaugeMetricFamily(
            f"{_PREFIX}_worker_state", "1 for the state that the worker is in.", labels=["state"]
        )
        for state in _STATES:
            states.add_metric([state], int(status.state == state))
        yield states
        yield _gauge("worker_ready", "Whether jobs are taken.", int(self._worker.ready()))
        yield _gauge("worker_replicas", "Replicas that take jobs.", status.replicas)
        yield _gauge("worker_crashes_in_a_row", "Since the last job that was done.", status.crashes)
        yield _count("memory_exhausted", "How often memory did not suffice.", status.exhausted)
        yield _gauge("robots_connected", "Robots at the moment.", len(robots))
        yield _count("robots", "Robots that have connected.", self._traffic.connections)
        yield _count("robot_requests", "Requests of robots answered.", self._traffic.requests)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", about, value=value)


def _count(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", about, value=value)


def routes(metrics: Metrics) -> APIRouter:
    """/metrics, in Prometheus' text format."""
    router = APIRouter()

    @router.get("/metrics")
    def read() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
