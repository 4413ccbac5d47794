"""Scan parts of files in this process or, on Linux, in forked ones. As a module, this file runs a process that calls
one function."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from swift_toolkit.dataset.reading.files import data_suffix, encoding_flaw, read_chunks
from swift_toolkit.dataset.reading.json_text import item_bounds
from swift_toolkit.dataset.reading.streams import BLOCK_BYTES, Chunk, CutError, DataFile, guarded, open_stream
from swift_toolkit.dataset.reading.tables import (
    SEPARATORS,
    SMALL_BYTES,
    Batch,
    TableRows,
    group_rows,
    row_bounds,
)
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.scan.near import NEAR_CHARACTERS, NEAR_ROWS
from swift_toolkit.dataset.scan.part import Part, find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Tally
from swift_toolkit.machine.device import cpu_cores

ALONE_BYTES = 12 << 20
"""Smaller data is scanned by this process alone: another process takes about as long to start and to be heard."""

WORTH_ARROW = 256 << 20
"""Size of tables from which pyarrow saves more time than its import takes, even if no cell is in quotes."""

RANGE_BYTES = 8 << 20
"""Maximum size of the parts into which an uncompressed file is divided among processes."""

BATCH_BYTES = 2 << 20
"""Bytes of rows sent to a process at a time, if only one process can read the file."""

MAX_ROUNDS = 16
"""Maximum number of parts of a Parquet file for each process; for each part, the metadata of all row groups is read."""

MAX_PROCESSES = 4
"""Maximum number of processes; more would exceed the memory limit of the whole scan."""

_PACKED = 6
"""Assumed expansion factor of compressed files and Parquet."""

_SHRINKING = 0.9
"""Size of a part of a row group, relative to the part before it: its process also decodes all rows before it."""

FORKS = sys.platform == "linux"
"""Whether processes can be forked, which takes milliseconds. The libraries of macOS do not work in a forked process."""


def worth_sharing(parts: Iterable[Part]) -> bool:
    """Whether several processes are faster than one."""
    return _is_worth_sharing(sum(_size(part.file) for part in parts))


def _is_worth_sharing(size: int) -> bool:
    return FORKS and size > ALONE_BYTES and cpu_cores() > 1


def _size(file: DataFile) -> int:
    """Bytes of a file, decompressed."""
    return file.size * (_PACKED if file.packing or file.syntax == "parquet" else 1)


class Workers:
    """One process per core, forked when they are first needed."""

    def __init__(self) -> None:
        self._all: list[_Worker] = []

    def find_part(self, path: Path, shown: str, rules: Rules) -> Part:
        """Call `find_part`; for a large Parquet file in a worker, which needs pyarrow in any case."""
        if not _is_large_parquet(path):
            return find_part(path, shown, rules)
        self._fork(_import_pyarrow)
        found = self._call(_found, path, shown, rules)
        if isinstance(found, Flaw):
            raise FlawError(*found)
        return cast("Part", found)

    def scan(self, parts: Sequence[Part]) -> list[Tally]:
        """Scan files.

        Args:
            parts: whole files.

        Returns:
            The tally of each file.
        """
        if not self._all:
            _import_for(parts)
        self._fork()
        groups = [
            self._call(group_rows, part.file) if part.file.syntax == "parquet" else [] for part in parts
        ]
        sums = _sums(list(map(_pieces, parts, groups)), self._all)
        in_order = [
            _batches(part) if tally is None else iter(()) for part, tally in zip(parts, sums, strict=True)
        ]
        again = _sums(in_order, self._all)
        return [
            cast("Tally", second) if first is None else first
            for first, second in zip(sums, again, strict=True)
        ]

    def _fork(self, prepare: Callable[[], None] | None = None) -> None:
        self._all = self._all or [_forked(prepare) for _ in range(_processes())]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._all[0].start(function, *arguments)
        return self._all[0].result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.kill()
        for worker in self._all:
            worker.end()


def _is_large_parquet(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return data_suffix(path) == ".parquet" and _is_worth_sharing(path.stat().st_size * _PACKED)
    return False


def _found(path: Path, shown: str, rules: Rules) -> Part | Flaw:
    try:
        return find_part(path, shown, rules)
    except FlawError as error:
        return error.flaw


def _processes() -> int:
    return min(cpu_cores(), MAX_PROCESSES)


def _import_pyarrow() -> None:
    """Import pyarrow without numpy, which is not used to read Parquet and takes longer to import than pyarrow.

    Only for a worker: there is no way back.
    """
    if "numpy" in sys.modules:
        return
    sys.modules["numpy"] = None  # type: ignore[assignment]  # as if it were not installed
    with contextlib.suppress(ImportError):  # before pyarrow 18, which needs numpy
        import_module("pyarrow.parquet")
    del sys.modules["numpy"]


def _import_for(parts: Sequence[Part]) -> None:
    """Import once what each process would import."""
    if any(part.file.syntax == "parquet" for part in parts):
        import pyarrow.parquet

        pyarrow.default_memory_pool().release_unused()  # after the head of the file; each process would keep a copy
    if any(part.as_utf8 and part.file.syntax in SEPARATORS for part in parts):
        import pyarrow.csv


def is_work_for_arrow(files: Sequence[DataFile]) -> bool:
    """Whether pyarrow reads tables and Parquet among these files fastest, with their texts in UTF-8."""
    tables = [file for file in files if file.syntax in SEPARATORS]
    size = sum(map(_size, tables))
    if size > WORTH_ARROW or any(file.syntax == "parquet" for file in files):
        return True
    return size > SMALL_BYTES and any(map(_begins_with_quotes, tables))


def _begins_with_quotes(file: DataFile) -> bool:
    """Whether there are quotes at the beginning of a table; without any, pyarrow is not needed to read it."""
    with contextlib.suppress(FlawError), guarded(), open_stream(file) as stream:
        return b'"' in stream.read(BLOCK_BYTES)
    return False


def scan_alone(part: Part) -> Tally:
    """Scan a whole file in this process."""
    try:
        return scan_part(replace(part, trusting=True))
    except CutError:
        return scan_part(part)


Piece = Part | Tally
"""A part of a file, or the findings at a place where the file cannot be read."""


def _sums(files: Sequence[Iterator[Piece]], workers: Sequence[_Worker]) -> list[Tally | None]:
    """The sum of the tallies of the pieces of each file; None if they were cut at wrong places."""
    sums: list[Tally | None] = [Tally() for _ in files]
    pieces = chain.from_iterable(((at, piece) for piece in pieces) for at, pieces in enumerate(files))
    for at, tally in _in_order(pieces, _Queue(workers)):
        whole = sums[at]
        if whole is not None and not whole.cut:
            if tally is None:
                sums[at] = None
            else:
                whole.add(tally)
    return sums


def _in_order(pieces: Iterable[tuple[int, Piece]], queue: _Queue) -> Iterator[tuple[int, Tally | None]]:
    files: list[int] = []
    given = 0
    for number, (file, piece) in enumerate(pieces):
        files.append(file)
        queue.add(number, piece)
        while given in queue.done:
            yield files[given], queue.done.pop(given)
            given += 1
    for number in range(given, len(files)):
        yield files[number], queue.result(number)


class _Queue:
    """Distributes pieces among workers. This process scans none itself, so that no worker waits for it.

    Args:
        workers: all of them idle.
    """

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self.idle = list(workers)
        self.busy: dict[_Worker, int] = {}
        self.done: dict[int, Tally | None] = {}

    def add(self, number: int, piece: Piece) -> None:
        """Let a worker scan a piece, as soon as one is idle."""
        if isinstance(piece, Tally):
            self.done[number] = piece
            return
        if not self.idle:
            self._collect()
        worker = self.idle.pop()
        worker.start(_scanned, piece)
        self.busy[worker] = number

    def result(self, number: int) -> Tally | None:
        """The tally of a piece; None if it was cut at a wrong place."""
        while number not in self.done:
            self._collect()
        return self.done.pop(number)

    def _collect(self) -> None:
        for worker in _with_result(self.busy):
            self.done[self.busy.pop(worker)] = worker.result()
            self.idle.append(worker)


def _with_result(workers: Iterable[_Worker]) -> list[_Worker]:
    """Wait for workers that have a result or have ended."""
    by_number = {worker.fileno(): worker for worker in workers}
    poll = select.poll()  # select() takes no file descriptor above 1,023
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll()]


def _scanned(part: Part) -> Tally | None:
    try:
        return scan_part(part)
    except CutError:
        return None


# Pieces


def _pieces(part: Part, groups: Sequence[int]) -> Iterator[Piece]:
    """Divide a file into parts that can be scanned independently; for an unreadable file, return the reason.

    Args:
        part: a whole file.
        groups: the number of rows of each row group of a Parquet file.
    """
    file = part.file
    if not file.has_chunks:
        return iter([part])
    if file.packing:
        return _batches(part)
    if file.syntax == "parquet":
        return _between(part, _rows_of_parts(part, groups))
    if file.is_lines:
        return _between(part, range(_step(file), file.size, _step(file)))
    find_bounds = item_bounds if file.values else row_bounds
    return _between(part, find_bounds(file.path, _step(file)))


def _step(file: DataFile) -> int:
    """Size of the parts of a file: as many for each process."""
    rounds = math.ceil(file.size / (_processes() * RANGE_BYTES))
    return math.ceil(file.size / max(rounds * _processes(), 1))


def _between(part: Part, bounds: Iterable[int]) -> Iterator[Part]:
    for start, end in pairwise(chain((0,), bounds, (None,))):
        yield replace(part, start=cast("int", start), end=end, trusting=True)


def _rows_of_parts(part: Part, groups: Sequence[int]) -> Iterator[int]:
    """The rows at which parts of a Parquet file begin: whole row groups, or parts of them if there are few."""
    bounds = list(accumulate(groups, initial=0))
    processes = _processes()
    if len(bounds) > processes * 2:
        parts = min(max(_size(part.file) // RANGE_BYTES, processes * 2), processes * MAX_ROUNDS)
        least, at = bounds[-1] // parts, 0
        for end in bounds[1:-1]:
            if end - at >= least:
                yield (at := end)
        return
    *inner, whole = accumulate(_SHRINKING**number for number in range(processes))
    begins = [-_extra_rows(part.file, bounds[-1]), *bounds[1:]]
    ends = {
        first + round((end - first) * at / whole) for first, end in pairwise(begins) for at in (*inner, whole)
    }
    yield from sorted(end for end in ends if 0 < end < bounds[-1])


def _extra_rows(file: DataFile, rows: int) -> int:
    """How many rows take as long as what is done with the first rows only, see `near`."""
    return min(3 * NEAR_ROWS, rows // max(_size(file) // (3 * NEAR_CHARACTERS), 4))


def _batches(part: Part) -> Iterator[Piece]:
    """The rows of a file that only one process can read."""
    held: list[Chunk | TableRows | Batch] = []
    start = size = 0
    try:
        with guarded(), open_stream(part.file) as stream:
            for chunk in read_chunks(part.file, stream):
                held.append(chunk)
                size += _size_of(chunk)
                if size - start >= BATCH_BYTES:
                    yield replace(part, chunks=tuple(held), start=start)
                    held, start = [], size
        yield replace(part, chunks=tuple(held), start=start)
    except (FlawError, UnicodeDecodeError) as error:
        yield replace(part, chunks=tuple(held), start=start)
        tally = Tally(cut=True)
        tally.note(error.flaw if isinstance(error, FlawError) else encoding_flaw(part.file).flaw, None, 1)
        yield tally


def _size_of(chunk: Chunk | TableRows | Batch) -> int:
    if isinstance(chunk, Chunk):
        return len(chunk.data)
    return chunk.size if isinstance(chunk, TableRows) else int(chunk.columns.nbytes)


# Processes


class _Worker:
    """A process that calls functions, one at a time.

    Args:
        pid: its process ID.
        stdin: where it reads calls.
        stdout: where it writes results.
    """

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._pid, self._stdin, self._stdout = pid, stdin, stdout
        self._status: int | None = None

    def fileno(self) -> int:
        """The file descriptor that is readable when there is a result."""
        return self._stdout.fileno()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function."""
        pickle.dump((function, arguments), self._stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._stdin.flush()

    def result(self) -> Any:
        """The return value of the function.

        Raises:
            CalledProcessError: the function failed.
        """
        try:
            return pickle.load(self._stdout)
        except EOFError:
            self._status = self._wait()
            raise subprocess.CalledProcessError(self._status, "scan") from None

    def _wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """Wait for its end."""
        if self._status is None:
            self._status = self._wait()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _forked(prepare: Callable[[], None] | None = None) -> _Worker:
    """Fork a worker.

    Args:
        prepare: called by it before anything else.
    """
    calls, results = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(calls[1])
        os.close(results[0])
        _be_worker(calls[0], results[1], prepare)
    os.close(calls[0])
    os.close(results[1])
    return _Worker(pid, os.fdopen(calls[1], "wb"), os.fdopen(results[0], "rb"))


def _be_worker(calls: int, results: int, prepare: Callable[[], None] | None) -> NoReturn:
    status = 1
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)  # Ctrl-C also reaches the starter, which handles it
        gc.freeze()  # what the starter holds, perhaps on a GPU, is never collected here
        if prepare is not None:
            prepare()
        _serve(os.fdopen(calls, "rb"), os.fdopen(results, "wb"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing that the starter does at its end is done here


def _serve(calls: IO[bytes], results: IO[bytes]) -> None:
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pickle.load(calls)
            pickle.dump(function(*arguments), results)
            results.flush()


def starter_command() -> tuple[list[str], dict[str, str]]:
    """The command and environment of a process that calls one function, and ends once its input is closed.

    The process reads a pickled (function, arguments, keywords) and writes the pickled result.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-m", "swift_toolkit.dataset.scan.pool"], os.environ | {"PYTHONPATH": path}


def _end_with_starter() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def _call_once() -> None:
    function, arguments, keywords = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    pickle.dump(function(*arguments, **keywords), sys.stdout.buffer)
    sys.stdout.flush()
    os._exit(0)  # do not wait for that thread, which holds the lock of the input


if __name__ == "__main__":
    gc.set_threshold(100_000)  # millions of rows are created, and none has reference cycles
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C also reaches the starter, which handles it
    _call_once()
