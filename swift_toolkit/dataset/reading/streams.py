"""A file with rows as a stream of decompressed bytes, and the limits that keep memory bounded."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from swift_toolkit.console.words import short
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.problems import first_line

Syntax = Literal["json", "csv", "tsv", "parquet", "txt"]

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 32 << 20
"""Maximum length of a row in bytes, to keep memory bounded; about eight million tokens."""

MAX_FIELD = 8 << 20
"""Maximum length of a table field in characters; the csv module uses four bytes per character."""


class Record(NamedTuple):
    """One row of a file.

    Args:
        number: the number of the row, counted from 1.
        line: the line on which it starts, counted from 1; None if the file has no lines.
        value: the decoded row, or the flaw that makes it unreadable.
        size: its size in the file in bytes, or an estimate.
        cut: whether the rest of the file after it cannot be read.
    """

    number: int
    line: int | None
    value: Any
    size: int
    cut: bool = False


class Chunk(NamedTuple):
    """About `BLOCK_BYTES` of whole rows of a file.

    Args:
        data: the bytes of the file.
        last: whether the file ends here.
    """

    data: bytes
    last: bool = False


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Args:
        path: its path.
        shown: its name in messages, as the user spelled it.
        syntax: its syntax; "json" has one row per line.
        packing: its compression, "" for none; detected by its first bytes, not its name.
        size: size on disk in bytes.
        values: whether it is JSON without one row per line: the items of an array, or objects over several lines.
    """

    path: Path
    shown: str
    syntax: Syntax
    packing: str
    size: int
    values: Literal["", "array", "objects"] = ""

    @property
    def has_lines(self) -> bool:
        """Whether it is JSON with one row per line."""
        return self.syntax == "json" and not self.values

    @property
    def is_lines(self) -> bool:
        """Whether each line is a row: of JSON, or of text."""
        return self.has_lines or self.syntax == "txt"

    @property
    def has_chunks(self) -> bool:
        """Whether it can be cut into chunks of whole rows."""
        return self.values != "objects"


class CutError(Exception):
    """Rows were cut at a place where, it turns out, no row ends; they must be read again in order."""


class Section(NamedTuple):
    """Consecutive rows of a file.

    Args:
        start: the first byte of the rows; of a Parquet file, the first row, counted from 0. In a file of lines, the
            line that contains this byte belongs to the previous section.
        end: rows that start at this place or later are not in the section; None for the end of the file.
        header: the column names of a table.
    """

    start: int = 0
    end: int | None = None
    header: tuple[str, ...] = ()


WHOLE = Section()


class Between(io.RawIOBase):
    """The bytes between two positions of a file.

    Args:
        stream: the file.
        start: the first byte.
        end: the byte after the last one; None for the end of the file.
    """

    def __init__(self, stream: IO[bytes], start: int, end: int | None) -> None:
        self._stream = stream
        self._left = sys.maxsize if end is None else end - start
        stream.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


class Unpacked:
    """The decompressed bytes of a file, with the position in the compressed file."""

    def __init__(self, file: DataFile) -> None:
        self._raw: Any = file.path.open("rb")
        self._counted: _Counted | None = None
        self.stream: IO[bytes] = self._raw
        if file.packing == "gz":
            self.stream = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw))
        elif file.packing == "zst":
            import pyarrow

            # unlike zstandard's reader, it raises an error if the file is truncated
            unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw, "r"), "zstd")
            self._counted = _Counted(unpacked, BLOCK_BYTES)
            self.stream = cast("IO[bytes]", self._counted)

    def passed(self) -> int:
        """Number of bytes read so far, decompressed."""
        return self.stream.tell() if self._counted is None else self._counted.count

    def position(self) -> int:
        """Number of bytes read so far, as stored in the file."""
        return int(self._raw.tell())

    def close(self) -> None:
        self.stream.close()
        self._raw.close()


class _Counted(io.BufferedReader):
    """Counts the bytes read from a stream that does not report its position."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        data = super().readline(size)
        self.count += len(data)
        return data


def count_byte(data: bytes, byte: bytes) -> int:
    """How often a byte occurs; two to three times as fast as `bytes.count`, which looks at every byte."""
    return len(data) - len(data.replace(byte, b""))


def open_stream(file: DataFile) -> IO[bytes]:
    """Open the decompressed bytes of a file."""
    return Unpacked(file).stream


class Rest(io.RawIOBase):
    """A stream with bytes pushed back in front of it."""

    def __init__(self, data: bytes, stream: IO[bytes]) -> None:
        self._data, self._rest = memoryview(data), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._data:
            self._data = memoryview(self._rest.read(len(buffer)))
        taken = min(len(self._data), len(buffer))
        buffer[:taken], self._data = self._data[:taken], self._data[taken:]
        return taken


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Context manager that turns library errors about a damaged file into a FlawError."""
    try:
        yield
    except FlawError:
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        known = isinstance(error, (OSError, EOFError, zlib.error))
        if not known and library not in {"pyarrow", "_csv"}:
            raise
        raise FlawError("broken", f"cannot be read to the end: {_damage(error)}") from None


def _damage(error: Exception) -> str:
    if isinstance(error, EOFError) or str(error) == "Truncated compressed stream":
        return "the file is truncated"
    if str(error) == "unexpected end of data":  # the csv module's message
        return 'a quote (") is never closed'
    if str(error).startswith("field larger than"):
        return f"a field is longer than {MAX_FIELD >> 20} MB"
    return short(first_line(error).rstrip("."), 120).lower()


@functools.cache
def keep_freed_memory() -> None:
    """Let this process use the memory of a block again for the next one, rather than return it to the kernel each time.

    On Linux, freeing a large object raises both thresholds of the C library to its size (M_MMAP_THRESHOLD in
    mallopt(3)). The object itself is never touched, so it takes no memory.
    """
    bytes(24 << 20)
