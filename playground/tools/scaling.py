"""How many engines so many visitors a day need: `python -m playground.tools.scaling`.

Simulates the busiest hour: runs arrive at random (a Poisson process) and are served in their order
by the engine that is free first. What a run takes is measured, how people behave is assumed; each
can be given.

    --visitors 10 1000 100000   a day
    --run-s 0.418               one run on one engine: both 3B policies, step by step and token by
                                token, on one H200 (docs/performance.md: 70 and 348 ms)
    --runs 12                   of one visitor
    --busy-hour 0.15            the part of the day's visitors that come in the busiest hour
    --wait-s 1                  what 95 % of the runs wait at most
"""

import argparse
import dataclasses
import heapq
import itertools

import numpy as np

from playground.serving import queue

_HOUR_S = 3600


@dataclasses.dataclass(frozen=True, slots=True)
class Hour:
    """busy: the part of the time that an engine works. waits: their mean and 95th percentile, in s.
    longest: the queue. refused: the part of the runs for which no place was left."""

    engines: int
    busy: float
    mean_wait_s: float
    p95_wait_s: float
    longest: int
    refused: float


def arrivals(runs: int, seed: int = 0) -> np.ndarray:
    """When so many runs are expected in an hour: the times of a Poisson process, float [n], s."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, _HOUR_S, rng.poisson(runs)))


def simulate(times: np.ndarray, run_s: float, engines: int, places: int = queue.SIZE) -> Hour:
    """An hour in which runs of `run_s` arrive at these times; `places`: of those who wait."""
    free = [0.0] * engines
    starts: list[float] = []  # of those who wait, in order
    waits, longest, refused = [], 0, 0
    for time in times:
        while starts and starts[0] <= time:
            heapq.heappop(starts)
        if len(starts) >= places:
            refused += 1
            continue
        start = max(time, free[0])
        heapq.heapreplace(free, start + run_s)
        waits.append(start - time)
        if start > time:
            heapq.heappush(starts, start)
            longest = max(longest, len(starts))
    served = np.array(waits or [0.0])
    busy = len(waits) * run_s / (engines * _HOUR_S)
    p95 = float(np.quantile(served, 0.95))
    return Hour(engines, busy, float(served.mean()), p95, longest, refused / max(1, len(times)))


def enough(times: np.ndarray, run_s: float, wait_s: float) -> Hour:
    """With the fewest engines by which nobody is refused and 95 % wait no longer than that."""
    least = max(1, int(len(times) * run_s / _HOUR_S))
    for engines in itertools.count(least):
        hour = simulate(times, run_s, engines)
        if not hour.refused and hour.p95_wait_s <= wait_s:
            return hour
    raise AssertionError


def row(visitors: int, runs: int, hour: Hour) -> str:
    return (
        f"| {visitors:,} | {runs:,} | {hour.engines} | {hour.busy:.1%} | {hour.mean_wait_s:.3f} | "
        f"{hour.p95_wait_s:.3f} | {hour.longest} |"
    )


def rows(args: argparse.Namespace) -> list[str]:
    found = []
    for visitors in args.visitors:
        runs = round(visitors * args.busy_hour * args.runs)
        found.append(row(visitors, runs, enough(arrivals(runs), args.run_s, args.wait_s)))
    return found


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--visitors", nargs="+", type=int, default=[10, 1000, 100_000])
    parser.add_argument("--run-s", type=float, default=0.418)
    parser.add_argument("--runs", type=float, default=12)
    parser.add_argument("--busy-hour", type=float, default=0.15)
    parser.add_argument("--wait-s", type=float, default=1.0)
    return parser


def main() -> None:
    print(*rows(settings().parse_args()), sep="\n")


if __name__ == "__main__":
    main()
