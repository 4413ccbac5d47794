"""Copies of data sets that ms-swift cannot read directly, or without their bad rows.

report = verify(["data/train.csv"])
given = prepare(report, run_directory / "data", skip_bad_rows="5%")
sft_main(["--dataset", *given.train, ...])
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict

from swift_toolkit.console.words import counted
from swift_toolkit.dataset.rows.checks import Rules, text_of
from swift_toolkit.dataset.rows.flaws import KINDS, Flaw
from swift_toolkit.dataset.rows.messages import Message, Row, read_messages
from swift_toolkit.dataset.scan.part import Part, find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.shape import DATE
from swift_toolkit.dataset.verify import DataReport, DatasetSpec, FileReport
from swift_toolkit.machine.files import whole_file
from swift_toolkit.problems import Problem, RequestError


class PreparedDict(TypedDict):
    """`Prepared` as plain data."""

    train: list[str]
    val: list[str]
    copies: list[str]
    rows_left_out: int
    left_out: dict[str, int]
    rejected: str | None


@dataclass
class Prepared:
    """The data to pass to ms-swift.

    Args:
        train: the entries of `dataset`.
        val: the entries of `val_dataset`.
        copies: files that replace others.
        rejected: the file that lists the skipped rows; None if no row was skipped.
        left_out: numbers of skipped rows by the title of the first error of each row.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    rejected: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, copy: _Copy) -> None:
        """Add a copy."""
        self.copies.append(copy.path)
        self.left_out += copy.left_out
        if copy.left_out:
            self.rejected = copy.rejected

    def as_dict(self) -> PreparedDict:
        """Plain data for result.json."""
        return {
            "train": self.train,
            "val": self.val,
            "copies": [str(path) for path in self.copies],
            "rows_left_out": self.left_out.total(),
            "left_out": dict(self.left_out),
            "rejected": None if self.rejected is None else str(self.rejected),
        }


def prepare_data(report: DataReport, folder: Path, skip_bad_rows: str | None = None) -> Prepared:
    """Write copies of the data sets that ms-swift cannot read directly, or that contain bad rows.

    Args:
        report: what `verify` found.
        folder: the directory of the copies; created if a copy is written.
        skip_bad_rows: skip rows with errors: "N" skips at most N rows, "P%" at most that share of all rows, "" any
            number. None skips no rows.

    Raises:
        RequestError: there are errors that cannot be skipped, or more bad rows than allowed.
        ValueError: `skip_bad_rows` has another form.
    """
    if problems := refusal(report, skip_bad_rows):
        raise RequestError(problems)
    given = Prepared()
    for split, specs in report.specs.items():
        entries = given.train if split == "train" else given.val
        for at, spec in enumerate(specs):
            files = [file for file in report.files if (file.split, file.entry) == (split, at)]
            if any(file.copy_reason or file.bad for file in files):
                copy = _copy(files, spec, report, folder, given)
                given.add(copy)
                entries.append(copy.entry)
            else:
                entries.append(spec.text)
    if given.left_out and skip_bad_rows is None:  # found outside the checked sample
        count = given.left_out.total()
        were, them = ("was", "it") if count == 1 else ("were", "them")
        rows = counted(count, "bad row")
        what = f"{rows} {were} found while the data was copied; {given.rejected} lists {them}"
        raise RequestError([Problem(what, f"Fix {them}, or skip {them} with --skip-bad-rows.")])
    return given


def refusal(report: DataReport, skip_bad_rows: str | None) -> list[Problem]:
    """The problems that prevent a run with this data; see `prepare`."""
    if report.ok:
        return []
    bad, rows = sum(file.bad for file in report.files), sum(file.rows for file in report.files)
    lost = any(file.unusable for file in report.files) or bad == rows or not report.complete
    if skip_bad_rows is None or lost or "no-file" in report.groups:
        return report.problems
    allowed = bad_rows_allowed(skip_bad_rows, rows)
    if bad > allowed:
        are = "is" if bad == 1 else "are"
        what = f"{bad:,} of {rows:,} rows {are} bad; at most {allowed:,} may be skipped"
        return [*report.problems, Problem(what, "Fix them, or allow more.")]
    return []


def bad_rows_allowed(text: str, rows: int) -> int:
    """How many of ``rows`` rows may be bad according to "N", "P%" or "" (any number).

    Raises:
        ValueError: the text has another form.
    """
    if not text:
        return rows
    number = float(text.removesuffix("%"))
    if not 0 <= number < float("inf"):
        raise ValueError(f"{text!r} is not a number of rows")
    return int(rows * number / 100) if text.endswith("%") else int(number)


def number_problems(numbers: Mapping[str, str | None], as_flags: bool) -> Iterator[Problem]:
    """Problems of arguments that are not a number of rows.

    Args:
        numbers: argument -> value; None if it was not given.
        as_flags: whether they were given on the command line.
    """
    for name, text in numbers.items():
        try:
            bad_rows_allowed(text or "", 0)
        except ValueError:
            key = "--" + name.replace("_", "-") if as_flags else name
            yield Problem(f'is "{text}"', 'Write a number of rows, or a share such as "5%".', key=key)


@dataclass(frozen=True)
class _Copy:
    """One copy of a data set.

    Args:
        path: the file of the copy.
        entry: the entry of `dataset` for ms-swift: the copy and its sample.
        left_out: numbers of skipped rows by the title of the first error of each row.
        rejected: the file that lists the skipped rows.
    """

    path: Path
    entry: str
    left_out: Counter[str]
    rejected: Path


def _copy(
    files: Sequence[FileReport], spec: DatasetSpec, report: DataReport, folder: Path, before: Prepared
) -> _Copy:
    """Write a single copy of all files of a data set, without the bad rows.

    Args:
        files: the reports of the files.
        spec: the data set.
        report: what `verify` found.
        folder: the directory of the copy.
        before: the earlier copies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = _free_name(folder, Path(spec.path).name.partition(".")[0] or "data", before.copies)
    as_it_is = len(files) == 1 and not files[0].copy_reason
    rejected, left_out = folder / "rejected.jsonl", Counter[str]()
    with whole_file(target) as out, rejected.open("a" if before.rejected else "w", encoding="utf-8") as list_:
        for file in files:
            part = find_part(Path(file.path).expanduser(), file.path, report.rules)
            copy = _CleanCopy(part, as_it_is, out, list_)
            scan_part(part, copy)
            left_out += copy.left_out
    if not left_out and not before.rejected:
        rejected.unlink()
    entry = str(target) if spec.sample is None else f"{target}#{spec.sample}"
    return _Copy(target, entry, left_out, rejected)


def _free_name(folder: Path, stem: str, taken: Sequence[Path]) -> Path:
    path, number = folder / f"{stem}.jsonl", 1
    while path in taken or path.name == "rejected.jsonl":
        number += 1
        path = folder / f"{stem}-{number}.jsonl"
    return path


class _CleanCopy:
    """Writes rows without errors to one file, and the others with their errors to another file."""

    def __init__(self, part: Part, as_it_is: bool, out: IO[bytes], rejected: IO[str]) -> None:
        self.file, self.rules = part.file.shown, part.rules
        self.as_it_is = as_it_is
        self.out = out
        self.rejected = rejected
        self.left_out = Counter[str]()
        self.wants_rows = not as_it_is

    def lines(self, chunk: bytes) -> None:
        self.out.write(chunk if chunk.endswith(b"\n") else chunk + b"\n")

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        errors = [flaw for flaw in flaws if flaw.is_error]
        if not errors and row is not None:
            if not self.as_it_is:
                value = _for_reader(row, self.rules)
                if not self.out.tell():
                    _keep_dates(value["messages"])
            self.out.write(json_line(value))
            return
        self.left_out[KINDS[errors[0].kind].title] += 1
        reasons = [str(Problem(flaw.what, flaw.advice)) for flaw in errors]
        shown = None if isinstance(value, Flaw) else value
        entry = {"file": self.file, "line": line, "row": number, "reasons": reasons, "value": shown}
        self.rejected.write(json_line(entry).decode())


def with_texts(row: Row) -> Row:
    """The row with all contents as text."""
    out = dict(row)
    for name in ("messages", "rejected_messages"):
        if name in row:
            out[name] = _turns_with_texts(row[name], name)
    for name in ("positive_messages", "negative_messages"):
        if name in row:
            out[name] = [_turns_with_texts(turns, name) for turns in row[name]]
    return out


def _for_reader(row: Row, rules: Rules) -> Row:
    """The row with the columns and value types that all rows of all copies share."""
    out = with_texts(row)
    rejected = out.pop("rejected_response", None)
    if rejected is not None and rules.task.rows == "preference":
        out.setdefault("rejected_messages", _rejected_messages(out["messages"], rejected))
    if rules.task.rows != "documents":
        out = {name: value for name, value in out.items() if not name.startswith(("positive_", "negative_"))}
    elif rules.task.keeps_negatives:
        out.setdefault("negative_messages", [])
    if "margin" in out:
        out["margin"] = float(out["margin"])
    if "channel" in out and not isinstance(out["channel"], str):
        out["channel"] = json.dumps(out["channel"], default=str)
    if "label" in out and rules.task.has_label:
        out["label"] = _label(out["label"], rules)
    return out


def _rejected_messages(messages: list[Message], rejected: Any) -> list[Message]:
    """The question followed by the rejected answer instead of the rest, joined as in ms-swift."""
    answer = [{"role": "assistant", "content": rejected}] if isinstance(rejected, str) else rejected
    asked = max(at for at, message in enumerate(messages) if message["role"] == "user")
    return [*messages[: asked + 1], *_turns_with_texts(answer, "rejected_response")]


def _keep_dates(messages: list[Message]) -> None:
    """Protect texts that are dates: the reader converts them to numbers if all texts of a place are dates. It does not
    inspect objects with different keys, so the very first message gets an additional key.
    """
    if all(DATE.fullmatch(message["content"]) for message in messages):
        messages[0].setdefault("loss", None)


def _label(label: Any, rules: Rules) -> Any:
    if isinstance(label, list):
        return [int(value) for value in label]
    if rules.task.rows == "judged":
        return bool(label)
    is_number = rules.task.rows == "documents" or rules.is_regression
    return float(label) if is_number else int(label)


def _turns_with_texts(turns: list[Message], name: str) -> list[Message]:
    talk = read_messages(turns, None, name, standard_only=True)
    if talk.media:  # media that can only be given inside the messages
        return turns
    return [{**message, "content": text_of(message)} for message in talk.messages]


def json_line(value: Any) -> bytes:
    """One line of JSON; bytes of media, which Parquet may contain, become data URIs."""
    return json.dumps(_without_bytes(value), ensure_ascii=False, default=str).encode() + b"\n"


def _without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return _without_bytes(value["bytes"])
        return {key: _without_bytes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_bytes(inner) for inner in value]
    if isinstance(value, bytes):
        return "data:application/octet-stream;base64," + base64.b64encode(value).decode()
    return value


def convert(report: DataReport, out: Path) -> int:
    """Write the training data as messages JSONL, row by row, ignoring "#N".

    Args:
        report: what `verify` found; rows may lack data that the task needs, but must be readable.
        out: the file to write.

    Returns:
        The number of rows.

    Raises:
        RequestError: a file or a row cannot be read; nothing is written.
    """
    problems: list[Problem] = []
    files = [file for file in report.files if file.split == "train"]
    if "no-file" in report.groups or any(file.unusable for file in files):
        raise RequestError(report.problems)
    with contextlib.ExitStack() as stack:
        sink = _AllRows(stack.enter_context(whole_file(out)), problems)
        for file in files:
            sink.file = file.path
            scan_part(find_part(Path(file.path).expanduser(), file.path, report.rules), sink)
        if problems:
            raise RequestError(problems)
    return sink.rows


class _AllRows:
    """Writes all rows as messages."""

    wants_rows = True

    def __init__(self, out: IO[bytes], problems: list[Problem]) -> None:
        self.out = out
        self.problems = problems
        self.file = ""
        self.rows = 0

    def lines(self, chunk: bytes) -> None:
        raise AssertionError("rows must be passed one by one")

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        if row is None:
            where = "" if line is not None else f"row {number:,}: "
            self.problems += [
                Problem(where + flaw.what, flaw.advice, file=self.file, line=line) for flaw in flaws
            ]
            return
        self.out.write(json_line({"messages": None, **with_texts(row)}))
        self.rows += 1
