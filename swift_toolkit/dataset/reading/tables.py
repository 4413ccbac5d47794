"""Tables: CSV and TSV as text, Parquet as columns."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from swift_toolkit.dataset.reading.streams import (
    BLOCK_BYTES,
    MAX_FIELD,
    MAX_ROW_BYTES,
    Chunk,
    CutError,
    DataFile,
    Record,
    Rest,
    count_byte,
)
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.formats import MEDIA_COLUMNS, MESSAGE_COLUMNS, OTHER_COLUMNS
from swift_toolkit.dataset.rows.messages import Row

SEPARATORS = {"csv": ",", "tsv": "\t"}
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

SMALL_BYTES = 4 << 20
"""Size of a table with quotes up to which the csv module takes less time than the import of numpy and pyarrow."""

Fields = list[tuple[int, Any]]
"""Rows of a table with their lines: the fields, or the flaw that makes the row unreadable."""


class TableRows(NamedTuple):
    """Rows of a table that were read one by one; lines are counted from the first one.

    Args:
        rows: fields and line of each row.
        lines: number of lines of the rows.
        size: number of characters of the rows.
    """

    rows: Fields
    lines: int
    size: int


class TableChunks:
    """Cuts a table into chunks of whole rows after its header.

    Args:
        stream: the file, or a section of it without the header.
        syntax: "csv" or "tsv".
        header: the names of the columns of a section; it was cut by `row_bounds`.
        is_small: read rows with quotes one by one in any case.

    Raises:
        FlawError: the header cannot be used.
    """

    def __init__(
        self, stream: IO[bytes], syntax: str, header: Sequence[str] | None = None, is_small: bool = False
    ) -> None:
        self.stream, self.is_small = stream, is_small
        self.separator = SEPARATORS[syntax]
        self.is_section = header is not None
        self.header: Sequence[str] = header or ()
        self.lines, self.rest = 0, b""
        if header is None:
            self._read_header()

    def _read_header(self) -> None:
        stream = self.stream
        data = stream.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
        end = first_row(data)
        self.lines = data.count(b"\n", 0, end)
        lines = _lines(io.StringIO(data[:end].decode(), newline=""))
        self.header = header_of(
            next(csv.reader(lines, delimiter=self.separator, strict=True), []), self.separator
        )
        self.rest = data[end:]

    def chunks(self) -> Iterator[Chunk | TableRows]:
        """All rows. After a quote that does not enclose a field, they are read one by one.

        Raises:
            CutError: there is such a quote, so the rows of the sections of this file were cut at the wrong places.
            FlawError: a line is too long.
        """
        data, more = self.rest, b"more"
        while more:
            if self.is_small and b'"' in data:
                yield from self._one_by_one(data)
                return
            quotes = _quotes_of(data)
            end = _last_row(data, len(quotes))
            rows = data[:end]
            if len(data) > MAX_ROW_BYTES or not _is_regular(rows, self.separator, quotes):
                yield from self._one_by_one(data)
                return
            if end:
                yield Chunk(rows)
            more = self.stream.read(BLOCK_BYTES)
            data = data[end:] + more
        if data and is_regular(data, self.separator):
            yield Chunk(data, last=True)
        elif data:
            yield from self._one_by_one(data)

    def _one_by_one(self, data: bytes) -> Iterator[TableRows]:
        if self.is_section:
            raise CutError
        rest = io.BufferedReader(Rest(data, self.stream), BLOCK_BYTES)
        rows: Fields = []
        first, size = 1, 0
        for line, fields in _fields(io.TextIOWrapper(rest, "utf-8", newline=""), self.header, self.separator):
            if size > BLOCK_BYTES:
                yield TableRows(rows, line - first, size)
                rows, first, size = [], line, 0
            rows.append((line - first + 1, fields))
            size += 0 if isinstance(fields, Flaw) else sum(map(len, fields))
        yield TableRows(rows, 0, size)

    def records(self) -> Iterator[Record]:
        """All rows one by one."""
        rest = io.BufferedReader(Rest(self.rest, self.stream), BLOCK_BYTES)
        rows = _fields(io.TextIOWrapper(rest, "utf-8", newline=""), self.header, self.separator)
        for number, (line, fields) in enumerate(rows, 1):
            if isinstance(fields, Flaw):
                yield Record(number, line + self.lines, fields, 0)
            else:
                size = sum(map(len, fields)) + len(fields)
                yield Record(number, line + self.lines, row_of(self.header, fields), size)


def first_row(data: bytes) -> int:
    """Where the first row of a table ends."""
    at = quotes = 0
    while True:
        end = data.find(b"\n", at) + 1
        quotes += data.count(b'"', at, end or len(data))
        if not end or quotes % 2 == 0:
            return end or len(data)
        at = end


def last_row(data: bytes) -> int:
    """Where the last whole row ends; 0 if there is none."""
    return _last_row(data, _quotes_in(data))


def _last_row(data: bytes, quotes: int) -> int:
    """Where the last whole row ends: after a line break with an even number of quotes before it; 0 if there is none.

    Args:
        data: rows, or their end.
        quotes: the number of quotes before its end.
    """
    end = len(data)
    while (at := data.rfind(b"\n", 0, end)) >= 0:
        quotes -= data.count(b'"', at, end)
        if quotes % 2 == 0:
            return at + 1
        end = at
    return 0


def _quotes_in(data: bytes) -> int:
    return _count(data, b'"') if b'"' in data else 0


def lines_in(data: bytes) -> int:
    """The number of line breaks; in quoted fields they are frequent, and numpy, which is loaded for quotes, is fast."""
    return _count(data, b"\n") if b'"' in data else count_byte(data, b"\n")


def _count(data: bytes, byte: bytes) -> int:
    import numpy

    values = numpy.frombuffer(data, numpy.uint8)
    blocks = (values[at : at + BLOCK_BYTES] for at in range(0, len(values), BLOCK_BYTES))
    return sum(int(numpy.count_nonzero(block == ord(byte))) for block in blocks)


def row_bounds(path: Path, step: int) -> Iterator[int]:
    """Positions between the rows of a table, at least `step` bytes apart, if each quote starts or ends a field."""
    at = quotes = 0
    with path.open("rb") as stream:
        while data := stream.read(step):
            quotes += _quotes_in(data)
            if end := _last_row(data, quotes):
                yield at + end
            at += len(data)


def header_of(names: list[str], separator: str) -> list[str]:
    """The names of the columns.

    Raises:
        FlawError: a name occurs twice, or the file uses another separator.
    """
    for name in names if len(names) == 1 else ():
        for other, called in _OTHER_SEPARATORS.items():
            if other != separator and other in name:
                what = f'the fields are separated by "{other}", not by "{separator}"'
                raise FlawError("columns", what, f"Save the file with commas instead of {called}.")
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise FlawError("columns", f'column "{twice}" occurs twice', "Rename one of them.")
    return names


def fields_of(data: bytes, header: Sequence[str], separator: str) -> Fields:
    """The rows of a chunk; lines are counted from its beginning.

    Raises:
        FlawError: a line is too long.
        _csv.Error: a quote is not closed.
    """
    if data.isspace() and separator.encode() not in data:  # a row of empty cells may consist of tabs only
        return []
    return list(_fields(io.StringIO(data.decode(), newline=""), header, separator))


def _fields(text: IO[str], header: Sequence[str], separator: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    line = 1
    for fields in reader:
        if fields:
            yield line, fields if len(fields) == len(header) else _wrong_count(header, fields)
        line = reader.line_num + 1


def _lines(text: IO[str]) -> Iterator[str]:
    while line := text.readline(MAX_FIELD):
        if len(line) == MAX_FIELD and line[-1] not in "\r\n":
            raise FlawError("broken", f"a line is longer than {MAX_FIELD >> 20} MB", "Split it.")
        yield line


def read_table(stream: IO[bytes], syntax: str) -> Iterator[Record]:
    """Every row of a table in order."""
    yield from TableChunks(stream, syntax).records()


def _wrong_count(header: Sequence[str], fields: Sequence[str]) -> Flaw:
    what = f"row has {len(fields)} fields, but the header has {len(header)}"
    return Flaw("broken", what, 'Enclose text that contains a separator or a line break in "quotes".')


def row_of(header: Sequence[str], fields: Sequence[str]) -> Row:
    """A row in the form of a decoded JSON object."""
    return {name: _cell(name, field) for name, field in zip(header, fields, strict=True) if name}


class Cells(NamedTuple):
    """The cells of a column.

    Args:
        texts: the cells in UTF-8.
        sizes: their numbers of bytes, a numpy array.
        firsts: the first byte of each; any byte for an empty cell.
        lasts: the last byte of each; any byte for an empty cell.
    """

    texts: list[bytes]
    sizes: Any
    firsts: bytes
    lasts: bytes


class Columns(NamedTuple):
    """The cells of some rows.

    Args:
        texts: name of the column -> its cells, as str or all as bytes in UTF-8.
        measured: the same with their sizes and ends, if they are bytes.
    """

    texts: dict[str, Sequence[Any]]
    measured: dict[str, Cells]


def columns_of(data: bytes, header: Sequence[str], separator: str, as_utf8: bool = False) -> Columns | None:
    """The columns of a chunk; None if a row has too few or too many fields, or is not UTF-8.

    Args:
        data: the chunk.
        header: the names of the columns.
        separator: the separator of the fields.
        as_utf8: read the cells as bytes, with pyarrow.
    """
    try:
        if b'"' not in data and len(header) > 1 and not as_utf8:
            return _columns_without_quotes(data, header, separator) or _parsed(data, header, separator, False)
        return _parsed(data, header, separator, as_utf8)
    except UnicodeDecodeError:
        return None


def _columns_without_quotes(data: bytes, header: Sequence[str], separator: str) -> Columns | None:
    """The same for the simplest form of a table, without loading a library; None for any other."""
    lines = data.decode().split("\n")
    if not lines[-1]:
        lines.pop()
    rows = [line.split(separator) for line in lines]
    if set(map(len, rows)) != {len(header)}:
        return None
    columns: list[Sequence[str]] = list(zip(*rows, strict=True))
    if returns := count_byte(data, b"\r"):
        columns[-1] = [cell[:-1] for cell in columns[-1] if cell.endswith("\r")]
        if len(columns[-1]) != len(rows) or len(rows) != returns:
            return None
    return Columns({name: column for name, column in zip(header, columns, strict=True) if name}, {})


def _parsed(data: bytes, header: Sequence[str], separator: str, as_utf8: bool) -> Columns | None:
    import pyarrow
    from pyarrow import csv as arrow

    names = [f"{at}" for at in range(len(header))]
    try:
        reader = arrow.open_csv(  # read_csv would start a thread for each chunk
            pyarrow.BufferReader(data),
            read_options=arrow.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
            parse_options=arrow.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )
        table = reader.read_all()
    except pyarrow.ArrowInvalid:
        return None
    chunks = {name: table.column(at).chunks for at, name in enumerate(header) if name}
    if any(len(arrays) != 1 for arrays in chunks.values()):  # no row, or more than Arrow puts into one array
        return None
    if not as_utf8:
        return Columns({name: array.to_pylist() for name, (array,) in chunks.items()}, {})
    measured = {name: _measured(array) for name, (array,) in chunks.items()}
    return Columns({name: cells.texts for name, cells in measured.items()}, measured)


def _measured(array: Any) -> Cells:
    import numpy

    _, offsets, data = array.buffers()
    bounds = numpy.frombuffer(offsets, numpy.int32)[array.offset : array.offset + len(array) + 1]
    values = numpy.frombuffer(data or b"\0", numpy.uint8)
    firsts, lasts = (values.take(places, mode="clip").tobytes() for places in (bounds[:-1], bounds[1:] - 1))
    return Cells(in_utf8(array), bounds[1:] - bounds[:-1], firsts, lasts)


def in_utf8(array: Any) -> list[Any]:
    """The values of an Arrow array of strings as bytes, which takes a third of the time of decoding them; or None."""
    import pyarrow

    binary = pyarrow.binary() if array.type == pyarrow.string() else pyarrow.large_binary()
    values: list[Any] = array.view(binary).to_pylist()
    return values


def is_regular(data: bytes, separator: str) -> bool:
    """Whether each quote starts or ends a field, or is an escaped quote within one."""
    return _is_regular(data, separator, _quotes_of(data))


def _quotes_of(data: bytes) -> Sequence[int]:
    """The positions of all quotes; a numpy array if there are any."""
    if b'"' not in data:
        return ()
    import numpy

    return cast("Sequence[int]", numpy.flatnonzero(numpy.frombuffer(data, numpy.uint8) == ord('"')))


def _is_regular(data: bytes, separator: str, positions: Sequence[int]) -> bool:
    """`is_regular`, for data whose quotes are known.

    Args:
        data: the rows.
        separator: the separator of the fields.
        positions: see `_quotes_of`; also of data after these rows.
    """
    if not len(positions) or positions[0] >= len(data):
        return True
    import numpy

    quotes = numpy.asarray(positions)
    if quotes[-1] >= len(data):
        quotes = quotes[: numpy.searchsorted(quotes, len(data))]
    if len(quotes) % 2:
        return False
    values = numpy.frombuffer(data, numpy.uint8)
    opening, closing = quotes[::2], quotes[1::2]  # an escaped quote closes a field and opens it again
    between = numpy.zeros(256, numpy.bool_)
    between[[ord(separator), ord("\r"), ord("\n")]] = True
    starts = between[values[opening - 1]]
    ends = between[values.take(closing + 1, mode="clip")]
    escaped = opening[1:] - closing[:-1] == 1
    starts[1:] |= escaped
    ends[:-1] |= escaped
    starts[0] |= opening[0] == 0
    ends[-1] |= closing[-1] == len(data) - 1
    return bool(starts.all() and ends.all())


_NUMBER_COLUMNS = frozenset({"label", "margin"})
_TEXT_COLUMNS = frozenset({"rejected_response", "channel", "solution", "teacher_prompt"})
_OBJECT_COLUMNS = {*MESSAGE_COLUMNS, *MEDIA_COLUMNS, *OTHER_COLUMNS} - _TEXT_COLUMNS - _NUMBER_COLUMNS
_ANSWER_COLUMNS = frozenset({"chosen", "rejected"})


def _cell(name: str, field: str) -> Any:
    """Decode a cell: JSON in columns of lists, objects or labels; text in all others; null for an empty cell."""
    if not field:
        return None
    is_number = name in _NUMBER_COLUMNS
    if is_number or (field.lstrip()[:1] in {"[", "{"} and name in _OBJECT_COLUMNS | _ANSWER_COLUMNS):
        try:
            value = json.loads(field.lower() if is_number else field)
        except (ValueError, RecursionError):
            return field
        is_talk = isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)
        return value if is_talk or name not in _ANSWER_COLUMNS else field
    return field


# Parquet

ROWS_AT_ONCE = 2048


class Batch(NamedTuple):
    """Rows of a Parquet file.

    Args:
        columns: a `pyarrow.RecordBatch`.
    """

    columns: Any


def batches(file: DataFile, groups: Sequence[int] | None = None) -> Iterator[Batch]:
    """Rows of a Parquet file.

    Args:
        file: the file.
        groups: row groups to read; None for all.
    """
    with _opened(file) as table:
        yield from _batches_of(table, groups)


def _opened(file: DataFile) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet

    # without pre_buffer=False, pyarrow keeps everything that it has read until the end
    return pyarrow.parquet.ParquetFile(file.path, pre_buffer=False)


def _batches_of(table: Any, groups: Sequence[int] | None) -> Iterator[Batch]:
    yield from map(Batch, table.iter_batches(ROWS_AT_ONCE, row_groups=groups, use_threads=False))


def batches_between(file: DataFile, start: int, end: int | None) -> Iterator[Batch]:
    """Rows of a Parquet file.

    Args:
        file: the file.
        start: number of the first row, counted from 0; those before it in its row group are decoded, too.
        end: number of the row after the last one; None for the end of the file.
    """
    with _opened(file) as table:
        bounds = list(accumulate(_group_rows(table), initial=0))
        groups = [
            at
            for at, (first, last) in enumerate(pairwise(bounds))
            if last > start and (end is None or first < end)
        ]
        at = bounds[groups[0]] if groups else 0
        for (batch,) in _batches_of(table, groups):
            first, last = max(start - at, 0), batch.num_rows if end is None else min(batch.num_rows, end - at)
            at += batch.num_rows
            if first < last:
                yield Batch(batch.slice(first, last - first))
            if end is not None and at >= end:
                return


def group_rows(file: DataFile) -> list[int]:
    """The number of rows of each row group of a Parquet file."""
    with _opened(file) as table:
        return _group_rows(table)


def _group_rows(table: Any) -> list[int]:
    metadata = table.metadata
    return [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]


def spread_groups(file: DataFile) -> list[int]:
    """The first and last row group of a Parquet file, and some in between."""
    with _opened(file) as table:
        last = table.metadata.num_row_groups - 1
    return list(dict.fromkeys(last * at // 4 for at in range(5)))


def read_parquet(file: DataFile) -> Iterator[Record]:
    """Every row of a Parquet file in order."""
    number = 0
    with _opened(file) as table:
        rows = table.metadata.num_rows
        for batch in table.iter_batches(batch_size=256, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, None, row, file.size // rows)


def parquet_rows(file: DataFile) -> int:
    """The number of rows according to the metadata of a Parquet file."""
    with _opened(file) as table:
        return int(table.metadata.num_rows)
