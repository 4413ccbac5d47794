"""Metrics of the server, for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/).

Labels only contain names that the server knows, never text from a client.
"""

from __future__ import annotations

from collections.abc import Callable

from swift_toolkit.serving.api.fields import ENDPOINTS
from swift_toolkit.serving.gateway import Exchange

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
"""Bucket bounds of the latency histograms, in seconds."""


class Metrics:
    """The metrics of one server; see `gateway.Observer`.

    Args:
        log: called with every failure and, once answered, every request to a model.
    """

    def __init__(self, log: Callable[[Exchange], None]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._log = log
        self._registry = registry = CollectorRegistry()

        def counter(name: str, says: str, labels: list[str]) -> Counter:
            return Counter(f"swift_{name}", says, labels, registry=registry)

        self._requests = counter("requests", "Requests to a model.", ["model", "path", "status"])
        self._errors = counter("errors", "Requests that were refused or failed.", ["model", "status"])
        self._prompt = counter("prompt_tokens", "Prompt tokens.", ["model"])
        self._answer = counter("completion_tokens", "Generated tokens.", ["model"])
        self._latency = Histogram(
            "swift_request_seconds",
            "Time until the answer is complete.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "swift_first_token_seconds",
            "Time until the first token of a streamed answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "swift_requests_in_progress", "Requests waiting or being answered.", ["model"], registry=registry
        )
        self._open: set[int] = set()

    def began(self, one: Exchange) -> None:
        """Called when a checked request is passed to the engine."""
        self._open.add(id(one))
        self._queue.labels(one.model).inc()

    def ended(self, one: Exchange) -> None:
        """Called when the response was sent or the client has disconnected."""
        if id(one) in self._open:
            self._open.remove(id(one))
            self._queue.labels(one.model).dec()
        if one.path not in ENDPOINTS:
            if one.failure:
                self._log(one)
            return
        status = str(one.status or 499)  # nginx's status for a client that has disconnected
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
        """The response of /metrics and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
