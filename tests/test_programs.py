"""The endpoints, asked as a program would, and the plain functions behind them."""

import contextlib
import io
import re
import urllib.error
import urllib.request

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

from playground import summaries
from playground.robots.builtin import TABLETOP
from playground.robots.transforms import load_image
from playground.trace import PADDING, Options, RawObservation, load
from tests.support import traces
from tests.support.table import in_all
from tests.support.visitor import FAST, PI0, ROOT, until
from tests.support.visitor import answers as responds

BLOCKS = {
    f"{path.name} {number}": block
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
}
PROMPT = "touch the red cube"


@pytest.fixture(scope="module")
def client(app):
    until(lambda: responds(f"{app}/readyz"))
    return Client(app, verbose=False)


@pytest.fixture(scope="module")
def observation(photo):
    state = np.array(TABLETOP.resting_state)
    return RawObservation("tabletop", in_all(load_image(photo)), {}, PROMPT, state)


def asked(client, photo, api_name, **more):
    images = in_all(handle_file(photo))
    return client.predict(prompt=PROMPT, images=images, api_name=api_name, **more)


# --- the endpoints ------------------------------------------------------------------------------


def test_programs_get_what_python_computes(app, client, policies, photo, observation):
    how = {"num_steps": 4, "seed": 3, "max_tokens": 32, "constrained": True}
    expected = {
        name: summaries.run(policies[name], observation, Options(attention=True, **how))
        for name in (PI0, FAST)
    }
    chunks = asked(client, photo, "/infer", **how)
    steps = asked(client, photo, "/denoise", **how)
    masks = asked(client, photo, "/attention_mask", seed=3, max_tokens=32, constrained=True)
    looked = asked(client, photo, "/attention", which="prefix", **how)
    for name, trace in expected.items():
        for answer in (chunks[name], steps[name], masks[name], looked[name]):
            assert (answer["badge"], answer["notice"]) == (trace.info.badge, trace.info.notice)
        if trace.actions is None:
            assert chunks[name]["decode_failure"] == trace.decode_failure
        else:
            np.testing.assert_allclose(chunks[name]["actions"], trace.actions, atol=1e-4)
        assert masks[name]["mask"] == summaries.attention_mask(trace)["mask"]
        there, here = looked[name], summaries.attention(trace, "prefix")
        assert there["blocks"] == here["blocks"]
        np.testing.assert_allclose(there["mass"], here["mass"], atol=0.01)
    here = summaries.denoising(expected[PI0])
    np.testing.assert_allclose(steps[PI0]["estimates"], here["estimates"], atol=1e-4)
    assert steps[PI0]["times"] == here["times"]
    assert not any(answer["arrays"] for answer in (*chunks.values(), *steps.values()))
    ids = [token.id for token in expected[FAST].tokens]
    assert [token["id"] for token in steps[FAST]["tokens"]] == ids
    with urllib.request.urlopen(f"{app}/{chunks[PI0]['trace']}") as file:
        trace = load(io.BytesIO(file.read()))
    assert (trace.inputs.prompt, trace.options.constrained) == (PROMPT, True)


def test_what_cannot_be_asked_is_said(client, photo):
    picture = in_all(handle_file(photo))
    for images, more, message in (
        ({"left_eye": handle_file(photo)}, {}, "no camera slots"),
        (in_all("/etc/passwd"), {}, "give an uploaded picture"),
        (in_all({"path": "/etc/passwd"}), {}, "403"),
        (picture, {"policies": ["other"]}, "no loaded policy is called other"),
        (picture, {"state": [0.0]}, "14 values"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(PROMPT, images, api_name="/infer", **more)
    with pytest.raises(Exception, match=r'which must be "suffix" or "prefix"; .both. came'):
        asked(client, photo, "/attention", policies=[PI0], which="both")
    with pytest.raises(Exception, match="choose something to vary"):
        asked(client, photo, "/what_matters", policies=[PI0], groups=[])


def test_programs_get_causes(client, photo):
    """Where two prompts differ, and what a cut connection does; both policies, cheaply."""
    other = {"counterfactual": "touch the blue cube", "patches": False}
    found = asked(client, photo, "/causal_trace", policies=[FAST], noises=1, **other)[FAST]
    everything = next(i for i, g in enumerate(found["groups"]) if g["kind"] == "everything")
    assert found["badge"]
    if found["distinguished"]:
        assert found["recovered"][everything][-1] == pytest.approx(1, abs=1e-3)
    cuts = [{"query": "actions", "key": "text", "layers": [1]}]
    how = {"policies": [PI0], "num_steps": 2, "noises": 1}
    found = asked(client, photo, "/knockout", cuts=cuts, **how)[PI0]
    assert found["change"] > 0
    assert np.shape(found["before"]) == np.shape(found["after"]) == (50, 14)
    ran = asked(client, photo, "/infer", cuts=cuts, policies=[PI0], num_steps=2)[PI0]
    np.testing.assert_allclose(ran["actions"][0], found["after"], atol=1e-4)
    assert any("actions to text in layer 1" in warning for warning in ran["warnings"])
    for cuts, words in (
        ([], "nothing is cut"),
        ([{"query": "elbow", "key": "text"}], "nothing is called 'elbow'"),
    ):
        refused = asked(client, photo, "/knockout", cuts=cuts, **how)[PI0]
        assert words in refused["failure"]
    with pytest.raises(Exception, match="counterfactual is empty"):
        asked(client, photo, "/causal_trace", policies=[PI0])
    with pytest.raises(Exception, match="a cut is an object with query and key"):
        asked(client, photo, "/knockout", cuts=[{"query": 3}], **how)


def test_endpoints_tell_their_arguments(client):
    public = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    running = {"/infer", "/denoise", "/attention_mask", "/attention", "/what_matters"}
    running |= {"/causal_trace", "/knockout", "/occlusion"}
    assert set(public) == running | {"/norm_stats"}
    for name, endpoint in public.items():
        given = {argument["parameter_name"]: argument for argument in endpoint["parameters"]}
        assert {"state", "policies", "robot"} <= set(given)
        assert name not in running or {"prompt", "images", "modes", "seed"} <= set(given)
        assert endpoint["description"]


def printed(code):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    return output.getvalue()


def test_documented_requests_run(app, client, monkeypatch):
    (example,) = [block for block in BLOCKS.values() if "gradio_client" in block]
    monkeypatch.chdir(ROOT)
    output = printed(example.replace("http://127.0.0.1:7860", app))
    words = re.findall(r"without “(\w+)” [\d.]+ [\d.]+", output)
    assert words == PROMPT.split()


# By a word of the code, what it prints at least.
PRINTED = {
    "np.shape(trace.actions)": ["(1, 50, 14)"],
    "sensitivity": ["may attend to", "times the seed spread", "repeated bit for bit"],
    "step.v_t": ["1.0 (1, 50, 14)"],
    "patching": [
        "“red” for “blue” acts through the picture",
        "(1, 50, 14)",
        "the chunk changes by",
    ],
    "open_dataset": ["touch the red cube", "(224, 224, 3) (50, 14)"],
}


# Those that need a server, or a robot's episode, run where there is one.
@pytest.mark.parametrize(
    "name", [name for name in BLOCKS if not re.search(r"Client\w*\(|robot_traffic", BLOCKS[name])]
)
def test_documented_code_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    (expected,) = [words for word, words in PRINTED.items() if word in BLOCKS[name]]
    output = printed(BLOCKS[name])
    for words in expected:
        assert words in output


def test_a_program_that_cancels_frees_the_worker(app, client, photo):
    """One that leaves is among the faults of the load test."""

    def status():
        return httpx.get(f"{app}/readyz").json()

    until(lambda: not status()["running"])
    done, long = status()["completed"], {"num_steps": 100, "num_samples": 32}
    images = in_all(handle_file(photo))
    job = client.submit(PROMPT, images, policies=[PI0], **long, api_name="/infer")
    until(lambda: status()["running"] and job.status().progress_data)
    job.cancel()
    until(lambda: not status()["running"])
    assert status()["completed"] == done
    assert asked(client, photo, "/infer")[PI0]["actions"]


def test_a_large_answer_leaves_as_arrays_by_link(app, client, policies, photo, observation):
    """And holds what Python computes; a summary of another kind is had by its own link."""
    how = {"num_steps": 8, "num_samples": 32, "seed": 3}
    here = summaries.run(policies[PI0], observation, Options(**how))
    answer = asked(client, photo, "/denoise", policies=[PI0], **how)[PI0]
    assert here.estimates.size > 20_000
    assert (answer["estimates"], answer["speeds"], answer["times"]) == (None, None, None)
    assert answer["badge"] == here.info.badge
    link = answer["arrays"]
    with urllib.request.urlopen(f"{app}/{link}") as file:
        found = dict(np.load(io.BytesIO(file.read())))
    expected = summaries.denoising(here)
    assert found.keys() == {"times", "estimates", "speeds"}
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)
    with urllib.request.urlopen(f"{app}/{link.replace('denoising', 'chunk')}") as file:
        actions = np.load(io.BytesIO(file.read()))["actions"]
    np.testing.assert_allclose(actions, here.actions, atol=1e-4)
    for other in ("attention-suffix", "guess"):  # none was measured; there is no such summary
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{app}/{link.replace('denoising', other)}")


# --- the functions ------------------------------------------------------------------------------


def test_a_trace_s_answers_add_up():
    flow = traces.with_attention(traces.pi0_trace())
    found = summaries.denoising(flow)
    end = np.array(found["estimates"][-1])
    np.testing.assert_allclose(end, flow.actions, atol=1e-5)  # the last step ends at its estimate
    assert np.shape(found["speeds"]) == (len(flow.times) - 1, len(flow.info.actions))
    np.testing.assert_allclose(np.sum(summaries.attention(flow)["mass"], axis=-1), 1, atol=2e-3)
    mask = np.array([list(row) for row in summaries.attention_mask(flow)["mask"]], int)
    np.testing.assert_array_equal(mask, flow.mask)
    assert (mask == PADDING).any()


def test_attention_that_was_not_measured_is_not_made_up():
    with pytest.raises(ValueError, match="measured no attention"):
        summaries.attention(traces.pi0_trace())


def test_tokens_say_from_where_on_they_decode():
    failed = summaries.denoising(traces.fast_trace(count=24, failure="no end"))
    assert failed["decode_failure"] == "no end"
    decodes = [token["decodes"] for token in failed["tokens"]]
    assert any(decodes)
    assert not any(decodes[12:])
    assert summaries.denoising(traces.fast_trace())["tokens"][-1]["decodes"]
