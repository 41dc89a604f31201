"""The tab "Causes" behind the page: what it sends to the browser, and what it takes."""

import dataclasses
import json
import types

import numpy as np
import pytest

from playground.analysis.causal import (
    CausalTrace,
    Occlusion,
    PatchGroup,
    headline,
    shares,
    top_layer,
    top_patch,
)
from playground.robots.builtin import TABLETOP
from playground.ui import causes
from playground.views import causes as view
from tests.support import traces

GROUPS = (
    PatchGroup("image", "base_0_rgb", "", "", (4, 4)),
    PatchGroup("word", "the", "the", "the", (1, 1)),
    PatchGroup("word", "red / blue", "red", "blue", (1, 1)),
    PatchGroup("rest", "rest of the text", "rest of the text", "rest of the text", (2, 2)),
    PatchGroup("shared text", "text that both share", "", "", (3, 3)),
    PatchGroup("everything", "everything", "", "", (8, 8)),
)
INFO = traces.pi0_trace().info
REPORT = CausalTrace(
    policy="pi0",
    title="pi0",
    family="pi0",
    badge="untrained weights",
    notice="Random.",
    revision="test",
    prompt="touch the red cube",
    counterfactual="touch the blue cube",
    noises=4,
    unit="% of range",
    effect=3.7,
    distinguished=True,
    groups=GROUPS,
    recovered=(
        (0.1, 0.8, 0.9),
        (0.0, 0.0, 0.01),
        (0.02, 0.0, 0.02),
        (0.0, 0.03, 0.03),
        (0.0, 0.04, 0.04),
        (0.0, 1.0, 1.0),
    ),
    intervals=(((0.0, 0.2), (0.7, 0.9), (0.8, 1.0)),) + ((None,) * 3,) * 5,
    patches={"base_0_rgb": ((0.0, 0.7), (0.1, 0.0))},
    read_image=(0.0, 0.3),
    read_text=(0.4, 0.1),
    done=19,
    of=19,
)


def test_the_headline_says_what_was_measured():
    assert headline(REPORT) == (
        "“red” for “blue” acts through the picture: 90 %, most of it in one patch; "
        "shared text 4 %; changed words 2 %."
    )
    assert headline(REPORT, "the red cube") == (
        "“red” for “blue” acts through the picture: 90 %, most of it in the patch of the red cube; "
        "shared text 4 %."
    )
    weak = dataclasses.replace(REPORT, patches={"base_0_rgb": ((0.0, 0.2), (0.1, 0.0))})
    assert "90 %, at most 20 % in the patch of the red cube;" in headline(weak, "the red cube")
    assert "90 %, at most 20 % in any patch;" in headline(weak)
    for thing in ("", "the red cube", "the red cube and the blue cube"):
        assert len(headline(REPORT, thing).split()) <= 25
    assert shares(REPORT) == pytest.approx(
        {"picture": 0.9, "changed words": 0.02, "shared text": 0.04}
    )
    assert top_layer(REPORT, lambda group: group.kind == "image") == 2
    direct = dataclasses.replace(REPORT, recovered=(REPORT.recovered[1], *REPORT.recovered[1:2],
                                 (1.0, 0.0, 1.0), *REPORT.recovered[3:]))  # fmt: skip
    assert headline(direct).startswith("“red” for “blue” is read directly: 100 %")
    alike = dataclasses.replace(REPORT, distinguished=False)
    assert "does not tell these prompts apart" in headline(alike)
    growing = tuple((None,) * 3 for _ in GROUPS)
    assert "of 19 patches" in headline(dataclasses.replace(REPORT, recovered=growing, done=0))


def test_what_the_browser_draws_is_json():
    picture = np.zeros((224, 224, 3), np.uint8)
    sent = view.payload({"pi0": REPORT}, {"pi0": {"base_0_rgb": picture}})
    (policy,) = json.loads(json.dumps(sent, allow_nan=False))["policies"]
    assert policy["columns"] == ["layer 1", "layer 2", "all layers"]
    labels = [row["label"] for row in policy["rows"]]
    assert labels[:3] == ["picture: base 0", "“the”", "“red” for “blue”"]
    assert [row["changed"] for row in policy["rows"]] == [False, False, True, False, False, False]
    assert policy["maps"][0]["values"] == [0.0, 0.7, 0.1, 0.0]
    assert policy["maps"][0]["exact"] == []
    some = dataclasses.replace(REPORT, exact={"base_0_rgb": ((False, True), (False, False))})
    sent = view.payload({"pi0": some}, {"pi0": {"base_0_rgb": picture}})
    assert sent["policies"][0]["maps"][0]["exact"] == [False, True, False, False]
    assert top_patch(some) == ("base_0_rgb", 0, 1, 0.7)
    elsewhere = dataclasses.replace(REPORT, exact={"base_0_rgb": ((False, False), (True, False))})
    assert top_patch(elsewhere) == ("base_0_rgb", 1, 0, 0.1)  # an estimate is no headline
    without = view.payload({"pi0": REPORT}, {})
    assert without["policies"][0]["maps"] == []  # a black camera has no picture to draw on


@pytest.mark.parametrize(
    ("found", "says"),
    [(0.83, "shows which"), (0.4, "only roughly"), (-0.24, "does not show"), (None, "all alike")],
)
def test_attention_is_set_beside_what_hiding_does(found, says):
    report = Occlusion.on(
        INFO, noises=4, unit="% of range", change={"base_0_rgb": ((0.1, 2.0), (0.0, 0.3))},
        attention={"base_0_rgb": ((0.01, 0.2), (0.0, 0.1))}, rank_correlation=found, done=4, of=4,
    )  # fmt: skip
    assert says in view.occlusion_words(report)
    picture = np.zeros((224, 224, 3), np.uint8)
    sent = view.occlusion_payload({"pi0": report}, {"pi0": {"base_0_rgb": picture}})
    (policy,) = json.loads(json.dumps(sent, allow_nan=False))["policies"]
    assert policy["maps"][0]["values"] == [0.1, 2.0, 0.0, 0.3]
    assert policy["maps"][0]["attention"] == [0.01, 0.2, 0.0, 0.1]
    growing = dataclasses.replace(
        report, change={"base_0_rgb": ((0.1, None), (None, None))}, done=1
    )
    assert "1 of 4 patches" in view.occlusion_words(growing)
    json.dumps(view.occlusion_payload({"pi0": growing}, {}), allow_nan=False)


def test_a_path_that_is_not_there_is_said():
    chunk = np.tile(np.array(TABLETOP.resting_state, np.float32), (5, 1))
    chunks = {"first": chunk, "second": None, "third": chunk + 0.1}
    picture = np.zeros((224, 224, 3), np.uint8)
    sent = view.lines(INFO, "what", TABLETOP.resting_state, chunks, picture, "words")
    assert sent["names"][1] == "second: no chunk that decodes"
    assert sent["line"]["shape"] == [3, 6, 2]
    assert view.lines(INFO, "what", TABLETOP.resting_state, chunks, None, "")["picture"] is None


def test_a_prompt_is_compared_with_its_nearest_rewording():
    setup = types.SimpleNamespace(robot=TABLETOP)
    assert causes.nearest("touch the red cube", setup) == "touch the green cube"
    assert causes.nearest("lift it", setup) == "touch it"
    assert causes.nearest("sing", setup) not in ("", "sing")


@pytest.mark.parametrize(
    "cell",
    [
        None,
        "",
        "{",
        "[]",
        '{"policy": "pi0"}',
        '{"policy": 3, "group": "the", "layer": null, "patch": null}',
        '{"policy": "pi0", "group": "the", "layer": true, "patch": null}',
    ],
)
def test_what_was_not_clicked_is_refused(cell):
    with pytest.raises(ValueError, match=r"click a number|cannot be"):
        causes.clicked(cell)
