"""Agents use the endpoints as tools, with the official client of the Model Context Protocol."""

import asyncio
import base64
import contextlib
import json

import pytest
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from tests.support.blocks import in_a_thread
from tests.support.table import in_all
from tests.support.visitor import PI0, ROOT

EXAMPLE = ROOT / "assets/examples/tabletop-red.png"
PICTURE = "data:image/png;base64," + base64.b64encode(EXAMPLE.read_bytes()).decode()
OBSERVATION = {"images": in_all(PICTURE), "policies": [PI0], "num_steps": 10}
ENDPOINTS = {
    *("infer", "denoise", "attention_mask", "attention", "what_matters", "causal_trace"),
    *("knockout", "occlusion", "norm_stats"),
}


@pytest.fixture
def asked(app, policies):
    """Runs an agent's session: gives what a function of a connected client returns."""

    @contextlib.asynccontextmanager
    async def connected():
        async with (
            streamable_http_client(f"{app}/gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            yield session

    async def run(function):
        async with connected() as session:
            return await function(session)

    return lambda function: in_a_thread(lambda: asyncio.run(run(function)))


def test_an_agent_finds_the_endpoints_with_their_descriptions(asked, app):
    tools = {tool.name: tool for tool in asked(lambda session: session.list_tools()).tools}
    assert set(tools) == ENDPOINTS
    infer = tools["infer"]
    assert infer.description.startswith("Runs policies on one observation and gives the chunk")
    assert "Returns by policy: badge and notice (say them wherever" in infer.description
    assert infer.inputSchema["required"] == ["prompt", "images"]


def test_an_agent_gives_a_picture_and_prompts_and_gets_numbers_and_sentences(asked, app):
    prompts = ("touch the red cube", "touch the blue cube")

    async def agent(session):
        chunks = [await session.call_tool("infer", {**OBSERVATION, "prompt": p}) for p in prompts]
        given = {key: value for key, value in OBSERVATION.items() if key != "num_steps"}
        mask = await session.call_tool("attention_mask", {**given, "prompt": prompts[0]})
        return [*chunks, mask]

    answers = asked(agent)
    assert not any(answer.isError for answer in answers)
    red, blue, mask = (json.loads(answer.content[0].text)[PI0] for answer in answers)
    assert red["badge"] == "small bundled policy"
    assert "simulated table" in red["notice"]
    assert red["actions"] != blue["actions"]
    assert "attend" in mask["summary"]
    # What a program gets that uploads the same picture.
    given = {**OBSERVATION, "images": in_all(handle_file(str(EXAMPLE)))}
    program = Client(app, verbose=False)
    uploaded = program.predict(**given, prompt=prompts[0], api_name="/infer")[PI0]
    assert red["actions"] == uploaded["actions"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("infer", {"images": in_all("http://127.0.0.1/x.png")}, "give an uploaded picture"),
        ("infer", {"images": in_all(PICTURE[:-5] + "!")}, "no base64"),
        ("infer", {"images": {"base_0_rgb": "data:image/png;base64,AAAA"}}, "base_0_rgb"),
        ("infer", {"images": {"left": PICTURE}}, "there are ['base_0_rgb'"),
        ("infer", {"colour": "red"}, "colour"),
        ("denoise_all", {}, "Unknown tool"),
    ],
)
def test_an_agent_is_answered_what_to_mend(asked, name, arguments, message):
    given = {**OBSERVATION, "prompt": "touch the red cube", **arguments}
    answer = asked(lambda session: session.call_tool(name, given))
    assert answer.isError
    assert message in answer.content[0].text
