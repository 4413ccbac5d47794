"""How many connections there may be, how many lines about them, and how they end."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from swift_toolkit.serving import access, connections, worker
from swift_toolkit.serving.api.request import ApiRequest, Facts, Limits
from swift_toolkit.serving.connections import LineLimit, connection_limit
from swift_toolkit.serving.gateway import Exchange, Gateway, Policy
from swift_toolkit.serving.metrics import Metrics


def test_lines_that_are_held_back_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = LineLimit(2)
    assert [limit.lets() for _ in range(5)] == [(True, 0), (True, 0), (False, 0), (False, 0), (False, 0)]
    now = 101.0
    assert [limit.lets() for _ in range(2)] == [(True, 3), (True, 0)]
    now = 102.0
    assert limit.lets() == (True, 0)


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(256, 256, 128), (256, 4096, 1000), (150, 150, 22), (64, 64, 8)]
)
def test_connections_leave_descriptors_for_the_engine(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int
) -> None:
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    assert connection_limit() == expected
    assert set_to == [(min(connections.MAX_CONNECTIONS + connections.SPARE_DESCRIPTORS, hard), hard)]


class Endless:
    """Streams for ever."""

    facts = Facts()

    def __init__(self) -> None:
        self.models = {"one": 1}

    async def answer(self, request: ApiRequest, one: Exchange) -> AsyncGenerator[Any, None]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[Any, None]:
        while True:
            yield {"text": "x" * 10000}


def test_a_client_that_does_not_read_does_not_keep_the_server_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("swift_toolkit.serving.gateway.LAST_SEND_SECONDS", 0.1)
    seen: list[Exchange] = []
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "Hi"}], "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"

    async def serve() -> float:
        gateway = Gateway(Endless(), Policy(key=None, limits=Limits()), Metrics(seen.append), {})
        server = worker._http_server(gateway, SimpleNamespace(ssl_certfile=None, ssl_keyfile=None))  # type: ignore[arg-type]
        listening = access.listening_socket("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listening.getsockname())
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            await asyncio.sleep(0.5)
            began = time.monotonic()
            worker._stop(server, gateway, 0)
            await asyncio.wait_for(serving, 20)
            return time.monotonic() - began

    assert asyncio.run(serve()) < 5
    assert [one.cut for one in seen] == [True]
