"""The kind of labels in a classifier's data: one class, several classes, or a number."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swift_toolkit.config.tasks import TASKS
from swift_toolkit.dataset.reading.files import read_chunks, read_records
from swift_toolkit.dataset.reading.streams import Chunk, DataFile, open_stream
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.spec import DatasetSpec


@dataclass(frozen=True)
class Classes:
    """The kind of labels in some data.

    Args:
        count: ms-swift's ``num_labels``.
        problem_type: ms-swift's ``problem_type``; "" for its default, one class per row.
        phrase: a description of the labels.
    """

    count: int
    problem_type: str
    phrase: str


def find_classes(entries: Sequence[str], columns: Mapping[str, str] | None = None) -> Classes | None:
    """The classes of the local data sets, from the labels of all rows.

    None if the labels are of several kinds, too few, or on a hub.

    Args:
        entries: the entries of ``dataset``.
        columns: ms-swift's ``columns``.
    """
    rules = Rules(TASKS["seq_cls"], columns=columns)
    most, kinds = -1, set[str]()
    for entry in entries:
        with contextlib.suppress(FlawError, OSError):
            for label in _labels(entry, rules):
                kinds.add(_kind(label))
                if kinds == {"text"}:
                    return None
                most = max([most, *_whole(label)])
    return _classes(kinds, most)


def _classes(kinds: set[str], most: int) -> Classes | None:
    if kinds == {"one"} and most >= 1:
        return Classes(most + 1, "", f"labels from 0 to {most}")
    if kinds == {"several"} and most >= 1:
        return Classes(most + 1, "multi_label_classification", f"lists of labels from 0 to {most}")
    if kinds and kinds <= {"one", "number"} and "number" in kinds:
        return Classes(1, "regression", "numbers as labels")
    return None


def _labels(entry: str, rules: Rules) -> Iterable[object]:
    spec = DatasetSpec.parse(entry)
    for path in spec.local_files():
        part = find_part(path, str(path), rules)
        columns = [column for column, name in part.layout.rename.items() if name == "label"] or ["label"]
        labels = _of_lines if part.file.syntax == "json" and part.file.has_lines else _of_records
        yield from (label for label in labels(part.file, columns[0]) if label is not None)


def _of_lines(file: DataFile, column: str) -> Iterator[object]:
    """The labels of JSON Lines, without decoding the rest of the rows; some occur twice if a line is broken."""
    import msgspec

    row: Any = msgspec.defstruct("Row", [("label", Any, msgspec.field(name=column, default=None))])
    decode = msgspec.json.Decoder(row).decode_lines
    try:
        with open_stream(file) as stream:
            for chunk in read_chunks(file, stream):
                if isinstance(chunk, Chunk):
                    yield from (one.label for one in decode(chunk.data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield from _of_records(file, column)


def _of_records(file: DataFile, column: str) -> Iterator[object]:
    for record in read_records(file):
        if isinstance(record.value, dict):
            yield record.value.get(column)


def _kind(label: object) -> str:
    if isinstance(label, list):
        return "several"
    if isinstance(label, str):
        return "one" if label.isdecimal() else "number" if _is_number(label) else "text"
    return "number" if isinstance(label, float) and not label.is_integer() else "one"


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _whole(label: object) -> list[int]:
    values: list[object] = label if isinstance(label, list) else [label]
    numbers = [int(one) if isinstance(one, bool) else one for one in values]
    return [int(float(str(one))) for one in numbers if _is_number(str(one))]
