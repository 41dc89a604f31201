"""Prompts side by side, against chunks that are known."""

import dataclasses

import numpy as np
import pytest

from playground.analysis import prompts
from playground.analysis.prompts import PromptAnswer, PromptsRequest
from playground.analysis.variants import rewordings
from playground.robots.builtin import TABLETOP
from playground.serving.events import Result
from playground.trace import Options, RawObservation
from playground.views import paths, theme
from playground.views import prompts as view
from tests.support.traces import policy_info

KNOWN = {"touch": 1.0, "red": 2.0, "blue": 4.0}


class WordSum:
    """A policy whose chunk is a number for every word it knows, all over; unknown words count
    nothing. Another seed adds a tenth of the seed's number."""

    def __init__(self, family="pi0"):
        info = policy_info(family, TABLETOP.actions)
        self.info = dataclasses.replace(info, robot="tabletop")
        self.robot = TABLETOP

    def level(self, prompt):
        return sum(KNOWN.get(word, 0.0) for word in prompt.split())

    def actions(self, observation, options):
        if observation.prompt == "refuse":
            raise ValueError("not today")
        seeds = np.arange(options.num_samples)[:, None, None] / 10
        shape = (options.num_samples, self.info.horizon, len(self.info.actions))
        return np.broadcast_to(self.level(observation.prompt) + seeds, shape), None


RAW = RawObservation("tabletop", {}, {}, "touch red", np.array(TABLETOP.resting_state))


def answers(texts):
    policy = WordSum()
    request = PromptsRequest(("pi0",), {"pi0": RAW}, Options(), tuple(texts))
    events = list(prompts.compare({"pi0": policy}, request))
    return policy, [event.value for event in events if isinstance(event, Result)]


def unit(info):
    """% of range that one normalised unit (a standard deviation) is, averaged over dimensions."""
    stats = info.action_stats
    return np.mean(100 * np.array(stats.std) / (np.array(stats.q99) - stats.q01))


def test_changes_are_percent_of_range_with_the_noise_of_the_seed():
    policy, found = answers(["touch red", "touch blue", "the red", "touch red"])
    apart = prompts.distances(np.stack([answer.shares for answer in found]))
    levels = np.array([3.0, 5.0, 2.0, 3.0])
    expected = np.abs(levels[:, None] - levels) * unit(policy.info)
    np.testing.assert_allclose(apart, expected, rtol=1e-4, atol=1e-4)
    # Between four seeds, a tenth apart from one to the next: pairs lie 1, 1, 1, 2, 2, 3 tenths off.
    assert found[0].spread == pytest.approx(unit(policy.info) * 10 / 60, rel=1e-4)
    assert [answer.spread for answer in found[1:]] == [None] * 3


def test_prompts_that_mean_the_same_stand_together():
    near, far = [0.0, 0.2, 0.1], [9.0, 9.3]
    levels = np.array([near[0], far[0], near[1], far[1], near[2]])
    order = prompts.clustered(np.abs(levels[:, None] - levels))
    assert sorted(order) == list(range(5))
    assert {0, 2, 4} in ({*order[:3]}, {*order[2:]})


def test_the_useful_set_rewords_with_the_robots_words():
    asked = dataclasses.replace(RAW, prompt="Pick up the blue cube")
    labels = {label: text for label, text in prompts.useful_prompts(asked, TABLETOP)}
    assert labels["as given"] == asked.prompt
    assert labels["paraphrase"] == "lift the blue block"
    assert labels["“blue” → “green”"] == "Pick up the green cube"
    assert labels["“Pick up” → “touch”"] == "touch the blue cube"
    assert {"empty", "shuffled", "garbled", "without “blue”"} <= set(labels)
    two = dict(rewordings("put the red cube on the Blue cube", TABLETOP.name))
    assert two == {
        "paraphrase": "put the red block on the Blue block",
        "“red” → “green”": "put the green cube on the Blue cube",
        "“red” ↔ “Blue”": "put the Blue cube on the red cube",
        "“on” → “next to”": "put the red cube next to the Blue cube",
    }
    assert rewordings("fold the towel", "aloha") == [("paraphrase", "please fold the towel")]
    assert rewordings("", "tabletop") == []


def test_headline_says_what_was_measured_and_no_more():
    useful = prompts.useful_prompts(RAW, TABLETOP)
    labels = {text: label for label, text in useful}
    _, found = answers([text for _, text in useful])
    said = prompts.headline(found, labels, title="pi0")
    assert said.startswith("pi0 listens to “red” and “touch”")
    assert "word order does not matter" in said
    assert len(said.split()) <= 25
    shown = view.payload(found, {"pi0": WordSum().info}, labels, RAW.state, None, of=len(found))
    (policy,) = shown["policies"]
    effects = {word: policy["change"][place] for word, place in shown["words"]}
    expected = {word: KNOWN[word] * unit(WordSum().info) for word in ("touch", "red")}
    assert effects == pytest.approx(expected, rel=1e-4)
    _, alone = answers(["touch red", "touch the red", "touch blue"])
    assert "“touch blue”" in prompts.headline(alone, {}, title="pi0")
    long = f"touch blue {'very ' * 40}carefully"
    _, alone = answers(["touch red", long])
    said = prompts.headline(alone, {}, title="pi0")
    assert "“touch blue very" in said
    assert len(said.split()) <= 25


def test_a_prompt_that_cannot_be_answered_leaves_the_others():
    _, found = answers(["touch red", "refuse", "touch blue"])
    assert [answer.failure for answer in found] == [None, "not today", None]
    shown = view.payload(found, {"pi0": WordSum().info}, {}, RAW.state, None, of=3)
    (policy,) = shown["policies"]
    assert policy["failures"] == [None, "not today", None]
    assert policy["change"][1] is None
    assert policy["change"][2] == pytest.approx(2 * unit(WordSum().info), rel=1e-4)
    assert shown["words"] == [["touch", None], ["red", None]]
    assert sorted(policy["matrix"]["prompts"]) == ["touch blue", "touch red"]


def test_board_draws_the_paths_of_the_chunks():
    state = np.array(TABLETOP.resting_state)
    actions = np.linspace(state, state + 0.2, 50).astype(np.float32)
    found = [PromptAnswer("pi0", "go", actions, np.zeros_like(actions))]
    picture = np.zeros((224, 224, 3), np.uint8)
    shown = view.payload(found, {"pi0": WordSum().info}, {}, state, picture, of=1)
    line = theme.unpacked(shown["policies"][0]["line"])[0]
    both = paths.pixels(state, actions, 224)
    assert any(np.allclose(line, path, atol=0.06) for path in both.values())


@pytest.mark.parametrize("names", [(), ("other",)])
def test_unknown_policies_and_too_many_prompts_are_refused(names):
    request = PromptsRequest(names, {}, Options(), ("go",))
    with pytest.raises(ValueError, match="no policy is called"):
        list(prompts.compare({"pi0": WordSum()}, request))
    many = PromptsRequest(("pi0",), {"pi0": RAW}, Options(), ("go",) * 33)
    with pytest.raises(ValueError, match="1 to 32 are taken"):
        list(prompts.compare({"pi0": WordSum()}, many))
