"""Which device a policy runs on, and that all of it runs there."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest

from models.checkpoints.assembly import random_model
from models.observation import example_observation
from models.pi0 import Pi0Programs
from tests.conftest import ROOT
from tests.support.golden_models import CONFIGS

# XLA gives a processor as several devices. The last one stands for an accelerator.
TWO_DEVICES = """
import jax, numpy as np
from models.config import PI0, PI0_FAST, PI05
from playground.checkpoints import catalog, load
from playground.checkpoints.device import device_for
from playground.trace import Options, RawObservation
from tests.support.table import in_all

host, accelerator = jax.devices()
for name in catalog.BUNDLED:
    assert device_for(catalog.named(name).config, accelerator) == host
for config in (PI0, PI05, PI0_FAST):
    assert device_for(config, accelerator) == accelerator


def asked(device, name):
    load.device_for = lambda config: device
    policy = load.untrained(name)
    assert policy.device == device
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    state = np.array(policy.robot.resting_state)
    raw = RawObservation("tabletop", in_all(picture), {}, "lift", state)
    *_, done = policy.infer(raw, Options(2, max_tokens=4, attention=True, constrained=True))
    kept = jax.tree.leaves([*policy.kept.image_tokens.values(), *policy.kept.prefixes.values()])
    assert kept and all(array.devices() == {device} for array in kept)
    return done.trace


for name in ("pi0_tabletop", "pi0_fast_tabletop"):
    here, there = (asked(device, name) for device in (host, accelerator))
    assert getattr(here, "tokens", 0) == getattr(there, "tokens", 0)
    for field in ("suffix", "prefix"):
        np.testing.assert_array_equal(here.attention[field], there.attention[field])
    if name == "pi0_tabletop":
        np.testing.assert_array_equal(here.x_t, there.x_t)
"""


def test_a_policy_runs_where_its_size_says_and_nowhere_else():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    programs = str(jax.config.jax_compilation_cache_dir)
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": programs}
    command = [sys.executable, "-c", TWO_DEVICES]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_multiplied_in_float32(dtype):
    """What is said to the compiler, which on a GPU would take TF32 otherwise."""
    config = dataclasses.replace(CONFIGS["pi0"], dtype=dtype)
    prefill = Pi0Programs(random_model(config, dtype=dtype)).prefill
    program = prefill.run.lower(prefill.state, example_observation(config)).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    exact = ["precision = [HIGHEST, HIGHEST]" in line for line in products]
    assert len(products) > 20
    assert all(exact) if dtype == "float32" else not any(exact)
