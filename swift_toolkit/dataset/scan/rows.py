"""Scan the rows of a file: many at once if they are certainly valid, else one by one.

Each part of a file yields a `Tally`; the sum of the tallies describes the file. Different processes can scan parts of
the same file (see `scan.pool`).
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from swift_toolkit.console.words import shown
from swift_toolkit.dataset.reading.files import encoding_flaw, read_chunks, read_records
from swift_toolkit.dataset.reading.streams import Unpacked, guarded, keep_freed_memory, open_stream
from swift_toolkit.dataset.rows.checks import judge, text_of
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.media import MEDIA_NAMES, MediaCheck
from swift_toolkit.dataset.rows.messages import Row
from swift_toolkit.dataset.scan.blocks import Block, block_of
from swift_toolkit.dataset.scan.near import NEAR_ROWS, Sketch
from swift_toolkit.dataset.scan.part import Part, Sink
from swift_toolkit.dataset.scan.quick import QuickCheck
from swift_toolkit.dataset.scan.shape import HEAD_BYTES
from swift_toolkit.dataset.scan.talks import Talks, encoded
from swift_toolkit.dataset.scan.tally import Tally
from swift_toolkit.dataset.scan.texts import PlainTexts

ROWS_PER_COLLECTION = 100_000
"""Approximate number of rows after which the collector of Python looks for garbage; its own default is 700 objects."""


def scan_part(
    part: Part, sink: Sink | None = None, deadline: float | None = None, source: Unpacked | None = None
) -> Tally:
    """Judge every row of a part.

    Args:
        part: the part to scan.
        sink: receives every row.
        deadline: time of `time.perf_counter` at which to stop early.
        source: the file, opened by the caller, who continues reading it.

    Raises:
        CutError: a part of a file, or a trusting one, was cut at a wrong place. Read the file whole, and not trusting.
    """
    keep_freed_memory()
    scan = _Scan(part, sink, source)
    try:
        with guarded(), _rare_collections():
            scan.run(deadline)
    except UnicodeDecodeError:
        scan.cut(encoding_flaw(part.file).flaw)
    except FlawError as error:
        scan.cut(error.flaw)
    scan.tally.settle()
    return scan.tally


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage rarely: rows contain no cycles, and the collector would visit each row several times."""
    usual = gc.get_threshold()
    gc.set_threshold(ROWS_PER_COLLECTION, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


class _Scan:
    """The rows of a part."""

    def __init__(self, part: Part, sink: Sink | None, source: Unpacked | None) -> None:
        self.part = part
        self.sink = sink
        self.source = source
        every_row = Sketch(left=sys.maxsize, characters=sys.maxsize)
        near = every_row if part.rules.closely else Sketch(NEAR_ROWS if part.begins else 0)
        self.tally = Tally(lines=part.header_lines if part.begins else 0, near=near)
        self.media = MediaCheck()
        self.quick = QuickCheck(part.rules, part.as_utf8)
        plain = PlainTexts(part.layout, part.shape, part.as_utf8)
        one_by_one = sink is not None and sink.wants_rows
        self.plain = plain if plain.known and not one_by_one else None
        self.later_type: Any = None
        self.ends = False
        self.deadline: float | None = None

    def run(self, deadline: float | None) -> None:
        """Scan all rows until the deadline."""
        self.deadline = deadline
        if self.part.file.has_chunks:
            for block in self._blocks():
                self._block(block)
                del block  # its memory serves the next one
                if self.ends or self._is_over(deadline):
                    return
            return
        for record in read_records(self.part.file):
            self.tally.size += record.size
            self.row(record.value, record.line)
            self.tally.cut = self.tally.cut or record.cut
            if self.tally.rows % 64 == 0 and self._is_over(deadline):
                return

    def _is_over(self, deadline: float | None) -> bool:
        if deadline is None or time.perf_counter() <= deadline:
            return False
        self.tally.whole = False
        return True

    def cut(self, flaw: Flaw) -> None:
        """Record that the part cannot be read to the end."""
        self.tally.cut = True
        self.tally.note(flaw, None, self.tally.rows + 1)

    def _blocks(self) -> Iterator[Block]:
        part = self.part
        if part.chunks is not None:
            for chunk in part.chunks:
                yield block_of(part.file, chunk, part.header, part.trusting)
            return
        with contextlib.ExitStack() as stack:
            stream = self.source.stream if self.source else stack.enter_context(open_stream(part.file))
            for chunk in read_chunks(part.file, stream, part.section, part.trusting, part.as_utf8):
                yield block_of(part.file, chunk, part.header, part.trusting)
                del chunk  # its memory serves the next one

    # Many rows at once

    def _block(self, block: Block) -> None:
        at = self.part.start + self.tally.size
        wide = self.part.shape.is_typeless
        if at > HEAD_BYTES and self.later_type is None and self.part.file.has_lines and not wide:
            self.later_type = self.part.shape.struct({})  # columns and types are known by now
        self.tally.size += block.size
        talks = block.all_texts(self.plain) if self.plain is not None else None
        if talks is not None and self._take(talks, block, 0, None):
            pass
        elif self.plain is None or not len(block):
            self._one_by_one(block, 0, None)
        else:
            self._halves(block, 0, len(block))
        self.tally.lines += block.lines

    def _halves(self, block: Block, first: int, end: int) -> None:
        """Accept rows at once; find the rows that must be judged individually by bisection."""
        assert self.plain is not None
        if self.ends:
            return
        if end - first > 1:
            talks = block.texts(self.plain, first, end)
            if talks is not None and self._take(talks, block, first, end):
                return
            middle = (first + end) // 2
            self._halves(block, first, middle)
            self._halves(block, middle, end)
        elif end > first:
            self._one_by_one(block, first, end)

    def _take(self, talks: Talks, block: Block, first: int, end: int | None) -> bool:
        lines = block.as_lines(first, end) if self.sink is not None else None
        if (self.sink is not None and lines is None) or not talks.texts:
            return False
        if not self.quick.take(talks, self.tally):
            return False
        if self.sink is not None and lines is not None:
            self.sink.lines(lines)
        return True

    # One row

    def _one_by_one(self, block: Block, first: int, end: int | None) -> None:
        for record in block.records(first, end):
            value = record.value
            if self.later_type is not None and isinstance(value, dict):
                value = self._as_in_head(value)
            if self.part.file.values and isinstance(value, dict):
                self.tally.shape.add(value)
            self.row(value, None if record.line is None else self.tally.lines + record.line)
            self.tally.cut = self.tally.cut or record.cut
            self.ends = self.tally.cut or (self.tally.rows % 64 == 0 and self._is_over(self.deadline))
            if self.ends:
                return

    def row(self, value: Any, line: int | None) -> None:
        """Judge one row in full."""
        tally = self.tally
        tally.rows += 1
        row, flaws = judge(value, self.part.layout, self.part.rules)
        if row is None:
            # an impossible fingerprint keeps the indices of the others
            print_ = hash((self.part.file.shown, self.part.start, tally.rows))
            tally.prints.extend([print_], 1)
            tally.near.skip(print_)
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
        key = encoded(texts) if self.part.as_utf8 else texts
        print_ = hash((key, repr(sorted(row.items()))) if row else key)
        row["messages"] = messages
        self.tally.prints.extend([print_], 1)
        if self.tally.near.left:
            self.tally.near.take([texts], repr(sorted(row.items())) if row else "")
        self.tally.turns[len(messages)] += 1
        self.tally.note_length(self.part.rules.lengths.of_texts(texts), texts)
        if messages[-1]["role"] == "assistant":
            self.tally.note_answers([texts[-1]])
        if "label" in row and self.part.rules.task.rows in ("judged", "class"):
            self.tally.note_label(shown(row["label"]))

    def _as_in_head(self, value: Row) -> Any:
        """The row, or a flaw if its columns or types differ from those of the head of the file."""
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
