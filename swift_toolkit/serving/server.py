"""Starts, awaits and stops the serving process, and keeps its record."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from swift_toolkit.console import screen
from swift_toolkit.machine import device, files
from swift_toolkit.machine.failure import engine_error
from swift_toolkit.machine.msswift import trust
from swift_toolkit.machine.process import Child
from swift_toolkit.model.gguf import opened
from swift_toolkit.model.merge import merged
from swift_toolkit.problems import RunError, first_line
from swift_toolkit.runs import directory
from swift_toolkit.serving.access import KEY_VARIABLE
from swift_toolkit.serving.order import (
    ServerFailed,
    ServerLoading,
    ServerReady,
    ServerReport,
    ServerStopped,
    read_report,
)
from swift_toolkit.serving.plan import Deployment

GRACE_SECONDS = 5.0
"""Seconds that the process may take to end after the last answer."""


class Server:
    """One server; `start` it, `wait` for it, `stop` it.

    Args:
        deployment: the plan of the server.

    ``cut`` is the number of answers that the shutdown cut off, known once the server has stopped.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.url = deployment.url()
        self.ready: ServerReady | None = None
        self.cut = 0
        self.directory = Path(deployment.options.output_dir).expanduser()
        self.log = self.directory / "serve.log"
        self._started = 0.0
        self._over = False
        self._stack = ExitStack()
        self._child: Child
        self._reports: Iterator[ServerReport | None]

    def start(self) -> None:
        """Load the model and wait until the server accepts requests; show the progress on stderr.

        Raises:
            RunError: the server cannot be started; see ``log``.
        """
        self._started = time.time()
        try:
            self.directory = directory.claim_run_directory(self.directory).absolute()
        except OSError as error:
            raise RunError(
                f"cannot create the run directory {self.directory}: {error.strerror or error}"
            ) from None
        self.log = self.directory / "serve.log"
        try:
            with screen.StartingLine() as line:
                self._start(self._stack.enter_context(self._model(line)))
                self._wait_until_ready(line)
        except BaseException as error:
            self._end(error)
            raise

    def _model(self, line: screen.StartingLine) -> AbstractContextManager[str | Path | None]:
        """The model to load, merged first if needed."""
        if self.deployment.merge != "no":
            line.note("merging the adapter into its base")
            return merged(replace(self.deployment, log=self.log))
        path = self.deployment.models[0].path
        return opened(path, self.log)

    def _start(self, model: str | Path | None) -> None:
        command = [sys.executable, "-m", "swift_toolkit.serving.worker"]
        echo = sys.stderr if self.deployment.options.verbose else None
        trusted = any(one.trusted for one in self.deployment.checkpoints)
        environment = {**device.environment(self.deployment.device), **trust(trusted)}
        self._child = Child(command, self.log, environment, echo=echo, listens=True, without=(KEY_VARIABLE,))
        self._stack.enter_context(self._child)
        media = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-toolkit-"))
        self._child.send(asdict(self.deployment.order(str(model), media)))
        self._reports = _reports(self._child)

    def _wait_until_ready(self, line: screen.StartingLine) -> None:
        for report in self._reports:
            if isinstance(report, ServerReady):
                self.ready = report
                self.url = self.deployment.url(report.port)
                self._record("serving")
                return
            if isinstance(report, ServerFailed):
                raise self._failure(report)
            if report is not None:
                line.note("loading the model" if isinstance(report, ServerLoading) else "importing ms-swift")
        raise self._failure(None)

    def wait(self) -> None:
        """Wait until the server has been stopped.

        Raises:
            RunError: the server ended unexpectedly.
        """
        last = None
        for report in self._reports:
            last = report or last
        self._note_end(last)

    def stop(self) -> None:
        """Stop accepting requests, let running answers finish for up to ``drain_seconds``, and end the server.

        Raises:
            RunError: the server had ended unexpectedly, or did not end; running answers were lost.
        """
        if self.ready is None or self._over:
            self._end(None)
            return
        self._child.process.send_signal(signal.SIGTERM)
        patience = self.deployment.options.drain_seconds + GRACE_SECONDS
        deadline = time.monotonic() + patience
        last = None
        for report in _reports(self._child):  # the iterator in `wait` ended with the interrupt
            last = report or last
            if time.monotonic() > deadline:
                break
        self._note_end(last, patience)

    def _note_end(self, last: ServerReport | None, patience: float = 0.0) -> None:
        """Record the last report of the process; kill the process if it still runs after ``patience`` seconds.

        Raises:
            RunError: the process did not report that it stopped.
        """
        if isinstance(last, ServerStopped):
            self.cut = last.cut
            self._end(None)
            return
        error = self._stuck(patience) if self._child.process.poll() is None else self._failure(last)
        self._end(error)
        raise error

    def _stuck(self, seconds: float) -> RunError:
        what = f"The server did not end within {seconds:g} s and was killed; running answers were lost."
        return RunError(f"{what} Full log: {self.log}")

    def kill(self) -> None:
        """Kill the server."""
        self._child.end(patience=0)
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        self._stack.close()
        if self.log.is_file():
            self._record("failed" if isinstance(error, RunError) else "ended", str(error) if error else None)

    def _failure(self, last: ServerReport | None) -> RunError:
        """The error of a server that does not run, from the last report of its process."""
        where = f"Full log: {self.log}"
        what = "The server could not be started" if self.ready is None else "The server has ended"
        if isinstance(last, ServerFailed):
            cause = engine_error(self.log) or f"{last.type}: {first_line(last.message)}"
            return RunError(f"{what}: {cause.rstrip('.')}. {where}")
        status = self._child.process.wait()
        if status == -signal.SIGKILL:
            return RunError(f"{what}: it was killed, most likely because memory ran out. {where}")
        return RunError(f"{what}: its process ended with status {status}. {where}")

    def _record(self, status: str, error: str | None = None) -> None:
        content = {
            "status": status,
            "error": error,
            "cut_answers": self.cut,
            "seconds": round(time.time() - self._started, 2),
            "max_batch_size": self.ready.max_batch_size if self.ready else None,
            **self.deployment.as_dict(),
            "url": self.url,
        }
        files.write_json(self.directory / "result.json", content)


def _reports(child: Child) -> Iterator[ServerReport | None]:
    """Yield the reports of the serving process until it ends; None while there are none."""
    for event in child.events():
        yield None if event is None else read_report(event)
