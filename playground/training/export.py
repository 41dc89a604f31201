"""Writes a trained policy as the product ships it: `python -m playground.training.export pi0`.

The folder holds weights (bfloat16; the run's average, or its last ones), config, norm stats, for
pi0-FAST its action tokenizer, the training log with its curves, and a model card.
"""

import argparse
import csv
import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from models.checkpoints.bundled import save_bundled
from models.checkpoints.digests import record_digests
from playground.checkpoints.catalog import TITLES, family_of
from playground.robots.builtin import TABLETOP
from playground.robots.norm_stats import read_norm_stats
from playground.tabletop.scene import CAMERAS
from playground.tabletop.tasks import VERBS
from playground.training import commands
from playground.training.batches import method_of
from playground.training.demonstrations import requests_asked
from playground.training.train import (
    CONFIGS,
    RUNS,
    SCHEDULES,
    Trainer,
    checkpoints,
    is_fast,
    optimiser,
    restore,
    trainee_of,
)

MOST_BYTES = 9_500_000

_HEAD = """---
license: apache-2.0
library_name: pi0-playground
pipeline_tag: robotics
---
# {name}: a small bundled policy
"""
_VERBS = {
    "touch": "touch",
    "pick": "pick up",
    "put_on": "put one cube on another",
    "put_next": "put one cube next to another",
}
_COUNTS = ("no camera", "one camera", "two cameras", "three cameras")


def export(name: str, folder: Path, run: Path, weights: str = "average", note: str = "") -> None:
    """Writes the folder. `note`: what the card should tell of how the weights came about beyond
    the schedule. Raises ValueError without a checkpoint, or if a file grows too large."""
    manager = checkpoints(run)
    if manager.latest_step() is None:
        raise ValueError(f"no checkpoint in {run}: run python -m playground.training.train {name}")
    schedule, config = SCHEDULES[name], CONFIGS[name]
    graph, params = nnx.split(trainee_of(name, schedule.seed))
    state = restore(manager, Trainer(schedule, graph, optimiser(schedule)).begin(params))
    policy = nnx.merge(graph, state["ema" if weights == "average" else "params"]).policy
    metadata: dict[str, object] = {
        "robot": TABLETOP.name,
        "normalisation": method_of(config),
        "policy": name,
    }
    if is_fast(name):
        metadata["constrained"] = True
    if folder.exists():
        shutil.rmtree(folder)
    save_bundled(folder, config, policy, metadata, storage="bfloat16")

    read_norm_stats(run / "norm_stats.json")
    shutil.copy(run / "norm_stats.json", folder)
    if (run / "fast").is_dir():
        shutil.copytree(run / "fast", folder / "fast")
    for file in ("log.csv", "curves.png"):
        shutil.copy(run / file, folder)
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = int(state["step"])
    training = {
        "steps": steps,
        "looks": int(rows[-1]["looks"]),
        "weights": weights,
        "schedule": _schedule(run),
    }
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    count = sum(leaf.size for _, leaf in nnx.to_flat_state(nnx.state(policy, nnx.Param)))
    last = f"python -m playground.training.export {name} --run {run.as_posix()}"
    made_by = [
        *_made_by(Path(training["schedule"].get("demonstrations", "its demonstrations"))),
        *_made_by(run),
        f"{last} --folder {folder.as_posix()} --weights {weights}",
    ]
    (folder / "README.md").write_text(_card(name, folder, count, training, made_by, note))
    record_digests(folder)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,}")
    print(f"wrote {folder}: {steps} steps, {count:,} parameters")


def _made_by(folder: Path) -> list[str]:
    """The commands noted in a folder, or that there are none."""
    return commands.noted(folder) or [f"# what made {folder.as_posix()} was not noted"]


def _card(
    name: str, folder: Path, parameters: int, training: dict, made_by: Sequence[str], note: str
) -> str:
    config, fast = CONFIGS[name], is_fast(name)
    size, sight = config.vision.image_size, list(CAMERAS)
    missing = [slot for slot in config.image_slots if slot not in sight]
    how = "black and attended to" if fast else "masked"
    inputs = f"{' '.join(f'`{slot}`' for slot in sight)} at {size} x {size}"
    if missing:
        inputs += f" ({' '.join(f'`{slot}`' for slot in missing)} {how})"
    verbs = [f'"{_VERBS[verb]}"' for verb in VERBS]
    steps, schedule = training["steps"], training["schedule"]
    planned = "" if steps == schedule["steps"] else f" of a schedule's {schedule['steps']:,}"
    device = schedule.get("device", "cpu").replace("cpu", "a CPU")
    points = [
        "Model code: the same `models/` that runs the published checkpoints; only sizes differ "
        "(`config.json`).",
        f"Input: {inputs}; 14 joint values in ALOHA's order; a prompt. Output: 50 steps of 14 "
        "joint targets at 50 Hz.",
        "Its decoding is constrained: at each token only those are considered that keep the chunk "
        "decodable, all 700 coefficients, no more. Free decoding, as openpi's, is an option; "
        "`evaluation.json` has both."
        if fast
        else "",
        f"Trained: {steps:,}{planned} steps on {training['looks']:,} looks "
        f"({len(requests_asked())} requests each), on {device}. The curves are in `curves.png`, "
        "the numbers in `log.csv`, the schedule in `training.json`.",
        note,
        "Measured on scenes and wordings that training never saw: `evaluation.json`, where "
        f"present, by `python -m playground.training.evaluate {folder.as_posix()}`.",
    ]
    return "\n".join(
        [
            _HEAD.format(name=folder.name),
            _filled(
                f"{TITLES[family_of(config)]} at {parameters:,} parameters, trained from nothing "
                "by this project's own command on demonstrations it makes at a simulated table: "
                f"two ALOHA arms, three coloured cubes, {_COUNTS[len(sight)]}, "
                f"{', '.join(verbs[:-1])} and {verbs[-1]} in several wordings. It knows only this "
                "table. On any other picture its answer shows how such a model works, not what it "
                "can do."
            ),
            "",
            *(_filled(f"- {point}", "  ") for point in points if point),
            "\nMade by:\n\n```bash",
            *made_by,
            "```",
            "",
        ]
    )


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _schedule(run: Path) -> dict:
    return json.loads((run / "schedule.json").read_text())


def settings() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Writes a trained policy into assets/.")
    parser.add_argument("policy", choices=CONFIGS)
    parser.add_argument("--folder", type=Path, help="default: assets/<policy>_tabletop")
    parser.add_argument("--run", type=Path, help="default: runs/<policy>")
    parser.add_argument("--weights", choices=("average", "last"), default="average")
    parser.add_argument("--note", default="", help="for the card: how the weights came about")
    return parser


def main() -> None:
    args = settings().parse_args()
    folder = args.folder or Path("assets", f"{args.policy}_tabletop")
    export(args.policy, folder, args.run or RUNS / args.policy, args.weights, args.note)


if __name__ == "__main__":
    main()
