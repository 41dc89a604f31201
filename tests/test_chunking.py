"""Real-time chunking against the authors' code, and through the model against its own numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import chunking
from models.chunking import ChunkingPrograms, prefix_weights
from models.pi0 import Pi0Programs
from tests.support.golden_models import case


@pytest.fixture(scope="module")
def recorded(goldens):
    folder = goldens / "rtc"
    with np.load(folder / "rtc.npz", allow_pickle=False) as arrays:
        return json.loads((folder / "rtc.json").read_text()), dict(arrays)


def test_prefix_weights_are_the_authors(recorded):
    cases, arrays = recorded
    for i, w in enumerate(cases["weights"]):
        found = prefix_weights(w["start"], w["end"], w["total"], w["schedule"])
        np.testing.assert_allclose(found, arrays[f"weights/{i}"], atol=2e-7)


@pytest.mark.parametrize("number", range(12))
def test_guided_denoising_is_the_authors(recorded, number):
    """Of a known velocity, in their time tanh(x A + b s + c x x') - x / 2, where x' is x a step
    before in a ring: steps depend on each other, so that a wrong Jacobian shows. A straight sum is
    plain; what stands between it and the recorded chunk is the guidance."""
    cases, arrays = recorded
    case, a, b, c = cases["cases"][number], *(arrays[key] for key in "Abc")
    noise, previous = arrays[f"{number}/noise"], arrays[f"{number}/previous"]

    def velocity(x, t):
        inner = x @ a + b * (1 - t) + c * x * jnp.roll(x, 1, axis=1)
        return -(jnp.tanh(inner) - x / 2)

    def denoise(weights):
        path = chunking.denoise_guided(
            *(velocity, noise, previous, weights, case["num_steps"], case["max_guidance_weight"])
        )
        return np.asarray(path.x_t[-1])

    weights = prefix_weights(case["delay"], case["horizon"], noise.shape[1], case["schedule"])
    np.testing.assert_allclose(denoise(weights), arrays[f"{number}/actions"], atol=5e-6)
    np.testing.assert_allclose(denoise(0 * weights), arrays[f"{number}/plain"], atol=2e-6)


# --- through the model --------------------------------------------------------------------------


class Small:
    """A recorded case: its model's programs, its prefix, and an old chunk."""

    def __init__(self, family: str):
        recorded = case(family, "b2_leftmasked")
        self.model, self.observation = recorded.model(), recorded.observation()
        self.programs, self.guided = Pi0Programs(self.model), ChunkingPrograms(self.model)
        self.prefix = self.programs.prefill(self.observation)
        batch, config = self.observation.state.shape[0], self.model.config
        rng = np.random.default_rng(0)
        shape = (batch, config.action_horizon, config.action_dim)
        self.noise, self.previous = rng.standard_normal((2, *shape)).astype(np.float32)
        self.given = (self.prefix, self.observation, self.noise, self.previous)


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def small(request, goldens):
    return Small(request.param)


def test_weights_of_zero_give_the_plain_chunk(small):
    plain = small.programs.denoise_all(small.prefix, small.observation, small.noise, num_steps=10)
    none = prefix_weights(0, 10, 10, "zeros")
    path = small.guided.denoise_all(*small.given, none, num_steps=10)
    np.testing.assert_array_equal(path.x_t, plain.x_t)
    hardly = none + np.float32(1e-12)
    path = small.guided.denoise_all(*small.given, hardly, num_steps=10)
    np.testing.assert_allclose(path.x_t, plain.x_t, atol=1e-5)


def test_the_correction_is_the_error_pulled_back_through_the_model(small):
    """By forward differentiation: <u, J^T e> = <J u, e> for any u, and J is not the identity."""
    weights, t, bound = prefix_weights(3, 8, 10, "exp"), np.float32(0.6), 2.5
    x = jnp.asarray(small.noise)

    def velocity(x):
        return small.model.velocity(small.prefix, small.observation, x, t)[0]

    @jax.jit
    def both(x, u):
        x_0, moved = jax.jvp(lambda x: x - t * velocity(x), (x,), (u,))
        error = (small.previous - x_0) * weights[:, None]
        guided, plain = chunking.guided_velocity(velocity, x, t, small.previous, weights, bound)
        return jnp.sum(u * (plain - guided)), jnp.sum(moved * error), jnp.sum(u * error)

    scale = min((t**2 + (1 - t) ** 2) / (t * (1 - t)), bound)
    for seed in range(3):
        u = np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
        found, expected, of_identity = map(float, both(x, u))
        assert found == pytest.approx(scale * expected, rel=1e-3)
        assert abs(found - scale * of_identity) > 1e-2 * abs(found)


def test_what_is_held_is_kept_and_what_is_not_is_free(small):
    weights = prefix_weights(4, 4, 10, "ones")
    path = small.guided.denoise_all(*small.given, weights, num_steps=10, max_guidance=10.0)
    plain = small.programs.denoise_all(small.prefix, small.observation, small.noise, num_steps=10)
    apart = [np.abs(np.asarray(p.x_t[-1]) - small.previous).mean((0, 2)) for p in (path, plain)]
    assert (apart[0][:4] < 0.3 * apart[1][:4]).all()
    assert apart[0][6:].mean() > 0.5 * apart[1][6:].mean()


def test_what_cannot_be(small):
    programs = small.guided
    weights = prefix_weights(2, 8, 10, "linear")
    with pytest.raises(ValueError, match=r"the old chunk is .*; expected"):
        programs.denoise_all(*small.given[:3], small.previous[:, :5], weights)
    with pytest.raises(ValueError, match=r"its weights \[9\]; expected .* and \[10\]"):
        programs.denoise_all(*small.given, weights[:9])
    with pytest.raises(ValueError, match="finite"):
        programs.denoise_all(*small.given[:3], small.previous * np.nan, weights)
    with pytest.raises(ValueError, match="schedule is 'cosine'"):
        prefix_weights(2, 8, 10, "cosine")
    with pytest.raises(ValueError, match="overlap 11 of a horizon of 10"):
        prefix_weights(2, 11, 10, "exp")
