"""Whether visitors should share a batch: pi0's denoising for several of them, each over the prefix
of a picture of their own, one after the other and stacked.

    python -m playground.tools.shared_batches
    taskset -c 0 python -m playground.tools.shared_batches     # on one core

Each figure is the least of several warm calls whose result was awaited.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models.observation import Observation
from models.pi0 import Prefix
from playground.checkpoints import memory_plan
from playground.checkpoints.load import open_policy
from playground.policies.base import sample_noise
from playground.policies.flow import FlowPolicy
from playground.trace import Options, RawObservation

VISITORS, REPEATS = (1, 2, 4, 8), 12


def visitor(policy: FlowPolicy, seed: int) -> tuple[Prefix, Observation, np.ndarray]:
    """The prefix of a random picture, the rest of the observation, and noise [1, H, M]."""
    info, config = policy.info, policy.config
    shape = (info.image_size, info.image_size, 3)
    picture = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    images = {slot.name: picture for slot in info.slots if slot.required}
    state = np.array(policy.robot.resting_state)
    prepared = policy.prepare(RawObservation(info.robot, images, {}, "touch the red cube", state))
    columns = policy.text_columns(prepared)
    observation = policy.observation(prepared, columns)
    noise = sample_noise(seed, 1, config.action_horizon, config.action_dim)
    return policy.prefilled(prepared, columns), observation, noise


def least(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    call()
    found = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = zip(*found, strict=True)
    return 1e3 * min(wall), 1e3 * min(cpu)


def settings() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])


def main() -> None:
    settings().parse_args()
    memory_plan.prepare()
    policy, steps = open_policy("pi0_tabletop"), Options().num_steps
    assert isinstance(policy, FlowPolicy)
    everybody = [visitor(policy, seed) for seed in range(max(VISITORS))]
    stack = jax.jit(lambda rows: jax.tree.map(lambda *x: jnp.concatenate(x), *rows))

    def denoise(given: tuple) -> np.ndarray:
        return np.asarray(policy.programs.denoise_all(*given, num_steps=steps).x_t[-1])

    print("visitors   alone: ms   CPU ms   stacked: ms   CPU ms   apart")
    for count in VISITORS:
        some = everybody[:count]

        def alone(some=some) -> np.ndarray:
            return np.concatenate([denoise(one) for one in some])

        def stacked(some=some) -> np.ndarray:
            return denoise(stack(some))

        apart = np.abs(alone() - stacked()).max()
        (wall, cpu), (wall_both, cpu_both) = least(alone), least(stacked)
        print(f"{count:8}{wall:12.1f}{cpu:9.1f}{wall_both:14.1f}{cpu_both:9.1f}{apart:8.0e}")


if __name__ == "__main__":
    main()
