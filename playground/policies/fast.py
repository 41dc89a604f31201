"""pi0-FAST as a policy: the prefix once, then token by token.

H horizon, D the robot's action dimensions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import Constraint, DecodeOptions, StopAfter
from models.fast_tokenizer import Decoding, FastPrompt, FastTokenizer
from models.pi0_fast import DecodingStep, Pi0Fast, Pi0FastPrograms
from models.tokenizer import ACTION_END, ACTION_MARKER
from playground.policies import token_layout
from playground.policies.base import Policy, Prepared, prefix_digest
from playground.robots.robot import Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.serving.events import TokenEvent
from playground.trace import DecodedToken, FastTrace, Options, PolicyInfo, RawObservation, is_guided

_DOERS = {"openpi": "openpi", "lerobot": "LeRobot"}


class FastPolicy(Policy):
    """pi0-FAST."""

    def __init__(
        self,
        info: PolicyInfo,
        robot: Robot,
        model: Pi0Fast,
        tokenizer: FastTokenizer,
        rules: InputRules = OPENPI_RULES,
    ):
        super().__init__(info, robot, model.config, Pi0FastPrograms(model), rules)
        self.tokenizer = tokenizer
        encode = tokenizer.paligemma.encode
        end = encode(ACTION_END)
        # Where "|" is no piece of its own there is no early end; the result is the same.
        self._stop = StopAfter(tuple(encode(ACTION_MARKER)), end[0]) if len(end) == 1 else None

    @functools.cached_property
    def _constraint(self) -> Constraint:
        constraint = self.tokenizer.constraint(
            self.config.vocab_size, self.config.action_horizon, self._dims
        )
        return jax.device_put(constraint)

    @functools.cached_property
    def _draft_ids(self) -> jax.Array | None:
        """The ids that a trained policy writes; None where the vocabulary has few others."""
        ids = self.tokenizer.written_ids()
        return jnp.array(ids) if 2 * len(ids) < self.config.vocab_size else None

    def decode_options(self, options: Options) -> DecodeOptions:
        """How the model is to decode. Raises ValueError where guided decoding is impossible."""
        guided = is_guided(self.info, options)
        if guided and self._stop is None:
            raise ValueError(
                f'{self.info.name} cannot decode guided: its vocabulary has no "{ACTION_END}" of '
                "its own; decode freely instead"
            )
        return DecodeOptions(
            temperature=options.temperature,
            stop=self._stop,
            constraint=self._constraint if guided else None,
            draft_ids=self._draft_ids,
        )

    def tokenize(self, prompt: str, state: np.ndarray) -> FastPrompt:
        return self.tokenizer.tokenize(prompt, state, self.config.max_token_len)

    def piece(self, token: int) -> str:
        return self.tokenizer.paligemma.piece(token)

    def _attended_images(self, prepared: Prepared) -> dict[str, np.ndarray]:
        return {slot: prepared.images[slot] for slot in self.config.image_slots}

    def _text_places(self, prepared: Prepared, attention: bool) -> int:
        # PARITY: behind a masked camera generated tokens see rows that see every place alike, those
        # of the padding included.
        alike = self.config.convention == "openpi" and "masked" in prepared.modes.values()
        return super()._text_places(prepared, attention or alike)

    def _run(self, raw, prepared, options, tokens, timer, reused):
        decode_options = self.decode_options(options)
        places = self._text_places(prepared, options.attention)
        state, prefix_attention = yield from self._prefill(
            prepared, options, tokens, places, timer, reused
        )
        program = ("step", places, options.max_tokens, options.temperature, options.attention)
        program += (decode_options.constraint is not None,)
        yield (phase := self._phase("decode", program))
        key = jax.random.key(options.seed)
        steps = self._programs.decode(state, key, decode_options, attention=options.attention)
        written, partials, attention = [], [], []
        while (step := timer.next("decode" if written else phase.phase, steps)) is not None:
            with timer("postprocess"):
                written.append(self._decoded(step))
                partials.append(self._partial(written, raw))
                if options.attention:
                    attention.append(
                        np.stack([np.asarray(w[0], np.float16) for w in step.attention])
                    )
            yield TokenEvent(
                self.info.name, step.index, options.max_tokens, written[-1], partials[-1]
            )
        with timer("postprocess"):
            result = self._extract(written)
            actions = None if result.actions is None else np.float32(result.actions)[None]
            warnings = (*prepared.warnings, *self._decoding_warnings(written, result, options))
            prepared = dataclasses.replace(prepared, warnings=warnings)
            return FastTrace(
                **self._shared(raw, prepared, options),
                actions=None if actions is None else self._to_robot(actions, raw),
                actions_normalised=actions,
                tokens=tuple(written),
                partial_actions=self._stack(partials),
                decode_failure=result.failure,
                attention=token_layout.attention(attention, prefix_attention),
                **token_layout.fast(
                    self.config,
                    prepared.prompt,
                    prepared.modes,
                    self.piece,
                    [token.text for token in written],
                ),
            )

    def _prefill(self, prepared, options, tokens, places, timer, reused):
        slots = tuple(tokens)
        size = {"max_decoding_steps": options.max_tokens}
        key = prefix_digest(prepared, slots, self.rules, options.attention, options.max_tokens)

        def prefill():
            observation = self._observation(prepared, slots, 1, places)
            if options.attention:
                return self._programs.prefill_attention(observation, tokens, **size)
            return self._programs.prefill(observation, tokens, **size), ()

        program = ("prefix", places, options.max_tokens, options.attention)
        return (yield from self._prefix(key, program, prefill, timer, reused))

    def _decoding_warnings(
        self, written: list[DecodedToken], result: Decoding, options: Options
    ) -> tuple[str, ...]:
        guided = _guidance(written, options.temperature) if is_guided(self.info, options) else ()
        if not result.skipped:
            return guided
        skipped = (
            f"{len(result.skipped)} tokens between the actions are no action tokens and were "
            f"skipped, as {_DOERS[self.config.convention]} does."
        )
        return (skipped, *guided)

    def _actions(self, prepared, options, tokens, prefixes):
        slots = tuple(tokens)
        key = prefix_digest(prepared, slots, self.rules, False, options.max_tokens)
        if (known := prefixes.get(key)) is None:
            places = self._text_places(prepared, False)
            observation = self._observation(prepared, slots, 1, places)
            size = {"max_decoding_steps": options.max_tokens}
            known = (self._programs.prefill(observation, tokens, **size), ())
            prefixes.put(key, known)
        decode_options = self.decode_options(options)
        runs = options.num_samples if options.temperature > 0 else 1
        chunks = []
        for seed in range(options.seed, options.seed + runs):
            written = self._programs.decode_all(known[0], jax.random.key(seed), decode_options)
            ids = np.asarray(written)[0].tolist()
            result = self.tokenizer.extract_actions(ids, self.config.action_horizon, self._dims)
            if result.actions is None:
                return None, result.failure
            chunks.append(result.actions)
        return np.stack(chunks).astype(np.float32), None

    def _decoded(self, step: DecodingStep) -> DecodedToken:
        token = int(step.token[0])
        others = zip(step.top_ids[0].tolist(), step.top_probabilities[0].tolist(), strict=True)
        return DecodedToken(
            id=token,
            text=self.piece(token),
            probability=float(step.probability[0]),
            runners_up=tuple((i, self.piece(i), p) for i, p in others if i != token),
        )

    def _extract(self, written: list[DecodedToken]) -> Decoding:
        ids = [token.id for token in written]
        return self.tokenizer.extract_actions(ids, self.config.action_horizon, self._dims)

    @property
    def _dims(self) -> int:
        return len(self.info.actions)

    def _partial(self, written: list[DecodedToken], raw: RawObservation) -> np.ndarray | None:
        ids = [token.id for token in written]
        chunk = self.tokenizer.extract_partial(ids, self.config.action_horizon, self._dims)
        return None if chunk is None else self._to_robot(chunk, raw)

    def _stack(self, partials: list[np.ndarray | None]) -> np.ndarray:
        nothing = np.full((self.config.action_horizon, self._dims), np.nan, np.float32)
        return np.stack([nothing if chunk is None else chunk for chunk in partials])


def _guidance(written: list[DecodedToken], temperature: float) -> tuple[str, ...]:
    """What guided decoding did to a run, where it did anything."""
    if temperature > 0:
        return ("Guided decoding: tokens were drawn from those that keep the chunk decodable.",)
    against = sum(not token.likeliest for token in written)
    if not against:
        return ()
    return (
        f"Guided decoding: at {against} of {len(written)} tokens the likeliest would have left a "
        "chunk that does not decode; the likeliest that fits was taken.",
    )
