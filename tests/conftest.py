"""Where the reference data lies, and what tests share."""

import gc
import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from models import compiled
from tests.support.stock import stock_python  # noqa: F401
from tests.support.visitor import app, browser, photo, policies, visit  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT.parent / "shared" / "goldens"
# Without LLVM's optimisations, which numbers do not need, the tests take a fifth less CPU time.
# Excess precision off rounds to bfloat16 after each operation, as recorded of openpi.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_allow_excess_precision=false"
)
KEPT_FROM_S = 0.05


def pytest_configure(config):
    """A program is compiled once for all tests that run it, and for the next run of the tests, and
    quickly; `XLA_FLAGS= pytest` compiles as users do, and so does what is measured at full size.
    Hypothesis times no example: how long one takes is the benchmark's matter. In CI it draws the
    same ones each time: whoever changes nothing sees nothing fail."""
    if config.option.markexpr != "full_size":
        os.environ.setdefault("XLA_FLAGS", QUICK)
    in_ci = os.environ.get("CI") == "true"
    settings.register_profile("untimed", settings.default, deadline=None, derandomize=in_ci)
    settings.load_profile("untimed")
    # In the clone: a program that a killed run left by half fails nobody else's tests.
    programs = config.rootpath / ".pytest_cache" / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    # Each page that is started here runs the same programs: what compiles quickly is kept, too.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(KEPT_FROM_S))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_FROM_S)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


# What asks the one app, in one worker, so that there is one app.
OF_THE_APP = (
    "test_page.py",
    "test_page_table.py",
    "test_page_first.py",
    "test_page_kept.py",
    "test_page_causes.py",
    "test_page_episodes.py",
    "test_page_robots.py",
    "test_programs.py",
    "test_bad_input.py",
    "test_mcp.py",
    "test_norm_check.py",
)
# Files that take longest, first: whoever comes last then has little left to wait for.
LONGEST = (
    *OF_THE_APP,
    "test_own_checkpoints.py",
    "test_worker.py",
    "test_training.py",
    "test_parity_flow.py",
    "test_causal.py",
    "test_parity_fast.py",
    "test_load.py",
    "test_views_browser.py",
    "test_bench.py",
    "test_policy.py",
)


class Together(LoadScopeScheduling):
    """Each file goes to one worker whole, and what asks the app all to one."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return "app" if Path(file).name in OF_THE_APP else file


def pytest_xdist_make_scheduler(config, log):
    return Together(config, log)


def pytest_collection_modifyitems(config, items):
    """Longest files first; `browser` for what drives one. Without the reference data: a failure
    where CI=true, a skip elsewhere."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        assert "app" not in asked or item.path.name in OF_THE_APP, item.path
        if {"browser", "visit"} & asked:
            item.add_marker(pytest.mark.browser)
    if GOLDENS.is_dir() or os.environ.get("CI") == "true":
        return
    skip = pytest.mark.skip(reason=f"reference data not found at {GOLDENS}")
    for item in items:
        if "goldens" in getattr(item, "fixturenames", ()):
            item.add_marker(skip)


def pytest_runtest_teardown(item, nextitem):
    """Each file begins with room for programs, and what is left of those before is not looked
    through again."""
    if nextitem is None or nextitem.path != item.path:
        if compiled.num_programs() > compiled.MAX_PROGRAMS // 2:
            compiled.drop_programs()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recorded outputs of openpi and of the FAST tokenizer."""
    assert GOLDENS.is_dir(), f"reference data is missing: expected it at {GOLDENS}"
    return GOLDENS
