"""A lock on a run's directory, so that no two runs write to it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from swift_toolkit.machine import files
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs.record import read_record

LOCK = ".lock"

LOCK_BEAT_SECONDS = 5.0
"""How often the owner touches its lock to show other machines that it is alive, in seconds."""

LOCK_SILENCE_SECONDS = 20.0
"""A lock from another machine is taken over if nobody touches it for this long, in seconds."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Args:
        pid: the process ID.
        host: the host name of its machine.
        started: when the process started, in seconds since the epoch; distinguishes it from a later process with the
            same ID.
        since: when it acquired the lock, as text.
    """

    pid: int
    host: str
    started: float
    since: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether the process runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def lives(self) -> bool:
        """Whether the process is still running; only meaningful on its own machine."""
        started = _started(self.pid)
        return started is not None and abs(started - self.started) < 2


def lock_problems(directory: Path) -> Iterator[Problem]:
    """Why no run can start in ``directory``: a process on this machine is writing to it."""
    owner = _read(directory)
    if owner and owner.is_here and owner.lives:
        yield _in_use(directory, owner)


@contextmanager
def held(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``directory``. A lock whose owner is no longer running is taken over.

    Args:
        directory: the run directory.
        say: called with a sentence for the user.

    Raises:
        RequestError: another process holds the lock.
        RunError: the directory cannot be written to.
    """
    file = directory / LOCK
    try:
        with _alone(directory):
            _take(file, say)
    except OSError as error:
        raise RunError(f"{directory}: cannot write to the run directory ({error.strerror}).") from None
    done = threading.Event()
    threading.Thread(target=_beat, args=(file, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        with suppress(OSError):
            file.unlink()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Allow only one process of this machine at a time to check for a lock and create one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not supported by some network file systems
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _take(file: Path, say: Callable[[str], None]) -> None:
    """Create the lock ``file`` unless another process holds it."""
    directory = file.parent
    if owner := _read(directory):
        if _is_held(file, owner):
            raise RequestError([_in_use(directory, owner)])
        say(f"{directory} was locked by {owner}, which is no longer running.")
    files.write_json(file, asdict(_this_process()))


def _read(directory: Path) -> Owner | None:
    return read_record(directory / LOCK, Owner)[0]


def _in_use(directory: Path, owner: Owner) -> Problem:
    what = f"{directory} is in use by {owner}, since {owner.since}"
    return Problem(what, "Wait until that run ends, or stop it.")


def _is_held(file: Path, owner: Owner) -> bool:
    """Whether the owner is alive. The lock of an owner on another machine is watched for a while."""
    if owner.is_here:
        return owner.lives
    began, before = time.monotonic(), file.stat().st_mtime_ns
    while time.monotonic() < began + LOCK_SILENCE_SECONDS:
        time.sleep(0.5)
        if not file.exists():
            return False
        if file.stat().st_mtime_ns != before:
            return True
    return False


def _beat(file: Path, done: threading.Event) -> None:
    while not done.wait(LOCK_BEAT_SECONDS):
        with suppress(OSError):
            os.utime(file)


def _this_process() -> Owner:
    pid = os.getpid()
    return Owner(pid, socket.gethostname(), _started(pid) or 0.0, time.strftime("%Y-%m-%d %H:%M:%S"))


def _started(pid: int) -> float | None:
    """When process ``pid`` started; None if it is not running."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
