"""A child process that reports its progress and cannot outlive its starter.

The starter creates a named pipe, passes its path in the environment and reads JSON lines from it. The child opens the
pipe with ``Reporter``. When the starter ends for any reason, the pipe loses its reader; a thread in the child notices
this at once and ends the whole process group. Processes that the child spawns with multiprocessing watch the child in
the same way, see `spawned`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from swift_toolkit.machine.scratch import ScratchFolder

PIPE_VARIABLE = "SWIFT_TOOLKIT_REPORT"
"""Environment variable with the path of the pipe, for the child."""

FAREWELL_SECONDS = 0.25
"""The kernel closes the files of a killed starter one after the other, so the child may see the end of its input this
long before the end of the pipe."""

LAUNCHER_FILES = "PET_LOG_DIR"
"""Environment variable of torch.distributed.run: where it makes a folder for each run, which it does not remove."""

KILL_AFTER_SECONDS = 10.0
"""How long a process group may take to end before it is killed."""


ChildReport = dict[str, Any]
"""A child's report, one line of JSON: its ``event`` and details."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled like Ctrl-C, but with exit status 143."""


def interrupt_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does. Only for a main thread that owns the process."""

    def raise_terminated(signum: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)


class Child:
    """A running command in a process group of its own.

    Use it as a context manager: when the block ends, no process of the group is left running.

    Args:
        command: the argument list.
        log: file to which the command's output is appended; its directory is created.
        environment: variables added to this process's own.
        echo: also write the command's output to stdout.
        listens: the command reads what ``send`` writes; otherwise its stdin is empty.
        without: variables of this process that the command does not inherit.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        echo: IO[str] | None = None,
        listens: bool = False,
        without: Collection[str] = (),
    ) -> None:
        self._directory = ScratchFolder()
        pipe = self._directory.path / "report"
        os.mkfifo(pipe, 0o600)
        # Read-write, so that opening does not wait for the child and the child's exit does not end the file.
        self._reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._readable = select.poll()  # select() takes no file descriptor above 1,023
        self._readable.register(self._reader, select.POLLIN)
        self._pending = b""
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if echo else output,
                    stderr=subprocess.STDOUT,
                    env={
                        LAUNCHER_FILES: str(self._directory.path),
                        **{name: value for name, value in os.environ.items() if name not in without},
                        **(environment or {}),
                        **_import_path(),
                        PIPE_VARIABLE: str(pipe),
                    },
                    start_new_session=True,  # Ctrl-C reaches only the starter, which decides
                )
        except BaseException:  # after Ctrl-C the command may run already; it ends when the pipe is closed
            self._close()
            raise
        self._echo = self._start_echo(log, echo) if echo else None

    def _close(self) -> None:
        os.close(self._reader)
        self._directory.cleanup()

    def _start_echo(self, log: Path, echo: IO[str]) -> threading.Thread:
        def copy() -> None:
            assert self.process.stdout is not None
            with log.open("ab", buffering=0) as output:
                while block := os.read(self.process.stdout.fileno(), 65536):
                    output.write(block)
                    echo.write(block.decode("utf-8", "replace"))
                    echo.flush()

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        return thread

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(0 if kind else KILL_AFTER_SECONDS)
        self._close()

    def send(self, message: Mapping[str, object]) -> None:
        """Write one JSON object as a line to the command's stdin.

        Raises:
            BrokenPipeError: the command no longer reads its input.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
        self.process.stdin.flush()

    def events(self, tick: float = 0.2) -> Iterator[ChildReport | None]:
        """The child's reports, until it ends; yields None at least every ``tick`` seconds."""
        while True:
            ended = self.process.poll() is not None
            yield from self._read()
            if ended:
                return
            self._readable.poll(tick * 1000)
            yield None

    def _read(self) -> Iterator[ChildReport]:
        while True:
            try:
                block = os.read(self._reader, 65536)
            except BlockingIOError:
                return
            *lines, self._pending = (self._pending + block).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def signal(self, number: int) -> None:
        """Send a signal to every process of the group; it is not an error if the group is gone."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def end(self, patience: float = KILL_AFTER_SECONDS) -> int:
        """End the whole group: SIGTERM, and SIGKILL after ``patience`` seconds. Returns the command's exit status."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self._group_lives():
            self.process.poll()
            time.sleep(0.02)
        self.signal(signal.SIGKILL)
        status = self.process.wait()
        if self._echo:
            self._echo.join(timeout=1)
        return status

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _import_path() -> dict[str, str]:
    """The variable that lets a child import this package wherever it is started."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class Reporter:
    """The child's end of the pipe. Does nothing in a process that no Child started."""

    def __init__(self) -> None:
        path = os.environ.get(PIPE_VARIABLE)
        self._pipe = _open_for_writing(path) if path else None
        self._lock = threading.Lock()

    def __call__(self, event: str, **details: Any) -> None:
        """Report one event; values that JSON does not know are written as strings."""
        if self._pipe is None:
            return
        line = json.dumps({"event": event, **details}, default=str).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]

    def end_with_starter(self) -> None:
        """From now on, end this process group as soon as the starter has ended."""
        if self._pipe is not None:
            threading.Thread(target=self._wait_and_end, args=(self._pipe,), daemon=True).start()

    def end_when_a_thread_fails(self) -> None:
        """From now on, a thread that fails is reported and ends this process, so that nothing waits for it forever."""

        def ended(failure: threading.ExceptHookArgs) -> None:
            traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
            self("failed", type=failure.exc_type.__name__, message=str(failure.exc_value))
            self.exit(1)

        threading.excepthook = ended

    def exit(self, status: int) -> NoReturn:
        """End this process at once, whatever its threads do; if the starter has ended, the rest of the group too."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._pipe is not None and _watch(self._pipe).poll(FAREWELL_SECONDS * 1000):
            _remove_pipe()
            end_group()
        os._exit(status)

    @staticmethod
    def _wait_and_end(pipe: int) -> None:
        _watch(pipe).poll()
        _remove_pipe()
        end_group()


def _open_for_writing(path: str) -> int:
    """The pipe's descriptor. If the starter has already ended, this process group ends here: a pipe that nobody reads
    would keep ``open`` waiting forever."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
        _remove_pipe()
        end_group()
        raise
    os.set_blocking(pipe, True)
    return pipe


def _watch(pipe: int) -> select.poll:
    """The only event is an error: the last reader has closed the pipe."""
    poll = select.poll()
    poll.register(pipe, 0)
    return poll


def _remove_pipe() -> None:
    """Remove what a killed starter could not remove."""
    shutil.rmtree(Path(os.environ[PIPE_VARIABLE]).parent, ignore_errors=True)


def end_group() -> None:
    """Kill every process in this process's group, including itself."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
