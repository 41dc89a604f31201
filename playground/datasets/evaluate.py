"""Open-loop evaluation: a policy's chunks against recorded episodes.

    python -m playground.datasets.evaluate episodes_tabletop --checkpoint pi0_tabletop
    python -m playground.datasets.evaluate owner/name --checkpoint ./my_run --config pi0_aloha

Says first how the dataset fits the policy's robot; then writes `errors.csv` and `report.html`.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from playground.analysis import norm_check
from playground.checkpoints import load, resolve
from playground.datasets import open_loop
from playground.datasets.lerobot import Dataset, open_dataset
from playground.datasets.matching import Match, checked, read_choice
from playground.datasets.open_loop import Asking, Evaluation
from playground.datasets.statistics import OwnStats, aggregation_note
from playground.policies.base import Policy
from playground.trace import Options
from playground.views import open_loop as view

FIRST_EPISODES = 10


def chosen_episodes(text: str | None, count: int) -> list[int]:
    """Of "0,3-5" or "all"; the first few where nothing is said. Raises ValueError for others."""
    if text is None:
        return list(range(min(count, FIRST_EPISODES)))
    if text == "all":
        return list(range(count))
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ValueError(f'episodes are "all" or like "0,3-5", not {text!r}')
        span = range(int(first), int(last or first) + 1)
        if not span or span[-1] >= count:
            raise ValueError(f"episodes {part.strip()}: there are 0 to {count - 1}")
        found += span
    return list(dict.fromkeys(found))


def run(
    dataset: Dataset,
    policy: Policy,
    matched: Match,
    episodes: Sequence[int],
    asking: Asking,
    executed: int,
    own: OwnStats | None = None,
) -> Evaluation:
    """One policy under one prompt. own: takes in the episodes on the way. An episode that cannot be
    read is said and left out."""
    predictions = []
    for index in episodes:
        try:
            episode = dataset.episode(index)
        except ValueError as error:
            print(f"episode {index} is left out: {error}", flush=True)
            continue
        if own is not None:
            own.add(episode)
        for step in open_loop.predict(policy, episode, matched, asking):
            if isinstance(step, open_loop.Prediction):
                predictions.append(step)
        episode.close()
        print(f"{policy.info.name}: episode {index}, {episode.length} frames", flush=True)
    if not predictions:
        raise ValueError("none of the episodes could be read")
    return open_loop.evaluate(policy.info, policy.robot, predictions, executed, asking.prompt)


def summary(evaluation: Evaluation) -> str:
    """A few lines for the terminal."""
    prompt = "the recorded task" if evaluation.prompt is None else repr(evaluation.prompt)
    shares = ", ".join(f"{s} {evaluation.mean_percent(s):.2f} %" for s in open_loop.SPANS)
    head = f"{evaluation.policy.name}, prompt: {prompt}"
    lines = [f"{head}: mean absolute error in % of range: {shares}"]
    lines += [
        f"  {row.dimension.name:<24}{row.absolute['executed']:>10.4f} {row.dimension.unit}"
        for row in evaluation.dimensions
    ]
    return "\n".join(lines)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"- {line}", flush=True)


def settings() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description="Open-loop evaluation on recorded episodes.")
    parser.add_argument("dataset", help="a folder, owner/name of the Hub, or episodes_tabletop")
    parser.add_argument("--revision", help="of a dataset of the Hub: branch, tag or commit")
    parser.add_argument("--checkpoint", action="append", default=[], help="as for app.py; several")
    parser.add_argument("--config", help="of a checkpoint folder, as for app.py")
    parser.add_argument("--robot", help="of a checkpoint folder, as for app.py")
    parser.add_argument("--asset-id", help="of a checkpoint folder, as for app.py")
    parser.add_argument("--match", type=Path, help="a JSON file that says what is what")
    parser.add_argument("--anyway", action="store_true", help="run in spite of doubts")
    parser.add_argument("--episodes", help=f'"all" or like "0,3-5" (the first {FIRST_EPISODES})')
    parser.add_argument("--every", type=int, default=10, help="frames from one to the next (10)")
    parser.add_argument("--execute", type=int, help="executed steps of a chunk (half of it)")
    parser.add_argument("--prompt", action="append", help="another prompt beside the recorded one")
    parser.add_argument("--batch", type=int, default=8, help="frames at once (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/open_loop"), help="a folder")
    return parser


def main() -> None:
    args = settings().parse_args()
    try:
        _main(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _main(args: argparse.Namespace) -> None:
    if args.every < 1 or args.batch < 1:
        raise ValueError("--every and --batch are at least 1")
    dataset = open_dataset(args.dataset, args.revision)
    episodes = chosen_episodes(args.episodes, len(dataset))
    if not episodes:
        raise ValueError(f"{dataset.title} has no episodes")
    choice = None if args.match is None else read_choice(args.match)
    revision = f" at {dataset.revision}" if dataset.revision else ""
    asked = f"{len(episodes)} of {len(dataset)} episodes, every {args.every} frames"
    notes = [f"{dataset.title}{revision}: LeRobot {dataset.info.codebase_version}, {asked}."]
    load.keep_compiled_programs()
    evaluations, compared = [], ()
    options = Options(seed=args.seed)
    names = args.checkpoint or ["pi0_tabletop"]
    for entry in resolve.resolve_all(
        resolve.requests(names, args.config, args.robot, args.asset_id)
    ):
        first = dataset.episode(episodes[0])
        matched = checked(dataset.info, entry, entry.robot, choice, first)
        _say([*notes[:1], *matched.notes, *matched.doubts])
        if matched.doubts and not args.anyway:
            raise ValueError("these doubts come first; --anyway runs in spite of them")
        policy = load.open_policy(entry)
        own = OwnStats(policy.info, policy.robot, matched)
        executed = args.execute or max(1, policy.info.horizon // 2)
        for prompt in (None, *(args.prompt or ())):
            asking = Asking(args.every, args.batch, prompt, options)
            stats = own if prompt is None else None
            evaluations.append(run(dataset, policy, matched, episodes, asking, executed, stats))
            print(summary(evaluations[-1]), flush=True)
        if not compared:
            notes += [*matched.notes, *matched.doubts]
            if own.episodes == len(dataset):
                notes += filter(None, [aggregation_note(dataset, own)])
            compared = norm_check.against_data(policy.info, own.stats())
    _say([*notes[1:], *(f"{c.part} {c.name}: {r}" for c in compared for r in c.remarks)])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "errors.csv").write_text(view.table_csv(evaluations), "utf-8")
    title = f"Predictions against {dataset.title}"
    page = view.report(title, evaluations, notes, compared)
    (args.out / "report.html").write_text(page, "utf-8")
    print(f"{open_loop.CAVEAT}\n{args.out / 'errors.csv'}\n{args.out / 'report.html'}")


if __name__ == "__main__":
    main()
