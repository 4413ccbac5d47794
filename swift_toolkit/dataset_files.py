"""Reading rows from files of any accepted kind as a stream, with the place of each.

JSON, JSONL (also one array or several pretty-printed objects), CSV, TSV, text and Parquet; plain, .gz or
.zst. Memory stays flat: a block of the file and one row are all that is held. What cannot be read becomes a
`Flaw` in its place, never an exception.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from swift_toolkit.dataset_rows import Flaw

Syntax = Literal["jsonl", "json", "csv", "tsv", "parquet", "txt"]
SUFFIXES: dict[str, Syntax] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "txt",
}  # fmt: skip
PACKINGS = {".gz": "gz", ".zst": "zst"}
READ_BY_SWIFT = frozenset({".jsonl", ".json", ".csv", ".parquet", ".txt"})
"""Suffixes that ms-swift's `load_dataset` takes for a single file."""

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 32 << 20
"""Longest row that is read, in bytes; keeps memory bounded. About eight million tokens."""


class Record(NamedTuple):
    """One row of a file.

    Args:
        number: its place among the rows, from 1.
        line: the line it starts on, from 1; None where the file has no lines.
        value: the decoded row, or what is wrong with it.
        bytes: its size in the file, or an estimate of it.
    """

    number: int
    line: int | None
    value: Any
    bytes: int


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Args:
        path: where it is.
        shown: how messages call it, as the user spelled it.
        syntax: how it is written.
        packing: compression, "" for none; told by its first bytes, not its name.
        size: bytes on disk.
    """

    path: Path
    shown: str
    syntax: Syntax
    packing: str
    size: int


def data_suffix(path: str | Path) -> str | None:
    """The suffix that tells the syntax, compression aside; None if it is no data file."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def look_at(path: Path, shown: str) -> DataFile | Flaw:
    """What kind of data file this is, from its name and its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
        size = path.stat().st_size
    except OSError as error:
        return Flaw("unreadable", f"cannot be read: {os.strerror(error.errno or 0).lower()}")
    suffix = data_suffix(path)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        return Flaw(
            "unreadable", "is not a kind of file that holds rows", f"Use one of {known}, plain, .gz or .zst."
        )
    if head.startswith(b"PK\x03\x04"):
        return Flaw("unreadable", "is a zip archive", "Unpack it first.")
    packing = "gz" if head.startswith(b"\x1f\x8b") else "zst" if head.startswith(b"\x28\xb5\x2f\xfd") else ""
    if suffix == ".parquet" and packing:
        return Flaw("unreadable", "is a compressed Parquet file", "Unpack it first.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Flaw("encoding", "is UTF-16")
    if head.startswith(b"version "):
        return Flaw("unreadable", "is a Git LFS pointer, not the data", 'Run "git lfs pull" to get it.')
    return DataFile(path, shown, SUFFIXES[suffix], packing, size)


def open_stream(file: DataFile) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    if file.packing == "gz":
        import gzip

        return cast("IO[bytes]", gzip.open(file.path, "rb"))
    if file.packing == "zst":
        import zstandard

        return cast("IO[bytes]", zstandard.open(file.path, "rb"))
    return file.path.open("rb")


def read_records(file: DataFile) -> Iterator[Record]:
    """Every row of a file in order. A flaw that ends the reading is the last record."""
    number = 0
    try:
        for record in _READERS[file.syntax](file):
            number = record.number
            yield record
    except UnicodeDecodeError:
        yield Record(number + 1, None, Flaw("encoding", "is not UTF-8"), 0)
    except Exception as error:
        if not _is_damage(error):
            raise
        yield Record(
            number + 1, None, Flaw("broken", f"cannot be read past row {number}: {_damage(error)}"), 0
        )


def _is_damage(error: Exception) -> bool:
    """Whether this is a library's way to say that the file is damaged."""
    import zlib

    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError, zlib.error)) or module in {
        "zstandard",
        "zstd",
        "pyarrow",
        "_csv",
    }


def _damage(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the file is cut off"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first[:120].rstrip(".")


# JSON


def _read_jsonl(file: DataFile) -> Iterator[Record]:
    if is_array(file) or (file.syntax == "json" and _first_line_is_cut(file)):
        yield from _read_values(file)
        return
    number = 0
    for line, data in enumerate(read_lines(file), 1):
        if data is None:
            yield Record(number + 1, line, _too_long_row(), 0)
            return
        if not data or data.isspace():
            continue
        number += 1
        yield Record(number, line, decode_line(data), len(data))


def is_array(file: DataFile) -> bool:
    """Whether the rows are the items of one JSON array."""
    with open_stream(file) as stream:
        return stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _first_line_is_cut(file: DataFile) -> bool:
    """Whether the first row goes on behind its first line, as a pretty-printed object does."""
    first = next((data for data in read_lines(file) if data is None or data.strip()), None)
    return first is not None and isinstance(decode_line(first), Flaw)


def _too_long_row() -> Flaw:
    return Flaw("broken", f"row is longer than {MAX_ROW_BYTES >> 20} MB", "Split it.")


def read_lines(file: DataFile) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None, and an end, for one longer than `MAX_ROW_BYTES`."""
    with open_stream(file) as stream:
        rest = stream.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
        while block := stream.read(BLOCK_BYTES):
            *lines, tail = block.split(b"\n")
            if lines:
                yield rest + lines[0]
                yield from lines[1:]
                rest = tail
            else:
                rest += tail
            if len(rest) > MAX_ROW_BYTES:
                yield None
                return
        *lines, tail = rest.split(b"\n")
        yield from lines
        if tail:
            yield tail


def decode_line(data: bytes) -> Any:
    """One JSON value, or the flaw that says why it is none."""
    import msgspec

    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return explain_json(data)


def explain_json(data: bytes) -> Flaw:
    """Why these bytes are not one JSON value, in words."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Flaw("encoding", f"row is not UTF-8 at byte {error.start + 1}")
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return Flaw("broken", "row is nested too deeply")
    except json.JSONDecodeError as error:
        return _explain_syntax(text, error)
    except ValueError as error:
        return Flaw("broken", str(error))
    if re.search(r"\\u[dD][89a-fA-F]", text):
        return Flaw(
            "broken", "text holds half of a surrogate pair (\\ud800 to \\udfff)", "Write the whole character."
        )
    return Flaw("broken", "row holds a number that is too large")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null")


def _explain_syntax(text: str, error: json.JSONDecodeError) -> Flaw:
    column = error.colno
    if error.msg == "Extra data":
        rest = text[error.pos :].lstrip()
        if rest.startswith("{"):
            return Flaw("broken", f"a second row begins at column {column}", "Put each row on its own line.")
        if rest.startswith(","):
            return Flaw(
                "broken", "a comma follows the row", "JSON Lines has none between its rows; remove it."
            )
        return Flaw("broken", f"something follows the row at column {column}", "Remove it.")
    if error.msg.startswith("Invalid control character"):
        at = text[error.pos]
        named = {"\t": "tab, write \\t", "\x00": "NUL character", "\r": "line break, write \\n"}
        return Flaw("broken", f"text holds a raw {named.get(at, f'control character (code {ord(at)})')}")
    if error.msg.startswith("Unterminated string") or not text[error.pos :].strip():
        return Flaw("broken", "row is cut off", "Each row must be whole and on one line.")
    if text.lstrip()[:1] not in '{["' and error.pos == len(text) - len(text.lstrip()):
        return Flaw("broken", "row is not JSON")
    hint = error.msg[0].lower() + error.msg[1:]
    return Flaw("broken", f"broken JSON at column {column}: {hint}")


def _read_values(file: DataFile) -> Iterator[Record]:
    """The items of one array, or objects that follow one another over several lines."""
    with open_stream(file) as stream:
        yield from _ValueReader(io.TextIOWrapper(stream, "utf-8-sig", newline="")).records()


_SPACE = re.compile(r"[ \t\r\n]*")


class _ValueReader:
    """Decodes one item after the other with the standard library's decoder, holding one block of text."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.text = ""
        self.at = 0
        self.line = 1
        self.decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def records(self) -> Iterator[Record]:
        in_array = self._next_mark() == "["
        self.at += in_array
        number = 0
        while (mark := self._next_mark()) and not (in_array and mark == "]"):
            number += 1
            if in_array and number > 1:
                if mark != ",":
                    yield Record(number, self.line, Flaw("broken", "a comma is missing before this row"), 0)
                    return
                self.at += 1
                self._next_mark()
            line = self.line
            value, size, goes_on = self._value()
            yield Record(number, line, value, size)
            if not goes_on:
                return
        if in_array:
            yield from self._end(number)

    def _end(self, number: int) -> Iterator[Record]:
        if not self._next_mark():
            yield Record(number + 1, self.line, Flaw("broken", 'the array is cut off: its "]" is missing'), 0)
            return
        self.at += 1
        if self._next_mark():
            yield Record(
                number + 1, self.line, Flaw("broken", "something follows the array", "Remove it."), 0
            )

    def _more(self, size: int) -> bool:
        block = self.stream.read(size)
        self.text = self.text[self.at :] + block
        self.at = 0
        return bool(block)

    def _next_mark(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            start, self.at = self.at, _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self.line += self.text.count("\n", start, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more(BLOCK_BYTES):
                return ""

    def _value(self) -> tuple[Any, int, bool]:
        """The item that starts here, its length, and whether the reading can go on behind it."""
        while True:
            held = len(self.text) - self.at
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if held > MAX_ROW_BYTES:
                    return _too_long_row(), 0, False
                if self._more(max(held, BLOCK_BYTES)):
                    continue
                return self._explain(error), 0, False
            except RecursionError:
                return Flaw("broken", "row is nested too deeply"), 0, False
            except ValueError as error:
                return Flaw("broken", str(error)), 0, False
            if end == len(self.text) and self._more(BLOCK_BYTES):
                continue  # a number may go on in the next block
            raw = self.text[self.at : end]
            self.line += raw.count("\n")
            self.at = end
            return _whole_characters(value, raw), len(raw), True

    def _explain(self, error: json.JSONDecodeError) -> Flaw:
        flaw = _explain_syntax(self.text[self.at :], error)
        if not flaw.what.startswith("broken JSON"):
            return flaw
        line = self.line + self.text.count("\n", self.at, error.pos)
        return Flaw("broken", f"broken JSON on line {line}: {flaw.what.partition(': ')[2]}")


def _whole_characters(value: Any, raw: str) -> Any:
    """The value, or a flaw if its escapes leave half a character."""
    if "\\u" not in raw:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return explain_json(raw.encode())
    return value


# Tables


def _read_table(file: DataFile) -> Iterator[Record]:
    import csv

    csv.field_size_limit(MAX_ROW_BYTES)
    with open_stream(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.reader(text, delimiter="\t" if file.syntax == "tsv" else ",", strict=True)
        header = next(reader, None)
        if header is None:
            return
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            yield Record(
                1, 1, Flaw("columns", f'column "{twice[0]}" is there twice', "Rename one of them."), 0
            )
            return
        number, line = 0, reader.line_num + 1
        for fields in reader:
            if fields:
                number += 1
                yield Record(number, line, _table_row(header, fields), sum(map(len, fields)) + len(fields))
            line = reader.line_num + 1


def _table_row(header: list[str], fields: list[str]) -> Any:
    if len(fields) != len(header):
        return Flaw(
            "broken",
            f"row has {len(fields)} fields and the header {len(header)}",
            'Put text that holds a separator or a line break into "quotes".',
        )
    return {name: _cell(name, field) for name, field in zip(header, fields, strict=True) if name}


_NUMBER_COLUMNS = frozenset({"label", "margin"})


def _cell(name: str, field: str) -> Any:
    """Lists, objects and labels are read as JSON; all else stays text, and an empty cell is none."""
    if not field:
        return None
    if field.lstrip()[:1] in {"[", "{"} or name in _NUMBER_COLUMNS:
        try:
            return json.loads(field if name not in _NUMBER_COLUMNS else field.lower())
        except (ValueError, RecursionError):
            return field
    return field


def _read_text(file: DataFile) -> Iterator[Record]:
    number = 0
    for line, data in enumerate(read_lines(file), 1):
        if data is None:
            yield Record(number + 1, line, _too_long_row(), 0)
            return
        text = data.decode().rstrip("\r")
        if text.strip():
            number += 1
            yield Record(number, line, {"text": text}, len(data))


def _read_parquet(file: DataFile) -> Iterator[Record]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = table.metadata.num_rows
        size = file.size // rows if rows else 0
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, None, row, size)


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_jsonl,
    "csv": _read_table,
    "tsv": _read_table,
    "txt": _read_text,
    "parquet": _read_parquet,
}
