"""Verify data before the model is loaded, by reading every row.

    report = verify(["data/train.jsonl"], ["data/val.jsonl"], task="sft")
    if not report.ok:
        raise RequestError(report.problems)

A data set is a path ("data/train.jsonl", a folder of shards, "data/train.jsonl#500") or a hub ID, which only ms-swift
loads. In this folder, `flaws` lists the kinds of problems, `formats` detects the format of a file by its columns,
`messages` converts a row of any format to messages, `checks` judges a row and `media` checks its images; `reading`
reads rows from files, `scan` processes many rows; `report` is the result, and `copies` writes copies.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from swift_toolkit.config.tasks import TASKS, TaskName
from swift_toolkit.console.words import did_you_mean, did_you_mean_path, shown
from swift_toolkit.dataset.agreement import agree
from swift_toolkit.dataset.lengths import SAMPLE_ROWS, Tokenizer
from swift_toolkit.dataset.report import DataReport, FileReport, Group, Split
from swift_toolkit.dataset.rows.checks import Rules, misspelled_column
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.formats import STANDARD_COLUMNS
from swift_toolkit.dataset.rows.template import ANY_TEMPLATE, TemplateRules
from swift_toolkit.dataset.scan import near
from swift_toolkit.dataset.scan.part import Part, find_part, learned, unused_names
from swift_toolkit.dataset.scan.pool import (
    Workers,
    is_work_for_arrow,
    scan_alone,
    starter_command,
    worth_sharing,
)
from swift_toolkit.dataset.scan.sample import sample_part, some_texts
from swift_toolkit.dataset.scan.tally import TOKEN_STEP, Prints, Tally
from swift_toolkit.dataset.spec import DatasetSpec, missing_hint

__all__ = [
    "BackgroundVerify", "DataReport", "DatasetSpec", "FileReport", "Group", "Split", "verify",
]  # fmt: skip

MOST = 0.5
"""Share of the answers from which a repeated answer causes a warning."""

MARKS_OF_A_MESSAGE = 5.0
"""Tokens that most templates add to a message: "<|im_start|>", the role, a newline, "<|im_end|>", a newline."""

LONGEST_TOKEN = 64
"""Of a text, this many characters for each token of max_length are enough to find whether it is too long."""

FEW_LABELS = 4
"""Rows with the same label from which a warning is given."""

FEW_ROWS = 20
"""Minimum number of answers for the warning about a frequent answer."""


# Verification


def verify(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    task: TaskName = "sft",
    answers_itself: bool = False,
    multimodal: bool = False,
    num_labels: int | None = None,
    problem_type: str | None = None,
    max_length: int | None = None,
    truncation: str = "delete",
    columns: Mapping[str, str] | None = None,
    template: TemplateRules = ANY_TEMPLATE,
    loss_type: str | None = None,
    tokenizer: Path | None = None,
    closely: bool = False,
    limit_seconds: float | None = None,
) -> DataReport:
    """Read the data sets, and report their contents and problems.

    Args:
        train: the entries of `dataset`.
        val: the entries of `val_dataset`.
        task: the training task, which determines what a row must contain.
        answers_itself: the model generates the answers during training, so rows need none.
        multimodal: the model takes media, so tags in the text always stand for media.
        num_labels: classes of a "seq_cls" run.
        problem_type: ms-swift's `problem_type` of a "seq_cls" run.
        max_length: maximum length of a row in tokens, for the warning about rows that are longer by an estimate.
        truncation: ms-swift's `truncation_strategy`.
        columns: ms-swift's `columns`, names in the file -> standard names.
        template: what the template of the run cannot write.
        loss_type: ms-swift's `loss_type` of embeddings.
        tokenizer: the model's `tokenizer.json`, for estimating lengths; None estimates them from bytes.
        closely: look for secrets, and for duplicates that differ in spaces and case, in all rows instead of the first
            10,000 rows or million characters of a file; takes about three times as long. Without `limit_seconds` only.
        limit_seconds: approximate time limit. Larger files are then judged by their head, their tail and evenly spaced
            blocks in between. None checks every row, with all cores if the data is large.
    """
    started = time.perf_counter()
    kind = replace(TASKS[task], rows="prompt") if answers_itself else TASKS[task]
    rules = Rules(
        kind,
        multimodal,
        num_labels,
        problem_type,
        max_length,
        truncation,
        columns,
        template,
        loss_type,
        closely=closely,
    )
    with Workers() as workers:
        check = _Verification(rules, None if limit_seconds is not None else workers)
        check.collect("train", train)
        check.collect("val", val)
        check.look_up_columns()
        if tokenizer is not None:
            check.measure(tokenizer)
        check.scan(None if limit_seconds is None else started + limit_seconds)
    check.agree()
    check.compare()
    if check.tokenizer is not None:
        check.tokenizer.keep()
    check.report.seconds = time.perf_counter() - started
    return check.report


class _Verification:
    """The steps of `verify`.

    Args:
        rules: what the run asks of its rows.
        workers: processes for large files; None within a time limit.
    """

    def __init__(self, rules: Rules, workers: Workers | None) -> None:
        self.report = DataReport(rules)
        self.rules = rules
        self.workers = workers
        self.work: list[tuple[FileReport, Part]] = []
        self.tallies: list[tuple[FileReport, Tally]] = []
        self.tokenizer: Tokenizer | None = None
        self.sample: list[tuple[str, ...]] = []

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
                what = f'"{spec.path}" is used as a hub ID, but there is a local "{spec.near}"'
                report.add(Flaw("near-name", what, "Correct the name if you meant that."))
            elif spec.kind == "missing":
                near = did_you_mean_path(Path(spec.path).expanduser(), "Check the path.")
                hint = missing_hint(spec.path) or near
                report.add(Flaw("no-file", "no such file", hint), spec.path)
            elif spec.kind != "hub":
                self._files(spec, split)

    def _files(self, spec: DatasetSpec, split: Split) -> None:
        try:
            paths = spec.files()
        except FlawError as error:
            self.report.add(error.flaw, spec.path)
            return
        if not paths:
            self.report.add(Flaw("no-file", "contains no data file", "Add data files to it."), spec.path)
        for path in paths:
            inside = path.relative_to(Path(spec.path).expanduser())
            shown = spec.path if spec.kind == "file" else str(Path(spec.path) / inside)
            entry = FileReport(shown, split, len(self.report.specs[split]) - 1)
            self.report.files.append(entry)
            try:
                part = (self.workers.find_part if self.workers else find_part)(path, shown, self.rules)
            except FlawError as error:
                self.report.add(error.flaw, shown)
                entry.unusable = True
                continue
            self._show(entry, part)
            if flaw := misspelled_column(part.layout, self.rules):
                self.report.add(flaw, shown)
            self.work.append((entry, part))

    def look_up_columns(self) -> None:
        """Find names in the run's mapping of columns that no file has, or that ms-swift does not use."""
        report, rules = self.report, self.rules
        mapping = rules.columns if self.work and not report.unchecked and not report.groups else None
        found = {column for _, part in self.work for column in part.layout.rename}
        for column, name in (mapping or {}).items():
            if column not in found:
                do = did_you_mean(column, sorted(found), f"They have {', '.join(sorted(found)[:8])}.")
                report.add(Flaw("near-column", f'"columns" names "{column}", which no file has', do))
            elif name not in STANDARD_COLUMNS and rules.task.rows not in ("prompt", "decision"):
                do = did_you_mean(
                    name, sorted(STANDARD_COLUMNS), 'Use e.g. "messages", "query" or "response".'
                )
                report.add(
                    Flaw("near-column", f'"columns" maps "{column}" to "{name}", which is not used', do)
                )

    def _show(self, entry: FileReport, part: Part) -> None:
        entry.bytes, entry.copy_reason = part.file.size, part.copy_reason
        entry.format, entry.unused = part.layout.name, unused_names(part)
        entry.columns = list(part.layout.rename.values())

    def agree(self) -> None:
        """Check that files that are read together agree."""
        for split in self.report.specs:
            for entry, flaw in agree([one for one in self.work if one[0].split == split]):
                self.report.add(flaw, entry.path)
                entry.unusable = True

    def measure(self, path: Path) -> None:
        """Estimate the tokens of texts from some of the rows."""
        try:
            self.tokenizer = Tokenizer(path)
        except ValueError:
            return
        found = [(entry, list(some_texts(part))) for entry, part in self.work]
        rows = [row for _, some in found for row in some]
        self.sample = [row for entry, some in found if entry.split == "train" for row in some]
        message = MARKS_OF_A_MESSAGE if self.rules.task.rows != "text" else 1.0
        self.rules = replace(self.rules, lengths=self.tokenizer.lengths(rows, message))
        self.report.rules = self.rules
        self.work = [(entry, replace(part, rules=self.rules)) for entry, part in self.work]

    def scan(self, deadline: float | None) -> None:
        """Scan the rows of all files."""
        as_utf8 = is_work_for_arrow([part.file for _, part in self.work])
        self.work = [(entry, replace(part, as_utf8=as_utf8)) for entry, part in self.work]
        if self.workers is not None and worth_sharing(part for _, part in self.work):
            tallies = self.workers.scan([part for _, part in self.work])
            self.tallies = [(entry, tally) for (entry, _), tally in zip(self.work, tallies, strict=True)]
        else:
            self.tallies = []
            left = sum(part.file.size for _, part in self.work)
            for entry, part in self.work:
                until = _share(deadline, part.file.size / max(left, 1))
                left -= part.file.size
                tally = scan_alone(part) if until is None else sample_part(part, until)
                self.tallies.append((entry, tally))
        if self._learn():
            self.scan(deadline)
            return
        for entry, tally in self.tallies:
            self._enter(entry, tally)

    def _learn(self) -> bool:
        """Add the columns and types of arrays beyond their heads, because ms-swift reads arrays as a whole.

        Returns:
            Whether that changes the format of a file, so that its rows must be judged again.
        """
        again = False
        for at, ((entry, part), (_, tally)) in enumerate(zip(self.work, self.tallies, strict=True)):
            known = part.shape.kind
            part.shape.merge(tally.shape)
            if part.shape.kind == known:
                continue
            try:
                new = learned(part, part.shape)
            except FlawError as error:
                tally.cut = True
                tally.note(error.flaw)
                continue
            again = again or new.layout.used != part.layout.used
            self.work[at] = (entry, new)
            self._show(entry, new)
        return again

    def _enter(self, entry: FileReport, tally: Tally) -> None:
        """Add the contents of a file to the report."""
        entry.checked, entry.bad, entry.complete = tally.rows, tally.bad, tally.whole
        entry.unusable = tally.cut
        estimate = tally.rows * entry.bytes // max(tally.size, 1) if tally.total is None else tally.total
        entry.rows = tally.rows if tally.whole else max(tally.rows, estimate)
        if not tally.rows and not tally.counts:
            where = "" if tally.whole else " in the part that was read"
            self.report.add(Flaw("empty-file", f"the file has no rows{where}"), entry.path)
            entry.unusable = True
        for kind, founds in tally.found.items():
            for flaw, line, number in founds:
                self.report.add(flaw, entry.path, line, number)
            self.report.groups[kind].count += tally.counts[kind] - len(founds)
        longest = self._settle_longest(tally)
        self.report.longest[entry.split] = max(self.report.longest[entry.split], longest)
        if entry.split == "train":
            self.report.turns.update(tally.turns)
            share = tally.turns.total() / max(
                tally.tokens.total(), 1
            )  # extrapolated from the tokens of some rows
            for bar, rows in tally.tokens.items():
                self.report.tokens[bar * TOKEN_STEP] += round(rows * share)

    def _settle_longest(self, tally: Tally) -> int:
        """Tokens of the longest row, rounded up to a multiple of `TOKEN_STEP`; measured if possible."""
        last = max(tally.tokens, default=-1)
        most = self.tokenizer.longest(tally.longest, self.rules.lengths) if self.tokenizer else None
        if most is not None:
            over = [bar for bar in tally.tokens if bar > most // TOKEN_STEP]
            tally.tokens[most // TOKEN_STEP] += sum(map(tally.tokens.pop, over))
            last = most // TOKEN_STEP
        return (last + 1) * TOKEN_STEP

    def compare(self) -> None:
        """Find problems across rows: duplicates, validation leaks, one answer for everything."""
        self.report.all_too_long = self._all_too_long()
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
        self._compare_nearly()
        self._compare_labels()
        for answer, times in answers.most_common(1):
            if sampled >= FEW_ROWS and times > MOST * sampled:
                self.report.add(
                    Flaw("same-answer", f"{times / sampled:.0%} of the answers are {shown(answer)}")
                )

    def _all_too_long(self) -> bool:
        """Whether every row is longer than ``max_length``: by the estimates, and by the tokenizer for a sample."""
        limit, tokens = self.rules.max_length, self.report.tokens
        if limit is None or self.tokenizer is None or not tokens or min(tokens) + TOKEN_STEP <= limit:
            return False
        count, most = self.tokenizer.count, limit * LONGEST_TOKEN
        some = self.sample[:: max(len(self.sample) // SAMPLE_ROWS, 1)]
        return bool(some) and all(sum(count(text[:most]) for text in row) > limit for row in some)

    def _compare_labels(self) -> None:
        """Find that all training rows have the same label."""
        tallies = [tally for entry, tally in self.tallies if entry.split == "train"]
        labels = {label for tally in tallies for label in tally.labels}
        rows = sum(tally.rows for tally in tallies)
        if len(labels) == 1 and rows >= FEW_LABELS:
            self.report.add(Flaw("one-label", f'"label" is {labels.pop()} in all {rows:,} rows'))

    def _compare_nearly(self) -> None:
        """Find duplicates and leaks that differ only in spaces and case, and secrets."""
        files = {split: [one for one in self.tallies if one[0].split == split] for split in ("train", "val")}
        train, val = ([tally.near for _, tally in files[split]] for split in ("train", "val"))
        for kind, found, later in (
            ("near-duplicate", near.pairs(train), "train"),
            ("near-leak", near.pairs(train, val) if val else (), "val"),
        ):
            for first, second in found:
                where, there = files["train"][first.file][0].path, files[later][second.file][0].path
                same = f"row {first.row + 1:,}" + ("" if where == there else f" of {where}")
                what = f"is the same as {same} except for spaces and case"
                self.report.add(Flaw(kind, what), there, row=second.row + 1)
        for entry, tally in self.tallies:
            for secret in tally.near.secrets:
                self.report.add(Flaw("secret", f"holds {secret.what}"), entry.path, row=secret.row + 1)

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
            self.report.add(Flaw(kind, f"about {count:,} rows, estimated from a sample"))
        self.report.groups[kind].count = count

    def _place(self, index: int, split: Split) -> tuple[str, int]:
        """The file, and the row in it, of the n-th row of a split."""
        for entry, tally in self.tallies:
            if entry.split == split:
                if index < tally.rows:
                    return entry.path, index + 1
                index -= tally.rows
        raise IndexError(index)


def _share(deadline: float | None, share: float) -> float | None:
    if deadline is None:
        return None
    now = time.perf_counter()
    return now + (deadline - now) * share


class BackgroundVerify:
    """Runs `verify` in a separate process while other work continues.

        with BackgroundVerify(["data/train.jsonl"], task="sft") as check:
            ...
            report = check.report()

    Args:
        train: as in `verify`.
        val: as in `verify`.
        options: keyword arguments of `verify`.
    """

    def __init__(self, train: Sequence[str], val: Sequence[str] = (), **options: Any) -> None:
        command, environment = starter_command()
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # stays open as long as this process exists
            stdout=self._out,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        pickle.dump((verify, (list(train), list(val)), options), self._process.stdin)
        self._process.stdin.flush()

    def report(self, timeout: float | None = 0.0) -> DataReport | None:
        """The report, or None if it is not ready yet.

        Args:
            timeout: how long to wait for it in seconds; None waits until it is ready.

        Raises:
            RuntimeError: the process failed.
        """
        try:
            status = self._process.wait(timeout)
        except TimeoutExpired:
            return None
        if status:
            raise RuntimeError(f"the data verification ended with status {status}")
        self._out.seek(0)
        report: DataReport = pickle.load(self._out)
        return report

    def stop(self) -> None:
        """Stop the process, whether it has finished or not."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._out.close()

    def __enter__(self) -> BackgroundVerify:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
