"""What a child process spawns with multiprocessing ends when that child does."""

from __future__ import annotations

import multiprocessing
import threading
import time

from swift_toolkit.machine.process import end_group


def end_with_parent() -> None:
    """From now on, end this process group as soon as the process that spawned this one is gone, however it ended.

    For a process that multiprocessing is about to spawn: it imports the main module of its parent as ``__mp_main__``.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while (parent := multiprocessing.parent_process()) is None:  # known once all of it is loaded
        time.sleep(0.1)
    parent.join()
    end_group()
