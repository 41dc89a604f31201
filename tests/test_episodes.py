"""Recorded episodes as the page has them: what may be opened, what is asked, how chunks meet."""

import numpy as np
import pytest

from models.chunking import prefix_weights
from playground.datasets import job, seams
from playground.datasets.job import EpisodeRequest, Predicted, Recorded, SeamRequest
from playground.datasets.lerobot import BUNDLED, open_dataset
from playground.datasets.matching import Choice, match
from playground.robots.builtin import TABLETOP
from playground.serving.events import Phase, Result
from playground.trace import Options
from tests.support.visitor import FAST, PI0

OPTIONS = Options(num_steps=4, seed=2)


def recorded(**fields):
    word = {"dataset": BUNDLED, "revision": "", "public": True, "opening": "test", "episode": 1}
    return Recorded(**word | {"choice": Choice(cameras={}).model_dump_json()} | fields)


def results(events):
    return [event.value for event in events if isinstance(event, Result)]


# --- what a public page may open ----------------------------------------------------------------


@pytest.mark.parametrize("word", ["assets/episodes_tabletop", ".", "/etc", "../x", "~/x", "a/b/c"])
def test_a_public_page_opens_no_folder_and_does_not_say_whether_it_is_there(word, monkeypatch):
    """A name that could be the Hub's is asked of the Hub, though there is a folder of that name."""
    asked = []

    def hub(repository, revision=None, *, public=False):
        asked.append((repository, public))
        raise ValueError("the Hub has no such dataset")

    monkeypatch.setattr("playground.datasets.lerobot.Hub", hub)
    with pytest.raises(ValueError, match=r"no folders|the Hub has no such dataset"):
        open_dataset(word, public=True)
    assert asked == ([(word, True)] if word.startswith("assets/") else [])
    assert len(open_dataset(BUNDLED, public=True)) == 3


# --- what the worker answers --------------------------------------------------------------------


def test_frames_are_answered_as_the_policies_answer_them(policies):
    frames = (3, 40, 41)
    request = EpisodeRequest((PI0, FAST), recorded(), frames, 2, "touch the blue cube", OPTIONS)
    events = list(job.predict(policies, request))
    assert [e.phase for e in events if isinstance(e, Phase) and e.policy == PI0] == [
        f"frame {done} of 3" for done in (0, 2, 3)
    ]
    dataset = open_dataset(BUNDLED)
    for name, policy in policies.items():
        found = [r for r in results(events) if r.policy == name]
        assert all(isinstance(r, Predicted) and not r.failures for r in found)
        assert np.concatenate([r.frames for r in found]).tolist() == list(frames)
        fit = match(dataset.info, policy.info, TABLETOP)
        episode = dataset.episode(1)
        chunks = np.concatenate([r.chunks for r in found])
        for frame, chunk in zip(frames, chunks, strict=True):
            raw = fit.observation(episode, frame, TABLETOP, "touch the blue cube")
            expected, _ = policy.chunk(raw, OPTIONS)
            np.testing.assert_allclose(chunk, expected[0], atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policies": ("other",)}, "no policy is called other"),
        ({"frames": (0, 500)}, "frames 0 to .*; 500 was asked"),
        ({"frames": ()}, "0 frames came"),
        ({"recorded": recorded(episode=7)}, "episodes 0 to 2; 7 was asked"),
        ({"recorded": recorded(dataset="/etc")}, "no folders"),
    ],
)
def test_what_cannot_be_asked_is_said(policies, fields, message):
    request = {"policies": (PI0,), "recorded": recorded(), "frames": (0,), "batch": 1}
    request |= {"prompt": None, "options": OPTIONS} | fields
    with pytest.raises(ValueError, match=message):
        list(job.predict(policies, EpisodeRequest(**request)))


# --- where two chunks meet ----------------------------------------------------------------------


def test_a_seam_is_two_questions_of_which_the_later_is_also_guided(policies):
    policy, since, delay = policies[PI0], 20, 6
    request = SeamRequest(PI0, recorded(), 45, since, delay, None, OPTIONS)
    (found,) = results(job.seam(policies, request))
    dataset = open_dataset(BUNDLED)
    fit, episode = match(dataset.info, policy.info, TABLETOP), dataset.episode(1)
    before, now = (fit.observation(episode, frame, TABLETOP) for frame in (25, 45))
    later = Options(num_steps=4, seed=3)
    np.testing.assert_allclose(found.old, policy.chunk(before, OPTIONS)[0][0], atol=2e-5)
    np.testing.assert_allclose(found.plain, policy.chunk(now, later)[0][0], atol=2e-5)
    np.testing.assert_array_equal(found.weights, prefix_weights(delay, 30, 50, "exp"))
    assert found.plain_ms > 0 < found.guided_ms
    # Where it is held fully, it is the old chunk's plan, nearer than the plain one comes.
    plan = found.old[since : since + delay]
    apart = [np.abs(chunk[:delay] - plan).mean() for chunk in (found.guided, found.plain)]
    assert apart[0] < 0.5 * apart[1]


@pytest.mark.parametrize(
    ("name", "since", "delay", "message"),
    [
        (FAST, 20, 5, "writes tokens"),
        (PI0, 0, 0, "expected 1 to 49"),
        (PI0, 20, 21, "a delay of 0 to"),
        (PI0, 40, 11, "10 that are left"),
        (PI0, 46, 2, "frames 0 to"),
    ],
)
def test_what_has_no_seam_is_said(policies, name, since, delay, message):
    request = SeamRequest(name, recorded(), 45, since, delay, None, OPTIONS)
    with pytest.raises(ValueError, match=message):
        list(job.seam(policies, request))


def test_a_jump_is_counted_in_typical_steps():
    """The second dimension moves half of the time, the third never."""
    recorded = np.stack([np.arange(9) * 0.1, [0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1.0], np.ones(9)], 1)
    typical = seams.typical_step(recorded)
    np.testing.assert_allclose(typical, [0.1, 0.2, np.nan])
    old, new = np.zeros((10, 3)), np.zeros((10, 3))
    old[6], new[2] = [1, 2, 3], [1.2, 1.2, 5]
    found = seams.jump(old, new, since=5, delay=2, typical=typical)
    np.testing.assert_allclose(found.change, [0.2, -0.8, 2])
    np.testing.assert_allclose(found.steps, [2, 4, np.nan])
    assert found.largest == 1
