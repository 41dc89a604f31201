"""From a name or a folder to a policy that answers."""

import dataclasses
import gc
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from models.checkpoints.assembly import model_of_shapes, random_model
from models.config import PI0_FAST_TABLETOP, PI0_TABLETOP
from playground.analysis import prompts, sensitivity
from playground.assets import ASSETS
from playground.checkpoints import catalog, load, memory_plan
from playground.policies.warm_up import CompiledAhead, grey_picture
from playground.robots.builtin import TABLETOP
from playground.robots.examples import examples
from playground.serving.events import Phase, Step, TokenEvent
from playground.tools import bench_full_size
from playground.tools.bench_answers import policy_of
from playground.trace import Options, RawObservation
from playground.ui import example_cache
from playground.ui.setup import Setups
from tests.conftest import ROOT
from tests.support.table import in_all
from tests.test_ui import Loaded


def finish(steps):
    """(what a generator yields, what it returns)."""
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return events, stop.value


def test_a_published_name_without_a_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))

    def offline(*_, **__):
        raise ValueError("cannot get gs://openpi-assets/checkpoints/pi0_droid, is there a network?")

    monkeypatch.setattr(load.download, "obtain", offline)
    with pytest.raises(ValueError, match="network"):
        load.open_policy("pi0_droid")


def test_names_nobody_has_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="pi0_droid"):
        load.open_policy("pi0_drod")


@pytest.mark.parametrize("name", catalog.BUNDLED)
def test_the_page_s_policies_open_and_are_labelled(name):
    """Trained where assets has weights, random otherwise, and never without a label."""
    policy = load.open_policy(name)
    trained = (ASSETS / name / "config.json").is_file()
    assert policy.info.badge == ("small bundled policy" if trained else "untrained weights")
    assert policy.info.notice


@pytest.mark.parametrize("name", catalog.BUNDLED)
def test_a_warm_up_compiles_all_that_a_default_run_needs(name, monkeypatch):
    """And of pi0-FAST writes no more than it takes."""
    policy, written, compiled = load.open_policy(name), [], []
    infer = policy.infer

    def watched(*arguments):
        for event in infer(*arguments):
            written.append(event)
            yield event

    monkeypatch.setattr(policy, "infer", watched)
    load.warm_up(policy)
    assert sum(isinstance(event, TokenEvent) for event in written) <= 3  # two, and one measured
    written.clear()
    state = np.array(policy.robot.resting_state)
    picture = np.zeros((224, 224, 3), np.uint8)
    observation = RawObservation("tabletop", in_all(picture), {}, "", state)

    def heard(event, *_, **__):
        compiled.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    list(policy.infer(observation, Options(seed=1)))
    jax.monitoring.unregister_event_duration_listener(heard)
    assert not any(compiled)  # what is shown of the run included
    phases = [event.phase for event in written if isinstance(event, Phase)]
    assert phases
    assert not [phase for phase in phases if "compiling" in phase]


def compiled_models():
    """Seconds of each program of a model that was compiled meanwhile, and what stops listening."""
    seconds = []

    def heard(event, duration, **about):
        if "backend_compile" in event and about.get("fun_name") == "jit(run)":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(heard)
    return seconds, lambda: jax.monitoring.unregister_event_duration_listener(heard)


@pytest.mark.parametrize("name", catalog.BUNDLED)
def test_what_runs_while_the_page_is_idle_leaves_no_click_to_compile(name):
    """Of the default comparison, of cameras and state measured, and of any prompt compared."""
    policy = load.open_policy(name)
    policies = {name: policy}
    setup = Setups(Loaded({name: policy.info}), {name: TABLETOP}).of()
    (job,) = example_cache.asked_by(setup, examples(TABLETOP)[0])
    list(policy.infer(job.observation, job.options))
    run = {
        "infer": lambda _, asked: policy.infer(asked.observation, asked.options),
        "prompts": prompts.compare,
        "what_matters": sensitivity.what_matters,
    }
    for kind, request in example_cache.clicks(setup, job):
        list(run[kind](policies, request))

    seconds, stop = compiled_models()
    given = (name,), {name: job.observation}, job.options
    useful = [prompt for _, prompt in prompts.useful_prompts(job.observation, TABLETOP)]
    list(prompts.compare(policies, prompts.PromptsRequest(*given, tuple(useful))))
    groups = ("camera", "state")  # the prompts are those of the comparison
    request = sensitivity.SensitivityRequest(*given, groups=groups)
    list(sensitivity.what_matters(policies, request))
    for prompt in useful:  # up to the first step or token, behind which nothing new runs
        events = policy.infer(dataclasses.replace(job.observation, prompt=prompt), job.options)
        next(event for event in events if isinstance(event, Step | TokenEvent))
    stop()
    assert not seconds


@pytest.mark.parametrize("name", bench_full_size.TEXT)
def test_what_is_compiled_for_shapes_serves_the_weights_that_come(name):
    """And the warm-up of the policy with weights compiles nothing of the model any more."""
    config, device = bench_full_size.config_of(name, tiny=True), jax.devices()[0]
    with CompiledAhead(lambda: policy_of(model_of_shapes(config, "bfloat16", device))) as ahead:
        model = random_model(config, 0, "bfloat16", device)
    assert ahead.compiled is not None
    policy = policy_of(model)
    seconds, stop = compiled_models()
    load.warm_up(policy)
    stop()
    assert not seconds
    # Without weights of its own: each model is asked with those that it has.
    other = policy_of(random_model(config, 1, "bfloat16", device))
    raw = grey_picture(policy)
    one, two = (np.asarray([*p.image_tokens(p.prepare(raw)).values()]) for p in (policy, other))
    assert not np.array_equal(one, two)


def test_compiling_ahead_ends_with_the_loading_and_hides_no_error(caplog):
    """What fails there is left to the warm-up; a failed loading is raised, and no program is begun
    after it."""
    begun, failed = threading.Event(), threading.Event()

    class Slow:
        info, robot = load.open_policy("pi0_tabletop").info, TABLETOP

        def compile_ahead(self, raw, options, go_on):
            begun.set()
            assert failed.wait(60)
            while go_on():
                pass

    def loading():
        with CompiledAhead(Slow):
            assert begun.wait(60)
            failed.set()
            raise ValueError("layer 3 holds NaN")

    with pytest.raises(ValueError, match="layer 3 holds NaN"):
        loading()
    with CompiledAhead(lambda: 1 / 0):
        pass
    assert "nothing is compiled ahead" in caplog.text


def test_policies_of_one_title_are_called_by_their_names():
    names = ("pi0_tabletop", "pi0_tabletop", "pi0_fast_tabletop")
    pi0, other, fast = (load.untrained(name) for name in names)
    other.info = dataclasses.replace(other.info, name="mine")
    load.tell_apart([pi0, other, fast])
    titles = [policy.info.title for policy in (pi0, other, fast)]
    assert titles == ["pi0_tabletop", "mine", "pi0-FAST"]


@pytest.mark.parametrize("config", [PI0_TABLETOP, PI0_FAST_TABLETOP], ids=["pi0", "fast"])
def test_random_weights_repeat_and_differ_by_seed(config):
    def first(seed):
        return np.asarray(random_model(config, seed).gemma.embedding[...])

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def test_a_damaged_program_is_compiled_anew(tmp_path):
    """Once; kept programs save the compiler's work and change no number, whatever befell them."""
    code = """
import sys
import jax, jax.numpy as jnp
from pathlib import Path
from playground.serving import compile_cache
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))

def run():  # as a new process does
    jax.clear_caches()
    compile_cache.keep_compiled_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    hits.clear()
    number = jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.arange(64.0).reshape(8, 8))
    print(float(number), "/jax/compilation_cache/cache_hits" in hits)

run()
cut_off, emptied = (lambda data: data[:40]), (lambda data: b"")
overwritten = lambda data: data[:40] + b"damaged" + data[47:]
for damage in (cut_off, emptied, overwritten) if "damage" in sys.argv else ():
    for kept in Path(jax.config.jax_compilation_cache_dir).iterdir():
        kept.write_bytes(damage(kept.read_bytes()))
    run()
    run()  # kept anew
"""
    environment = {**os.environ, "PI0_PLAYGROUND_CACHE": str(tmp_path)}

    def run(*arguments):
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
        return done.stdout.decode().splitlines()

    (first,) = run()
    number, reused = first.split()
    assert reused == "False"
    for path in ((folder := tmp_path / "programs"), *folder.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o700
    assert run("damage") == [f"{number} {kept}" for kept in (True, *(False, True) * 3)]


def test_kept_programs_are_held_to_a_size(tmp_path):
    """The one used longest ago goes; also where some were kept without a bound."""
    code = """
import os
import jax, jax.numpy as jnp
from pathlib import Path
from playground.serving import compile_cache
compile_cache.MAX_SIZE = 1 << 30

compile_cache.keep_compiled_programs()
folder = Path(jax.config.jax_compilation_cache_dir)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
assert jax.config.jax_compilation_cache_max_size == 1 << 30
for number in range(3):
    jax.jit(lambda x: jnp.sin(x @ x).sum() + number)(jnp.arange(64.0).reshape(8, 8))
first, *others = sorted(folder.glob("*-cache"), key=os.path.getmtime)
for path in folder.glob("*-atime"):
    path.unlink()
os.utime(first, (1, 1))
size = sum(path.stat().st_size for path in folder.glob("*-cache"))
jax._src.compilation_cache.reset_cache()
compile_cache.MAX_SIZE = size
compile_cache.keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x @ x).sum() + 5)(jnp.arange(64.0).reshape(8, 8))
assert not first.exists()
assert sum(path.stat().st_size for path in folder.glob("*-cache")) <= size
assert any(path not in others for path in folder.glob("*-cache"))
"""
    run_alone(code, PI0_PLAYGROUND_CACHE=str(tmp_path))


def run_alone(code, **environment):
    """In a process of its own, whose JAX has not begun."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("place", ["file/cache", "theirs"])
def test_no_folder_for_compiled_programs_is_no_fault(tmp_path, place):
    """As for a user without a home, or a folder that is somebody else's."""
    (tmp_path / "file").write_text("")
    code = """
import gc
import os
from playground.serving import compile_cache
chmod = compile_cache.Path.chmod

def refused(path, mode):
    raise PermissionError(f"not the owner of {path}")

if os.environ["PI0_PLAYGROUND_CACHE"].endswith("theirs"):
    compile_cache.Path.chmod = refused
compile_cache.keep_compiled_programs()
import jax
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x + 1)(1))
"""
    printed, logged = run_alone(code, PI0_PLAYGROUND_CACHE=str(tmp_path / place))
    assert printed.split() == ["None", "2"]
    assert "PI0_PLAYGROUND_CACHE names another folder" in logged


def test_a_machine_without_the_device_asked_for_is_told_in_a_line():
    code = """
from playground.checkpoints.load import load
try:
    next(load(["pi0_tabletop"]))
except ValueError as error:
    print(error)
"""
    printed, _ = run_alone(code, JAX_PLATFORMS="tpu")
    assert printed.startswith("JAX finds no device (JAX_PLATFORMS='tpu'): leave JAX_PLATFORMS")


def held_bytes():
    """Of all arrays on the device."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_a_shelf_holds_what_was_used_last_and_frees_the_rest(monkeypatch):
    warmed = []
    monkeypatch.setattr(load, "warm_up", lambda policy: warmed.append(policy.info.name))
    before = held_bytes()
    pi0, fast, _ = catalog.BUNDLED
    phases, shelf = finish(load.shelf([pi0, fast], most=1))
    assert tuple(shelf) == (pi0,)
    assert [phase.policy for phase in phases] == [pi0, pi0]
    one = held_bytes() - before
    # What it says of policies before it has loaded them is what they say of themselves.
    assert shelf.infos == {name: load.open_policy(name).info for name in (pi0, fast)}
    phases, _ = finish(shelf.obtain([fast]))
    assert [phase.phase for phase in phases] == ["loading", "compiling"]
    assert tuple(shelf) == (fast,)
    assert shelf.load_s.keys() == {pi0, fast}
    other = held_bytes() - before
    finish(shelf.obtain([pi0]))
    assert held_bytes() - before == one != other
    assert warmed == [pi0, fast, pi0]


def test_a_shelf_refuses_what_no_machine_of_its_size_holds(monkeypatch):
    small = memory_plan.Machine(None, 1 << 20, shared=True)
    monkeypatch.setattr(memory_plan, "machine", lambda: small)
    with pytest.raises(ValueError, match=r"pi0_tabletop with .* of weights: loading and running"):
        finish(load.shelf(["pi0_tabletop", "pi0_fast_tabletop"]))
