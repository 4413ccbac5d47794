"""The result of `verify`: files, rows and problems, as text and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from swift_toolkit.console.words import counted, listed
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.flaws import KINDS, Flaw, Severity
from swift_toolkit.dataset.scan.tally import EXAMPLE_ROWS, TOKEN_STEP
from swift_toolkit.dataset.spec import DatasetSpec
from swift_toolkit.problems import Problem

Split = Literal["train", "val"]


class GroupDict(TypedDict):
    """`Group` as plain data."""

    kind: str
    title: str
    count: int
    examples: list[str]


class LearnedDict(TypedDict):
    """`Learned` as plain data."""

    rows: int
    tokens: int
    learned: int
    share: float


class ReportDict(TypedDict):
    """`DataReport` as plain data."""

    ok: bool
    task: str
    complete: bool
    train_rows: int | None
    val_rows: int | None
    files: list[dict[str, object]]
    errors: list[GroupDict]
    warnings: list[GroupDict]
    unchecked: list[str]
    turns: dict[int, int]
    tokens: dict[int, int]
    exact_tokens: bool
    learned: LearnedDict | None
    seconds: float


@dataclass
class Group:
    """The problems of one kind: their number and the first examples."""

    kind: str
    count: int = 0
    examples: list[Problem] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def title(self) -> str:
        return KINDS[self.kind].title

    def as_dict(self) -> GroupDict:
        """Plain data for `--json` and result.json."""
        examples = [str(problem) for problem in self.examples]
        return {"kind": self.kind, "title": self.title, "count": self.count, "examples": examples}


@dataclass
class FileReport:
    """The contents of one file.

    Args:
        path: as the user spelled it; a file in a folder includes the folder.
        split: "train" or "val".
        entry: index of its data set among those of the split.
        format: name of the row format; "" if none was recognised.
        bytes: size on disk.
        rows: number of rows in the file; an estimate unless `complete`.
        checked: number of checked rows.
        bad: number of rows with an error.
        complete: whether every row was checked.
        unusable: whether skipping rows cannot make the file usable.
        unused: columns that training does not use.
        columns: every column, by the name that ms-swift gives it.
        copy_reason: why ms-swift needs a converted copy of the file; "" if it can read the file itself.
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
    columns: list[str] = field(default_factory=list)
    copy_reason: str = ""

    def line(self) -> str:
        """Describe the file in one line."""
        parts = [self.format or "no known format"]
        parts.append(
            f"{self.rows:,} rows" if self.complete else f"about {self.rows:,} rows, {self.checked:,} checked"
        )
        if self.bad:
            parts.append(f"{self.bad:,} bad")
        if self.unused:
            parts.append("not used: " + listed(self.unused, most=6))
        if self.copy_reason:
            parts.append(f"a copy is made, {self.copy_reason}")
        return f"{self.path}: " + ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """How many tokens of some rows are learned, by the model's template.

    Args:
        rows: number of inspected rows.
        tokens: number of tokens of the rows that are trained on.
        learned: number of tokens that count for the loss.
    """

    rows: int
    tokens: int
    learned: int

    @property
    def share(self) -> float:
        """The learned share of the tokens."""
        return self.learned / max(self.tokens, 1)

    def as_dict(self) -> LearnedDict:
        """Plain data."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "learned": self.learned,
            "share": round(self.share, 4),
        }

    def __str__(self) -> str:
        return f"{self.share:.0%} of the tokens of {counted(self.rows, 'row')} are learned"


@dataclass
class DataReport:
    """The result of `verify`.

    Args:
        rules: the rules by which the rows were judged.
        specs: the data sets of each split.
        files: one entry per file.
        groups: problems by kind, each with its number and first examples.
        turns: messages per row -> rows of the training data.
        tokens: tokens per row, rounded down to a multiple of `token_step` -> rows of the training data.
        token_step: the precision of `tokens`.
        longest: for each split, tokens of the longest checked row, rounded up to `token_step`; 0 without rows.
        all_too_long: whether the model's tokenizer finds every training row longer than `max_length`, as far as looked.
        exact_tokens: whether the model's own template counted the tokens; otherwise they are estimated.
        learned: how much is learned; None if the template was not used, or the task learns no tokens.
        seconds: duration of the check.
    """

    rules: Rules
    specs: dict[Split, list[DatasetSpec]] = field(default_factory=lambda: {"train": [], "val": []})
    files: list[FileReport] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    token_step: int = TOKEN_STEP
    longest: dict[Split, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    all_too_long: bool = False
    exact_tokens: bool = False
    learned: Learned | None = None
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
        """Whether nothing was found that stops a run."""
        return not self.errors

    @property
    def complete(self) -> bool:
        """Whether every row of every local file was checked."""
        return all(file.complete for file in self.files)

    @property
    def unchecked(self) -> list[str]:
        """Data sets that only ms-swift loads: hub IDs."""
        return [spec.text for specs in self.specs.values() for spec in specs if spec.kind == "hub"]

    @property
    def train_rows(self) -> int | None:
        """Valid training rows, with "#N" applied; an estimate unless `complete`; None if some data is on a hub."""
        return self._rows("train")

    @property
    def val_rows(self) -> int | None:
        """Rows of the validation data sets; None if unknown."""
        return self._rows("val")

    def _rows(self, split: Split) -> int | None:
        asked = [
            good if spec.sample is None else spec.sample
            for spec, good in zip(self.specs[split], self.good_rows(split), strict=True)
        ]
        return None if None in asked else sum(filter(None, asked))

    def good_rows(self, split: Split) -> list[int | None]:
        """Rows without errors of each data set of a split, before "#N"; None for data on a hub."""
        out: list[int | None] = []
        for at, spec in enumerate(self.specs[split]):
            files = [file for file in self.files if (file.split, file.entry) == (split, at)]
            out.append(None if spec.kind == "hub" else sum(file.rows - file.bad for file in files))
        return out

    @property
    def problems(self) -> list[Problem]:
        """The errors for a RequestError: the first of each kind, and how many more there are."""
        out: list[Problem] = []
        for group in self.errors:
            out += group.examples
            if group.count > len(group.examples):
                out.append(Problem(f"{group.count - len(group.examples):,} more of this kind: {group.title}"))
        return out

    def headline(self) -> str:
        """The data as a phrase, e.g. "data/train.jsonl, 1,200 rows, 3 bad (messages)"."""
        names = [spec.text for spec in self.specs["train"]]
        formats = sorted({file.format for file in self.files if file.split == "train" and file.format})
        rows = self.train_rows
        count = "" if rows is None else f", {'' if self.complete else 'about '}{rows:,} rows"
        shown = names[0] if len(names) == 1 else f"{len(names)} data sets"
        held_out = f", {self.val_rows:,} to validate" if self.val_rows else ""
        bad = sum(file.bad for file in self.files)
        count += f", {bad:,} bad" if bad else ""
        return shown + count + (f" ({', '.join(formats)})" if formats else "") + held_out

    def plan_rows(self) -> Iterator[tuple[str, str]]:
        """The lines about the data in the plan of a run: the data, unused columns, warnings."""
        yield "data", self.headline()
        for file in self.files:
            if file.unused:
                yield "not used", f"{file.path}: {listed(file.unused, most=6)}"
        for group in self.warnings:
            yield "warning", f"{group.examples[0]}" + (f" ({group.count:,} rows)" if group.count > 1 else "")

    def verdict(self) -> str:
        """The number of problems as a phrase, e.g. "no errors, 1 warning"."""
        counts = {
            name: sum(group.count for group in groups)
            for name, groups in (("error", self.errors), ("warning", self.warnings))
        }
        parts = [counted(count, name) if count else f"no {name}s" for name, count in counts.items()]
        return ", ".join(parts) + ("" if self.complete else ", by a sample of the rows")

    def summary(self) -> list[str]:
        """The whole report as lines for the screen."""
        out = [file.line() for file in self.files]
        out += [f"{name}: on a hub, not checked before ms-swift loads it" for name in self.unchecked]
        for group in (*self.errors, *self.warnings):
            out.append(f"{group.severity}: {group.title} ({group.count:,})")
            out += [f"  {problem}" for problem in group.examples]
        if self.learned is not None:
            out.append(f"{self.learned}.")
        return out

    def as_dict(self) -> ReportDict:
        """Plain data for `--json` and result.json."""
        return {
            "ok": self.ok,
            "task": self.rules.task.name,
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
            "learned": self.learned.as_dict() if self.learned else None,
            "seconds": round(self.seconds, 3),
        }

    def add(
        self, flaw: Flaw, file: str | None = None, line: int | None = None, row: int | None = None
    ) -> None:
        """Count a flaw, and keep it as an example if it is one of the first of its kind."""
        group = self.groups.setdefault(flaw.kind, Group(flaw.kind))
        group.count += 1
        if len(group.examples) < EXAMPLE_ROWS:
            where = f"row {row:,}: " if line is None and row is not None else ""
            group.examples.append(Problem(where + flaw.what, flaw.advice, file=file, line=line))
