"""Cut connections as text, in the form and in what the mask draws, without a browser."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground import cuts, run_file
from playground.robots.builtin import TABLETOP
from playground.trace import Cut, Options
from playground.ui import cuts as form_cuts
from playground.ui import observation, prompt_bar, recipe, visits
from playground.ui.setup import Setups
from playground.views import mask
from tests.support import traces
from tests.support.blocks import built
from tests.test_ui import Loaded, info_of

NAMES = st.sampled_from(["actions", "text", "state", "images", "base_0_rgb", "left_wrist_0_rgb"])
LAYERS = st.none() | st.lists(st.integers(1, 18), min_size=1, unique=True).map(tuple)
CHOSEN = (Cut("actions", "text", (1, 3)), Cut("text", "base_0_rgb"))


@given(st.builds(Cut, NAMES, NAMES, LAYERS))
def test_what_is_spelled_is_read(one):
    assert cuts.read(cuts.spelled(one)) == one


@pytest.mark.parametrize("text", ["", "text", "a>b>c", "text>images:", "text>images:0x1", "a>b;c"])
def test_what_is_no_cut_is_refused(text):
    with pytest.raises(ValueError, match="a cut is written like"):
        cuts.read(text)


@pytest.mark.parametrize("value", ["text>images", {"values": "text>images"}, {"values": [3]}])
def test_a_form_that_holds_no_cuts_is_refused(value):
    with pytest.raises(ValueError, match="must be a list of texts"):
        form_cuts.chosen(value)


def test_cuts_in_words():
    said = cuts.in_words((*CHOSEN, Cut("actions", "state", (2,))))
    assert said == "actions to text in layers 1, 3; text to base_0_rgb; actions to state in layer 2"


# --- the form -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    """(setups, form, what keeps it in the browser) of a page with one policy."""
    setups = Setups(Loaded({"pi0": info_of(TABLETOP, "pi0")}), {"pi0": TABLETOP})

    def lay_out():
        bar = prompt_bar.build(setups.of(), None)
        form = observation.build(setups.of(), setups.most_cameras(), bar)
        return form, visits.build()

    form, memory = built(lay_out)[1]
    return setups, form, memory


def held(part, updates):
    """What a component holds after the updates."""
    value = updates.get(part, part.value)
    return (
        value.get("value", part.value) if isinstance(value, dict) and "__type__" in value else value
    )


@pytest.mark.parametrize("options", [{}, {"guidance": 2.25}, {"cuts": CHOSEN}])
def test_a_run_file_sets_the_form_that_asks_for_the_same_run(page, options):
    setups, form, _ = page
    saved = dataclasses.replace(run_file.of({"pi0": traces.pi0_trace()}), robot=TABLETOP.name)
    wanted = dataclasses.replace(saved.options, **options)
    opened = run_file.Opened(dataclasses.replace(saved, options=wanted), {}, {})
    updates, _ = recipe.restored(setups.of(), opened, [], form)
    asked = observation.request(setups, [held(part, updates) for part in form.inputs])
    assert asked.options(attention=wanted.attention) == wanted


def test_a_reload_keeps_cuts_and_weight(page):
    setups, form, memory = page
    changed = {form.guidance: 2.25, form.cuts: form_cuts.value(CHOSEN), form.prompt: "go"}
    kept = [form.robot, form.prompt, form.state, form.policies, *form.options, form.cuts]
    values = [changed.get(part, part.value) for part in kept]
    stored = {"key": "k" * 24, "form": [*values, False, *(part.value for part in form.modes)]}
    found = visits.restored(stored, memory, visits.Visits(), setups, form, form.guidance)
    assert held(form.cuts, found.updates) == form_cuts.value(CHOSEN)
    assert held(form.prompt, found.updates) == "go"


# --- the mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [traces.pi0_trace, traces.fast_trace])
def test_the_mask_says_what_its_run_went_without(build):
    plain = build()
    trace = dataclasses.replace(plain, options=Options(cuts=CHOSEN))
    sent = mask.payload(trace)
    assert sent["cuts"] == ["actions>text:1,3", "text>base_0_rgb"]
    assert sent["cut"] == "Cut in this run: actions to text in layers 1, 3; text to base_0_rgb."
    assert sent["summary"].endswith(sent["cut"])
    assert sent["patterns"] == mask.payload(plain)["patterns"]  # the rule is the same
    assert mask.payload(plain)["cut"] == ""
