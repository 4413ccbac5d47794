"""Copies of data sets: where ms-swift cannot read a file itself, and without the bad rows.

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
    """What to give to ms-swift.

    Args:
        train: the entries of `dataset`.
        val: the entries of `val_dataset`.
        copies: files that were written in place of others.
        rejected: the file that lists the skipped rows; None if none were.
        left_out: how many rows were skipped, by the title of the first error of each.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    rejected: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, copy: _Copy) -> None:
        """Enter a copy that was made."""
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
    """Write copies of the data sets that ms-swift cannot read as they are, or that hold bad rows.

    Args:
        report: what `verify` found.
        folder: where the copies go; made if one is written.
        skip_bad_rows: skip rows with errors: "N" at most N of them, "P%" at most that share of all rows, ""
            any number. None skips none.

    Raises:
        RequestError: there are errors that cannot be skipped, or more of them than allowed.
        ValueError: `skip_bad_rows` is none of these.
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
    if given.left_out and skip_bad_rows is None:  # beyond the sample that was checked
        count = given.left_out.total()
        were, them = ("was", "it") if count == 1 else ("were", "them")
        rows = counted(count, "bad row")
        what = f"{rows} {were} found while the data were copied; {given.rejected} lists {them}"
        raise RequestError([Problem(what, f"Fix {them}, or skip {them} with --skip-bad-rows.")])
    return given


def refusal(report: DataReport, skip_bad_rows: str | None) -> list[Problem]:
    """What keeps a run from these data, if anything does; see `prepare`."""
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
    """How many of ``rows`` rows "N", "P%" or "" (any number) allows to be bad.

    Raises:
        ValueError: it is none of these.
    """
    if not text:
        return rows
    number = float(text.removesuffix("%"))
    if not 0 <= number < float("inf"):
        raise ValueError(f"{text!r} is not a number of rows")
    return int(rows * number / 100) if text.endswith("%") else int(number)


def number_problems(numbers: Mapping[str, str | None], as_flags: bool) -> Iterator[Problem]:
    """Which of these arguments are not a number of rows.

    Args:
        numbers: argument -> its value, None for one not given.
        as_flags: they were given on the command line.
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
        path: the copy.
        entry: what ms-swift is given: the copy, and the sample of it.
        left_out: rows that were skipped, by the title of the first error of each.
        rejected: the file that lists them.
    """

    path: Path
    entry: str
    left_out: Counter[str]
    rejected: Path


def _copy(
    files: Sequence[FileReport], spec: DatasetSpec, report: DataReport, folder: Path, before: Prepared
) -> _Copy:
    """Write one copy of all files of a data set, without their bad rows.

    Args:
        files: what is known of them.
        spec: the data set.
        report: what `verify` found.
        folder: where the copy goes.
        before: the copies made before it.
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
    """Writes the rows without errors to one file, and the others with their errors to another."""

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
    """The row with every content as text."""
    out = dict(row)
    for name in ("messages", "rejected_messages"):
        if name in row:
            out[name] = _turns_with_texts(row[name], name)
    for name in ("positive_messages", "negative_messages"):
        if name in row:
            out[name] = [_turns_with_texts(turns, name) for turns in row[name]]
    return out


def _for_reader(row: Row, rules: Rules) -> Row:
    """The row with the same columns and one type of value in each place, as in all rows of all copies."""
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
    """The question followed by the rejected answer instead of all that follows it, as ms-swift joins them."""
    answer = [{"role": "assistant", "content": rejected}] if isinstance(rejected, str) else rejected
    asked = max(at for at, message in enumerate(messages) if message["role"] == "user")
    return [*messages[: asked + 1], *_turns_with_texts(answer, "rejected_response")]


def _keep_dates(messages: list[Message]) -> None:
    """Where all texts are dates, the reader turns them into numbers. It does not look into objects of different keys,
    so the first of all messages gets another key.
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
    if talk.media:  # which has no other place than inside
        return turns
    return [{**message, "content": text_of(message)} for message in talk.messages]


def json_line(value: Any) -> bytes:
    """One line of JSON; bytes of media, as Parquet may hold them, as data URIs."""
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
    """Write the training data as messages JSONL, row for row, "#N" aside.

    Args:
        report: what `verify` found; rows may lack what the task needs, but must be readable.
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
    """Writes every row as messages."""

    wants_rows = True

    def __init__(self, out: IO[bytes], problems: list[Problem]) -> None:
        self.out = out
        self.problems = problems
        self.file = ""
        self.rows = 0

    def lines(self, chunk: bytes) -> None:
        raise AssertionError("rows are wanted one by one")

    def row(self, value: Any, row: Row | None, flaws: list[Flaw], line: int | None, number: int) -> None:
        if row is None:
            where = "" if line is not None else f"row {number:,}: "
            self.problems += [
                Problem(where + flaw.what, flaw.advice, file=self.file, line=line) for flaw in flaws
            ]
            return
        self.out.write(json_line({"messages": None, **with_texts(row)}))
        self.rows += 1
