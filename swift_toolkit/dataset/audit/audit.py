"""The audit of many rows: counts, the first flaws of each kind, and problems across rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from swift_toolkit.console.words import counted, listed
from swift_toolkit.dataset.audit.look import Look, Looker, Thought
from swift_toolkit.dataset.report import DataReport, Group, Learned, Split
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.scan.tally import EXAMPLE_ROWS
from swift_toolkit.problems import Problem

FEW = 0.01
"""Share of learned tokens below which a warning is issued."""


class Place(NamedTuple):
    """The place of a row; rows are ordered by the index of their file."""

    order: int
    file: str
    line: int | None
    row: int | None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"{self.file}, row {self.row}"

    def problem(self, flaw: Flaw) -> Problem:
        """The flaw at this place as a problem to show."""
        where = f"row {self.row:,}: " if self.line is None and self.row is not None else ""
        return Problem(where + flaw.what, flaw.advice, file=self.file, line=self.line)


@dataclass
class Audit:
    """The results of some rows. The audits of several processes can be added.

    Args:
        rows: number of encoded or rejected rows.
        used: number of rows that are trained on.
        silent: number of these rows without a token to learn.
        tokens: tokens of all rows that are trained on.
        learned: number of these tokens that count for the loss.
        lengths: tokens of a row's longest sequence -> rows of the training data.
        thoughts: numbers of answers with a thinking block, without one, or with an empty one.
        counts: kind of flaw -> number.
        found: kind of flaw -> the first examples.
    """

    rows: int = 0
    used: int = 0
    silent: int = 0
    tokens: int = 0
    learned: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    thoughts: Counter[Thought] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[tuple[Place, Flaw]]] = field(default_factory=dict)

    def take(self, look: Look, place: Place, split: Split) -> None:
        """Add the result of a row."""
        self.rows += 1
        self.used += look.is_used
        self.silent += look.is_used and not look.learned
        self.tokens += look.tokens
        self.learned += look.learned
        if look.length and split == "train":
            self.lengths[look.length] += 1
        if look.thought:
            self.thoughts[look.thought] += 1
        for flaw in look.flaws:
            self.counts[flaw.kind] += 1
            found = self.found.setdefault(flaw.kind, [])
            if len(found) < EXAMPLE_ROWS:
                found.append((place, flaw))

    def add(self, other: Audit) -> None:
        """Add the audit of another process."""
        for name in ("rows", "used", "silent", "tokens", "learned"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lengths.update(other.lengths)
        self.thoughts.update(other.thoughts)
        self.counts.update(other.counts)
        for kind, found in other.found.items():
            both = [*self.found.get(kind, ()), *found]
            self.found[kind] = sorted(both, key=lambda one: one[0])[:EXAMPLE_ROWS]

    def result(self) -> Learned:
        """The counts only."""
        return Learned(rows=self.rows, tokens=self.tokens, learned=self.learned)

    def groups(self, looker: Looker) -> Iterator[Group]:
        """The problems by kind, those across rows first."""
        for flaw in self._of_all(looker):
            yield Group(flaw.kind, 1, [Problem(flaw.what, flaw.advice)])
        silent = looker.learns and self.used == self.silent
        for kind, found in self.found.items():
            if not (silent and kind == "no-learned"):
                yield Group(kind, self.counts[kind], [place.problem(flaw) for place, flaw in found])

    def _of_all(self, looker: Looker) -> Iterator[Flaw]:
        rows = counted(self.rows, "row")
        if self.rows and not self.used:
            why = [f"{count:,} {_REASONS[kind]}" for kind, count in self.counts.items() if kind in _REASONS]
            yield Flaw("nothing-used", f"none of {rows} can be used: {listed(why)}", _FIRST)
        elif looker.learns and self.used and self.used == self.silent:
            yield Flaw("nothing-learned", f"none of {rows} has a token to learn", self._why_silent(looker))
        elif looker.learns and self.tokens and self.learned / self.tokens < FEW:
            what = f"{self.learned / self.tokens:.2%} of the tokens are learned"
            yield Flaw("few-learned", what, "The rest is read at the same cost.")
        thinking, not_thinking = self.thoughts["thinks"], self.thoughts["none"]
        if thinking and not_thinking:
            what = f"{thinking:,} of {thinking + not_thinking:,} answers think (<think>...</think>), the others do not"
            yield Flaw("mixed-thinking", what, _MIXED[bool(looker.facts.empty_thought)])

    def _why_silent(self, looker: Looker) -> str:
        if self.counts["cut-answer"]:
            return "max_length truncates every answer: raise it."
        scale = "" if looker.rules.task.has_answers else f' for task "{looker.rules.task.name}"'
        return f'Check "loss_scale" and the "loss" of messages{scale}.'


_REASONS = {"template": "rejected by the template", "too-long": "longer than max_length"}
_FIRST = "Correct the rows or the settings; --verify-data --exact shows each."
_MIXED = {
    True: "The template adds an empty block to the others, which is learned: the model learns to think at "
    'random. Make them consistent, or set "loss_scale" to "ignore_empty_think".',
    False: "The model learns to think at random. Make them consistent.",
}


def enter(audit: Audit, looker: Looker, report: DataReport) -> None:
    """Replace a report's estimates by the template's results: tokens per row, rows longer than max_length, rejected
    rows, learned tokens."""
    for kind in ("too-long", "marks", "secret"):
        report.groups.pop(kind, None)
    for group in audit.groups(looker):
        report.groups[group.kind] = group
    report.tokens, report.token_step, report.exact_tokens = +audit.lengths, 1, True
    report.learned = audit.result() if looker.learns else None
