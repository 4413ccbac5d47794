"""A lock on a run's directory, so that no two runs write into it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swift_toolkit.machine import files
from swift_toolkit.model.files import read_json
from swift_toolkit.problems import Problem, RequestError, RunError

LOCK = ".lock"

LOCK_BEAT_SECONDS = 5.0
"""How often the owner touches its lock, so that other machines see that it lives."""

LOCK_SILENCE_SECONDS = 20.0
"""How long the lock of an owner on another machine must stand still to be taken over."""


def lock_problems(directory: Path) -> Iterator[Problem]:
    """Why no run can begin in ``directory``: a process of this machine writes into it."""
    lock = _read(directory)
    if lock and lock.get("host") == socket.gethostname() and _lives(lock):
        yield _taken(directory, lock)


@contextmanager
def held(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``directory``; one whose owner is gone is taken over.

    Args:
        directory: of the run.
        say: takes a sentence for the user.

    Raises:
        RequestError: somebody else holds it.
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
    """Let one process of this machine at a time look for a lock and make one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network disks cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _take(file: Path, say: Callable[[str], None]) -> None:
    """Make the lock ``file``, unless somebody holds it."""
    directory = file.parent
    if lock := _read(directory):
        if _is_held(file, lock):
            raise RequestError([_taken(directory, lock)])
        say(f"{directory} was locked by {_name(lock)}, which is gone.")
    files.write_json(file, {**_me(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def _read(directory: Path) -> dict[str, Any] | None:
    lock, _ = read_json(directory / LOCK) if (directory / LOCK).is_file() else (None, None)
    return lock


def _taken(directory: Path, lock: dict[str, Any]) -> Problem:
    what = f"{directory} is in use by {_name(lock)}, since {lock.get('since')}"
    return Problem(what, "Wait until that run ends, or stop it.")


def _name(lock: dict[str, Any]) -> str:
    return f"process {lock.get('pid')} on {lock.get('host')}"


def _is_held(file: Path, lock: dict[str, Any]) -> bool:
    """Whether the owner lives. One on another machine is watched for a while."""
    if lock.get("host") == socket.gethostname():
        return _lives(lock)
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


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def _started(pid: int) -> float | None:
    """When the process began; None if there is none. Tells it from a later one of the same number."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _lives(lock: dict[str, Any]) -> bool:
    started = _started(int(lock.get("pid") or 0))
    return started is not None and abs(started - float(lock.get("started") or 0)) < 2
