"""Detect the kind of a data file, and read all its rows in order.

JSON, JSONL (also one array or several pretty-printed objects), CSV, TSV, text and Parquet; uncompressed, .gz or .zst.
Memory is bounded: only a block of the file and one row are held at a time.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, cast

from swift_toolkit.dataset.reading.json_text import (
    CUT_OFF,
    ItemChunks,
    ValueReader,
    decode_line,
    line_chunks,
    rows_of_lines,
    texts_of_lines,
)
from swift_toolkit.dataset.reading.streams import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    WHOLE,
    Between,
    Chunk,
    DataFile,
    Record,
    Section,
    Syntax,
    guarded,
    open_stream,
)
from swift_toolkit.dataset.reading.tables import (
    SMALL_BYTES,
    Batch,
    TableChunks,
    TableRows,
    batches_between,
    read_parquet,
    read_table,
)
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError

SUFFIXES: dict[str, Syntax] = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".txt": "txt",
}  # fmt: skip
PACKINGS = {".gz", ".zst"}
READ_BY_SWIFT = frozenset({".jsonl", ".json", ".csv", ".parquet", ".txt"})
"""File suffixes by which ms-swift chooses its reader."""


def data_suffix(path: str | Path) -> str | None:
    """The suffix that names the syntax, without the suffix of a compression; None if it is not a data file."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def look_at(path: Path, shown: str) -> DataFile:
    """Detect the kind of a data file from its name and its first bytes.

    Raises:
        FlawError: it is not a data file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FlawError("unreadable", "is not a regular file", "Write the rows to a file.")
        with path.open("rb") as stream:
            head = stream.read(8)
        size = path.stat().st_size
    except OSError as error:
        raise FlawError("unreadable", f"cannot be read: {os.strerror(error.errno or 0).lower()}") from None
    suffix = data_suffix(path)
    if suffix is None:
        do = f"Use one of {', '.join(SUFFIXES)}, uncompressed, .gz or .zst."
        raise FlawError("unreadable", "is not a data file", do)
    packing = "gz" if head.startswith(b"\x1f\x8b") else "zst" if head.startswith(b"\x28\xb5\x2f\xfd") else ""
    if head.startswith(b"PK\x03\x04"):
        raise FlawError("unreadable", "is a zip archive", "Extract it first.")
    if suffix == ".parquet" and packing:
        raise FlawError("unreadable", "is a compressed Parquet file", "Decompress it first.")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FlawError("encoding", "is UTF-16")
    if head.startswith(b"version "):
        raise FlawError("unreadable", "is a Git LFS pointer, not the data", 'Run "git lfs pull" to get it.')
    file = DataFile(path, shown, SUFFIXES[suffix], packing, size)
    return replace(file, values=_values_of(file, suffix))


def _values_of(file: DataFile, suffix: str) -> Literal["", "array", "objects"]:
    if file.syntax != "json":
        return ""
    with guarded(), open_stream(file) as stream:
        first = stream.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
        blank = 0
        while not first and blank < MAX_ROW_BYTES and (block := stream.read(BLOCK_BYTES)):
            first, blank = block.lstrip(), blank + len(block)
    if first.startswith(b"["):
        return "array"
    # one object over several lines, which a JSON file may contain
    line = first.partition(b"\n")[0].strip()
    return "objects" if suffix == ".json" and _is_cut(decode_line(line)) else ""


def _is_cut(value: object) -> bool:
    return isinstance(value, Flaw) and value.what == CUT_OFF


def read_records(file: DataFile) -> Iterator[Record]:
    """Every row of a file in order.

    Raises:
        FlawError: the rest of the file cannot be read.
    """
    with guarded():
        try:
            if file.syntax == "parquet":
                yield from read_parquet(file)
                return
            with open_stream(file) as stream:
                yield from _reader(file)(stream)
        except UnicodeDecodeError:
            raise encoding_flaw(file) from None


def _reader(file: DataFile) -> Callable[[IO[bytes]], Iterator[Record]]:
    if file.syntax in {"csv", "tsv"}:
        return lambda stream: read_table(stream, file.syntax)
    if file.syntax == "txt":
        return _read_text
    return _read_values if file.values else _read_json_lines


def encoding_flaw(file: DataFile) -> FlawError:
    """The first place where a file is not UTF-8."""
    line, decode = 1, codecs.getincrementaldecoder("utf-8")().decode
    with open_stream(file) as stream:
        while block := stream.read(BLOCK_BYTES):
            try:
                line += decode(block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
    return FlawError("encoding", f"is not UTF-8 on line {line:,}")


def read_chunks(
    file: DataFile,
    stream: IO[bytes],
    section: Section = WHOLE,
    trusting: bool = False,
    as_utf8: bool = False,
) -> Iterator[Chunk | TableRows | Batch]:
    """Read whole rows of a file, about `BLOCK_BYTES` at a time.

    Args:
        file: a file that can be cut into chunks.
        stream: its decompressed bytes.
        section: the rows to read; only of an uncompressed file.
        trusting: see `ItemChunks`.
        as_utf8: pyarrow reads tables in any case, so that even a small one need not be read without it.

    Raises:
        CutError: the section, as it turns out, does not consist of whole rows.
        FlawError: a row is too long, or the file is damaged.
    """
    start, end = section.start, section.end
    with guarded():
        if file.is_lines:
            yield from line_chunks(stream, start, end)
        elif file.syntax == "parquet":
            yield from batches_between(file, start, end)
        elif section == WHOLE:
            if file.values:
                yield from ItemChunks(stream, trusting=trusting).chunks()
                return
            is_small = not as_utf8 and file.size < SMALL_BYTES and not file.packing
            yield from TableChunks(stream, file.syntax, is_small=is_small).chunks()
        else:
            yield from _chunks_of_section(file, stream, section)


def _chunks_of_section(file: DataFile, stream: IO[bytes], section: Section) -> Iterator[Chunk | TableRows]:
    part = cast("IO[bytes]", Between(stream, section.start, section.end))
    if file.values:
        yield from ItemChunks(part, trusting=True, ends=section.end is None).chunks()
    else:
        yield from TableChunks(part, file.syntax, section.header if section.start else None).chunks()


def _read_json_lines(stream: IO[bytes]) -> Iterator[Record]:
    passed = number = 0
    for chunk in line_chunks(stream):
        for line, data in rows_of_lines(chunk.data):
            number += 1
            yield Record(number, passed + line, decode_line(data), len(data))
        passed += chunk.data.count(b"\n")


def _read_values(stream: IO[bytes]) -> Iterator[Record]:
    """The items of one array, or consecutive objects over several lines."""
    yield from ValueReader(io.TextIOWrapper(stream, "utf-8-sig", newline="")).records()


def _read_text(stream: IO[bytes]) -> Iterator[Record]:
    passed = number = 0
    for chunk in line_chunks(stream):
        for line, text in texts_of_lines(chunk.data):
            number += 1
            yield Record(number, passed + line, {"text": text}, len(text))
        passed += chunk.data.count(b"\n")
