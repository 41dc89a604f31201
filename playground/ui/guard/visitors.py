"""Whose share a request counts against.

That is the address it comes from: uvicorn takes the one that a proxy on this machine passes on, and
those of the proxies that FORWARDED_ALLOW_IPS names. Where addresses tell nobody apart, behind an
unnamed tunnel on this machine or on a Space, it is the session.
"""

import ipaddress
import os

import gradio as gr
from gradio.context import LocalContext

_NETWORK = 64  # bits of an IPv6 address that one household or machine has to itself


def address(host: str | None) -> str:
    """What of a peer's address tells visitors apart; "" where it does not."""
    if host is None or (os.environ.get("SPACE_HOST") and not os.environ.get("FORWARDED_ALLOW_IPS")):
        return ""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:  # a socket's path
        return ""
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_loopback:
        return ""
    if found.version == 6:
        return str(ipaddress.ip_network((found, _NETWORK), strict=False))
    return str(found)


def of(request: gr.Request | None) -> str:
    """The visitor that a handler was called by; "" for the page's own work."""
    if request is None:
        return ""
    client = request.client
    return address(client.host if client else None) or str(request.session_hash or "")


def current() -> str:
    """The visitor that the running handler was called by."""
    return of(LocalContext.request.get(None))
