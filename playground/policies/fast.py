"""pi0-FAST as a policy: the prefix once, then token by token.

H horizon, D the robot's action dimensions.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from models.config import Pi0FastConfig
from models.decoding import Constraint, DecodeOptions, DecodeState, StopAfter
from models.decoding_parts import WrittenTokens
from models.fast_tokenizer import Decoding, FastPrompt, FastTokenizer
from models.interventions import Pi0FastInterventions
from models.matmul import laid_out
from models.pi0_fast import Pi0Fast, Pi0FastPrograms
from models.tokenizer import ACTION_END, ACTION_MARKER
from playground.policies import token_layout
from playground.policies.base import (
    MAX_TOKENS,
    Policy,
    Prepared,
    first_sample,
)
from playground.policies.places import Places, fast, text_parts
from playground.robots.robot import Robot
from playground.robots.transforms import OPENPI_RULES, InputRules
from playground.serving.events import TokenEvent
from playground.trace import (
    DecodedToken,
    FastTrace,
    Options,
    PolicyInfo,
    RawObservation,
    is_constrained,
)

_UNGUIDED = "Guidance weighs velocities: pi0-FAST writes tokens, and ran without it."
_ROOM = 32  # the least number of places for tokens; then its doubles
_DOERS = {"openpi": "openpi", "lerobot": "LeRobot"}


class FastPolicy(Policy):
    """pi0-FAST."""

    config: Pi0FastConfig

    def __init__(
        self,
        info: PolicyInfo,
        robot: Robot,
        model: Pi0Fast,
        tokenizer: FastTokenizer,
        rules: InputRules = OPENPI_RULES,
    ):
        self._model = laid_out(model)  # one layout in memory for all its programs
        super().__init__(info, robot, self._model, Pi0FastPrograms(self._model), rules)
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
        return jax.device_put(constraint, self.device)

    @functools.cached_property
    def _draft_ids(self) -> jax.Array | None:
        """The ids that a trained policy writes; None where the vocabulary has few others."""
        ids = self.tokenizer.written_ids()
        many = 2 * len(ids) >= self.config.vocab_size
        return None if many else jax.device_put(np.array(ids, np.int32), self.device)

    def decode_options(self, options: Options) -> DecodeOptions:
        """How to decode. Raises ValueError where constrained decoding is impossible."""
        constrained = is_constrained(self.info, options)
        if constrained and self._stop is None:
            raise ValueError(
                f"the decoding of {self.info.name} cannot be constrained: its vocabulary has no "
                f'"{ACTION_END}" of its own; decode freely instead'
            )
        return DecodeOptions(
            temperature=float(options.temperature) or None,
            max_tokens=options.max_tokens,
            stop=self._stop,
            constraint=self._constraint if constrained else None,
            draft_ids=self._draft_ids,
        )

    def tokenize(self, prompt: str, state: np.ndarray) -> FastPrompt:
        return self.tokenizer.tokenize(prompt, state, self.config.max_token_len)

    def piece(self, token: int) -> str:
        return self.tokenizer.paligemma.piece(token)

    def _attended_images(self, prepared: Prepared) -> dict[str, np.ndarray]:
        return {slot: prepared.images[slot] for slot in self.config.image_slots}

    def text_columns(self, prepared: Prepared, attention: bool = False) -> int:
        return super().text_columns(prepared, attention or self._sees_alike(prepared))

    def room(self, prepared: Prepared, options: Options) -> int:
        """For how many tokens the cache has places: one of few sizes, since each is a program to
        compile. Nobody attends to a place before its token is written."""
        if self._sees_alike(prepared):
            return options.max_tokens
        return min(max(_ROOM, 1 << (options.max_tokens - 1).bit_length()), MAX_TOKENS)

    def _sees_alike(self, prepared: Prepared) -> bool:
        """PARITY: behind a masked camera generated tokens see rows that see every place alike,
        those of padding and of tokens to come included."""
        return self.config.convention == "openpi" and "masked" in prepared.modes.values()

    def places(self, prepared: Prepared, columns: int) -> Places:
        ids = prepared.prompt.tokens[prepared.prompt.mask]
        parts = text_parts([self.piece(i) for i in ids], state_in_text=True)
        return fast(self.config, self.observation(prepared, columns), parts)

    @functools.cached_property
    def interventions(self) -> Pi0FastInterventions:
        """Compiled programs that change what the model reads."""
        return Pi0FastInterventions(self._model)

    def _run(self, raw, prepared, options, tokens, timer, reused):
        decode_options = self.decode_options(options)
        columns = self.text_columns(prepared, options.attention)
        state, prefix_attention = yield from self._prefix(
            prepared, columns, options, tokens, timer, reused
        )
        program = ("step", columns, self.room(prepared, options), options.attention)
        program += (options.temperature > 0, decode_options.constraint is not None)
        program += (bool(options.cuts),)
        yield (phase := self._phase("decode", program))
        key = jax.random.key(options.seed)
        how = {"attention": options.attention, "at_once": self.at_once}
        parts = self.programs.decode(state, key, decode_options, **how)
        written, partials, attention = [], [], []
        for part in self._measured(parts, phase, "decode", timer):
            known = len(written)
            with timer("postprocess"):
                written += self._decoded(part)
                partials += self._partials(written, known, raw)
                attention += first_sample(part.attention)
            for index in range(known, len(written)):
                yield TokenEvent(
                    self.info.name, index, options.max_tokens, written[index], partials[index]
                )
        with timer("postprocess"):
            result = self._extract(written)
            actions = None if result.actions is None else result.actions.astype(np.float32)[None]
            warnings = (*prepared.warnings, *self._decoding_warnings(written, result, options))
            warnings += (_UNGUIDED,) * (options.guidance != 1)
            prepared = dataclasses.replace(prepared, warnings=warnings)
            shown = state.prefix_len + options.max_tokens  # of columns; room for more is not
            return FastTrace(
                **self._shared(raw, prepared, options),
                actions=None if actions is None else self.to_robot(actions, raw),
                actions_normalised=actions,
                tokens=tuple(written),
                partial_actions=self._stack(partials),
                decode_failure=result.failure,
                attention=token_layout.attention(
                    [weights[..., :shown] for weights in attention],
                    [layer[..., :shown] for layer in prefix_attention],
                ),
                **token_layout.fast(
                    self.config,
                    prepared.prompt,
                    prepared.modes,
                    self.piece,
                    [token.text for token in written],
                ),
            )

    def _compile_loop(self, prepared, options, tokens, go_on):
        observation = self.observation(prepared, self.text_columns(prepared))
        size = self._cache_size(prepared, options)
        state = self.programs.prefill.ahead(observation, tokens, None, **size)
        if go_on():
            how = self.decode_options(options)
            self.programs.decode_ahead(state, how, at_once=self.at_once)

    def _cache_size(self, prepared, options):
        return {"max_decoding_steps": self.room(prepared, options)}

    def _decoding_warnings(
        self, written: list[DecodedToken], result: Decoding, options: Options
    ) -> tuple[str, ...]:
        constrained = is_constrained(self.info, options)
        warnings = _constraint_warnings(written, options.temperature) if constrained else ()
        if not result.skipped:
            return warnings
        skipped = (
            f"{len(result.skipped)} tokens between the actions are no action tokens and were "
            f"skipped, as {_DOERS[self.config.convention]} does."
        )
        return (skipped, *warnings)

    def written(self, state: DecodeState, options: Options, seed: int = 0) -> list[int]:
        """The tokens that are written over a prefix, to the last that is not padding."""
        ids = self.programs.decode_all(state, jax.random.key(seed), self.decode_options(options))
        return np.trim_zeros(np.asarray(ids)[0], "b").tolist()

    def decoded(self, ids: Sequence[int]) -> tuple[np.ndarray | None, str | None]:
        """(The normalised chunk [H, D] that tokens stand for, None), or (None, why there is
        none)."""
        result = self.tokenizer.extract_actions(ids, self.config.action_horizon, self._dims)
        return result.actions, result.failure

    def _actions(self, prepared, options, tokens, kept):
        state = self.prefilled(prepared, self.text_columns(prepared), options, tokens, kept)
        runs = options.num_samples if options.temperature > 0 else 1
        chunks = []
        for seed in range(options.seed, options.seed + runs):
            actions, failure = self.decoded(self.written(state, options, seed))
            if actions is None:
                return None, failure
            chunks.append(actions)
        return np.stack(chunks).astype(np.float32), None

    def _decoded(self, part: WrittenTokens) -> list[DecodedToken]:
        rows = zip(*(np.asarray(x)[:, 0].tolist() for x in part[:4]), strict=True)
        return [
            DecodedToken(
                id=token,
                text=self.piece(token),
                probability=probability,
                runners_up=tuple(
                    (i, self.piece(i), p) for i, p in zip(ids, top, strict=True) if i != token
                ),
            )
            for token, probability, ids, top in rows
        ]

    def _extract(self, written: list[DecodedToken]) -> Decoding:
        ids = [token.id for token in written]
        return self.tokenizer.extract_actions(ids, self.config.action_horizon, self._dims)

    @property
    def _dims(self) -> int:
        return len(self.info.actions)

    def _partials(
        self, written: list[DecodedToken], known: int, raw: RawObservation
    ) -> list[np.ndarray | None]:
        """The chunk after each token behind the first `known`, in the robot's units."""
        ids = [token.id for token in written]
        chunks = self.tokenizer.extract_partials(ids, known, self.config.action_horizon, self._dims)
        decoding = [chunk for chunk in chunks if chunk is not None]
        moved = iter(self.to_robot(np.stack(decoding), raw) if decoding else ())
        return [None if chunk is None else next(moved) for chunk in chunks]

    def _stack(self, partials: list[np.ndarray | None]) -> np.ndarray:
        nothing = np.full((self.config.action_horizon, self._dims), np.nan, np.float32)
        return np.stack([nothing if chunk is None else chunk for chunk in partials])


def _constraint_warnings(written: list[DecodedToken], temperature: float) -> tuple[str, ...]:
    """What constrained decoding did to a run, where it did anything."""
    if temperature > 0:
        return (
            "Constrained decoding: tokens were drawn from those that keep the chunk decodable.",
        )
    against = sum(not token.likeliest for token in written)
    if not against:
        return ()
    return (
        f"Constrained decoding: at {against} of {len(written)} tokens the likeliest would have "
        "left a chunk that does not decode; the likeliest that fits was taken.",
    )
