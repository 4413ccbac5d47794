"""Batching of requests for the pt engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from swift_toolkit.machine.msswift import fetch_through, stop_generating

GATHER_SECONDS = 0.004
"""Seconds without a new request before a batch begins; ms-swift itself waits 5 ms on average."""

GATHER_AT_MOST = 0.05
"""Most seconds that a request waits for others."""


class Batches:
    """Makes ms-swift batch requests that arrive together and skip those whose client has disconnected.

    ms-swift's worker polls every 10 ms and starts with the requests it finds: of 32 requests it may see three, and the
    others wait until those are answered. It would also finish an answer whose client has disconnected.

    Args:
        engine: the engine whose worker moves requests from ``_queue`` to ``_task_pool`` and takes batches from there.
        template: the template with which the engine generates.
    """

    def __init__(self, engine: Any, template: Any) -> None:
        self.came = 0.0  # time of the last request
        self._engine = engine
        self._batch: list[Any] = []
        self._fetch = fetch_through(engine, self._next)
        stop_generating(template, self._begun)

    def _next(self) -> Any:
        waiting = self._engine._queue
        with waiting.not_empty:
            while not self._engine._task_pool and not waiting._qsize():
                waiting.not_empty.wait()
        deadline = time.monotonic() + GATHER_AT_MOST
        while (rest := min(self.came + GATHER_SECONDS, deadline) - time.monotonic()) > 0:
            time.sleep(rest)
        kwargs, queues = self._fetch()
        wanted = [
            (one, queue)
            for one, queue in zip(kwargs["infer_requests"], queues, strict=True)
            if not _gone(one)
        ]
        self._batch = [one for one, _ in wanted]
        return ({**kwargs, "infer_requests": self._batch}, [queue for _, queue in wanted]) if wanted else None

    def _begun(self) -> Callable[[], bool]:
        """For the batch about to be generated: a function that says whether all its clients have disconnected."""
        batch = self._batch
        return lambda: all(map(_gone, batch))


def _gone(infer_request: Any) -> bool:
    return getattr(infer_request, "abandoned", False)
