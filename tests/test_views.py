"""Views draw what the trace holds, nothing else: values, failures, words, sizes, escaping."""

import base64
import dataclasses
import json
import re

import numpy as np
import plotly.io
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from playground.tabletop import camera
from playground.trace import DecodedToken, Dimension
from playground.views import actions, attention, denoising, mask, overview, theme, tokens
from tests.support import traces

FAILURE = "expected 700 coefficients, found 655"


def as_json(payload):
    """The payload after the journey to the browser; NaN and lone surrogates do not survive it."""
    return json.loads(json.dumps(payload, allow_nan=False, ensure_ascii=False).encode("utf-8"))


def lines(figure, name):
    """Drawn lines of a policy, without the legend's empty entries."""
    return [t for t in figure.data if t.mode == "lines" and t.name == name and len(t.x) > 1]


def texts(figure):
    return [a.text for a in figure.layout.annotations]


# --- theme --------------------------------------------------------------------------------------


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=4), elements=st.floats(width=32)))
def test_small_arrays_travel_exactly(values):
    np.testing.assert_array_equal(theme.unpacked(as_json(theme.packed(values))), values)


@pytest.mark.parametrize("missing", [False, True])
def test_large_arrays_travel_within_a_fraction_of_each_dimensions_range(missing):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(40, 50, 14)) * 10.0 ** np.arange(-4, 10)).astype(np.float32)
    values[..., 3] = 7.5
    if missing:
        values[3:5] = np.nan
        values[..., 5] = np.nan
    field = as_json(theme.packed(values))
    found = theme.unpacked(field)
    assert len(field["data"]) < values.nbytes  # base64 of four bytes would be more
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    known = ~np.isnan(values).all(axis=(0, 1))
    span = np.nanmax(values[..., known], axis=(0, 1)) - np.nanmin(values[..., known], axis=(0, 1))
    off = np.nanmax(np.abs(found - values)[..., known], axis=(0, 1))
    assert (off <= span / 131_068 * 1.01 + 1e-6).all()
    assert (found[..., 3][~np.isnan(found[..., 3])] == 7.5).all()


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_hues_read_on_light_and_dark():
    for family, hue in theme.HUES.items():
        dark = theme.DARK_HUES[family]
        for colour, ground in ((hue, "#ffffff"), (hue, "#27272a"), (dark, "#27272a")):
            high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, (family, colour, ground)


@pytest.mark.parametrize("view", [denoising, tokens, mask, attention])
def test_nothing_in_a_component_is_read_as_a_template(view):
    """Gradio runs html through Handlebars and a template literal before it uses it."""
    assert not re.search(r"\$\{|\{\{|`|\\", view.COMPONENT["html_template"])


# --- actions ------------------------------------------------------------------------------------


def test_every_dimension_of_both_policies_is_drawn_as_it_is():
    flow, fast = traces.pi0_trace(samples=3), traces.fast_trace()
    figure = actions.figure([flow, fast])
    drawn = lines(figure, "pi0")
    assert len(drawn) == 14 * 3
    for d in range(14):
        three = np.array([np.asarray(line.y) for line in drawn[3 * d : 3 * d + 3]])
        np.testing.assert_array_equal(three[::-1], flow.actions[:, :, d])
        widths = [line.line.width for line in drawn[3 * d : 3 * d + 3]]
        assert widths[2] > widths[0] == widths[1]  # sample 0 is thick and on top
    for d, line in enumerate(lines(figure, "pi0-FAST")):
        np.testing.assert_array_equal(line.y, fast.actions[0, :, d])
        assert line.yaxis == drawn[3 * d].yaxis  # same unit and rate: one axis
        np.testing.assert_allclose(line.customdata, np.arange(50) / 50)
    assert any("left waist" in text and "rad" in text for text in texts(figure))


@pytest.mark.parametrize("how", [{}, {"normalised": True}, {"execute": 20}])
def test_the_page_s_plot_is_the_figure(how):
    """Without the look at each property, which the figure passes."""
    both = [traces.pi0_trace(samples=2), traces.fast_trace(failure=FAILURE)]
    drawn = plotly.io.from_json(actions.figure_json(both, **how))
    expected = actions.figure(both, **how)
    assert drawn.layout == expected.layout
    for one, other in zip(drawn.data, expected.data, strict=True):
        for values in ("x", "y", "customdata"):
            single = [np.array(part[values], np.float32) for part in (one, other)]
            np.testing.assert_array_equal(*single)
            one[values] = other[values] = None
        assert one == other


def test_policies_share_an_axis_only_where_unit_and_rate_agree():
    flow = traces.pi0_trace()
    slower = traces.fast_trace(hz=20.0)
    assert len(actions.panels([flow, traces.fast_trace()])) == 14
    assert len(actions.panels([flow, slower])) == 28
    degrees = dataclasses.replace(flow.info.actions[0], unit="deg")
    info = dataclasses.replace(flow.info, actions=(degrees, *flow.info.actions[1:]))
    other = dataclasses.replace(flow, info=info)
    assert len(actions.panels([flow, other])) == 15
    # z-score against quantile values: never on one axis
    assert len(actions.panels([flow, traces.fast_trace()], normalised=True)) == 28
    rates = [text for text in texts(actions.figure([flow, slower])) if "steps a second" in text]
    assert len(rates) == 28


def test_normalised_values_are_the_models():
    flow = traces.pi0_trace()
    for d, line in enumerate(lines(actions.figure([flow], normalised=True), "pi0")):
        np.testing.assert_array_equal(line.y, flow.actions_normalised[0, :, d])


def test_a_failed_decode_draws_nothing_and_says_why():
    flow, failed = traces.pi0_trace(), traces.fast_trace(failure=FAILURE)
    figure = actions.figure([flow, failed])
    assert actions.height([flow, failed]) == figure.layout.height
    assert not lines(figure, "pi0-FAST")
    assert len(lines(figure, "pi0")) == 14
    assert any("decoding failed" in text and FAILURE in text for text in texts(figure))
    assert any("did not decode" in str(t.name) for t in figure.data)
    assert FAILURE in actions.describe([flow, failed])
    alone = actions.figure([failed])
    assert not lines(alone, "pi0-FAST")
    assert any(FAILURE in text for text in texts(alone))


def test_pictures_of_the_figure_carry_badge_and_notice():
    flow, fast = traces.pi0_trace(), traces.fast_trace()
    figure = actions.figure([flow, fast])
    for trace in (flow, fast):
        entry = f"{trace.info.title} · {trace.info.badge}"
        assert entry in {t.name for t in figure.data if t.showlegend is not False}
        words = [text.replace("<br>", " ") for text in texts(figure)]
        of_it = [text for text in words if f"{trace.info.badge}: {trace.info.notice}" in text]
        assert len(of_it) == 1  # once for all of which it holds
        assert trace.info.title in of_it[0]
    assert figure.layout.height == actions.height([flow, fast]) > 0
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_the_figure_says_of_a_foreign_picture_that_it_is_one():
    def said(trace):
        return " ".join(texts(actions.figure([trace]))).replace("<br>", " ")

    trace = traces.pi0_trace()
    assert camera.FOREIGN not in said(trace)
    assert camera.FOREIGN not in said(dataclasses.replace(trace, on_table=True))
    assert camera.FOREIGN in said(dataclasses.replace(trace, on_table=False))


def test_the_state_is_marked_at_step_0_in_robot_units_only():
    flow, fast = traces.pi0_trace(), traces.fast_trace()
    rings = [t for t in actions.figure([flow, fast]).data if t.name == "state now" and t.x[0] == 0]
    assert [ring.y[0] for ring in rings] == list(flow.inputs.state)  # equal states once
    normalised = actions.figure([flow], normalised=True)
    assert not [t for t in normalised.data if t.name == "state now"]
    velocities = actions.figure([traces.pi0_trace(dims=traces.DROID)])
    marked = [t for t in velocities.data if t.name == "state now" and t.x[0] == 0]
    assert len(marked) == 1  # the gripper; a velocity has no state to start from


def test_the_executed_part_is_shaded_in_every_panel():
    figure = actions.figure([traces.pi0_trace()], execute=20)
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(0, 20)] * 14
    for execute in (0, 51):
        with pytest.raises(ValueError, match="1 to 50"):
            actions.figure([traces.pi0_trace()], execute=execute)
    with pytest.raises(ValueError, match="at least one trace"):
        actions.figure([])


def test_no_text_from_outside_is_markup_in_a_figure():
    info = dataclasses.replace(
        traces.fast_trace().info,
        title=traces.HOSTILE,
        badge=traces.HOSTILE,
        notice=traces.HOSTILE,
        actions=(Dimension(traces.HOSTILE, traces.HOSTILE), *traces.ALOHA[1:]),
    )
    trace = dataclasses.replace(traces.fast_trace(failure=traces.HOSTILE), info=info)
    figure = actions.figure([trace, traces.pi0_trace()], execute=3)
    figure.to_json().encode("utf-8")
    shown = [*texts(figure), *(str(t.name) for t in figure.data)]
    shown += [str(t.hovertemplate) for t in figure.data]
    for text in shown:
        assert set(re.findall(r"</?(\w+)", text)) <= {"b", "br", "extra"}


# --- denoising ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 8])
def test_the_player_is_sent_what_the_trace_holds(samples):
    trace = traces.pi0_trace(samples=samples)
    sent = as_json(denoising.payload(trace))
    exact = samples == 1
    for name, values in (
        ("x", trace.x_t[..., :14]),
        ("v", trace.v_t[..., :14]),
        ("robot", np.concatenate([trace.estimates, trace.actions[None]])),
    ):
        span = np.ptp(values.reshape(-1, 14), axis=0)
        tolerance = 0 if exact else span / 131_000 + 1e-6
        assert (np.abs(theme.unpacked(sent[name]) - values) <= tolerance).all()
    assert sent["times"] == [float(t) for t in trace.times]
    assert [d["name"] for d in sent["dims"]] == [d.name for d in trace.info.actions]
    assert len(json.dumps(sent)) < (300_000 if exact else 700_000)


def test_the_player_refuses_tokens_and_the_rail_refuses_flows():
    with pytest.raises(ValueError, match=r"tokens\.payload"):
        denoising.payload(traces.fast_trace())
    with pytest.raises(ValueError, match=r"denoising\.payload"):
        tokens.payload(traces.pi0_trace())


def test_describing_says_when_the_estimate_settles():
    trace = traces.pi0_trace()
    still = dataclasses.replace(trace, estimates=np.broadcast_to(trace.actions, (10, 1, 50, 14)))
    assert "From step 0 on" in denoising.describe(still)
    moving = np.array(still.estimates)
    moving[6] += 100
    assert "From step 7 on" in denoising.describe(dataclasses.replace(trace, estimates=moving))
    moving[9] += 100
    assert "up to the last step" in denoising.describe(dataclasses.replace(trace, estimates=moving))


def test_describing_names_the_dimension_that_seeds_disagree_on():
    trace = traces.pi0_trace(samples=4)
    apart = trace.actions[:1] + np.zeros((4, 1, 1), np.float32)
    apart[..., 5] += np.arange(4)[:, None]
    text = denoising.describe(dataclasses.replace(trace, actions=apart))
    assert "left wrist rotate differs most" in text


# --- tokens -------------------------------------------------------------------------------------


def test_the_rail_is_sent_every_token_and_every_partial_chunk():
    trace = traces.fast_trace()
    sent = as_json(tokens.payload(trace))
    for token, shown in zip(trace.tokens, sent["tokens"], strict=True):
        assert (token.id, token.text, token.probability) == (shown["id"], shown["text"], shown["p"])
        assert [list(other) for other in token.runners_up] == shown["others"]
    partial = theme.unpacked(sent["partial"])
    np.testing.assert_array_equal(np.isnan(partial), np.isnan(trace.partial_actions))
    np.testing.assert_allclose(partial, trace.partial_actions, atol=1e-3)
    np.testing.assert_array_equal(theme.unpacked(sent["actions"]), trace.actions[0])
    assert sent["failure"] is None


def test_a_failed_decode_keeps_its_tokens_and_its_reason():
    trace = traces.fast_trace(failure=FAILURE)
    sent = as_json(tokens.payload(trace))
    assert sent["actions"] is None
    assert sent["failure"] == FAILURE
    assert len(sent["tokens"]) == 24
    assert FAILURE in tokens.describe(trace)


def test_describing_names_the_least_sure_token():
    trace = traces.fast_trace()
    unsure = DecodedToken(5, "<unsure>", 0.01, ())
    changed = dataclasses.replace(trace, tokens=(*trace.tokens[:7], unsure, *trace.tokens[8:]))
    assert "token 8, '<unsure>', at 1%" in tokens.describe(changed)


def test_tokens_that_were_not_the_likeliest_are_marked_and_told():
    trace = traces.fast_trace()
    assert all(token["likeliest"] for token in as_json(tokens.payload(trace))["tokens"])
    assert "passed over" not in tokens.describe(trace)
    forced = DecodedToken(5, "<forced>", 0.2, ((6, "<other>", 0.7),))
    changed = dataclasses.replace(trace, tokens=(*trace.tokens[:7], forced, *trace.tokens[8:]))
    likeliest = [token["likeliest"] for token in as_json(tokens.payload(changed))["tokens"]]
    assert [i for i, first in enumerate(likeliest) if not first] == [7]
    assert "At 1 of them the draw passed over" in tokens.describe(changed)
    constrained = dataclasses.replace(changed.options, constrained=True)
    text = tokens.describe(dataclasses.replace(changed, options=constrained))
    assert "At 1 of them constrained decoding passed over" in text


def test_256_tokens_stay_light():
    assert len(json.dumps(tokens.payload(traces.fast_trace(count=256)))) < 700_000


# --- attention ----------------------------------------------------------------------------------


def overlay_of(sent):
    shape = (*sent["peak"]["shape"], -1)
    codes = np.frombuffer(base64.b64decode(sent["overlay"]), np.uint8).reshape(shape)
    return codes / 255 * theme.unpacked(sent["peak"])[..., None]


@pytest.mark.parametrize("which", ["suffix", "prefix"])
@pytest.mark.parametrize("build", [traces.pi0_trace, traces.fast_trace])
def test_overlay_and_mass_are_the_measured_weights(build, which):
    trace = traces.with_attention(build())
    sent = as_json(attention.payload(trace, which))
    measured, rows, times = attention.measurement(trace, which)
    keep = np.unique(np.linspace(0, len(rows) - 1, min(16, len(rows))).round().astype(int))
    when = np.unique(np.linspace(0, len(measured) - 1, min(5, len(measured))).round().astype(int))
    weights = measured[when][:, :, :, keep].astype(np.float32)
    cameras = [np.arange(b.start, b.stop) for b in trace.blocks if b.kind == "image"]
    overlay = weights[..., np.concatenate(cameras)]
    assert (np.abs(overlay_of(sent) - overlay) <= overlay.max(-1, keepdims=True) / 509).all()
    mass = theme.unpacked(sent["mass"])
    for i, block in enumerate(trace.blocks):
        whole = weights[..., block.start : block.stop].sum(axis=-1)
        np.testing.assert_allclose(mass[..., i], whole, atol=1e-4)
    np.testing.assert_allclose(mass.sum(axis=-1), 1, atol=0.01)
    bits = scipy.stats.entropy(weights.astype(np.float64), base=2, axis=-1)
    np.testing.assert_allclose(theme.unpacked(sent["entropy"]), bits, atol=0.05)
    assert len(sent["passes"]) == (len(when) if len(times) else 0)
    first = {"pi0": "state", "pi0_fast": "generated 0"}[trace.info.family]
    assert sent["queries"][0][0] == (first if which == "suffix" else "text 0")
    assert [camera["note"] for camera in sent["cameras"]][:2] == ["", ""]


def test_queries_are_the_rows_they_are_named_after():
    trace = traces.with_attention(traces.fast_trace())
    measured, rows, _ = attention.measurement(trace, "suffix")
    assert [trace.token_texts[row] for row in rows] == [token.text for token in trace.tokens]
    # each generated token sees itself and nothing after it
    for q, row in enumerate(rows):
        assert (measured[..., q, row + 1 :] == 0).all()
        assert (measured[..., q, row] > 0).any()


def test_large_measurements_are_thinned_and_say_so():
    rng = np.random.default_rng(0)
    weights = rng.random((10, 18, 8, 51, 20)).astype(np.float16)
    thin, passes, queries = attention.reduced(weights, columns=768)
    assert thin[..., :1].size * 768 <= attention.MAX_CELLS
    assert thin.shape[1] == 18
    mean = weights[passes][:, :, :, queries].astype(np.float32).mean(axis=2, keepdims=True)
    np.testing.assert_allclose(thin, mean, rtol=1e-5)
    assert {passes[0], passes[-1], queries[0], queries[-1]} == {0, 9, 50}


def test_attention_is_never_sold_as_cause():
    trace = traces.with_attention(traces.pi0_trace())
    assert "not cause" in attention.payload(trace)["caveat"]
    assert "not cause" in attention.describe(trace)


def test_attention_refuses_what_was_not_measured():
    trace = traces.with_attention(traces.pi0_trace())
    with pytest.raises(ValueError, match="attention=True"):
        attention.payload(dataclasses.replace(trace, attention={}))
    narrow = {"suffix": trace.attention["suffix"][..., :20]}
    with pytest.raises(ValueError, match="at least"):
        attention.payload(dataclasses.replace(trace, attention=narrow))


# --- every payload ------------------------------------------------------------------------------


def test_any_text_reaches_the_browser_as_valid_json():
    flow = traces.hostile(traces.with_attention(traces.pi0_trace()))
    failed = traces.hostile(traces.with_attention(traces.fast_trace(failure="x")))
    for payload in (
        denoising.payload(flow),
        tokens.payload(failed),
        mask.payload(flow),
        mask.payload(failed),
        attention.payload(flow),
        attention.payload(failed),
    ):
        assert as_json(payload)["policy"]["title"] == traces.HOSTILE.replace("\ud800", "?")
    for text in (*mask.compare(flow, failed), actions.describe([flow, failed])):
        text.encode("utf-8")


def test_of_a_run_each_row_is_sent_once():
    """Gradio sends the end alone of a text that begins as the one before."""
    found = {"pi0": traces.pi0_trace(), "fast": traces.fast_trace()}
    run = overview.Rows(lambda trace: {})
    first = run.add({"pi0": found["pi0"]}, pending=["fast"])
    text = run.add(found, {"pi0": {"received": "x"}}, key="k")
    assert text == run.text
    assert text.startswith(first)
    early, late = map(json.loads, text.splitlines())
    assert early["run_id"] == late["run_id"]
    assert late["key"] == "k"
    assert early["policies"]["pi0"]["flow"]
    assert early["policies"]["fast"] is None
    assert late["policies"]["pi0"] == {"received": "x"}  # of a row that is known, what is new
    assert late["policies"]["fast"]["fast"]
    assert [*early["policies"]] == [*late["policies"]] == ["pi0", "fast"]
