"""What a slow policy costs at the simulated table, and what each way to join chunks makes of it:

    python -m playground.tools.delays --episodes 100 --out runs/delays.json
    python -m playground.tools.delays --cost   # of guided denoising against plain

Every way sees the same scenes, prompts and noise. Rows that the file holds already are kept, so
that a stopped run goes on. Success has Wilson's 95 % interval, the means have 1.96 standard errors.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.stats

from models.chunking import MAX_GUIDANCE, Schedule, prefix_weights
from playground.checkpoints.load import keep_compiled_programs, open_policy
from playground.policies.flow import FlowPolicy
from playground.tabletop.delayed import WAYS, Ask, Held, Rollout, Way, rollout
from playground.tabletop.rollout import observe
from playground.tabletop.scene import COLOURS, Table
from playground.tabletop.tasks import Task
from playground.trace import Options, RawObservation
from playground.training.first_chunks import held_out_scene, known_words
from playground.training.intervals import share

DELAYS = (0, 5, 15, 25)
EXECUTE = 25
VERBS = ("touch", "pick")


def asker(policy: FlowPolicy, delay: int, options: Options = Options()) -> Ask:  # noqa: B008
    """How a policy is asked within one episode: with fresh noise each time, seeds from 0 on."""
    seeds = itertools.count(options.seed)
    horizon = policy.info.horizon

    def ask(raw: RawObservation, held: Held | None) -> np.ndarray:
        now = Options(num_steps=options.num_steps, seed=next(seeds))
        if held is None:
            ((chunk, _),) = policy.chunks([raw], now)
            assert chunk is not None
            return chunk
        weights = prefix_weights(delay, held.overlap, horizon, "exp")
        return policy.guided_chunk(raw, now, held.chunk, weights, MAX_GUIDANCE).actions

    return ask


def episode(policy: FlowPolicy, index: int, way: Way, delay: int, execute: int) -> Rollout:
    """The episode of that number: its scene, colour and verb are the same for every way."""
    verb = VERBS[index % len(VERBS)]
    task = Task(verb, COLOURS[index % len(COLOURS)], known_words(verb, index))
    table = Table(held_out_scene(index))
    return rollout(table, task, asker(policy, delay), way, delay, execute)


def row(found: Rollout, index: int, way: Way, delay: int) -> dict:
    """What the file keeps of an episode."""
    return {
        **{"delay": delay, "way": way, "episode": index, "reason": found.outcome.reason},
        **{"success": bool(found.outcome.success), "time_s": found.time_s},
        **{"jump_rad": found.largest_jump, "roughness": found.roughness},
        "typical_step_rad": found.typical_step,
    }


def cost(policy: FlowPolicy, rounds: int = 40) -> dict[str, tuple[float, float]]:
    """CPU-seconds (medians, all threads) at the first scene, (plain, guided): of a "chunk",
    pictures and prefix included, and of its ten Euler steps alone, "denoising"."""
    raw, horizon = observe(Table(held_out_scene(0)), "touch the red cube"), policy.info.horizon
    previous = np.repeat(raw.state[None], horizon, axis=0)
    ways: tuple[Schedule, ...] = ("zeros", "exp")

    def spent(way: Schedule, num_steps: int) -> float:
        weights = prefix_weights(0, horizon // 2, horizon, way)
        began = time.process_time()
        policy.guided_chunk(raw, Options(num_steps=num_steps), previous, weights)
        return time.process_time() - began

    # In turn, so that whatever else the machine does falls on all alike; the first round compiles.
    found = [[[spent(way, n) for n in (10, 20)] for way in ways] for _ in range(rounds + 1)]
    seconds = np.array(found[1:])  # [rounds, ways, (10 steps, 20 steps)]
    chunk = np.median(seconds[..., 0], axis=0)
    alone = np.median(seconds[..., 1] - seconds[..., 0], axis=0)
    return {"chunk": tuple(chunk.tolist()), "denoising": tuple(alone.tolist())}


def table_of(rows: Iterable[dict]) -> str:
    """The figures by delay and way, as Markdown."""
    lines = [
        "| delay (steps) | way | success | time of successes (s) | largest jump at a seam (rad) | "
        "in typical steps | roughness (rad/s²) |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = sorted(rows, key=lambda r: (r["delay"], WAYS.index(r["way"])))
    for (delay, way), group in itertools.groupby(rows, key=lambda r: (r["delay"], r["way"])):
        some = list(group)
        hits = share([r["success"] for r in some])
        shown = "{value:.0%} ({low:.0%} to {high:.0%})".format(**hits)
        jumps = [r["jump_rad"] / r["typical_step_rad"] for r in some if r["typical_step_rad"] > 0]
        cells = [
            _mean([r["time_s"] for r in some if r["success"]], 2),
            _mean([r["jump_rad"] for r in some], 3),
            _mean(jumps, 1),
            _mean([r["roughness"] for r in some], 1),
        ]
        lines.append(f"| {delay} | {way} | {shown}, n = {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pairs_of(rows: Iterable[dict], way: Way = "rtc") -> str:
    """Where one way succeeded and another did not, episode by episode: lines with the p-value of
    McNemar's exact test. Its scenes and noise are the same, which two intervals do not use."""
    known = {(r["delay"], r["way"], r["episode"]): r["success"] for r in rows}
    lines = []
    for delay, other in sorted({(d, w) for d, w, _ in known if w != way}):
        both = [
            (known[delay, way, episode], success)
            for (d, w, episode), success in known.items()
            if (d, w) == (delay, other) and (delay, way, episode) in known
        ]
        won, lost = both.count((True, False)), both.count((False, True))
        p = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        lines.append(f"delay {delay}: {way} alone {won}, {other} alone {lost}, p = {p:.2g}")
    return "\n".join(lines)


def _mean(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return "–"
    error = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def settings() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Ways to join chunks under a delay.")
    parser.add_argument("--checkpoint", default="pi0_tabletop", help="a flow policy of the table")
    parser.add_argument("--episodes", type=int, default=100, help="of each way and delay")
    parser.add_argument("--delays", type=int, nargs="+", default=list(DELAYS))
    parser.add_argument("--execute", type=int, default=EXECUTE, help="steps between questions")
    parser.add_argument("--cost", action="store_true", help="time one chunk, plain and guided")
    parser.add_argument("--out", type=Path, default=Path("runs/delays.json"))
    return parser


def main() -> None:
    parser = settings()
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(r["delay"], r["way"], r["episode"]) for r in rows}
    keep_compiled_programs()
    policy = open_policy(args.checkpoint)
    if not isinstance(policy, FlowPolicy):
        parser.error(f"{args.checkpoint} is no flow policy: real-time chunking needs one")
    if args.cost:
        for what, (plain, guided) in cost(policy).items():
            print(
                f"{what}: plain {plain:.4f}, guided {guided:.4f} CPU-s, {guided / plain:.2f} times"
            )
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for index in range(args.episodes):
        for delay, way in itertools.product(args.delays, WAYS):
            if (delay, way, index) not in done:
                found = episode(policy, index, way, delay, args.execute)
                rows.append(row(found, index, way, delay))
        args.out.write_text(json.dumps(rows) + "\n")
        print(f"{index + 1} of {args.episodes} episodes", flush=True)
    print(table_of(rows))
    print(pairs_of(rows))


if __name__ == "__main__":
    main()
