"""Connections that stand still are ended: uvicorn (0.54) waits for the end of a request's head, and
for a client that does not read, without limit. One address has so many of them, for each takes one
of the files that a process may have open."""

import asyncio
import os
import resource
from typing import Protocol

from playground.ui.guard import visitors
from playground.ui.guard.present import Present

MAX_CONNECTIONS = 256  # of one address; a browser takes up to six, and the page's streams 64
HEAD_S = 20.0  # from a connection's begin, or a request's first byte, to the end of its head
STALL_S = 60.0  # that what was sent may lie unread


class _Cycle(Protocol):
    """A request and its response."""

    response_complete: bool


def hurried(
    protocol: type[asyncio.Protocol], head_s: float = HEAD_S, stall_s: float = STALL_S
) -> type[asyncio.Protocol]:
    """One of uvicorn's HTTP protocols with these limits, for `http_protocol_class` of its Config.
    It need not be uvicorn's own, but has its `loop`, `transport` and `cycle`."""

    connected = Present()

    class Hurried(protocol):
        loop: asyncio.AbstractEventLoop
        transport: asyncio.Transport
        cycle: _Cycle | None

        _head: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None
        _address = ""

        def connection_made(self, transport):
            super().connection_made(transport)
            self._expect_head()
            self._address = _address(transport)
            connected.come(self._address)
            if self._address and connected[self._address] > _most():
                self.transport.abort()

        def data_received(self, data):
            super().data_received(data)
            self._expect_head()

        def connection_lost(self, exc):
            self._head = _stopped(self._head)
            self._stall = _stopped(self._stall)
            connected.leave(self._address)
            super().connection_lost(exc)

        def pause_writing(self):
            super().pause_writing()
            self._stall = self.loop.call_later(stall_s, self.transport.abort)

        def resume_writing(self):
            self._stall = _stopped(self._stall)
            super().resume_writing()

        def _expect_head(self):
            """Between requests, before the next one's first byte, uvicorn has a limit itself."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._head = _stopped(self._head)
            elif self._head is None:
                self._head = self.loop.call_later(head_s, self.transport.abort)

    return Hurried


def _address(transport: asyncio.BaseTransport) -> str:
    """Of who is connected; "" for a proxy, whose connections are those of many."""
    if os.environ.get("FORWARDED_ALLOW_IPS"):
        return ""
    peer = transport.get_extra_info("peername")
    return visitors.address(peer[0] if isinstance(peer, tuple) else None)


def _most() -> int:
    """Others have three quarters of the files that may be open."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
