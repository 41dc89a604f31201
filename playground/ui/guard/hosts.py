"""Under which names the page is served, and to whose pages it answers.

A website elsewhere can have its own name resolve to this machine, and so speak to a page that is
meant for one person: hence only names that the server was started for. An address in place of a
name cannot be made to resolve.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from playground.ui.guard.refused import Refused

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PORTS = {"http": 80, "https": 443}
# A name or an address, perhaps a port, and nothing that could be read as either.
_HOST = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)


class Hosts:
    """The names of a server that listens at `host`.

    also: further names that lead here, through a proxy for example. A Space's own name is known.
    """

    def __init__(self, host: str, also: Iterable[str] = ()):
        listens = _name(host)
        self._any_address = listens in ("0.0.0.0", "::")
        self._named = {_name(name) for name in (*also, os.environ.get("SPACE_HOST", "")) if name}
        self._names = {*self._named, *_LOOPBACK, listens}
        if self._any_address:
            self._names.add(socket.gethostname().lower())

    def check(self, headers: Headers, changes: bool) -> None:
        """changes: whether the request changes anything. Raises Refused for a name that does not
        belong to the server, and for a change that another website's page asks for."""
        forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip()
        reached = [headers.get("host", ""), *([forwarded] if forwarded else [])]
        for host in reached:
            if not (_HOST.fullmatch(host) and self._is_own(_name(host))):
                raise Refused(
                    403, f"Not served as {host!r:.60}; --allow-host NAME at the start allows it."
                )
        origin = headers.get("origin")
        if changes and origin is not None and not self._is_origin_own(origin, reached):
            raise Refused(403, f"Pages of {origin!r:.60} may ask for nothing here.")

    def _is_own(self, name: str) -> bool:
        return name in self._names or (self._any_address and _is_address(name))

    def _is_origin_own(self, origin: str, reached: Iterable[str]) -> bool:
        """Another port of the same machine is another website."""
        if _name(origin) in self._named:
            return True
        try:
            parts = urlsplit(origin)
            port = parts.port or _PORTS.get(parts.scheme)
            own = [urlsplit(f"//{host}") for host in reached]
            return any(
                _name(origin) == _name(host.netloc) and port == (host.port or _PORTS[parts.scheme])
                for host in own
            )
        except (KeyError, ValueError):
            return False


def _name(host: str) -> str:
    """The name in a Host, an Origin or an address to listen on; "" if there is none."""
    if _is_address(host):
        return host.lower()
    try:
        parts = urlsplit(host if "//" in host else f"//{host}")
        return (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
