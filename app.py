"""Opens the playground: `python app.py`, on the bundled policies. A Space starts this file too."""

import argparse
import logging
import os

from playground import health
from playground.catalog import BUNDLED_PAIR
from playground.robots import ROBOTS
from playground.ui import look, page, results
from playground.worker import Worker

MAX_UPLOAD = "10mb"
THREADS = 64  # each waiting visitor holds one


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    parser.add_argument("--host", default=host, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=port, help="port to listen on (%(default)s)")
    parser.add_argument("--policies", nargs="+", default=BUNDLED_PAIR, help="names (%(default)s)")
    return parser.parse_args(arguments)


def main() -> None:
    told = settings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    worker = Worker("playground.loading:load", {"policies": list(told.policies)})
    kept = results.Results()
    demo = page.build(worker, told.policies, ROBOTS["tabletop"], kept)
    app, address, _ = demo.launch(
        server_name=told.host,
        server_port=told.port,
        prevent_thread_lock=True,
        quiet=True,
        max_threads=THREADS,
        max_file_size=MAX_UPLOAD,
        show_error=False,
        run_history=False,  # camera pictures are private
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
