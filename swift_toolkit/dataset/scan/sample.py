"""Judge a file within a time limit: all of it if possible, else its head, its tail and evenly spaced blocks.

The number of rows is then counted if that is possible in time (from the metadata of Parquet, and by the line breaks of
compressed files), and otherwise estimated from the bytes per row.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from swift_toolkit.dataset.reading.files import read_chunks
from swift_toolkit.dataset.reading.json_text import ItemChunks, between_items
from swift_toolkit.dataset.reading.streams import BLOCK_BYTES, Chunk, Unpacked, guarded, open_stream
from swift_toolkit.dataset.reading.tables import (
    SEPARATORS,
    Batch,
    TableRows,
    batches,
    columns_of,
    is_regular,
    last_row,
    parquet_rows,
    spread_groups,
)
from swift_toolkit.dataset.rows.checks import judge, text_of
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.scan.blocks import block_of
from swift_toolkit.dataset.scan.part import Part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Tally

SAMPLE_BYTES = 1 << 20
"""Size of the sampled blocks in a file that is too large to be read within the time limit."""
GROUPS = 5
"""Number of sampled row groups of a Parquet file."""


def sample_part(part: Part, deadline: float) -> Tally:
    """Judge a file within a time limit.

    Args:
        part: a whole file.
        deadline: time of `time.perf_counter`.
    """
    file = part.file
    if not file.has_chunks:
        return scan_part(part, deadline=deadline)
    if file.packing:
        return _sample_packed(part, deadline)
    if file.syntax == "parquet":
        return _sample_parquet(part, deadline)
    if file.size <= 2 * SAMPLE_BYTES:
        return scan_part(part, deadline=deadline)
    return _sample_plain(part, deadline)


def _sample_plain(part: Part, deadline: float) -> Tally:
    blocks = _Blocks(part)
    started = time.perf_counter()
    tally = scan_part(blocks.head())
    needed = (time.perf_counter() - started) / max(tally.size, 1) * part.file.size
    if needed < deadline - time.perf_counter():
        return scan_part(part, deadline=deadline)
    for at in spread(part.file.size):
        if (block := blocks.at(at)) is not None:
            tally.add(scan_part(block), near=at)
        if time.perf_counter() > deadline:
            break
    tally.whole = False
    return tally


def spread(size: int) -> Iterator[int]:
    """The positions to sample after the head: the tail, then blocks in an order that is even whenever it stops."""
    yield size - SAMPLE_BYTES
    blocks = size // SAMPLE_BYTES
    seen = {0, blocks, blocks - 1}
    step = 2
    while step <= blocks:
        for part in range(1, step, 2):
            block = blocks * part // step
            if block not in seen:
                seen.add(block)
                yield block * SAMPLE_BYTES
        step *= 2


class _Blocks:
    """Reads whole rows anywhere in an uncompressed file."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.between = between_items(self._bytes(0)) if part.file.values else b""

    def _bytes(self, at: int) -> bytes:
        with self.part.file.path.open("rb") as stream:
            stream.seek(at)
            return stream.read(SAMPLE_BYTES)

    def head(self) -> Part:
        """The first rows."""
        if self.part.file.has_lines:
            return replace(self.part, end=SAMPLE_BYTES)
        with guarded(), self.part.file.path.open("rb") as stream:
            first = next(read_chunks(self.part.file, stream), Chunk(b"", True))
        return replace(self.part, chunks=(first,))

    def at(self, at: int) -> Part | None:
        """Rows from about that byte on; None if their start is uncertain."""
        if self.part.file.has_lines:
            return replace(self.part, start=at, end=at + SAMPLE_BYTES)
        data = self._items(self._bytes(at)) if self.part.file.values else self._rows(self._bytes(at))
        return None if data is None else replace(self.part, start=at, chunks=(Chunk(data),))

    def some(self) -> Iterator[Chunk | TableRows | Batch]:
        """Blocks at some places after the head."""
        for at in islice(spread(self.part.file.size), 4):
            if self.part.file.has_lines:
                data = self._bytes(at)
                yield Chunk(data[data.find(b"\n") + 1 : data.rfind(b"\n") + 1])
            elif (block := self.at(at)) is not None:
                yield from block.chunks or ()

    def _items(self, data: bytes) -> bytes | None:
        first = data.find(self.between) if self.between else -1
        if first < 0:
            return None
        begin = data.index(b",", first)
        end = begin + ItemChunks(io.BytesIO(), self.between).last_item(data[begin:])
        return data[begin:end] if end > begin else None

    def _rows(self, data: bytes) -> bytes | None:
        separator, at = SEPARATORS[self.part.file.syntax], -1
        for _ in range(8):  # one of the first line breaks ends a row
            at = data.find(b"\n", at + 1)
            rows = data[at + 1 :]
            rows = rows[: last_row(rows)]
            if at < 0 or not rows:
                return None
            if is_regular(rows, separator) and columns_of(rows, self.part.header, separator) is not None:
                return rows
        return None


def _sample_packed(part: Part, deadline: float) -> Tally:
    """Judge as many rows as half of the time allows, and count the row separators in the other half."""
    source = Unpacked(part.file)
    with contextlib.closing(source):
        tally = scan_part(part, deadline=(time.perf_counter() + deadline) / 2, source=source)
        if tally.whole or tally.cut or not tally.size:
            return tally
        rows = tally.rows * source.passed() / tally.size
        mark = between_items(_head_of(part)) if part.file.values else b"\n"
        share = tally.rows / max(tally.lines, 1) if mark == b"\n" else 1.0
        with contextlib.suppress(FlawError), guarded():
            while mark and time.perf_counter() < deadline:
                block = source.stream.read(BLOCK_BYTES)
                if not block:
                    tally.total = round(rows)
                    return tally
                rows += block.count(mark) * share
        tally.total = round(rows * part.file.size / max(source.position(), 1))
    return tally


def _head_of(part: Part) -> bytes:
    with open_stream(part.file) as stream:
        return stream.read(SAMPLE_BYTES)


def _sample_parquet(part: Part, deadline: float) -> Tally:
    """Judge rows from row groups that are spread over the file."""
    tally = Tally(total=parquet_rows(part.file))
    per_group = max((deadline - time.perf_counter()) / GROUPS, 0.05)
    for group in spread_groups(part.file):
        until = time.perf_counter() + per_group
        with guarded():
            for chunk in batches(part.file, [group]):
                tally.add(scan_part(replace(part, chunks=(chunk,), start=tally.size)))
                if time.perf_counter() > until:
                    break
    tally.whole = tally.rows == tally.total
    return tally


ROWS_OF_A_BLOCK = 60


def some_texts(part: Part) -> Iterator[tuple[str, ...]]:
    """Texts of rows from the beginning of a file and, if that is fast, from some later places."""
    for piece in some_blocks(part):
        block = block_of(part.file, piece, part.header)
        step = max(len(block) // ROWS_OF_A_BLOCK, 1)
        for at in range(0, len(block), step):
            for record in block.records(at, at + 1):
                row, _ = judge(record.value, part.layout, part.rules)
                if row is not None:
                    yield tuple(map(text_of, row["messages"]))


def some_blocks(part: Part) -> Iterator[Chunk | TableRows | Batch]:
    """The first block of a file and, if that is fast, some later blocks."""
    if not part.file.has_chunks:
        return
    with contextlib.suppress(FlawError, UnicodeDecodeError), guarded():
        if part.file.syntax == "parquet":
            for group in spread_groups(part.file):
                yield from islice(batches(part.file, [group]), 1)
            return
        with open_stream(part.file) as stream:
            yield from islice(read_chunks(part.file, stream), 1)
        if not part.file.packing and part.file.size > 4 * SAMPLE_BYTES:
            yield from _Blocks(part).some()
