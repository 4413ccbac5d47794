"""Random command lines as real processes, some with a closed pipe: a status of the contract and no traceback."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.adapters import make_adapter
from tests.fuzz import draw, numbers
from tests.fuzz.commands import Commands

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds until a process hangs; the machine may be busy."""

pytestmark = pytest.mark.slow


def test_processes(tiny_model: Path, tmp_path: Path) -> None:
    commands = Commands(tmp_path, tiny_model, make_adapter(tiny_model, tmp_path / "checkpoint-1", 1))
    statuses: Counter[int] = Counter()
    slowest = 0.0
    failures = []
    for number in numbers(8, 200):
        drawn = draw("processes", number)
        script, words = commands.make(drawn)
        words = [word for word in words if "\0" not in word]  # no process can be given one
        before = {path.name for path in tmp_path.iterdir()}
        began = time.monotonic()
        status, err = run(drawn, script, words, tmp_path)
        slowest = max(slowest, time.monotonic() - began)
        statuses[status] += 1
        new = {path.name for path in tmp_path.iterdir()} - before
        if status not in (0, 2) or "Traceback" in err or "Unexpected" in err:
            failures.append((number, script, words, status, err[-600:]))
        if any(not name.startswith(("out", "c", "run.sh")) for name in new) and "--convert" not in words:
            failures.append((number, script, words, status, f"wrote {new}"))
    print(f"{sum(statuses.values())} processes, {dict(statuses)}, slowest {slowest:.1f} s")
    assert failures == []


def run(draw: random.Random, script: str, words: list[str], folder: Path) -> tuple[int, str]:
    """The status of a process and what it said; its stdin, stdout and stderr may be closed, or pipes nobody reads."""
    command = [
        sys.executable,
        str(ROOT / script),
        *(word.encode("utf-8", "surrogateescape") for word in words),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kind = draw.random()
    if kind < 0.7:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stderr.decode("utf-8", "replace")
    closed = draw.choice(("0<&-", "1>&-", "2>&-", "| true", "2>&1 | true", "> /dev/full"))
    shell = ["bash", "-c", f'"$@" {closed}; exit ${{PIPESTATUS[0]}}', "bash", *command]
    done = subprocess.run(
        shell, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
    )
    said = done.stderr.decode("utf-8", "replace")
    status = done.returncode
    if (closed == "> /dev/full" and status == 1) or ("true" in closed and status in (1, 141)):
        status = 0  # what it had to say could not be written
    return status, said
