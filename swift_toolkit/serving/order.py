"""The order that goes to the process that serves, and what that reports."""

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
    """All that the serving process needs to know; sent over its stdin, the key included.

    Args:
        arguments: for ms-swift's DeployArguments.
        backend: ``pt``, ``vllm``, ``sglang`` or ``lmdeploy``.
        host: address to listen on.
        port: port to listen on, 0 for any that is free.
        ssl_certfile: certificate, None for plain HTTP.
        ssl_keyfile: its key.
        models: the names that are served, the base or whole model first.
        system: the system prompt that the settings ask for.
        limits: of one request.
        max_batch_size: requests that pt answers together; None to find out.
        default_tokens: longest answer where a request names none; None for the limit.
        key: the API key, None without one.
        log_requests: write prompts and answers to the log.
        allow_runtime_lora: load and unload adapters while serving.
        adapter_dirs: directories that these adapters come from.
        hosts: names under which the server is reached.
        origins: web pages of these origins may ask.
        media_folder: directory for the files of running requests.
        chat: serve the chat page.
        drain_seconds: time for running answers at the end, in seconds.
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
        """The order in a line of JSON.

        Raises:
            ValueError: it is not an order.
        """
        import msgspec

        return msgspec.convert(json.loads(line), cls)


@dataclass(frozen=True)
class Importing:
    """The process is importing ms-swift."""


@dataclass(frozen=True)
class Loading:
    """It is loading the model."""


@dataclass(frozen=True)
class Ready:
    """It answers.

    Args:
        port: it listens on.
        pid: of the process.
        max_batch_size: requests that pt answers together; None for other backends.
    """

    port: int
    pid: int
    max_batch_size: int | None


@dataclass(frozen=True)
class Stopped:
    """It has shut down as asked; ``cut`` answers were not finished."""

    cut: int


@dataclass(frozen=True)
class Failed:
    """It ends because of an error."""

    type: str
    message: str


Report: TypeAlias = Importing | Loading | Ready | Stopped | Failed

_REPORTS: dict[str, type[Report]] = {
    one.__name__.lower(): one for one in (Importing, Loading, Ready, Stopped, Failed)
}


def send_report(reporter: Reporter, report: Report) -> None:
    """Send what `read_report` reads."""
    reporter(type(report).__name__.lower(), **asdict(report))


def read_report(event: Mapping[str, object]) -> Report:
    """What the serving process reports.

    Raises:
        ValueError: it is not a report.
    """
    import msgspec

    fields = {name: value for name, value in event.items() if name != "event"}
    return msgspec.convert(fields, _REPORTS[str(event["event"])])
