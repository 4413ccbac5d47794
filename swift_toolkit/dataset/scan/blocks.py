"""Blocks: a few thousand consecutive rows of a file.

A block provides the texts of all its rows at once if they are plain, and each row individually with its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

from swift_toolkit.dataset.reading.json_text import (
    JsonRows,
    as_array,
    decode_line,
    records_of_items,
    rows_of_items,
    rows_of_lines,
    texts_of_lines,
)
from swift_toolkit.dataset.reading.streams import Chunk, CutError, DataFile, Record, count_byte
from swift_toolkit.dataset.reading.tables import (
    SEPARATORS,
    Batch,
    Fields,
    TableRows,
    columns_of,
    fields_of,
    lines_in,
    row_of,
)
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.scan.talks import Talks
from swift_toolkit.dataset.scan.texts import PlainTexts


class Block(Protocol):
    """Consecutive rows of a file.

    Args:
        size: the size of the rows in bytes.
        lines: the number of line breaks in them.
    """

    size: int
    lines: int

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        """The texts of all rows; None if any of them is not plain."""

    def __len__(self) -> int:
        """The number of rows; 0 if they are only available in order, see `records`."""

    def texts(self, plain: PlainTexts, first: int, end: int) -> Talks | None:
        """The texts of some rows; None if any of them is not plain."""

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        """The rows one by one, without sizes; lines are counted from the beginning of the block."""

    def as_lines(self, first: int = 0, end: int | None = None) -> bytes | None:
        """The rows as JSON Lines; None if they are not JSON."""


def block_of(
    file: DataFile, chunk: Chunk | TableRows | Batch, header: Sequence[str], trusting: bool = False
) -> Block:
    """Create the block of a chunk.

    Args:
        file: the file of the chunk.
        chunk: the bytes.
        header: column names of a table.
        trusting: see `ItemBlock`.
    """
    if isinstance(chunk, Batch):
        return BatchBlock(chunk)
    if isinstance(chunk, TableRows):
        return TableBlock(Chunk(b""), header, SEPARATORS[file.syntax], chunk)
    if file.has_lines:
        return LineBlock(chunk)
    if file.syntax == "txt":
        return TextBlock(chunk)
    if file.values:
        return ItemBlock(chunk, trusting)
    return TableBlock(chunk, header, SEPARATORS[file.syntax])


class LineBlock:
    """JSON with one row per line."""

    def __init__(self, chunk: Chunk) -> None:
        self.data = chunk.data
        self.size = len(chunk.data)
        self.lines = count_byte(chunk.data, b"\n") + (not chunk.data.endswith(b"\n"))

    @cached_property
    def rows(self) -> JsonRows:
        """The rows and their lines."""
        return rows_of_lines(self.data)

    def __len__(self) -> int:
        return len(self.rows)

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        talks = plain.of_lines(self.data)
        return talks if talks is not None and len(talks.texts) == self.lines else None

    def texts(self, plain: PlainTexts, first: int, end: int) -> Talks | None:
        talks = plain.of_lines(self.as_lines(first, end))
        return talks if talks is not None and len(talks.texts) == end - first else None

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        for at, (line, data) in enumerate(self.rows[first:end], first + 1):
            yield Record(at, line, decode_line(data), 0)

    def as_lines(self, first: int = 0, end: int | None = None) -> bytes:
        if first == 0 and end is None:
            return self.data if self.data.endswith(b"\n") else self.data + b"\n"
        return b"".join(data + b"\n" for _, data in self.rows[first:end])


class ItemBlock(LineBlock):
    """Items of a JSON array.

    Args:
        chunk: the bytes.
        trusting: raise `CutError` if the chunk does not hold whole items; otherwise, they are read one by one up to the
            broken place.
    """

    def __init__(self, chunk: Chunk, trusting: bool) -> None:
        super().__init__(chunk)
        self.chunk = chunk
        self.trusting = trusting
        self.lines = count_byte(chunk.data, b"\n")

    @cached_property
    def _found(self) -> JsonRows | None:
        found = rows_of_items(self.chunk)
        if found is None and self.trusting:
            raise CutError
        return found

    @property
    def rows(self) -> JsonRows:
        return self._found or []

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        return plain.of_array(as_array(*self.chunk))

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        return records_of_items(self.chunk) if self._found is None else super().records(first, end)

    def as_lines(self, first: int = 0, end: int | None = None) -> bytes:
        return b"".join(data + b"\n" for _, data in self.rows[first:end])


class TextBlock:
    """Lines of plain text."""

    def __init__(self, chunk: Chunk) -> None:
        self.data = chunk.data
        self.size = len(chunk.data)
        self.lines = count_byte(chunk.data, b"\n")

    @cached_property
    def rows(self) -> list[tuple[int, str]]:
        """The lines that are not blank."""
        return texts_of_lines(self.data)

    def __len__(self) -> int:
        return len(self.rows)

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        return self.texts(plain, 0, len(self.rows)) if self.rows else None

    def texts(self, plain: PlainTexts, first: int, end: int) -> Talks | None:
        return plain.of_columns({"text": [text for _, text in self.rows[first:end]]})

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        for at, (line, text) in enumerate(self.rows[first:end], first + 1):
            yield Record(at, line, {"text": text}, 0)

    def as_lines(self, first: int = 0, end: int | None = None) -> None:
        return None


class TableBlock:
    """Rows of CSV or TSV."""

    def __init__(
        self, chunk: Chunk, header: Sequence[str], separator: str, read: TableRows | None = None
    ) -> None:
        self.data, self.header, self.separator, self.read = chunk.data, header, separator, read
        self.size = len(chunk.data) if read is None else read.size
        self.lines = lines_in(chunk.data) if read is None else read.lines

    @cached_property
    def rows(self) -> Fields:
        """The fields of each row and its line."""
        return fields_of(self.data, self.header, self.separator) if self.read is None else self.read.rows

    def __len__(self) -> int:
        return len(self.rows)

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        if self.read is not None:
            return self.texts(plain, 0, len(self)) if self.rows else None
        columns = columns_of(self.data, self.header, self.separator, plain.as_utf8)
        return None if columns is None else plain.of_columns(columns.texts, self.data, columns.measured)

    def texts(self, plain: PlainTexts, first: int, end: int) -> Talks | None:
        rows = [fields for _, fields in self.rows[first:end]]
        if any(isinstance(fields, Flaw) for fields in rows):
            return None
        return plain.of_columns(dict(zip(self.header, zip(*rows, strict=True), strict=True)))

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        for at, (line, fields) in enumerate(self.rows[first:end], first + 1):
            value = fields if isinstance(fields, Flaw) else row_of(self.header, fields)
            yield Record(at, line, value, 0)

    def as_lines(self, first: int = 0, end: int | None = None) -> None:
        return None


class BatchBlock:
    """Rows of Parquet."""

    lines = 0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch.columns
        self.size = batch.columns.nbytes

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def all_texts(self, plain: PlainTexts) -> Talks | None:
        return plain.of_batch(self.batch)

    def texts(self, plain: PlainTexts, first: int, end: int) -> Talks | None:
        return plain.of_batch(self.batch.slice(first, end - first))

    def records(self, first: int = 0, end: int | None = None) -> Iterator[Record]:
        rows = self.batch.slice(first, None if end is None else end - first).to_pylist()
        for at, row in enumerate(rows, first + 1):
            yield Record(at, None, row, 0)

    def as_lines(self, first: int = 0, end: int | None = None) -> None:
        return None
