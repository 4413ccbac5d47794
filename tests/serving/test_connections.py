"""How many connections there may be, and how many lines about them."""

from __future__ import annotations

import resource
import time

import pytest

from swift_toolkit.serving import connections
from swift_toolkit.serving.connections import LineLimit, connection_limit


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
