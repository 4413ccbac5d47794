"""A part of a file, with everything needed to scan it independently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from swift_toolkit.dataset.reading.files import (
    READ_BY_SWIFT,
    encoding_flaw,
    look_at,
    read_chunks,
    read_records,
)
from swift_toolkit.dataset.reading.json_text import as_array, last_comma
from swift_toolkit.dataset.reading.streams import (
    Chunk,
    CutError,
    DataFile,
    Section,
    guarded,
    keep_freed_memory,
    open_stream,
)
from swift_toolkit.dataset.reading.tables import Batch, TableChunks, TableRows
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.elsewhere import layout_elsewhere, renaming
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.formats import (
    CONVERTED,
    TEXT_COLUMNS,
    Layout,
    NoFormatError,
    columns_of_other_tasks,
    layout_of,
)
from swift_toolkit.dataset.rows.messages import LOSS_KEYS, Row, unused_keys
from swift_toolkit.dataset.scan.blocks import block_of
from swift_toolkit.dataset.scan.decoder import RowDecoder
from swift_toolkit.dataset.scan.shape import HEAD_BYTES, Shape

LITTLE = 1 << 14
"""Bytes at the start of a file from which its columns and types are learned, to check the rest against them."""


class Sink(Protocol):
    """Receives every row of a scan in order.

    Args:
        wants_rows: whether every row must be passed as messages, none as a line.
    """

    wants_rows: bool

    def lines(self, chunk: bytes) -> None:
        """Receive whole lines with rows without flaws."""

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        """Receive one row: as decoded, as messages, and its flaws."""


@dataclass(frozen=True)
class Part:
    """Rows to scan.

    Args:
        file: the file.
        layout: its format.
        shape: its columns and types.
        rules: the requirements of the run for its rows.
        start: the first byte, or row; see `Section`.
        end: the end of the part; None for the end of the file.
        copy_reason: why ms-swift needs a copy of the file; "" if it reads the file itself.
        chunks: the rows themselves, if they have already been read.
        trusting: raise `CutError` where rows of an array were cut at a wrong place, rather than decode them twice.
        header: column names of a table, in order.
        header_lines: number of lines of the header.
        as_utf8: read tables and Parquet without decoding their texts; rows are compared by their texts in UTF-8.
    """

    file: DataFile
    layout: Layout
    shape: Shape
    rules: Rules
    start: int = 0
    end: int | None = None
    copy_reason: str = ""
    chunks: tuple[Chunk | TableRows | Batch, ...] | None = None
    trusting: bool = False
    header: tuple[str, ...] = ()
    header_lines: int = 0
    as_utf8: bool = False

    @property
    def begins(self) -> bool:
        """Whether this is the first part of the file."""
        return self.start == 0

    @property
    def section(self) -> Section:
        """Its place in the file."""
        return Section(self.start, self.end, self.header if self.start or self.end else ())


@dataclass(frozen=True)
class Head:
    """Information from the beginning of a file.

    Args:
        shape: columns and types.
        header: column names of a table, in order.
        header_lines: number of lines of the header.
    """

    shape: Shape
    header: tuple[str, ...] = ()
    header_lines: int = 0


def head_of(file: DataFile) -> Head:
    """Learn the columns and types of a file from its first 10 MB, as ms-swift does; for a table from less.

    Raises:
        FlawError: the file cannot be read.
    """
    keep_freed_memory()
    with guarded():
        try:
            if file.syntax in {"csv", "tsv"}:
                return _head_of_table(file)
            shape = (
                _shape_of_json(file) if file.syntax == "json" and file.has_chunks else _shape_of_records(file)
            )
        except UnicodeDecodeError:
            raise encoding_flaw(file) from None
    return Head(shape)


def _head_of_table(file: DataFile) -> Head:
    shape, size = Shape(), 0
    with open_stream(file) as stream:
        table = TableChunks(stream, file.syntax)
        for record in () if table.rest.isspace() else table.records():
            if isinstance(record.value, dict):
                shape.add(record.value)
            size += record.size
            if size > TABLE_HEAD_BYTES:
                break
    return Head(shape, tuple(table.header), table.lines)


def _shape_of_records(file: DataFile) -> Shape:
    shape, size = Shape(), 0
    for number, record in enumerate(read_records(file)):
        if isinstance(record.value, dict):
            shape.add(record.value)
        size += record.size
        if size > HEAD_BYTES or (file.syntax == "parquet" and number > PARQUET_ROWS):
            break
    return shape


TABLE_HEAD_BYTES = 1 << 18
"""Size of the inspected rows of a table; its columns are known from the first line, and all hold text."""

PARQUET_ROWS = 1000
"""Number of inspected rows of a Parquet file; the types of all others are the same."""


def _shape_of_json(file: DataFile) -> Shape:
    try:
        return _shape_of_chunks(file, trusting=True)
    except CutError:
        return _shape_of_chunks(file, trusting=False)


def _shape_of_chunks(file: DataFile, trusting: bool) -> Shape:
    """Learn value by value until a decoder for the types seen so far accepts whole chunks.

    Args:
        file: the file.
        trusting: see `ItemChunks`.

    Raises:
        CutError: items of an array were cut at a wrong place.
    """
    shape, size = Shape(), 0
    decoder: RowDecoder | None = None
    with open_stream(file) as stream:
        for chunk in _little_first(read_chunks(file, stream, trusting=trusting), file):
            if decoder is None or shape.is_typeless or not _accepts(decoder, file, chunk):
                for record in block_of(file, chunk, (), trusting).records():
                    if isinstance(record.value, dict):
                        shape.add(record.value)
                if not shape.may_be_dates and not shape.is_typeless:
                    decoder = RowDecoder(shape.struct({}, whole=True), shape.is_only_texts)
            size += len(chunk.data)
            if size > HEAD_BYTES:
                break
    return shape


def _accepts(decoder: RowDecoder, file: DataFile, chunk: Chunk) -> bool:
    found = decoder.lines(chunk.data) if file.has_lines else decoder.array(as_array(*chunk))
    return found is not None


def _little_first(chunks: Iterator[Any], file: DataFile) -> Iterator[Chunk]:
    """The chunks, the first one split in two, so that little is learned value by value."""
    first = next(chunks, None)
    if first is None:
        return
    cut = first.data.find(b"\n", LITTLE) + 1 if file.has_lines else _cut_of_items(first.data)
    if cut and cut < len(first.data):
        yield Chunk(first.data[:cut])
        yield Chunk(first.data[cut:], first.last)
    else:
        yield first
    yield from chunks


def _cut_of_items(data: bytes) -> int:
    return last_comma(data[: LITTLE * 2])


def find_part(path: Path, shown: str, rules: Rules) -> Part:
    """A whole file as a part, with its format and the types of its columns.

    Args:
        path: the file.
        shown: its name in messages.
        rules: the requirements of the run for its rows.

    Raises:
        FlawError: it cannot be read, or its format is unknown.
    """
    file = look_at(path, shown)
    head = head_of(file)
    part = Part(
        file, Layout("", "messages", {}), Shape(), rules, header=head.header, header_lines=head.header_lines
    )
    return learned(part, head.shape)


def learned(part: Part, shape: Shape) -> Part:
    """The part with everything derived from these columns and types.

    Raises:
        FlawError: their format is unknown.
    """
    # without a row that is an object, there is no format, and no row needs one
    layout = _layout(shape, part.rules) if shape.fields else part.layout
    reason = copy_reason(part.file, layout, shape, part.rules)
    return replace(part, layout=layout, shape=shape, copy_reason=reason)


def _layout(shape: Shape, rules: Rules) -> Layout:
    try:
        return layout_of(list(shape.fields), rules.columns, rules.task.rows)
    except NoFormatError as error:
        row = shape.example()
        if (found := layout_elsewhere(row)) is not None:
            raise FlawError("columns", f"the file is in the format of {found[0]}", found[1]) from None
        if do := renaming(row, rules.task.rows):
            raise FlawError("columns", error.flaw.what, do) from None
        raise


def copy_reason(file: DataFile, layout: Layout, shape: Shape, rules: Rules) -> str:
    """Why ms-swift needs a converted copy of this file; "" if it reads the file itself."""
    suffixes = "".join(file.path.suffixes[-2 if file.packing else -1 :])
    if file.path.suffix not in READ_BY_SWIFT:
        return f"ms-swift does not read {suffixes}"
    if file.values == "objects":
        return "ms-swift needs one row per line"
    if file.values == "array" and not _starts_with(file, b"["):
        return "ms-swift needs an array to start at the first byte"
    if layout.family in CONVERTED:
        return f"ms-swift does not read {layout.name}"
    if file.syntax == "csv":
        return "ms-swift would read text as numbers"
    if rules.task.rows == "class" and any(layout.rename.get(name) == "query" for name in TEXT_COLUMNS):
        return 'ms-swift would treat "text" as an answer'
    for column, name in layout.rename.items():
        if name == "messages" and (key := next(iter(_keys_inside(shape, column) & set(LOSS_KEYS)), None)):
            return f'in ms-swift, "{key}" of a message is named "loss"'
    for name in ("positive_messages", "negative_messages"):
        if rules.task.rows != "documents" and name in layout.rename.values():
            return f'ms-swift would delete rows without "{name}"'
    for column in shape.fields.keys() - set(layout.unused):
        if layout.rename[column] in _TEXT_COLUMNS and shape.fields[column].has_dates:
            return f'ms-swift would read the dates in "{column}" as numbers'
        if layout.rename[column] in _TEXT_COLUMNS and shape.fields[column].mixes_texts:
            return f'ms-swift would read texts like "42" in "{column}" as numbers'
    return ""


def _keys_inside(shape: Shape, column: str) -> set[str]:
    """Keys of the objects in a list."""
    items = shape.fields[column].items
    return set() if items is None else set(items.fields)


def unused_names(part: Part) -> list[str]:
    """Columns, and keys of messages, that training does not use."""
    keys = {column: _keys_inside(part.shape, column) for column in part.shape.fields}
    others = columns_of_other_tasks(part.layout, part.rules.task.rows)
    return [*part.layout.unused, *others, *unused_keys(part.layout, keys)]


_NAMES = (
    "query response instruction input output system history messages rejected_messages rejected_response "
    "positive_messages negative_messages"
)
_TEXT_COLUMNS = frozenset(_NAMES.split())


def _starts_with(file: DataFile, mark: bytes) -> bool:
    with file.path.open("rb") as stream:
        return stream.read(len(mark)) == mark
