"""What the robots' socket costs: the same request through shadow mode's relay, over the socket
alone and as a job without it, and the policy's own share, in turn, on the bundled pi0.

    python -m playground.tools.robot_latency
"""

import argparse
import dataclasses
import socket
import statistics
import time

from playground.checkpoints import resolve
from playground.serving.robot_job import ChunkRequest
from playground.serving.robot_shadow import start_relay
from playground.serving.robot_socket import KIND, RobotServer
from playground.serving.worker import Worker
from playground.tabletop.robot import PolicyServer, message
from playground.tabletop.rollout import observe
from playground.tabletop.scene import Table, random_scene
from playground.trace import Options

POLICY = "pi0_tabletop"


def measure(requests: int) -> dict[str, tuple[float, float]]:
    """By "relay", "socket", "job" and "policy": the median and the 95th percentile, in ms."""
    asked = resolve.requests([POLICY], None, None, None)
    robots = {entry.name: entry.robot for entry in resolve.resolve_all(asked)}
    arguments = {"policies": [dataclasses.asdict(request) for request in asked]}
    kinds = {KIND: "playground.serving.robot_job:chunk"}
    observation = observe(Table(random_scene(3)), "touch the red cube")
    times: dict[str, list[float]] = {"relay": [], "socket": [], "job": [], "policy": []}
    with Worker("playground.checkpoints.load:load", arguments, kinds=kinds) as worker:
        server = RobotServer(worker, robots, "127.0.0.1", 0)
        copies, theirs = socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as listening, theirs:
            relayed = listening.getsockname()[1]
            server.ready.wait()
            start_relay(listening, theirs, f"ws://127.0.0.1:{server.port}")
        ports = {"relay": relayed, "socket": server.port}
        clients = {what: PolicyServer(f"ws://127.0.0.1:{port}") for what, port in ports.items()}
        for seed in range(requests):
            for what, client in clients.items():
                began = time.perf_counter()
                reply = client.infer(message(observation))
                times[what].append((time.perf_counter() - began) * 1e3)
            times["policy"].append(reply["policy_timing"]["infer_ms"])
            began = time.perf_counter()
            request = ChunkRequest(POLICY, observation, Options(seed=seed))
            with worker.call(KIND, request, urgent=True) as events:
                for _ in events:
                    pass
            times["job"].append((time.perf_counter() - began) * 1e3)
        for client in clients.values():
            client.close()
        copies.close()
        server.close()
    return {
        what: (statistics.median(values), statistics.quantiles(values, n=20)[-1])
        for what, values in times.items()
    }


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the robots' socket costs.")
    parser.add_argument("--requests", type=int, default=100, help="(%(default)s)")
    return parser


def main() -> None:
    print("ms        median     p95")
    for what, (median_ms, p95_ms) in measure(settings().parse_args().requests).items():
        print(f"{what:8}{median_ms:8.2f}{p95_ms:8.2f}")


if __name__ == "__main__":
    main()
