"""Checkpoints of one's own from the command line to an answer: folders as openpi and LeRobot wrote
them (the goldens), in one app, held to the models called directly. Nothing is asked of a network.
"""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import expect

from models.checkpoints.assembly import load_lerobot, load_openpi
from models.checkpoints.lora import Adapters, Lora
from models.fast_tokenizer import FastActionTokenizer, FastTokenizer
from models.observation import Observation, uint8_to_float
from models.pi0_fast import Pi0FastPrograms
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import folder as local
from playground.checkpoints import load
from playground.checkpoints import stats as stats_of
from playground.policies.base import sample_noise
from playground.robots import conversion, norm_stats
from playground.training import tokenizers
from tests.support.golden_models import CONFIGS, close
from tests.support.visitor import NOT_LIVE, give, open_state, run, started
from tests.test_lerobot import CONFIG as LEROBOT
from tests.test_lerobot_policy import ARM, few_actions, small_text
from tests.test_loading import finish

# The goldens' sizes, which neither openpi nor LeRobot writes into a folder.
READY = re.compile("Ready|From the cache")  # an example may be shown already
VISION = {"width": 48, "depth": 2, "mlp_dim": 96, "num_heads": 4}
LANGUAGE = {"width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 4, "head_dim": 16}
ACTION = {**LANGUAGE, "width": 32, "mlp_dim": 64}
SMALL = {"vision": VISION, "language": LANGUAGE, "vocab_size": 2048}
FAST = ("my_lora", "my_lerobot_fast")
PROMPT, SEED = "touch the red cube", 7
CHOSEN = "#chosen-checkpoints input"
# With weights in bfloat16 the velocity is rounded to it too; in the robot's units.
ROUNDING = 0.02


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Sentencepiece models of 2,048 pieces, as many as openpi's goldens know, and of 896 without
    <loc> pieces for LeRobot's, which know 1,024."""
    folder = tmp_path_factory.mktemp("texts")
    whole = tokenizers.train(vocab_size=896, count=2000)
    (folder / "text.model").write_bytes(whole)
    (folder / "short.model").write_bytes(whole[: whole.index(tokenizers.more_piece("<loc0000>"))])
    small_text(folder / "few.model")
    few_actions().save(folder / "few")
    (folder / "arm.json").write_text(json.dumps(ARM))
    return folder


@pytest.fixture(scope="module")
def described(goldens, texts):
    """What a person with such folders has to write, by name."""
    files = {
        "mine": {
            "base": "pi0_aloha",
            "action_horizon": 10,
            "text_tokenizer": "text.model",
            "default_prompt": PROMPT,
            **SMALL,
            "action_expert": ACTION,
        },
        "my_lora": {
            "base": "pi0_fast_droid",
            "folder": str(goldens / "lora" / "pi0_fast"),
            "max_token_len": 96,
            "lora": {"language": {"rank": 4, "alpha": 8, "rslora": False}},
            "text_tokenizer": "text.model",
            "action_tokenizer": str(goldens / "transforms" / "fast"),
            **SMALL,
        },
        "my_lerobot": {
            "folder": str(goldens / "lerobot" / "pi05"),
            "robot": "libero",
            "text_tokenizer": "short.model",
            "vision": VISION,
            "language": {**LANGUAGE, "num_heads": 8},
            "action_expert": {**ACTION, "num_heads": 8},
            "vocab_size": 1024,
        },
        "my_lerobot_fast": {
            "folder": str(goldens / "lerobot" / "pi0_fast"),
            "robot": "arm.json",
            "text_tokenizer": "few.model",
            "action_tokenizer": "few",
            "vision": VISION,
            "language": {**LANGUAGE, "num_heads": 8},
            "vocab_size": 1024,
        },
    }
    for name, fields in files.items():
        (texts / f"{name}.json").write_text(json.dumps({"name": name, **fields}))
    return {name: str(texts / f"{name}.json") for name in files}


@pytest.fixture(scope="module")
def client(goldens, described, tmp_path_factory):
    """The app on all: a folder with its config, and files that name their folders."""
    folder = tmp_path_factory.mktemp("own")
    # The app's own environment: urllib keeps the proxies of its first request in this process.
    environment = {
        "OPENPI_DATA_HOME": str(folder / "nothing"),
        **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),  # any request fails
        "no_proxy": "127.0.0.1",
    }
    files = (described[name] for name in ("my_lora", "my_lerobot", "my_lerobot_fast"))
    checkpoints = [str(goldens / "pi0"), *files]
    arguments = ["--checkpoint", *checkpoints, "--config", described["mine"]]
    with started(folder, *arguments, environment=environment) as address:
        yield Client(address, verbose=False, download_files=False)
    assert not (folder / "nothing").exists()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app on a bundled policy, which opens others as it is asked to on its page."""
    with started(tmp_path_factory.mktemp("bundled"), "--checkpoint", "pi0_tabletop") as address:
        yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """One that needs no resizing: its file and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def ask(client, api, name, robot, picture, prompt=PROMPT, **options):
    path, _ = picture
    slots = [slot.name for slot in robot.slots("pi0_fast" if name in FAST else "pi0")
             if slot.required]  # fmt: skip
    answer = client.predict(
        prompt=prompt,
        images={slot: handle_file(path) for slot in slots},
        policies=[name],
        robot=robot.name,
        seed=SEED,
        api_name=api,
        **options,
    )[name]
    assert "failure" not in answer, answer
    assert answer["badge"] == "real checkpoint"
    return answer


def observation(config, robot, entry, stats, picture, prompt) -> Observation:
    """What the model eats, put together here."""
    state = robot.state_to_model(np.array(robot.resting_state))
    state = norm_stats.normalise(state, stats["state"], entry.normalisation)
    padded = np.pad(state, (0, 32 - len(state))).astype(np.float32)  # pi0-FAST's is not read
    filled = {slot.name for slot in entry.slots if slot.required}
    black = np.zeros_like(picture)
    seen = {s: picture if s in filled else black for s in config.image_slots}
    fast = entry.family == "pi0_fast"
    return Observation(
        images={slot: uint8_to_float(image)[None] for slot, image in seen.items()},
        image_masks={slot: np.array([fast or slot in filled]) for slot in seen},
        state=padded[None],
        tokens=prompt(state).tokens[None].astype(np.int32),
        token_mask=prompt(state).mask[None],
        token_ar_mask=np.zeros((1, config.max_token_len), np.int32) if fast else None,
        token_loss_mask=np.zeros((1, config.max_token_len), bool) if fast else None,
    )


def chunk(model, robot, entry, stats, picture, prompt) -> np.ndarray:
    """The robot's actions of a flow policy, from the model called directly."""
    config = model.config
    noise = sample_noise(SEED, 1, config.action_horizon, config.action_dim)
    seen = observation(config, robot, entry, stats, picture, prompt)
    actions = jax.jit(model.sample_actions)(seen, noise)
    state = np.array(robot.resting_state)
    return conversion.from_model(robot, actions, state, stats["actions"], entry.normalisation)


def held(client, name, robot, picture, want):
    """The app's answer against ours: closer than anything that matters would leave it."""
    close(ask(client, "/infer", name, robot, picture)["actions"], want, ROUNDING)
    other = ask(client, "/infer", name, robot, picture, prompt="go home")["actions"]
    assert np.abs(np.array(other) - want).max() > 5 * ROUNDING


def with_the_panel_open(browser, address):
    page = browser.new_page()
    page.add_init_script(NOT_LIVE)
    page.goto(address)
    expect(page.locator(".say")).to_have_text(READY)
    page.get_by_text("Open other checkpoints").click()
    return page


def ask_for(page, *files):
    for file in files:
        page.locator(CHOSEN).fill(str(file))
        page.locator(CHOSEN).press("Enter")
    page.locator("#open-checkpoints").click()


def test_what_is_told_while_a_folder_opens(goldens, described):
    steps = load.open_steps(local.open_folder(goldens / "pi0", described["mine"]))
    events, policy = finish(steps)
    assert {event.phase.split(" (")[0] for event in events} == {
        "downloading",
        "loading",
        "compiling",
    }
    info = policy.info
    assert (info.name, info.badge, info.robot) == ("mine", "real checkpoint", "aloha")
    assert (info.normalisation, info.default_prompt) == ("z-score", PROMPT)


def test_a_text_model_that_is_too_large_is_refused(goldens, described, texts):
    """openpi's PaliGemma tokens in a model that knows fewer would be read as others."""
    fields = json.loads((texts / "mine.json").read_text())
    fields["text_tokenizer"] = str(
        goldens / "transforms" / "sentencepiece" / "tiny_paligemma.model"
    )
    (texts / "wrong.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"knows 2,048 tokens, its sentencepiece model has 3,712"):
        load.open_policy(local.open_folder(goldens / "pi0", str(texts / "wrong.json")))


def test_a_folder_that_openpi_wrote(goldens, described, texts, client, picture):
    entry = local.open_folder(goldens / "pi0", described["mine"])
    model = load_openpi(goldens / "pi0", CONFIGS["pi0"], dtype="bfloat16")
    text = PaligemmaTokenizer(texts / "text.model")
    want = chunk(model, entry.robot, entry, stats_of.norm_stats(entry), picture[1],
                 lambda state: text.tokenize(PROMPT, 48))  # fmt: skip
    held(client, "mine", entry.robot, picture, want)


@pytest.mark.slow
@pytest.mark.browser
def test_a_damaged_folder_chosen_on_the_page(goldens, described, texts, tmp_path, browser, address):
    """It is refused by name only once it is loaded: the former checkpoints answer again."""
    folder = tmp_path / "damaged"
    shutil.copytree(goldens / "pi0", folder)
    shard = max(folder.rglob("params/**/d/*"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:1000].ljust(shard.stat().st_size, b"\0"))
    (texts / "damaged.json").write_text(
        json.dumps(json.loads((texts / "mine.json").read_text()) | {"folder": str(folder)})
    )
    page = with_the_panel_open(browser, address)
    ask_for(page, texts / "damaged.json")
    refusal = page.locator(".refusal")
    expect(refusal).to_contain_text("the earlier checkpoints are open again", timeout=300_000)
    expect(refusal).to_contain_text("cannot read params.PaliGemma")
    expect(page.locator(".card")).to_contain_text("pi0_tabletop · ")
    run(page)
    expect(page.locator(".card")).to_contain_text("Answered in")
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_folders_chosen_on_the_page(goldens, described, texts, browser, address, picture):
    """openpi's, a LoRA one and two of LeRobot's: the program starts anew on them, the page comes
    back by itself, and each answers for its robot."""
    fields = json.loads((texts / "mine.json").read_text()) | {"folder": str(goldens / "pi0")}
    path = texts / "chosen.json"
    path.write_text(json.dumps(fields))
    page = with_the_panel_open(browser, address)
    ask_for(page, "nothing.json", path)
    expect(page.get_by_test_id("toast-body")).to_contain_text("nothing.json")
    for _ in range(2):
        page.locator(CHOSEN).press("Backspace")
    others = (described[name] for name in ("my_lora", "my_lerobot", "my_lerobot_fast"))
    ask_for(page, path, *others)
    expect(page.locator(".card")).to_contain_text("mine · aloha", timeout=300_000)
    expect(page.locator(".say")).to_have_text(READY, timeout=300_000)
    expect(page.locator("#prompt textarea")).to_have_attribute("placeholder", re.compile(PROMPT))
    every = (("ALOHA", "mine", 14), ("DROID", "my_lora", 8), ("LIBERO", "my_lerobot", 8))
    every += (("my_arm", "my_lerobot_fast", 8),)
    for robot, name, dims in every:
        if name != "mine":  # which is shown: choosing it again would change nothing to wait for
            page.get_by_role("combobox", name="Robot").click()
            page.get_by_role("option", name=robot, exact=True).click()
            expect(page.get_by_label("Prompt")).to_have_value("")
            expect(page.locator("[id^=picture-] img")).to_have_count(0)
        expect(page.locator(".card")).to_contain_text(f"{name} · ")
        open_state(page)
        expect(page.locator(".state input")).to_have_count(dims)
        page.get_by_label("Prompt").fill(PROMPT)
        needed = page.locator(".camera-slot").filter(has_text="needed").filter(visible=True)
        for slot in needed.all():
            number = slot.locator("[id^=picture-]").first.get_attribute("id").split("-")[1]
            give(page, picture[0], slot=number)
            expect(page.locator(f"#picture-{number} img")).to_be_visible()
        run(page)
        expect(page.locator(".card")).to_contain_text("Answered in", timeout=300_000)
        expect(page.locator(".card")).to_contain_text("real checkpoint")
    page.close()


@pytest.mark.slow
def test_a_lora_fine_tune(goldens, described, texts, client, picture):
    entry = local.open_folder(goldens / "lora" / "pi0_fast", described["my_lora"])
    adapters = Adapters(Lora(4, 8.0, rslora=False))
    folder = goldens / "lora" / "pi0_fast"
    config = dataclasses.replace(entry.config, dtype="float32")
    model = load_openpi(folder, config, dtype="bfloat16", adapters=adapters)
    text = FastTokenizer(
        PaligemmaTokenizer(texts / "text.model"),
        FastActionTokenizer.load(goldens / "transforms" / "fast"),
    )
    seen = observation(model.config, entry.robot, entry, stats_of.norm_stats(entry), picture[1],
                       lambda state: text.tokenize(PROMPT, state, 96))  # fmt: skip
    want = Pi0FastPrograms(model).sample_actions(seen, max_decoding_steps=8)
    got = ask(client, "/denoise", "my_lora", entry.robot, picture, max_tokens=8)
    assert [token["id"] for token in got["tokens"]] == np.asarray(want)[0].tolist()


@pytest.mark.slow
def test_a_folder_of_lerobot_s(goldens, described, texts, client, picture):
    entry = local.open_folder(goldens / "lerobot" / "pi05", described["my_lerobot"])
    model = load_lerobot(goldens / "lerobot" / "pi05", LEROBOT["pi05"], dtype="bfloat16")
    text = PaligemmaTokenizer(texts / "short.model")
    want = chunk(model, entry.robot, entry, stats_of.norm_stats(entry), picture[1],
                 lambda state: text.tokenize(PROMPT, 200, state))  # fmt: skip
    held(client, "my_lerobot", entry.robot, picture, want)


@pytest.mark.slow
def test_a_pi0_fast_of_lerobot_s(goldens, described, texts, client, picture):
    folder = goldens / "lerobot" / "pi0_fast"
    entry = local.open_folder(folder, described["my_lerobot_fast"])
    model = load_lerobot(folder, LEROBOT["pi0_fast"], dtype="bfloat16")
    text = FastTokenizer(PaligemmaTokenizer(texts / "few.model", "lerobot"), few_actions())
    seen = observation(model.config, entry.robot, entry, stats_of.norm_stats(entry), picture[1],
                       lambda state: text.tokenize(PROMPT, state, 97))  # fmt: skip
    want = Pi0FastPrograms(model).sample_actions(seen, max_decoding_steps=8)
    got = ask(client, "/denoise", "my_lerobot_fast", entry.robot, picture, max_tokens=8)
    assert [token["id"] for token in got["tokens"]] == np.asarray(want)[0].tolist()
    constrained = {"max_tokens": 90, "constrained": True}
    chunk = ask(client, "/infer", "my_lerobot_fast", entry.robot, picture, **constrained)["actions"]
    assert np.shape(chunk) == (1, 10, 7)
