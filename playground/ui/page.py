"""The page: lays out the observation, the strip and the tabs, and serves them."""

import os
from collections.abc import Iterable, Mapping

import gradio as gr
from fastapi import FastAPI

from playground.robots.examples import examples
from playground.robots.robot import Robot
from playground.run_file import MAX_FILE
from playground.serving import queue
from playground.serving.worker import Worker
from playground.ui import (
    appearance,
    checkpoints,
    endpoint,
    guide,
    observation,
    progress,
    prompt_bar,
    streaming,
    tabs,
    tools,
    visits,
    wiring,
)
from playground.ui.episodes.store import Recordings
from playground.ui.guard import connections, door, shares
from playground.ui.guard.hosts import Hosts
from playground.ui.handlers import Handlers
from playground.ui.progress import Progress
from playground.ui.results import Results
from playground.ui.robots import Watch
from playground.ui.setup import Setups
from playground.views import overview

_LINK = appearance.component("copy_link.js")
_THREADS = queue.SIZE + 32  # each waiting visitor holds one
_MAX_UPLOAD = MAX_FILE  # a run's ZIP; pictures are held to less
_MAX_EVENTS = 256  # Gradio's own queue; the worker's is shorter and the one that counts
_LOOK_EVERY_S = 0.01  # for calls in that queue: Gradio looks 1,000 times a second, asked or not
# Gradio keeps a third of a MB of every visitor, 10,000 of them by itself. Whoever comes back after
# so many others finds the form as the browser keeps it, without the last result.
_VISITORS = 256
# It also keeps the last 10,000 calls, and sums them up after each for a page that is off.
_UNWATCHED = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(1 << 60)}


def build(
    worker: Worker,
    robots: Mapping[str, Robot],
    results: Results,
    reopening: checkpoints.Reopening | None = None,
    recordings: Recordings | None = None,
    watch: Watch | None = None,
) -> gr.Blocks:
    """The page for a worker that has loaded these policies, or is about to.

    robots: by policy, with its conventions. results: what runs leave. reopening: takes what the
    page asks to be opened instead; None where it may not ask. recordings: the datasets that
    visitors open; those of a public page if None. watch: on the robots that are served; None where
    there are none, or strangers would see their pictures.
    """
    recordings = recordings or Recordings(public=True)
    setups = Setups(worker, robots)
    setup = setups.of()
    os.environ.update(_UNWATCHED)
    with streaming.Blocks(title=appearance.TITLE, analytics_enabled=False, fill_width=True,
                   delete_cache=(600, int(shares.KEPT_S))) as page:  # fmt: skip
        with gr.Row(elem_classes="top"):
            gr.HTML(
                f"<h1>{appearance.TITLE}</h1>", apply_default_css=False, elem_classes="masthead"
            )
            strip = gr.HTML(Progress(setup).payload(), **progress.COMPONENT, elem_id="strip")
            link = gr.HTML({}, **_LINK, elem_id="link")
            guide.tour()
        if reopening is not None:
            checkpoints.tell(reopening)
        bar = prompt_bar.build(setup, next(iter(examples(setup.robot)), None))
        with gr.Row(elem_classes="body"):
            with gr.Column(scale=0, min_width=240, elem_classes="left"):
                gr.HTML(overview.reference(), **overview.GLANCE, elem_id="glance")
                form = observation.build(setup, setups.most_cameras(), bar)
                if reopening is not None:
                    checkpoints.build(reopening)
            with gr.Column(scale=1, min_width=320, elem_classes="right"):
                public, watched = recordings.public, watch is not None
                shown = tabs.build(list(robots), setup, form, public=public, watched=watched)
        handlers = Handlers(setups, worker, results, form, shown, strip, visits.build())
        wiring.wire(page, handlers, recordings, link, watch)
        endpoint.build(setups, worker, results)
    page.queue(max_size=_MAX_EVENTS, default_concurrency_limit=None, api_open=False)
    page._queue.sleep_when_free = _LOOK_EVERY_S
    return page


def serve(
    page: gr.Blocks, host: str, port: int, names: Iterable[str] = (), *, mcp: bool = False
) -> FastAPI:
    """Starts serving, in threads of its own, and gives the web application to add routes to.
    names: under which the page is reached beside its own, through a proxy for example. mcp: whether
    agents are offered the endpoints as tools."""
    served, _, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,  # as an address has it
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        _frontend=False,  # asks itself for its page, and where that takes 3 s does not start
        max_threads=_THREADS,
        max_file_size=_MAX_UPLOAD,
        show_error=False,
        state_session_capacity=_VISITORS,
        run_history=False,  # camera pictures are private
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        mcp_server=mcp,
        app_kwargs={"lifespan": door.around(page, Hosts(host, names))},
        theme=appearance.THEME,
        css=appearance.css(),
        head=appearance.head(),
    )
    if mcp:
        tools.answer_in_json(page)
    config = page.server.config  # read at each connection
    config.http_protocol_class = connections.hurried(config.http_protocol_class)
    return served
