"""Going through the rows of a file: many at once where they are certainly right, else one by one.

A part of a file gives a `Tally`; the tallies of all parts add up to what the file holds. Parts of one file
can be scanned by different processes (see `scan_parts`). Run as a module this file is such a process.
"""

from __future__ import annotations

import re
import time
from typing import Any

from swift_toolkit.dataset.checks import judge, row_tokens, text_of
from swift_toolkit.dataset.files import decode_line, lines_of, read_chunks, read_records
from swift_toolkit.dataset.flaws import Flaw, FlawError
from swift_toolkit.dataset.media import MEDIA_NAMES, MediaCheck
from swift_toolkit.dataset.messages import Row
from swift_toolkit.dataset.scan.blocks import BlockCheck
from swift_toolkit.dataset.scan.part import Part, Sink
from swift_toolkit.dataset.scan.shape import HEAD_BYTES
from swift_toolkit.dataset.scan.tally import TOKEN_STEP, Tally


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
