"""Random weights in openpi's layout, opened as a user's folder: at small sizes always, at the real
3B sizes with `-m full_size` (13 GB of disk, 16 GB of memory, an hour on one core)."""

import json
import math
import os

import pytest
import tensorstore as ts

from models.checkpoints.assembly import load_openpi, to_openpi, write_openpi
from models.checkpoints.openpi import rows
from playground.checkpoints.catalog import named
from playground.checkpoints.schema import read_openpi_file
from playground.tools import full_size

FAMILIES = pytest.mark.parametrize("family", full_size.BASES)
# Shares by which a stage's size may differ between float32 and bfloat16: eight bits of mantissa,
# gathered over a model's layers.
ROUNDING = 0.1


def database(params) -> dict[str, bytes]:
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params}/"}}
    store = ts.KvStore.open(spec).result()
    return {key.decode(): store.read(key).result().value for key in store.list().result()}


@FAMILIES
def test_the_folder_is_as_orbax_writes_it(family, tmp_path):
    """Keys and zarr metadata of the same arrays, written by Orbax; and a loader finds them."""
    path = full_size.write(family, tmp_path / "ours", sizes=full_size.SMALL)
    config = read_openpi_file(path).config
    arrays = to_openpi(load_openpi(path.parent, config, dtype="float32"))
    write_openpi({f"{name}/value": array for name, array in arrays.items()}, tmp_path / "orbax")
    ours, theirs = (database(tmp_path / name / "params") for name in ("ours", "orbax"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        if key.endswith(".zarray"):
            assert json.loads(ours[key]) == json.loads(theirs[key]), key
    for row in rows(config):
        spread = arrays[row.path].std()
        assert 0.001 < spread < 1, row.path


@FAMILIES
def test_small_sizes(family, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # it is added to
    path = full_size.write(family, tmp_path / family, sizes=full_size.SMALL)
    report = full_size.serve(path)
    assert report["answered"]
    exact = full_size.stages(path, "float32", "float32")
    for arithmetic in ("float32", "bfloat16"):
        found = full_size.deviations(path, exact, "bfloat16", arithmetic)
        assert found.keys() == exact.keys()
        assert all(0 < share < ROUNDING for share in found.values()), found


@pytest.mark.full_size
@FAMILIES
def test_full_size(family, tmp_path):
    """Loading holds less than 1.3 times what is stored; nothing strays in bfloat16."""
    report = full_size.measure(tmp_path, family, sizes=None, keep=False)
    full_size.show(family, report)
    # What is stored is compressed a little.
    whole = named(full_size.BASES[family]).num_bytes / 1e9
    assert math.isclose(report["stored_gb"], whole, rel_tol=0.1)
    assert report["peak_load_gb"] < 1.3 * report["stored_gb"]
    assert report["answered"]
    for found in report["deviations"].values():
        assert all(0 < share < ROUNDING for share in found.values()), found
