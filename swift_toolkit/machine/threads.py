"""How long the waiting threads of GNU OpenMP spin before they sleep: long while this process has its processors to
itself, hardly at all while it shares them with other busy processes.

Waking a thread takes time, most of all on a virtual machine: on two cores of an Intel Xeon, training takes 15% less
time with spinning threads, and generating 30%. But a spinning thread keeps a processor from whatever else could run
there, also from the thread that it waits for: next to one busy process, training takes 3 to 5 times as long.

libgomp reads its number of spins (``GOMP_SPINCOUNT``) when it is loaded, and never again. Yet while there are more of
its threads in a process than processors, it spins at most 100 times (``do_spin`` and ``gomp_throttled_spin_count_var``
in its sources). So a team of further threads, which does nothing, is a switch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from swift_toolkit.machine.device import FEW_SPINS, SPINS, cpu_cores

_TASKS = Path("/proc/self/task")

SECONDS = 0.5
"""Time between two looks at the threads of this process."""

SHARED = 0.1
"""Time that the threads wait for a processor, in seconds per second and summed over them, from which on processors
count as shared. On two cores it is 0.01 alone, and 0.7 next to one busy process."""

CALM_SECONDS = 2.0
"""Time without such waiting after which threads spin again."""


def spin_while_alone() -> None:
    """Let waiting threads spin whenever this process has its processors to itself.

    To be called before torch is imported. Nothing changes where the user has chosen a number of spins, on a GPU, and
    where the system does not tell how long threads wait for a processor (Linux does, with CONFIG_SCHED_INFO).
    """
    if os.environ.get(SPINS) == FEW_SPINS and any(_TASKS.glob("*/schedstat")):
        del os.environ[SPINS]
        threading.Thread(target=_watch, name="watch-threads", daemon=True).start()


def _watch() -> None:
    sharing, waited = _Sharing(), _waited()
    team: _IdleTeam | None = None
    while True:
        time.sleep(SECONDS)
        before, waited = waited, _waited()
        if not sharing.after(waited - before):
            if team is not None:
                team.dissolve()
            team = None
        elif team is None and "torch" in sys.modules:
            team = _IdleTeam()


class _Sharing:
    """Whether this process shares its processors."""

    def __init__(self) -> None:
        self._calm = CALM_SECONDS

    def after(self, waited: float) -> bool:
        """Whether it does, after `SECONDS` in which its threads waited so many seconds for a processor."""
        self._calm = 0.0 if waited > SHARED * SECONDS else self._calm + SECONDS
        return self._calm < CALM_SECONDS


def _waited() -> float:
    """How long the threads of this process have waited for a processor, in seconds."""
    total = 0
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            total += int((task / "schedstat").read_bytes().split()[1])
    return total / 1e9


class _IdleTeam:
    """So many idle threads that libgomp has more threads than processors."""

    def __init__(self) -> None:
        import torch

        self._end = threading.Event()
        size = torch.get_num_threads()
        for _ in range((cpu_cores() - size) // (size - 1) + 1 if size > 1 else 0):
            threading.Thread(target=self._hold, name="idle-team", daemon=True).start()

    def _hold(self) -> None:
        """Compute something with threads of libgomp, which end with this one."""
        import torch

        torch.zeros(1 << 18).add_(1)
        self._end.wait()

    def dissolve(self) -> None:
        self._end.set()
