"""Parts of the page without a server."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import gradio as gr

T = TypeVar("T")


def in_a_thread(make: Callable[[], T]) -> T:
    """What `make` gives, in a thread that has no loop yet."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(make).result()


def in_a_loop(make: Callable[[], T]) -> T:
    """What `make` gives. It runs inside a loop, or Gradio leaves one open, and in a thread, since
    the browser of other tests has a loop in this one."""

    async def call():
        return make()

    return in_a_thread(lambda: asyncio.run(call()))


def built(make: Callable[[], T]) -> tuple[gr.Blocks, T]:
    """Blocks, and what `make` laid out in them."""

    def lay_out():
        with gr.Blocks(analytics_enabled=False) as page:
            return page, make()

    return in_a_loop(lay_out)
