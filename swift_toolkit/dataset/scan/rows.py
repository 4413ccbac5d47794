"""Going through the rows of a file: many at once where they are certainly right, else one by one.

A part of a file gives a `Tally`; the tallies of all parts add up to what the file holds. Parts of one file
can be scanned by different processes (see `scan_parts`). Run as a module this file is such a process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol, cast

from swift_toolkit.dataset.checks import Rules, judge, row_tokens, text_of
from swift_toolkit.dataset.files import DataFile, decode_line, lines_of, read_chunks, read_records
from swift_toolkit.dataset.flaws import Flaw, FlawError
from swift_toolkit.dataset.media import MEDIA_NAMES, MediaCheck
from swift_toolkit.dataset.messages import Layout, Row
from swift_toolkit.dataset.scan.blocks import BlockCheck
from swift_toolkit.dataset.scan.shape import HEAD_BYTES, Shape
from swift_toolkit.dataset.scan.tally import TOKEN_STEP, Tally

PART_BYTES = 128 << 20
"""Size of the parts that processes take turns at; smaller data are scanned by this process alone."""

LITTLE = 1 << 14
"""Bytes of a file from which its columns and types are learned before the rest is held against them."""

MAX_PROCESSES = 4
"""More would not keep to the memory that the whole scan may take."""


class Sink(Protocol):
    """Takes every row of a scan, in order.

    Args:
        wants_rows: every row must come as messages, none as a line.
    """

    wants_rows: bool

    def lines(self, chunk: bytes) -> None:
        """Whole lines, whose rows have no flaw."""

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        """One row: what was decoded, as messages, and what is wrong with it."""


@dataclass(frozen=True)
class Part:
    """Rows to scan.

    Args:
        file: the file.
        layout: its format.
        shape: its columns and types.
        rules: what the run asks of its rows.
        start: first byte, for a file of lines.
        end: lines from here on belong to the next part; None for the end of the file.
        copy_reason: why ms-swift is given a copy of the file; "" if it reads the file itself.
    """

    file: DataFile
    layout: Layout
    shape: Shape
    rules: Rules
    start: int = 0
    end: int | None = None
    copy_reason: str = ""


def head_of(file: DataFile) -> tuple[list[str], Shape]:
    """The columns and types of a file: by its first 10 MB, as ms-swift sees them; of an array by all of it.

    Raises:
        FlawError: the file cannot be read.
    """
    shape = Shape()
    if file.has_lines:
        _learn_from_lines(shape, file)
        return list(shape.fields), shape
    size = 0
    for record in read_records(file):
        if isinstance(record.value, dict):
            shape.add(record.value)
        size += record.size
        if size > HEAD_BYTES and not file.values:
            break
    return list(shape.fields), shape


def _learn_from_lines(shape: Shape, file: DataFile) -> None:
    import msgspec

    size = 0
    decode = None
    for chunk in _little_first(read_chunks(file)):
        try:
            known = decode is not None and decode(chunk) is not None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            known = False
        if not known:
            for line in lines_of(chunk):
                value = decode_line(line) if line and not line.isspace() else None
                if isinstance(value, dict):
                    shape.add(value)
            if not shape.may_be_dates:
                decode = msgspec.json.Decoder(shape.struct({}, whole=True)).decode_lines
        size += len(chunk)
        if size > HEAD_BYTES:
            return


def _little_first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, the first in two: what is learned value by value should be little."""
    first = next(chunks, b"")
    cut = first.find(b"\n", LITTLE) + 1
    yield first[:cut] if cut else first
    yield from (chunk for chunk in chain([first[cut:]] if cut else [], chunks) if chunk)


def scan_part(part: Part, sink: Sink | None = None, deadline: float | None = None) -> Tally:
    """Judge every row of a part.

    Args:
        part: what to scan.
        sink: is given every row.
        deadline: time of `time.perf_counter` at which to stop early.
    """
    scan = _LineScan(part, sink) if part.file.has_lines else _RecordScan(part, sink)
    try:
        scan.run(deadline)
    except FlawError as error:
        scan.tally.cut = True
        scan.tally.note(error.flaw, None, scan.tally.rows + 1)
    scan.tally.settle()
    return scan.tally


class _RecordScan:
    """Rows one by one."""

    def __init__(self, part: Part, sink: Sink | None) -> None:
        self.part = part
        self.sink = sink
        self.tally = Tally()
        self.media = MediaCheck()

    def run(self, deadline: float | None) -> None:
        for record in read_records(self.part.file):
            self.tally.size += record.size
            self.row(record.value, record.line)
            if deadline is not None and self.tally.rows % 64 == 0 and time.perf_counter() > deadline:
                self.tally.whole = False
                return

    def row(self, value: Any, line: int | None) -> None:
        """Judge one row in full."""
        tally = self.tally
        tally.rows += 1
        row, flaws = judge(value, self.part.layout, self.part.rules)
        if row is None:
            # an impossible print keeps the places of the others
            tally.prints.extend([hash((self.part.file.shown, self.part.start, tally.rows))], 1)
        else:
            if not MEDIA_NAMES.isdisjoint(row):
                flaws += self.media.flaws(row)
            self._measure(row)
        for flaw in flaws:
            tally.note(flaw, line, tally.rows)
        tally.bad += any(flaw.is_error for flaw in flaws)
        if self.sink is not None:
            self.sink.row(value, row, flaws, line, tally.rows)

    def _measure(self, row: Row) -> None:
        messages = row.pop("messages")
        texts = tuple(map(text_of, messages))
        print_ = hash(texts) if not row else hash((texts, repr(sorted(row.items()))))
        row["messages"] = messages
        self.tally.prints.extend([print_], 1)
        self.tally.turns[len(messages)] += 1
        self.tally.tokens[row_tokens(messages) // TOKEN_STEP] += 1
        if messages[-1]["role"] == "assistant":
            self.tally.note_answers([texts[-1]])


class _LineScan(_RecordScan):
    """Rows of a file of lines, a block at a time as long as all are right."""

    def __init__(self, part: Part, sink: Sink | None) -> None:
        super().__init__(part, sink)
        self.block = (
            None
            if sink is not None and sink.wants_rows
            else BlockCheck.of(part.layout, part.shape, part.rules)
        )
        self.later_type: Any = None

    def run(self, deadline: float | None) -> None:
        at = self.part.start
        for chunk in read_chunks(self.part.file, self.part.start, self.part.end):
            if at > HEAD_BYTES and self.later_type is None:
                self.later_type = self.part.shape.struct({})  # columns and types are fixed by now
            at += len(chunk)
            self.tally.size += len(chunk)
            self._lines(chunk)
            if deadline is not None and time.perf_counter() > deadline:
                self.tally.whole = False
                return

    def _lines(self, chunk: bytes) -> None:
        """Take all at once, or find the lines that cannot be taken so by halving."""
        if self.block is not None and self.block.take(chunk, self.tally):
            if self.sink is not None:
                self.sink.lines(chunk)
            return
        half = chunk.find(b"\n", len(chunk) // 2) + 1
        if self.block is None or not 0 < half < len(chunk):
            for line in lines_of(chunk):
                self._line(line)
        else:
            self._lines(chunk[:half])
            self._lines(chunk[half:])

    def _line(self, line: bytes) -> None:
        self.tally.lines += 1
        if not line or line.isspace():
            return
        value = decode_line(line)
        if self.later_type is not None and isinstance(value, dict):
            value = self._as_in_head(value)
        self.row(value, self.tally.lines)

    def _as_in_head(self, value: Row) -> Any:
        """The row, or a flaw if its columns or types are not those of the head of the file."""
        import msgspec

        try:
            msgspec.convert(value, self.later_type)
        except msgspec.ValidationError as error:
            unknown = re.search(r"unknown field `(.+?)`", str(error))
            place = re.search(r"at `\$\.(.+)`$", str(error))
            if unknown:
                return Flaw("late", f'"{unknown[1]}" does not occur in the first 10 MB of the file')
            return Flaw(
                "late", f'"{place[1] if place else ""}" changes its type after the first 10 MB of the file'
            )
        return value


# Several processes


def scan_parts(parts: Sequence[Part]) -> Iterator[Tally]:
    """The tallies of these parts in order, scanned by one process for each core."""
    import pickle

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
    import pickle

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
    return [sys.executable, "-m", "swift_toolkit.dataset.scan.rows"], environment


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
