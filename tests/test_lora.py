"""LoRA fine-tunes of openpi, merged at load, against recorded runs of the adapted models."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from models import pi0
from models.checkpoints import assembly, lora, openpi
from models.checkpoints.lora import Adapters, Lora
from models.compiled import compiled
from models.pi0_fast import Pi0Fast
from tests.support.golden_models import CONFIGS, GOLDENS, case, close, same

CONFIG = {
    "pi0": CONFIGS["pi0"],
    "pi0_fast": dataclasses.replace(CONFIGS["pi0_fast"], max_token_len=96),
}
# By the prefix of the recorded arrays: which parameters, and the scale they were run with.
RUNS = {
    "": ("params", Lora(rank=4, alpha=8.0)),
    "rslora_": ("params", Lora(rank=4, alpha=8.0, rslora=True)),
    "trained_": ("params_trained", Lora(rank=4, alpha=8.0)),
}
PLAIN = RUNS[""][1]
each_run = pytest.mark.parametrize("run", RUNS)


@functools.cache
def load(family, run):
    params, adapter = RUNS[run]
    adapters = Adapters(adapter, adapter if family == "pi0" else None)
    folder = GOLDENS / "lora" / family / params
    return assembly.load_openpi(folder, CONFIG[family], dtype="float32", adapters=adapters)


def recorded_time_embedding(record):
    """The recorded embedding of the recorded time that is nearest: openpi's own is only
    reproducible to 1e-4, which would hide the rounding that these tests are after."""
    times = jnp.concatenate([record["steps_time"], record["loss_time"]])
    embeddings = jnp.concatenate([record["steps_time_emb"], record["loss_time_emb"]])
    return lambda t, width: embeddings[jnp.argmin(jnp.abs(times - t[:, None]), axis=1)]


@each_run
def test_pi0(goldens, monkeypatch, run):
    record = case("pi0", "b2", goldens / "lora")
    model, observation = load("pi0", run), record.observation()
    monkeypatch.setattr(pi0, "time_embedding", recorded_time_embedding(record))
    # As the product runs it: XLA's own choice of products alone moved rslora's actions by 1.2e-4.
    actions = compiled(model, pi0.Pi0.sample_actions)(observation, record["noise"])
    close(actions, record[run + "actions_10"], 1e-4)
    loss = compiled(model, pi0.Pi0.compute_loss)(
        jax.random.key(0), observation, record["actions"], record["loss_noise"], record["loss_time"]
    )
    close(loss, record[run + "loss"], 5e-5)


@each_run
def test_pi0_fast(goldens, run):
    record = case("pi0_fast", "b2", goldens / "lora")
    model = load("pi0_fast", run)
    loss = jax.jit(model.compute_loss)(record.observation("train_"))
    close(loss, record[run + "loss"], 5e-5)
    sample = jax.jit(Pi0Fast.sample_actions, static_argnums=0, static_argnames="max_decoding_steps")
    tokens = sample(model, record.observation("infer_"), max_decoding_steps=12)
    same(tokens, record[run + "tokens_greedy"])


def test_stored_precision(goldens):
    """A merged weight is float32 whatever it was before; the rest stays as stored."""
    folder = goldens / "lora" / "pi0" / "params_trained"
    model = assembly.load_openpi(folder, CONFIG["pi0"], adapters=Adapters(PLAIN, PLAIN))
    dtypes = {name: str(value.dtype) for name, value in assembly.parameters_of(model).items()}
    assert dtypes["gemma/language/blocks/0/query"] == "float32"
    assert dtypes["gemma/language/blocks/0/attention_norm/scale"] == "bfloat16"
    assert dtypes["gemma/embedding"] == "bfloat16"
    assert dtypes["action_in_proj/kernel"] == "float32"
    # Asked for in bfloat16, the sum is rounded once, at the end.
    adapters = Adapters(PLAIN, PLAIN)
    half = assembly.load_openpi(folder, CONFIG["pi0"], dtype="bfloat16", adapters=adapters)
    same(
        half.gemma.action.blocks[1].out[...],
        np.asarray(model.gemma.action.blocks[1].out[...]).astype(ml_dtypes.bfloat16),
    )


def test_openpis_variants_are_unscaled():
    assert lora.GEMMA_2B_LORA.attention_scale == 1
    assert lora.GEMMA_300M_LORA.attention_scale == 1


def refused(goldens, message, adapters, family="pi0"):
    with pytest.raises(ValueError, match=message):
        assembly.load_openpi(goldens / "lora" / family, CONFIG[family], adapters=adapters)


def test_scale_is_asked_not_guessed(goldens):
    refused(goldens, r"LoRA adapters \(action: rank 4, language: rank 4\).*not stored", None)
    refused(goldens, r"LoRA adapters \(language: rank 4\)", None, "pi0_fast")


def test_adapters_that_do_not_fit(goldens):
    refused(
        goldens,
        r"q_einsum/lora_a: of rank 4, expected 16",
        Adapters(lora.GEMMA_2B_LORA, PLAIN),
    )
    refused(
        goldens,
        r"kv_einsum_1/lora_a: of rank 4, in an expert that should have no adapters",
        Adapters(PLAIN, None),
    )
    refused(
        goldens,
        "the action expert has no adapters; expected Lora",
        Adapters(PLAIN, PLAIN),
        "pi0_fast",
    )
    with pytest.raises(ValueError, match="the language expert has no adapters"):
        assembly.load_openpi(goldens / "pi0", CONFIG["pi0"], adapters=Adapters(PLAIN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("attn/q_einsum/lora_b"), "q_einsum/lora_a: .*q_einsum/lora_b is missing"),
        (lambda a: a.pop("attn/q_einsum/lora_a"), "q_einsum/lora_b: its other half is missing"),
        (lambda a: a.pop("mlp/linear"), "mlp/linear_lora_a: .*mlp/linear is missing"),
        (
            lambda a: a.update({"mlp/linear_lora_b": a["mlp/linear_lora_a"]}),
            r"linear_lora_a \[3, 128, 4\] and its B \[3, 128, 4\] beside \[3, 128, 64\]",
        ),
        (
            lambda a: a.update({"attn/odd/lora_a": a["attn/q_einsum/lora_a"]}),
            "attn/odd/lora_a: no layer that openpi adapts",
        ),
    ],
)
def test_broken_adapters(goldens, tmp_path, change, message):
    prefix = "PaliGemma/llm/layers/"
    stored = openpi.open_openpi(goldens / "lora" / "pi0_fast" / "params")
    arrays = {path.removeprefix(prefix): entry.read() for path, entry in stored.items()}
    change(arrays)
    arrays = {
        path if path.startswith("PaliGemma") else prefix + path: value
        for path, value in arrays.items()
    }
    assembly.write_openpi(arrays, tmp_path)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        assembly.load_openpi(tmp_path, CONFIG["pi0_fast"], adapters=Adapters(PLAIN))
