"""`python app.py --check`: what is said of a checkpoint is what it would be asked, and the exit
status is 0 only where it would open."""

import html
import json
import re
import shutil

import gradio as gr
import numpy as np
import pytest
import safetensors.numpy

import app
from models.checkpoints.assembly import load_openpi
from models.tokenizer import BOS, PaligemmaTokenizer
from playground.checkpoints import catalog, memory_plan
from playground.checkpoints.check import check, report
from playground.checkpoints.resolve import Request
from playground.trace import MAX_PICTURES
from playground.ui import checkpoints
from tests.support.blocks import built
from tests.support.golden_models import CONFIGS
from tests.test_folders import SIZES, pytorch  # noqa: F401
from tests.test_lerobot_policy import ARM, small_text


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "nothing"))


@pytest.fixture
def described(goldens, tmp_path):
    """A JSON file for the golden pi0 folder, with a tokenizer of its own."""
    text = small_text(tmp_path / "text.model")
    path = tmp_path / "mine.json"
    sizes = {name: {**SIZES[name], "num_heads": 4} for name in ("language", "action_expert")}
    said = {"base": "pi0_aloha", "name": "mine", "action_horizon": 10, **SIZES, **sizes}
    said |= {"vocab_size": 2048, "text_tokenizer": text.name, "default_prompt": "fold"}
    path.write_text(json.dumps(said | {"folder": str(goldens / "pi0")}))
    return path


def test_what_would_open(described):
    text, opens = report(Request(str(described)))
    assert opens
    assert "openpi's checkpoint (Orbax), pi0" in text
    assert "robot: ALOHA, 14 numbers of state, 14 of action, 10 steps at 50 Hz" in text
    assert "picture left_wrist_0_rgb: cam_left_wrist, masked where there is none" in text
    assert "actions: predicted as offsets from the state (left waist, left shoulder, " in text
    assert "weights: 50 arrays as the config asks for" in text
    tokenizer = PaligemmaTokenizer(described.parent / "text.model")
    ids = [BOS, *tokenizer.encode("fold"), *tokenizer.encode("\n")]
    assert f"{len(ids)} of 48 tokens, the first {ids[:12]}" in text
    assert text.endswith("It would open.")


def test_a_state_in_the_prompt_is_the_resting_one(goldens, tmp_path):
    text = small_text(tmp_path / "text.model")
    (tmp_path / "mine.json").write_text(
        json.dumps(
            {"name": "mine", "robot": "libero", "folder": str(goldens / "lerobot" / "pi05")}
            | {"text_tokenizer": text.name, **SIZES}
        )
    )
    said, opens = report(Request(str(tmp_path / "mine.json")))
    assert opens, said
    stats = goldens / "lerobot" / "pi05" / "policy_preprocessor_step_3_normalizer_processor"
    own = safetensors.numpy.load(stats.with_suffix(".safetensors").read_bytes())
    low, high = (own[f"observation.state.{q}"].astype(float) for q in ("q01", "q99"))
    rest = np.array([-0.05, 0.0, 0.69, np.pi, 0.0, -0.09, 0.039, -0.039])
    bins = np.digitize(2 * (rest - low) / (high - low) - 1, np.linspace(-1, 1, 257)[:-1]) - 1
    assert f"State: {' '.join(map(str, bins))};" in said


def test_pi0_fast_shows_its_prompt_where_both_tokenizers_are_here(monkeypatch):
    text, opens = report(Request("pi0_fast_tabletop"))
    assert opens, text
    assert re.search(
        r"prompt: 'Task: pick up the cup, State: [\d ]+;\\n', as the robot rests", text
    )
    monkeypatch.setattr(catalog, "bundled", lambda folder: catalog.untrained(folder.name))
    text, opens = report(Request("pi0_fast_tabletop"))
    assert opens, text
    assert "prompt: not shown, its tokenizer of actions is fitted when it is opened" in text
    text, opens = report(Request("pi0_fast_droid"))
    assert opens, text
    assert "prompt: not shown, the sentencepiece model is not on this machine" in text


@pytest.mark.usefixtures("pytorch")
def test_what_would_not_open(goldens, tmp_path, described):
    (tmp_path / "mine.json").write_text(described.read_text().replace('"depth": 3', '"depth": 2'))
    text, opens = report(Request(str(tmp_path / "mine.json")))
    assert not opens
    assert "It would not open:\nweights: " in text
    assert "wrong shape" in text
    assert not report(Request(str(tmp_path / "nowhere")))[1]


def test_a_download_that_was_cut_off_opens_only_where_it_loads(goldens, tmp_path, described):
    """Each file that holds arrays, left out and cut: what is said is what loading does. Some belong
    to no array any more."""
    whole, folder = goldens / "pi0", tmp_path / "pi0"
    described.write_text(described.read_text().replace(str(whole), str(folder)))
    found = []
    for path in sorted((whole / "params").rglob("d/*")):
        for kept in (None, path.stat().st_size // 2):
            shutil.copytree(whole, folder, copy_function=shutil.copyfile)
            damaged = folder / path.relative_to(whole)
            damaged.write_bytes(path.read_bytes()[:kept]) if kept else damaged.unlink()
            text, opens = report(Request(str(described)))
            try:
                load_openpi(folder, CONFIGS["pi0"])
                loads = True
            except ValueError:
                loads = False
            assert opens == loads, (path, kept, text)
            found.append(opens)
            shutil.rmtree(folder)
    assert len(set(found)) == 2


def test_spoilt_stats_are_found_without_loading(goldens, tmp_path, described):
    shutil.copytree(goldens / "pi0", tmp_path / "pi0", copy_function=shutil.copyfile)
    stats = tmp_path / "pi0" / "assets" / "trossen" / "norm_stats.json"
    said = json.loads(stats.read_text())
    said["norm_stats"]["state"]["std"][2] = -1.0
    stats.write_text(json.dumps(said))
    described.write_text(described.read_text().replace(str(goldens / "pi0"), str(tmp_path / "pi0")))
    text, opens = report(Request(str(described)))
    assert not opens
    assert "norm stats: the norm stats in" in text
    assert "state: std[2] is -1" in text


@pytest.mark.parametrize("flags", [["--check"], ["--check", "--checkpoint"]])
@pytest.mark.parametrize(("word", "status"), [("pi0_tabletop", 0), ("./nowhere", 1)])
def test_the_exit_status(monkeypatch, capsys, flags, word, status):
    monkeypatch.setattr("sys.argv", ["app.py", *flags, word])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == status
    assert ("It would open." in capsys.readouterr().out) == (status == 0)


def test_what_would_not_open_together(monkeypatch, described):
    """One name twice, or more memory than the machine has."""
    request = Request(str(described))
    text, opens = check([request])
    assert opens, text
    text, opens = check([request, request])
    assert not opens
    assert "Together they would not open: two of these are called mine" in text
    tiny = memory_plan.Machine(None, 1 << 20, shared=True)
    monkeypatch.setattr(memory_plan, "empty_machine", lambda gpu: tiny)
    text, opens = check([request])
    assert not opens
    assert "It would not open: mine with 0.00 GB of weights: loading and running needs" in text


@pytest.mark.parametrize(
    ("folder", "lora", "message"),
    [
        ("pi0", {"language": "gemma_2b_lora"}, "the language expert has no adapters; expected"),
        ("lora/pi0", None, "the scale that they were trained with is not stored"),
    ],
)
def test_adapters_are_where_the_config_says(goldens, described, folder, lora, message):
    said = json.loads(described.read_text()) | {"folder": str(goldens / folder)}
    described.write_text(json.dumps(said | ({"lora": lora} if lora else {})))
    text, opens = report(Request(str(described)))
    assert not opens
    assert message in text


def test_more_pictures_than_are_taken(tmp_path, goldens):
    count = MAX_PICTURES + 1
    cameras = {f"cam{i}": f"camera {i}" for i in range(count)}
    (tmp_path / "arm.json").write_text(json.dumps({**ARM, "cameras": cameras}))
    shutil.copytree(goldens / "lerobot" / "pi05", tmp_path / "it", copy_function=shutil.copyfile)
    path = tmp_path / "it" / "config.json"
    config = json.loads(path.read_text())
    picture = {"type": "VISUAL", "shape": [3, 480, 640]}
    config["input_features"] = {
        "observation.state": config["input_features"]["observation.state"],
        **{f"observation.images.{name}": picture for name in cameras},
    }
    path.write_text(json.dumps(config))
    text, opens = report(Request(str(tmp_path / "it"), robot=str(tmp_path / "arm.json")))
    assert not opens
    assert f"it has {count} camera inputs; at most {MAX_PICTURES} are taken" in text


def test_a_published_name_tells_what_it_is_before_it_is_fetched():
    text, opens = report(Request("pi05_droid"))
    assert opens
    assert "not on this machine; they are downloaded when it is opened" in text
    assert "actions: velocities (joint 1, " in text
    assert "memory: 3.35 billion parameters, 6.7 GB in bfloat16" in text


def test_the_page_says_the_same_before_it_opens_anything(goldens, tmp_path, described):
    """What is shown is the command's report; what would not open closes nothing."""
    reopening = checkpoints.Reopening(app.settings().parse_args(["--checkpoint", "pi0_tabletop"]))
    page, _ = built(lambda: checkpoints.build(reopening))
    handlers = {event.api_name: event.fn for event in page.fns.values() if event.fn}

    def shown(name, *given):
        return html.unescape(list(handlers[name](*given))[-1])

    bad = tmp_path / "bad.json"
    bad.write_text(described.read_text().replace('"depth": 3', '"depth": 2'))
    text, _ = report(Request(str(bad)))
    said = shown("ask", [str(bad)], "", "", "")
    assert "the policies here stay" in said
    assert text in said
    assert not reopening.asked.is_set()
    text, _ = report(Request("pi0_tabletop"))
    assert shown("check", ["pi0_tabletop"], " ", "", "") == f"<pre>{text}</pre>"
    assert not reopening.asked.is_set()
    assert "the page comes back by itself" in shown("ask", [str(described)], "", "", "")
    assert reopening.asked.is_set()
    with pytest.raises(gr.Error, match="choose at least one"):
        shown("check", [], "", "", "")
