"""A bundled policy asked for many prompts at once; in and out as on the page."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from models.checkpoints.bundled import load_bundled
from models.observation import Observation, uint8_to_float
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0FastPrograms
from playground.checkpoints.load import open_policy
from playground.policies.base import Prepared, sample_noise
from playground.policies.fast import FastPolicy
from playground.robots import conversion
from playground.trace import Options, RawObservation

NUM_STEPS, MAX_TOKENS = 10, 256  # as on the page


class Asker:
    """A bundled policy asked for many prompts over one picture at once, always `rows` of them.

    The observation goes in and the chunk comes out as in `playground.policies.base`; only the batch
    is this class's own.
    """

    def __init__(self, folder: Path, rows: int, constrained: bool | None = None):
        """constrained: as in playground.trace.Options, so None is as on the page."""
        self.policy = open_policy(str(folder.resolve()))
        _, model = load_bundled(folder)
        self.flow = isinstance(model, Pi0)
        self._rows, self._constrained = rows, constrained
        self._programs = Pi0Programs(model) if isinstance(model, Pi0) else Pi0FastPrograms(model)

    def chunks(self, raws: Sequence[RawObservation], seed: int) -> list[np.ndarray | None]:
        """The chunk of each, float64 [horizon, 14] in the robot's units; None where FAST's tokens
        do not decode. All share their pictures, and pi0's noise."""
        prepared = [self.policy.prepare(raw) for raw in raws]
        prepared += [prepared[-1]] * (self._rows - len(prepared))
        tokens = self._image_tokens(prepared[0])
        observation = self._observation(prepared, tuple(tokens))
        if isinstance(self._programs, Pi0Programs):
            found = self._denoised(self._programs, observation, tokens, seed)
        else:
            found = self._written(self._programs, observation, tokens)
        return [self._to_robot(c, raw) for c, raw in zip(found, raws, strict=False)]

    def _denoised(
        self, programs: Pi0Programs, observation: Observation, tokens: dict, seed: int
    ) -> list[np.ndarray]:
        config = self.policy.config
        noise = sample_noise(seed, 1, config.action_horizon, config.action_dim)
        noise = jnp.repeat(jnp.asarray(noise), self._rows, axis=0)
        prefix = programs.prefill(observation, tokens)
        path = programs.denoise_all(prefix, observation, noise, num_steps=NUM_STEPS)
        return list(np.asarray(path.x_t[-1], np.float64))

    def _written(
        self, programs: Pi0FastPrograms, observation: Observation, tokens: dict
    ) -> list[np.ndarray | None]:
        policy = self.policy
        assert isinstance(policy, FastPolicy)
        options = policy.decode_options(Options(constrained=self._constrained))
        state = programs.prefill(observation, tokens, max_decoding_steps=MAX_TOKENS)
        written = np.asarray(programs.decode_all(state, None, options))
        horizon, dims = policy.info.horizon, len(policy.info.actions)
        return [
            policy.tokenizer.extract_actions(row.tolist(), horizon, dims).actions for row in written
        ]

    def _to_robot(self, actions: np.ndarray | None, raw: RawObservation) -> np.ndarray | None:
        info = self.policy.info
        if actions is None:
            return None
        return conversion.from_model(
            self.policy.robot, actions, raw.state, info.stats("actions"), info.method("actions")
        )

    def _image_tokens(self, prepared: Prepared) -> dict:
        """Each attended picture once, for all rows."""
        return {
            slot: jnp.repeat(
                self._programs.embed_images(uint8_to_float(image)[None]), self._rows, axis=0
            )
            for slot, image in prepared.images.items()
            if prepared.modes[slot] != "masked"
        }

    def _observation(self, prepared: list[Prepared], slots: tuple[str, ...]) -> Observation:
        stack = lambda name: np.stack([getattr(p.prompt, name) for p in prepared])  # noqa: E731
        return Observation(
            images={},
            image_masks={slot: jnp.ones(self._rows, bool) for slot in slots},
            state=np.stack([p.state for p in prepared]).astype(np.float32),
            tokens=stack("tokens").astype(np.int32),
            token_mask=stack("mask"),
            token_ar_mask=None if self.flow else stack("ar_mask").astype(np.int32),
            token_loss_mask=None if self.flow else stack("loss_mask"),
        )
