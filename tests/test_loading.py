"""From a name or a folder to a policy that answers."""

import dataclasses

import numpy as np
import pytest

from models.checkpoint import random_model
from models.config import PI0_FAST_TABLETOP, PI0_TABLETOP
from playground import catalog, loading, local
from playground.events import Done, Phase
from playground.robots import ALOHA
from playground.trace import Options, RawObservation
from tests.golden_models import CONFIGS


def finish(steps):
    """(what a generator yields, what it returns)."""
    told = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as stop:
            return told, stop.value


@pytest.mark.usefixtures("goldens")
def test_a_real_folder_opens_like_a_users_own(goldens, monkeypatch):
    """openpi's own files, at the goldens' size, with a stand-in for PaliGemma's text model."""
    folder = {"folder": str(goldens / "pi0"), "config": "pi0_aloha", "robot": None}
    entry = local.open_folder(**folder, asset_id=None)
    text = goldens / "transforms" / "sentencepiece" / "tiny_paligemma.model"
    small = dataclasses.replace(entry, config=CONFIGS["pi0"])
    monkeypatch.setattr(local, "open_folder", lambda **_: small)
    monkeypatch.setattr(loading, "_fetch", lambda entry, progress: (entry, text))
    told, policy = finish(loading.open_steps(folder))
    assert all(isinstance(event, Phase) for event in told)
    assert {"downloading", "loading"} <= {event.phase.split(" (")[0] for event in told}
    info = policy.info
    assert (info.badge, info.robot, info.normalisation) == ("real checkpoint", "aloha", "z-score")
    picture = np.full((48, 64, 3), 90, np.uint8)
    raw = RawObservation(
        "aloha", {"base_0_rgb": picture}, {}, "fold", np.array(ALOHA.resting_state)
    )
    *_, done = policy.infer(raw, Options(num_steps=2))
    assert isinstance(done, Done)
    assert done.trace.actions.shape == (1, 10, 14)
    assert np.isfinite(done.trace.actions).all()


def test_a_published_name_without_a_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))

    def offline(*_, **__):
        raise ValueError("cannot get gs://openpi-assets/checkpoints/pi0_droid, is there a network?")

    monkeypatch.setattr(loading.download, "obtain", offline)
    with pytest.raises(ValueError, match="network"):
        loading.open_policy("pi0_droid")


def test_names_nobody_has_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="pi0_droid"):
        loading.open_policy("pi0_drod")


@pytest.mark.parametrize("name", catalog.BUNDLED_PAIR)
def test_the_page_s_policies_open_and_are_labelled(name):
    """Trained where assets has weights, random otherwise, and never without a label."""
    policy = loading.open_policy(name)
    trained = (catalog.ASSETS / name / "config.json").is_file()
    assert policy.info.badge == ("small bundled policy" if trained else "untrained weights")
    assert policy.info.notice
    loading.warm_up(policy)


@pytest.mark.parametrize("config", [PI0_TABLETOP, PI0_FAST_TABLETOP], ids=["pi0", "fast"])
def test_random_weights_repeat_and_differ_by_seed(config):
    def first(seed):
        return np.asarray(random_model(config, seed).gemma.embedding[...])

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))
