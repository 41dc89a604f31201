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

`alignment` pairs the columns of the two runs, `pairs` runs them patched. The suffix stands where
the counterfactual's length puts it, which no patch undoes.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from playground.analysis.causal import (
    MAX_NOISES,
    NOISES,
    CausalRequest,
    CausalTrace,
    Cell,
    CellRequest,
)
from playground.analysis.measured import check_names
from playground.analysis.pairs import NOTHING, Pair, Recovered, Variant, pair
from playground.policies.base import Policy
from playground.serving.events import Phase, Result
from playground.trace import Options, RawObservation

_ROWS = 16  # variants x noises that one call runs
_MOST_BYTES = 2 << 30  # of keys and values in one call
_LARGE = 100_000_000  # depth x width x MLP width of a model whose patches are ranked first
EXACT = 64  # patches of such a model that are run
_DEADLINE_S = 900.0
_AS_IT_IS = "The policy is traced as it is: without the run's cuts, its prompt not weighed."


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
    yield from _measured(report, runs, _wanted(runs, patches, exact))


def _is_large(policy: Policy) -> bool:
    """Whether running every patch would take minutes."""
    language = policy.config.language
    return language.depth * language.width * language.mlp_dim > _LARGE


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """What is measured: first every group in each of `columns` (each layer, then all of them), then
    single image patches.

    variants: all of these
    maps: by slot, the places of its patches; {} where none is wanted
    run: the places of those that are run, in order
    estimates: [J] for the others, None where there are none
    """

    variants: tuple[Variant, ...]
    columns: int
    maps: Mapping[str, np.ndarray]
    run: np.ndarray
    estimates: np.ndarray | None

    def filled(self, report: CausalTrace, found: Sequence[Recovered | None]) -> CausalTrace:
        """The report with as many numbers as there are."""
        every = [(None, None) if one is None else one for one in found]
        cells = len(report.groups) * self.columns
        rows = [every[i : i + self.columns] for i in range(0, cells, self.columns)]
        known = dict(zip(self.run.tolist(), (value for value, _ in every[cells:]), strict=True))
        ran = self._maps(lambda place: known.get(place) is not None)
        return dataclasses.replace(
            report,
            recovered=tuple(tuple(value for value, _ in row) for row in rows),
            intervals=tuple(tuple(interval for _, interval in row) for row in rows),
            patches=self._maps(lambda place: self._value(known, place)),
            exact={} if self.estimates is None else ran,
            done=sum(one is not None for one in found),
        )

    def _maps(self, value: Callable[[int], Any]) -> dict[str, tuple]:
        """By slot, row by row, the value of each patch."""
        found = {}
        for slot, places in self.maps.items():
            side = math.isqrt(len(places))
            each = [value(place) for place in places.tolist()]
            found[slot] = tuple(tuple(each[i : i + side]) for i in range(0, len(each), side))
        return found

    def _value(self, known: Mapping[int, float | None], place: int) -> float | None:
        value = known.get(place)
        if value is None and self.estimates is not None:
            return float(self.estimates[place])
        return value


def _wanted(runs: Pair, patches: bool, exact: int | None) -> _Wanted:
    """patches, exact: as in `trace`."""
    layers = [*range(runs.depth), None]
    cells = [Variant(places, layer) for _, places in runs.joined.groups for layer in layers]
    maps = runs.joined.patches if patches else {}
    every = np.concatenate([[], *maps.values()]).astype(int)
    estimates = None
    if exact is not None and exact < len(every) and runs.distinguished:
        estimates = runs.slopes().sum(axis=0)
        order = np.argsort(-np.abs(estimates[every]), kind="stable")
        every = every[np.sort(order[:exact])]
    single = [Variant(every[[i]], None) for i in range(len(every))]
    return _Wanted((*cells, *single), len(layers), maps, every, estimates)


def _measured(report: CausalTrace, runs: Pair, wanted: _Wanted) -> Iterator[CausalTrace]:
    """The report as it grows, call by call."""
    image, text = runs.read()
    report = dataclasses.replace(
        report,
        effect=runs.effect,
        distinguished=runs.distinguished,
        groups=tuple(group for group, _ in runs.joined.groups),
        read_image=image,
        read_text=text,
        notes=(*report.notes, *runs.notes()),
        warnings=tuple(dict.fromkeys(w for p in runs.prepared for w in p.warnings)),
        of=len(wanted.variants),
    )
    if not runs.distinguished:
        yield wanted.filled(report, [(0.0, None)] * len(wanted.variants))
        return
    found = _known(runs, wanted.variants, report.noises)
    to_run = [place for place, known in enumerate(found) if known is None]
    rows = 2 if report.family == "pi0_fast" else report.noises
    per_call = variants_per_call(rows, runs.row_bytes())
    size = per_call * (1 + rows) * runs.row_bytes()
    said = plan(len(to_run), per_call, size, runs.patch_s * len(to_run))
    report = dataclasses.replace(report, plan=said)
    yield wanted.filled(report, found)
    warm: list[float] = []  # seconds of calls; the first one compiles
    for start in range(0, len(to_run), per_call):
        some = to_run[start : start + per_call]
        # Every number of variants is a program to compile.
        padded = [*(wanted.variants[i] for i in some), *[NOTHING] * (per_call - len(some))]
        began = time.monotonic()
        outcomes = runs.recovered(runs.patched(padded)[: len(some)])
        for i, outcome in zip(some, outcomes, strict=True):
            found[i] = outcome
        if start:
            warm.append(time.monotonic() - began)
        left = -(-(len(to_run) - start - len(some)) // per_call)
        seconds = float(np.mean(warm)) * left if warm else None
        yield wanted.filled(dataclasses.replace(report, seconds_left=seconds), found)


def _known(runs: Pair, variants: Sequence[Variant], noises: int) -> list[Recovered | None]:
    """What is known without a run: of places that hold the same, a patch changes nothing."""
    nothing = (0.0, None if noises == 1 else (0.0, 0.0))
    differing = runs.differing()

    def differs(one: Variant) -> bool:
        layers = differing if one.layer is None else differing[[one.layer]]
        return bool(layers[:, one.places].any())

    return [None if differs(one) else nothing for one in variants]


def variants_per_call(rows: int, row_bytes: int) -> int:
    """How many patches run at once: each has a cache of its own, and one for each of its rows.

    rows: of the model for each patch; row_bytes: of the keys and values of one row
    """
    return max(1, min(_ROWS // rows, _MOST_BYTES // (row_bytes * (1 + rows))))


def plan(patches: int, per_call: int, size: int, seconds: float) -> str:
    """What is said before the first call. size: bytes of one call's keys and values; seconds: of
    all patches one by one, which calls of several can only better."""
    return (
        f"{patches:,} patches in {-(-patches // per_call)} calls of {per_call}, "
        f"{size / 2**20:,.0f} MB of keys and values at once, about {max(1, round(seconds)):,} s "
        "at most once compiled"
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
        return None if chunk is None else policy.to_robot(chunk.astype(np.float32), raw)

    def own(prompt: str) -> np.ndarray | None:
        actions, _ = policy.actions(dataclasses.replace(raw, prompt=prompt), runs.options)
        return None if actions is None else shown(actions[0])

    found, _ = runs.chunk(variant)
    ((recovered, _),) = runs.recovered(runs.patched([variant]))
    return Cell(
        policy=request.policy,
        group=request.group,
        layer=request.layer,
        patch=request.patch,
        prompt=own(raw.prompt),
        counterfactual=own(request.counterfactual),
        patched=shown(found),
        recovered=recovered,
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
