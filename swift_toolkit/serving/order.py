"""The order sent to the serving process, and the reports it sends back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from swift_toolkit.machine.process import Reporter
from swift_toolkit.serving.api.request import Limits
from swift_toolkit.serving.models import ServedModel


@dataclass(frozen=True, kw_only=True)
class ServingOrder:
    """Everything the serving process needs, sent over its stdin, including the key.

    Args:
        arguments: argument list for ms-swift's DeployArguments.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        host: address to listen on.
        port: port to listen on, 0 for any free port.
        ssl_certfile: certificate file, None for plain HTTP.
        ssl_keyfile: private key of the certificate.
        models: the served models, the base or whole model first.
        system: the system prompt of the settings.
        limits: limits of one request.
        max_batch_size: most requests that pt answers together; None to find out.
        default_tokens: longest answer to a request without a limit, in tokens; None for the server's limit.
        key: the API key, None for no key.
        log_requests: write prompts and answers to the log.
        allow_runtime_lora: load and unload adapters while serving.
        adapter_dirs: directories below which these adapters must be.
        hosts: host names under which clients reach the server.
        origins: origins whose web pages may send requests.
        media_folder: directory for the files of running requests.
        chat: serve the chat page.
        drain_seconds: seconds that running answers have to finish at shutdown.
    """

    arguments: tuple[str, ...]
    backend: str
    host: str
    port: int
    ssl_certfile: str | None
    ssl_keyfile: str | None
    models: tuple[ServedModel, ...]
    system: str | None
    limits: Limits
    max_batch_size: int | None
    default_tokens: int | None
    key: str | None
    log_requests: bool
    allow_runtime_lora: bool
    adapter_dirs: tuple[str, ...]
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    media_folder: str
    chat: bool
    drain_seconds: int

    @classmethod
    def read(cls, line: str) -> ServingOrder:
        """Parse an order from a line of JSON.

        Raises:
            ValueError: the line is not an order.
        """
        import msgspec

        return msgspec.convert(json.loads(line), cls)


@dataclass(frozen=True)
class ServerImporting:
    """The process is importing ms-swift."""


@dataclass(frozen=True)
class ServerLoading:
    """The process is loading the model."""


@dataclass(frozen=True)
class ServerReady:
    """The server accepts requests.

    Args:
        port: port it listens on.
        pid: process id.
        max_batch_size: most requests that pt answers together; None for other backends.
    """

    port: int
    pid: int
    max_batch_size: int | None


@dataclass(frozen=True)
class ServerStopped:
    """The server has shut down on request; ``cut`` answers were cut off."""

    cut: int


@dataclass(frozen=True)
class ServerFailed:
    """The process ends because of an error."""

    type: str
    message: str


ServerReport: TypeAlias = ServerImporting | ServerLoading | ServerReady | ServerStopped | ServerFailed

_REPORTS: dict[str, type[ServerReport]] = {
    "importing": ServerImporting,
    "loading": ServerLoading,
    "ready": ServerReady,
    "stopped": ServerStopped,
    "failed": ServerFailed,
}
_EVENTS = {kind: event for event, kind in _REPORTS.items()}


def send_report(reporter: Reporter, report: ServerReport) -> None:
    """Send a report in the form that `read_report` reads."""
    reporter(_EVENTS[type(report)], **asdict(report))


def read_report(event: Mapping[str, object]) -> ServerReport:
    """Parse a report of the serving process.

    Raises:
        ValueError: the event is not a report.
    """
    import msgspec

    fields = {name: value for name, value in event.items() if name != "event"}
    return msgspec.convert(fields, _REPORTS[str(event["event"])])
