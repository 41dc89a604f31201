"""Two prompts' runs of one policy, ready to be patched: what comes out when the counterfactual runs
with the prompt's keys and values in chosen places.

Definitions are at the top of `patching`. N noises, H horizon, D the robot's action dimensions, L
layers, C variants, J columns that both runs share.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.special

from models.decoding import DecodeState
from models.gemma import KVCache
from models.interventions import Patches, Written, places_of
from models.pi0 import Prefix
from playground.analysis.alignment import join
from playground.analysis.causal import MAX_NOISES, NOISES
from playground.analysis.sensitivity import share_of_range
from playground.policies.base import Policy, Prepared, check_options, sample_noise
from playground.policies.fast import FastPolicy
from playground.policies.flow import FlowPolicy
from playground.trace import Options, RawObservation

Recovered = tuple[float, tuple[float, float] | None]  # with its interval

_TOKENS_STEP = 32
_LEAST_NATS = 1e-3  # below it the log-odds of two prompts are equal but for rounding
# The same of normalised actions.
_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """A patch: which places of the J, in which layer (from 0; None: all)."""

    places: np.ndarray
    layer: int | None


NOTHING = Variant(np.array([], int), None)


class Pair:
    """A policy's runs with the prompt (A) and with the counterfactual (B), ready to be patched.

    distinguished: whether the two answers differ by more than rounding
    effect: how far they are apart, in `unit`
    patch_s: seconds of one patch by itself, its program compiled
    """

    distinguished: bool
    effect: float
    unit: str
    patch_s: float

    def __init__(self, policy: Policy, raw: RawObservation, counterfactual: str, options: Options):
        self.depth = policy.config.language.depth
        self.prepared = (
            policy.prepare(raw),
            policy.prepare(dataclasses.replace(raw, prompt=counterfactual)),
        )
        self._columns = max(policy.text_columns(prepared) for prepared in self.prepared)
        self.options = options
        places = [policy.places(prepared, self._columns) for prepared in self.prepared]
        self.joined = join(places[1], places[0])
        self._places = places
        own, source = self.joined.own, self.joined.source
        self._readable = (
            (own >= 0) & places[1].readable[own],
            (source >= 0) & places[0].readable[source],
        )
        caches = [self._run(prepared) for prepared in self.prepared]
        self._own_cache = places_of(caches[1], np.maximum(own, 0))
        self._source_cache = places_of(caches[0], np.maximum(source, 0))

    def _run(self, prepared: Prepared) -> KVCache:
        """Runs the prefix and keeps what else is needed of it."""
        raise NotImplementedError

    def patched(self, variants: Sequence[Variant]) -> np.ndarray:
        """What `recovered` takes, [C, ...]."""
        raise NotImplementedError

    def slopes(self) -> np.ndarray:
        """float [L, J]: how fast `recovered` starts to grow as each place moves towards the
        prompt's; over all noises at once."""
        raise NotImplementedError

    def recovered(self, outcomes: np.ndarray) -> list[Recovered]:
        """Of each of `patched`'s outcomes."""
        raise NotImplementedError

    def chunk(self, variant: Variant) -> tuple[np.ndarray | None, str | None]:
        """The first noise's normalised chunk [H, D] under a patch, or why there is none."""
        raise NotImplementedError

    def _patches(self, variants: Sequence[Variant]) -> Patches:
        where = np.zeros((self.depth, len(variants), len(self.joined.own)), bool)
        for row, variant in enumerate(variants):
            layers = slice(None) if variant.layer is None else variant.layer
            where[layers, row, variant.places] = True
        own, other = self._readable
        missing = np.where(where, ~other, ~own) & (own | other)
        return Patches(self._source_cache, where, missing)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Around one run of a program that has run before."""
        began = time.monotonic()
        yield
        self.patch_s = time.monotonic() - began

    def _alone(self) -> tuple[np.ndarray, np.ndarray]:
        """The prompt's own run in as many columns as the pair has: (int [J], which of its columns
        stands there, bool [J], whether it is read)."""
        width, columns = len(self.joined.own), len(self._places[0].valid)
        at = np.minimum(np.arange(width), columns - 1)
        return at, (np.arange(width) < columns) & self._places[0].readable[at]

    def differing(self) -> np.ndarray:
        """bool [L, J]: where the prompt's run holds something else. A patch of other places gives
        the counterfactual's own chunk: layer 1 differs in the changed words alone."""
        own, other = self._readable
        found = np.tile(own != other, (self.depth, 1))
        ours, theirs = self._own_cache, self._source_cache
        for layers in ((ours.k, theirs.k), (ours.v, theirs.v)):
            for layer, (x, y) in enumerate(zip(*layers, strict=True)):
                found[layer] |= (np.asarray(x) != np.asarray(y)).any(axis=(0, 2, 3)) & own & other
        return found

    def row_bytes(self) -> int:
        """Of the keys and values of one run's prefix."""
        return sum(x.nbytes for x in (*self._own_cache.k, *self._own_cache.v))

    def read(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """|V_A - V_B| / |V_B| for each layer: over image columns, over text columns."""
        image = np.concatenate([[], *self.joined.patches.values()]).astype(int)
        text = [p for g, p in self.joined.groups if g.kind in ("word", "state", "rest")]
        paired = np.flatnonzero((self.joined.own >= 0) & (self.joined.source >= 0))
        found = []
        for columns in (image, np.concatenate([[], *text]).astype(int)):
            columns = np.intersect1d(columns, paired)
            found.append(tuple(self._distances(columns)) if len(columns) else ())
        return found[0], found[1]

    def _distances(self, columns: np.ndarray) -> Iterator[float]:
        for own, source in zip(self._own_cache.v, self._source_cache.v, strict=True):
            a, b = (np.asarray(x[:, columns], np.float64) for x in (source, own))
            size = np.linalg.norm(b)
            yield float(np.linalg.norm(a - b) / size) if size else 0.0

    def notes(self) -> tuple[str, ...]:
        """What does not line up."""
        found = []
        counts = [len(places.text) for places in self._places]
        for group, _ in self.joined.groups:
            if group.kind in ("word", "rest", "state") and len(set(group.columns)) > 1:
                own, other = group.columns
                found.append(
                    f"“{group.own}” ({own}) and “{group.other}” ({other}) are not of one number of "
                    "tokens: they are patched as one group."
                )
        if counts[0] != counts[1]:
            found.append(
                f"The prompts have {counts[0]} and {counts[1]} tokens, so what reads them stands "
                "elsewhere; no patch undoes that, and everything patched need not give 100 %."
            )
        return tuple(found)


class FlowPair(Pair):
    """pi0 and pi0.5: outcomes are chunks [C, N, H, D]."""

    unit = "% of range"

    def __init__(
        self,
        policy: FlowPolicy,
        raw: RawObservation,
        counterfactual: str,
        options: Options,
        noises: int,
    ):
        config, self._policy = policy.config, policy
        size = (config.action_horizon, config.action_dim)
        self._noise = sample_noise(options.seed, noises, *size)
        self._prefixes: list[Prefix] = []
        super().__init__(policy, raw, counterfactual, options)
        self.own = self.patched([NOTHING])[0]
        self.source = self._plain()
        apart = np.abs(self.source - self.own)
        self.distinguished = bool(apart.max() > _ROUNDING[config.dtype])
        self.effect = float(np.nanmean(apart * share_of_range(policy.info)))

    def _run(self, prepared: Prepared) -> KVCache:
        prefix = self._policy.prefilled(prepared, self._columns)
        self._prefixes.append(prefix)
        return prefix.cache

    def _prefix(self) -> Prefix:
        """The counterfactual's, with room for what only the prompt has."""
        readable = np.logical_or(*self._readable)[None]
        return dataclasses.replace(self._prefixes[1], cache=self._own_cache, input_mask=readable)

    def patched(self, variants: Sequence[Variant]) -> np.ndarray:
        return self._chunks(self._prefix(), self._patches(variants))

    def slopes(self) -> np.ndarray:
        towards = np.zeros_like(self._noise)
        moved = self.source - self.own
        towards[..., : moved.shape[-1]] = moved / (moved**2).sum()
        found = self._policy.interventions.slopes(
            self._prefix(),
            self._patches([NOTHING]),
            self._policy.observation(self.prepared[1], self._columns),
            self._noise,
            towards,
            num_steps=self.options.num_steps,
        )
        return np.asarray(found, np.float64)

    def _plain(self) -> np.ndarray:
        """The prompt's own chunks, by the same program with nothing patched."""
        at, valid = self._alone()
        nothing = np.zeros((self.depth, 1, len(at)), bool)
        cache = places_of(self._prefixes[0].cache, at)
        prefix = dataclasses.replace(self._prefixes[0], cache=cache, input_mask=valid[None])
        with self._timed():
            return self._chunks(prefix, Patches(cache, nothing, nothing))[0]

    def _chunks(self, prefix: Prefix, patches: Patches) -> np.ndarray:
        observation = self._policy.observation(self.prepared[1], self._columns)
        chunks = self._policy.interventions.patched(
            prefix, patches, observation, self._noise, num_steps=self.options.num_steps
        )
        return np.asarray(chunks, np.float64)[..., : len(self._policy.info.actions)]

    def recovered(self, outcomes: np.ndarray) -> list[Recovered]:
        towards = (self.source - self.own).reshape(len(self.own), -1)
        weights = (towards**2).sum(axis=1)
        moved = (outcomes - self.own).reshape(*outcomes.shape[:2], -1)
        shares = (moved * towards).sum(axis=-1)  # [C, N]
        return [ratio(row, weights) if self.distinguished else (0.0, None) for row in shares]

    def chunk(self, variant: Variant) -> tuple[np.ndarray | None, str | None]:
        return self.patched([variant])[0, 0], None


class FastPair(Pair):
    """pi0-FAST: outcomes are log-odds [C]."""

    unit = "nats"

    def __init__(
        self, policy: FastPolicy, raw: RawObservation, counterfactual: str, options: Options
    ):
        self._policy = policy
        self._states: list[DecodeState] = []
        super().__init__(policy, raw, counterfactual, options)
        chunks = [policy.written(state, options) for state in self._states]
        self._room = policy.room(self.prepared[1], options)
        self._written = in_rows(chunks, self._room)
        self.own = float(self.patched([NOTHING])[0])
        self.effect = self._plain() - self.own
        self.distinguished = chunks[0] != chunks[1] and abs(self.effect) >= _LEAST_NATS

    def _run(self, prepared: Prepared) -> KVCache:
        state = self._policy.prefilled(prepared, self._columns, self.options)
        self._states.append(state)
        return state.cache

    @staticmethod
    def _state(
        state: DecodeState, columns: np.ndarray, readable: np.ndarray, room: int
    ) -> DecodeState:
        """The state with its prefix columns at `columns`, and room for as many tokens behind."""
        columns = np.r_[columns, state.prefix_len + np.arange(room)]
        return dataclasses.replace(
            state, cache=places_of(state.cache, columns), visible=readable[None]
        )

    def _patched(self, variants: Sequence[Variant], room: int) -> tuple[DecodeState, Patches]:
        """The counterfactual's state, and the patches of the variants."""
        own, source = (np.maximum(x, 0) for x in (self.joined.own, self.joined.source))
        state = self._state(self._states[1], own, np.logical_or(*self._readable), room)
        cache = self._state(self._states[0], source, self._readable[1], room).cache
        return state, self._patches(variants)._replace(source=cache)

    def patched(self, variants: Sequence[Variant]) -> np.ndarray:
        return self._log_odds(*self._patched(variants, self._written.tokens.shape[1]))

    def slopes(self) -> np.ndarray:
        state, patches = self._patched([NOTHING], self._written.tokens.shape[1])
        found = self._policy.interventions.slopes(state, patches, self._written)
        return np.asarray(found, np.float64) / self.effect

    def _log_odds(self, state: DecodeState, patches: Patches) -> np.ndarray:
        found = self._policy.interventions.patched(state, patches, self._written)
        found = np.asarray(found, np.float64)
        return found[:, 0] - found[:, 1]

    def _plain(self) -> float:
        """The prompt's own, by the same program with nothing patched."""
        at, readable = self._alone()
        state = self._state(self._states[0], at, readable, self._written.tokens.shape[1])
        nothing = np.zeros((self.depth, 1, len(at)), bool)
        with self._timed():
            return float(self._log_odds(state, Patches(state.cache, nothing, nothing))[0])

    def recovered(self, outcomes: np.ndarray) -> list[Recovered]:
        if not self.distinguished:
            return [(0.0, None)] * len(outcomes)
        return [(float((odds - self.own) / self.effect), None) for odds in outcomes]

    def chunk(self, variant: Variant) -> tuple[np.ndarray | None, str | None]:
        state, patches = self._patched([variant], self._room)
        options = self._policy.decode_options(self.options)
        written = self._policy.interventions.patched_tokens(state, patches, options)
        return self._policy.decoded(np.asarray(written)[0].tolist())


def in_rows(chunks: Sequence[Sequence[int]], most: int) -> Written:
    """Chunks as the model reads them again, each of at most `most` tokens; of few lengths, since
    each is a program to compile."""
    length = -(-max(map(len, chunks)) // _TOKENS_STEP) * _TOKENS_STEP
    tokens = np.zeros((len(chunks), min(length, most)), np.int32)
    for row, ids in zip(tokens, chunks, strict=True):
        row[: len(ids)] = ids
    return Written(tokens, np.array([len(ids) for ids in chunks], np.int32))


def ratio(shares: np.ndarray, weights: np.ndarray) -> Recovered:
    """sum(shares) / sum(weights) [N], and its 95 % interval as a ratio of means, by Student's t."""
    count, total = len(shares), weights.sum()
    found = float(shares.sum() / total)
    if count < 2:
        return found, None
    spread = np.sqrt(count / (count - 1) * np.sum((shares - found * weights) ** 2)) / total
    half = float(scipy.special.stdtrit(count - 1, 0.975) * spread)
    return found, (found - half, found + half)


def pair(
    policy: Policy, raw: RawObservation, counterfactual: str, options: Options, noises: int = NOISES
) -> Pair:
    """Both prompts' runs of a policy. Raises ValueError for what it cannot take."""
    if not 1 <= noises <= MAX_NOISES:
        raise ValueError(f"noises is {noises}; it goes from 1 to {MAX_NOISES}")
    options = dataclasses.replace(
        options, num_samples=1, attention=False, temperature=0.0, cuts=(), guidance=1.0
    )
    check_options(options)
    if isinstance(policy, FastPolicy):
        return FastPair(policy, raw, counterfactual, options)
    if isinstance(policy, FlowPolicy):
        return FlowPair(policy, raw, counterfactual, options, noises)
    raise TypeError(f"{type(policy).__name__} has no interventions")
