"""Waiting threads of OpenMP spin while a process is alone on its processors, and hardly while it shares them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from swift_toolkit.machine import threads
from swift_toolkit.machine.device import FEW_SPINS, SPINS, cpu_cores

NEXT_TO_OTHERS = """
import os, subprocess, sys, threading, time
from swift_toolkit.machine import threads

def wait_for(team):
    until = time.monotonic() + 60
    while team != any(thread.name == "idle-team" for thread in threading.enumerate()):
        assert time.monotonic() < until, f"an idle team: {not team}"
        numbers.add_(1)

def waiting():  # processor time of waiting threads, between 40 operations
    began = time.process_time()
    for _ in range(40):
        numbers.add_(1)
        time.sleep(0.003)
    return time.process_time() - began

threads.SECONDS, threads.CALM_SECONDS = 0.1, 1e9
threads.spin_while_alone()
assert "GOMP_SPINCOUNT" not in os.environ
import torch
numbers = torch.zeros(1 << 17)
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(torch.get_num_threads())]
try:
    wait_for(team=True)
finally:
    for other in others:
        other.kill()
shared = min(waiting() for _ in range(3))
threads.CALM_SECONDS = 0
wait_for(team=False)
print(shared, max(waiting() for _ in range(3)))
"""


@pytest.mark.slow
@pytest.mark.skipif(cpu_cores() == 1, reason="a single thread never waits")
def test_threads_spin_alone_and_hardly_next_to_busy_processes() -> None:
    own = {SPINS: FEW_SPINS, "OMP_NUM_THREADS": str(cpu_cores())}
    command = [sys.executable, "-c", NEXT_TO_OTHERS]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    shared, alone = map(float, done.stdout.split())
    assert shared < alone / 2


def test_processors_count_as_shared_until_no_thread_has_waited_for_a_while() -> None:
    sharing = threads._Sharing()
    calm = int(threads.CALM_SECONDS / threads.SECONDS)
    assert not sharing.after(0.01)
    assert sharing.after(threads.SECONDS * 0.7)
    assert [sharing.after(0.01) for _ in range(calm)] == [True] * (calm - 1) + [False]


@pytest.mark.parametrize("chosen", ["10000", None])
def test_spins_that_a_user_chose_are_kept(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SPINS, raising=False)
    if chosen:
        monkeypatch.setenv(SPINS, chosen)
    threads.spin_while_alone()
    assert os.environ.get(SPINS) == chosen
    assert "watch-threads" not in {thread.name for thread in threading.enumerate()}


def test_waiting_is_measured_for_all_threads_of_the_process() -> None:
    before = threads._waited()
    busy = [
        sys.executable,
        "-c",
        "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass",
    ]
    others = [subprocess.Popen(busy) for _ in range(2 * cpu_cores())]
    while any(other.poll() is None for other in others):
        pass
    assert threads._waited() - before > 0.1
