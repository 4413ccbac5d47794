"""Commands whose stdin, stdout or stderr is closed, or takes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRONG = "inference_test.py --mode chat"
RIGHT = "finetune_trainer.py --config configs/quickstart.json --dry-run --json"


@pytest.mark.parametrize(
    ("command", "streams", "status", "said"),
    [
        (WRONG, "2>&-", 2, ""),
        (WRONG, "0<&- 1>&-", 2, "argument --mode"),
        (RIGHT, "1>&- 2>&-", 0, ""),
        (RIGHT, "> /dev/full", 1, "Cannot write the output: No space left on device.\n"),
        (RIGHT, "| true", 141, ""),
        (f"{WRONG} --json", "> /dev/full", 2, "argument --mode"),
        (f"{WRONG} --json", "| true", 2, "argument --mode"),
    ],
)
def test_streams(command: str, streams: str, status: int, said: str) -> None:
    line = f"{sys.executable} {command} {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(said) and "Traceback" not in done.stderr


def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    root = Path(__file__).resolve().parents[2]
    command = f"cd {gone}; rmdir {gone}; {sys.executable} {root}/finetune_trainer.py --config {root}/configs/quickstart.json --dry-run"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the current directory no longer exists. Change to another one.\n"
