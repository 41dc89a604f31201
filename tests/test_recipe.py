"""A run as a file: what is written comes back, and what a stranger wrote does no harm."""

import contextlib
import dataclasses
import html
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from playground import codec, run_file, trace
from playground.robots import transforms
from playground.ui.request import MAX_PROMPT
from playground.views import report
from tests.support import traces

FLOW = traces.pi0_trace(samples=2)
FAST = traces.fast_trace(prompt=FLOW.inputs.prompt)
FAST = dataclasses.replace(
    FAST,
    inputs=dataclasses.replace(FAST.inputs, state=FLOW.inputs.state),
    options=FLOW.options,
)
PICTURES = {slot: traces.camera_image(i, size=30 + i) for i, slot in enumerate(traces.SLOTS[:2])}


def with_pictures(found):
    digests = {slot: trace.image_digest(picture) for slot, picture in PICTURES.items()}
    changed = dataclasses.replace(found.inputs, image_sha256=digests)
    return dataclasses.replace(found, inputs=changed)


RUN = {"pi0": with_pictures(FLOW), "fast": with_pictures(FAST)}


def written():
    file = io.BytesIO()
    run_file.write(file, RUN, PICTURES.values(), {"figures.html": "<p>figures</p>"})
    return file.getvalue()


ZIP = written()


# --- there and back -----------------------------------------------------------------------------


def test_cuts_and_guidance_are_part_of_a_recipe():
    """Recipes of earlier versions, without them, are of the model as it is."""
    cuts = (trace.Cut("text", "images", (1, 2)), trace.Cut("actions", "text"))
    options = dataclasses.replace(FLOW.options, guidance=1.5, cuts=cuts)
    recipe = dataclasses.replace(run_file.of(RUN), options=options)
    assert run_file.from_json(run_file.to_json(recipe).encode()) == recipe
    tree = json.loads(run_file.to_json(run_file.of(RUN)))
    del tree["options"]["guidance"], tree["options"]["cuts"]
    tree["options"]["guided"] = tree["options"].pop("constrained")
    assert run_file.from_json(json.dumps(tree).encode()) == run_file.of(RUN)


def test_a_recipe_says_what_it_was_computed_with():
    """Each policy by itself; recipes of before tell one device for all."""
    on_gpu = trace.Computation("H100", "bfloat16", "default")
    info = dataclasses.replace(RUN["pi0"].info, computation=on_gpu)
    tree = json.loads(run_file.to_json(run_file.of(again(info=info))))
    assert run_file.from_json(json.dumps(tree).encode()).policies[0].computation == on_gpu
    opened = run_file.read(json.dumps(tree).encode())
    ours = dataclasses.replace(FLOW, actions_normalised=FLOW.actions_normalised + 1)
    text = judged({**RUN, "pi0": ours}, opened).text
    assert "device cpu for H100, dtype float32 for bfloat16, precision highest for default" in text
    tree["version"] = 3
    tree["versions"]["device"] = "cpu"
    for ran in tree["policies"]:
        ran["dtype"] = ran.pop("computation")["dtype"]
    older = run_file.from_json(json.dumps(tree).encode())
    assert older.policies[0].computation == trace.Computation("cpu", "bfloat16")
    assert "device" not in older.versions
    for broken in ({"versions": None}, {"policies": [1]}, {"policies": None}):
        with pytest.raises(ValueError, match="not whole"):
            run_file.from_json(json.dumps({**tree, **broken}))


def test_a_saved_run_comes_back_whole():
    opened = run_file.read(ZIP)
    assert opened.recipe == run_file.of(RUN)
    for ran in opened.recipe.policies:
        found = run_file.observation(opened, ran)
        inputs = RUN[ran.name].inputs
        assert found.robot == RUN[ran.name].info.robot
        assert (found.prompt, tuple(found.state)) == (inputs.prompt, inputs.state)
        assert found.modes == inputs.modes
        for slot, picture in PICTURES.items():
            np.testing.assert_array_equal(found.images[slot], picture)
        assert ran.badge == RUN[ran.name].info.badge
    assert [v.how for v in run_file.verdicts(opened, RUN)] == ["bits", "bits"]


def test_a_run_of_many_pictures_comes_back():
    """As many as an observation may have."""
    pictures = {f"slot {i}": np.full((2, 2, 3), i, np.uint8) for i in range(trace.MAX_PICTURES)}
    file = io.BytesIO()
    run_file.write(file, run_on(pictures), pictures.values(), {})
    opened = run_file.read(file.getvalue())
    found = run_file.observation(opened, opened.recipe.policies[0])
    assert found.images.keys() == pictures.keys()
    for name, picture in pictures.items():
        np.testing.assert_array_equal(found.images[name], picture)


def run_on(pictures):
    """A run of one policy that was given these, by slot."""
    digests = {slot: trace.image_digest(picture) for slot, picture in pictures.items()}
    modes = dict.fromkeys(pictures, FLOW.inputs.modes["base_0_rgb"])
    inputs = dataclasses.replace(FLOW.inputs, image_sha256=digests, modes=modes)
    return {"pi0": dataclasses.replace(FLOW, inputs=inputs)}


def opens_again(pictures, figures=None):
    """A run on these is written and read: the same goes into the model. Gives what the file says
    is left out."""
    file = io.BytesIO()
    found = run_on(pictures)
    run_file.write(file, found, pictures.values(), figures or {})
    assert len(file.getvalue()) <= run_file.MAX_FILE
    opened = run_file.read(file.getvalue())
    (ran,) = opened.recipe.policies
    found_again, size = run_file.observation(opened, ran).images, FLOW.info.image_size
    assert found_again.keys() == pictures.keys()
    for slot, picture in pictures.items():
        before, after = (
            transforms.resize_with_pad(p, size, size) for p in (picture, found_again[slot])
        )
        np.testing.assert_array_equal(before, after)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        inputs = [i.file_size for i in archive.infolist() if i.filename.startswith("inputs/")]
        words = archive.read("left-out.txt").decode() if "left-out.txt" in names else ""
    assert sum(inputs) <= run_file.MAX_INPUTS  # what is left is the traces'
    scaled = [slot for slot, p in pictures.items() if found_again[slot].shape != p.shape]
    assert bool(scaled) == ("as the models saw it" in words)
    for name in (*(figures or ()), "traces/pi0-untrained-weights.npz"):
        assert (name in names) != (f"{name} is left out" in words)
    assert ("pi0" in opened.outcomes) == ("traces/pi0-untrained-weights.npz" in names)
    (verdict,) = run_file.verdicts(opened, found)
    assert verdict.how == "bits"
    return words


def test_three_photographs_make_a_file_that_opens_again():
    """Of twelve megapixels each; two are as they were given."""
    photo = np.arange(4000, dtype=np.uint8)[:, None] + np.arange(3000, dtype=np.uint8)
    pictures = {f"slot {i}": np.stack([photo + i] * 3, axis=-1) for i in range(3)}
    words = opens_again(pictures)
    assert words.count("was given with 3000 x 4000 pixels") == 1


@given(
    sides=st.lists(st.tuples(*[st.integers(1, 90)] * 2), min_size=1, max_size=4),
    noise=st.booleans(),
    figures=st.integers(0, 30_000),
    most=st.integers(120_000, 660_000),
)
@example([(90, 90)] * 4, True, 0, 600_000)  # three would fit by their pixels, not by their bytes
def test_every_run_makes_a_file_that_opens_again(sides, noise, figures, most):
    """Whatever is too large for its bounds, which are lower here."""
    size, draw = FLOW.info.image_size, np.random.default_rng(len(sides))
    pictures = {}
    for i, (height, width) in enumerate(sides):
        with contextlib.suppress(ValueError):  # what is too narrow is refused before a run
            transforms.fitted_size(height, width, size, size)
            picture = np.full((height, width, 3), i, np.uint8)
            noisy = draw.integers(0, 256, picture.shape, np.uint8)
            pictures[f"slot {i}"] = noisy if noise else picture
    text = draw.bytes(figures).hex()
    with pytest.MonkeyPatch.context() as patch:
        reserved = 4 * size**2
        patch.setattr(run_file, "MAX_PIXELS", reserved + 25_000)
        patch.setattr(run_file, "MAX_INPUTS", 4 * reserved + 8_000)
        patch.setattr(run_file, "MAX_FILE", most)
        words = opens_again(pictures, {"figures.html": text, "causes.json": "{}"})
    if sum(height * width for height, width in sides) < 2_000 and most > 560_000:
        assert not words


def test_the_longest_recipe_is_taken():
    """As many policies as anybody loads, on as many pictures as there may be."""
    run = run_on(
        {f"slot {i} {'x' * 50}": PICTURES["base_0_rgb"] for i in range(trace.MAX_PICTURES)}
    )
    (ran,) = run_file.of(run).policies
    policies = tuple(dataclasses.replace(ran, name=f"pi0 {i}") for i in range(32))
    prompt = "\N{ROBOT FACE}" * MAX_PROMPT
    recipe = dataclasses.replace(run_file.of(run), prompt=prompt, policies=policies)
    assert run_file.from_json(run_file.to_json(recipe)) == recipe


def test_the_zip_is_what_it_says_and_bears_the_badges():
    with zipfile.ZipFile(io.BytesIO(ZIP)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        saved = trace.load(io.BytesIO(archive.read("traces/pi0-untrained-weights.npz")))
    np.testing.assert_array_equal(saved.x_t, FLOW.x_t)
    assert "traces/fast-untrained-weights.npz" in names
    assert sum(name.startswith("inputs/") for name in names) == 2
    assert "figures.html" in names


def test_figures_name_policies_and_badges_and_hold_hostile_text_as_text():
    page = report.page([traces.hostile(traces.with_attention(FLOW)), FAST])
    assert page.count(FAST.info.badge) >= 2
    assert page.count(html.escape(traces.HOSTILE[:20])) >= 2
    assert traces.HOSTILE[:20] not in page


@given(st.text(max_size=50), st.floats(allow_nan=False, allow_infinity=False))
def test_any_prompt_and_state_survive_the_json(prompt, value):
    recipe = dataclasses.replace(run_file.of(RUN), prompt=prompt, state=(value,))
    assert run_file.from_json(run_file.to_json(recipe)) == recipe


def test_a_picture_carries_the_recipe():
    recipe, image, info = run_file.of(RUN), Image.new("RGB", (4, 4)), PngInfo()
    file = io.BytesIO()
    info.add_itxt("Comment", "another chunk")
    info.add_itxt(run_file.FORMAT, run_file.to_json(recipe))
    image.save(file, "PNG", pnginfo=info)
    assert run_file.read(file.getvalue()).recipe == recipe
    plain = io.BytesIO()
    image.save(plain, "PNG")
    with pytest.raises(ValueError, match="carries no recipe"):
        run_file.read(plain.getvalue())
    damaged = file.getvalue().replace(b'"prompt"', b'"Prompt"')
    with pytest.raises(ValueError, match="damaged"):
        run_file.read(damaged)


# --- again --------------------------------------------------------------------------------------


def again(**changes):
    return {**RUN, "pi0": dataclasses.replace(RUN["pi0"], **changes)}


def judged(found, opened=None):
    return run_file.verdicts(opened or run_file.read(ZIP), found)[0]


def test_a_run_repeats_by_bits_by_tolerance_or_not():
    chunk = FLOW.actions_normalised
    near = judged(again(actions_normalised=chunk + np.float32(5e-4)))
    assert near.how == "tolerance"
    assert "0.0005" in near.text
    far = judged(again(actions_normalised=chunk + np.float32(2e-3)))
    assert far.how == "no"
    assert "0.001 is allowed" in far.text
    assert judged(again(actions_normalised=chunk[:1])).how == "no"
    assert judged({}).text == "pi0 (untrained weights) did not run here."
    other = dataclasses.replace(RUN["pi0"].info, revision="1" * 12)
    assert "other weights" in judged(again(info=other)).text
    newer = again(actions_normalised=chunk + np.float32(5e-4), versions={"jax": "1"})
    assert "(here jax 1 for 0)" in judged(newer).text


def test_tokens_must_be_equal():
    changed = dataclasses.replace(RUN["fast"], tokens=RUN["fast"].tokens[:-1])
    found = run_file.verdicts(run_file.read(ZIP), {**RUN, "fast": changed})[1]
    assert (found.how, "other tokens" in found.text) == ("no", True)


def test_a_recipe_alone_tells_bits_and_leaves_the_rest_to_the_zip():
    opened = run_file.read(run_file.to_json(run_file.of(RUN)).encode())
    assert judged(RUN, opened).how == "bits"
    found = judged(again(actions_normalised=FLOW.actions_normalised + np.float32(1e-6)), opened)
    assert (found.how, "the ZIP can tell" in found.text) == ("no", True)
    with pytest.raises(ValueError, match="open the ZIP"):
        run_file.observation(opened, opened.recipe.policies[0])


def test_traces_of_two_runs_are_no_run():
    other = dataclasses.replace(FLOW.inputs, prompt="something else")
    with pytest.raises(ValueError, match="different runs"):
        run_file.of({"a": FLOW, "b": dataclasses.replace(FLOW, inputs=other)})
    with pytest.raises(ValueError, match="no run to save"):
        run_file.of({})


# --- strangers' files ---------------------------------------------------------------------------


def repacked(**changes):
    """The ZIP with some members replaced or added; None leaves one out."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ZIP)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            if (data := changes.pop(name, old.read(name))) is not None:
                new.writestr(name, data)
        for name, data in changes.items():
            new.writestr(name, data)
    return file.getvalue()


def changed_json(**changes):
    return json.dumps({**json.loads(run_file.to_json(run_file.of(RUN))), **changes}).encode()


def changed_policy(**changes):
    ran = json.loads(run_file.to_json(run_file.of(RUN)))["policies"][0]
    return changed_json(policies=[{**ran, **changes}])


def npz(array: bytes, tree='{"$array": "a0"}'):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("trace.json", tree)
        archive.writestr("a0.npy", array)
    return file.getvalue()


def npy(descr, shape, body=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def bomb():
    """A member that claims to be small, in the ZIP's directory, and unpacks to more zeros than are
    taken."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("recipe.json", run_file.to_json(run_file.of(RUN)))
        with archive.open("x", "w", force_zip64=True) as member:
            for _ in range((codec.MAX_UNPACKED >> 20) + 1):
                member.write(bytes(1 << 20))
    return file.getvalue()


TRACE = "traces/pi0-untrained-weights.npz"
INPUT = f"inputs/{trace.image_digest(PICTURES[traces.SLOTS[0]])}.png"
HOSTILE = {
    "nothing": (b"", "no recipe"),
    "pickle": (b"\x80\x04\x95\x00.", "no recipe"),
    "html": (b"<script>", "no recipe"),
    "cut off": (ZIP[:-40], "no saved run"),
    "not json": (b"{not json", "no JSON"),
    "other json": (b'{"a": 1}', "it lacks 'format'"),
    "deep json": (b'{"format": ' + b"[" * 100_000, "no JSON"),
    "huge json": (b" " * (2 << 20) + b"{}", "at most"),
    "newer": (changed_json(version=9), "version 9"),
    "state": (changed_json(state=["x"]), "expected a number"),
    "nan": (changed_json(state=[float("nan")]), "expected a number"),
    "options": (changed_json(options={"num_steps": 10}), "Options lacks"),
    "cuts": (changed_json(options={**dataclasses.asdict(trace.Options()), "cuts": [3]}), "a cut"),
    "seed": (changed_json(options={**dataclasses.asdict(trace.Options()), "seed": "0"}), "whole"),
    "policies": (changed_json(policies=[]), "names no policy"),
    "policy": (changed_json(policies=[{"name": "x"}]), "Ran lacks"),
    "mode": (changed_policy(modes={"base_0_rgb": "inverted"}), "slots that are"),
    "extra": (changed_json(surprise=1), "surprise"),
    "prompt": (changed_json(prompt={"$class": "FlowTrace"}), "expected a text"),
    "half": (changed_json(prompt="\ud800"), "half of a character"),
    "no recipe": (repacked(**{"recipe.json": None}), "no saved run"),
    "bomb": (bomb, "unpacks to more than"),
    "many": (repacked(**{f"x{i}": b"" for i in range(150)}), "files; at most"),
    "picture": (repacked(**{INPUT: b"<svg/>"}), "no readable PNG"),
    "swapped picture": (
        repacked(**{INPUT: (lambda f: (Image.new("RGB", (2, 2)).save(f, "PNG"), f.getvalue())[1])(
            io.BytesIO())}),
        "not the one in its recipe",
    ),
    "not a trace": (repacked(**{TRACE: b"PK"}), "not a saved trace"),
    "pickled array": (repacked(**{TRACE: npz(npy("|O", (1,)))}), "not a saved trace"),
    "huge array": (repacked(**{TRACE: npz(npy("<f4", (1 << 40,)))}), "claims to be"),
    "no trace": (repacked(**{TRACE: npz(npy("<f4", (0,)))}), "expected a saved trace"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_file_is_refused_with_a_reason(name):
    data, message = HOSTILE[name]
    data = data() if callable(data) else data  # made where it is needed: it takes a second
    with pytest.raises(ValueError, match=message):
        run_file.read(data)


def test_other_numbers_than_the_recipe_s_are_noticed():
    file = io.BytesIO()
    trace.save(dataclasses.replace(FLOW, actions_normalised=FLOW.actions_normalised + 1), file)
    with pytest.raises(ValueError, match="numbers are not those of its recipe"):
        run_file.read(repacked(**{TRACE: file.getvalue()}))


def test_names_that_lead_elsewhere_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = run_file.read(repacked(**{"../../evil": b"x", "/etc/evil": b"x"}))
    assert opened.recipe == run_file.of(RUN)
    assert list(tmp_path.iterdir()) == []
    assert run_file.read(repacked(**{"recipe.json": changed_policy(name="../../x")})).outcomes == {}


@given(st.data())
def test_damage_is_refused_or_harmless(data):
    """One byte of the ZIP changed: a reason, or the same run."""
    place = data.draw(st.integers(0, len(ZIP) - 1))
    changed = bytearray(ZIP)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        opened = run_file.read(bytes(changed))
    except ValueError:
        return
    assert zlib.crc32(run_file.to_json(opened.recipe).encode()) == zlib.crc32(
        run_file.to_json(run_file.of(RUN)).encode()
    )
