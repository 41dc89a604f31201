"""openpi's whole chains, held through `Policy`: what a robot's client sends to what the model eats,
and what the model gives to the robot's actions. Robots, settings and sizes are the catalogue's, but
for the models' depth and vocabulary: none is run, and they hold no numbers."""

import dataclasses
import functools
import hashlib

import numpy as np
import pytest

from models.checkpoints.assembly import abstract_model
from models.fast_tokenizer import FastActionTokenizer
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import catalog, load
from playground.policies.flow import FlowPolicy
from playground.robots import conversion, norm_stats, transforms
from tests.conftest import GOLDENS
from tests.support.openpi_cases import Recorded, close, to_stats

FOLDER = GOLDENS / "transforms"
RECORDED = Recorded(FOLDER, "pipelines") if FOLDER.is_dir() else None
CASES = {case["name"]: case for case in RECORDED.data["cases"]} if RECORDED else {}


def test_there_are_25(goldens):
    assert len(CASES) == 25
    assert {case["params"]["config"] for case in CASES.values()} <= {*catalog.entries()}


@pytest.fixture(scope="module")
def tokenizers(goldens):
    text = PaligemmaTokenizer(FOLDER / "sentencepiece" / "tiny_paligemma.model")
    return text, FastActionTokenizer.load(FOLDER / "fast")


def policy_of(case, stats, tokenizers):
    """The published policy as it is loaded, but for its weights, norm stats and tokenizers."""
    entry = catalog.named(case["params"]["config"])
    method = "quantile" if case["params"]["use_quantiles"] else "z-score"
    entry = dataclasses.replace(entry, normalisation=method)
    dims = {"state": len(entry.robot.state), "actions": len(entry.robot.actions)}
    stats = {key: norm_stats.trim(to_stats(stats[key]), count) for key, count in dims.items()}
    info = load.describe(entry, entry.config, revision="", badge="", notice="", stats=stats)
    text, fast = tokenizers
    config = dataclasses.replace(entry.config, vocab_size=text.vocab_size)
    return load.assemble(info, entry, shallow(config), text, fast)


@functools.cache
def shallow(config):
    parts = {"vision", "language", "action_expert"} & {f.name for f in dataclasses.fields(config)}
    layers = {part: dataclasses.replace(getattr(config, part), depth=1) for part in parts}
    return abstract_model(dataclasses.replace(config, **layers))


@pytest.mark.parametrize("name", CASES)
def test_a_whole_chain(name, tokenizers):
    case = CASES[name]
    inputs, outputs = (RECORDED.tree(case[part]) for part in ("inputs", "outputs"))
    policy, expected = policy_of(case, inputs["norm_stats"], tokenizers), outputs["model_input"]
    info = policy.info
    raw = conversion.from_openpi(
        policy.robot, info.family, inputs["observation"], info.default_prompt
    )

    prepared = policy.prepare(raw)
    digests = {
        slot: hashlib.sha256(image.tobytes()).hexdigest() for slot, image in prepared.images.items()
    }
    assert digests == expected["image_sha256"]
    assert {s: mode != "masked" for s, mode in prepared.modes.items()} == expected["image_mask"]
    np.testing.assert_array_equal(prepared.prompt.tokens, expected["tokenized_prompt"])
    np.testing.assert_array_equal(prepared.prompt.mask, expected["tokenized_prompt_mask"])

    actions, state = inputs["model_output"], prepared.state
    if isinstance(policy, FlowPolicy):  # openpi pads no state for FAST
        state = transforms.pad(state, policy.config.action_dim)
    close(state, expected["state"])
    if not isinstance(policy, FlowPolicy):
        np.testing.assert_array_equal(prepared.prompt.ar_mask, expected["token_ar_mask"])
        np.testing.assert_array_equal(prepared.prompt.loss_mask, expected["token_loss_mask"])
        sizes = info.horizon, len(info.actions)
        actions = policy.tokenizer.extract_actions(actions.astype(int), *sizes).actions

    ours = policy.to_robot(actions, raw)
    for route in outputs.keys() & {"policy_jax", "policy_torch"}:
        np.testing.assert_allclose(ours, outputs[route]["actions"], rtol=2e-7, atol=1e-6)
