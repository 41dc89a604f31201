"""Real-time chunking: a new chunk that goes on where the one under way is (arXiv 2506.07339).

While the model computes, a robot executes d steps of its old chunk. The new one has to agree with
those, and should agree softly with what the old one had planned beyond: denoising is guided towards
the old chunk, as in inpainting. Each step adds to the velocity a multiple of J^T (w (y - x_0)),
where y is the old chunk, x_0 = x_t - t v_t the estimate of the action, J its Jacobian by x_t (a
vector-Jacobian product through the model, not the identity), and w a weight for each step.

Time is openpi's: t = 1 is noise, t = 0 the action. The authors' time is s = 1 - t, and their
velocity -v; the formulas below are theirs in our time. Axes as in `pi0.py`: B batch, A action
horizon, M the model's action dimensions, S Euler steps.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from models.compiled import compiled
from models.matmul import laid_out
from models.observation import Observation
from models.pi0 import Pi0, Prefix, euler_steps, step_times

Schedule = Literal["linear", "exp", "ones", "zeros"]
MAX_GUIDANCE = 5.0  # the authors' choice for 5 steps


class GuidedTrajectory(NamedTuple):
    """S Euler steps under guidance: times [S + 1], x_t [S + 1, B, A, M], the velocities that were
    followed, v_t [S, B, A, M], and what the model itself said at the same x_t, plain_v_t."""

    times: Array | np.ndarray
    x_t: Array
    v_t: Array
    plain_v_t: Array


def prefix_weights(delay: int, overlap: int, horizon: int, schedule: Schedule) -> np.ndarray:
    """How strongly each step of the new chunk is held to the old one: float32 [horizon].

    delay: steps executed before the new chunk is there, weight 1 (fewer, if overlap is less);
    overlap: steps that the old chunk still has to say something about, 0 from there on; schedule:
    between the two falling linearly, "exp" faster, staying 1 ("ones") or 0 ("zeros").

    Source: the authors' `get_prefix_weights`. Raises ValueError for numbers that cannot be.
    """
    if horizon < 1 or delay < 0 or not 0 <= overlap <= horizon:
        raise ValueError(
            f"delay is {delay}, overlap {overlap} of a horizon of {horizon}; expected a delay of "
            "at least 0 and an overlap of 0 to the horizon"
        )
    delay, steps = min(delay, overlap), np.arange(horizon)
    if schedule == "ones":
        weights = np.ones(horizon)
    elif schedule == "zeros":
        weights = (steps < delay).astype(np.float64)
    elif schedule in ("linear", "exp"):
        weights = np.clip(1 - (steps - delay + 1) / (overlap - delay + 1), 0, 1)
        if schedule == "exp":
            weights = weights * np.expm1(weights) / (np.e - 1)
    else:
        raise ValueError(f"schedule is {schedule!r}; expected linear, exp, ones or zeros")
    return np.where(steps < overlap, weights, 0).astype(np.float32)


def guidance_scale(t: Array, max_guidance: float) -> Array:
    """What multiplies the correction at time t: min(c r, max_guidance) with c = t / (1 - t) and
    r = (t² + (1 - t)²) / t², which is without bound at t = 1."""
    rest = jnp.maximum(1 - t, 1e-12)
    return jnp.minimum((t**2 + (1 - t) ** 2) / (t * rest), max_guidance)


def guided_velocity(
    velocity: Callable[[Array], Array],
    x_t: Array,
    t: Array,
    previous: Array,
    weights: Array,
    max_guidance: float = MAX_GUIDANCE,
) -> tuple[Array, Array]:
    """v_t [B, A, M] corrected towards the old chunk, and v_t as it is.

    velocity: v_t of x_t [B, A, M] at this time; t: scalar; previous [B, A, M]: what the old chunk
    says for the steps of the new one, finite also where the weights are 0; weights [A].
    """

    def estimate(x_t):
        v_t = velocity(x_t)
        return x_t - t * v_t, v_t

    x_0, pull_back, v_t = jax.vjp(estimate, x_t, has_aux=True)
    (correction,) = pull_back((previous - x_0) * weights[:, None])
    return v_t - guidance_scale(t, max_guidance) * correction, v_t


def denoise_guided(
    velocity: Callable[[Array, Array], Array],
    noise: Array,
    previous: Array,
    weights: Array,
    num_steps: int = 10,
    max_guidance: float = MAX_GUIDANCE,
) -> GuidedTrajectory:
    """The whole denoising from noise [B, A, M] under guidance.

    velocity: (x_t, scalar t) to v_t [B, A, M]; the rest as in `guided_velocity`.
    """

    def guided(x_t, t):
        at = lambda x: velocity(x, t)  # noqa: E731
        v_t, plain = guided_velocity(at, x_t, t, previous, weights, max_guidance)
        return v_t, (plain,)

    times, x_t, v_t, (plain,) = euler_steps(guided, noise, step_times(num_steps), num_steps)
    return GuidedTrajectory(times, x_t, v_t, plain)


class ChunkingPrograms:
    """Guided denoising of one model as a compiled program. `model` shares its weights with the
    model's `Pi0Programs` if both are given the same one that is `laid_out` already."""

    def __init__(self, model: Pi0):
        model = laid_out(model)
        self._plain = compiled(model, Pi0.denoise_all, ("num_steps",))

        def guided(model, prefix, observation, noise, previous, weights, max_guidance, num_steps):
            velocity = lambda x, t: model.velocity(prefix, observation, x, t)[0]  # noqa: E731
            return denoise_guided(velocity, noise, previous, weights, num_steps, max_guidance)

        self._guided = compiled(model, guided, ("num_steps",))

    def denoise_all(
        self,
        prefix: Prefix,
        observation: Observation,
        noise: Array | np.ndarray,
        previous: Array | np.ndarray,
        weights: np.ndarray,
        num_steps: int = 10,
        max_guidance: float = MAX_GUIDANCE,
    ) -> GuidedTrajectory:
        """`Pi0.denoise_all` under guidance towards `previous`; with weights of 0 everywhere it is
        that program itself, so that the plain chunk comes out bit for bit.

        prefix, observation, noise [B, A, M]: as there. previous: float [B, A, M] normalised, in the
        new chunk's terms (offsets from its own state), finite; weights: float32 [A].
        Raises ValueError for other shapes and values.
        """
        previous, weights = np.asarray(previous, np.float32), np.asarray(weights, np.float32)
        if previous.shape != noise.shape or weights.shape != noise.shape[1:2]:
            raise ValueError(
                f"the old chunk is {list(previous.shape)} and its weights {list(weights.shape)}; "
                f"expected {list(noise.shape)} and {list(noise.shape[1:2])}"
            )
        if not np.isfinite(previous).all() or not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError("the old chunk must be finite, and its weights between 0 and 1")
        if not weights.any():
            path = self._plain(prefix, observation, noise, num_steps=num_steps)
            return GuidedTrajectory(path.times, path.x_t, path.v_t, path.v_t)
        return self._guided(
            prefix, observation, noise, previous, weights, max_guidance, num_steps=num_steps
        )
