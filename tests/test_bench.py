"""The benchmark measures what it says: each trick's two ways agree, and every path of it runs, at
small sizes. No time is judged."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from models.config import PI0, PI0_FAST
from playground.checkpoints import load
from playground.tools import bench_full_size, bench_models, floors, optimizations
from tests.conftest import ROOT
from tests.support.golden_models import CONFIGS
from tests.support.table import CAMERAS

TOKENS = 5
SEEN = {family: (True, True, family == "pi0_fast") for family in CONFIGS}


def subject(family):
    return bench_models.Subject(family, CONFIGS[family], SEEN[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_a_trick_changes_no_number(family):
    model, observation = bench_models.whole(subject(family))
    assert observation.tokens.shape[1] > optimizations.trimmed(observation).tokens.shape[1] >= 20
    if family == "pi0_fast":
        pairs = optimizations.fast(model, observation, TOKENS)
    else:
        pairs = optimizations.flow(model, observation)
    for name, (_, without, with_) in pairs.items():
        plain, quick = (jax.tree.leaves(call()) for call in (without, with_))
        for a, b in zip(plain, quick, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_a_trick_s_figure_is_the_least_of_each_way():
    calls = []
    pairs = {"waiting": ("a call", lambda: calls.append("without"), lambda: calls.append("with"))}
    (trick,) = optimizations.measure("x", pairs, repeats=3)
    assert calls == ["without", "with"] * 4  # once to compile, then in turn
    assert (trick.subject, trick.name, trick.what) == ("x", "waiting", "a call")


@pytest.mark.parametrize("family", ["pi0", "pi0_fast"])
def test_every_figure_stands_beside_its_floor(family, capsys):
    rates = floors.Rates(flop=1e9, read=1e9)
    figures = bench_models.printed(bench_models.bench(subject(family), 1, rates))
    table = capsys.readouterr().out.splitlines()
    for figure, line in zip(figures, table, strict=True):
        assert figure.wall_s > 0
        assert f"{figure.cpu_s:.3f}" in line
        assert figure.floor_s > 0
    parts = {figure.what: figure.floor_s for figure in figures}
    whole = next(floor for what, floor in parts.items() if what.startswith("chunk"))
    assert whole > parts["vision"]
    assert whole > parts["prefix"]


def test_floors_of_the_3b_models():
    """Against figures that were counted by hand (GFLOP, GB in bfloat16)."""
    prefix, step = floors.prefix(PI0, 816, 2), floors.euler_step(PI0, 816, 2)
    token = floors.token(PI0_FAST, 900, 2)
    for work, gflop, gigabytes in (
        (floors.vision(PI0, 3, 2), 661, 0.83),
        (prefix, 3333, 3.98),
        (step.times(10), 383, 6.39),
        (token, 5.2, 5.04),
    ):
        assert work.flop == pytest.approx(1e9 * gflop, rel=0.02)
        assert work.read == pytest.approx(1e9 * gigabytes, rel=0.02)
    rates = floors.Rates(790e12, 4.8e12)
    assert 1e3 * rates.seconds(prefix) == pytest.approx(4.22, rel=0.01)
    assert 1e3 * rates.seconds(step.times(10)) == pytest.approx(1.33, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pi0", "pi0-FAST", "both"])
def test_full_size_runs_at_a_small_size(name):
    figures = list(bench_full_size.part(name, tiny=True))
    assert figures[-1].what == "peak memory"
    timed = [figure for figure in figures if figure.seconds is not None]
    assert all(figure.seconds > 0 for figure in timed)
    for figure in figures:
        assert figure.what in bench_full_size.row(figure)


@pytest.mark.parametrize("name", bench_full_size.PAGE_LIMITS_S)
def test_the_page_s_answer_of_a_3b_model_at_a_small_size(name):
    figures = list(bench_full_size.part(name, tiny=True))
    whats = [figure.what for figure in figures]
    assert whats[1:] == ["answer, 3 new pictures", "answer, new prompt", "answer, new seed",
                         "peak memory"]  # fmt: skip
    assert "one program" in figures[0].note
    assert ["vision" in figure.note for figure in figures[1:4]] == [True, False, False]
    assert all(figure.seconds > 0 for figure in figures[:-1])


def test_random_weights_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(bench_full_size, "BLOCK", 100)
    drawn = []
    for threads in (1, 3):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            drawn.append(bench_full_size.draw((37, 29), 0.5, (7, 1), pool))
    np.testing.assert_array_equal(*drawn)
    assert drawn[0].astype(np.float32).std() == pytest.approx(0.5, rel=0.1)


def test_a_part_ends_at_its_limit(tmp_path):
    (figure,) = bench_full_size.run_part("pi0", 0.0, True, str(tmp_path))
    assert (figure.model, figure.note) == ("pi0", "ended at its limit of 0 s")


def test_full_size_needs_the_models_packages_alone():
    """Nothing of the page, of images or of the simulated table."""
    more = {"gradio", "plotly", "PIL", "pydantic", "mujoco", "google_crc32c"}
    script = (
        "import sys; from playground.tools import bench, bench_full_size; "
        f"sys.exit(' '.join({more} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_start_is_measured_in_a_process_of_its_own(tmp_path):
    """On the bundled pi0; what it compiled is kept where nobody else can write."""
    kept = {"PI0_PLAYGROUND_CACHE": str(tmp_path)}
    # However quickly this machine compiles.
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "playground.tools.bench", "--child", "pi0_tabletop"]
    ended = subprocess.run(
        [*command, "--repeats", "1"],
        cwd=ROOT,
        env={**os.environ, **kept},
        capture_output=True,
        check=True,
    )
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["first"][1] > 0
    assert figures["peak_mb"] > 100
    (folder,) = (tmp_path / "programs").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert any(folder.iterdir())


def test_the_page_s_policies_tell_what_they_kept():
    figures = bench_models.bench_policy(load.untrained("pi0_tabletop"), repeats=1)
    notes = {figure.what: figure.note for figure in figures}
    pictures = ", ".join(f"image embedding of {slot}" for slot in CAMERAS)
    assert notes["answer, new picture"] == ""
    assert notes["answer, new prompt"] == f"kept: {pictures}"
    assert notes["answer, nothing new"] == f"kept: {pictures}, prefix"
    assert {"stage vision", "stage prefix", "stage denoise"} <= set(notes)
    assert dataclasses.astuple(figures[0])[0].endswith("(untrained weights)")
