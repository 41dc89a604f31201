"""Measures a bundled policy: `python -m playground.training.evaluate assets/pi0_tabletop`.

Everything is measured on the exported weights, on scenes that training never drew (and, where said,
in words it never read), through the same way in and out as on the page. Each figure has its 95 %
interval: Wilson's for shares, by bootstrap for medians. The controls say what the figures would be
without listening and without seeing.
"""

import argparse
import dataclasses
import itertools
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from models.checkpoints.bundled import load_bundled
from models.checkpoints.digests import read_bundled, record_digests, revision
from models.observation import Observation, uint8_to_float
from models.pi0 import Pi0, Pi0Programs
from models.pi0_fast import Pi0FastPrograms
from playground.checkpoints.load import open_policy
from playground.policies.base import Prepared, sample_noise
from playground.policies.fast import FastPolicy
from playground.robots import conversion
from playground.tabletop import expert, kinematics
from playground.tabletop.rollout import EXECUTE, Infer, observe, rollout
from playground.tabletop.scene import (
    COLOURS,
    FIRST,
    TABLES,
    TIE,
    Table,
    TableSpec,
    Verb,
    nearer_arm,
    random_scene,
)
from playground.tabletop.tasks import HELD_OUT_WORDINGS, VERBS, WORDINGS, Task, requests
from playground.trace import Options, RawObservation

# Far from the seeds of demonstrations, which are small numbers.
SCENES_SEED = 7_000_003
NUM_STEPS, MAX_TOKENS = 10, 256  # as on the page
# Where the verbs differ for certain: a picker has opened and not yet closed, a toucher has closed.
_GRIPPER_STEPS = slice(14, 26)

TARGETS = {
    "pi0": {
        "correct arm": 0.99,
        "named cube nearest": 0.97,
        "tip error cm": 2.0,
        "colour swapped": 0.95,
        "verb swapped": 0.95,
        "held-out wordings, named cube nearest": 0.95,
        "closed loop touch": 0.90,
        "closed loop pick up": 0.85,
    },
    "pi0_fast": {
        "correct arm": 0.99,
        "named cube nearest": 0.95,
        "tip error cm": 2.5,
        "colour swapped": 0.95,
        "verb swapped": 0.95,
        "held-out wordings, named cube nearest": 0.90,
        "closed loop touch": 0.85,
        "closed loop pick up": 0.75,
        "chunks that do not decode": 0.01,
    },
}

# The aims of the second table's policies.
TARGETS |= {
    "pi0_second": TARGETS["pi0"]
    | {
        "named cube nearest": 0.99,
        "tip error cm": 0.9,
        "held-out wordings, named cube nearest": 0.98,
        "closed loop touch": 0.99,
        "closed loop pick up": 0.97,
        "closed loop put on": 0.60,
        "closed loop put next to": 0.50,
    },
    "pi05_second": TARGETS["pi0"]
    | {
        "named cube nearest": 0.99,
        "tip error cm": 1.2,
        "held-out wordings, named cube nearest": 0.98,
        "closed loop touch": 0.98,
        "closed loop pick up": 0.90,
        "closed loop put on": 0.50,
        "closed loop put next to": 0.50,
    },
    "pi0_fast_second": TARGETS["pi0_fast"]
    | {
        "named cube nearest": 0.99,
        "tip error cm": 1.5,
        "held-out wordings, named cube nearest": 0.97,
        "closed loop touch": 0.97,
        "closed loop pick up": 0.85,
        "closed loop put on": 0.50,
        "closed loop put next to": 0.50,
    },
}
_LOOPS = {"touch": "touch", "pick": "pick up", "put_on": "put on", "put_next": "put next to"}

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
    "prompts permuted across colours, named cube nearest": "prompts permuted: named cube nearest",
    "decoded freely, named cube nearest": "decoded freely: named cube nearest",
    "decoded freely, chunks that do not decode": "decoded freely: chunks that do not decode",
    "black picture, tip error cm": "black picture: tip error, median",
    "best blind guess, tip error cm": "the best guess without a picture: tip error, median",
}


# --- asking -------------------------------------------------------------------------------------


class Asker:
    """A bundled policy asked for many prompts over one picture at once, always `rows` of them.

    The observation goes in and the chunk comes out as in `playground.policies.base`; only the batch
    is this class's own.
    """

    def __init__(self, folder: Path, rows: int, constrained: bool | None = None):
        """constrained: as in playground.trace.Options, so None is as on the page."""
        self.policy = open_policy(str(folder.resolve()))
        _, model = load_bundled(folder)
        self.flow = isinstance(model, Pi0)
        self._rows, self._constrained = rows, constrained
        self._programs = Pi0Programs(model) if isinstance(model, Pi0) else Pi0FastPrograms(model)

    def chunks(self, raws: Sequence[RawObservation], seed: int) -> list[np.ndarray | None]:
        """The chunk of each, float64 [horizon, 14] in the robot's units; None where FAST's tokens
        do not decode. All share their pictures, and pi0's noise."""
        prepared = [self.policy.prepare(raw) for raw in raws]
        prepared += [prepared[-1]] * (self._rows - len(prepared))
        tokens = self._image_tokens(prepared[0])
        observation = self._observation(prepared, tuple(tokens))
        if isinstance(self._programs, Pi0Programs):
            found = self._denoised(self._programs, observation, tokens, seed)
        else:
            found = self._written(self._programs, observation, tokens)
        return [self._to_robot(c, raw) for c, raw in zip(found, raws, strict=False)]

    def _denoised(
        self, programs: Pi0Programs, observation: Observation, tokens: dict, seed: int
    ) -> list[np.ndarray]:
        config = self.policy.config
        noise = sample_noise(seed, 1, config.action_horizon, config.action_dim)
        noise = jnp.repeat(jnp.asarray(noise), self._rows, axis=0)
        prefix = programs.prefill(observation, tokens)
        path = programs.denoise_all(prefix, observation, noise, num_steps=NUM_STEPS)
        return list(np.asarray(path.x_t[-1], np.float64))

    def _written(
        self, programs: Pi0FastPrograms, observation: Observation, tokens: dict
    ) -> list[np.ndarray | None]:
        policy = self.policy
        assert isinstance(policy, FastPolicy)
        options = policy.decode_options(Options(constrained=self._constrained))
        state = programs.prefill(observation, tokens, max_decoding_steps=MAX_TOKENS)
        written = np.asarray(programs.decode_all(state, None, options))
        horizon, dims = policy.info.horizon, len(policy.info.actions)
        return [
            policy.tokenizer.extract_actions(row.tolist(), horizon, dims).actions for row in written
        ]

    def _to_robot(self, actions: np.ndarray | None, raw: RawObservation) -> np.ndarray | None:
        info = self.policy.info
        if actions is None:
            return None
        return conversion.from_model(
            self.policy.robot, actions, raw.state, info.stats("actions"), info.method("actions")
        )

    def _image_tokens(self, prepared: Prepared) -> dict:
        """Each attended picture once, for all rows."""
        return {
            slot: jnp.repeat(
                self._programs.embed_images(uint8_to_float(image)[None]), self._rows, axis=0
            )
            for slot, image in prepared.images.items()
            if prepared.modes[slot] != "masked"
        }

    def _observation(self, prepared: list[Prepared], slots: tuple[str, ...]) -> Observation:
        stack = lambda name: np.stack([getattr(p.prompt, name) for p in prepared])  # noqa: E731
        return Observation(
            images={},
            image_masks={slot: jnp.ones(self._rows, bool) for slot in slots},
            state=np.stack([p.state for p in prepared]).astype(np.float32),
            tokens=stack("tokens").astype(np.int32),
            token_mask=stack("mask"),
            token_ar_mask=None if self.flow else stack("ar_mask").astype(np.int32),
            token_loss_mask=None if self.flow else stack("loss_mask"),
        )


# --- first chunks -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a policy does in its first chunk when asked. task: what was asked; decoded; arm: the one
    that moves; nearest: the cube nearest to its fingertips at the end (in the plane of the table);
    both are "" without a chunk; error_cm: how far the serving arm's fingertips end from where the
    expert's chunk takes them; expert_tip: where that is; opens: whether the serving gripper is open
    halfway."""

    task: Task
    cube: tuple[float, float, float]
    decoded: bool
    arm: str
    nearest: str
    error_cm: float
    expert_tip: tuple[float, float, float]
    opens: bool


def answer(table: Table, task: Task, state: np.ndarray, chunk: np.ndarray | None) -> Answer:
    """Judges one first chunk. One that does not decode moves nothing: the arms stay."""
    cube = table.cube(task.colour)
    server = nearer_arm(cube[0])
    right = expert.chunk(
        state, cube, np.array(-1), np.array(task.verb == "pick"), pitch=table.spec.pitch
    )
    played = np.tile(state, (expert.HORIZON, 1)) if chunk is None else chunk
    arm = kinematics.moving_arm(state, played)
    tip = kinematics.tip_paths(played)[arm][-1]
    gaps = {c: float(np.linalg.norm(table.cube(c)[:2] - tip[:2])) for c in COLOURS}
    ends = [kinematics.tip_paths(c)[server][-1] for c in (played, right)]
    gripper = played[_GRIPPER_STEPS, 6 if server == "left" else 13]
    return Answer(
        task=task,
        cube=tuple(cube),
        decoded=chunk is not None,
        arm=arm if chunk is not None else "",
        nearest=min(gaps, key=lambda colour: gaps[colour]) if chunk is not None else "",
        error_cm=float(np.linalg.norm(ends[0] - ends[1]) * 100),
        expert_tip=tuple(ends[1]),
        opens=bool(gripper.mean() > 0.5),
    )


def first_chunks(
    asker: Asker,
    scenes: int,
    wording: Callable[[str, int], str],
    black: bool = False,
    spec: TableSpec = FIRST,
) -> list[list[Answer]]:
    """By scene, the answers to all six requests, colours first; `wording` chooses the words of a
    verb in a scene. `black` shows a black picture in place of the table. Requests that name two
    cubes take longer than a chunk: they are judged in the closed loop alone."""
    found = []
    for index in range(scenes):
        table = Table(held_out_scene(index), spec)
        tasks = [Task(verb, c, wording(verb, index)) for verb in VERBS for c in COLOURS]
        raw = observe(table, "")
        if black:
            images = {slot: np.zeros_like(image) for slot, image in raw.images.items()}
            raw = dataclasses.replace(raw, images=images)
        raws = [dataclasses.replace(raw, prompt=task.prompt) for task in tasks]
        chunks = asker.chunks(raws, seed=index)
        found.append(
            [answer(table, t, raw.state, chunk) for t, chunk in zip(tasks, chunks, strict=True)]
        )
        if (index + 1) % 20 == 0:
            print(f"{index + 1}/{scenes} scenes", flush=True)
    return found


def held_out_scene(index: int):
    return random_scene(np.random.default_rng([SCENES_SEED, index]))


def known_words(verb: str, index: int) -> str:
    return WORDINGS[verb][index % len(WORDINGS[verb])]


def unknown_words(verb: str, index: int) -> str:
    return HELD_OUT_WORDINGS[verb][index % len(HELD_OUT_WORDINGS[verb])]


# --- figures ------------------------------------------------------------------------------------


def share(hits: Sequence[bool]) -> dict:
    """A share with Wilson's 95 % interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    value, low, high = (round(float(v), 4) for v in (p, low, high))
    return {"value": value, "low": low, "high": high, "n": n}


def median(values: Sequence[float]) -> dict:
    """A median with its 95 % interval by bootstrap."""
    found = np.array(values)
    draws = np.random.default_rng(0).choice(found, (2000, len(found)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    value, low, high = (round(float(v), 3) for v in (np.median(found), low, high))
    return {"value": value, "low": low, "high": high, "n": len(values)}


def figures(scenes: list[list[Answer]], unknown: list[list[Answer]], flow: bool) -> dict:
    """The table of the first chunks."""
    flat = [a for scene in scenes for a in scene]
    clear = [a for a in flat if abs(a.cube[0]) > TIE]
    swaps, verbs = [], []
    count = len(COLOURS)
    for scene in scenes:
        for verb in range(len(VERBS)):
            same_verb = scene[verb * count : (verb + 1) * count]
            for a in same_verb:
                for b in same_verb:
                    if a is not b:
                        swaps.append(a.nearest != b.task.colour and b.nearest == b.task.colour)
        for touch, pick in zip(scene[:count], scene[count:], strict=True):
            verbs += [pick.opens and not touch.opens and pick.decoded and touch.decoded]
    found = {
        "correct arm": share([a.arm == nearer_arm(a.cube[0]) for a in clear]),
        "named cube nearest": share([a.nearest == a.task.colour for a in flat]),
        "tip error cm": median([a.error_cm for a in flat]),
        "colour swapped": share(swaps),
        "verb swapped": share(verbs),
        "held-out wordings, named cube nearest": share(
            [a.nearest == a.task.colour for scene in unknown for a in scene]
        ),
    }
    if not flow:
        found["chunks that do not decode"] = share([not a.decoded for a in flat])
    return found


def controls(scenes: list[list[Answer]], black: list[list[Answer]]) -> dict:
    """What remains without words and without sight."""
    rng = np.random.default_rng(1)
    permuted = []
    for scene in scenes:
        for verb in range(len(VERBS)):
            three = scene[verb * len(COLOURS) : (verb + 1) * len(COLOURS)]
            order = rng.permutation(len(COLOURS))
            permuted += [
                a.nearest == three[other].task.colour for a, other in zip(three, order, strict=True)
            ]
    flat = [a for scene in scenes for a in scene]
    return {
        "prompts permuted across colours, named cube nearest": share(permuted),
        "black picture, tip error cm": median([a.error_cm for scene in black for a in scene]),
        "best blind guess, tip error cm": median(_blind_errors(flat)),
    }


def _blind_errors(answers: list[Answer]) -> list[float]:
    """Errors (cm) of the best predictor that sees prompt and state alone: for each verb and arm the
    one place that minimises the mean distance (Weiszfeld), fitted on these very answers. It knows
    which arm serves, so a policy without sight can at best do as well."""
    errors = []
    for verb in VERBS:
        for arm in kinematics.ARMS:
            tips = np.array(
                [
                    a.expert_tip
                    for a in answers
                    if a.task.verb == verb and nearer_arm(a.cube[0]) == arm
                ]
            )
            if not len(tips):
                continue
            guess = tips.mean(0)
            for _ in range(100):
                weights = 1 / np.maximum(np.linalg.norm(tips - guess, axis=1), 1e-6)
                guess = (tips * weights[:, None]).sum(0) / weights.sum()
            errors += (np.linalg.norm(tips - guess, axis=1) * 100).tolist()
    return errors


# --- closed loop --------------------------------------------------------------------------------


def _afresh(asker: Asker) -> Infer:
    """With noise of its own at every look, as in `playground.tabletop.job`."""
    seeds = itertools.count()
    return lambda raw: asker.chunks([raw], seed=next(seeds))[0]


def closed_loop(asker: Asker, verb: Verb, episodes: int, spec: TableSpec = FIRST) -> dict:
    """The share of episodes that succeed, and why the others did not."""
    hits, reasons = [], {}
    for index in range(episodes):
        table = Table(held_out_scene(index), spec)
        every = [(colour, other) for _, colour, other in requests((verb,))]
        colour, other = every[index % len(every)]
        task = Task(verb, colour, known_words(verb, index), other)

        frames = rollout(table, task.prompt, _afresh(asker), every=None)
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


def evaluate(folder: Path, scenes: int, episodes: int) -> dict:
    """Everything the evaluation file holds."""
    metadata = read_bundled(folder)["metadata"]
    spec, targets = TABLES[metadata.get("table", FIRST.name)], TARGETS[metadata["policy"]]
    six = Asker(folder, rows=len(COLOURS) * len(VERBS))
    known = first_chunks(six, scenes, known_words, spec=spec)
    unknown = first_chunks(six, scenes, unknown_words, spec=spec)
    black = first_chunks(six, max(1, scenes // 3), known_words, black=True, spec=spec)
    found = figures(known, unknown, six.flow)
    checks = controls(known, black)
    if not six.flow:
        free = Asker(folder, rows=len(COLOURS) * len(VERBS), constrained=False)
        answers = [a for scene in first_chunks(free, scenes, known_words, spec=spec) for a in scene]
        checks |= {
            "decoded freely, chunks that do not decode": share([not a.decoded for a in answers]),
            "decoded freely, named cube nearest": share(
                [a.nearest == a.task.colour for a in answers]
            ),
        }
    one = Asker(folder, rows=1)
    for verb in spec.verbs:
        found[f"closed loop {_LOOPS[verb]}"] = closed_loop(one, verb, episodes, spec)
    return {
        "policy": folder.name,
        "revision": revision(folder),
        "command": f"python -m playground.training.evaluate assets/{folder.name}"
        f" --scenes {scenes} --episodes {episodes}",
        "scenes": scenes,
        "pairs": scenes * len(COLOURS) * len(VERBS),
        "episodes": episodes,
        "executed_steps": EXECUTE,
        "machine": platform.machine(),
        "figures": {name: {**found[name], "target": targets[name]} for name in targets},
        "controls": checks,
    }


def table_of(results: Sequence[dict], names: Sequence[str] | None = None) -> str:
    """The figures of policies side by side, with their 95 % intervals, as Markdown; of these names
    alone, or all of them."""
    heads = [f"{result['policy']} | aim" for result in results]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + 2 * len(heads)) + "|"]
    shown = [{**result["figures"], **result["controls"]} for result in results]
    for name in names or dict.fromkeys(name for figures in shown for name in figures):
        cells = [cell for figures in shown for cell in _cells(name, figures.get(name))]
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
    return parser


def main() -> None:
    args = settings().parse_args()
    result = evaluate(args.folder, args.scenes, args.episodes)
    (args.folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    record_digests(args.folder)
    print(table_of([result]))


if __name__ == "__main__":
    main()
