"""Limits of client connections: their number and their timeouts."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

HEADER_SECONDS = 20.0
"""Seconds for the head of a request to arrive, counted from the connection or the previous request."""

IDLE_SECONDS = 5
"""Seconds that a connection may be idle between two requests."""

MAX_CONNECTIONS = 1000
"""Most concurrent connections, if the system allows that many file descriptors."""

SPARE_DESCRIPTORS = 128
"""File descriptors reserved for files, pipes and the engine."""


def connection_limit() -> int:
    """Raise the limit of file descriptors as far as the system allows; return the most concurrent connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, soft - SPARE_DESCRIPTORS))


def protocol(limit: int) -> type[Any]:
    """uvicorn's HTTP protocol with a limit of connections and a timeout for the head of a request.

    Args:
        limit: most concurrent connections; any further connection is closed.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Limited(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limit:
                transport.write(_FULL_ANSWER)
                transport.close()
                return
            self._wait()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            cycle = self.cycle
            super().on_response_complete()
            if self.cycle is cycle:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop_waiting()
            self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Limited


_BODY = (
    b'{"error": {"message": "Too many connections.", "type": "server_error", "param": null, "code": null}}'
)
_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"retry-after: 5\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class LineLimit:
    """Limits the lines per second and counts those that are dropped.

    Args:
        per_second: lines.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second, self._lines, self._held = 0, 0, 0

    def lets(self) -> tuple[bool, int]:
        """Whether a line may be written now, and how many were dropped before it."""
        second = int(time.monotonic())
        if second != self._second:
            held, self._held = self._held, 0
            self._second, self._lines = second, 1
            return True, held
        self._lines += 1
        if self._lines <= self._per_second:
            return True, 0
        self._held += 1
        return False, 0
