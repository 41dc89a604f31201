"""What the command line opens: names, folders, files that name a folder, and the default pair."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

import app
from playground.checkpoints import download, resolve
from playground.checkpoints.catalog import BUNDLED, DEFAULT_PAIR
from playground.checkpoints.entry import Entry
from playground.checkpoints.resolve import PAIR_NEEDS_GB, Request, requests, resolve_all
from playground.serving import worker
from playground.ui import checkpoints


def described(where: Path, name: str, **fields) -> str:
    path = where / f"{name}.json"
    path.write_text(json.dumps({"name": name, **fields}))
    return str(path)


def resolved(*checkpoints, **settings) -> list[Entry]:
    return resolve_all(requests(checkpoints, **settings))


def test_names_folders_and_files_side_by_side(goldens, tmp_path):
    fast = described(tmp_path, "f", base="pi0_fast_droid", folder=str(goldens / "pi0_fast"))
    words = ["pi0_tabletop", str(goldens / "pi0"), fast]
    assert requests(words, "pi0_aloha") == [
        Request(words[0]),
        Request(words[1], "pi0_aloha"),
        Request(fast),
    ]
    found = resolved(*words, config="pi0_aloha")
    robots = {entry.name: entry.robot.name for entry in found}
    assert robots == {"pi0_tabletop": "tabletop", "pi0_aloha": "aloha", "f": "droid"}
    assert found[1].folder == goldens / "pi0"


def test_what_is_not_clear_is_refused(goldens, tmp_path):
    folders = [str(goldens / "pi0"), str(goldens / "lora" / "pi0")]
    with pytest.raises(ValueError, match="belongs to one folder, and 2 came"):
        requests(folders, "pi0_aloha")
    with pytest.raises(ValueError, match="belongs to one folder, and none came"):
        requests(["pi0_droid"], "pi0_aloha")
    same = described(tmp_path, "same", base="pi0_aloha", folder=folders[0])
    with pytest.raises(ValueError, match="two of these are called same"):
        resolved(same, same)
    with pytest.raises(ValueError, match="no policy is called 'pi0_drod'; did you mean pi0_droid"):
        resolved("pi0_drod")
    with pytest.raises(ValueError, match="there is no such folder"):
        resolved("./pi0_droid")
    with pytest.raises(ValueError, match="names no folder"):
        resolved(described(tmp_path, "bare", base="pi0_aloha"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gs://openpi-assets/checkpoints/pi0_droid/", "opens by its name, .*: pi0_droid$"),
        ("gs://mine/run/29999", r"copy it here first \(gcloud storage cp -r gs://mine/run/29999"),
        ("s3://mine/run", r"copy it here first \(aws s3 cp --recursive"),
        ("pi0_base", "is a base model .* drives no robot yet. To look into it, open pi0_aloha"),
        ("gs://openpi-assets/checkpoints/pi05_base/", "drives no robot yet.*open pi05_aloha"),
        ("pi0_fast_base", r"drives no robot yet.* it, copy it here .*cp -r \S+/pi0_fast_base"),
        ("somebody/pi05_cups", "ask for hf://somebody/pi05_cups, which downloads it"),
    ],
)
def test_an_address_is_answered_with_how_to_get_it(word, message):
    with pytest.raises(ValueError, match=message):
        resolved(word)


def test_the_home_folder_is_found(goldens, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(goldens))
    (entry,) = resolved("~/pi0", config="pi0_aloha")
    assert entry.folder == goldens / "pi0"
    monkeypatch.setenv("HOME", str(tmp_path))
    described(tmp_path, "mine", base="pi0_aloha", folder=str(goldens / "pi0"))
    (named,) = resolved("~/mine.json")
    (given,) = resolved(str(goldens / "pi0"), config="~/mine.json")
    assert named == given
    assert named.folder == entry.folder


def test_what_the_page_asks_for_is_what_the_command_line_takes(goldens, monkeypatch):
    """Refused, nothing ends; taken, the program ends and starts with these."""
    monkeypatch.delenv("PI0_PLAYGROUND_CHECKPOINT", raising=False)
    reopening = checkpoints.Reopening(app.settings().parse_args(["--checkpoint", "pi0_tabletop"]))
    for refused in ([], ["pi0_drod"], [str(goldens / "pi0")]):
        with pytest.raises(ValueError, match=r"choose|did you mean|which config"):
            reopening.ask(refused, "", "", "")
    assert not reopening.asked.is_set()
    reopening.ask([str(goldens / "pi0"), "pi0_droid"], " pi0_aloha ", "", "")
    assert reopening.asked.is_set()
    parsed = app.settings().parse_args(reopening.arguments)
    assert parsed.checkpoint == [str(goldens / "pi0"), "pi0_droid"]
    assert (parsed.config, parsed.robot, parsed.asset_id) == ("pi0_aloha", None, None)

    # Should these turn out damaged, the former ones open again, and the page says why.
    class Refusing:
        def metadata(self):
            raise worker.Down("damaged")

        def status(self):
            return SimpleNamespace(state="down")

    after = checkpoints.Reopening(parsed)
    after.watch(Refusing(), pause_s=0).join()
    assert after.asked.is_set()
    parsed = app.settings().parse_args(after.arguments)
    assert (parsed.checkpoint, parsed.because) == (["pi0_tabletop"], "damaged")
    assert checkpoints.Reopening(parsed).watch(Refusing()) is None


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("example.org", False)],
)  # fmt: skip
def test_only_a_page_of_this_machine_s_own_may_choose(host, private):
    assert checkpoints.is_private(host) == private


# --- where nothing is asked for -----------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path, caplog):
    """A machine with these: GPU memory, JAX's plugins, a network."""
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)

    def machine(memory, plugins=("cuda12",), network=True):
        caplog.clear()
        caplog.set_level(logging.WARNING, resolve.__name__)
        monkeypatch.setattr(resolve, "gpu_memory_gb", lambda: memory)
        monkeypatch.setattr(resolve.importlib.metadata, "entry_points", lambda group: plugins)
        monkeypatch.setattr(resolve.download, "reachable", lambda addresses: network)
        return resolve.default_policies(), caplog.text

    return machine


def test_default_policies(machine, monkeypatch):
    assert machine(141.0) == (DEFAULT_PAIR, "")
    assert machine(None) == (BUNDLED, "")
    for about, words in (
        ({"memory": PAIR_NEEDS_GB - 1}, "it has 15 GB"),
        ({"memory": 141.0, "plugins": ()}, 'pip install "jax'),
        ({"memory": 141.0, "network": False}, "gs://openpi-assets/checkpoints/pi0_droid"),
    ):
        pair, said = machine(**about)
        assert pair == BUNDLED
        assert words in said
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert machine(141.0)[0] == BUNDLED


def test_files_that_are_here_need_no_network(machine):
    for name in ("pi0_droid", "pi0_fast_droid"):
        folder = download.local_path(f"gs://openpi-assets/checkpoints/{name}")
        for part in ("params/manifest.ocdbt", "assets/droid/norm_stats.json"):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).touch()
    for address, parts in (
        ("hf://physical-intelligence/fast", ("tokenizer.json", "processor_config.json")),
        ("gs://big_vision/paligemma_tokenizer.model", ("",)),
    ):
        pair, said = machine(141.0, network=False)
        assert pair == BUNDLED
        assert address in said
        for part in parts:
            path = download.local_path(address) / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert machine(141.0, network=False) == (DEFAULT_PAIR, "")


def test_the_driver_is_asked(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve.gpu_memory_gb() is None
    for script, memory in (("echo 143771; echo 143771", 150.8), ("exit 9", None), ("echo x", None)):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert resolve.gpu_memory_gb() == pytest.approx(memory, abs=0.1)
