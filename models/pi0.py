"""pi0 and pi0.5: a chunk of actions by flow matching (arXiv 2410.24164, 2504.16054; openpi's
`models/pi0.py` for the numerics).

Time: t = 1 is noise, t = 0 the action (the papers' tau is 1 - t). x_t = t noise + (1 - t) actions,
velocity v = noise - actions, one Euler step x_{t+dt} = x_t + dt v_t with dt = -1 / S.

Axes: B batch, P prefix tokens (cameras, then text), A action horizon, M the model's action
dimensions, Q suffix tokens (pi0: state and A actions; pi0.5: A actions), S Euler steps.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from models import masks
from models.compiled import compiled
from models.config import Pi0Config
from models.embedded import Embedded, cameras_and_text
from models.gemma import Gemma, KVCache, Pair, Pass, ReadCache
from models.masks import Cuts
from models.matmul import laid_out
from models.observation import Observation
from models.siglip import Siglip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """The prefix after its pass. One of a single row serves any number of suffixes.

    cache: keys and values, [B, P, K, H] a layer
    input_mask: bool [B, P], which tokens are valid: the suffix attends to them
    first_position: int32 [B], where the suffix begins
    cuts: bool [L, B, Q, P + Q], what the suffix may not attend to all the same, see `masks.Cuts`
    """

    cache: KVCache
    input_mask: Array
    first_position: Array
    cuts: Array | np.ndarray | None = None


class Trajectory(NamedTuple):
    """S Euler steps, all of a denoising or some: times [S + 1], x_t [S + 1, B, A, M] (the last is
    what they lead to), v_t [S, B, A, M], and each layer's attention [S, B, N, Q, P + Q] when asked
    for, else ()."""

    times: Array | np.ndarray
    x_t: Array
    v_t: Array
    attention: tuple[Array, ...] = ()

    @property
    def num_steps(self) -> int:
        return len(self.v_t)


def time_embedding(t: Array, width: int) -> Array:
    """float [B] to [B, width]: sines then cosines of 2 pi t / period, periods 4e-3 to 4, float32.

    Source: openpi `posemb_sincos`. The shortest period turns by 1571 rad over t in [0, 1], so one
    rounding of a period is worth 1e-4 here.
    """
    fraction = jnp.linspace(0.0, 1.0, width // 2, dtype=jnp.float32)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = t.astype(jnp.float32)[:, None] * (2 * jnp.pi / period)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def draw_noise_and_time(noise_key: Array, time_key: Array, actions: Array) -> tuple[Array, Array]:
    """For actions [B, A, M]: standard normal noise like them, and t [B] from Beta(1.5, 1) scaled
    into [0.001, 1]."""
    noise = jax.random.normal(noise_key, actions.shape)
    time = jax.random.beta(time_key, 1.5, 1.0, actions.shape[:1]) * 0.999 + 0.001
    return noise, time


def noisy(actions: Array, noise: Array, time: Array) -> Array:
    """x_t [B, A, M] of actions at t [B]."""
    t = time[:, None, None]
    return t * noise + (1 - t) * actions


def flow_matching_loss(v_t: Array, actions: Array, noise: Array) -> Array:
    """Mean over action dimensions of (v_t - (noise - actions))²: [B, A]."""
    return jnp.mean(jnp.square(v_t - (noise - actions)), axis=-1)


def step_times(num_steps: int) -> np.ndarray:
    """float32 [S + 1] from 1 towards 0. PARITY: accumulated in float32, so 0.9 is 0.89999998."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    return np.cumsum(np.r_[np.float32(1), np.full(num_steps, -1 / num_steps, np.float32)])


def euler_steps(
    velocity: Callable[[Array, Array], tuple[Array, Sequence[Array]]],
    x_t: Array | np.ndarray,
    times: Array | np.ndarray,
    num_steps: int | Array,
) -> Trajectory:
    """The steps from x_t [B, A, M] at times[0] to times[-1], of a denoising of `num_steps`.
    velocity: of (x_t, scalar t), v_t [B, A, M] and what else is kept of each step, as attention."""

    def euler(x_t, time):
        v_t, attention = velocity(x_t, time)
        x_next = x_t + (-1.0 / num_steps) * v_t
        return x_next, (x_next, v_t, tuple(attention))

    x_t = jnp.asarray(x_t)
    _, (x_next, v_t, attention) = jax.lax.scan(euler, x_t, jnp.asarray(times)[:-1])
    return Trajectory(times, jnp.concatenate([x_t[None], x_next]), v_t, attention)


class Pi0(nnx.Module):
    """The flow-matching policy; `config.pi05` chooses pi0.5."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        width = config.action_expert.width
        self.config = config
        self.vision = Siglip(config.vision, config.language.width, dtype=dtype, rngs=rngs)
        self.gemma = Gemma(
            config.vocab_size,
            config.language,
            config.action_expert,
            adaptive_action=config.pi05,
            float32_query=False,
            dtype=dtype,
            rngs=rngs,
        )
        # The heads take no compute dtype: they work in the wider of input and weights, float32
        # during training and for float32 weights.
        self.action_in_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
        self.action_out_proj = nnx.Linear(width, config.action_dim, rngs=rngs)
        if config.pi05:
            self.time_mlp_in = nnx.Linear(width, width, rngs=rngs)
            self.time_mlp_out = nnx.Linear(width, width, rngs=rngs)
        else:
            self.state_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
            self.action_time_mlp_in = nnx.Linear(2 * width, width, rngs=rngs)
            self.action_time_mlp_out = nnx.Linear(width, width, rngs=rngs)

    # --- embeddings -----------------------------------------------------------------------------

    def embed_images(self, images: Array) -> Array:
        """float32 [B, size, size, 3] in [-1, 1] to [B, tokens a camera, D]."""
        return self.vision(images)[0]

    def embed_prefix(
        self, observation: Observation, image_tokens: dict[str, Array] | None = None
    ) -> Embedded:
        """Cameras in the config's order, then text: [B, P, D], one bidirectional block.

        A slot that the observation leaves out takes no columns; that changes nothing against a
        masked one, whose tokens nobody attends to and which takes no positions. `image_tokens` (by
        slot) replaces the pass through SigLIP.
        """
        slots = self.config.image_slots
        tokens, input_mask = cameras_and_text(
            slots, self.vision, self.gemma, observation, image_tokens
        )
        return Embedded(tokens, input_mask, np.zeros(tokens.shape[1], bool))

    def embed_suffix(
        self, observation: Observation, noisy_actions: Array, timestep: Array
    ) -> tuple[Embedded, Array | None]:
        """x_t [B, A, M] at t [B] to (suffix tokens [B, Q, D'], pi0.5's adaRMS condition [B, D']).

        Everything here is float32 (or the weights' wider type).
        """
        actions = self.action_in_proj(noisy_actions)  # [B, A, D']
        width = actions.shape[-1]
        if self.config.pi05:
            time = time_embedding(timestep, width)
            condition = nnx.swish(self.time_mlp_out(nnx.swish(self.time_mlp_in(time))))
            tokens = actions
        else:
            condition = None
            time = time_embedding(timestep, width)
            time = jnp.broadcast_to(time[:, None, :], actions.shape)
            hidden = self.action_time_mlp_in(jnp.concatenate([actions, time], axis=-1))
            actions = self.action_time_mlp_out(nnx.swish(hidden))
            state = self.state_proj(jnp.asarray(observation.state))[:, None, :]
            tokens = jnp.concatenate([state, actions], axis=1)
        input_mask = jnp.ones(tokens.shape[:2], bool)
        return Embedded(tokens, input_mask, masks.suffix_ar_mask(self.config)), condition

    # --- training -------------------------------------------------------------------------------

    def forward(
        self, observation: Observation, noisy_actions: Array, timestep: Array
    ) -> tuple[Array, Pair[Array], list[Array]]:
        """Prefix and suffix in one pass: (v_t [B, A, M], both experts' outputs, attention)."""
        prefix = self.embed_prefix(observation)
        suffix, condition = self.embed_suffix(observation, noisy_actions, timestep)
        input_mask = jnp.concatenate([prefix.input_mask, suffix.input_mask], axis=1)
        ar_mask = np.concatenate([prefix.ar_mask, suffix.ar_mask])
        outputs, _, attention = self.gemma(
            Pair(prefix.tokens, suffix.tokens),
            masks.positions(input_mask),
            masks.block_causal(input_mask, ar_mask),
            condition=condition,
        )
        _, suffix_out = outputs.present()
        return self._velocity(suffix_out), outputs, attention

    def compute_loss(
        self,
        key: Array,
        observation: Observation,
        actions: Array,
        noise: Array | None = None,
        time: Array | None = None,
    ) -> Array:
        """Flow-matching loss, mean over action dimensions: float32 [B, A].

        actions: normalised and padded, float32 [B, A, M]. noise [B, A, M] and time [B] are drawn
        from the key when not given: standard normal, and Beta(1.5, 1) scaled into [0.001, 1].
        """
        # The first part of the key is openpi's for image augmentation, which is training's here.
        _, noise_key, time_key = jax.random.split(key, 3)
        drawn_noise, drawn_time = draw_noise_and_time(noise_key, time_key, actions)
        noise = drawn_noise if noise is None else noise
        time = drawn_time if time is None else time
        v_t, _, _ = self.forward(observation, noisy(actions, noise, time), time)
        return flow_matching_loss(v_t, actions, noise)

    def compute_loss_over_prefix(
        self, prefix: Prefix, observation: Observation, actions: Array, noise: Array, time: Array
    ) -> Array:
        """`compute_loss` over a prefix that has run, so that several draws may share it."""
        v_t, _ = self.velocity(prefix, observation, noisy(actions, noise, time), time)
        return flow_matching_loss(v_t, actions, noise)

    # --- sampling -------------------------------------------------------------------------------

    def prefill(
        self,
        observation: Observation,
        image_tokens: dict[str, Array] | None = None,
        cuts: Cuts | None = None,
    ) -> tuple[Prefix, list[Array]]:
        """The prefix pass, once a chunk: (its keys and values, attention [B, N, P, P] a layer).

        Without state or noise in it, it stays valid while images and prompt do. cuts: connections
        that this pass, and every suffix over it, goes without.
        """
        prefix, passed = self.run_prefix(observation, image_tokens, cuts)
        return prefix, passed.attention

    def run_prefix(
        self,
        observation: Observation,
        image_tokens: dict[str, Array] | None = None,
        cuts: Cuts | None = None,
    ) -> tuple[Prefix, Pass]:
        """`prefill` with all that the pass gives; its outputs are what grounding is learned by."""
        embedded = self.embed_prefix(observation, image_tokens)
        mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)
        positions = masks.positions(embedded.input_mask)
        in_prefix, in_suffix = cuts or (None, None)
        passed = self.gemma(Pair(prefix=embedded.tokens), positions, masks.cut(mask, in_prefix))
        first = jnp.sum(embedded.input_mask, axis=1)
        return Prefix(passed.cache, embedded.input_mask, first, in_suffix), passed

    def velocity(
        self,
        prefix: Prefix,
        observation: Observation,
        x_t: Array,
        time: Array,
    ) -> tuple[Array, list[Array]]:
        """v_t [B, A, M] at t, one for all or [B], over a prefix that has run; and attention
        [B, N, Q, P + Q] a layer.

        Only the observation's state is used (pi0), or nothing of it (pi0.5). A prefix of one row
        serves all rows of x_t.
        """
        time = jnp.broadcast_to(time, x_t.shape[:1])
        suffix, condition = self.embed_suffix(observation, x_t, time)
        mask = masks.suffix_mask(prefix.input_mask, suffix.input_mask, suffix.ar_mask)
        outputs, _, attention = self.gemma(
            Pair(suffix=suffix.tokens),
            prefix.first_position[:, None] + masks.positions(suffix.input_mask),
            masks.cut(mask, prefix.cuts),
            condition=condition,
            cache=ReadCache(prefix.cache),
        )
        (suffix_out,) = outputs.present()
        return self._velocity(suffix_out), attention

    def sample_trajectory(
        self, observation: Observation, noise: Array, num_steps: int = 10
    ) -> Trajectory:
        """The whole denoising from noise [B, A, M] (t = 1), every step kept."""
        prefix, _ = self.prefill(observation)
        return self.denoise_all(prefix, observation, noise, num_steps)

    def denoise_all(
        self, prefix: Prefix, observation: Observation, noise: Array, num_steps: int
    ) -> Trajectory:
        """`sample_trajectory` over a prefix that has run."""
        return self.denoise_steps(prefix, observation, noise, step_times(num_steps), num_steps)

    def denoise_steps(
        self,
        prefix: Prefix,
        observation: Observation,
        x_t: Array,
        times: Array | np.ndarray,
        num_steps: int | Array,
        *,
        attention: bool = False,
    ) -> Trajectory:
        """`euler_steps` over a prefix that has run."""

        def velocity(x_t, time):
            v_t, weights = self.velocity(prefix, observation, x_t, time)
            return v_t, weights if attention else ()

        return euler_steps(velocity, x_t, times, num_steps)

    def sample_actions(self, observation: Observation, noise: Array, num_steps: int = 10) -> Array:
        """The chunk [B, A, M], float32, from noise [B, A, M]: normalised, padded dimensions too."""
        return self.sample_trajectory(observation, noise, num_steps).x_t[-1]

    def _velocity(self, suffix_out: Array) -> Array:
        return self.action_out_proj(suffix_out[:, -self.config.action_horizon :])


def _prefix_alone(model: Pi0, *args) -> Prefix:
    return model.prefill(*args)[0]


class Pi0Programs:
    """The compiled entry points of one model."""

    def __init__(self, model: Pi0):
        model = laid_out(model)
        self.embed_images = compiled(model, Pi0.embed_images)
        self.prefill = compiled(model, _prefix_alone)
        self.prefill_attention = compiled(model, Pi0.prefill)
        self.sample_actions = compiled(model, Pi0.sample_actions, ("num_steps",))
        self.sample_trajectory = compiled(model, Pi0.sample_trajectory, ("num_steps",))
        self._steps = compiled(model, Pi0.denoise_steps, ("attention",))

    def denoise_all(
        self,
        prefix: Prefix,
        observation: Observation,
        noise: Array | np.ndarray,
        num_steps: int = 10,
    ) -> Trajectory:
        """`Pi0.denoise_all`, by the program that `denoise` runs at once."""
        (whole,) = self.denoise(prefix, observation, noise, num_steps, at_once=True)
        return whole

    def denoise(
        self,
        prefix: Prefix,
        observation: Observation,
        noise: Array | np.ndarray,
        num_steps: int = 10,
        *,
        attention: bool = False,
        at_once: bool = False,
    ) -> Iterator[Trajectory]:
        """The denoising step by step, each as it is done, or all steps by one program at once."""

        def run(x_t, times):
            return self._steps(prefix, observation, x_t, times, num_steps, attention=attention)

        return parts(run, noise, num_steps, at_once)

    def denoise_ahead(self, prefix, observation, noise, num_steps: int, *, at_once: bool) -> None:
        """Compiles what `denoise` runs, of shapes."""
        times = step_times(num_steps)[: num_steps + 1 if at_once else 2]
        self._steps.ahead(prefix, observation, noise, times, num_steps, attention=False)


def parts(
    run: Callable[[Array | np.ndarray, np.ndarray], Trajectory],
    noise: Array | np.ndarray,
    num_steps: int,
    at_once: bool,
) -> Iterator[Trajectory]:
    """A denoising by `run`, which goes from x_t through some times: step by step, or at once."""
    times, x_t, size = step_times(num_steps), noise, num_steps if at_once else 1
    for start in range(0, num_steps, size):
        part = run(x_t, times[start : start + size + 1])
        yield part
        if start + size < num_steps:  # behind the last part this would be a program for nothing
            x_t = part.x_t[-1]
