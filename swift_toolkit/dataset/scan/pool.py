"""Scan parts of files in several processes. As a module, this file runs such a process."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from swift_toolkit.dataset.reading.files import encoding_flaw, read_chunks
from swift_toolkit.dataset.reading.streams import Chunk, guarded, open_stream
from swift_toolkit.dataset.reading.tables import TableRows
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.scan.part import Part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Tally
from swift_toolkit.machine.device import cpu_cores

ALONE_BYTES = 96 << 20
"""Smaller data is scanned by this process alone."""

RANGE_BYTES = 32 << 20
"""Size of the parts into which an uncompressed file of lines is divided among processes."""

BATCH_BYTES = 8 << 20
"""Bytes of rows sent to a process at a time, if only one process can read the file."""

MAX_PROCESSES = 4
"""Maximum number of processes; more would exceed the memory limit of the whole scan."""

_PACKED = 6
"""Assumed expansion factor of compressed files and Parquet."""

Key = TypeVar("Key")


def worth_sharing(parts: Iterable[Part]) -> bool:
    """Whether several processes are faster than one."""
    files = [part.file for part in parts]
    total = sum(file.size * (_PACKED if file.packing or file.syntax == "parquet" else 1) for file in files)
    return total > ALONE_BYTES and cpu_cores() > 1


def scan_parts(parts: Iterable[tuple[Key, Part]]) -> Iterator[tuple[Key, Tally]]:
    """Scan files with one process per core.

    Args:
        parts: whole files, each with its key.

    Returns:
        Tallies in the order of the rows. Those of one file have its key and can be added.
    """
    workers = [_Worker() for _ in range(min(cpu_cores(), MAX_PROCESSES))]
    busy: deque[tuple[Key, _Worker | Tally]] = deque()
    try:
        for key, piece in ((key, piece) for key, part in parts for piece in pieces_of(part)):
            if isinstance(piece, Tally):
                busy.append((key, piece))
                continue
            if not workers:
                yield from _first_done(busy, workers)
            worker = workers.pop()
            worker.start(scan_part, piece)
            busy.append((key, worker))
        while busy:
            yield from _first_done(busy, workers)
    finally:
        for worker in (*workers, *(worker for _, worker in busy if isinstance(worker, _Worker))):
            worker.end()


def _first_done(busy: deque[tuple[Key, _Worker | Tally]], free: list[_Worker]) -> Iterator[tuple[Key, Tally]]:
    """The result of the worker that has been busy longest, and those of later workers that are done."""
    key, worker = busy[0]
    if isinstance(worker, _Worker):
        yield key, worker.result()
        free.append(worker)
        busy.popleft()
    while busy and isinstance(busy[0][1], Tally):
        key, tally = busy.popleft()
        yield key, cast("Tally", tally)


def pieces_of(part: Part) -> Iterator[Part | Tally]:
    """Divide a file into parts that can be scanned independently; for an unreadable file, return the reason."""
    if not part.file.has_chunks:
        yield part
    elif part.file.has_lines and not part.file.packing:
        yield from _ranges(part)
    else:
        yield from _batches(part)


def _ranges(part: Part) -> Iterator[Part]:
    bounds = [*range(0, part.file.size, RANGE_BYTES), part.file.size]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < RANGE_BYTES // 4:
        del bounds[-2]
    for start, end in pairwise(bounds):
        yield replace(part, start=start, end=end)


def _batches(part: Part) -> Iterator[Part | Tally]:
    held: list[Chunk | TableRows] = []
    start = size = 0
    try:
        with guarded(), open_stream(part.file) as stream:
            for chunk in read_chunks(part.file, stream):
                held.append(chunk)
                size += chunk.size if isinstance(chunk, TableRows) else len(chunk.data)
                if size - start >= BATCH_BYTES:
                    yield replace(part, chunks=tuple(held), start=start)
                    held, start = [], size
        yield replace(part, chunks=tuple(held), start=start)
    except (FlawError, UnicodeDecodeError) as error:
        yield replace(part, chunks=tuple(held), start=start)
        tally = Tally(cut=True)
        tally.note(error.flaw if isinstance(error, FlawError) else encoding_flaw(part.file).flaw, None, 1)
        yield tally


class _Worker:
    """A process that calls functions, one at a time."""

    def __init__(self) -> None:
        command, environment = starter_command()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function."""
        stdin = cast("IO[bytes]", self._process.stdin)
        pickle.dump((function, arguments, {}), stdin, protocol=pickle.HIGHEST_PROTOCOL)
        stdin.flush()

    def result(self) -> Any:
        """The return value of the function.

        Raises:
            CalledProcessError: the function failed.
        """
        try:
            return pickle.load(cast("IO[bytes]", self._process.stdout))
        except EOFError:
            raise subprocess.CalledProcessError(self._process.wait(), self._process.args) from None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()


def starter_command() -> tuple[list[str], dict[str, str]]:
    """The command and environment of a process that calls functions.

    The process reads pickled (function, arguments, keywords) and writes pickled results.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    # equal rows must have equal hashes in all processes
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": path}
    return [sys.executable, "-m", "swift_toolkit.dataset.scan.pool"], environment


WITH_STARTER = "with-starter"
"""Argument of such a process: call one function, and end with all child processes once the input is closed."""


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _work() -> None:
    with_starter = WITH_STARTER in sys.argv
    while True:
        try:
            function, arguments, keywords = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if with_starter:
            threading.Thread(target=_end_with_starter, daemon=True).start()
        pickle.dump(function(*arguments, **keywords), sys.stdout.buffer)
        sys.stdout.flush()
        if with_starter:
            os._exit(0)  # do not wait for that thread, which holds the lock of the input


if __name__ == "__main__":
    gc.set_threshold(100_000)  # millions of rows are created, and none has reference cycles
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C also reaches the starter, which handles it
    _work()
