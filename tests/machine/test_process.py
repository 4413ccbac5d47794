"""A child reports, is ended with all it started, and does not outlive its starter."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.machine import process
from swift_toolkit.machine.process import PIPE_VARIABLE, Child

CHILD = """
import os, subprocess, sys, time
from swift_toolkit.machine.process import Reporter
report = Reporter()
report.end_with_starter()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
report("ready", pids=[os.getpid(), grandchild.pid])
print("printed", flush=True)
time.sleep(float(sys.argv[1]))
report("done", words="ü" * 100_000)
report.exit(7)
"""

SPAWNING = """
import multiprocessing, os, signal, time
from swift_toolkit.machine.process import Reporter
from swift_toolkit.machine.spawned import end_with_parent

if __name__ == "__main__":
    report = Reporter()
    report.end_with_starter()
    spawned = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    spawned.start()
    report("ready", pids=[os.getpid(), spawned.pid])
    time.sleep(600)
elif __name__ == "__mp_main__":
    end_with_parent()
"""

LISTENING = """
import subprocess, sys
from swift_toolkit.machine.process import Reporter
report = Reporter()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
report("ready", pids=[grandchild.pid])
sys.stdin.read()
report.exit(0)  # sooner than any thread sees that the starter is gone
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def command(seconds: float) -> list[str]:
    return [sys.executable, "-c", CHILD, str(seconds)]


def test_events_arrive_whole_and_in_order(tmp_path: Path) -> None:
    with Child(command(0.5), tmp_path / "log") as child:
        events = [event for event in child.events() if event is not None]
        assert [event["event"] for event in events] == ["ready", "done"]
        assert events[1]["words"] == "ü" * 100_000
        assert child.process.wait() == 7
    assert gone(events[0]["pids"])
    assert (tmp_path / "log").read_text() == "printed\n"


@pytest.mark.usefixtures("many_open_files")
def test_events_of_a_child_of_a_program_with_many_open_files(tmp_path: Path) -> None:
    with Child(command(0.2), tmp_path / "log") as child:
        assert [event["event"] for event in child.events() if event] == ["ready", "done"]


def test_leaving_early_ends_the_whole_group(tmp_path: Path) -> None:
    with Child(command(600), tmp_path / "log") as child:
        pids = next(event for event in child.events() if event is not None)["pids"]
        began = time.monotonic()
    assert gone(pids)
    assert time.monotonic() - began < 5


def test_echo_shows_what_the_log_gets(tmp_path: Path) -> None:
    echo = io.StringIO()
    with Child(command(0.2), tmp_path / "log", echo=echo) as child:
        for _ in child.events():
            pass
    assert echo.getvalue() == (tmp_path / "log").read_text() == "printed\n"


@pytest.mark.parametrize(
    "child", [[CHILD, "600"], [LISTENING]], ids=["busy", "ended by the end of its input"]
)
def test_a_killed_starter_takes_the_group_along(child: list[str], tmp_path: Path) -> None:
    starter = (
        "import sys; from pathlib import Path; from swift_toolkit.machine.process import Child\n"
        f"with Child([sys.executable, '-c', *{child!r}], Path({str(tmp_path / 'log')!r}), listens=True) as child:\n"
        "    for event in child.events():\n"
        "        if event: print(*event['pids'], flush=True)\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert pids
    assert all(map(alive, pids))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(pids)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_killed_child_takes_along_what_it_spawned_though_nobody_looks(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    with Child([sys.executable, str(script)], tmp_path / "log") as child:
        pids = next(event for event in child.events() if event is not None)["pids"]
        time.sleep(1)  # it sleeps in its target by then
        assert all(map(alive, pids))
        os.kill(pids[0], signal.SIGKILL)
        assert gone(pids)


def test_a_child_that_starts_after_its_starter_has_ended(tmp_path: Path) -> None:
    """A pipe without a reader keeps who opens it for writing waiting."""
    pipe = tmp_path / "scratch" / "report"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), PIPE_VARIABLE: str(pipe)}
    for _ in range(2):  # the second time the folder is gone
        late = subprocess.run(command(0), env=environment, timeout=30, start_new_session=True)
        assert late.returncode == -signal.SIGKILL
        assert not pipe.parent.exists()


def test_an_interrupt_while_the_child_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(process.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), Child(command(600), tmp_path / "log"):
        pass
    assert started[0].wait(timeout=30) == -signal.SIGKILL
