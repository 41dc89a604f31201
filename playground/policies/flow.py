"""pi0 and pi0.5 as a policy: the prefix once, then Euler steps over all samples at once.

N samples, H horizon, D the robot's action dimensions, M the model's.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from models.chunking import MAX_GUIDANCE, ChunkingPrograms
from models.config import Pi0Config
from models.interventions import Pi0Interventions
from models.matmul import laid_out
from models.pi0 import Pi0, Pi0Programs, Trajectory
from models.tokenizer import PaligemmaTokenizer, Prompt
from playground.policies import token_layout
from playground.policies.base import (
    Policy,
    Prepared,
    check_options,
    first_sample,
    sample_noise,
)
from playground.policies.places import Places, flow, text_parts
from playground.robots import norm_stats, transforms
from playground.robots.robot import Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.serving.events import Step
from playground.trace import FlowTrace, Options, PolicyInfo, RawObservation

# One program for all steps is compiled for their number: the usual one, before anybody waits. Many
# samples take long enough to be followed.
_STEPS, _FEW = Options().num_steps, 4


@dataclasses.dataclass(frozen=True, slots=True)
class GuidedChunk:
    """A chunk by real-time chunking, in the robot's units.

    actions: float32 [H, D]
    times: float32 [S + 1], t of its Euler steps
    before, after: float32 [S, H, D], the estimate x_t - t v_t at each step as the model makes it,
        and with the correction, with which the step is taken
    """

    actions: np.ndarray
    times: np.ndarray
    before: np.ndarray
    after: np.ndarray


class FlowPolicy(Policy):
    """pi0 and pi0.5. `state_in_prompt`: pi0.5's way, though not that of all its checkpoints."""

    config: Pi0Config
    batches = True

    def __init__(
        self,
        info: PolicyInfo,
        robot: Robot,
        model: Pi0,
        tokenizer: PaligemmaTokenizer,
        state_in_prompt: bool,
        rules: InputRules = OPENPI_RULES,
    ):
        self._model = laid_out(model)  # one layout in memory for all its programs
        super().__init__(info, robot, self._model, Pi0Programs(self._model), rules)
        self.tokenizer, self._state_in_prompt = tokenizer, state_in_prompt

    def tokenize(self, prompt: str, state: np.ndarray) -> Prompt:
        written = state if self._state_in_prompt else None
        return self.tokenizer.tokenize(prompt, self.config.max_token_len, written)

    def piece(self, token: int) -> str:
        return self.tokenizer.piece(token)

    def room(self, prepared: Prepared, options: Options) -> int:
        return self.config.suffix_len

    def _attended_images(self, prepared: Prepared) -> dict[str, np.ndarray]:
        # Nobody attends to a masked camera and it takes no positions: leaving it out is exact.
        return {
            s: prepared.images[s] for s in self.config.image_slots if self._present(prepared, s)
        }

    @staticmethod
    def _present(prepared: Prepared, slot: str) -> bool:
        return prepared.modes[slot] != "masked"

    def _run(self, raw, prepared, options, tokens, timer, reused):
        slots, n = tuple(tokens), options.num_samples
        columns = self.text_columns(prepared, options.attention)
        given = (columns, options, tokens, timer, reused)
        prefix, prefix_attention = yield from self._prefix(prepared, *given)
        empty = None
        if (without := self._without_prompt(prepared, options)) is not None:
            empty, _ = yield from self._prefix(without, *given)
        observation, noise = self.observation(prepared, columns, n), self._noise(options, n)
        program = ("step", slots, n, columns, options.attention, bool(options.cuts))
        program += (empty is None,)
        yield (phase := self._phase("denoise", program))
        parts = self._denoise(prefix, empty, observation, noise, options)
        x_t, v_t, estimates, attention, times = [noise], [], [], [], [1.0]
        for part in self._measured(parts, phase, "denoise", timer):
            with timer("postprocess"):
                x, v = np.asarray(part.x_t), np.asarray(part.v_t, np.float32)
                time = np.asarray(part.times)[:-1, None, None, None]
                estimates += [*self.to_robot(x[:-1] - time * v, raw)]
                x_t += [*x[1:]]
                v_t += [*v]
                attention += first_sample(part.attention)
            for step in range(len(times), len(x_t)):
                times.append(max(0.0, 1 - step / options.num_steps))
                estimate = estimates[step - 1][0]
                yield Step(self.info.name, step, options.num_steps, times[-1], estimate)
        with timer("postprocess"):
            final = x_t[-1]
            trace = FlowTrace(
                **self._shared(raw, prepared, options),
                actions=self.to_robot(final, raw),
                actions_normalised=final[..., : len(self.info.actions)],
                times=np.asarray(times, np.float32),
                x_t=np.stack(x_t),
                v_t=np.stack(v_t),
                estimates=np.stack(estimates),
                attention=token_layout.attention(
                    attention, prefix_attention, token_layout.that_ran(self.config, slots)
                ),
                **token_layout.flow(self.config, prepared.prompt, prepared.modes, self.piece),
            )
        return trace

    def _denoise(self, prefix, empty, observation, noise, options) -> Iterator[Trajectory]:
        """empty: the prefix without the prompt, for a guidance other than 1, else None."""
        at_once = self.at_once and options.num_steps == _STEPS and options.num_samples <= _FEW
        if empty is None:
            how = {"attention": options.attention, "at_once": at_once}
            return self.programs.denoise(prefix, observation, noise, options.num_steps, **how)
        given = (prefix, empty, observation, noise, options.guidance, options.num_steps)
        return self.interventions.denoise(*given, at_once=at_once)

    def _compile_loop(self, prepared, options, tokens, go_on):
        columns, n = self.text_columns(prepared), options.num_samples
        prefix = self.programs.prefill.ahead(self.observation(prepared, columns), tokens, None)
        if go_on():
            observation, noise = self.observation(prepared, columns, n), self._noise(options, n)
            given = (prefix, observation, noise, options.num_steps)
            self.programs.denoise_ahead(*given, at_once=self.at_once)

    def _noise(self, options: Options, samples: int) -> np.ndarray:
        size = (self.config.action_horizon, self.config.action_dim)
        return sample_noise(options.seed, samples, *size)

    def _without_prompt(self, prepared, options):
        """The observation with an empty prompt, for a guidance other than 1; else None."""
        if options.guidance == 1:
            return None
        if options.attention:
            raise ValueError("attention is not measured at a guidance other than 1")
        return self.prepare(dataclasses.replace(prepared.raw, prompt=""))

    def places(self, prepared: Prepared, columns: int) -> Places:
        ids = prepared.prompt.tokens[prepared.prompt.mask]
        parts = text_parts([self.piece(i) for i in ids], self._state_in_prompt)
        return flow(self.config, self.observation(prepared, columns), parts)

    @functools.cached_property
    def interventions(self) -> Pi0Interventions:
        """Compiled programs that change what the model reads."""
        return Pi0Interventions(self._model)

    def chunks(self, raws, options):
        """As one batch: the whole way from pictures to actions runs once for all. They must have
        their pictures in the same slots, and the model as it is; else each is asked alone."""
        check_options(options)
        if options.cuts or options.guidance != 1:
            return super().chunks(raws, options)
        prepared = [self.prepare(raw) for raw in raws]
        slots = tuple(self._attended_images(prepared[0])) if prepared else ()
        if any(tuple(self._attended_images(p)) != slots for p in prepared):
            return super().chunks(raws, options)
        columns = max(map(self.text_columns, prepared), default=0)
        parts = [self.observation(p, columns) for p in prepared]
        observation = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        tokens = {
            slot: self.programs.embed_images(np.stack([self.pixels(p, slot) for p in prepared]))
            for slot in slots
        }
        prefix = self.programs.prefill(observation, tokens)
        noise = np.repeat(self._noise(options, 1), len(raws), axis=0)
        path = self.programs.denoise_all(prefix, observation, noise, num_steps=options.num_steps)
        actions = np.asarray(path.x_t[-1])
        return [(self.to_robot(a, raw), "") for a, raw in zip(actions, raws, strict=True)]

    def guided_chunk(
        self,
        raw: RawObservation,
        options: Options,
        previous: np.ndarray,
        weights: np.ndarray,
        max_guidance: float = MAX_GUIDANCE,
    ) -> GuidedChunk:
        """The chunk by real-time chunking.

        previous: float [H, D], what the chunk under way says for the steps of the new one, in the
            robot's units
        weights: float32 [H], how strongly each is held to it, see
            `models.chunking.prefix_weights`; 0 everywhere gives the plain chunk
        Raises ValueError for options with cuts or guidance.
        """
        check_options(options)
        if options.cuts or options.guidance != 1:
            raise ValueError("real-time chunking runs the model as it is: no cuts, guidance 1")
        prepared = self.prepare(raw)
        observation = self.observation(prepared, self.text_columns(prepared))
        tokens = self.image_tokens(prepared, self.kept_of_robots)
        path = self._chunking.denoise_all(
            self.programs.prefill(observation, tokens),
            observation,
            self._noise(options, 1),
            transforms.pad(self._to_model(previous, raw), self.config.action_dim)[None],
            weights,
            num_steps=options.num_steps,
            max_guidance=max_guidance,
        )
        times, x_t = np.asarray(path.times, np.float32), np.asarray(path.x_t)[:, 0]
        before, after = (
            self.to_robot(x_t[:-1] - times[:-1, None, None] * np.asarray(v_t)[:, 0], raw)
            for v_t in (path.plain_v_t, path.v_t)
        )
        return GuidedChunk(self.to_robot(x_t[-1], raw), times, before, after)

    def _to_model(self, actions: np.ndarray, raw: RawObservation) -> np.ndarray:
        """Actions [H, D] in the robot's units in the model's terms: what `to_robot` undoes."""
        robot, info = self.robot, self.info
        actions = robot.actions_to_model(np.asarray(actions, np.float64))
        if robot.offsets:
            state = robot.state_to_model(np.asarray(raw.state, np.float64))
            actions = transforms.to_offsets(actions, state, robot.offsets)
        return norm_stats.normalise(actions, info.stats("actions"), info.method("actions"))

    @functools.cached_property
    def _chunking(self) -> ChunkingPrograms:
        return ChunkingPrograms(self._model)

    def _actions(self, prepared, options, tokens, kept):
        columns, n = self.text_columns(prepared), options.num_samples
        prefix = self.prefilled(prepared, columns, options, tokens, kept)
        observation, noise = self.observation(prepared, columns, n), self._noise(options, n)
        without, steps = self._without_prompt(prepared, options), options.num_steps
        if without is None:
            path = self.programs.denoise_all(prefix, observation, noise, steps)
        else:
            empty = self.prefilled(without, columns, options, tokens, kept)
            given = (prefix, empty, observation, noise, options.guidance, steps)
            (path,) = self.interventions.denoise(*given, at_once=True)
        return np.asarray(path.x_t[-1])[..., : len(self.info.actions)], None
