"""Writes a trained policy as the product ships it: `python -m playground.training.export pi0`.

The folder holds weights (bfloat16; the run's average, or its last ones), config, norm stats, for
pi0-FAST its action tokenizer, the training log with its curves, and a model card.
"""

import argparse
import csv
import json
import shutil
import textwrap
from pathlib import Path

from flax import nnx

from models.checkpoints.assembly import save_bundled
from models.checkpoints.digests import record_digests
from playground.robots.builtin import TABLETOP
from playground.robots.norm_stats import read_norm_stats
from playground.training.batches import method_of
from playground.training.train import (
    CONFIGS,
    RECIPES,
    RUNS,
    Trainer,
    checkpoints,
    optimiser,
    restore,
    trainee_of,
)

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MOST_BYTES = 9_500_000

_CARD = """---
license: apache-2.0
library_name: pi0-playground
pipeline_tag: robotics
---
# {name}: a small bundled policy

{title} at {parameters:,} parameters, trained from nothing by this project's own command on
demonstrations it makes at a simulated table: two ALOHA arms, three coloured cubes, one camera,
"touch" and "pick up" in several wordings. It knows only this table. On any other picture its answer
shows how such a model works, not what it can do.

- Model code: the same `models/` that runs the published checkpoints; only sizes differ
  (`config.json`).
- Input: camera `base_0_rgb` at {size} x {size}, 14 joint values in ALOHA's order, a prompt; the two
  wrist cameras are {missing}. Output: 50 steps of 14 joint targets at 50 Hz.{guided}
- Trained: {steps:,} steps on {looks:,} looks (six requests each), CPU only. The curves are in
  `curves.png`, the numbers in `log.csv`, the recipe in `training.json`.{note}
- Measured on scenes and wordings that training never saw: `evaluation.json`, where present, by
  `python -m playground.training.evaluate assets/{name}`.

Repeat it: `python -m playground.training.demonstrations`, `python -m playground.training.train
{command}`, `python -m playground.training.export {policy}`.

The robot's model is read from the gym-aloha package (Apache-2.0), which is not part of these
weights.
"""

_GUIDED = """
- It decodes guided: at each token only those are considered that keep the chunk decodable, all 700
  coefficients, no more. Free decoding, as openpi's, is an option; `evaluation.json` has both."""


def export(name: str, folder: Path, run: Path, weights: str = "average", note: str = "") -> None:
    """Writes the folder. `note`: what the card should tell of how the weights came about beyond
    the recipe. Raises ValueError without a checkpoint, or if a file grows too large."""
    manager = checkpoints(run)
    if manager.latest_step() is None:
        raise ValueError(f"no checkpoint in {run}: run python -m playground.training.train {name}")
    recipe, config = RECIPES[name], CONFIGS[name]
    graph, params = nnx.split(trainee_of(name, recipe.seed))
    state = restore(manager, Trainer(recipe, graph, optimiser(recipe)).begin(params))
    policy = nnx.merge(graph, state["ema" if weights == "average" else "params"]).policy
    metadata = {"robot": TABLETOP.name, "normalisation": method_of(config), "policy": name}
    if name == "pi0_fast":
        metadata["guided"] = True
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
    told = {
        "steps": steps,
        "looks": int(rows[-1]["looks"]),
        "weights": weights,
        "recipe": _recipe(run),
    }
    (folder / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    count = sum(leaf.size for _, leaf in nnx.to_flat_state(nnx.state(policy, nnx.Param)))
    fast = name == "pi0_fast"
    card = _CARD.format(
        name=folder.name,
        policy=name,
        command="pi0_fast --start-from assets/pi0_tabletop" if fast else name,
        note=f"\n- {textwrap.fill(note, 98, subsequent_indent='  ')}" if note else "",
        title="pi0-FAST" if fast else "pi0",
        parameters=count,
        size=config.vision.image_size,
        guided=_GUIDED if fast else "",
        missing="black and attended to" if fast else "masked",
        steps=steps,
        looks=told["looks"],
    )
    (folder / "README.md").write_text(card)
    record_digests(folder)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,}")
    print(f"wrote {folder}: {steps} steps, {count:,} parameters")


def _recipe(run: Path) -> dict:
    return json.loads((run / "recipe.json").read_text())


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
    folder = args.folder or ASSETS / f"{args.policy}_tabletop"
    export(args.policy, folder, args.run or RUNS / args.policy, args.weights, args.note)


if __name__ == "__main__":
    main()
