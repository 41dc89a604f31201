"""Opens the playground: `python app.py`, on the bundled policies. A Space starts this file too."""

import argparse
import logging
import os

from playground import health, local
from playground.ui import look, page, results
from playground.worker import Worker

# Each waiting visitor holds a thread. Pictures are private: no history of runs.
SERVER = dict(max_threads=64, max_file_size="10mb", show_error=False, run_history=False)


def settings() -> argparse.ArgumentParser:
    told = argparse.ArgumentParser(prog="app.py", description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    told.add_argument("--host", default=host, help="address to listen on (%(default)s)")
    told.add_argument("--port", type=int, default=port, help="port to listen on (%(default)s)")
    told.add_argument("--policies", nargs="+", default=[], help="by openpi's names, or bundled")
    told.add_argument("--folder", help="a checkpoint of your own; it may need the next three")
    told.add_argument("--config", help="openpi's name for its config, or a JSON file")
    told.add_argument("--robot", help="for a LeRobot checkpoint")
    told.add_argument("--asset-id", help="whose norm stats, where not the config's")
    return told


def main() -> None:
    told = settings().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        asked, robots = local.chosen(
            told.policies, told.folder, told.config, told.robot, told.asset_id
        )
    except ValueError as error:
        settings().error(str(error))
    worker = Worker("playground.loading:load", {"policies": asked})
    kept = results.Results()
    demo = page.build(worker, list(robots), next(iter(robots.values())), kept)
    app, address, _ = demo.launch(
        **SERVER,
        server_name=told.host,
        server_port=told.port,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=look.THEME,
        css=look.css(),
    )
    app.include_router(health.routes(worker))
    app.include_router(results.routes(kept))
    print(f"The playground is open at {address}", flush=True)
    health.wait_for_signal()
    worker.close()
    demo.close()


if __name__ == "__main__":
    main()
