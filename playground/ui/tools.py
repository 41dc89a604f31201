"""The endpoints as tools for agents, by the Model Context Protocol (`app.py --mcp`).

Gradio serves them: each endpoint's docstring describes its tool, and a call goes the way of every
other program's, through the same guard and the same queue.
"""

import json
import logging

import gradio as gr


def answer_in_json(page: gr.Blocks) -> None:
    """Has the tools of a page that is served answer in JSON: Gradio (6.31) writes Python's own
    notation, which no agent's parser reads. Raises RuntimeError where Gradio could not set the
    tools up."""
    from mcp.types import TextContent

    server = page.mcp_server_obj
    if server is None:
        raise RuntimeError(page.mcp_error)
    for name in ("mcp", "httpx"):  # each call several lines
        logging.getLogger(name).setLevel(logging.WARNING)
    server.postprocess_output_data = lambda data, root_url: [
        TextContent(type="text", text=json.dumps(output)) for output in data
    ]
