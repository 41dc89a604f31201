"""A run's figures in one HTML file that needs nothing else: no server, no network."""

import html
import json
from collections.abc import Sequence

from playground.trace import FastTrace, FlowTrace, Trace
from playground.views import actions, attention, denoising, mask, paths, theme, tokens

_TITLE = "A run of the pi0 playground"
# What the components expect of the page around them, in Gradio's words.
_STYLE = """
:root { --body-text-color: #1B2027; --background-fill-primary: #FFFFFF;
  --input-background-fill: #FFFFFF; --radius-lg: 8px; --font: ui-sans-serif, system-ui, sans-serif;
  --font-mono: ui-monospace, Menlo, Consolas, monospace; }
body { max-width: 1100px; margin: 32px auto; padding: 0 16px; color: var(--body-text-color);
  background: #FFFFFF; font: 15px/1.5 var(--font); }
h1 { font-size: 24px; } h2 { font-size: 18px; margin: 40px 0 12px; }
section { margin: 0 0 32px; }
"""
# Gradio's side of a component: an element, its props, and nothing that ever changes them.
_MOUNT = "((element, props, watch, trigger) => {\n%s\n})(%s, {value: %s}, () => {}, () => {});"


def page(traces: Sequence[Trace]) -> str:
    """The chunk, how it came about, the mask and, where measured, attention, of every policy."""
    flow = [trace for trace in traces if isinstance(trace, FlowTrace)]
    fast = [trace for trace in traces if isinstance(trace, FastTrace)]
    parts = [
        ("Path", paths, [paths.payload(t) for t in traces]),
        ("Denoising", denoising, [denoising.payload(t, paths.denoising(t)) for t in flow]),
        ("Tokens", tokens, [tokens.payload(t, paths.tokens(t)) for t in fast]),
        ("Attention mask", mask, [mask.payload(t) for t in traces]),
        ("Attention", attention, [attention.payload(t) for t in traces if t.attention]),
    ]
    plot = actions.figure(traces).to_html(full_html=False, include_plotlyjs=True)
    body = [f"<h2>Actions</h2><p>{_safe(actions.describe(traces))}</p>{plot}"]
    for title, view, shown in parts:
        found = [payload for payload in shown if payload is not None]
        if found:
            body.append(f"<h2>{title}</h2>")
        body += [
            _component(f"{title}-{place}".replace(" ", "-"), view, payload)
            for place, payload in enumerate(found)
        ]
    notes = "".join(
        f"<li><b>{_safe(t.info.title)}</b> ({_safe(t.info.badge)}, {_safe(t.info.name)}, revision "
        f"{_safe(t.info.revision)}): {_safe(t.info.notice)}</li>"
        for t in traces
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_TITLE}</title>'
        f"<style>{theme.COLOURS_CSS}{_STYLE}{theme.VIEWS_CSS}</style></head>"
        f"<body><h1>{_TITLE}</h1><p>Prompt: “{_safe(traces[0].inputs.prompt)}”</p>"
        f"<ul>{notes}</ul>{''.join(body)}</body></html>"
    )


def _component(name: str, view, payload: dict) -> str:
    value = json.dumps(payload).replace("<", "\\u003c")  # no end of the script
    code = _MOUNT % (view.COMPONENT["js_on_load"], f'document.getElementById("{name}")', value)
    template = view.COMPONENT["html_template"]
    return f'<section id="{name}">{template}</section><script>{code}</script>'


def _safe(text: str) -> str:
    return html.escape(theme.plain(text))
