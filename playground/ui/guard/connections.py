"""Connections that stand still are ended: uvicorn (0.54) waits for the end of a request's head, and
for a client that does not read, without limit."""

import asyncio
from typing import Protocol

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

    class Hurried(protocol):
        loop: asyncio.AbstractEventLoop
        transport: asyncio.Transport
        cycle: _Cycle | None

        _head: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data):
            super().data_received(data)
            self._expect_head()

        def connection_lost(self, exc):
            self._head = _stopped(self._head)
            self._stall = _stopped(self._stall)
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


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
