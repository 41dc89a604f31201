"""Where the prompt acts: activation patching between two prompts on one observation.

    report = trace(policy, raw, "touch the blue cube", Options(), noises=4)
    print(headline(report))

Definitions (arXiv 2202.05262, for a policy). The *prompt* is the observation's own, the
*counterfactual* another one; images, state and noise are the same. The counterfactual runs, but
with the prompt's keys and values in chosen places of the prefix (layers x columns), and what reads
the prefix runs again over them. With c the chunk that comes out, c_A the prompt's and c_B the
counterfactual's, all normalised and over all noises at once,

    recovered = <c - c_B, c_A - c_B> / |c_A - c_B|²

so 0 is nothing and 1 all of the prompt's behaviour. Its 95 % interval is that of a ratio of means
over noises, by Student's t. pi0-FAST writes tokens: with L = log p(A's tokens) - log p(B's), of the
chunks that the two prompts give, read again over the patched prefix, recovered is
(L - L_B) / (L_A - L_B). The first token is left out: the prompt's own pass decides it.

*Read* says how far the prompts differ inside, used or not: |V_A - V_B| / |V_B| of a layer's values,
over image columns and over text columns.

Words are paired by `difflib`. Where their tokens are not of one number they are patched as one
group: the prompt's columns take the place of the counterfactual's, and carry their own positions.
The suffix stands where the counterfactual's length puts it, which no patch undoes.

Shapes: N noises, H horizon, D the robot's action dimensions, L layers, C variants, J columns that
both runs share.
"""

import dataclasses
import difflib
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence

import numpy as np
import scipy.special

from models.gemma import KVCache
from models.interventions import Patches, Written, places_of
from playground.analysis.causal import (
    EVERYTHING,
    MAX_NOISES,
    NOISES,
    SHARED,
    CausalRequest,
    CausalTrace,
    Cell,
    CellRequest,
    PatchGroup,
)
from playground.analysis.sensitivity import share_of_range
from playground.policies.base import Policy, Prepared, check_options, sample_noise
from playground.policies.places import Part, Places
from playground.serving.events import Phase, Result
from playground.trace import Options, RawObservation

_ROWS = 16  # variants x noises that one call runs
_MOST_BYTES = 2 << 30  # of keys and values in one call
_LARGE = 100_000_000  # depth x width x MLP width of a model whose patches are ranked first
EXACT = 64  # patches of such a model that are run
_TOKENS_STEP = 32
_DEADLINE_S = 900.0
_AS_IT_IS = "The policy is traced as it is: without the run's cuts, its prompt not weighed."
# Normalised actions; below this two chunks are equal but for rounding.
_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}


# --- which columns ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """The columns of two runs, side by side.

    own: int [J], the counterfactual's column; -1: it has none
    source: int [J], the prompt's
    groups: with the places among the J
    patches: by slot, the places of its patches
    """

    own: np.ndarray
    source: np.ndarray
    groups: tuple[tuple[PatchGroup, np.ndarray], ...]
    patches: dict[str, np.ndarray]


def join(counterfactual: Places, prompt: Places) -> Joined:
    """Which column of the one stands against which of the other."""
    own = list(range(len(counterfactual.valid)))
    source = [-1] * len(own)
    groups: list[tuple[PatchGroup, np.ndarray]] = []

    def put(kind, name, texts, own_columns, source_columns):
        places = list(own_columns)
        for column, other in zip(own_columns, source_columns, strict=False):
            source[column] = int(other)
        for other in source_columns[len(own_columns) :]:
            places.append(len(own))
            own.append(-1)
            source.append(int(other))
        sizes = (len(source_columns), len(own_columns))
        groups.append((PatchGroup(kind, name, *texts, sizes), np.array(places, int)))

    for kind in ("cameras", "hidden"):
        for slot, columns in getattr(counterfactual, kind).items():
            readable = counterfactual.readable[columns].any()
            if kind == "cameras" or readable:
                label = "image" if kind == "cameras" else "hidden camera"
                put(label, slot, ("", ""), columns, getattr(prompt, kind)[slot])
    for theirs, ours in _paired(counterfactual.parts, prompt.parts):
        texts = tuple(" ".join(part.text for part in parts) for parts in (ours, theirs))
        columns = [
            places.text[[token for part in parts for token in part.tokens]]
            for places, parts in ((counterfactual, theirs), (prompt, ours))
        ]
        kind = (*theirs, *ours)[0].kind
        name = texts[0] if texts[0] == texts[1] else f"{texts[0] or '-'} / {texts[1] or '-'}"
        put(kind, name, texts, *columns)
    pictures = [places for group, places in groups if group.kind == "image"]
    shared = [
        places
        for group, places in groups
        if group.kind in ("state", "rest") or (group.kind == "word" and not group.differs)
    ]
    together = (("pictures", "all pictures", pictures), ("shared text", SHARED, shared))
    for kind, name, parts in together:
        if len(parts) > 1:
            places = np.concatenate(parts)
            count = (len(places), len(places))
            groups.append((PatchGroup(kind, name, "", "", count), places))
    everything = np.unique(np.concatenate([places for _, places in groups]))
    count = (int(prompt.readable.sum()), int(counterfactual.readable.sum()))
    groups.append((PatchGroup("everything", EVERYTHING, "", "", count), everything))
    if extra := len(own) - len(counterfactual.valid):  # every width is a program to compile
        own += [-1] * (-extra % 8)
        source += [-1] * (-extra % 8)
    return Joined(
        np.array(own), np.array(source), tuple(groups),
        {slot: columns for slot, columns in counterfactual.cameras.items()},
    )  # fmt: skip


def _paired(
    theirs: Sequence[Part], ours: Sequence[Part]
) -> Iterator[tuple[Sequence[Part], Sequence[Part]]]:
    """(the counterfactual's parts, the prompt's) that stand against each other."""
    words = [[part for part in parts if part.kind == "word"] for parts in (theirs, ours)]
    texts = [[part.text.lower() for part in parts] for parts in words]
    matcher = difflib.SequenceMatcher(a=texts[0], b=texts[1], autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        if b - a == d - c:
            for own, other in zip(words[0][a:b], words[1][c:d], strict=True):
                yield [own], [other]
        else:
            yield words[0][a:b], words[1][c:d]
    for kind in ("state", "rest"):
        found = [[part for part in parts if part.kind == kind] for parts in (theirs, ours)]
        if any(found):
            yield found[0], found[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """A patch: which places of the J, in which layer (from 0; None: all)."""

    places: np.ndarray
    layer: int | None


_NOTHING = Variant(np.array([], int), None)


def _patches(
    variants: Sequence[Variant], joined: Joined, readable: tuple, source: KVCache, depth: int
) -> Patches:
    """readable: bool [J] of the counterfactual's columns and of the prompt's."""
    where = np.zeros((depth, len(variants), len(joined.own)), bool)
    for row, variant in enumerate(variants):
        layers = slice(None) if variant.layer is None else variant.layer
        where[layers, row, variant.places] = True
    own, other = readable
    missing = np.where(where, ~other, ~own) & (own | other)
    return Patches(source, where, missing)


# --- the two kinds of policies ------------------------------------------------------------------


class Pair:
    """A policy's runs with the prompt (A) and with the counterfactual (B), ready to be patched."""

    def __init__(self, policy: Policy, raw: RawObservation, counterfactual: str, options: Options):
        self._policy, self.depth = policy, policy.config.language.depth
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
        self._own = places_of(caches[1], np.maximum(own, 0))
        self._source = places_of(caches[0], np.maximum(source, 0))

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

    def recovered(self, outcomes: np.ndarray) -> list[tuple[float, tuple[float, float] | None]]:
        """Of each of `patched`'s outcomes: (recovered, its interval)."""
        raise NotImplementedError

    def _of(self, variants: Sequence[Variant]) -> Patches:
        return _patches(variants, self.joined, self._readable, self._source, self.depth)

    def differing(self) -> np.ndarray:
        """bool [L, J]: where the prompt's run holds something else. A patch of other places gives
        the counterfactual's own chunk: layer 1 differs in the changed words alone."""
        own, other = self._readable
        found = np.tile(own != other, (self.depth, 1))
        caches = (self._own.k, self._source.k), (self._own.v, self._source.v)
        for ours, theirs in caches:
            for layer, (x, y) in enumerate(zip(ours, theirs, strict=True)):
                found[layer] |= (np.asarray(x) != np.asarray(y)).any(axis=(0, 2, 3)) & own & other
        return found

    def row_bytes(self) -> int:
        """Of the keys and values of one run's prefix."""
        return sum(x.nbytes for x in (*self._own.k, *self._own.v))

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
        for own, source in zip(self._own.v, self._source.v, strict=True):
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

    def __init__(self, policy, raw, counterfactual, options, noises):
        config = policy.config
        horizon, dims = config.action_horizon, config.action_dim
        self._noise = sample_noise(options.seed, noises, horizon, dims)
        self._prefixes: list = []
        super().__init__(policy, raw, counterfactual, options)
        self.own = self.patched([_NOTHING])[0]
        self.source = self._plain()
        self.distinguished = bool(
            np.abs(self.source - self.own).max() > _ROUNDING[config.dtype]
        )  # fmt: skip
        share = share_of_range(policy.info)
        self.effect = float(np.nanmean(np.abs(self.source - self.own) * share))
        self.unit = "% of range"

    def _run(self, prepared: Prepared) -> KVCache:
        prefix = self._policy.prefilled(prepared, self._columns)
        self._prefixes.append(prefix)
        return prefix.cache

    def _prefix(self):
        """The counterfactual's, with room for what only the prompt has."""
        readable = np.logical_or(*self._readable)[None]
        return dataclasses.replace(self._prefixes[1], cache=self._own, input_mask=readable)

    def patched(self, variants: Sequence[Variant]) -> np.ndarray:
        return self._chunks(self._prefix(), self._of(variants))

    def slopes(self) -> np.ndarray:
        towards = np.zeros_like(self._noise)
        moved = self.source - self.own
        towards[..., : moved.shape[-1]] = moved / (moved**2).sum()
        found = self._policy.interventions.slopes(
            self._prefix(),
            self._of([_NOTHING]),
            self._policy.observation(self.prepared[1], self._columns),
            self._noise,
            towards,
            num_steps=self.options.num_steps,
        )
        return np.asarray(found, np.float64)

    def _plain(self) -> np.ndarray:
        """The prompt's own chunks, by the same program with nothing patched."""
        places, prefix = self._places[0], self._prefixes[0]
        width, columns = len(self.joined.own), len(places.valid)
        at, within = np.minimum(np.arange(width), columns - 1), np.arange(width) < columns
        valid = within & self._places[0].readable[at]
        nothing = np.zeros((self.depth, 1, width), bool)
        prefix = dataclasses.replace(
            prefix, cache=places_of(prefix.cache, at), input_mask=valid[None]
        )
        return self._chunks(prefix, Patches(prefix.cache, nothing, nothing))[0]

    def _chunks(self, prefix, patches: Patches) -> np.ndarray:
        observation = self._policy.observation(self.prepared[1], self._columns)
        chunks = self._policy.interventions.patched(
            prefix, patches, observation, self._noise, num_steps=self.options.num_steps
        )
        return np.asarray(chunks, np.float64)[..., : len(self._policy.info.actions)]

    def recovered(self, outcomes):
        towards = (self.source - self.own).reshape(len(self.own), -1)
        weights = (towards**2).sum(axis=1)
        moved = (outcomes - self.own).reshape(*outcomes.shape[:2], -1)
        shares = (moved * towards).sum(axis=-1)  # [C, N]
        return [ratio(row, weights) if self.distinguished else (0.0, None) for row in shares]

    def chunk(self, variant: Variant) -> tuple[np.ndarray | None, str | None]:
        """The first noise's normalised chunk [H, D] under a patch, and why there is none."""
        return self.patched([variant])[0, 0], None


class FastPair(Pair):
    """pi0-FAST: outcomes are log-odds [C]."""

    def __init__(self, policy, raw, counterfactual, options, noises):
        self._states: list = []
        super().__init__(policy, raw, counterfactual, options)
        written = [policy.written(state, options) for state in self._states]
        length = -(-max(map(len, written)) // _TOKENS_STEP) * _TOKENS_STEP
        tokens = np.zeros((2, min(length, options.max_tokens)), np.int32)
        for row, ids in zip(tokens, written, strict=True):
            row[: len(ids)] = ids
        self._written = Written(tokens, np.array([len(ids) for ids in written], np.int32))
        self.distinguished = written[0] != written[1]
        self.own = float(self.patched([_NOTHING])[0])
        self.source = self._plain()
        self.effect, self.unit = self.source - self.own, "nats"
        if self.distinguished and abs(self.effect) < 1e-3:
            self.distinguished = False

    def _run(self, prepared: Prepared) -> KVCache:
        state = self._policy.prefilled_state(prepared, self.options, self._columns)
        self._states.append(state)
        return state.cache

    @staticmethod
    def _state(state, columns: np.ndarray, readable: np.ndarray, room: int):
        """The state with its prefix columns at `columns`, and room for as many tokens behind."""
        columns = np.r_[columns, state.prefix_len + np.arange(room)]
        return dataclasses.replace(
            state, cache=places_of(state.cache, columns), visible=readable[None]
        )

    def _patched(self, variants: Sequence[Variant], room: int):
        """The counterfactual's state, and the patches of the variants."""
        own, source = (np.maximum(x, 0) for x in (self.joined.own, self.joined.source))
        state = self._state(self._states[1], own, np.logical_or(*self._readable), room)
        cache = self._state(self._states[0], source, self._readable[1], room).cache
        return state, self._of(variants)._replace(source=cache)

    def patched(self, variants: Sequence[Variant]) -> np.ndarray:
        return self._log_odds(*self._patched(variants, self._written.tokens.shape[1]))

    def slopes(self) -> np.ndarray:
        state, patches = self._patched([_NOTHING], self._written.tokens.shape[1])
        found = self._policy.interventions.slopes(state, patches, self._written)
        return np.asarray(found, np.float64) / self.effect

    def _log_odds(self, state, patches: Patches) -> np.ndarray:
        found = self._policy.interventions.patched(state, patches, self._written)
        found = np.asarray(found, np.float64)
        return found[:, 0] - found[:, 1]

    def _plain(self) -> float:
        """The prompt's own, by the same program with nothing patched."""
        width, columns = len(self.joined.own), len(self._places[0].valid)
        at, within = np.minimum(np.arange(width), columns - 1), np.arange(width) < columns
        readable = within & self._places[0].readable[at]
        state = self._state(self._states[0], at, readable, self._written.tokens.shape[1])
        nothing = np.zeros((self.depth, 1, width), bool)
        return float(self._log_odds(state, Patches(state.cache, nothing, nothing))[0])

    def recovered(self, outcomes):
        if not self.distinguished:
            return [(0.0, None)] * len(outcomes)
        return [(float((odds - self.own) / self.effect), None) for odds in outcomes]

    def chunk(self, variant: Variant) -> tuple[np.ndarray | None, str | None]:
        state, patches = self._patched([variant], self.options.max_tokens)
        options = self._policy.decode_options(self.options)
        written = self._policy.interventions.patched_tokens(state, patches, options)
        return self._policy.decoded(np.asarray(written)[0].tolist())


def ratio(
    shares: np.ndarray, weights: np.ndarray
) -> tuple[float, tuple[float, float] | None]:  # fmt: skip
    """sum(shares) / sum(weights) [N], and its 95 % interval as a ratio of means, by Student's t."""
    count, total = len(shares), weights.sum()
    found = float(shares.sum() / total)
    if count < 2:
        return found, None
    spread = np.sqrt(count / (count - 1) * np.sum((shares - found * weights) ** 2)) / total
    half = float(scipy.special.stdtrit(count - 1, 0.975) * spread)
    return found, (found - half, found + half)


# --- measuring ----------------------------------------------------------------------------------


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
    kind = FastPair if policy.info.family == "pi0_fast" else FlowPair
    return kind(policy, raw, counterfactual, options, noises)


def trace(
    policy: Policy,
    raw: RawObservation,
    counterfactual: str,
    options: Options,
    *,
    noises: int = NOISES,
    patches: bool = True,
    exact: int | None = None,
) -> CausalTrace:
    """The whole report on one policy; definitions at the top of this file.

    raw: with the prompt whose behaviour is looked for
    counterfactual: the other prompt
    options, noises, patches: as in `CausalRequest`
    exact: how many image patches are run; the others are estimated by the derivative that ranks
        them. None: all of a small model, `EXACT` of a large one
    What the policy cannot answer is a failure in the report; raises ValueError for `noises`.
    """
    how = {"noises": noises, "patches": patches, "exact": exact}
    *_, last = traced(policy, raw, counterfactual, options, **how)
    return last


def traced(
    policy: Policy,
    raw: RawObservation,
    counterfactual: str,
    options: Options,
    *,
    noises: int,
    patches: bool,
    exact: int | None = None,
) -> Iterator[CausalTrace]:
    """`trace` as it grows."""
    info = policy.info
    fast = info.family == "pi0_fast"
    report = CausalTrace.on(
        info,
        prompt=raw.prompt,
        counterfactual=counterfactual,
        noises=1 if fast else noises,
        unit="nats" if fast else "% of range",
        notes=(_AS_IT_IS,) * (options.cuts != () or options.guidance != 1),
    )
    if not 1 <= noises <= MAX_NOISES:
        raise ValueError(f"noises is {noises}; it goes from 1 to {MAX_NOISES}")
    try:
        runs = pair(policy, raw, counterfactual, options, noises)
    except ValueError as error:
        yield dataclasses.replace(report, failure=str(error))
        return
    if exact is None and _is_large(policy):
        exact = EXACT
    yield from _measured(report, runs, patches, exact)


def _is_large(policy: Policy) -> bool:
    """Whether running every patch would take minutes."""
    language = policy.config.language
    return language.depth * language.width * language.mlp_dim > _LARGE


def _measured(
    report: CausalTrace, runs: Pair, patches: bool, exact: int | None
) -> Iterator[CausalTrace]:
    groups = runs.joined.groups
    layers = [*range(runs.depth), None]
    cells = [Variant(places, layer) for _, places in groups for layer in layers]
    single = runs.joined.patches if patches else {}
    every = np.concatenate([[], *single.values()]).astype(int)
    estimates = None
    if exact is not None and exact < len(every) and runs.distinguished:
        estimates = runs.slopes().sum(axis=0)
        order = np.argsort(-np.abs(estimates[every]), kind="stable")
        every = every[np.sort(order[:exact])]
    dots = [Variant(every[[i]], None) for i in range(len(every))]
    image, text = runs.read()
    report = dataclasses.replace(
        report,
        effect=runs.effect,
        distinguished=runs.distinguished,
        groups=tuple(group for group, _ in groups),
        read_image=image,
        read_text=text,
        notes=(*report.notes, *runs.notes()),
        warnings=tuple(dict.fromkeys(w for p in runs.prepared for w in p.warnings)),
        of=len(cells) + len(dots),
    )
    variants = [*cells, *dots]
    nothing = (0.0, None if report.noises == 1 else (0.0, 0.0))
    differing = runs.differing()
    found: list = [None if _differs(differing, one) else nothing for one in variants]
    to_run = [place for place, known in enumerate(found) if known is None]
    maps = _Maps(single, every, estimates)
    if not runs.distinguished:
        found = [(0.0, None)] * len(variants)
        yield _filled(report, found, len(layers), maps)
        return
    rows = 2 if report.family == "pi0_fast" else report.noises
    per_call = _per_call(rows, runs.row_bytes())
    report = dataclasses.replace(report, plan=_plan(len(to_run), per_call, rows, runs))
    yield _filled(report, found, len(layers), maps)
    warm: list[float] = []  # seconds of calls; the first one compiles
    for start in range(0, len(to_run), per_call):
        some = to_run[start : start + per_call]
        # Every number of variants is a program to compile.
        padded = [*(variants[i] for i in some), *[_NOTHING] * (per_call - len(some))]
        began = time.monotonic()
        outcomes = runs.recovered(runs.patched(padded)[: len(some)])
        for i, outcome in zip(some, outcomes, strict=True):
            found[i] = outcome
        if start:
            warm.append(time.monotonic() - began)
        left = -(-(len(to_run) - start - len(some)) // per_call)
        report = dataclasses.replace(
            report, seconds_left=float(np.mean(warm)) * left if warm else None
        )
        yield _filled(report, found, len(layers), maps)


def _differs(differing: np.ndarray, one: Variant) -> bool:
    """Whether the variant changes anything."""
    layers = differing if one.layer is None else differing[[one.layer]]
    return bool(layers[:, one.places].any())


def _per_call(rows: int, row_bytes: int) -> int:
    """Variants of one call: each has a cache of its own, and one for each of its rows."""
    return max(1, min(_ROWS // rows, _MOST_BYTES // (row_bytes * (1 + rows))))


def _plan(variants: int, per_call: int, rows: int, runs: Pair) -> str:
    size = per_call * (1 + rows) * runs.row_bytes() / 2**20
    return (
        f"{variants:,} patches in {-(-variants // per_call)} calls of {per_call}, "
        f"{size:,.0f} MB of keys and values at once"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Maps:
    """Which patches are run. single: by slot, the places of its patches; run: the places of those
    that are run, in order; estimates: [J] for the others, None where there are none."""

    single: Mapping[str, np.ndarray]
    run: np.ndarray
    estimates: np.ndarray | None

    def filled(self, found: Sequence[float | None]) -> tuple[dict, dict]:
        """By slot, row by row: the values, and, where some are estimates, whether each was run."""
        known = dict(zip(self.run.tolist(), found, strict=True))
        values, ran = {}, {}
        for slot, places in self.single.items():
            side = math.isqrt(len(places))
            each = [self._value(known, place) for place in places.tolist()]
            exact = [known.get(place) is not None for place in places.tolist()]
            values[slot] = tuple(tuple(each[i : i + side]) for i in range(0, len(each), side))
            ran[slot] = tuple(tuple(exact[i : i + side]) for i in range(0, len(each), side))
        return values, {} if self.estimates is None else ran

    def _value(self, known: Mapping[int, float | None], place: int) -> float | None:
        value = known.get(place)
        if value is None and self.estimates is not None:
            return float(self.estimates[place])
        return value


def _filled(report: CausalTrace, found: Sequence, columns: int, maps: _Maps) -> CausalTrace:
    """The report with as many numbers as there are."""
    every = [(None, None) if one is None else one for one in found]
    cells = len(report.groups) * columns
    rows = [every[i : i + columns] for i in range(0, cells, columns)]
    values, ran = maps.filled([value for value, _ in every[cells:]])
    return dataclasses.replace(
        report,
        recovered=tuple(tuple(value for value, _ in row) for row in rows),
        intervals=tuple(tuple(interval for _, interval in row) for row in rows),
        patches=values,
        exact=ran,
        done=sum(one is not None for one in found),
    )


# --- for the worker -----------------------------------------------------------------------------


def causal_trace(
    policies: Mapping[str, Policy], request: CausalRequest
) -> Generator[Phase | Result]:  # fmt: skip
    """A kind of job for `playground.serving.worker`. Each Result holds the CausalTrace of one
    policy so far; in its last one `done` equals `of`. Raises ValueError for names and values that
    are not taken."""
    check_names(policies, request.policies, request.observations)
    for name in request.policies:
        raw = request.observations[name]
        if raw.prompt.strip() == request.counterfactual.strip():
            raise ValueError("the two prompts are the same; give another one to compare with")
        yield Phase(name, "patching", _DEADLINE_S)
        for report in traced(
            policies[name],
            raw,
            request.counterfactual,
            request.options,
            noises=request.noises,
            patches=request.patches,
        ):
            yield Result(report)


def check_names(
    policies: Mapping[str, Policy], names: Sequence[str], observations: Mapping
) -> None:  # fmt: skip
    """Raises ValueError for names that are not loaded, come twice or have no observation."""
    if not names or (missing := [name for name in names if name not in policies]):
        asked = ", ".join(missing) if names else "nothing"
        raise ValueError(f"no policy is called {asked}; loaded: {', '.join(policies)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a policy is measured once; {', '.join(names)} came")
    if lacking := [name for name in names if name not in observations]:
        raise ValueError(f"there is no observation for {', '.join(lacking)}")


def causal_cell(policies: Mapping[str, Policy], request: CellRequest) -> Generator[Phase | Result]:
    """A kind of job for `playground.serving.worker`: one Result with a Cell."""
    check_names(policies, (request.policy,), {request.policy: request.observation})
    yield Phase(request.policy, "one patch", _DEADLINE_S)
    yield Result(cell(policies[request.policy], request))


def cell(policy: Policy, request: CellRequest) -> Cell:
    """Runs one patch. Raises ValueError for a group, layer or patch that is not there."""
    raw = request.observation
    runs = pair(policy, raw, request.counterfactual, request.options, noises=1)
    variant = _variant(runs, request)

    def shown(chunk: np.ndarray | None) -> np.ndarray | None:
        return None if chunk is None else policy.to_robot(np.float32(chunk), raw)

    chunks = [
        policy.actions(dataclasses.replace(raw, prompt=prompt), runs.options)[0]
        for prompt in (raw.prompt, request.counterfactual)
    ]
    found, _ = runs.chunk(variant)
    ((recovered, _),) = runs.recovered(runs.patched([variant]))
    return Cell(
        request.policy,
        request.group,
        request.layer,
        request.patch,
        *(shown(None if chunk is None else chunk[0]) for chunk in chunks),
        shown(found),
        recovered,
    )


def _variant(runs: Pair, request: CellRequest) -> Variant:
    places = {group.name: columns for group, columns in runs.joined.groups}
    if request.group not in places:
        raise ValueError(f"no group is called {request.group!r}; there is {', '.join(places)}")
    if request.layer is not None and not 1 <= request.layer <= runs.depth:
        raise ValueError(f"layer is {request.layer}; it goes from 1 to {runs.depth}")
    columns = places[request.group]
    if request.patch is not None:
        if request.group not in runs.joined.patches or not 0 <= request.patch < len(columns):
            raise ValueError(f"{request.group} has no patch {request.patch}")
        columns = columns[[request.patch]]
    return Variant(columns, None if request.layer is None else request.layer - 1)
