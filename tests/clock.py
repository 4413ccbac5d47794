"""How long something takes, as far as a test may rely on it on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def processor_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least processor time of several runs of ``work``: what others on the machine do adds to the others."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)
