"""pi0 and pi0.5 against recorded runs of openpi, stage by stage.

Stages run operation by operation, as they were recorded; whole chunks run compiled. Tolerances are
those that the goldens' README gives for float32 and bfloat16.
"""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import gemma, masks, pi0
from models.gemma import AdaRMSNorm, Pair, RMSNorm
from models.pi0 import Pi0Programs
from models.siglip import Siglip
from tests.support.golden_models import case, close, model, near, same

pytestmark = pytest.mark.usefixtures("goldens")

FAMILIES = ["pi0", "pi05"]
FLOAT32 = ["b1_all", "b2_rightmasked", "b1_basemasked", "b2_leftmasked", "b2_h50"]
BFLOAT16 = ["b2_bf16", "b2_bf16_params"]
V_T = {"pi0": 1e-4, "pi05": 5e-4}
ACTIONS_STORED_EMBEDDING = {"pi0": 5e-5, "pi05": 2e-4}
ACTIONS = {"pi0": 2e-3, "pi05": 2e-2}
# Relative, RMS: twice what one machine was off by.
BFLOAT16_LAYERS = (0.024, 0.038, 0.052)
BFLOAT16_ACTIONS = {"pi0": 0.022, "pi05": 0.06}

each_family = pytest.mark.parametrize("family", FAMILIES)
each_case = pytest.mark.parametrize("name", FLOAT32)


@functools.cache
def programs(family, name):
    return Pi0Programs(case(family, name).model())


@contextlib.contextmanager
def stored_embedding(values):
    """Puts openpi's recorded values in place of the badly conditioned time embedding."""
    values = jnp.asarray(values)

    def embedding(t, width):
        assert values.shape[-1] == width
        return jnp.broadcast_to(values, (t.shape[0], width))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pi0, "time_embedding", embedding)
        yield


def test_siglip_trace(goldens):
    trace = np.load(goldens / "pi0" / "siglip_trace.npz")
    image = trace["image"].astype(np.float32) / 255 * 2 - 1
    tokens, inner = model("pi0").vision(image)
    close(inner["stem"].reshape(1, 16, 16, 48), trace["stem"], 3e-5)
    close(inner["embedded"], trace["with_posemb"], 3e-5)
    names = {"attention": "sa", "after_attention": "+sa", "mlp": "mlp", "after_mlp": "+mlp"}
    for i, block in enumerate(inner["blocks"]):
        for ours, theirs in names.items():
            close(block[ours], trace[f"block{i:02}/{theirs}"], 3e-5)
    close(inner["encoded"], trace["encoded"], 3e-5)
    close(tokens, trace["logits"], 3e-5)


@pytest.mark.parametrize(("width", "tolerance"), [(32, 2e-4), (1024, 3e-4)])
def test_time_embedding(goldens, width, tolerance):
    stored = np.load(goldens / "posemb_sincos.npz")
    close(pi0.time_embedding(stored["times"], width), stored[f"posemb_{width}"], tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms(goldens, dtype):
    """Inputs down to 1e-4 in size, where a misplaced epsilon shows."""
    from flax import nnx

    stored = np.load(goldens / "norms.npz")
    # One step of bfloat16 at size 4; a rounding may fall the other way.
    suffix, tolerance = ("", 2e-6) if dtype == "float32" else ("_bf16", 2**-6)
    x = jnp.asarray(stored["x"], dtype)
    rms = RMSNorm(16)
    rms.scale[...] = jnp.asarray(stored["scale"])
    close(rms(x).x, stored["rmsnorm" + suffix], tolerance)
    ada = AdaRMSNorm(16, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    ada.modulation = nnx.Linear(8, 48, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    ada.modulation.kernel[...] = jnp.asarray(stored["kernel"])
    ada.modulation.bias[...] = jnp.asarray(stored["dense_bias"])
    y, gate = ada(x, jnp.asarray(stored["cond"]))
    close(y, stored["adarms" + suffix], tolerance)
    close(jnp.broadcast_to(gate, x.shape), stored["adarms_gate" + suffix], tolerance)
    layer = nnx.LayerNorm(16, epsilon=1e-6, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    layer.scale[...] = 1 + jnp.asarray(stored["scale"])
    layer.bias[...] = jnp.asarray(stored["bias"])
    close(layer(x), stored["layernorm" + suffix], tolerance)


@each_family
@each_case
def test_prefix(family, name):
    record = case(family, name)
    embedded = record.model().embed_prefix(record.observation())
    if "prefix_tokens" in record:
        close(embedded.tokens, record["prefix_tokens"], 3e-5)
    same(embedded.input_mask, record["prefix_input_mask"])
    same(embedded.ar_mask, record["prefix_ar_mask"])
    same(masks.positions(embedded.input_mask), record["prefix_positions"])
    mask = masks.block_causal(embedded.input_mask, embedded.ar_mask)
    if "prefix_attn_mask" in record:
        same(mask, record["prefix_attn_mask"])
    if "prefix_k" in record:
        prefix, _ = record.model().prefill(record.observation())
        close(jnp.stack(prefix.cache.k), record["prefix_k"], 1e-4)
        close(jnp.stack(prefix.cache.v), record["prefix_v"], 1e-4)


@each_family
@each_case
def test_every_euler_step(family, name):
    """Suffix tokens, condition, masks, positions, and v_t from openpi's own x_t."""
    record = case(family, name)
    net, observation = record.model(), record.observation()
    prefix, _ = net.prefill(observation)
    same(pi0.step_times(10), record["steps_time_carry"])

    @jax.jit
    def step(x_t, time, embedding):
        with stored_embedding(embedding):
            suffix, condition = net.embed_suffix(observation, x_t, jnp.full(x_t.shape[:1], time))
            return suffix.tokens, condition, net.velocity(prefix, observation, x_t, time)[0]

    for i, (x_t, time) in enumerate(zip(record["steps_x_t"], record["steps_time"], strict=True)):
        tokens, condition, v_t = step(x_t, time, record["steps_time_emb"][i])
        close(tokens, record["steps_suffix_tokens"][i], 5e-5)
        if family == "pi05":
            close(condition, record["steps_adarms_cond"][i], 5e-5)
        close(v_t, record["steps_v_t"][i], V_T[family])

    suffix, _ = net.embed_suffix(observation, record["noise"], jnp.ones(len(record["noise"])))
    same(suffix.input_mask, record["suffix_input_mask"])
    same(suffix.ar_mask, record["suffix_ar_mask"])
    same(
        masks.suffix_mask(prefix.input_mask, suffix.input_mask, suffix.ar_mask),
        record["steps_attn_mask"],
    )
    valid = jnp.sum(prefix.input_mask, axis=1)[:, None]
    same(valid + masks.positions(suffix.input_mask), record["steps_positions"])


@each_family
def test_suffix_tokens_at_other_times(family):
    record = case(family, "b1_all")
    net, observation = record.model(), record.observation()
    for i, time in enumerate(record["probe_times"]):
        suffix, condition = net.embed_suffix(observation, record["noise"], jnp.full((1,), time))
        close(suffix.tokens, record["probe_suffix_tokens"][i], 5e-4)
        if family == "pi05":
            close(condition, record["probe_adarms_cond"][i], 5e-4)


@each_family
@each_case
def test_chunk(family, name):
    record = case(family, name)
    run, observation = programs(family, name), record.observation()
    actions = run.sample_actions(observation, record["noise"], num_steps=10)
    close(actions, record["actions_10"], ACTIONS[family])
    if "actions_5" in record:
        actions = run.sample_actions(observation, record["noise"], num_steps=5)
        close(actions, record["actions_5"], ACTIONS[family])


@each_family
@pytest.mark.parametrize("name", ["b1_all", "b2_rightmasked", "b1_basemasked"])
def test_chunk_with_stored_time_embedding(family, name, monkeypatch):
    """The sharp one: with the time embedding out of the way, ten steps agree to rounding."""
    record = case(family, name)
    net, observation = record.model(), record.observation()
    times, embeddings = jnp.asarray(record["steps_time"]), jnp.asarray(record["steps_time_emb"])

    def embedding(t, width):
        step = jnp.argmin(jnp.abs(times - t[0]))
        return jnp.broadcast_to(embeddings[step], (t.shape[0], width))

    monkeypatch.setattr(pi0, "time_embedding", embedding)
    prefix, _ = net.prefill(observation)
    actions = jax.jit(lambda noise: net.denoise_all(prefix, observation, noise, 10).x_t[-1])
    close(actions(record["noise"]), record["actions_10_eager"], ACTIONS_STORED_EMBEDDING[family])


@each_family
def test_noise_from_a_key_is_openpis(family):
    record = case(family, "b1_all")
    noise = jax.random.normal(jax.random.key(int(record["sample_seed"])), record["noise"].shape)
    close(noise, record["sample_seed_noise"], 1e-6)
    actions = programs(family, "b1_all").sample_actions(record.observation(), noise, num_steps=2)
    close(actions, record["actions_seeded_eager"], ACTIONS[family])


@each_family
@each_case
def test_loss(family, name):
    """Compiled once for each family, else operation by operation."""
    record = case(family, name)
    net, observation = record.model(), record.observation()
    key = jax.random.key(int(record["loss_seed"]))
    compute = jax.jit(net.compute_loss) if name == "b1_all" else net.compute_loss
    close(compute(key, observation, record["actions"]), record["loss"], ACTIONS[family])
    if "loss_time_emb" not in record:
        return
    close(pi0.time_embedding(record["loss_time"], 32), record["loss_time_emb"], 2e-4)
    with stored_embedding(record["loss_time_emb"]):
        drawn = net.compute_loss(key, observation, record["actions"])
        noise, time = record["loss_noise"], record["loss_time"]
        given = net.compute_loss(jax.random.key(0), observation, record["actions"], noise, time)
    close(drawn, record["loss_eager"], ACTIONS_STORED_EMBEDDING[family])
    close(given, record["loss_eager"], ACTIONS_STORED_EMBEDDING[family])


@each_family
@pytest.mark.parametrize("name", ["b1_all", "b2_rightmasked"])
def test_one_pass_and_its_attention(family, name):
    record = case(family, name)
    net, observation = record.model(), record.observation()
    with stored_embedding(record["loss_time_emb"]):
        v_t, outputs, attention = net.forward(observation, record["loss_x_t"], record["loss_time"])
    close(v_t, record["loss_v_t"], V_T[family])
    close(outputs.suffix, record["loss_suffix_out"], V_T[family])
    rows = record["loss_prefix_out_rows"]
    close(outputs.prefix[:, rows], record["loss_prefix_out"], 5e-5)
    prefix = net.embed_prefix(observation)
    suffix, _ = net.embed_suffix(observation, record["loss_x_t"], record["loss_time"])
    valid = jnp.concatenate([prefix.input_mask, suffix.input_mask], axis=1)
    same(masks.positions(valid), record["loss_positions"])
    mask = masks.block_causal(valid, np.concatenate([prefix.ar_mask, suffix.ar_mask]))
    same(mask, record["full_attn_mask"])
    check_attention(attention, record, mask)


def check_attention(attention, record, mask):
    """Listed rows, what every key receives, and the entropy of every row with an allowed key."""
    weights = np.stack([np.asarray(layer) for layer in attention])  # [layers, B, N, T, T]
    close(weights[:, :, :, record["probs_rows"]], record["probs"], 5e-5)
    alive = np.asarray(mask).any(axis=-1)[None, :, None, :, None]
    close((weights * alive).sum(axis=-2), record["probs_received"], 2e-3)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    close(-(weights * logs * alive).sum(axis=-1), record["probs_entropy"], 5e-4)


@each_family
@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16(family, name):
    record = case(family, name)
    observation = record.observation()
    run = programs(family, name)
    if "prefix_tokens" in record:
        near(record.model().embed_prefix(observation).tokens, record["prefix_tokens"], 0.02)
    if "prefix_k" in record:
        check_keys_and_values(run.prefill(observation), record)
    for steps in (10, 5):
        actions = run.sample_actions(observation, record["noise"], num_steps=steps)
        near(actions, record[f"actions_{steps}"], BFLOAT16_ACTIONS[family])
    key = jax.random.key(int(record["loss_seed"]))
    loss = jax.jit(record.model().compute_loss)(key, observation, record["actions"])
    near(loss, record["loss"], 0.02)


def check_keys_and_values(prefix, record):
    """Of valid tokens, layer by layer: what is rounded differently in SigLIP adds up from 0.011 in
    the first layer to 0.026 in the third."""
    valid = np.asarray(prefix.input_mask)
    for ours, theirs in (("k", "prefix_k"), ("v", "prefix_v")):
        layers = zip(getattr(prefix.cache, ours), record[theirs], BFLOAT16_LAYERS, strict=True)
        for layer, wanted, bound in layers:
            near(layer[valid], wanted[valid], bound)


@each_family
def test_a_swapped_head_is_noticed_in_bfloat16(family, monkeypatch):
    record = case(family, "b2_bf16")
    whole = gemma.attention_weights

    def swapped(q, k, mask):
        return whole(q[:, :, [1, 0, *range(2, q.shape[2])]], k, mask)

    monkeypatch.setattr(gemma, "attention_weights", swapped)
    prefix = Pi0Programs(record.model()).prefill(record.observation())
    with pytest.raises(AssertionError, match="of its size"):
        check_keys_and_values(prefix, record)


@pytest.mark.parametrize("family", ["pi0", "pi0_fast"])
def test_what_attention_is_given_and_gives_in_bfloat16(family):
    """PARITY: FAST's query stays in float32, pi0's is rounded. Scores and softmax are float32."""
    net = case(family, "b2_bf16").model()
    rng, layers = np.random.default_rng(0), []

    class Watched:
        def attend(self, layer, q, k, v, mask):
            layers.append((q, k))
            return gemma.attend(q, k, v, mask)

    tokens = jnp.asarray(rng.standard_normal((2, 12, net.config.language.width)))
    mask = jnp.asarray(rng.random((2, 12, 12)) < 0.7) | jnp.eye(12, dtype=bool)
    net.gemma(Pair(prefix=tokens), jnp.tile(jnp.arange(12), (2, 1)), mask, cache=Watched())
    assert len(layers) == net.config.language.depth
    for q, k in layers:
        rounded = q.astype(jnp.bfloat16).astype(jnp.float32)
        assert bool((rounded != q).any()) == (family == "pi0_fast")
        assert k.dtype == jnp.bfloat16
        check_weights(q, k, mask)
        check_weights(40 * q, k, mask)


def check_weights(q, k, mask):
    """Against NumPy in float64: nothing is rounded but the weights themselves, to bfloat16, which
    is 0.0012 of their size in the mean (evenly up to 2^-9)."""
    scores = np.einsum("btnh,bskh->bnts", *(np.asarray(x, np.float64) for x in (q, k)))
    scores = np.where(np.asarray(mask)[:, None], scores, -np.inf)
    wanted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    wanted /= wanted.sum(axis=-1, keepdims=True)
    near(gemma.attention_weights(q, k, mask), wanted, 0.0016)


@pytest.mark.parametrize("early", ["query", "scores"])
def test_an_early_rounding_is_noticed(early, monkeypatch):
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(2 * rng.standard_normal((2, 12, 4, 16)), jnp.float32) for _ in "qk")
    k, mask = k[:, :, :1].astype(jnp.bfloat16), jnp.ones((2, 12, 12), bool)
    check_weights(q, k, mask)
    if early == "query":
        whole = gemma.attention_weights
        rounding = lambda q, k, mask: whole(q.astype(jnp.bfloat16), k, mask)  # noqa: E731
        monkeypatch.setattr(gemma, "attention_weights", rounding)
    else:
        whole = jax.nn.softmax
        rounding = lambda x, axis: whole(x.astype(jnp.bfloat16), axis=axis)  # noqa: E731
        monkeypatch.setattr(jax.nn, "softmax", rounding)
    with pytest.raises(AssertionError, match="of its size"):
        check_weights(q, k, mask)


@each_family
def test_bfloat16_keeps_the_heads_wide(family):
    """The suffix is float32 until it enters the transformer; the cache is bfloat16."""
    record = case(family, "b2_bf16")
    net, observation = record.model(), record.observation()
    suffix, _ = net.embed_suffix(observation, record["noise"], jnp.ones(2))
    assert suffix.tokens.dtype == jnp.float32
    prefix = programs(family, "b2_bf16").prefill(observation)
    assert {k.dtype for k in prefix.cache.k} == {jnp.dtype("bfloat16")}


@each_family
def test_stepwise_equals_whole_loop(family):
    """pi0.5 to the goldens' tolerance of float32: two compiled programs of it were 2.6e-5 apart on
    one processor, below 1e-5 on another."""
    tolerance = {"pi0": 1e-5, "pi05": V_T["pi05"]}[family]
    record = case(family, "b2_rightmasked")
    run, observation = programs(family, "b2_rightmasked"), record.observation()
    whole = run.sample_trajectory(observation, record["noise"], num_steps=4)
    prefix = run.prefill(observation)
    measured = []
    for attention, at_once in itertools.product((False, True), (False, True)):
        how = {"attention": attention, "at_once": at_once}
        parts = list(run.denoise(prefix, observation, record["noise"], 4, **how))
        assert [part.num_steps for part in parts] == ([4] if at_once else [1] * 4)
        x_t = np.concatenate([part.x_t[:-1] for part in parts] + [parts[-1].x_t[-1:]])
        close(x_t, whole.x_t, tolerance)
        close(np.concatenate([part.v_t for part in parts]), whole.v_t, tolerance)
        close(np.concatenate([part.times[:-1] for part in parts]), whole.times[:-1], 0)
        if attention:
            layers = [
                np.concatenate(steps) for steps in zip(*(p.attention for p in parts), strict=True)
            ]
            weights = np.stack(layers)
            shape = prefix_suffix_rows(family), 768 + weights_text(family)
            assert weights.shape == (3, 4, 2, 4, *shape)
            close(weights.sum(axis=-1), np.ones(weights.shape[:-1]), 1e-5)
            measured.append(weights)
    close(*measured, 1e-5)
    chunk = run.sample_actions(observation, record["noise"], num_steps=4)
    close(chunk, x_t[-1], tolerance)


def prefix_suffix_rows(family):
    return 11 if family == "pi0" else 10


def weights_text(family):
    return 48 + 11 if family == "pi0" else 200 + 10


def test_experts_named_apart():
    """A prefix pass gives no suffix output, and the other way round."""
    record = case("pi0", "b1_all")
    net = record.model()
    prefix = net.embed_prefix(record.observation())
    outputs, _, _ = net.gemma(
        Pair(prefix=prefix.tokens),
        masks.positions(prefix.input_mask),
        masks.block_causal(prefix.input_mask, prefix.ar_mask),
    )
    assert outputs.suffix is None
    assert outputs.prefix.shape == prefix.tokens.shape


def test_siglip_takes_a_batch_apart():
    """Images do not mix."""
    vision: Siglip = model("pi0").vision
    images = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    both = vision(images)[0]
    close(vision(images[:1])[0], both[:1], 1e-5)
