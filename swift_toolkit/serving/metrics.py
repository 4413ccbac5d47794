"""What the server counts, for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/).

Labels hold names that the server knows, never what a client made up.
"""

from __future__ import annotations

from collections.abc import Callable

from swift_toolkit.serving.api.fields import ENDPOINTS
from swift_toolkit.serving.gateway import Exchange

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
"""Bounds of the latency histograms, in seconds."""


class Metrics:
    """The counters of one server; see `gateway.Observer`.

    Args:
        log: called with every request that asked a model, after it was answered, and with every failure.
    """

    def __init__(self, log: Callable[[Exchange], None]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._log = log
        self._registry = registry = CollectorRegistry()

        def counter(name: str, says: str, labels: list[str]) -> Counter:
            return Counter(f"swift_{name}", says, labels, registry=registry)

        self._requests = counter("requests", "Requests that asked a model.", ["model", "path", "status"])
        self._errors = counter("errors", "Requests that were refused or failed.", ["model", "status"])
        self._prompt = counter("prompt_tokens", "Tokens read.", ["model"])
        self._answer = counter("completion_tokens", "Tokens written.", ["model"])
        self._latency = Histogram(
            "swift_request_seconds",
            "Time to the whole answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "swift_first_token_seconds",
            "Time to the first token of a streamed answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "swift_requests_in_progress", "Requests waiting or being answered.", ["model"], registry=registry
        )
        self._open: set[int] = set()

    def began(self, one: Exchange) -> None:
        """A checked request goes on to the engine."""
        self._open.add(id(one))
        self._queue.labels(one.model).inc()

    def ended(self, one: Exchange) -> None:
        """The response was sent, or the client has disconnected."""
        if id(one) in self._open:
            self._open.remove(id(one))
            self._queue.labels(one.model).dec()
        if one.path not in ENDPOINTS:
            if one.failure:
                self._log(one)
            return
        status = str(one.status or 499)  # as nginx has it: the client has disconnected
        self._requests.labels(one.model, one.path, status).inc()
        if status != "200":
            self._errors.labels(one.model, status).inc()
        else:
            self._prompt.labels(one.model).inc(one.prompt_tokens)
            self._answer.labels(one.model).inc(one.completion_tokens)
            self._latency.labels(one.model).observe(one.seconds)
            if one.first_token is not None:
                self._first.labels(one.model).observe(one.first_token)
        self._log(one)

    def exposition(self) -> tuple[bytes, str]:
        """What /metrics answers, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
