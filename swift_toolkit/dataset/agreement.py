"""Check that files and data sets that are read together agree on their columns and types.

ms-swift (through `datasets` 4.8) takes the columns of a folder of files from its first file, and concatenates data sets
only if each column that training keeps has the same type in all of them. Where types differ, the files are copied with
a common type if possible; otherwise the difference is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from swift_toolkit.dataset.report import FileReport
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.formats import MEDIA
from swift_toolkit.dataset.scan.part import Part
from swift_toolkit.dataset.scan.shape import HEAD_BYTES

_SORTS = ("rejected", "positive", "negative")
_KEPT = {
    "label", "channel", "margin", "rejected_response", "solution", "teacher_prompt", "videos", "audios",
    *(f"{sort}_{name}" for sort in _SORTS for name in (*MEDIA, "objects")),
}  # fmt: skip
"""Columns that training keeps with their type in the file (ms-swift sets the types of all others)."""

Files = Sequence[tuple[FileReport, Part]]


def one_type_in_copies(rules: Rules) -> frozenset[str]:
    """Columns that copies always hold in the same form, whatever the file has (see `dataset_copy`)."""
    labels = {"label"} if rules.task.has_label else set()
    pairs = {"negative_messages"} if rules.task.keeps_negatives else set()
    return frozenset({"rejected_response", "margin", "channel"} | labels | pairs)


def agree(files: Files) -> Iterator[tuple[FileReport, Flaw]]:
    """Mark the files of a split that must be copied because they disagree; yield differences that a copy cannot fix.

    Args:
        files: the files, in order.
    """
    if not files:
        return
    sets = [list(group) for _, group in groupby(files, lambda one: one[0].entry)]
    for group in sets:
        yield from _agree_in_folder(group)
    unified = one_type_in_copies(files[0][1].rules)
    for name in sorted(unified):
        if _differs(name, sets):
            for entry, _ in files:
                entry.copy_reason = entry.copy_reason or f'"{name}" differs between the data sets'
    for name in sorted(_KEPT - unified):
        holders = [(group[0][0], kind) for group in sets if (kind := _kind_of(name, group)) is not None]
        for entry, kind in holders[1:]:
            if kind != holders[0][1]:
                what = f'"{name}" has a different type in {holders[0][0].path}'
                yield entry, Flaw("columns", what, "Use the same type in both.")


def _agree_in_folder(files: Files) -> Iterator[tuple[FileReport, Flaw]]:
    first, part = files[0]
    columns = {name: shape.kind for name, shape in part.shape.fields.items()}
    kept = _kept_columns(part)
    for entry, later in files[1:]:
        fields = later.shape.fields
        if all(shape.kind is None or shape.kind == columns.get(name) for name, shape in fields.items()):
            continue
        for one, _ in files:
            one.copy_reason = one.copy_reason or "its files differ in their columns"
        size = sum(one.file.size for _, one in files)
        new = next((name for name, kind in _kept_columns(later).items() if kind != kept.get(name)), None)
        if new is not None and size > HEAD_BYTES:
            what = f'"{new}" is missing or has a different type in {first.path}'
            yield entry, Flaw("columns", what, 'List the files one by one in "dataset".')
            return


def _kept_columns(part: Part) -> dict[str, object]:
    """Type of each column of a copy, except messages."""
    unified, unused = one_type_in_copies(part.rules), frozenset(part.layout.unused)
    out: dict[str, object] = {}
    for column, shape in part.shape.fields.items():
        name = part.layout.rename[column]
        if column not in unused and name not in _IN_MESSAGES and shape.kind is not None:
            out[name] = name if name in unified else _as_list(name, shape.kind)
    return out


_IN_MESSAGES = frozenset(
    {"messages", "query", "response", "instruction", "input", "output", "system", "history", "prompt"}
    | {"chosen", "rejected", "rejected_messages", "positive_messages", "negative_messages"}
)


def _as_list(name: str, kind: Any) -> Any:
    """The type of a column, with a single media file treated as a list of files."""
    return ("list", kind) if name in MEDIA and kind == "str" else kind


def _differs(name: str, sets: Sequence[Files]) -> bool:
    """Whether data sets differ in the form of a column that copies hold in one form."""
    kinds = {_kind_of(name, group) for group in sets}
    if name not in _ALL_OR_NONE:
        kinds.discard(None)
    return len(kinds) > 1


_ALL_OR_NONE = frozenset({"rejected_response", "negative_messages"})
"""Columns for which ms-swift skips rows that lack them, if any row of the run has them."""


def _kind_of(name: str, group: Files) -> Any:
    """The type of this column in a data set; None if the data set lacks it."""
    entry, part = group[0]
    if entry.copy_reason and name in one_type_in_copies(part.rules) & _ALL_OR_NONE:
        return None if name == "rejected_response" else "there"  # its form in copies
    for _, part in group:
        for column, shape in part.shape.fields.items():
            if part.layout.rename[column] == name and shape.kind is not None:
                if name == "negative_messages":
                    return "there"
                copied = entry.copy_reason and name in one_type_in_copies(part.rules)
                return "copied" if copied else _as_list(name, shape.kind)
    return None
