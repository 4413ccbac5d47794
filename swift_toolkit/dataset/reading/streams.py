"""A file with rows as a stream of bytes, unpacked, and the limits that keep memory flat."""

from __future__ import annotations

import contextlib
import gzip
import io
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
"""Longest row that is read, in bytes; keeps memory bounded. About eight million tokens."""

MAX_FIELD = 8 << 20
"""Longest field of a table, in characters, of which the csv module takes four bytes for each."""


class Record(NamedTuple):
    """One row of a file.

    Args:
        number: its place among the rows, from 1.
        line: the line it starts on, from 1; None where the file has no lines.
        value: the decoded row, or the flaw that makes it unreadable.
        size: its bytes in the file, or an estimate of them.
        cut: what follows it in the file cannot be read.
    """

    number: int
    line: int | None
    value: Any
    size: int
    cut: bool = False


class Chunk(NamedTuple):
    """Whole rows of a file, about `BLOCK_BYTES` of them.

    Args:
        data: the bytes of the file; of Parquet, a batch of rows as an Arrow stream.
        last: the file ends here.
    """

    data: bytes
    last: bool = False


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Args:
        path: where it is.
        shown: how messages call it, as the user spelled it.
        syntax: how it is written; "json" is one row a line.
        packing: compression, "" for none; known by its first bytes, not its name.
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

    @property
    def has_chunks(self) -> bool:
        """It can be cut into chunks of whole rows."""
        return self.values != "objects"


class Unpacked:
    """A file's bytes, unpacked, that also knows how far it has come in the file itself."""

    def __init__(self, file: DataFile) -> None:
        self._raw: Any = file.path.open("rb")
        self._counted: _Counted | None = None
        self.stream: IO[bytes] = self._raw
        if file.packing == "gz":
            self.stream = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw))
        elif file.packing == "zst":
            import pyarrow

            # unlike zstandard's reader it complains about a file that is cut off
            unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._raw, "r"), "zstd")
            self._counted = _Counted(unpacked, BLOCK_BYTES)
            self.stream = cast("IO[bytes]", self._counted)

    def passed(self) -> int:
        """Bytes that were read so far, unpacked."""
        return self.stream.tell() if self._counted is None else self._counted.count

    def position(self) -> int:
        """Bytes of the file that were read so far, packed as they are."""
        return int(self._raw.tell())

    def close(self) -> None:
        self.stream.close()
        self._raw.close()


class _Counted(io.BufferedReader):
    """A stream that cannot be asked where it is, with a count of what was read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        data = super().readline(size)
        self.count += len(data)
        return data


def open_stream(file: DataFile) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    return Unpacked(file).stream


class Rest(io.RawIOBase):
    """A stream with bytes put back in front of it."""

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
    return short(first_line(error).rstrip("."), 120).lower()
