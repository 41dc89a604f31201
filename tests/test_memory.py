"""What is said about memory before anything is loaded, and what is done to it."""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from models.checkpoints.assembly import abstract_model, parameters_of
from models.config import PI0, PI0_FAST, PI05
from models.observation import example_observation
from playground.checkpoints import load, memory_plan
from playground.checkpoints.memory_plan import Machine, check, need
from tests.conftest import ROOT
from tests.support.golden_models import CONFIGS

GPU_16 = int(16e9 * 0.92)
HOST = 32 << 30
BOTH = [need("pi0_aloha", PI0, "bfloat16"), need("pi0_fast_droid", PI0_FAST, "bfloat16")]


def test_both_3b_policies_fit_a_16_gb_gpu():
    check(BOTH, Machine(GPU_16, HOST, shared=False))
    assert sum(n.weights for n in BOTH) > 12e9


def test_jax_s_own_share_of_that_gpu_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="device memory") as refused:
        check(BOTH, Machine(int(16e9 * 0.75), HOST, shared=False))
    message = str(refused.value)
    for words in (
        "pi0_aloha",
        "pi0_fast_droid",
        "6.48 GB",
        "12.00 GB are free",
        "fewer",
        "FRACTION",
    ):
        assert words in message
    alone = BOTH[:1]
    check(alone, Machine(int(16e9 * 0.75), HOST, shared=False))


def test_the_host_must_hold_what_passes_through_it():
    with pytest.raises(ValueError, match="of host memory"):
        check(BOTH, Machine(GPU_16, 8 << 30, shared=False))
    # On a CPU weights and arrays in passing share one memory.
    check(BOTH, Machine(None, 24 << 30, shared=True))
    with pytest.raises(ValueError, match=r"of memory, and 12\.88 GB are free"):
        check(BOTH, Machine(None, 12 << 30, shared=True))
    with pytest.raises(ValueError, match="of memory"):
        check(BOTH, Machine(None, 16 << 30, shared=True))
    check(BOTH[:1], Machine(None, 16 << 30, shared=True))


def test_what_runs_on_the_host_takes_of_its_memory_alone():
    here = dataclasses.replace(BOTH[1], on_host=True)
    check([BOTH[0], here], Machine(int(8e9), HOST, shared=False))
    with pytest.raises(ValueError, match="of host memory"):
        check([BOTH[0], here], Machine(GPU_16, 12 << 30, shared=False))


def test_what_is_not_known_is_not_judged():
    check(BOTH, Machine(None, None, shared=True))
    check(BOTH, Machine(None, HOST, shared=False))


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_the_model_s(family):
    parameters = parameters_of(abstract_model(CONFIGS[family])).values()
    counted = need("", CONFIGS[family], "bfloat16").weights
    assert counted == 2 * sum(math.prod(p.shape) for p in parameters)


def test_weights_are_those_of_the_published_models():
    billions = {"pi0": (PI0, 3.238), "pi0.5": (PI05, 3.353), "pi0-FAST": (PI0_FAST, 2.923)}
    for name, (config, parameters) in billions.items():
        assert need(name, config, "bfloat16").weights / 2e9 == pytest.approx(parameters, abs=5e-4)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_one_call_takes_what_the_plan_says(storage):
    """Against the compiler's own count, for the largest calls of a small pi0 and pi0-FAST. The plan
    is a bound, and within an order of magnitude of what is used."""
    for family in ("pi0", "pi0_fast"):
        config = dataclasses.replace(CONFIGS[family], action_horizon=50)
        graph, state = nnx.split(abstract_model(config))
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(storage)), state)

        def prefill(state, observation):
            how = {"max_decoding_steps": memory_plan.MAX_TOKENS} if family == "pi0_fast" else {}  # noqa: B023
            return nnx.merge(graph, state).prefill(observation, **how)[0]  # noqa: B023

        def loop(state, prefix, observation, noise):
            return nnx.merge(graph, state).denoise_all(prefix, observation, noise, 2).x_t  # noqa: B023

        arguments = state, jax.eval_shape(lambda: example_observation(config))  # noqa: B023
        taken = [_taken(prefill, *arguments)]
        if family == "pi0":
            prefix, observation = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((memory_plan.MAX_SAMPLES, *x.shape[1:]), x.dtype),
                (jax.eval_shape(prefill, *arguments), arguments[1]),
            )
            noise = jax.ShapeDtypeStruct((memory_plan.MAX_SAMPLES, 50, 32), jnp.float32)
            taken.append(_taken(loop, state, prefix, observation, noise))
        planned = need("", config, storage).working
        assert max(taken) <= planned <= 8 * max(taken)


def _taken(function, *arguments) -> int:
    used = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return used.temp_size_in_bytes + used.output_size_in_bytes


def test_weights_of_a_narrower_type_are_widened_layer_by_layer():
    """Not all at once, as the compiler does by itself; so the plan holds."""
    code = """
import dataclasses, sys
from playground.checkpoints import memory_plan as memory
memory.prepare(narrow=sys.argv[1] == "narrow")
import jax, jax.numpy as jnp
from flax import nnx
from models.checkpoints.assembly import abstract_model
from models.observation import example_observation
from tests.support.golden_models import CONFIGS
small = CONFIGS["pi0"]
language = dataclasses.replace(small.language, width=512, depth=8, mlp_dim=8192)
expert = dataclasses.replace(small.action_expert, depth=8)
config = dataclasses.replace(
    small, language=language, action_expert=expert, image_slots=("base_0_rgb",)
)
graph, state = nnx.split(abstract_model(config))
state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state)
prefill = jax.jit(lambda state, seen: nnx.merge(graph, state).prefill(seen)[0])
used = prefill.lower(state, jax.eval_shape(lambda: example_observation(config))).compile()
print(used.memory_analysis().temp_size_in_bytes, memory.need("", config, "bfloat16").working)
"""

    def taken(how: str) -> list[int]:
        command = [sys.executable, "-c", code, how]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return [int(word) for word in run.stdout.split()]

    used, planned = taken("narrow")
    assert used <= planned
    assert taken("plain")[0] > 1.5 * used


def test_a_container_s_limit_counts(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert memory_plan.host_free(tmp_path) is None
    write("proc/meminfo", "MemTotal: 64000 kB\nMemAvailable:   50000 kB\n")
    assert memory_plan.host_free(tmp_path) == 50_000 * 1024
    write("sys/fs/cgroup/memory.current", "1000000\n")
    for limit, free, whole in (
        ("max", 50_000 * 1024, 64_000 * 1024),
        ("9000000", 8_000_000, 9_000_000),
    ):
        write("sys/fs/cgroup/memory.max", f"{limit}\n")
        assert memory_plan.host_free(tmp_path) == free
        assert memory_plan.host_memory(tmp_path) == whole


@pytest.mark.parametrize("given", [None, *memory_plan.FRACTIONS])
def test_the_share_of_a_gpu_is_the_user_s_where_one_is_set(given, monkeypatch):
    for name in memory_plan.FRACTIONS:
        monkeypatch.setenv(name, "")
    if given is not None:
        monkeypatch.setenv(given, "0.5")
    memory_plan.prepare()
    shares = [os.environ[name] for name in memory_plan.FRACTIONS if os.environ[name]]
    assert shares == (["0.92"] if given is None else ["0.5"])  # JAX refuses two


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's own way elsewhere")
def test_a_call_s_memory_is_not_fetched_anew_each_time():
    """Page faults of ten calls that each make and drop 64 MB, once memory has settled: 16,384 pages
    a call otherwise."""
    code = """
import resource, sys
from playground.checkpoints import memory_plan as memory
if sys.argv[1] == "kept":
    memory.prepare()
import jax, jax.numpy as jnp
double = jax.jit(lambda x: x * 2)
x = jnp.ones((16, 1024, 1024))
for _ in range(20):
    double(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    double(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(how: str) -> int:
        command = [sys.executable, "-c", code, how]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

    assert faults("kept") < faults("plain") / 4


def test_refused_before_anything_is_fetched(monkeypatch):
    def fetched(*_, **__):
        raise AssertionError("a download began")

    monkeypatch.setattr(load.download, "obtain", fetched)
    monkeypatch.setattr(memory_plan, "machine", lambda: Machine(None, 4 << 30, shared=True))
    with pytest.raises(ValueError, match=r"pi0_droid with 6\.48 GB of weights.*4\.29 GB are free"):
        next(load.load(["pi0_tabletop", "pi0_droid"]))
