"""Measures a bundled policy: `python -m playground.training.evaluate assets/pi0_tabletop`.

Everything is measured on the exported weights, on scenes that training never drew (and, where said,
in words it never read), through the same way in and out as on the page. The controls say what the
figures would be without listening, without seeing, and without each camera.
"""

import argparse
import functools
import itertools
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from models.checkpoints.digests import read_bundled, record_digests, revision
from playground.tabletop.measured import FIGURES
from playground.tabletop.rollout import EXECUTE, Infer, rollout
from playground.tabletop.scene import CAMERAS, COLOURS, Table, Verb
from playground.tabletop.tasks import ONE_CUBE, VERBS, Task, requests
from playground.training.asker import Asker
from playground.training.first_chunks import (
    blackened,
    controls,
    figures,
    first_chunks,
    held_out_scene,
    known_words,
    roles_swapped,
    unknown_words,
    without,
)
from playground.training.intervals import median, share

_FIRST_CHUNK = {
    "correct arm": 0.99,
    "named cube nearest": 0.99,
    "colour swapped": 0.95,
    "verb swapped": 0.95,
    "roles swapped": 0.95,
}
TARGETS = {
    "pi0": _FIRST_CHUNK
    | {
        "tip error cm": 0.9,
        "held-out wordings, named cube nearest": 0.98,
        "closed loop touch": 0.99,
        "closed loop pick up": 0.97,
        "closed loop put on": 0.60,
        "closed loop put next to": 0.50,
    },
    "pi05": _FIRST_CHUNK
    | {
        "tip error cm": 1.2,
        "held-out wordings, named cube nearest": 0.98,
        "closed loop touch": 0.98,
        "closed loop pick up": 0.90,
        "closed loop put on": 0.50,
        "closed loop put next to": 0.50,
    },
    "pi0_fast": _FIRST_CHUNK
    | {
        "tip error cm": 1.5,
        "held-out wordings, named cube nearest": 0.97,
        "closed loop touch": 0.97,
        "closed loop pick up": 0.85,
        "closed loop put on": 0.50,
        "closed loop put next to": 0.50,
        "chunks that do not decode": 0.01,
    },
}

# The figures' names in README's table.
IN_FULL = {
    "correct arm": "first chunk: the nearer arm moves",
    "named cube nearest": "first chunk: the named cube is the one nearest to the tip at the end",
    "tip error cm": "tip error against the expert's own chunk end, median",
    "colour swapped": "colour word swapped: the nearest cube becomes the new one",
    "verb swapped": "verb swapped: the gripper does the other verb's",
    "held-out wordings, named cube nearest": "wordings never trained on: named cube nearest",
    "closed loop touch": "closed loop: touch succeeds",
    "closed loop pick up": "closed loop: pick up succeeds",
    "closed loop put on": "closed loop: put on succeeds",
    "closed loop put next to": "closed loop: put next to succeeds",
    "roles swapped": "two cubes' words swapped: the other cube becomes the nearest",
    "prompts permuted across colours, named cube nearest": "prompts permuted: named cube nearest",
    "decoded freely, named cube nearest": "decoded freely: named cube nearest",
    "decoded freely, chunks that do not decode": "decoded freely: chunks that do not decode",
    "black picture, tip error cm": "black picture: tip error, median",
    **{
        f"without {slot}, {figure}": f"without the {camera}: {what}"
        for slot, camera in {
            "base_0_rgb": "table's camera",
            "left_wrist_0_rgb": "left gripper's camera",
            "right_wrist_0_rgb": "right gripper's camera",
        }.items()
        for figure, what in {
            "named cube nearest": "named cube nearest",
            "tip error cm": "tip error, median",
        }.items()
    },
    "best blind guess, tip error cm": "the best guess without a picture: tip error, median",
}


# --- closed loop --------------------------------------------------------------------------------


def _afresh(asker: Asker) -> Infer:
    """With noise of its own at every look, as in `playground.tabletop.job`."""
    seeds = itertools.count()
    return lambda raw: asker.chunks([raw], seed=next(seeds))[0]


def closed_loop(asker: Asker, verb: Verb, episodes: int, execute: int = EXECUTE) -> dict:
    """The share of episodes that succeed, and why the others did not. execute: as in `rollout`."""
    hits, reasons = [], {}
    for index in range(episodes):
        table = Table(held_out_scene(index))
        every = [(colour, other) for _, colour, other in requests((verb,))]
        colour, other = every[index % len(every)]
        task = Task(verb, colour, known_words(verb, index), other)

        frames = rollout(table, task.prompt, _afresh(asker), execute=execute, every=None)
        outcome = [frame.outcome for frame in frames][-1]
        assert outcome is not None, "an episode goes on until it is judged"
        hits.append(outcome.success)
        reason = outcome.reason.replace(task.colour, "named")
        for colour in COLOURS:
            reason = reason.replace(colour, "other")
        reasons[reason] = reasons.get(reason, 0) + 1
        if (index + 1) % 10 == 0:
            print(f"{verb}: {sum(hits)}/{index + 1}", flush=True)
    return {**share(hits), "outcomes": reasons}


# --- the whole ----------------------------------------------------------------------------------


def evaluate(folder: Path, scenes: int, episodes: int, execute: int) -> dict:
    """Everything the evaluation file holds."""
    metadata = read_bundled(folder)["metadata"]
    targets = TARGETS[metadata["policy"]]
    six = Asker(folder, rows=len(COLOURS) * len(ONE_CUBE))
    known = first_chunks(six, scenes, known_words)
    unknown = first_chunks(six, scenes, unknown_words)
    fewer = max(1, scenes // 3)
    black = first_chunks(six, fewer, known_words, shown=blackened)
    found = figures(known, unknown, six.flow)
    checks = controls(known, black) | hidden_cameras(six, fewer)
    pairs = first_chunks(six, scenes, known_words, verbs=("put_on",))
    found["roles swapped"] = roles_swapped(pairs)
    if not six.flow:
        free = Asker(folder, rows=len(COLOURS) * len(ONE_CUBE), constrained=False)
        answers = [a for scene in first_chunks(free, scenes, known_words) for a in scene]
        checks |= {
            "decoded freely, chunks that do not decode": share([not a.decoded for a in answers]),
            "decoded freely, named cube nearest": share(
                [a.nearest == a.task.colour for a in answers]
            ),
        }
    one = Asker(folder, rows=1)
    for verb in VERBS:
        found[FIGURES[verb]] = closed_loop(one, verb, episodes, execute)
    return {
        "policy": folder.name,
        "revision": revision(folder),
        "command": f"python -m playground.training.evaluate {folder.as_posix()}"
        f" --scenes {scenes} --episodes {episodes} --execute {execute}",
        "scenes": scenes,
        "pairs": scenes * len(COLOURS) * len(ONE_CUBE),
        "episodes": episodes,
        "executed_steps": execute,
        "machine": platform.machine(),
        "figures": {name: {**found[name], "target": targets[name]} for name in targets},
        "controls": checks,
    }


def hidden_cameras(asker: Asker, scenes: int) -> dict:
    """What is lost without each camera."""
    found = {}
    for slot in CAMERAS:
        hidden = functools.partial(without, slot, "masked" if asker.flow else "black")
        answers = first_chunks(asker, scenes, known_words, shown=hidden)
        flat = [a for scene in answers for a in scene]
        right = [a.nearest == a.task.colour for a in flat]
        found[f"without {slot}, named cube nearest"] = share(right)
        found[f"without {slot}, tip error cm"] = median([a.error_cm for a in flat])
    return found


def table_of(results: Sequence[dict], names: Sequence[str] | None = None) -> str:
    """The figures of policies side by side, with their 95 % intervals, as Markdown; of these names
    alone, or all of them."""
    heads = [f"{result['policy']} | aim" for result in results]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + 2 * len(heads)) + "|"]
    shown = [{**result["figures"], **result["controls"]} for result in results]
    for name in names or dict.fromkeys(name for result in shown for name in result):
        cells = [cell for result in shown for cell in _cells(name, result.get(name))]
        lines.append(f"| {IN_FULL.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(name: str, figure: dict | None) -> tuple[str, str]:
    """A figure, and what was aimed at."""
    if figure is None:
        return "", ""
    scale, unit, digits = (1, "cm", 2) if name.endswith(" cm") else (100, "%", 1)
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    aim = f"{scale * figure['target']:g} {unit}" if "target" in figure else "control"
    return f"{value} {unit} ({low} to {high})", aim


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures an exported policy.")
    parser.add_argument("folder", type=Path, help="such as assets/pi0_tabletop")
    parser.add_argument("--scenes", type=int, default=100, help="six requests each")
    parser.add_argument("--episodes", type=int, default=100, help="closed-loop episodes a verb")
    parser.add_argument(
        "--execute", type=int, default=EXECUTE, help="steps of a chunk before the next look"
    )
    return parser


def main() -> None:
    args = settings().parse_args()
    result = evaluate(args.folder, args.scenes, args.episodes, args.execute)
    (args.folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    record_digests(args.folder)
    print(table_of([result]))


if __name__ == "__main__":
    main()
