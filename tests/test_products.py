"""Weights that lie as the device wants them are the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import matmul
from models.checkpoints.assembly import parameters_of, random_model
from models.config import ExpertConfig
from models.matmul import Kernel, Linear, dot, laid_out
from models.observation import example_observation
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from tests.support.golden_models import CONFIGS

WIDE = ExpertConfig(width=256, depth=2, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=64)


def wide(family):
    """A model with sizes that lie badly in a processor's cache, and some that do not."""
    sizes = {"language": WIDE}
    if family != "pi0_fast":
        sizes["action_expert"] = dataclasses.replace(WIDE, width=128, mlp_dim=256)
    return random_model(dataclasses.replace(CONFIGS[family], **sizes))


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [256, 257, 768, 100])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_product_is_numpy_s_however_its_weights_lie(storage, columns, tokens):
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((2, tokens, 64), np.float32)
    layer = Linear(64, columns, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(rng.standard_normal(columns, np.float32))
    layer.kernel[...] = layer.kernel[...].astype(storage)
    weights = np.asarray(layer.kernel[...], np.float32)
    for given in (layer, laid_out(layer)):
        product = jax.jit(lambda x, given=given: dot(x, given.kernel))(x)
        np.testing.assert_allclose(product, x @ weights, atol=1e-4)
        np.testing.assert_allclose(given(x), x @ weights + layer.bias[...], atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_programs_give_the_numbers_of_the_model(family):
    """They lay its weights out, and leave the model as it is."""
    model = wide(family)
    before = {name: value.shape for name, value in parameters_of(model).items()}
    observation = example_observation(model.config)
    if family == "pi0_fast":
        how = {"max_decoding_steps": 4}
        want = jax.jit(lambda observation: Pi0Fast.sample_actions(model, observation, **how))(
            observation
        )
        np.testing.assert_array_equal(
            Pi0FastPrograms(model).sample_actions(observation, **how), want
        )
    else:
        size = (1, model.config.action_horizon, model.config.action_dim)
        noise = np.random.default_rng(0).standard_normal(size, np.float32)
        want = jax.jit(lambda observation: Pi0.sample_actions(model, observation, noise, 2))(
            observation
        )
        got = Pi0Programs(model).sample_actions(observation, noise, num_steps=2)
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert {name: value.shape for name, value in parameters_of(model).items()} == before


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere weights stay as they are")
def test_what_lies_badly_on_a_cpu_is_moved_and_nothing_else_copied():
    model = wide("pi0")
    moved = laid_out(model)
    before, after = parameters_of(model), parameters_of(moved)
    longer = {name for name in after if after[name].shape != before[name].shape}
    assert "gemma/language/blocks/0/gate" in longer
    assert "gemma/language/blocks/1/query" in longer
    assert "gemma/action/blocks/0/out" not in longer
    assert not any("key" in name for name in longer)
    for name, value in after.items():
        if name in longer:
            assert (value.shape[1] * value.itemsize) % 1024 != 0
        else:
            assert value.unsafe_buffer_pointer() == before[name].unsafe_buffer_pointer()
    kernels = [x for x in jax.tree.leaves(nnx.state(moved), is_leaf=lambda x: isinstance(x, Kernel))
               if isinstance(x, Kernel)]  # fmt: skip
    assert {kernel.columns for kernel in kernels} >= {64, 256, 512}


def test_a_large_model_is_not_held_twice(monkeypatch):
    model = wide("pi0_fast")
    copied = sum(x.nbytes for n, x in parameters_of(model).items() if x.shape[-1] % 256 == 0)
    assert laid_out(model) is not model
    monkeypatch.setattr(matmul, "MOST_COPIED", copied // 10)
    assert laid_out(model) is model
