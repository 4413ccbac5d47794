"""Is the data fit to train on? Every row is read before the model is.

    report = verify(["data/train.jsonl"], ["data/val.jsonl"], task="sft")
    if not report.ok:
        raise RequestError(report.problems)

A data set is a path ("data/train.jsonl", a folder of shards, "data/train.jsonl#500") or a hub id, which is
left to ms-swift. The rooms behind: `dataset_flaws` names what can be wrong, `dataset_files` reads files,
`dataset_rows` knows the formats, `dataset_checks` judges a row, `dataset_media` looks at its images,
`dataset_shape` guards the types of columns, `dataset_scan` goes through a file, `dataset_copy` writes copies.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.dataset_checks import TASKS, Rules, Task, misspelled_column
from swift_toolkit.dataset_files import READ_BY_SWIFT, DataFile, data_suffix, look_at
from swift_toolkit.dataset_flaws import KINDS, Flaw, FlawError, Severity, brief
from swift_toolkit.dataset_rows import Layout, layout_of
from swift_toolkit.dataset_scan import (
    EXAMPLES,
    PART_BYTES,
    TOKEN_STEP,
    Part,
    Prints,
    Tally,
    apart,
    head_of,
    scan_part,
    scan_parts,
)
from swift_toolkit.dataset_shape import Shape
from swift_toolkit.problems import Problem

Split = Literal["train", "val"]

MOST = 0.5
"""Share of the answers that one answer may make up before it is a warning."""

FEW_ROWS = 20
"""Below this many answers nothing is said about one of them being frequent."""

_OTHER_SPLIT = re.compile(r"(?:^|[^a-z])(test|eval|evaluation|valid|validation|val|dev)(?:[^a-z]|$)")


def task_of(command: str = "sft", rlhf_type: str | None = None, task_type: str | None = None) -> Task:
    """The task that decides what a row must hold, from ms-swift's own settings.

    Args:
        command: "sft", "pt" or "rlhf".
        rlhf_type: with "rlhf"; ms-swift's default is "dpo".
        task_type: "causal_lm", "seq_cls", "embedding", "reranker" or "generative_reranker".

    Raises:
        ValueError: there is no such task.
    """
    name = (rlhf_type or "dpo") if command == "rlhf" else command
    if command != "rlhf" and task_type not in (None, "causal_lm"):
        name = str(task_type)
    for task in TASKS:
        if task == name:
            return task
    raise ValueError(f"unknown task {name!r}, one of {', '.join(TASKS)}")


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
            FlawError: N is not a positive whole number.
        """
        path, sample = text, None
        if not Path(text).expanduser().exists() and "#" in text:
            path, _, count = text.rpartition("#")
            if not count.isdecimal() or int(count) == 0:
                what = f"{brief('#' + count)} is not a number of rows"
                raise FlawError("no-file", what, 'Write a number such as "#500".')
            sample = int(count)
        local = Path(path).expanduser()
        if local.exists():
            return cls(text, path, "folder" if local.is_dir() else "file", sample)
        near = _near_file(local)
        looks_local = path.startswith(("./", "../", "/", "~")) or data_suffix(path) is not None
        if "::" not in path and (looks_local or path.partition(":")[0].count("/") > 1):
            return cls(text, path, "missing", sample, near)
        return cls(text, path, "hub", sample, near)

    def files(self) -> list[Path]:
        """The file, or the training files of a folder, which `datasets` knows by their names."""
        path = Path(self.path).expanduser()
        if self.kind == "file":
            return [path]
        names = sorted(
            entry.relative_to(path)
            for entry in path.rglob("*")
            if entry.is_file() and data_suffix(entry) is not None
        )
        names = [name for name in names if not any(part.startswith((".", "__")) for part in name.parts)]
        train = [name for name in names if "train" in str(name).lower()]
        other = [name for name in names if not _OTHER_SPLIT.search(str(name).lower())]
        return [path / name for name in train or other]


def _near_file(path: Path) -> str | None:
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.exists() and entry.name[0] != "."]
    except OSError:
        return None
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.parent / near[0]) if near else None


# The report


@dataclass
class Group:
    """The problems of one kind: how many, and the first few."""

    kind: str
    count: int = 0
    examples: list[Problem] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    def as_dict(self) -> dict[str, Any]:
        examples = [str(problem) for problem in self.examples]
        return {"kind": self.kind, "title": self.title, "count": self.count, "examples": examples}


@dataclass
class FileReport:
    """What one file holds.

    Args:
        path: as the user spelled it; a file in a folder with the folder before it.
        split: "train" or "val".
        entry: the place of its data set among those of the split.
        format: name of the row format, "" where none was recognised.
        bytes: size on disk.
        rows: rows in the file; an estimate unless `complete`.
        checked: rows looked at.
        bad: rows with an error.
        complete: every row was looked at.
        unusable: not a single row can be saved by leaving others out.
        unused: columns that training does not look at.
        copy_reason: why ms-swift cannot be given the file itself but a converted copy; "" if it can.
    """

    path: str
    split: Split
    entry: int
    format: str = ""
    bytes: int = 0
    rows: int = 0
    checked: int = 0
    bad: int = 0
    complete: bool = True
    unusable: bool = False
    unused: list[str] = field(default_factory=list)
    copy_reason: str = ""

    def line(self) -> str:
        """The file in one line."""
        parts = [self.format or "no known format"]
        parts.append(
            f"{self.rows:,} rows" if self.complete else f"about {self.rows:,} rows, {self.checked:,} checked"
        )
        if self.bad:
            parts.append(f"{self.bad:,} bad")
        if self.unused:
            parts.append("not used: " + ", ".join(self.unused[:6]) + (", …" if len(self.unused) > 6 else ""))
        if self.copy_reason:
            parts.append(f"a copy is made, {self.copy_reason}")
        return f"{self.path}: " + ", ".join(parts)


@dataclass
class DataReport:
    """What `verify` found.

    Args:
        rules: what the rows were judged by.
        specs: the data sets of each split.
        files: one entry per file.
        groups: problems by kind, each with its count and first examples.
        turns: messages in a row -> rows of the training data.
        tokens: tokens of a row, down to a multiple of `token_step` -> rows of the training data.
        token_step: the precision of `tokens`.
        exact_tokens: they were counted by the model's own template, not estimated by bytes.
        seconds: time it took.
    """

    rules: Rules
    specs: dict[Split, list[DatasetSpec]] = field(default_factory=lambda: {"train": [], "val": []})
    files: list[FileReport] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    token_step: int = TOKEN_STEP
    exact_tokens: bool = False
    seconds: float = 0.0

    @property
    def errors(self) -> list[Group]:
        return self._of("error")

    @property
    def warnings(self) -> list[Group]:
        return self._of("warning")

    def _of(self, severity: Severity) -> list[Group]:
        return [
            self.groups[kind] for kind in KINDS if kind in self.groups and KINDS[kind].severity == severity
        ]

    @property
    def ok(self) -> bool:
        """Nothing found that stops a run."""
        return not self.errors

    @property
    def complete(self) -> bool:
        """Every row of every local file was looked at."""
        return all(file.complete for file in self.files)

    @property
    def unchecked(self) -> list[str]:
        """Data sets left to ms-swift: hub ids."""
        return [spec.text for specs in self.specs.values() for spec in specs if spec.kind == "hub"]

    @property
    def train_rows(self) -> int | None:
        """Rows to train on, "#N" observed; an estimate unless `complete`; None if a hub must be asked."""
        return self._rows("train")

    @property
    def val_rows(self) -> int | None:
        """Rows of the validation data sets, likewise."""
        return self._rows("val")

    def _rows(self, split: Split) -> int | None:
        total = 0
        for at, spec in enumerate(self.specs[split]):
            if spec.sample is not None:
                total += spec.sample
            elif spec.kind == "hub":
                return None
            else:
                total += sum(file.rows for file in self.files if (file.split, file.entry) == (split, at))
        return total

    @property
    def problems(self) -> list[Problem]:
        """The errors, ready for a RequestError: the first of each kind, and how many more there are."""
        out: list[Problem] = []
        for group in self.errors:
            out += group.examples
            if group.count > len(group.examples):
                out.append(Problem(f"{group.count - len(group.examples):,} more of this kind: {group.title}"))
        return out

    def headline(self) -> str:
        """The data in one phrase, e.g. "data/train.jsonl, 1,200 rows (messages)"."""
        names = [spec.text for spec in self.specs["train"]]
        formats = sorted({file.format for file in self.files if file.split == "train" and file.format})
        rows = self.train_rows
        count = "" if rows is None else f", {'' if self.complete else 'about '}{rows:,} rows"
        shown = names[0] if len(names) == 1 else f"{len(names)} data sets"
        held_out = f", {self.val_rows:,} to validate" if self.val_rows else ""
        return shown + count + (f" ({', '.join(formats)})" if formats else "") + held_out

    def summary(self) -> list[str]:
        """The whole report as plain lines for the screen."""
        out = [file.line() for file in self.files]
        out += [f"{name}: on a hub, not checked before ms-swift loads it" for name in self.unchecked]
        for group in (*self.errors, *self.warnings):
            out.append(f"{group.severity}: {group.title} ({group.count:,})")
            out += [f"  {problem}" for problem in group.examples]
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json` and result.json."""
        return {
            "ok": self.ok,
            "task": self.rules.task,
            "complete": self.complete,
            "train_rows": self.train_rows,
            "val_rows": self.val_rows,
            "files": [dict(vars(file)) for file in self.files],
            "errors": [group.as_dict() for group in self.errors],
            "warnings": [group.as_dict() for group in self.warnings],
            "unchecked": self.unchecked,
            "turns": dict(sorted(self.turns.items())),
            "tokens": dict(sorted(self.tokens.items())),
            "exact_tokens": self.exact_tokens,
            "seconds": round(self.seconds, 3),
        }

    def add(
        self, flaw: Flaw, file: str | None = None, line: int | None = None, row: int | None = None
    ) -> None:
        """Count a flaw, and keep it as an example if it is among the first of its kind."""
        group = self.groups.setdefault(flaw.kind, Group(flaw.kind))
        group.count += 1
        if len(group.examples) < EXAMPLES:
            where = f"row {row:,}: " if line is None and row is not None else ""
            group.examples.append(Problem(where + flaw.what, flaw.advice, file=file, line=line))


# Verification


def verify(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    task: Task = "sft",
    multimodal: bool = False,
    num_labels: int | None = None,
    problem_type: str | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    limit_seconds: float | None = None,
) -> DataReport:
    """Read the data sets and report what is in them and what is wrong with them.

    Args:
        train: the entries of `dataset`.
        val: the entries of `val_dataset`.
        task: decides what a row must hold, see `task_of`.
        multimodal: the model takes media, so tags in the text always mean media.
        num_labels: classes of a "seq_cls" run.
        problem_type: ms-swift's `problem_type` of a "seq_cls" run.
        max_length: longest row in tokens, for the warning about rows that are longer by an estimate.
        columns: ms-swift's `columns`, names in the file -> standard names.
        limit_seconds: about how long to look. Larger files are then judged by their head, their tail and
            blocks spread evenly between. None looks at every row, with all cores if the data are large.
    """
    started = time.perf_counter()
    rules = Rules(task, multimodal, num_labels, problem_type, max_length, columns)
    check = _Verification(rules)
    check.collect("train", train)
    check.collect("val", val)
    check.scan(None if limit_seconds is None else started + limit_seconds)
    check.compare()
    check.report.seconds = time.perf_counter() - started
    return check.report


class _Verification:
    """The steps of `verify`."""

    def __init__(self, rules: Rules) -> None:
        self.report = DataReport(rules)
        self.rules = rules
        self.work: list[tuple[FileReport, Part]] = []
        self.tallies: list[tuple[FileReport, Tally]] = []

    def collect(self, split: Split, entries: Sequence[str]) -> None:
        """Find the files of these data sets, and the format of each."""
        report = self.report
        for text in entries:
            try:
                spec = DatasetSpec.parse(text)
            except FlawError as error:
                report.add(error.flaw, text)
                continue
            report.specs[split].append(spec)
            if spec.kind == "hub" and spec.near:
                what = f'"{spec.path}" is taken for a hub id, but there is a local "{spec.near}"'
                report.add(Flaw("near-name", what, "Correct the name if that is meant."))
            elif spec.kind == "missing":
                hint = f'Did you mean "{spec.near}"?' if spec.near else "Check the path."
                report.add(Flaw("no-file", "no such file", hint), spec.path)
            elif spec.kind != "hub":
                self._files(spec, split)

    def _files(self, spec: DatasetSpec, split: Split) -> None:
        paths = spec.files()
        if not paths:
            self.report.add(Flaw("no-file", "holds no data file", "Put files of rows into it."), spec.path)
        for path in paths:
            inside = path.relative_to(Path(spec.path).expanduser())
            shown = spec.path if spec.kind == "file" else str(Path(spec.path) / inside)
            entry = FileReport(shown, split, len(self.report.specs[split]) - 1)
            self.report.files.append(entry)
            try:
                part = find_part(path, shown, self.rules)
            except FlawError as error:
                self.report.add(error.flaw, shown)
                entry.unusable = True
                continue
            entry.bytes, entry.copy_reason = part.file.size, part.copy_reason
            entry.format, entry.unused = part.layout.name, list(part.layout.unused)
            if flaw := misspelled_column(part.layout, self.rules):
                self.report.add(flaw, shown)
            self.work.append((entry, part))

    def scan(self, deadline: float | None) -> None:
        """Go through the rows of all files."""
        total = sum(part.file.size for _, part in self.work)
        if deadline is None and total > PART_BYTES and (os.cpu_count() or 1) > 1:
            self._scan_with_all_cores()
        else:
            for entry, part in self.work:
                until = _share(deadline, part.file.size / max(total, 1))
                total -= part.file.size
                tally = scan_part(part) if until is None else sample_part(part, until)
                self.tallies.append((entry, tally))
        for entry, tally in self.tallies:
            self._enter(entry, tally)

    def _scan_with_all_cores(self) -> None:
        parts = [(entry, piece) for entry, part in self.work for piece in _pieces(part)]
        for (entry, _), tally in zip(parts, scan_parts([part for _, part in parts]), strict=True):
            if self.tallies and self.tallies[-1][0] is entry:
                self.tallies[-1][1].add(tally)
            else:
                self.tallies.append((entry, tally))

    def _enter(self, entry: FileReport, tally: Tally) -> None:
        """Put what a file holds into the report."""
        entry.checked, entry.bad, entry.complete = tally.rows, tally.bad, tally.whole
        entry.unusable = tally.cut
        entry.rows = (
            tally.rows if tally.whole else max(tally.rows, tally.rows * entry.bytes // max(tally.size, 1))
        )
        if not tally.rows and not tally.counts:
            self.report.add(Flaw("empty-file", "there is no row in the file"), entry.path)
            entry.unusable = True
        for kind, founds in tally.found.items():
            for flaw, line, number in founds:
                self.report.add(flaw, entry.path, line, number)
            self.report.groups[kind].count += tally.counts[kind] - len(founds)
        if entry.split == "train":
            self.report.turns.update(tally.turns)
            for bar, rows in tally.tokens.items():
                self.report.tokens[bar * TOKEN_STEP] += rows

    def compare(self) -> None:
        """Look for what only all rows together show: copies, leaks, one answer for everything."""
        prints: dict[Split, Prints] = {"train": Prints(), "val": Prints()}
        answers: Counter[str] = Counter()
        sampled = 0
        for entry, tally in self.tallies:
            prints[entry.split].add(tally.prints)
            if entry.split == "train":
                answers.update(tally.answers)
                sampled += tally.sampled
        self._note_pairs("duplicate", *prints["train"].repeats(), "train", "train")
        if prints["val"].rows:
            self._note_pairs("leak", *prints["train"].common(prints["val"]), "train", "val")
        for answer, times in answers.most_common(1):
            if sampled >= FEW_ROWS and times > MOST * sampled:
                self.report.add(
                    Flaw("same-answer", f"{times / sampled:.0%} of the answers are {brief(answer)}")
                )

    def _note_pairs(
        self, kind: str, count: int, pairs: list[tuple[int, int]], earlier: Split, later: Split
    ) -> None:
        if not count:
            return
        for first, second in pairs:
            there, row = self._place(second, later)
            where, number = self._place(first, earlier)
            same = f"row {number:,}" if where == there else f"row {number:,} of {where}"
            self.report.add(Flaw(kind, f"is the same as {same}"), there, row=row)
        if not pairs:
            self.report.add(Flaw(kind, f"about {count:,} rows, by a share of all"))
        self.report.groups[kind].count = count

    def _place(self, index: int, split: Split) -> tuple[str, int]:
        """File and row of the n-th row of a split."""
        for entry, tally in self.tallies:
            if entry.split == split:
                if index < tally.rows:
                    return entry.path, index + 1
                index -= tally.rows
        raise IndexError(index)


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
    return Part(file, layout, shape, rules, copy_reason=copy_reason(file, layout, shape))


def _share(deadline: float | None, share: float) -> float | None:
    if deadline is None:
        return None
    now = time.perf_counter()
    return now + (deadline - now) * share


def _pieces(part: Part) -> Iterator[Part]:
    """A plain file of lines in parts of about `PART_BYTES`, any other as it is."""
    if part.file.packing or not part.file.has_lines:
        yield part
        return
    bounds = [*range(0, part.file.size, PART_BYTES), part.file.size]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < PART_BYTES // 4:
        del bounds[-2]
    for start, end in pairwise(bounds):
        yield replace(part, start=start, end=end)


SAMPLE_BYTES = 1 << 20
"""Size of the blocks looked at in a file too large to be read whole in the time given."""


def sample_part(part: Part, deadline: float) -> Tally:
    """Judge a file within a time: whole if it can be, else its head, its tail and blocks spread evenly."""
    if part.file.packing or not part.file.has_lines or part.file.size <= 2 * SAMPLE_BYTES:
        return scan_part(part, deadline=deadline)
    started = time.perf_counter()
    tally = scan_part(replace(part, end=SAMPLE_BYTES))
    rest = part.file.size - SAMPLE_BYTES
    needed = (time.perf_counter() - started) / SAMPLE_BYTES * rest
    if needed < deadline - time.perf_counter():
        tally.add(scan_part(replace(part, start=SAMPLE_BYTES), deadline=deadline))
        return tally
    for at in _spread(part.file.size):
        tally.add(scan_part(replace(part, start=at, end=at + SAMPLE_BYTES)), near=at)
        if time.perf_counter() > deadline:
            break
    tally.whole = False
    return tally


def _spread(size: int) -> Iterator[int]:
    """Where to look behind the head: the tail, then blocks in an order that is even wherever it is stopped."""
    yield size - SAMPLE_BYTES
    blocks = size // SAMPLE_BYTES
    seen = {0, blocks, blocks - 1}
    step = 2
    while step <= blocks:
        for part in range(1, step, 2):
            block = blocks * part // step
            if block not in seen:
                seen.add(block)
                yield block * SAMPLE_BYTES
        step *= 2


def copy_reason(file: DataFile, layout: Layout, shape: Shape) -> str:
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
    for column in shape.fields.keys() - set(layout.unused):
        if layout.rename[column] in _TEXT_COLUMNS and shape.fields[column].is_dates:
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


class BackgroundVerify:
    """A `verify` in a process of its own, beside other work.

        with BackgroundVerify(["data/train.jsonl"], task="sft") as check:
            ...
            report = check.report()

    Args:
        train: as in `verify`.
        val: as in `verify`.
        options: the keywords of `verify`.
    """

    def __init__(self, train: Sequence[str], val: Sequence[str] = (), **options: Any) -> None:
        import pickle
        import subprocess
        import tempfile

        command, environment = apart()
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._out, env=environment, start_new_session=True
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            pickle.dump((verify, (list(train), list(val)), options), stdin)

    def report(self, timeout: float | None = 0.0) -> DataReport | None:
        """The report, or None if it is not there yet.

        Args:
            timeout: seconds to wait for it; None waits as long as it takes.

        Raises:
            RuntimeError: the process failed.
        """
        import pickle
        from subprocess import TimeoutExpired

        try:
            status = self._process.wait(timeout)
        except TimeoutExpired:
            return None
        if status:
            raise RuntimeError(f"the verification of the data ended with status {status}")
        self._out.seek(0)
        report: DataReport = pickle.load(self._out)
        return report

    def stop(self) -> None:
        """End it, finished or not."""
        import signal

        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()

    def __enter__(self) -> BackgroundVerify:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
