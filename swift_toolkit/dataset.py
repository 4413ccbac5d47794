"""Is the data fit to train on? Every row is read before the model is.

    report = verify(["data/train.jsonl"], ["data/val.jsonl"], task="sft")
    if not report.ok:
        raise RequestError(report.problems())

A data set is a path ("data/train.jsonl", a folder of shards, "data/train.jsonl#500") or a hub id, which is
left to ms-swift. What a row is and what can be wrong with it is in `dataset_rows`, the reading of files in
`dataset_files`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.dataset_files import (
    READ_BY_SWIFT,
    DataFile,
    Record,
    data_suffix,
    is_array,
    look_at,
    read_records,
)
from swift_toolkit.dataset_rows import (
    KINDS,
    TASKS,
    Flaw,
    Layout,
    Row,
    RowError,
    Rules,
    Severity,
    flaws_of,
    layout_of,
    standard_row,
)
from swift_toolkit.problems import Problem

HEAD_BYTES = 10 << 20
"""ms-swift's reader (datasets 4.8, `chunksize`) takes the columns of a JSON Lines file from these bytes."""

EXAMPLES = 5
"""Problems shown of each kind."""

_SPLIT_NAME = re.compile(r"(?:^|[^a-z])(test|eval|evaluation|valid|validation|val|dev)(?:[^a-z]|$)")


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `dataset` or `val_dataset`.

    Args:
        text: as the user wrote it.
        path: the path or hub id in it.
        kind: "file", "folder", "missing" (a path that does not exist) or "hub".
        sample: N of "#N", the number of rows to take; None for all.
        near: a local file with nearly the same name, where there is one.
    """

    text: str
    path: str
    kind: Literal["file", "folder", "missing", "hub"]
    sample: int | None = None
    near: str | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read "path#N", "owner/name:subset#N", "HF::owner/name" or "MS::owner/name".

        Raises:
            RowError: N is not a positive whole number.
        """
        if Path(text).expanduser().exists():
            path, sample = text, None
        else:
            path, hash_mark, count = text.rpartition("#")
            if not hash_mark:
                path, sample = text, None
            elif count.isdecimal() and int(count) > 0:
                sample = int(count)
            else:
                raise RowError(
                    "no-file", f'"#{count}" is not a number of rows', 'Write a number such as "#500".'
                )
        local = Path(path).expanduser()
        if local.exists():
            return cls(text, path, "folder" if local.is_dir() else "file", sample)
        near = _near_file(local)
        looks_local = path.startswith(("./", "../", "/", "~")) or data_suffix(path) is not None
        if "::" not in path and (looks_local or path.count("/") != 1):
            return cls(text, path, "missing", sample, near)
        return cls(text, path, "hub", sample, near)


def _near_file(path: Path) -> str | None:
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return None
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.parent / near[0]) if near else None


@dataclass
class Group:
    """The problems of one kind: how many, and the first few."""

    kind: str
    severity: Severity
    title: str
    count: int = 0
    examples: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "title": self.title,
            "count": self.count,
            "examples": [str(problem) for problem in self.examples],
        }


@dataclass
class FileReport:
    """What one file holds.

    Args:
        path: as the user spelled it; a file in a folder with the folder before it.
        split: "train" or "val".
        format: name of the row format, "" where none was recognised.
        bytes: size on disk.
        rows: rows in the file; an estimate unless `complete`.
        checked: rows looked at.
        bad: rows with an error.
        complete: every row was looked at.
        unused: columns that training does not look at.
        copy_reason: why ms-swift cannot read the file itself and is given a converted copy; "" if it can.
        sample: number of rows that the run takes of it; None for all.
    """

    path: str
    split: Literal["train", "val"]
    format: str = ""
    bytes: int = 0
    rows: int = 0
    checked: int = 0
    bad: int = 0
    complete: bool = False
    unused: list[str] = field(default_factory=list)
    copy_reason: str = ""
    sample: int | None = None


@dataclass
class DataReport:
    """What `verify` found.

    Args:
        task: what the rows were judged for.
        files: one entry per file.
        groups: problems by kind, errors first, each kind with its count and first examples.
        unchecked: data sets left to ms-swift (hub ids).
        seconds: time it took.
    """

    task: str
    files: list[FileReport] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def errors(self) -> list[Group]:
        return [group for group in self.groups.values() if group.severity == "error"]

    @property
    def warnings(self) -> list[Group]:
        return [group for group in self.groups.values() if group.severity == "warning"]

    @property
    def ok(self) -> bool:
        return not self.errors

    @property
    def complete(self) -> bool:
        """Every row of every local file was looked at."""
        return all(file.complete for file in self.files)

    def rows(self, split: Literal["train", "val"] = "train") -> int:
        """Rows of the local files of a split, before "#N"; an estimate unless `complete`."""
        return sum(file.rows for file in self.files if file.split == split)

    def problems(self) -> list[Problem]:
        """The errors, ready for a RequestError: the first of each kind, and how many more there are."""
        out: list[Problem] = []
        for group in self.errors:
            out += group.examples
            if group.count > len(group.examples):
                out.append(Problem(f"{group.count - len(group.examples)} more of this kind: {group.title}"))
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json` and result.json."""
        return {
            "ok": self.ok,
            "task": self.task,
            "complete": self.complete,
            "rows": self.rows("train"),
            "val_rows": self.rows("val"),
            "files": [dict(vars(file)) for file in self.files],
            "errors": [group.as_dict() for group in self.errors],
            "warnings": [group.as_dict() for group in self.warnings],
            "unchecked": self.unchecked,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """The report as plain lines for the screen."""
        out = [self._file_line(file) for file in self.files]
        out += [f"{name}: on the hub, checked by ms-swift when it loads it" for name in self.unchecked]
        for group in [*self.errors, *self.warnings]:
            out.append(f"{group.severity}: {group.title} ({group.count})")
            out += [f"  {problem}" for problem in group.examples]
        return out

    @staticmethod
    def _file_line(file: FileReport) -> str:
        rows = (
            f"{file.rows:,} rows" if file.complete else f"about {file.rows:,} rows, {file.checked:,} checked"
        )
        parts = [file.format or "unknown format", rows]
        if file.bad:
            parts.append(f"{file.bad:,} bad")
        if file.unused:
            parts.append("not used: " + ", ".join(file.unused[:6]) + (", …" if len(file.unused) > 6 else ""))
        return f"{file.path}: " + ", ".join(parts)

    def add(self, flaw: Flaw, file: str | None, line: int | None = None, number: int | None = None) -> None:
        """Count a flaw, and keep it as an example if it is among the first of its kind."""
        kind = KINDS[flaw.kind]
        group = self.groups.setdefault(flaw.kind, Group(flaw.kind, kind.severity, kind.title))
        group.count += 1
        if len(group.examples) < EXAMPLES:
            where = f"row {number}: " if line is None and number is not None else ""
            group.examples.append(Problem(where + flaw.what, flaw.advice, file=file, line=line))


def verify(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    task: str = "sft",
    multimodal: bool = False,
    num_labels: int | None = None,
    problem_type: str | None = None,
    max_length: int | None = None,
    columns: dict[str, str] | None = None,
    limit_seconds: float | None = None,
) -> DataReport:
    """Read the data sets and report what is in them and what is wrong with them.

    Args:
        train: the entries of `dataset`.
        val: the entries of `val_dataset`.
        task: one of `TASKS`; decides what a row must hold.
        multimodal: the model takes media, so tags in the text always mean media.
        num_labels: classes of a "seq_cls" run.
        problem_type: ms-swift's `problem_type` of a "seq_cls" run.
        max_length: longest row in tokens, for the warning about rows that are longer by an estimate.
        columns: ms-swift's `columns`, names in the file -> standard names.
        limit_seconds: about how long to look; rows beyond are not looked at. None looks at every row.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}, one of {', '.join(TASKS)}")
    started = time.perf_counter()
    rules = Rules(task, multimodal, num_labels, problem_type, max_length, columns)
    report = DataReport(task)
    scan = _Scan(report, rules, None if limit_seconds is None else started + limit_seconds)
    splits: tuple[tuple[Literal["train", "val"], Sequence[str]], ...] = (("train", train), ("val", val))
    for split, specs in splits:
        for text in specs:
            scan.dataset(text, split)
    report.seconds = time.perf_counter() - started
    return report


class _Scan:
    """One pass over all data sets of a run."""

    def __init__(self, report: DataReport, rules: Rules, deadline: float | None) -> None:
        self.report = report
        self.rules = rules
        self.deadline = deadline

    def dataset(self, text: str, split: Literal["train", "val"]) -> None:
        try:
            spec = DatasetSpec.parse(text)
        except RowError as error:
            self.report.add(error.flaw, text)
            return
        if spec.kind == "hub":
            self.report.unchecked.append(text)
            if spec.near:
                what = f'"{spec.path}" is taken for a hub id; there is a local "{spec.near}"'
                self.report.add(Flaw("near-name", what), None)
            return
        if spec.kind == "missing":
            hint = f'Did you mean "{spec.near}"?' if spec.near else "Check the path."
            self.report.add(Flaw("no-file", "no such file", hint), spec.path)
            return
        for path in _files_of(spec):
            self.file(path, spec, split)

    def file(self, path: Path, spec: DatasetSpec, split: Literal["train", "val"]) -> None:
        shown = spec.path if spec.kind == "file" else str(path)
        entry = FileReport(shown, split, sample=spec.sample)
        self.report.files.append(entry)
        file = look_at(path, shown)
        if isinstance(file, Flaw):
            self.report.add(file, shown)
            entry.bad, entry.complete = 1, True
            return
        entry.bytes = file.size
        try:
            layout = layout_of(columns_of(file), self.rules)
        except RowError as error:
            self.report.add(error.flaw, shown)
            entry.bad, entry.complete = 1, True
            return
        except _NoRowsError:
            layout = None
        if layout is not None:
            entry.format, entry.unused = layout.name, list(layout.unused)
            entry.copy_reason = copy_reason(file, layout)
        self._rows(file, layout, entry)

    def _rows(self, file: DataFile, layout: Layout | None, entry: FileReport) -> None:
        read = 0
        for record in read_records(file):
            read += record.bytes
            entry.checked += 1
            entry.bad += self._record(record, layout, file)
            if self.deadline is not None and entry.checked % 64 == 0 and time.perf_counter() > self.deadline:
                break
        else:
            entry.complete = True
        entry.rows = (
            entry.checked if entry.complete else max(entry.checked, entry.checked * file.size // max(read, 1))
        )
        if not entry.checked:
            self.report.add(Flaw("empty-file", "there is no row in the file"), file.shown)

    def _record(self, record: Record, layout: Layout | None, file: DataFile) -> bool:
        """Judge one row; True if it has an error."""
        flaws = list(judge(record.value, layout, self.rules))
        for flaw in flaws:
            self.report.add(flaw, file.shown, record.line, record.number)
        return any(flaw.severity == "error" for flaw in flaws)


def judge(value: Any, layout: Layout | None, rules: Rules) -> Iterable[Flaw]:
    """Everything wrong with one decoded row."""
    if isinstance(value, Flaw):
        return [value]
    if not isinstance(value, dict):
        return [Flaw("not-a-row", f"row is {type(value).__name__}, not an object")]
    assert layout is not None  # a file without any object has no layout, and all its rows end above
    late = [name for name in value if name not in layout.rename]
    if late:
        return [Flaw("late-column", f'column "{late[0]}" appears for the first time after the first 10 MB')]
    try:
        row = standard_row(value, layout)
    except RowError as error:
        return [_other_format(value, layout) or error.flaw]
    return (
        flaws_of(row, rules)
        if row["messages"]
        else [_other_format(value, layout) or Flaw("messages", "row is empty")]
    )


def _other_format(value: Row, layout: Layout) -> Flaw | None:
    """Whether the row is in a format of its own."""
    given = [name for name, content in value.items() if content is not None]
    try:
        other = layout_of(given)
    except RowError:
        return None
    if other.family == layout.family or {other.family, layout.family} == {"response", "alpaca"}:
        return None
    return Flaw("mixed-formats", f"row is in the format {other.name}, the file in {layout.name}")


class _NoRowsError(Exception):
    """No row of a file is an object."""


def columns_of(file: DataFile) -> list[str]:
    """The columns as ms-swift sees them: of a JSON Lines file those of its first 10 MB, else all.

    Raises:
        _NoRowsError: no row is an object.
    """
    columns: dict[str, None] = {}
    limit = HEAD_BYTES if file.syntax in {"jsonl", "json"} and not is_array(file) else None
    read = 0
    for record in read_records(file):
        if isinstance(record.value, dict):
            columns.update(dict.fromkeys(record.value))
            if file.syntax in {"csv", "tsv", "txt", "parquet"}:
                break
        read += record.bytes
        if limit is not None and read > limit:
            break
    if not columns:
        raise _NoRowsError
    return list(columns)


def copy_reason(file: DataFile, layout: Layout) -> str:
    """Why ms-swift is given a converted copy of this file; "" where it reads the file itself."""
    if file.packing or file.path.suffix not in READ_BY_SWIFT:
        return f"ms-swift does not read {''.join(file.path.suffixes[-2:])} files"
    if layout.family == "preference":
        return "ms-swift does not read chosen/rejected"
    if file.syntax == "csv":
        return "ms-swift would read numbers in text columns as numbers"
    if file.syntax in {"json", "jsonl"} and is_array(file) and _first_byte(file) != b"[":
        return "ms-swift reads an array only from the first byte of a file"
    return ""


def _first_byte(file: DataFile) -> bytes:
    with file.path.open("rb") as stream:
        return stream.read(1)


def _files_of(spec: DatasetSpec) -> Iterator[Path]:
    """The file, or the training files in a folder, as `datasets` picks them by name."""
    path = Path(spec.path).expanduser()
    if spec.kind == "file":
        yield path
        return
    files = sorted(
        entry
        for entry in path.rglob("*")
        if entry.is_file()
        and data_suffix(entry)
        and not any(part.startswith((".", "__")) for part in entry.parts)
    )
    train = [entry for entry in files if "train" in str(entry.relative_to(path)).lower()]
    other = [entry for entry in files if not _SPLIT_NAME.search(str(entry.relative_to(path)).lower())]
    yield from train or other
