"""What the page's answer takes of the 3B models, by `bench --full-size --page`.

A policy of random weights is asked as the worker asks it: prepared, embedded, run by the loop that
it chose for this device, turned into events and a trace. It needs what `--full-size` needs.
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from models.config import Config, Pi0Config
from models.fast_tokenizer import FastTokenizer
from models.pi0 import Pi0
from models.pi0_fast import Pi0Fast
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints.catalog import TOKENIZER
from playground.policies.base import Policy
from playground.policies.fast import FastPolicy
from playground.policies.flow import FlowPolicy
from playground.policies.warm_up import warm_up
from playground.robots.builtin import ALOHA, DROID
from playground.robots.robot import Robot
from playground.serving.events import Done
from playground.tools import floors
from playground.tools.floors import Work
from playground.trace import Family, Options, PolicyInfo, RawObservation, Stats, Trace
from playground.training.tokenizers import filled_up, fit_action_tokenizer

TOKENS, STEPS = 50, 10
OPTIONS = Options(num_steps=STEPS, max_tokens=TOKENS, constrained=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """what: which; call: gives its trace; work: the least that it takes."""

    what: str
    call: Callable[[], Trace]
    work: Work


def policy_of(model: Pi0 | Pi0Fast) -> Policy:
    """Around a model of any weights: its text tokens filled up to its vocabulary, norm stats that
    change nothing, and for pi0-FAST an action tokenizer of random chunks."""
    config = model.config
    flow = isinstance(config, Pi0Config)
    robot: Robot = ALOHA if flow else DROID
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.model"
        path.write_bytes(filled_up(TOKENIZER.read_bytes(), config.vocab_size))
        text = PaligemmaTokenizer(path)
    info = _info(config, robot, "pi0" if flow else "pi0_fast")
    if isinstance(model, Pi0):
        return FlowPolicy(info, robot, model, text, state_in_prompt=False)
    chunks = np.random.default_rng(0).normal(size=(64, 10, len(robot.actions))).cumsum(axis=1) / 4
    actions = fit_action_tokenizer(chunks, vocab_size=512)
    return FastPolicy(info, robot, model, FastTokenizer(text, actions))


def _info(config: Config, robot: Robot, family: Family) -> PolicyInfo:
    def neutral(count: int) -> Stats:
        return Stats((0.0,) * count, (1.0,) * count, (-1.0,) * count, (1.0,) * count)

    return PolicyInfo(
        name=family,
        title=family,
        family=family,
        badge="untrained weights",
        notice="",
        revision="",
        robot=robot.name,
        slots=robot.slots(family),
        image_size=config.vision.image_size,
        state=robot.state,
        actions=robot.actions,
        control_hz=robot.control_hz,
        horizon=config.action_horizon,
        max_token_len=config.max_token_len,
        normalisation="z-score",
        state_stats=neutral(len(robot.state)),
        action_stats=neutral(len(robot.actions)),
        model_config={},
    )


def answers(policy: Policy) -> Iterator[Answer]:
    """With everything new, with a new prompt, and with nothing new but the seed."""
    config, rng, count = policy.config, np.random.default_rng(0), itertools.count()
    size, slots = config.vision.image_size, config.image_slots
    cached = config.prefix_len
    if isinstance(config, Pi0Config):
        loop = floors.euler_step(config, cached, 2).times(STEPS)
    else:
        loop = floors.token(config, cached + TOKENS // 2, 2).times(TOKENS)
    prefix = floors.prefix(config, cached, 2)

    def observe() -> RawObservation:
        images = {slot: rng.integers(0, 256, (size, size, 3), np.uint8) for slot in slots}
        state = np.array(policy.robot.resting_state)
        return RawObservation(policy.info.robot, images, {}, "pick up the red cube", state)

    seen = observe()

    def ask(raw: RawObservation, **changes) -> Trace:
        *_, done = policy.infer(raw, dataclasses.replace(OPTIONS, **changes))
        assert isinstance(done, Done)
        return done.trace

    def reworded() -> RawObservation:
        return dataclasses.replace(seen, prompt=f"touch cube {next(count)}")

    everything = floors.vision(config, len(slots), 2) + prefix + loop
    yield Answer(f"answer, {len(slots)} new pictures", lambda: ask(observe()), everything)
    yield Answer("answer, new prompt", lambda: ask(reworded()), prefix + loop)
    yield Answer("answer, new seed", lambda: ask(seen, seed=next(count)), loop)


def measured(answer: Answer, repeats: int = 10, limit_s: float = 8.0) -> tuple[float, str]:
    """(median wall seconds of warm calls, milliseconds of each stage); fewer calls where they take
    long."""
    answer.call()
    spent, traces, began = [], [], time.perf_counter()
    while len(spent) < repeats and (not spent or time.perf_counter() - began < limit_s):
        start = time.perf_counter()
        traces.append(answer.call())
        spent.append(time.perf_counter() - start)
    stages = {
        name: statistics.median(trace.timings_ms.get(name, 0.0) for trace in traces)
        for name in traces[-1].timings_ms
    }
    return statistics.median(spent), ", ".join(f"{n} {ms:.1f}" for n, ms in stages.items())


def opened(model: Pi0 | Pi0Fast) -> tuple[Policy, float]:
    """The policy with all compiled, and the seconds that this took."""
    policy, began = policy_of(model), time.perf_counter()
    warm_up(policy)
    return policy, time.perf_counter() - began
