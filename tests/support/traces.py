"""Traces made by hand for tests of what draws them: small, but each consistent in itself.

Nothing here is a model's answer; the numbers obey the rules that a model's would (Euler steps,
masks, units), so that a view which breaks one of them shows it.
"""

import dataclasses

import numpy as np

from playground.trace import (
    ALLOWED,
    BLOCKED,
    PADDING,
    Computation,
    DecodedToken,
    Dimension,
    FastTrace,
    FlowTrace,
    Inputs,
    Options,
    PolicyInfo,
    Slot,
    Stats,
    TokenBlock,
    image_digest,
)

_JOINTS = ("waist", "shoulder", "elbow", "forearm roll", "wrist angle", "wrist rotate")
ALOHA = tuple(
    Dimension(f"{side} {name}", "rad" if name != "gripper" else "0 to 1")
    for side in ("left", "right")
    for name in (*_JOINTS, "gripper")
)
DROID = (
    *(Dimension(f"joint {i}", "rad/s", "velocity") for i in range(1, 8)),
    Dimension("gripper", "0 to 1"),
)
SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
MODEL_DIMS = 32
# Markup, both of Gradio's template syntaxes, a right-to-left override and a lone surrogate.
HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}{{this}}</script>\u202e\ud800'


def policy_info(family, dims=ALOHA, *, horizon=50, hz=50.0, title=None, image_size=56):
    stats = Stats(
        mean=tuple(0.1 * i for i in range(len(dims))),
        std=tuple(0.5 + 0.05 * i for i in range(len(dims))),
        q01=tuple(-1.0 + 0.1 * i for i in range(len(dims))),
        q99=tuple(1.0 + 0.15 * i for i in range(len(dims))),
    )
    fast = family == "pi0_fast"
    return PolicyInfo(
        name=f"{family}_test",
        title=title or {"pi0": "pi0", "pi05": "pi0.5", "pi0_fast": "pi0-FAST"}[family],
        family=family,
        badge="untrained weights",
        notice="Random weights: the chunk means nothing.",
        revision="0" * 12,
        robot="ALOHA" if dims is ALOHA else "DROID",
        slots=tuple(
            Slot(slot, slot.split("_0")[0], i == 0, "black" if fast else "masked")
            for i, slot in enumerate(SLOTS)
        ),
        image_size=image_size,
        state=tuple(dataclasses.replace(d, meaning="absolute") for d in dims),
        actions=dims,
        control_hz=hz,
        horizon=horizon,
        max_token_len=48 if not fast else 64,
        normalisation="quantile" if family != "pi0" else "z-score",
        state_stats=stats,
        action_stats=stats,
        model_config={"language": {"depth": 2, "num_heads": 2}},
        computation=Computation("cpu", "float32", "highest"),
    )


def to_robot_units(info, values):
    """Normalised actions [..., D] in the robot's units, by the policy's own norm stats."""
    stats = info.action_stats
    if info.normalisation == "z-score":
        return values * np.array(stats.std) + np.array(stats.mean)
    low, high = np.array(stats.q01), np.array(stats.q99)
    return (values + 1) / 2 * (high - low) + low


def to_model_units(info, values):
    """The inverse of `to_robot_units`."""
    stats = info.action_stats
    if info.normalisation == "z-score":
        return (values - np.array(stats.mean)) / np.array(stats.std)
    low, high = np.array(stats.q01), np.array(stats.q99)
    return (values - low) / (high - low) * 2 - 1


def robot_state(dims):
    """The same state for every policy, in the robot's units."""
    return np.linspace(0.2, 0.9, len(dims))


def camera_image(seed, size=56):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, size)
    image = ramp[:, None, None] * 0.5 + ramp[None, :, None] * np.array([0.5, 0.4, 0.3])
    return (image + rng.normal(0, 6, (size, size, 3))).clip(0, 255).astype(np.uint8)


def smooth_chunks(rng, count, horizon, start):
    """[count, horizon, dims] in the model's units: a few low cosines that leave from `start`."""
    grid = np.cos(np.pi * np.arange(4)[:, None] * (np.arange(horizon) + 0.5) / horizon)
    weights = rng.normal(0, 0.6, (1, 4, len(start))) + rng.normal(0, 0.1, (count, 4, len(start)))
    motion = np.einsum("nkd,kh->nhd", weights / (1 + np.arange(4))[:, None], grid)
    return motion - motion[:, :1] + start


def _inputs(images, modes, prompt, state):
    return Inputs(
        prompt=prompt,
        state=tuple(float(x) for x in state),
        modes=modes,
        image_sha256={slot: image_digest(image) for slot, image in images.items()},
    )


def _words(prompt):
    return [("▁" + word) for word in prompt.split(" ")]


def pi0_trace(
    *,
    family="pi0",
    dims=ALOHA,
    steps=10,
    samples=1,
    horizon=50,
    hz=50.0,
    seed=0,
    prompt="pick up the red cube",
    patches=16,
    text_len=16,
    modes=None,
    title=None,
):
    """A flow policy's trace: x_t walks from noise to a smooth chunk by exact Euler steps."""
    info = policy_info(family, dims, horizon=horizon, hz=hz, title=title)
    rng = np.random.default_rng(seed)
    modes = modes or {SLOTS[0]: "filled", SLOTS[1]: "filled", SLOTS[2]: "masked"}
    images = {s: camera_image(i) for i, s in enumerate(SLOTS) if modes[s] == "filled"}

    target = np.zeros((samples, horizon, MODEL_DIMS))
    state = robot_state(dims)
    target[..., : len(dims)] = smooth_chunks(rng, samples, horizon, to_model_units(info, state))
    x = [rng.normal(size=target.shape).astype(np.float32)]
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    v, estimates = [], []
    for s in range(steps):
        wobble = rng.normal(0, 0.1, target.shape) * times[s] ** 2
        v.append(((x[-1] - target) / max(times[s], 1e-6) + wobble).astype(np.float32))
        estimates.append(x[-1] - times[s] * v[-1])
        x.append(x[-1] + np.float32(times[s + 1] - times[s]) * v[-1])
    real = slice(0, len(dims))

    pieces = ["<bos>", *_words(prompt), "\n"]
    has_state = family == "pi0"
    blocks, texts, start = [], [], 0
    for slot in SLOTS:
        blocks.append(TokenBlock(slot, "image", start, start + patches))
        start += patches
    blocks.append(TokenBlock("text", "text", start, start + len(pieces)))
    blocks.append(TokenBlock("padding", "padding", start + len(pieces), start + text_len))
    start += text_len
    texts = [""] * (3 * patches) + pieces + ["<pad>"] * (text_len - len(pieces))
    if has_state:
        blocks.append(TokenBlock("state", "state", start, start + 1))
        texts.append("state")
        start += 1
    blocks.append(TokenBlock("actions", "actions", start, start + horizon))
    texts += [f"action {i}" for i in range(horizon)]
    group = np.zeros(start + horizon, int)
    group[start:] = 2
    if has_state:
        group[start - 1] = 1
    valid = np.ones(start + horizon, bool)
    for block in blocks:
        hidden = block.kind == "padding" or modes.get(block.name) == "masked"
        valid[block.start : block.stop] = not hidden

    return FlowTrace(
        info=info,
        inputs=_inputs(images, modes, prompt, state),
        options=Options(num_steps=steps, num_samples=samples),
        versions={"jax": "0"},
        images=images,
        text=prompt + "\n",
        token_texts=tuple(texts),
        prompt_tokens=tuple((100 + i, piece) for i, piece in enumerate(pieces)),
        truncated=0,
        blocks=tuple(blocks),
        mask=mask_of(group, valid),
        actions=to_robot_units(info, x[-1][..., real]).astype(np.float32),
        actions_normalised=x[-1][..., real],
        times=times,
        x_t=np.stack(x),
        v_t=np.stack(v),
        estimates=to_robot_units(info, np.stack(estimates)[..., real]).astype(np.float32),
        timings_ms={"preprocess": 1.0, "vision": 5.0, "prefix": 8.0, "denoise": 30.0},
    )


def mask_of(group, valid):
    """Codes [C, C] of the block-causal rule: a group sees itself and earlier ones, valid only."""
    sees = group[:, None] >= group[None, :]
    both = valid[:, None] & valid[None, :]
    return np.where(both, np.where(sees, ALLOWED, BLOCKED), PADDING).astype(np.uint8)


def fast_trace(
    *,
    dims=ALOHA,
    count=24,
    horizon=50,
    hz=50.0,
    seed=1,
    prompt="pick up the red cube",
    patches=16,
    text_len=32,
    failure=None,
    title=None,
    modes=None,
):
    """A FAST trace: right-aligned prefix, `count` tokens, and the chunk after each of them.

    With `failure` the tokens did not decode: no actions, and nothing decoded after half of them.
    """
    info = policy_info("pi0_fast", dims, horizon=horizon, hz=hz, title=title)
    rng = np.random.default_rng(seed)
    modes = modes or {SLOTS[0]: "filled", SLOTS[1]: "filled", SLOTS[2]: "black"}
    images = {s: camera_image(i) for i, s in enumerate(SLOTS) if modes[s] == "filled"}
    state = robot_state(dims)
    target = smooth_chunks(rng, 1, horizon, to_model_units(info, state))[0]

    spectrum = np.fft.rfft(np.concatenate([target, target[::-1]]), axis=0)
    partial = np.full((count, horizon, len(dims)), np.nan, np.float32)
    head = min(3, count)  # "Action: " comes first and decodes to nothing
    for i in range(head, count):
        kept = spectrum.copy()
        kept[(i - head + 1) * 2 if i + 1 < count else len(kept) :] = 0
        chunk = np.fft.irfft(kept, n=2 * horizon, axis=0)[:horizon]
        partial[i] = to_robot_units(info, chunk)
    if failure:
        partial[count // 2 :] = np.nan

    tokens = []
    for i in range(count):
        text = ("Action", ":", "▁")[i] if i < head else ("|" if i + 1 == count else f"<a{i}>")
        probability = float(np.float32(rng.uniform(0.3, 0.98)))
        rest = 1 - probability
        runners_up = tuple(
            (9000 + 10 * i + k, f"<r{i}.{k}>", rest * share) for k, share in enumerate((0.5, 0.2))
        )
        tokens.append(DecodedToken(7000 + i, text, probability, runners_up))

    pieces = ["<bos>", "Task", ":", *_words(prompt), ",", "▁State", ":", "▁128", "▁90", ";", "\n"]
    padding = text_len - len(pieces)
    blocks, start = [TokenBlock("padding", "padding", 0, padding)], padding
    for slot in SLOTS:
        blocks.append(TokenBlock(slot, "image", start, start + patches))
        start += patches
    blocks.append(TokenBlock("text", "text", start, start + len(pieces)))
    start += len(pieces)
    blocks.append(TokenBlock("generated", "generated", start, start + count))
    texts = ["<pad>"] * padding + [""] * (3 * patches) + pieces + [t.text for t in tokens]
    group = np.zeros(start + count, int)
    group[start:] = 1 + np.arange(count)
    valid = np.arange(start + count) >= padding
    for block in blocks:
        if modes.get(block.name) == "masked":
            valid[block.start : block.stop] = False

    actions = to_robot_units(info, target)[None].astype(np.float32)
    return FastTrace(
        info=info,
        inputs=_inputs(images, modes, prompt, state),
        options=Options(max_tokens=count),
        versions={"jax": "0"},
        images=images,
        text=f"Task: {prompt}, State: 128 90;\n",
        token_texts=tuple(texts),
        prompt_tokens=tuple((100 + i, piece) for i, piece in enumerate(pieces)),
        truncated=0,
        blocks=tuple(blocks),
        mask=mask_of(group, valid),
        actions=None if failure else actions,
        actions_normalised=None if failure else target[None].astype(np.float32),
        tokens=tuple(tokens),
        partial_actions=partial,
        decode_failure=failure,
        timings_ms={"preprocess": 1.0, "vision": 5.0, "prefix": 8.0, "decode": 60.0},
    )


def with_attention(trace, *, layers=3, heads=4, seed=5):
    """The trace with softmax weights of random logits under its own mask."""
    rng = np.random.default_rng(seed)
    columns = trace.mask.shape[1]

    def weights(rows, passes):
        shape = (passes, layers, heads, len(rows), columns)
        centre = rng.uniform(-3, 3, shape[:-1])[..., None]
        logits = rng.normal(0, 1, shape) - (np.linspace(-3, 3, columns) - centre) ** 2
        logits = np.where(trace.mask[rows] == ALLOWED, logits, -1e9)  # like a masked softmax
        found = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (found / found.sum(axis=-1, keepdims=True)).astype(np.float16)

    kinds = ("state", "actions", "generated")
    split = min(block.start for block in trace.blocks if block.kind in kinds)
    if isinstance(trace, FastTrace):
        suffix = np.moveaxis(weights(np.arange(split, columns), 1)[0], 2, 0)[:, :, :, None]
        # The cache of the decoding loop is longer than what was written.
        suffix = np.pad(suffix, [(0, 0)] * 4 + [(0, 5)])
    else:
        suffix = weights(np.arange(split, columns), len(trace.times) - 1)
    prefix = weights(np.arange(split), 1)[0]
    return dataclasses.replace(trace, attention={"suffix": suffix, "prefix": prefix})


def hostile(trace):
    """The same run with markup wherever a text can come from outside."""
    info = dataclasses.replace(trace.info, title=HOSTILE, badge=HOSTILE, notice=HOSTILE)
    dims = (Dimension(HOSTILE, HOSTILE), *info.actions[1:])
    changed = dataclasses.replace(
        trace,
        info=dataclasses.replace(info, actions=dims),
        token_texts=tuple(HOSTILE if text else "" for text in trace.token_texts),
    )
    if not isinstance(trace, FastTrace):
        return changed
    return dataclasses.replace(
        changed,
        tokens=tuple(
            DecodedToken(t.id, HOSTILE, t.probability, ((1, HOSTILE, 0.1),)) for t in trace.tokens
        ),
        decode_failure=HOSTILE if trace.actions is None else None,
    )
