"""Opens the playground: `python app.py`, on the bundled policies. A Space starts this file too."""

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys

from playground.checkpoints import resolve
from playground.serving import logs
from playground.serving.worker import Worker
from playground.ui.arguments import checked, place, settings
from playground.ui.program import serve

# What the worker can be asked besides running policies.
KINDS = {
    "what_matters": "playground.analysis.sensitivity:what_matters",
    "prompts": "playground.analysis.prompts:compare",
    "causal_trace": "playground.analysis.patching:causal_trace",
    "causal_cell": "playground.analysis.patching:causal_cell",
    "knockout": "playground.analysis.connections:knockouts",
    "occlusion": "playground.analysis.connections:occlusions",
    "rollout": "playground.tabletop.job:rollout",
    "chunk": "playground.serving.robot_job:chunk",
    "episode": "playground.datasets.job:predict",
    "seam": "playground.datasets.job:seam",
    "rollout_seam": "playground.analysis.rollout_seam:of_rollout",
}


def main() -> None:
    if packages := os.environ.pop("PI0_PLAYGROUND_INSTALL", "").split():
        install(packages)
    args = checked(settings().parse_args())
    logs.configure(as_json=args.log_json)
    try:
        named = [*(args.check or []), *args.checkpoint]
        asked = resolve.requests(named, args.config, args.robot, args.asset_id)
        if args.check is not None:
            from playground.checkpoints import check  # tokenizers that the page does without

            sys.exit(check.status(asked))
        robots = {entry.name: entry.robot for entry in resolve.resolve_all(asked)}
    except ValueError as error:
        settings().error(str(error))
    policies = [dataclasses.asdict(request) for request in asked]
    with contextlib.ExitStack() as held:
        again = serve(_worker(policies, args, held), robots, args)
    if again:
        os.execv(sys.executable, [sys.executable, __file__, *place(args), *again])


def _worker(policies: list[dict], args: argparse.Namespace, held: contextlib.ExitStack) -> Worker:
    """What runs the policies. held: closes what that needs, at the end of the program."""
    given = {"policies": policies}
    if args.engine == "process":
        return Worker("playground.checkpoints.load:load", given, kinds=KINDS)
    from playground.serving.ray import Cluster

    replicas = args.replicas or (1, 1)
    try:
        cluster = held.enter_context(Cluster.join(replicas[1], args.share))
    except ConnectionError as error:
        settings().error(f"no Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}")
    factory = "playground.checkpoints.load:shelf"
    return Worker(factory, given, kinds=KINDS, start=cluster.start, replicas=replicas)


def install(packages: list[str]) -> None:
    """Adds packages to this Python, and starts anew, since a running one does not see them all.
    So a Space, whose requirements.txt cannot depend on its hardware, gets JAX for its GPU."""
    if subprocess.run([sys.executable, "-m", "pip", "install", *packages]).returncode:
        settings().error(f"PI0_PLAYGROUND_INSTALL: pip could not install {' '.join(packages)}")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
