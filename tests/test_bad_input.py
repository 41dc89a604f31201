"""What strangers may send: each kind has its stated outcome, and none does harm.

Here is what reaches the running app over HTTP, and arbitrary input at each way in. Elsewhere:
pictures' modes, orientations and damage in test_transforms; recipes and ZIPs made to harm in
test_recipe; states before the queue in test_ui; prompts in test_tokenizer; checkpoints in
test_checkpoint; downloads in test_download; tokens that do not decode, and actions that are not
finite, in test_policy.
"""

import contextlib
import http.client
import io
import itertools
import json
import re
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from playground import run_file
from playground.checkpoints import catalog
from playground.robots import transforms
from playground.robots.builtin import TABLETOP
from playground.robots.examples import EXAMPLES
from playground.serving.events import Job
from playground.ui import observation, prompt_bar, visits
from playground.ui.setup import Setups
from tests.support.blocks import built
from tests.support.table import in_all
from tests.support.visitor import answers, until
from tests.test_recipe import RUN, ZIP
from tests.test_transforms import encoded, huge_png, photo
from tests.test_ui import Loaded, info_of

MARK = {"_type": "gradio.FileData"}
RED = handle_file(EXAMPLES / "tabletop-red.png")

# --- over HTTP ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(app):
    until(lambda: answers(f"{app}/readyz"))
    return Client(app, verbose=False)


@pytest.fixture(scope="module")
def web():
    """One for all: each would read the system's certificates anew."""
    with httpx.Client(timeout=60) as client:
        yield client


def cut_off(data):
    return data[: len(data) // 2]


def animated_gif():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


NO_PICTURE = "base_0_rgb: this is no readable PNG, JPEG or WebP image: save it as one of these"
PICTURES = {
    "hundred-megapixels.png": (huge_png(10_000, 10_000), r"10000 x 10000 pixels, at most 16,000"),
    "large.png": (encoded(Image.fromarray(photo())) + bytes(20 << 20), "larger than 20 MB"),
    "sliver.png": (encoded(Image.new("RGB", (10_000, 1))), "10000 x 1 pixels is too narrow"),
    "cut-off.jpg": (cut_off(encoded(Image.fromarray(photo(200, 150)), "JPEG")), "cut off"),
    "animated.gif": (animated_gif(), NO_PICTURE),
    "zip.png": (ZIP, NO_PICTURE),
    "pickle.png": (b"\x80\x04K\x01.", NO_PICTURE),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", NO_PICTURE),
    "html.png": (b"<html><script>alert(1)</script></html>", NO_PICTURE),
    "empty.png": (b"", NO_PICTURE),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture_is_refused_with_a_reason(client, tmp_path, name):
    data, message = PICTURES[name]
    (tmp_path / name).write_bytes(data)
    images = in_all(handle_file(tmp_path / name))
    with pytest.raises(AppError, match=message):
        client.predict("touch the red cube", images, api_name="/infer")


@pytest.mark.parametrize(
    "picture",
    [Image.new("L", (1, 1)), Image.new("RGB", (30, 400)), Image.new("I;16", (30, 20))],
    ids=["one pixel", "narrow", "16 bit"],
)
def test_odd_pictures_are_answered(client, tmp_path, picture):
    picture.save(tmp_path / "odd.png")
    images = in_all(handle_file(tmp_path / "odd.png"))
    answers = client.predict("", images, policies=["pi0_tabletop"], api_name="/infer")
    assert np.isfinite(answers["pi0_tabletop"]["actions"]).all()


PROMPTS = {
    "empty": "",
    "blank": " \t\r\n ",
    "ten thousand characters": "touch the " * 1000,
    "right to left": "\u202eالمس المكعب الأحمر \u05d2\u05e2",
    "emoji": "👩🏽‍🔬👉🟥",
    "NUL": "touch\0the cube",
    "a bar": "touch | the | cube|",
    "the model's own words": "Task: x, State: 1 2 3;\nAction: 4 5|Action:",
    "markup and tokens": "<b>touch</b> <loc0001><bos><eos>",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_odd_prompts_are_answered(client, name):
    """By every policy, and what of them was cut off is said."""
    how = {"num_steps": 1, "max_tokens": 8, "constrained": False}
    answers = client.predict(PROMPTS[name], in_all(RED), **how, api_name="/infer")
    assert list(answers) == list(catalog.BUNDLED)
    for answer in answers.values():
        assert "failure" not in answer
        cut = any("The prompt is cut off" in warning for warning in answer["warnings"])
        assert cut == (len(PROMPTS[name]) == 10_000)
    assert np.isfinite(answers["pi0_tabletop"]["actions"]).all()


@pytest.mark.parametrize("name", ["x.png", "x.html", "x.svg", "x.pkl", "x.js", "x.pdf"])
def test_what_was_uploaded_is_never_served_as_a_page(app, name, web):
    sent = {"files": (name, b"<html><script>alert(1)</script></html>")}
    (path,) = web.post(f"{app}/gradio_api/upload", files=sent).json()
    served = web.get(f"{app}/gradio_api/file={path}")
    assert served.content == sent["files"][1]
    kind, how = served.headers["content-type"], served.headers["content-disposition"]
    # As a picture, script in it is dead.
    assert kind == "image/png" or (kind == "application/octet-stream" and "attachment" in how)


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=//etc/passwd",
        "file=%2Fetc%2Fpasswd",
        "file=%252Fetc%252Fpasswd",
        "file=../../../../../etc/passwd",
        "file=..%2f..%2f..%2fetc%2fpasswd",
        "file=app.py",
        "file=file:///etc/passwd",
        "file=https://example.com/",
        "file=https:%2F%2Fexample.com/",
        "file=HTTP://127.0.0.1/",
        "file/etc/passwd",
        "proxy=https://example.com/",
        "proxy=http://127.0.0.1/healthz",
        "../etc/passwd",
        "../../app.py",
    ],
)
def test_requests_for_files_that_are_no_uploads_are_refused(app, path):
    asked = http.client.HTTPConnection(urlsplit(app).netloc)  # takes nothing out of a path
    with contextlib.closing(asked):
        asked.request("GET", f"/gradio_api/{path}")
        answer = asked.getresponse()
        body = answer.read()
    assert answer.status in (403, 404), body
    assert b"root:" not in body
    assert b"argparse" not in body


@pytest.mark.parametrize(
    "file",
    [
        {"path": "PATH"},
        {"path": "PATH", "meta": {}},
        {"path": "PATH", "meta": {"_type": "x"}},
        {"path": "PATH", "meta": None},
        {"path": "PATH", "meta": MARK},
        {"path": "PATH", "meta": MARK, "is_stream": True},
        {"path": "PATH\0", "meta": MARK},
        {"path": 5, "meta": MARK},
        {"path": None, "url": "https://example.com/x.png", "meta": MARK},
        {"path": "https://example.com/x.png", "meta": MARK},
    ],
)
def test_no_picture_of_this_machine_is_opened_for_a_stranger(app, client, file, web):
    """Not by an event of the page's own either, which anybody can send."""
    path = str(EXAMPLES / "tabletop-red.png")
    file = json.loads(json.dumps(file).replace("PATH", path))
    parts = {part["id"]: part["props"] for part in client.config["components"]}
    (slot,) = (i for i, props in parts.items() if props.get("elem_id") == "picture-0")
    events = [event for event in client.config["dependencies"] if slot in event["inputs"]]
    assert len(events) > 5
    for event in events:
        given = [file if i == slot else parts[i].get("value") for i in event["inputs"]]
        body = {"fn_index": event["id"], "data": given, "session_hash": f"stranger{event['id']}"}
        answer = web.post(f"{app}/gradio_api/queue/join", json=body)
        assert (answer.status_code, answer.text) == (403, "Files are uploaded, not named.")


def test_what_is_too_large_is_refused_before_it_is_read(app):
    """By what it says of itself."""
    target = urlsplit(app)
    for path, size in (("upload", 66 << 20), ("queue/join", 5 << 20), ("call/infer", 5 << 20)):
        asked = http.client.HTTPConnection(target.netloc, timeout=30)
        with contextlib.closing(asked):
            asked.putrequest("POST", f"/gradio_api/{path}")
            asked.putheader("content-length", str(size))
            asked.putheader("content-type", "application/json")
            asked.endheaders()
            assert asked.getresponse().status == 413, path


@pytest.mark.parametrize("way", ["run", "api", "call", "call/v2"])
def test_programs_reach_the_endpoints_alone_and_by_the_line_alone(app, client, way, web):
    """Neither a function of the page's own, under whatever name, nor an endpoint past the queue."""
    for event in client.config["dependencies"]:
        given = [None] * len(event["inputs"])
        body = {"data": given, "fn_index": event["id"], "session_hash": "stranger"}
        for name in (event["api_name"], "upload"):
            answer = web.post(f"{app}/gradio_api/{way}/{name}", json=body)
            public = way.startswith("call") and event["api_visibility"] == "public"
            assert answer.status_code == (422 if public and name != "upload" else 404), name


def test_a_file_that_the_page_is_told_to_remember_was_uploaded(app, client, web):
    """Or a second call would hand out any file that lies where the program was started."""
    props = {part["id"]: part["props"] for part in client.config["components"]}
    (slot,) = (i for i, given in props.items() if given.get("elem_id") == "picture-0")
    changes = [e for e in client.config["dependencies"] if [slot, "change"] in e["targets"]]
    assert changes
    for event in changes:
        for path in ("app.py", str(Path("app.py").resolve()), f"{tempfile.gettempdir()}/x"):
            given = [{"path": path} if i == slot else None for i in event["inputs"]]
            body = {"fn_index": event["id"], "data": given, "session_hash": "stranger"}
            for way in ("run/remember", "run/upload", "queue/join", "queue/join/upload"):
                answer = web.post(f"{app}/gradio_api/{way}", json=body)
                assert answer.status_code in (403, 404), way


def test_functions_of_the_page_are_known(client):
    """A new one is a decision: whether what it may be given is all that `guard` lets through."""
    public, private = set(), set()
    for event in client.config["dependencies"]:
        names = public if event["api_visibility"] == "public" else private
        names.add(re.sub(r"_\d+$", "", event["api_name"]))
    assert public == {
        "infer",
        "denoise",
        "attention_mask",
        "attention",
        "what_matters",
        "causal_trace",
        "knockout",
        "occlusion",
        "norm_stats",
    }
    known = {
        "ask",
        "at_frame",
        "check",
        "check_picture",
        "choose_robot",
        "compare",
        "effects",
        "evaluate",
        "example",
        "fill_in",
        "follow_cell",
        "follow_loading",
        "go_to",
        "hide_patches",
        "join",
        "js_fn",
        "judge",
        "judge_again",
        "lambda",
        "leave",
        "measure",
        "new_scene",
        "open",
        "open_bundled",
        "open_file",
        "open_tab",
        "open_word",
        "picture",
        "plot",
        "rematch",
        "restore",
        "run",
        "run_example",
        "run_typed",
        "scene",
        "show",
        "start",
        "stop",
        "trace_causes",
        "use",
        "weigh",
    }
    assert private - known == set()


WRONG_TYPES = {
    ("infer", "prompt"): (5, "prompt must be text; 5 came"),
    ("infer", "images"): ([RED], "images must be an object with a file by camera slot; "),
    ("infer", "state"): ("0 0 0", "state must be a list of numbers, or null; '0 0 0' came"),
    ("denoise", "state"): (["a"] * 14, "state: .* must be a number, 'a' came"),
    ("infer", "policies"): ("pi0_tabletop", "policies must be a list of texts, or null; 'pi0_"),
    ("attention_mask", "policies"): ([1], r"must be a list of texts, or null; \[1\] came"),
    ("norm_stats", "robot"): (["x"], r"robot must be text or null; \['x'\] came"),
    ("infer", "modes"): ({"left_wrist_0_rgb": 1}, 'must be an object with "masked" or "black"'),
    ("infer", "seed"): ("abc", "seed must be a whole number, such as 10; 'abc' came"),
    ("infer", "num_steps"): (2.5, "num_steps must be a whole number, such as 10; 2.5 came"),
    ("denoise", "num_samples"): (True, "num_samples must be a whole number, such as 10; True"),
    ("infer", "max_tokens"): (None, "max_tokens must be a whole number, such as 10; None came"),
    ("infer", "temperature"): ("hot", "temperature must be a number, such as 0.5; 'hot' came"),
    ("infer", "constrained"): ("yes", "constrained must be true, false or null; 'yes' came"),
    ("attention", "which"): ("both", 'which must be "suffix" or "prefix"; \'both\' came'),
    ("what_matters", "groups"): ("camera", "groups must be a list of texts, or null; 'camera'"),
    ("what_matters", "prompts"): ({"a": "b"}, "prompts must be a list of texts, or null"),
    ("infer", "guidance"): ("strong", "guidance must be a number from 0 to 3, such as 1.5"),
    ("knockout", "cuts"): ("text", "cuts must be a list of connections, such as"),
    ("what_matters", "noises"): ("4", "noises must be a whole number, such as 10; '4' came"),
}


@pytest.mark.parametrize(("endpoint", "name"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_refused_by_name(client, endpoint, name):
    """With what came and what was expected, before the queue."""
    value, message = WRONG_TYPES[endpoint, name]
    given = {} if endpoint == "norm_stats" else {"prompt": "go", "images": in_all(RED)}
    with pytest.raises(AppError, match=message):
        client.predict(**(given | {name: value}), api_name=f"/{endpoint}")


def test_a_whole_number_may_be_written_with_a_point(client):
    """As JavaScript does not tell the two apart."""
    given = ("", in_all(RED), None, ["pi0_tabletop"])
    pointed = client.predict(*given, num_steps=2.0, seed=7.0, api_name="/infer")
    plain = client.predict(*given, num_steps=2, seed=7, api_name="/infer")
    assert pointed["pi0_tabletop"]["actions"] == plain["pi0_tabletop"]["actions"]


def test_an_upload_that_says_nothing_of_its_size_ends_where_it_is_too_large(app, web):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    pieces = itertools.chain([head], itertools.repeat(bytes(1 << 20), 70), [b"\r\n--x--\r\n"])
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = web.post(f"{app}/gradio_api/upload", content=pieces, headers=kind, timeout=60)
    assert answer.status_code == 413


# --- anything at every way in -------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK")


@st.composite
def pictures(draw):
    """A file of a picture of any mode that its format takes, and its size."""
    kind = draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    size = draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))
    mode = draw(st.sampled_from(MODES))
    noise = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (*size[::-1], 4))
    image = Image.fromarray(noise.astype(np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray((noise[..., 0] * 257).astype(np.uint16))
    else:
        image = image.convert("RGB").convert(mode) if mode != "PA" else image.convert("P")
    taken = {"JPEG": ("1", "L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA", "L", "P")}
    if mode not in taken.get(kind, MODES[:-1]):
        image, mode = image.convert("RGB"), "RGB"
    return encoded(image, kind), size


@given(pictures())
@settings(max_examples=60)
def test_any_picture_reaches_the_model_s_square_or_is_too_narrow(given_picture):
    data, (width, height) = given_picture
    loaded = transforms.load_image(data)
    assert (loaded.shape, loaded.dtype) == ((height, width, 3), np.uint8)
    if max(width, height) / min(width, height) > 224:
        with pytest.raises(ValueError, match="too narrow"):
            transforms.resize_with_pad(loaded, 224, 224)
    else:
        assert transforms.resize_with_pad(loaded, 224, 224).shape == (224, 224, 3)


@pytest.fixture(scope="module")
def form():
    """The page's form, and the setups behind it."""
    infos = {name: info_of(TABLETOP, name) for name in ("pi0", "pi0_fast")}
    setups = Setups(Loaded(infos), dict.fromkeys(infos, TABLETOP))

    def make():
        bar = prompt_bar.build(setups.of(), None)
        form = observation.build(setups.of(), setups.most_cameras(), bar)
        return form, visits.build(), gr.Checkbox()

    _, (parts, memory, measure) = built(make)
    return parts, setups, memory, measure


def well(form):
    """What the form sends as it is."""
    values = [part.value for part in form.inputs]
    values[3] = {"values": list(TABLETOP.resting_state)}
    place = form.inputs.index(form.pictures[0])
    values[place] = {"path": str(EXAMPLES / "tabletop-red.png"), "meta": MARK}
    return values


@given(st.data())
@settings(max_examples=100)
def test_any_form_is_run_or_refused_with_a_reason(form, data):
    parts, setups, _, _ = form
    values = well(parts)
    places = [i for i, part in enumerate(parts.inputs) if part not in parts.pictures]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
        values[place] = data.draw(JSON | st.text(max_size=30) | st.floats())
    try:
        jobs = observation.request(setups, values).jobs(setups)
    except ValueError:
        return
    assert all(isinstance(job, Job) for job in jobs)


def test_the_form_as_it_is_can_be_run(form):
    """Or the test above would find nothing."""
    parts, setups, _, _ = form
    values = well(parts)
    assert observation.request(setups, values).jobs(setups)
    values[2] = "x" * 10_001
    with pytest.raises(ValueError, match="at most 10,000 are taken"):
        observation.request(setups, values).jobs(setups)


@given(st.data())
@settings(max_examples=100)
def test_any_memory_of_a_browser_sets_the_page_or_is_forgotten(form, data):
    parts, setups, memory, measure = form
    kept = visits.Visits()
    form = [
        "tabletop",
        "go",
        {"values": [0.0] * 14},
        ["pi0"],
        10,
        1,
        0,
        0.0,
        64,
        "constrained",
        1.0,
        {"values": ["actions>text"]},
        True,
        *["as trained"] * len(parts.modes),
    ]
    whole = {"key": "k" * 24, "form": list(form)}
    found = visits.restored(whole, memory, kept, setups, parts, measure)
    assert (found.robot, found.policies) == ("tabletop", ["pi0"])
    for place in data.draw(st.lists(st.integers(0, len(form) - 1), max_size=2)):
        form[place] = data.draw(JSON)
    stored = {"key": "k" * 24, "form": data.draw(st.just(form) | JSON)}
    for browser in (stored, data.draw(JSON)):
        found = visits.restored(browser, memory, kept, setups, parts, measure)
        assert memory.key in found.updates


@given(st.data())
@settings(max_examples=100)
def test_any_recipe_is_read_or_refused_with_a_reason(data):
    """A recipe with one of its values replaced by any other."""
    tree = json.loads(run_file.to_json(run_file.of(RUN)))
    here = tree
    while isinstance(here, dict | list) and here:
        place = data.draw(
            st.sampled_from(list(here) if isinstance(here, dict) else range(len(here)))
        )
        if not isinstance(here[place], dict | list) or data.draw(st.booleans()):
            here[place] = data.draw(JSON)
            break
        here = here[place]
    try:
        recipe = run_file.from_json(json.dumps(tree))
    except ValueError:
        return
    assert run_file.from_json(run_file.to_json(recipe)) == recipe
    texts = [recipe.robot, recipe.prompt, *recipe.versions.values(), *recipe.policies[0].modes]
    assert all(isinstance(text, str) for text in texts)
    assert all(isinstance(value, float) for value in recipe.state)


@given(
    st.lists(st.tuples(st.text(max_size=20) | st.sampled_from(
        ["recipe.json", "../x", "/x", "traces/pi0-untrained-weights.npz", "inputs/x.png"]
    ), st.binary(max_size=60) | JSON.map(lambda tree: json.dumps(tree).encode())), max_size=5),
    st.integers(0, 200),
)  # fmt: skip
@settings(max_examples=100)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_zip_is_refused_with_a_reason(members, cut):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            # zipfile ends a name at NUL; in the archive itself one may stand in it all the same.
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type = name or "x", zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    data = file.getvalue()
    for given_file in (data, data[: len(data) - cut]):
        with pytest.raises(ValueError, match=r"this ZIP is no saved run|this is no recipe"):
            run_file.read(given_file)
