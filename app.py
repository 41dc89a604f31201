"""Opens the playground: `python app.py`, on the bundled policies. A Space starts this file too."""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Mapping

from playground.checkpoints import resolve
from playground.robots.robot import Robot
from playground.serving import logs
from playground.serving.worker import Worker

# What the worker can be asked besides running policies.
KINDS = {
    "what_matters": "playground.analysis.sensitivity:what_matters",
    "prompts": "playground.analysis.prompts:compare",
    "causal_trace": "playground.analysis.patching:causal_trace",
    "causal_cell": "playground.analysis.patching:causal_cell",
    "knockout": "playground.analysis.connections:knockouts",
    "occlusion": "playground.analysis.connections:occlusions",
    "rollout": "playground.tabletop.job:rollout",
    "chunk": "playground.serving.robot_job:chunk",
    "episode": "playground.datasets.job:predict",
    "seam": "playground.datasets.job:seam",
}

ROBOTS_PORT = 8000  # openpi's


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--host", default=host, help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=port, help="port to listen on (%(default)s)"
    )
    parser.add_argument(
        "--allow-host",
        nargs="+",
        metavar="NAME",
        default=os.environ.get("PI0_PLAYGROUND_ALLOW_HOST", "").split(),
        help="further names that the page is reached under, through a proxy for example",
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=os.environ.get("PI0_PLAYGROUND_CHECKPOINT", "").split(),
        help="openpi's names, a folder (it may need the next three), or JSON files that name one",
    )
    parser.add_argument(
        "--check", action="store_true", help="say what they are and whether they open, and end"
    )
    parser.add_argument("--config", help="the folder's: openpi's name for it, or a JSON file")
    parser.add_argument("--robot", help="of a LeRobot folder: a name or a JSON file")
    parser.add_argument("--asset-id", help="whose norm stats of the folder, where not the config's")
    parser.add_argument(
        "--robots",
        nargs="?",
        type=int,
        const=ROBOTS_PORT,
        metavar="PORT",
        help="serve robots too, by openpi's websocket, on a port of its own (%(const)s)",
    )
    parser.add_argument(
        "--shadow",
        type=server_url,
        metavar="URL",
        help="pass robots on to their own policy server, ws://HOST:PORT; ours answer beside it",
    )
    parser.add_argument(
        "--log-json", action="store_true", help="write the log as one JSON object a line"
    )
    # For a start that the page asked for, from the one before it (`checkpoints.Reopening`).
    parser.add_argument("--otherwise", help=argparse.SUPPRESS)
    parser.add_argument("--because", default="", help=argparse.SUPPRESS)
    return parser


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def server_url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"a policy server is ws://HOST:PORT, not {text!r}")
    return text


def main() -> None:
    if packages := os.environ.pop("PI0_PLAYGROUND_INSTALL", "").split():
        install(packages)
    args = settings().parse_args()
    logs.configure(as_json=args.log_json)
    try:
        asked = resolve.requests(args.checkpoint, args.config, args.robot, args.asset_id)
        if args.check:
            from playground.checkpoints import check  # tokenizers that the page does without

            text, opens = check.check(asked)
            print(text)
            sys.exit(0 if opens else 1)
        robots = {entry.name: entry.robot for entry in resolve.resolve_all(asked)}
    except ValueError as error:
        settings().error(str(error))
    policies = [dataclasses.asdict(request) for request in asked]
    worker = Worker("playground.checkpoints.load:load", {"policies": policies}, kinds=KINDS)
    if again := serve(worker, robots, args):
        place = ["--host", args.host, "--port", str(args.port)]
        place += [] if args.robots is None else ["--robots", str(args.robots)]
        place += [] if args.shadow is None else ["--shadow", args.shadow]
        place += ["--log-json"] if args.log_json else []
        os.execv(sys.executable, [sys.executable, __file__, *place, *again])


def install(packages: list[str]) -> None:
    """Adds packages to this Python, and starts anew, since a running one does not see them all.
    So a Space, whose requirements.txt cannot depend on its hardware, gets JAX for its GPU."""
    if subprocess.run([sys.executable, "-m", "pip", "install", *packages]).returncode:
        settings().error(f"PI0_PLAYGROUND_INSTALL: pip could not install {' '.join(packages)}")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def serve(
    worker: Worker, robots: Mapping[str, Robot], args: argparse.Namespace
) -> list[str] | None:
    """Until a signal ends it. Returns the arguments to start anew with, if that was asked for."""
    # Gradio takes as long to import as the worker's process to load: both at once. It reads where
    # its files are to lie as it is imported.
    files = private_folder(worker)
    from playground.serving import health, metrics
    from playground.serving.robot_traffic import Traffic
    from playground.ui import checkpoints, page, results
    from playground.ui.episodes import store
    from playground.ui.robots import Watch
    from playground.ui.robots import routes as robot_routes

    traffic = Traffic()
    measured = metrics.Metrics(worker, traffic)
    kept, reopening = results.Results(), checkpoints.Reopening(args)
    private = checkpoints.is_private(args.host) and not args.allow_host
    recordings = store.Recordings(public=not private)
    served_port = args.robots or ROBOTS_PORT
    watched = private and (args.robots is not None or args.shadow is not None)
    watch = Watch(traffic, served_port) if watched else None
    demo = page.build(worker, robots, kept, reopening if private else None, recordings, watch)
    try:
        port = served_port
        robot_server = serve_robots(worker, robots, args, traffic)
        port = args.port
        served = page.serve(demo, args.host, port, args.allow_host)
    except OSError:
        worker.close()
        where = f"{args.host}, port {port}"
        settings().error(f"cannot listen on {where}; if it is taken, choose another")
    served.include_router(health.routes(worker))
    served.include_router(metrics.routes(measured))
    served.include_router(results.routes(kept))
    served.include_router(store.routes(recordings))
    if watch is not None:
        served.include_router(robot_routes(traffic))
    print(f"The playground is open at {demo.local_url}", flush=True)
    reopening.watch(worker)
    health.wait_for_signal(reopening.asked)
    worker.close()
    if robot_server is not None:
        robot_server.close()
    demo.close()
    if files is not None:
        files.cleanup()
        del os.environ["GRADIO_TEMP_DIR"]
    return reopening.arguments


def private_folder(worker: Worker) -> tempfile.TemporaryDirectory | None:
    """Where visitors' files lie until the program ends: readable by this user alone. None where
    GRADIO_TEMP_DIR names a folder, which is kept."""
    try:
        if named := os.environ.get("GRADIO_TEMP_DIR"):
            os.makedirs(named, mode=0o700, exist_ok=True)
            return None
        files = tempfile.TemporaryDirectory(prefix="pi0-playground-")
    except OSError as error:
        worker.close()
        settings().error(f"no folder for visitors' files ({error}); GRADIO_TEMP_DIR names another")
    os.environ["GRADIO_TEMP_DIR"] = files.name
    return files


def serve_robots(worker: Worker, robots: Mapping[str, Robot], args: argparse.Namespace, traffic):
    """The server of `--robots` or `--shadow`, None without them; raises OSError if its port is
    taken. traffic: the `robot_traffic.Traffic` that
    takes what robots send and get."""
    port = args.robots or ROBOTS_PORT
    if args.shadow is not None:
        from playground.serving.robot_shadow import Shadow

        return Shadow(worker, robots, args.host, port, args.shadow, traffic)
    if args.robots is None:
        return None
    from playground.serving.robot_socket import RobotServer

    key = os.environ.get("PI0_PLAYGROUND_ROBOT_KEY", "")
    return RobotServer(worker, robots, args.host, port, key, traffic)


if __name__ == "__main__":
    main()
