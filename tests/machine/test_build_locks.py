"""The lock of an extension's build: one that a killed process left is taken over, one that is held is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift_toolkit.machine import msswift


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from torch.utils.file_baton import FileBaton

    monkeypatch.setattr(FileBaton, "try_acquire", FileBaton.try_acquire)
    msswift.take_over_build_locks()
    return tmp_path / "lock"


def test_a_lock_that_a_killed_build_left(lock: Path) -> None:
    from torch.utils.file_baton import FileBaton

    lock.touch()
    os.utime(lock, (0, time.time() - msswift.ABANDONED_SECONDS - 1))
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    assert not FileBaton(str(lock)).try_acquire()  # held now
    baton.release()
    assert not lock.exists()


def test_a_fresh_lock_may_be_that_of_another_machine(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.file_baton import FileBaton

    monkeypatch.setattr(msswift, "ABANDONED_SECONDS", 1.0)
    lock.touch()
    began = time.monotonic()
    assert FileBaton(str(lock)).try_acquire()
    assert time.monotonic() - began > 0.8


def test_a_lock_that_is_held(lock: Path) -> None:
    from torch.utils.file_baton import FileBaton

    code = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    os.utime(lock, (0, 0))
    assert not FileBaton(str(lock)).try_acquire()
    holder.kill()
    holder.wait()
    assert FileBaton(str(lock)).try_acquire()
