"""A plugin of pytest: no test leaves a process running, however it ends, and Ctrl-C reaches what tests start.

Processes that a failed test started and that live on after it are ended at once, those of other tests with their file,
for they may belong to a fixture of the module; the test gets a warning. What a fixture of a class, a module or the session
starts may live as long as the fixture. At the end of the session nothing is left.

A process is known by its parents, or by an environment variable where those have gone. Started by ``cmd &`` in a
script, pytest ignores SIGINT, and so would everything that it starts: the default is restored.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Generator
from typing import Any, NoReturn

import psutil
import pytest

MARK = "SWIFT_TOOLKIT_TESTS"
"""Environment variable of everything that a session starts: the session, and the worker of pytest-xdist."""

PATIENCE = 3.0
"""Seconds that a process may take to end by itself after its test."""


class Leftovers:
    """The processes that tests started.

    Args:
        mark: value of `MARK` in their environment; of a controller of pytest-xdist, how those of its workers begin.
        controls: whether this is such a controller, which runs no test itself.
    """

    def __init__(self, mark: str, controls: bool) -> None:
        self.mark, self.controls = mark, controls
        self.started = self.failed = False
        self.kept: set[psutil.Process] = set()
        self.of_the_file: set[psutil.Process] = set()
        sys.addaudithook(self._notice)

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.started |= event in ("subprocess.Popen", "os.fork", "os.posix_spawn")

    def alive(self) -> set[psutil.Process]:
        """What this session started and still runs, but for what fixtures keep."""
        below = {one for one in psutil.Process().children(recursive=True) if not _ended(one)}
        marked = {one for one in psutil.process_iter() if self._is_marked(one)}
        return {one for one in below | marked if not _serves_python(one)} - self.kept

    def _is_marked(self, process: psutil.Process) -> bool:
        value = _environment(process).get(MARK, "")
        ours = value.startswith(self.mark) if self.controls else value == self.mark
        return ours and process.pid != os.getpid() and not _ended(process)

    def end(self) -> list[str]:
        """End what is alive, but for what may belong to the file's fixtures, and say what it was."""
        _, left = psutil.wait_procs(list(self.alive() - self.of_the_file), timeout=PATIENCE)
        lines = [_description(process) for process in left]
        for process in left:
            _kill(process)
        psutil.wait_procs(left, timeout=PATIENCE)
        return lines

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        result = yield
        if fixturedef.scope != "function" and self.started:
            self.kept |= self.alive()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.failed |= report.failed
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            is_last = nextitem is None or nextitem.path != item.path
            if is_last:
                self.of_the_file.clear()
            if self.started and not (is_last or self.failed):
                self.of_the_file |= self.alive()
            elif self.started:
                for line in self.end():
                    item.warn(pytest.PytestWarning(f"left running, now ended: {line}"))
                self.started = not is_last
            self.failed = False

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self.kept.clear()
        self.of_the_file.clear()
        self.end()


def pytest_configure(config: pytest.Config) -> None:
    """Take hold of the processes of this session."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    controls = bool(getattr(config.option, "numprocesses", None))
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    session = os.environ[MARK] if worker else secrets.token_hex(8)
    os.environ[MARK] = f"{session}-{worker}" if worker else session
    config.pluginmanager.register(Leftovers(os.environ[MARK], controls))


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _serves_python(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's own process beside a Python process, which ends with that."""
    return any("multiprocessing.resource_tracker" in word for word in _words(process))


def _description(process: psutil.Process) -> str:
    test = _environment(process).get("PYTEST_CURRENT_TEST", "")
    return f"{process.pid} {' '.join(_words(process))[:200]}" + (f", started by {test}" if test else "")


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return
