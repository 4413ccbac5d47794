"""Processes that a child spawns with multiprocessing end when that child does."""

from __future__ import annotations

import multiprocessing
import threading
import time

from swift_toolkit.machine.process import end_group


def end_with_parent() -> None:
    """From now on, end this process group as soon as the process that spawned this one has ended, for any reason.

    For a process that multiprocessing is about to spawn, which imports its parent's main module as ``__mp_main__``.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while (parent := multiprocessing.parent_process()) is None:  # known once the module is fully loaded
        time.sleep(0.1)
    parent.join()
    end_group()
