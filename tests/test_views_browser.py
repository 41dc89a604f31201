"""The components as a person meets them: in Gradio, in a real browser."""

import dataclasses
import re

import gradio as gr
import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from playground.analysis.sensitivity import Base, Change, SensitivityReport
from playground.tabletop.job import RolloutFrame
from playground.tabletop.outcome import Outcome
from playground.trace import PADDING, Options
from playground.views import actions, attention, denoising, mask, matters, rollout, theme, tokens
from tests.support import traces

pytestmark = pytest.mark.browser

expect.set_options(timeout=20_000)

FLOW = traces.with_attention(traces.pi0_trace())
FAN = traces.pi0_trace(samples=3, steps=5, seed=3)
FAST = traces.with_attention(traces.fast_trace())
FAILED = traces.fast_trace(failure="expected 700 coefficients, found 655", count=12)
EVIL = traces.hostile(traces.with_attention(traces.pi0_trace()))
EVIL_FAST = traces.hostile(traces.with_attention(traces.fast_trace(failure="x", count=8)))


def paths_of(trace):
    steps, samples = trace.v_t.shape[:2]
    paths = np.random.default_rng(0).uniform(0, 56, (steps + 1, samples, 9, 2)).round(1)
    return {traces.HOSTILE: paths, "right": paths[..., ::-1]}


def camera_of(trace):
    """As `views.paths.denoising` has it, with paths that are easy to tell apart."""
    grippers = [
        {
            "name": theme.plain(name),
            "moves": name == "right",
            "points": theme.packed(points),
            "noise": theme.packed(points[:, :, 1:]),
        }
        for name, points in paths_of(trace).items()
    ]
    return {"image": theme.picture(trace.images["base_0_rgb"]), "grippers": grippers}


def film_of(trace, prompt="touch it", outcome=None):
    """Two looks of a made-up rollout, the second one without a chunk."""
    film = rollout.Film(trace.info, prompt, 7)
    state, picture = np.array(trace.inputs.state), trace.images["base_0_rgb"]
    for look, executed in ((1, 0), (1, 5), (2, 0), (2, 5)):
        chunk, failure = trace.actions[0], ""
        if look == 2:
            chunk, failure = None, f"no action {prompt}"
        film.take(
            RolloutFrame(
                image=np.full_like(picture, 50 * look + executed),
                time_s=0.5 * (look - 1) + executed / 50,
                look=look,
                executed=executed,
                chunk=chunk,
                failure=failure,
                state=state,
                seen={} if executed else {"left_wrist_0_rgb": np.full_like(picture, 9 * look)},
                outcome=outcome if (look, executed) == (2, 5) else None,
            )
        )
    return film.payload()


def report_of(*infos):
    """Of each policy one variant that changes its chunk and one that does not. pi0-FAST runs once,
    so that its change has no interval."""
    bases, changes = [], []
    for info in infos:
        runs = 1 if info.family == "pi0_fast" else 4
        names = tuple(dim.name for dim in info.actions)
        bases.append(Base.on(info, dimensions=names, random=runs > 1, runs=runs))
        for variant, percent in (("black", 3.0), ("shuffled", 0.0)):
            bounds = (percent, percent) if runs > 1 else None
            change = Change(info.name, variant, "camera", info.title, None, percent=percent)
            each = (percent,) * len(names)
            changes.append(dataclasses.replace(change, interval=bounds, dimensions=each))
    found = tuple(bases), tuple(changes)
    return SensitivityReport("touch it", "ALOHA", Options(), 4, *found, (), done=6, of=6)


def build():
    """Every component, empty; buttons fill them the way a run does."""
    with gr.Blocks() as page:
        views = {
            name: gr.HTML(**module.COMPONENT, elem_id=name)
            for name, module in (
                ("denoising", denoising),
                ("tokens", tokens),
                ("mask", mask),
                ("attention", attention),
                ("rollout", rollout),
                ("matters", matters),
            )
        }

        def offer(name, payloads):
            gr.Button(name).click(lambda: payloads, outputs=list(views.values()))

        fan = denoising.payload(FAN, camera_of(FAN))
        fast = (tokens.payload(FAST), mask.payload(FAST), attention.payload(FAST))
        film = film_of(FLOW, outcome=Outcome(None, "nobody judged"))
        failed = film_of(FLOW, outcome=Outcome(False, "moved the red cube"))
        flow = (mask.payload(FLOW), attention.payload(FLOW))
        report = matters.payload(report_of(FLOW.info, FAST.info))
        offer("plain", [denoising.payload(FLOW), *fast, film, report])
        offer("failed", [fan, tokens.payload(FAILED), *flow, failed, report])
        offer(
            "hostile",
            [
                denoising.payload(EVIL, camera_of(EVIL)),
                tokens.payload(EVIL_FAST),
                mask.payload(EVIL),
                attention.payload(EVIL_FAST, "prefix"),
                film_of(EVIL, traces.HOSTILE, Outcome(True, traces.HOSTILE)),
                matters.payload(report_of(EVIL.info, EVIL_FAST.info)),
            ],
        )
    return page


@pytest.fixture(scope="module")
def address():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        # Gradio 6.31 sums up its queue after each event with an option that pandas 3 deprecates.
        patch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
        page = build()
        _, url, _ = page.launch(
            prevent_thread_lock=True,
            quiet=True,
            css=theme.PLOT_CSS,
            head=f"<style>{theme.VIEWS_CSS}</style>",
        )
        yield url
        page.close()


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["wide", "phone"])
def page(request, browser, address):
    """A page at a width and theme; the test fails on any error of the browser's."""
    width, mode = request.param
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(f"{address}?__theme={mode}")
    expect(page.locator("#denoising .waiting")).to_be_visible()
    yield page
    page.close()
    assert not errors


def fill(page, name):
    page.get_by_role("button", name=name, exact=True).click()
    page.locator("#denoising .panel").first.wait_for()
    page.locator("#attention .masses").wait_for()


def scrub(page, view, position):
    page.locator(f"#{view} .transport input").evaluate(
        "(s, to) => { s.value = to; s.dispatchEvent(new Event('input')) }", position
    )


def shown_numbers(page, view):
    """(value, half a unit of its last decimal) of every panel's caption."""
    found = []
    for text in page.locator(f"#{view} .panel .value").all_inner_texts():
        first = text.split(" ")[0].replace("−", "-")
        decimals = len(first.partition(".")[2])
        found.append((float(first), 0.5 * 10.0**-decimals))
    return found


def check_numbers(page, view, expected):
    shown = shown_numbers(page, view)
    assert len(shown) == len(expected)
    for (value, slack), truth in zip(shown, expected, strict=True):
        assert abs(value - truth) <= slack + 1e-3 * abs(truth)


def check_curve(page, selector, curve):
    """The first path that matches is the curve: a straight map of its values, larger ones up."""
    drawn = page.locator(selector).first.get_attribute("d")
    heights = np.array([float(y) for _, y in re.findall(r"[ML](\d+) (-?[\d.]+)", drawn)])
    slope = np.polyfit(curve, heights, 1)
    np.testing.assert_allclose(np.polyval(slope, curve), heights, atol=0.02)
    assert slope[0] < 0


def test_denoising_shows_the_traces_values_and_asks_the_server_nothing(page):
    fill(page, "plain")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    clock = page.locator("#denoising .clock")
    expect(clock).to_contain_text("10 of 10")
    final = FLOW.x_t[-1, 0, 0, :14]
    check_numbers(page, "denoising", final)

    scrub(page, "denoising", 4)
    expect(clock).to_contain_text("4 of 10")
    expect(clock).to_contain_text("0.60")  # t
    expect(clock).to_contain_text("0.40")  # tau
    estimate = FLOW.x_t[4] - FLOW.times[4] * FLOW.v_t[4]
    check_numbers(page, "denoising", estimate[0, 0, :14])
    slider = page.locator("#denoising .transport input")
    assert slider.get_attribute("aria-valuetext") == "step 4 of 10, t 0.60, tau 0.40"

    for layer, curve in (("noise", FLOW.x_t[4, 0]), ("estimate", estimate[0])):
        check_curve(page, f"#denoising .panel .{layer}", curve[:, 0])

    page.locator("#denoising .choice span", has_text="robot units").click()
    check_numbers(page, "denoising", FLOW.estimates[4, 0, 0])
    for layer, curve in (("final", FLOW.actions), ("estimate", FLOW.estimates[4])):
        check_curve(page, f"#denoising .panel .{layer}", curve[0, :, 0])
    page.locator("#denoising .reader input").evaluate(
        "s => { s.value = 30; s.dispatchEvent(new Event('input')) }"
    )
    check_numbers(page, "denoising", FLOW.estimates[4, 0, 30])
    slider.press("ArrowRight")
    check_numbers(page, "denoising", FLOW.estimates[5, 0, 30])
    speed = np.sqrt((FLOW.v_t[5, 0, :, 0] ** 2).mean())
    label = page.locator("#denoising .speed span").first.inner_text()
    assert abs(float(label.removeprefix("|v| ")) - speed) < 0.006
    assert not asked


def test_playing_runs_to_the_end_and_stops_there(page):
    fill(page, "plain")
    page.locator("#denoising select").select_option("4")
    play = page.locator("#denoising .play")
    play.click()
    expect(play).to_have_attribute("aria-label", "Pause")
    expect(play).to_have_attribute("aria-label", "Play")
    expect(page.locator("#denoising .clock")).to_contain_text("10 of 10")
    check_numbers(page, "denoising", FLOW.x_t[-1, 0, 0, :14])


def test_a_new_result_keeps_the_elements_the_units_and_the_place(page):
    fill(page, "plain")
    page.evaluate("window.before = document.querySelector('#denoising .view')")
    page.locator("#denoising .choice span", has_text="robot units").click()
    scrub(page, "denoising", 2)
    page.locator("#denoising .name").nth(3).click()  # enlarged
    page.locator("#mask .choice span", has_text="suffix pass").click()
    page.locator("#mask canvas").press("+")
    fill(page, "failed")
    expect(page.locator("#denoising .clock")).to_contain_text("2 of 5")
    expect(page.locator("#denoising .panel").nth(3)).to_have_class("panel wide")
    expect(page.locator("#mask .policy strong")).to_have_text("pi0")
    assert page.locator("#mask input[value=suffix]").is_checked()
    assert page.locator("#mask .side.columns span").count() < 7  # still zoomed
    assert page.evaluate("window.before === document.querySelector('#denoising .view')")
    assert page.locator("#denoising input[value=robot]").is_checked()
    check_numbers(page, "denoising", FAN.estimates[2].mean(axis=0)[0])
    spread = page.locator("#denoising .value").first.inner_text().split("±")[1]
    assert abs(float(spread) - FAN.estimates[2, :, 0, 0].std(ddof=1)) < 0.002


def test_paths_lie_over_the_camera_image_step_by_step(page):
    fill(page, "failed")
    camera = page.locator("#denoising .camera")
    for step in (3, len(FAN.times) - 1):
        scrub(page, "denoising", step)
        points = paths_of(FAN)["right"][step, 2]
        for kind, expected in (("path", points), ("scatter", points[1:])):
            drawn = camera.locator(f".moves .{kind}").nth(2).get_attribute("d")
            found = np.array([float(x) for x in re.findall(r"-?[\d.]+", drawn)]).reshape(-1, 2)
            np.testing.assert_allclose(found, expected, atol=0.051)
    start, end = (camera.locator(f".moves .{kind}").get_attribute("d") for kind in ("start", "end"))
    first = paths_of(FAN)["right"][-1, 0]
    assert start == f"M{first[0, 0]:.1f} {first[0, 1]:.1f} h0"
    assert end == f"M{first[-1, 0]:.1f} {first[-1, 1]:.1f} h0"


def test_a_rollout_scrubs_and_says_which_chunk_did_not_decode(page):
    fill(page, "plain")
    film = page.locator("#rollout")
    expect(film.locator(".verdict")).to_contain_text("No verdict: the prompt names no task")
    expect(film.locator(".clock")).to_contain_text("0.6 s")
    note = film.locator(".failure")
    expect(note).to_have_text("Chunk 2 did not decode, the arms hold still: no action touch it")
    expect(film.locator(".camera .path")).to_have_count(0)
    seen = film.locator(".film > div").last
    expect(seen).to_have_text("What the policy saw for chunk 2left_wrist_0_rgb")
    second = seen.locator("img").get_attribute("src")
    scrub(page, "rollout", 1)
    expect(seen).to_have_text("What the policy saw for chunk 1left_wrist_0_rgb")
    assert seen.locator("img").get_attribute("src") != second
    expect(film.locator(".clock")).to_contain_text("0.1 s")
    expect(note).not_to_be_visible()
    expect(film.locator(".camera .path")).to_have_count(2)
    fill(page, "failed")  # another rollout: from its end
    expect(film.locator(".verdict")).to_have_text("Failure after 0.6 s: moved the red cube.")
    expect(film.locator(".clock")).to_contain_text("0.6 s")


def test_the_rail_reads_with_pointer_and_keys(page):
    fill(page, "plain")
    chips = page.locator("#tokens .token")
    assert chips.count() == len(FAST.tokens)
    check_numbers(page, "tokens", FAST.actions[0, 0])
    chips.nth(9).hover()
    detail = page.locator("#tokens .detail")
    for text in (FAST.tokens[9].text, *(text for _, text, _ in FAST.tokens[9].runners_up)):
        expect(detail).to_contain_text(text)
    expect(detail).to_contain_text(f"{FAST.tokens[9].probability:.0%}".replace("%", " %"))
    chips.nth(9).click()
    expect(page.locator("#tokens .clock")).to_contain_text("10 of 24")
    check_numbers(page, "tokens", FAST.partial_actions[9, 0])
    chips.nth(9).press("ArrowRight")
    expect(chips.nth(10)).to_be_focused()
    check_numbers(page, "tokens", FAST.partial_actions[10, 0])
    chips.nth(10).press("Home")  # "Action" alone decodes to nothing
    expect(page.locator("#tokens .panel .value").first).to_have_text("–")
    assert page.locator("#tokens .panel .estimate").first.get_attribute("d") == ""


def test_a_failed_decode_shows_reason_and_tokens_and_draws_no_chunk(page):
    fill(page, "failed")
    expect(page.locator("#tokens .failure")).to_contain_text(FAILED.decode_failure)
    assert page.locator("#tokens .token").count() == 12
    assert page.locator("#tokens .panel .estimate").first.get_attribute("d") == ""
    assert not page.locator("#tokens .panel .final").first.get_attribute("d")
    scrub(page, "tokens", 5)  # half of them decoded
    check_numbers(page, "tokens", FAILED.partial_actions[4, 0])


def test_every_cell_of_the_mask_reads_as_it_is(page):
    fill(page, "failed")
    says = {0: "may not attend to", 1: "may attend to", 2: "and"}
    box = page.locator("#mask canvas")
    box.focus()
    reading = page.locator("#mask .reading")
    rows = np.flatnonzero(~mask.padding_queries(FLOW))
    row = column = 0
    rng = np.random.default_rng(0)
    for key in rng.choice(["ArrowDown", "ArrowRight", "Shift+ArrowDown", "Shift+ArrowRight"], 14):
        box.press(key)
        starts = [b.start for b in FLOW.blocks]
        if key == "ArrowRight":
            column += 1
        elif key == "Shift+ArrowRight":
            column = min([s for s in starts if s > column], default=column)
        elif key == "ArrowDown":
            row = rows[np.searchsorted(rows, row) + 1]
        else:
            block = next(b for b in FLOW.blocks if b.start <= row < b.stop)
            row = rows[rows >= block.stop][0] if (rows >= block.stop).any() else row
        block = next(b for b in FLOW.blocks if b.start <= column < b.stop)
        code = FLOW.mask[row, column]
        expect(reading.locator("b")).to_have_text(says[code])
        query = next(b for b in FLOW.blocks if b.start <= row < b.stop)
        how_much = {"all": " all of ", "none": " nothing of ", "": "padding only"}
        expect(reading.locator("small")).to_contain_text(
            how_much[mask.relation(FLOW, query, block)]
        )
        assert (": padding" in reading.inner_text()) == (code == PADDING)
        expect(reading).to_contain_text(mask.label(block))
        if block.kind == "text" and (text := FLOW.token_texts[column].strip()):
            expect(reading).to_contain_text(text)


# [query, key, RGBA at the middle of their block] and the legend's colours.
PROBE = """() => {
    const canvas = document.querySelector('#mask canvas');
    const context = canvas.getContext('2d');
    const scale = canvas.width / canvas.clientWidth;
    const at = (x, y) => [...context.getImageData((x + 2) * scale, (y + 2) * scale, 1, 1).data];
    const middles = (side, edge) =>
        [...document.querySelectorAll(`#mask .side.${side} span`)]
            .map((span) => [span.textContent, parseFloat(span.style[edge])]);
    const found = middles('rows', 'top').flatMap(([query, y]) =>
        middles('columns', 'left').map(([key, x]) => [query, key, at(x, y)]));
    const colour = (code) =>
        getComputedStyle(document.querySelector(`#mask .code.${code}`)).backgroundColor;
    return [found, { allowed: colour('allowed'), blocked: colour('blocked') }];
}"""


def test_blocks_of_the_mask_have_the_colours_of_their_codes(page):
    fill(page, "failed")
    check_colours(page, {"base 0", "left wrist 0", "text", "state", "actions"})
    box = page.locator("#mask canvas")
    box.press("+")  # about the middle
    assert page.locator("#mask .side.rows span").count() < 5
    check_colours(page, {"text"})
    page.locator("#mask .choice span", has_text="true scale").click()
    check_colours(page, {"base 0", "actions"}, too_small="state")


def check_colours(page, queries, too_small=""):
    """What is drawn at the middle of each pair of blocks in sight is that pair's code."""
    found, legend = page.evaluate(PROBE)
    rgb = {k: [int(x) for x in re.findall(r"\d+", v)[:3]] for k, v in legend.items()}
    blocks = {mask.label(b): b for b in FLOW.blocks}
    assert queries <= {query for query, *_ in found}
    for query, key, colour in found:
        if too_small in (query, key):
            continue
        extent = mask.relation(FLOW, blocks[query], blocks[key])
        if key in ("padding", "right wrist 0"):
            assert colour[:3] not in rgb.values()
        else:
            expected = rgb["allowed" if extent == "all" else "blocked"]
            assert np.abs(np.array(colour[:3]) - expected).max() <= 2, (query, key)


def test_the_mask_zooms_and_shows_its_passes(page):
    fill(page, "plain")
    rows = page.locator("#mask .side.rows span")
    assert rows.all_inner_texts() == [
        "base 0",
        "left wrist 0",
        "right wrist 0",
        "text",
        "generated",
    ]
    page.locator("#mask .check").click()
    assert rows.first.inner_text() == "padding"
    page.locator("#mask .choice span", has_text="suffix pass").click()
    assert rows.all_inner_texts() == ["generated"]
    page.locator("#mask .choice span", has_text="prefix pass").click()
    columns = page.locator("#mask .side.columns span")
    assert "generated" not in columns.all_inner_texts()
    box = page.locator("#mask canvas")
    for _ in range(4):
        box.press("+")
    assert columns.count() < 5
    box.press("0")
    assert columns.count() == 5


def test_attention_shows_where_the_weight_lies(page):
    fill(page, "failed")
    weights, rows, _ = attention.measurement(FLOW, "suffix")
    chosen = np.unique(np.linspace(0, len(rows) - 1, 16).round().astype(int))
    page.locator("#attention input[aria-label=query]").evaluate(
        "s => { s.value = 7; s.dispatchEvent(new Event('input')) }"
    )
    check_attention(page, weights[-1, :, :, chosen[7]].astype(np.float64).mean(axis=(0, 1)))
    page.locator("#attention input[aria-label=step]").evaluate(
        "s => { s.value = 1; s.dispatchEvent(new Event('input')) }"
    )
    head = page.locator("#attention .heads button").nth(1 * weights.shape[2] + 2)
    head.click()  # one small picture of many
    expect(head).to_have_attribute("aria-pressed", "true")
    for name, place in (("layer", "1"), ("head", "2")):
        expect(page.locator(f"#attention input[aria-label={name}]")).to_have_value(place)
    page.get_by_label("shaded by").select_option("weight on text")
    expect(page.locator("#attention .notice").first).to_contain_text("right wrist 0")  # masked
    passes = np.unique(np.linspace(0, 9, 5).round().astype(int))
    row = weights[passes[1], 1, 2, chosen[7]].astype(np.float64)
    check_attention(page, row)
    block = next(block for block in FLOW.blocks if block.name == "text")
    said = head.get_attribute("aria-label").split(": ")[1].removeprefix("< ").split(" ")[0]
    assert abs(float(said) / 100 - row[block.start : block.stop].sum()) < 0.006
    expect(page.locator("#attention .caveat")).to_contain_text("not cause")
    page.locator("#attention .check").click()
    assert page.locator("#attention .masses .pad").count() == 0


def check_attention(page, row):
    """Shares of the blocks and opacity of every patch are those of the weights [C]."""
    shares = page.locator("#attention .masses .number").all_inner_texts()
    for block, text in zip(FLOW.blocks, shares, strict=True):
        shown = float(text.removeprefix("< ").split(" ")[0]) / 100
        assert abs(shown - row[block.start : block.stop].sum()) < 0.006
    for place, name in enumerate(("base_0_rgb", "left_wrist_0_rgb")):
        block = next(b for b in FLOW.blocks if b.name == name)
        alpha = (
            page.locator("#attention .cameras canvas")
            .nth(place)
            .evaluate(
                "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
                ".filter((_, i) => i % 4 === 3)"
            )
        )
        expected = row[block.start : block.stop]
        scale = row[np.r_[0:48]].max()
        np.testing.assert_allclose(np.array(alpha) / 235, expected / scale, atol=0.02)


def test_each_change_of_a_chunk_has_a_strip_of_its_dimensions(page):
    """Without an interval, too; and no change, no strip."""
    fill(page, "plain")
    for info in (FLOW.info, FAST.info):
        rows = page.locator(f"#matters tr[data-family={info.family}]")
        expect(rows).to_have_count(2)
        strips = [row.locator(".dimensions i").count() for row in rows.all()]
        assert strips == [len(info.actions), 0]


def test_markup_in_any_text_stays_text(page):
    fill(page, "hostile")
    for view in ("denoising", "tokens", "mask", "attention", "rollout", "matters"):
        expect(page.locator(f"#{view} .policy strong").first).to_contain_text("<img src=x")
    page.locator("#tokens .token").nth(2).hover()
    page.locator("#mask canvas").focus()
    for key in ("Shift+ArrowRight",) * 3:
        page.locator("#mask canvas").press(key)
    expect(page.locator("#mask .reading")).to_contain_text("{{this}}")
    expect(page.locator("#tokens .failure")).to_contain_text("</script>")
    for part in (".notice", ".verdict", ".failure"):
        expect(page.locator(f"#rollout {part}").first).to_contain_text("</script>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_nothing_is_wider_than_the_page(page):
    for name, title in (("plain", "pi0"), ("hostile", "<img")):
        fill(page, name)
        for heading in page.locator(".policy strong").all():
            expect(heading).to_contain_text(title)
        over = page.evaluate(
            "[document.documentElement, ...document.querySelectorAll('.view')]"
            ".map((box) => box.scrollWidth - box.clientWidth)"
        )
        assert over == [0] * 7, name


def test_panels_without_a_chunk_keep_their_places(browser, tmp_path):
    """Velocities have no state to mark, so that nothing at all is drawn of a chunk that failed."""
    moving = (dataclasses.replace(dim, meaning="velocity") for dim in FAILED.info.actions)
    failed = dataclasses.replace(
        FAILED, info=dataclasses.replace(FAILED.info, actions=tuple(moving))
    )
    actions.figure([failed]).write_html(tmp_path / "figure.html")
    page = browser.new_page()
    page.goto((tmp_path / "figure.html").as_uri())
    titles = page.locator(".annotation-text").filter(has_text="velocity")
    expect(titles).to_have_count(len(failed.info.actions))
    places = {(round(box["x"]), round(box["y"])) for box in map(Locator.bounding_box, titles.all())}
    assert len({x for x, _ in places}) == actions.COLUMNS
    assert len(places) == len(failed.info.actions)
    first, last = page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range")
    assert -5 < first <= 0
    assert failed.info.horizon - 1 <= last < failed.info.horizon + 5
    page.close()
