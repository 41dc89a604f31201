"""What one model received: pictures at its own size, the exact text, the tokens, the recipe."""

import dataclasses

from playground.trace import Trace, is_constrained
from playground.ui import appearance
from playground.views import theme

# gr.HTML(value, **COMPONENT) with value None or `payload(trace)`.
COMPONENT = appearance.component("cameras.js", "received.js")


def payload(trace: Trace) -> dict[str, object]:
    """Plain JSON for `received.js`."""
    info, inputs, options = trace.info, trace.inputs, trace.options
    kind = (
        {
            "temperature": f"{options.temperature:g}",
            "most tokens": str(options.max_tokens),
            "decoding": "constrained" if is_constrained(info, options) else "free",
        }
        if info.family == "pi0_fast"
        else {"steps": str(options.num_steps), "samples": str(options.num_samples)}
    )
    run = {
        "policy": f"{info.name}, revision {info.revision}",
        **kind,
        "seed": str(options.seed),
        **{f"sha256 of {slot}": digest for slot, digest in inputs.image_sha256.items()},
        "computed": ", ".join(filter(None, dataclasses.astuple(info.computation))),
        "versions": ", ".join(f"{name} {version}" for name, version in trace.versions.items()),
    }
    return {
        "policy": theme.identity(info),
        "cameras": [
            {"name": slot, "mode": inputs.modes[slot], "url": theme.picture(image)["url"]}
            for slot, image in trace.images.items()
        ],
        "pictures": f"{info.image_size} x {info.image_size} pixels each, scaled to fit and padded "
        "with black. Masked: no token attends to it. Black: attended to as a black picture.",
        "text": theme.plain(trace.text),
        "tokens": [[i, theme.plain(text)] for i, text in trace.prompt_tokens],
        "truncated": trace.truncated,
        "limit": info.max_token_len,
        "recipe": [[name, theme.plain(text)] for name, text in run.items()],
    }
