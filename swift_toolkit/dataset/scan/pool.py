"""Scanning the parts of files in several processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from swift_toolkit.dataset.scan.part import Part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Tally

PART_BYTES = 128 << 20
"""Size of the parts that processes take turns at; smaller data are scanned by this process alone."""


MAX_PROCESSES = 4
"""More would not keep to the memory that the whole scan may take."""


# Several processes


def scan_parts(parts: Sequence[Part]) -> Iterator[Tally]:
    """The tallies of these parts in order, scanned by one process for each core."""
    waiting = deque(parts)
    running: deque[subprocess.Popen[bytes]] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < min(os.cpu_count() or 1, MAX_PROCESSES):
                running.append(_start(waiting.popleft()))
            process = running[0]
            result, _ = process.communicate()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
            running.popleft()
            yield pickle.loads(result)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _start(part: Part) -> subprocess.Popen[bytes]:
    command, environment = apart()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    with cast("IO[bytes]", process.stdin) as stdin:
        pickle.dump((scan_part, (part,), {}), stdin)
    process.stdin = None
    return process


def apart() -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that is given a function and its arguments.

    It reads a pickled (function, arguments, keywords) and writes the pickled result.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    # equal rows must have equal hashes in all processes
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": path}
    return [sys.executable, "-m", "swift_toolkit.dataset.scan.pool"], environment


WITH_STARTER = "with-starter"
"""Argument of such a process: end, with all that it started, as soon as its input is closed."""


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    import gc
    import pickle
    import threading

    gc.set_threshold(100_000)  # millions of rows come and go, and none refers to itself
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the starter too, which has the word
    function, arguments, keywords = pickle.load(sys.stdin.buffer)
    if WITH_STARTER in sys.argv:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    pickle.dump(function(*arguments, **keywords), sys.stdout.buffer)
    sys.stdout.flush()
    os._exit(0)  # not waiting for that thread, which holds the lock of the input
