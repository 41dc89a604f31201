"""Links that reopen a page, and the words for people who are new to it, without a browser."""

import re

import numpy as np
import pytest

from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.trace import Cut, Options
from playground.ui import guide, links, observation, prompt_bar, scenes
from playground.ui.request import AS_TRAINED
from playground.ui.setup import Setups
from tests.support.blocks import built
from tests.test_ui import Loaded, info_of


@pytest.fixture(scope="module")
def page():
    """(setups, form) of a page with two policies."""
    infos = {family: info_of(TABLETOP, family) for family in ("pi0", "pi0_fast")}
    setups = Setups(Loaded(infos), dict.fromkeys(infos, TABLETOP))

    def lay_out():
        bar = prompt_bar.build(setups.of(), None)
        return observation.build(setups.of(), setups.most_cameras(), bar)

    return setups, built(lay_out)[1]


def test_a_link_sets_prompt_scene_policies_and_options(page):
    setups, form = page
    second = examples(TABLETOP)[1]
    link = links.read(
        f"?prompt=a+%26+b&scene={second.scene}&policies=pi0&steps=5&seed=7&decoding=free"
        "&weight=1.5&cuts=actions%3Etext%3A1%2C3;text%3Eimages"
    )
    found = links.opened(link, setups, form)
    assert found.updates[form.prompt] == "a & b"
    assert found.updates[form.scenes.seed] == second.scene
    assert found.updates[form.state]["value"]["values"] == list(second.state)
    assert (found.updates[form.pictures[0]]["value"] == second.images["table"]).all()
    assert (found.robot, found.policies) == (TABLETOP.name, ["pi0"])
    cuts = (Cut("actions", "text", (1, 3)), Cut("text", "images"))
    assert link.options == Options(num_steps=5, seed=7, constrained=False, guidance=1.5, cuts=cuts)
    assert found.updates[form.cuts] == {"values": ["actions>text:1,3", "text>images"]}


def test_a_scene_fills_the_slots_whose_cameras_the_table_has(page):
    setups, form = page
    seen = {"left_wrist_0_rgb": np.zeros((2, 2, 3), np.uint8)}
    updates = observation.placed(setups.of(), 7, scenes.Drawn(seen, (0.0,) * 14), form)
    assert updates[form.pictures[1]]["value"] is seen["left_wrist_0_rgb"]
    assert updates[form.modes[1]] == AS_TRAINED
    others = {*form.pictures, *form.modes} - {form.pictures[1], form.modes[1]}
    assert not others & updates.keys()


def test_what_a_link_does_not_say_is_as_on_a_fresh_page(page):
    setups, form = page
    first = examples(TABLETOP)[0]
    found = links.opened(links.read("?seed=1"), setups, form)
    assert found.updates[form.prompt] == first.prompt
    assert found.policies == ["pi0", "pi0_fast"]
    assert links.read("?__theme=dark") is None
    assert links.read("") is None
    assert links.tab(links.read("?tab=attention"), {"a": "Attention"}) == "a"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?steps=many", "steps must be a whole number from 1 to 100; 'many' came"),
        ("?steps=0&seed=-1", "steps must be .*seed must be"),
        ("?scene=99999999", "scene must be"),
        ("?decoding=magic", "decoding must be"),
        ("?temperature=nan", "temperature must be"),
        ("?weight=4", "weight must be a number from 0 to 3"),
        ("?cuts=text", "cuts must be connections like actions>text:1,3"),
        ("?prompt=" + "x" * 10_001, "prompt must be"),
        ("?prompt=" + "x" * 50_000, "longer than"),
    ],
)
def test_links_that_cannot_be_are_refused(query, said):
    with pytest.raises(ValueError, match=said):
        links.read(query)


@pytest.mark.parametrize(
    ("query", "said"),
    [("?robot=arm", "no policy here drives 'arm'"), ("?policies=pi9", "no loaded policy")],
)
def test_links_to_what_is_not_here_are_refused(page, query, said):
    with pytest.raises(ValueError, match=said):
        links.opened(links.read(query), *page)
    with pytest.raises(ValueError, match="there is no tab"):
        links.tab(links.read("?tab=Secrets"), {"a": "Attention"})


def test_each_tab_is_explained_in_60_words_with_a_source():
    for text, (source, link) in guide.READING.values():
        assert len(text.split()) <= 60
        assert source
        assert link.startswith("https://")
    every = " ".join(guide.explained(text) for text, _ in guide.READING.values())
    for word in guide.WORDS:
        assert re.search(rf"<dfn [^>]*>{word}</dfn>", every), word
    assert len(guide.TOUR) == 5
