"""The benchmark measures what it says: each trick's two ways agree, and every path of it runs, at
small sizes. No time is judged."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from playground.checkpoints import load
from playground.tools import bench, optimizations
from tests.conftest import ROOT
from tests.support.golden_models import CONFIGS

TOKENS = 5
SEEN = {family: (True, True, family == "pi0_fast") for family in CONFIGS}


def subject(family):
    return bench.Subject(family, CONFIGS[family], SEEN[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_a_trick_changes_no_number(family):
    model, observation = bench.whole(subject(family))
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
def test_full_size_runs_at_a_small_size(family, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "PI0", CONFIGS["pi0"])
    monkeypatch.setattr(bench, "PI0_FAST", CONFIGS["pi0_fast"])
    monkeypatch.setattr(bench, "TOKENS", TOKENS)
    monkeypatch.setattr(bench, "bench_start", lambda *_: [])
    name = {"pi0": "pi0-3B", "pi0_fast": "pi0-FAST-3B"}[family]
    file = tmp_path / "figures.json"
    bench.main(["--full-size", "--only", name, "--repeats", "1", "--json", str(file)])
    told = json.loads(file.read_text())
    assert {figure["subject"] for figure in told["figures"]} == {"machine", name}
    table = capsys.readouterr().out
    product = told["figures"][0]
    assert product["at_reference_s"] == pytest.approx(2 * 1.024**3 / bench.REFERENCE)
    for figure in told["figures"]:
        assert figure["wall_s"] > 0
        (line,) = (line for line in table.splitlines() if f": {figure['what']}" in line)
        ratio = figure["at_reference_s"] / figure["cpu_s"]
        assert ratio == pytest.approx(told["gflop_a_cpu_s"] / bench.REFERENCE)
        assert f"{figure['cpu_s']:.3f}{figure['at_reference_s']:9.3f}" in line
    assert bench.full_size()[name].storage == "bfloat16"


def test_a_start_is_measured_in_a_process_of_its_own(tmp_path):
    """On the bundled pi0; what it compiled is kept where nobody else can write."""
    environment = {**os.environ, "PI0_PLAYGROUND_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "playground.tools.bench", "--child", "pi0_tabletop"]
    told = subprocess.run(
        [*command, "--repeats", "1"], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    figures = json.loads(told.stdout.splitlines()[-1])
    assert figures["first"][1] > 0
    assert figures["peak_mb"] > 100
    (folder,) = (tmp_path / "programs").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert any(folder.iterdir())


def test_the_page_s_policies_tell_what_they_kept():
    figures = bench.bench_policy(load.untrained("pi0_tabletop"), repeats=1)
    notes = {figure.what: figure.note for figure in figures}
    assert notes["answer, new picture"] == ""
    assert notes["answer, new prompt"] == "kept: image embedding of base_0_rgb"
    assert notes["answer, nothing new"] == "kept: image embedding of base_0_rgb, prefix"
    assert {"stage vision", "stage prefix", "stage denoise"} <= set(notes)
    assert dataclasses.astuple(figures[0])[0].endswith("(untrained weights)")
