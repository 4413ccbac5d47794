"""A part of a file: what is needed to scan it apart from the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from swift_toolkit.dataset.checks import Rules
from swift_toolkit.dataset.files import (
    READ_BY_SWIFT,
    DataFile,
    decode_line,
    lines_of,
    look_at,
    read_chunks,
    read_records,
)
from swift_toolkit.dataset.flaws import Flaw
from swift_toolkit.dataset.formats import Layout, layout_of
from swift_toolkit.dataset.messages import Row
from swift_toolkit.dataset.scan.shape import HEAD_BYTES, Shape

LITTLE = 1 << 14
"""Bytes of a file from which its columns and types are learned before the rest is held against them."""


class Sink(Protocol):
    """Takes every row of a scan, in order.

    Args:
        wants_rows: every row must come as messages, none as a line.
    """

    wants_rows: bool

    def lines(self, chunk: bytes) -> None:
        """Whole lines, whose rows have no flaw."""

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        """One row: what was decoded, as messages, and what is wrong with it."""


@dataclass(frozen=True)
class Part:
    """Rows to scan.

    Args:
        file: the file.
        layout: its format.
        shape: its columns and types.
        rules: what the run asks of its rows.
        start: first byte, for a file of lines.
        end: lines from here on belong to the next part; None for the end of the file.
        copy_reason: why ms-swift is given a copy of the file; "" if it reads the file itself.
    """

    file: DataFile
    layout: Layout
    shape: Shape
    rules: Rules
    start: int = 0
    end: int | None = None
    copy_reason: str = ""


def head_of(file: DataFile) -> tuple[list[str], Shape]:
    """The columns and types of a file: by its first 10 MB, as ms-swift sees them; of an array by all of it.

    Raises:
        FlawError: the file cannot be read.
    """
    shape = Shape()
    if file.has_lines:
        _learn_from_lines(shape, file)
        return list(shape.fields), shape
    size = 0
    for record in read_records(file):
        if isinstance(record.value, dict):
            shape.add(record.value)
        size += record.size
        if size > HEAD_BYTES and not file.values:
            break
    return list(shape.fields), shape


def _learn_from_lines(shape: Shape, file: DataFile) -> None:
    import msgspec

    size = 0
    decode = None
    for chunk in _little_first(read_chunks(file)):
        try:
            known = decode is not None and decode(chunk) is not None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            known = False
        if not known:
            for line in lines_of(chunk):
                value = decode_line(line) if line and not line.isspace() else None
                if isinstance(value, dict):
                    shape.add(value)
            if not shape.may_be_dates:
                decode = msgspec.json.Decoder(shape.struct({}, whole=True)).decode_lines
        size += len(chunk)
        if size > HEAD_BYTES:
            return


def _little_first(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, the first in two: what is learned value by value should be little."""
    first = next(chunks, b"")
    cut = first.find(b"\n", LITTLE) + 1
    yield first[:cut] if cut else first
    yield from (chunk for chunk in chain([first[cut:]] if cut else [], chunks) if chunk)


def find_part(path: Path, shown: str, rules: Rules) -> Part:
    """All of a file, with its format and the types of its columns.

    Args:
        path: the file.
        shown: how messages call it.
        rules: what the run asks of its rows.

    Raises:
        FlawError: it cannot be read, or is in no known format.
    """
    file = look_at(path, shown)
    columns, shape = head_of(file)
    # without any row that is an object there is no format, and no row that would need one
    layout = layout_of(columns, rules.columns) if columns else Layout("", "messages", {})
    return Part(file, layout, shape, rules, copy_reason=copy_reason(file, layout, shape, rules))


def copy_reason(file: DataFile, layout: Layout, shape: Shape, rules: Rules) -> str:
    """Why ms-swift is given a converted copy of this file; "" where it reads the file itself."""
    suffixes = "".join(file.path.suffixes[-2 if file.packing else -1 :])
    if file.path.suffix not in READ_BY_SWIFT:
        return f"ms-swift does not read {suffixes}"
    if file.values == "objects":
        return "ms-swift wants one row a line"
    if file.values == "array" and not _starts_with(file, b"["):
        return "ms-swift wants an array to begin with the first byte"
    if layout.family == "preference":
        return "ms-swift does not read chosen/rejected"
    if file.syntax == "csv":
        return "ms-swift would read numbers where text is meant"
    for name in ("positive_messages", "negative_messages"):
        if rules.task.rows != "documents" and name in layout.rename.values():
            return f'ms-swift would delete rows without "{name}"'
    for column in shape.fields.keys() - set(layout.unused):
        if layout.rename[column] in _TEXT_COLUMNS and shape.fields[column].has_dates:
            return f'ms-swift would read the dates in "{column}" as numbers'
        if layout.rename[column] in _TEXT_COLUMNS and shape.fields[column].mixes_texts:
            return f'ms-swift would read texts like "42" in "{column}" as numbers'
    return ""


_TEXT_COLUMNS = frozenset(
    {
        "query",
        "response",
        "instruction",
        "input",
        "output",
        "system",
        "history",
        "messages",
        "rejected_messages",
    }
    | {"rejected_response", "positive_messages", "negative_messages"}
)


def _starts_with(file: DataFile, mark: bytes) -> bool:
    with file.path.open("rb") as stream:
        return stream.read(len(mark)) == mark
