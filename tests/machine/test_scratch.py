"""Temporary folders: those of processes that were killed go, those of living ones stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swift_toolkit.machine import scratch
from swift_toolkit.machine.scratch import ScratchFolder, sweep

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from swift_toolkit.machine.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]))
(folder.path / "file").write_text("x")
print(folder.path, flush=True)
time.sleep(60)
"""


def holder(under: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", HOLD, str(under)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    process, left = holder(tmp_path)
    try:
        with ScratchFolder(tmp_path) as mine:
            assert left.is_dir() and mine.is_dir()  # its process lives
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with ScratchFolder(tmp_path) as mine:
            assert list(tmp_path.iterdir()) == [mine]
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "swift-toolkit-log").mkdir()
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(tmp_path / "swift-toolkit-log")
    (tmp_path / f"{scratch.PREFIX}file").write_text("x")
    (tmp_path / f".new-{scratch.PREFIX}1").mkdir()  # being made
    before = sorted(tmp_path.iterdir())
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_of_a_process_that_was_killed_as_it_made_it(tmp_path: Path) -> None:
    folder = tmp_path / f".new-{scratch.PREFIX}1"
    folder.mkdir()
    os.utime(folder, (0, 0))
    sweep(tmp_path)
    assert not folder.exists()


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ScratchFolder(tmp_path / "none")
