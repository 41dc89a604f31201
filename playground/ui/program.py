"""The program from its worker to its end: the page, and the server for robots beside it. Gradio is
imported only as the page is made.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping

from playground.robots.robot import Robot
from playground.serving.worker import Worker
from playground.ui.arguments import ROBOTS_PORT, settings


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
        served = page.serve(demo, args.host, port, args.allow_host, mcp=args.mcp)
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
