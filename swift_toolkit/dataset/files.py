"""Reading rows from files of any accepted kind as a stream, with the place of each.

JSON, JSONL (also one array or several pretty-printed objects), CSV, TSV, text and Parquet; plain, .gz or
.zst. Memory stays flat: a block of the file and one row are all that is held.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

from swift_toolkit.dataset.flaws import Flaw, FlawError
from swift_toolkit.dataset.formats import MEDIA_COLUMNS, MESSAGE_COLUMNS, OTHER_COLUMNS

Syntax = Literal["json", "csv", "tsv", "parquet", "txt"]
SUFFIXES: dict[str, Syntax] = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "txt",
}  # fmt: skip
PACKINGS = {".gz", ".zst"}
READ_BY_SWIFT = frozenset({".jsonl", ".json", ".csv", ".parquet", ".txt"})
"""Last suffixes by which ms-swift knows how to read a file."""

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 32 << 20
"""Longest row that is read, in bytes; keeps memory bounded. About eight million tokens."""

MAX_FIELD = 8 << 20
"""Longest field of a table, in characters, of which the csv module takes four bytes for each."""

_T = TypeVar("_T")


class Record(NamedTuple):
    """One row of a file.

    Args:
        number: its place among the rows, from 1.
        line: the line it starts on, from 1; None where the file has no lines.
        value: the decoded row, or the flaw that makes it unreadable.
        size: its bytes in the file, or an estimate of them.
    """

    number: int
    line: int | None
    value: Any
    size: int


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Args:
        path: where it is.
        shown: how messages call it, as the user spelled it.
        syntax: how it is written; "json" is one row a line.
        packing: compression, "" for none; told by its first bytes, not its name.
        size: bytes on disk.
        values: JSON whose rows are not one to a line: the items of an array, or objects over several lines.
    """

    path: Path
    shown: str
    syntax: Syntax
    packing: str
    size: int
    values: Literal["", "array", "objects"] = ""

    @property
    def has_lines(self) -> bool:
        """JSON with one row a line."""
        return self.syntax == "json" and not self.values


def data_suffix(path: str | Path) -> str | None:
    """The suffix that tells the syntax, compression aside; None if it is no data file."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def look_at(path: Path, shown: str) -> DataFile:
    """What kind of data file this is, from its name and its first bytes.

    Raises:
        FlawError: it is none, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FlawError("unreadable", "is not a plain file", "Write the rows into one.")
        with path.open("rb") as stream:
            head = stream.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise FlawError("unreadable", f"cannot be read: {os.strerror(error.errno or 0).lower()}") from None
    suffix = data_suffix(path)
    if suffix is None:
        do = f"Use one of {', '.join(SUFFIXES)}, plain, .gz or .zst."
        raise FlawError("unreadable", "is not a kind of file that holds rows", do)
    packing = "gz" if head.startswith(b"\x1f\x8b") else "zst" if head.startswith(b"\x28\xb5\x2f\xfd") else ""
    if head.startswith(b"PK\x03\x04"):
        raise FlawError("unreadable", "is a zip archive", "Unpack it first.")
    if suffix == ".parquet" and packing:
        raise FlawError("unreadable", "is a compressed Parquet file", "Unpack it first.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FlawError("encoding", "is UTF-16")
    if head.startswith(b"version "):
        raise FlawError("unreadable", "is a Git LFS pointer, not the data", 'Run "git lfs pull" to get it.')
    file = DataFile(path, shown, SUFFIXES[suffix], packing, size)
    return DataFile(path, shown, file.syntax, packing, size, _values_of(file, suffix))


def _values_of(file: DataFile, suffix: str) -> Literal["", "array", "objects"]:
    if file.syntax != "json":
        return ""
    with guarded(), open_stream(file) as stream:
        first = stream.readline(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).strip()
        while not first and (line := stream.readline(BLOCK_BYTES)):
            first = line.strip()
    if first.startswith(b"["):
        return "array"
    # one object over several lines, as a JSON file may hold it
    return "objects" if suffix == ".json" and _is_cut(decode_line(first)) else ""


def _is_cut(value: Any) -> bool:
    return isinstance(value, Flaw) and value.what == CUT_OFF


def open_stream(file: DataFile) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    if file.packing == "gz":
        return cast("IO[bytes]", gzip.open(file.path, "rb"))
    if file.packing == "zst":
        import pyarrow

        # unlike zstandard's reader it complains about a file that is cut off
        stream = pyarrow.input_stream(str(file.path), compression="zstd")
        return io.BufferedReader(stream, BLOCK_BYTES)
    return file.path.open("rb")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within it, a library's complaint about a damaged file becomes a FlawError."""
    try:
        yield
    except FlawError:
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        known = isinstance(error, (OSError, EOFError, zlib.error))
        if not known and library not in {"pyarrow", "_csv"}:
            raise
        raise FlawError("broken", f"cannot be read to its end: {_damage(error)}") from None


def _damage(error: Exception) -> str:
    if isinstance(error, EOFError) or str(error) == "Truncated compressed stream":
        return "the file is cut off"
    if str(error) == "unexpected end of data":  # the csv module's words
        return 'a " is opened and never closed'
    if str(error).startswith("field larger than"):
        return f"a field is longer than {MAX_FIELD >> 20} MB"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first[:120].rstrip(".").lower()


def read_records(file: DataFile) -> Iterator[Record]:
    """Every row of a file in order.

    Raises:
        FlawError: the file cannot be read any further.
    """
    readers = {"csv": _read_table, "tsv": _read_table, "txt": _read_text, "parquet": _read_parquet}
    with guarded():
        read = readers.get(file.syntax) or (_read_values if file.values else _read_json_lines)
        try:
            yield from read(file)
        except UnicodeDecodeError:
            raise _encoding_flaw(file) from None


def _encoding_flaw(file: DataFile) -> FlawError:
    """Where a file stops to be UTF-8."""
    line, decode = 1, codecs.getincrementaldecoder("utf-8")().decode
    with open_stream(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            try:
                line += decode(block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
    return FlawError("encoding", f"is not UTF-8 on line {line:,}")


# JSON

CUT_OFF = "row is cut off"


def read_chunks(file: DataFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Whole lines of a file, about `BLOCK_BYTES` at a time.

    Args:
        file: a file of lines.
        start: first byte; the line it falls into belongs to the part before. Only for plain files.
        end: lines that begin at this byte or later are left out.

    Raises:
        FlawError: a line is longer than `MAX_ROW_BYTES`, or the file is damaged.
    """
    with guarded(), open_stream(file) as stream:
        at = start
        if start:
            stream.seek(start - 1)
            at += len(stream.readline(MAX_ROW_BYTES)) - 1
        while end is None or at < end:
            size = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - at)
            chunk = stream.read(size)
            if not chunk:
                return
            if not chunk.endswith(b"\n"):
                chunk += stream.readline(MAX_ROW_BYTES)
                if len(chunk) > MAX_ROW_BYTES and not chunk.endswith(b"\n"):
                    raise FlawError("broken", f"a row is longer than {MAX_ROW_BYTES >> 20} MB", "Split it.")
            begins, at = at == 0, at + len(chunk)
            yield chunk.removeprefix(codecs.BOM_UTF8) if begins else chunk


def lines_of(chunk: bytes) -> list[bytes]:
    """The lines of a chunk without their ends."""
    lines = chunk.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _read_json_lines(file: DataFile) -> Iterator[Record]:
    line = number = 0
    for chunk in read_chunks(file):
        for data in lines_of(chunk):
            line += 1
            if data and not data.isspace():
                number += 1
                yield Record(number, line, decode_line(data), len(data))


def decode_line(data: bytes) -> Any:
    """One JSON value, or the flaw that says why it is none."""
    import msgspec

    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return explain_json(data)


def explain_json(data: bytes) -> Flaw:
    """Why these bytes are not one JSON value that ms-swift can read, in words."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Flaw("encoding", f"row is not UTF-8 at byte {error.start + 1}")
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return TOO_DEEP
    except json.JSONDecodeError as error:
        return _explain_syntax(text, error)
    except ValueError as error:
        return _odd_number(error)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        what = "text holds half of a surrogate pair (\\ud800 to \\udfff)"
        return Flaw("broken", what, "Write the whole character.")
    return TOO_LARGE


TOO_LARGE = Flaw("broken", "row holds a number that is too large")
TOO_DEEP = Flaw("broken", "row is nested too deeply", "Write the inner part as text.")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null")


def _odd_number(error: ValueError) -> Flaw:
    """For what the decoder says of a number: `_refuse_constant`'s words, or Python's on thousands of digits."""
    return Flaw("broken", str(error)) if str(error).endswith("write null") else TOO_LARGE


def _explain_syntax(text: str, error: json.JSONDecodeError) -> Flaw:
    column = error.colno
    rest = text[error.pos :].lstrip()
    if error.msg == "Extra data":
        if rest.startswith("{"):
            return Flaw("broken", f"a second row begins at column {column}", "Put each row on its own line.")
        if rest.startswith(","):
            return Flaw(
                "broken", "a comma follows the row", "JSON Lines has none between its rows; remove it."
            )
        return Flaw("broken", f"something follows the row at column {column}", "Remove it.")
    if error.msg.startswith("Invalid control character"):
        at = text[error.pos]
        names = {"\t": "tab, write \\t", "\x00": "NUL character", "\n": "line break, write \\n", "\r": "\\r"}
        return Flaw("broken", f"text holds a raw {names.get(at, f'control character (code {ord(at)})')}")
    if error.msg.startswith("Unterminated string") or not rest:
        return Flaw("broken", CUT_OFF, "Each row must be whole and on one line.")
    if not text[: error.pos].strip():
        return Flaw("broken", "row is not JSON")
    return Flaw("broken", f"broken JSON at column {column}: {error.msg[0].lower() + error.msg[1:]}")


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
                if self._next_mark() == "]":
                    what = "a comma follows the last row"
                    yield Record(number, self.line, Flaw("broken", what, "Remove it."), 0)
                    return
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
        if not block:
            return False
        self.text = self.text[self.at :] + block
        self.at = 0
        return True

    def _next_mark(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            start, self.at = self.at, cast("re.Match[str]", _SPACE.match(self.text, self.at)).end()
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
                    what = f"row is longer than {MAX_ROW_BYTES >> 20} MB"
                    return Flaw("broken", what, "Split it."), 0, False
                if self._more(max(held, BLOCK_BYTES)):
                    continue
                return self._explain(error), 0, False
            except RecursionError:
                return TOO_DEEP, 0, False
            except ValueError as error:
                return _odd_number(error), 0, False
            if end == len(self.text) and self._more(BLOCK_BYTES):
                continue  # a number may go on in the next block
            raw = self.text[self.at : end]
            self.line += raw.count("\n")
            self.at = end
            return _whole_characters(value, raw), len(raw), True

    def _explain(self, error: json.JSONDecodeError) -> Flaw:
        flaw = _explain_syntax(self.text, error)
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


# Tables and text


def _read_table(file: DataFile) -> Iterator[Record]:
    csv.field_size_limit(MAX_FIELD)
    with open_stream(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.reader(_table_lines(text), delimiter="\t" if file.syntax == "tsv" else ",", strict=True)
        header = next(reader, [])
        twice = [name for at, name in enumerate(header) if name in header[:at]]
        if twice:
            raise FlawError("columns", f'column "{twice[0]}" is there twice', "Rename one of them.")
        number, line = 0, reader.line_num + 1
        for fields in reader:
            if fields:
                number += 1
                size = sum(map(len, fields)) + len(fields)
                yield Record(number, line, _table_row(header, fields), size)
            line = reader.line_num + 1


def _table_lines(text: IO[str]) -> Iterator[str]:
    while line := text.readline(MAX_FIELD):
        if len(line) == MAX_FIELD and line[-1] not in "\r\n":
            raise FlawError("broken", f"a line is longer than {MAX_FIELD >> 20} MB", "Split it.")
        yield line


def _table_row(header: list[str], fields: list[str]) -> Any:
    if len(fields) != len(header):
        return Flaw(
            "broken",
            f"row has {len(fields)} fields and the header {len(header)}",
            'Put text that holds a separator or a line break into "quotes".',
        )
    return {name: _cell(name, field) for name, field in zip(header, fields, strict=True) if name}


_NUMBER_COLUMNS = frozenset({"label", "margin"})
_TEXT_COLUMNS = frozenset({"rejected_response", "channel", "solution", "teacher_prompt"})
_OBJECT_COLUMNS = {*MESSAGE_COLUMNS, *MEDIA_COLUMNS, *OTHER_COLUMNS} - _TEXT_COLUMNS - _NUMBER_COLUMNS
_ANSWER_COLUMNS = frozenset({"chosen", "rejected"})


def _cell(name: str, field: str) -> Any:
    """Lists, objects and labels are read as JSON where such are meant; all else stays text, an empty cell is none."""
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


def _read_text(file: DataFile) -> Iterator[Record]:
    line = number = 0
    for chunk in read_chunks(file):
        for data in lines_of(chunk):
            line += 1
            text = data.decode().rstrip("\r")
            if text.strip():
                number += 1
                yield Record(number, line, {"text": text}, len(data))


def _read_parquet(file: DataFile) -> Iterator[Record]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = table.metadata.num_rows
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, None, row, file.size // rows)
