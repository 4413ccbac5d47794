"""Files and data sets that are read together must agree on their columns and types.

ms-swift (through `datasets` 4.8) takes the columns of a folder of files from the first of them, and puts data sets
together only if each column that training keeps has the same type in all. Where they differ, the files are copied in
one type if they can be; otherwise that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from swift_toolkit.dataset_checks import LABEL_TASKS, Rules
from swift_toolkit.dataset_flaws import Flaw
from swift_toolkit.dataset_report import FileReport
from swift_toolkit.dataset_rows import MEDIA
from swift_toolkit.dataset_scan import Part
from swift_toolkit.dataset_shape import HEAD_BYTES

_SORTS = ("rejected", "positive", "negative")
_KEPT = {
    "label", "channel", "margin", "rejected_response", "solution", "teacher_prompt", "videos", "audios",
    *(f"{sort}_{name}" for sort in _SORTS for name in (*MEDIA, "objects")),
}  # fmt: skip
"""Columns that training keeps with the type they have in the file (ms-swift fixes that of all others)."""

Files = Sequence[tuple[FileReport, Part]]


def one_type_in_copies(rules: Rules) -> frozenset[str]:
    """Columns that copies hold in one type, whatever it was in the file (see `dataset_copy`)."""
    labels = {"label"} if rules.task in LABEL_TASKS else set()
    return frozenset({"rejected_response", "margin", "channel"} | labels)


def agree(files: Files) -> Iterator[tuple[FileReport, Flaw]]:
    """Give the files of a split a reason to be copied where they disagree; yields what a copy does not mend.

    Args:
        files: in their order.
    """
    sets = [list(group) for _, group in groupby(files, lambda one: one[0].entry)]
    for group in sets:
        yield from _agree_in_folder(group)
    flaws, copied = list(_agree_among_sets(sets)), -1
    while copied != (copied := sum(bool(entry.copy_reason) for entry, _ in files)):
        flaws = list(_agree_among_sets(sets))  # a copy may now differ from what is not copied
    yield from flaws


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
            what = f'"{new}" is not there, or of another type, in {first.path}'
            yield entry, Flaw("columns", what, 'Name the files one by one in "dataset".')
            return


def _kept_columns(part: Part) -> dict[str, Any]:
    """Type of each column that a copy holds besides messages."""
    unified = one_type_in_copies(part.rules)
    out = {}
    for column, shape in part.shape.fields.items():
        name = part.layout.rename[column]
        if column not in part.layout.unused and name not in _IN_MESSAGES and shape.kind is not None:
            out[name] = name if name in unified else _as_list(name, shape.kind)
    return out


_IN_MESSAGES = frozenset(
    {"messages", "query", "response", "instruction", "input", "output", "system", "history", "prompt"}
    | {"chosen", "rejected", "rejected_messages", "positive_messages", "negative_messages"}
)


def _as_list(name: str, kind: Any) -> Any:
    """Media may be one file or a list of files."""
    return ("list", kind) if name in MEDIA and kind == "str" else kind


def _agree_among_sets(sets: Sequence[Files]) -> Iterator[tuple[FileReport, Flaw]]:
    for name in sorted(_KEPT):
        holders = [(group, kind) for group in sets if (kind := _kind_of(name, group)) is not None]
        if len({kind for _, kind in holders}) < 2:
            continue
        first, part = holders[0][0][0]
        if name in one_type_in_copies(part.rules):
            for group, _ in holders:
                for entry, _ in group:
                    reason = f'the type of "{name}" differs between the data sets'
                    entry.copy_reason = entry.copy_reason or reason
            continue
        other = next(group for group, kind in holders if kind != holders[0][1])[0][0]
        yield other, Flaw("columns", f'"{name}" is of another type in {first.path}', "Make them the same.")


def _kind_of(name: str, group: Files) -> Any:
    """The type in which a data set has this column, None if it has not."""
    for entry, part in group:
        for column, shape in part.shape.fields.items():
            if part.layout.rename[column] == name and shape.kind is not None:
                copied = entry.copy_reason and name in one_type_in_copies(part.rules)
                return name if copied else _as_list(name, shape.kind)
    return None
