"""Parts of the page without a server."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import gradio as gr

T = TypeVar("T")


def built(make: Callable[[], T]) -> tuple[gr.Blocks, T]:
    """Blocks, and what `make` laid out in them. It runs inside a loop, or Gradio leaves one open,
    and in a thread, since the browser of other tests has a loop in this one."""

    async def lay_out():
        with gr.Blocks(analytics_enabled=False) as page:
            return page, make()

    with ThreadPoolExecutor() as threads:
        return threads.submit(lambda: asyncio.run(lay_out())).result()
