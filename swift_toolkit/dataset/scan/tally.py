"""The findings in a part of a file: counts, the first flaws, fingerprints for finding equal rows."""

from __future__ import annotations

import heapq
import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple

from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.scan.near import Sketch
from swift_toolkit.dataset.scan.shape import Shape

EXAMPLE_ROWS = 5
"""Number of flaws kept per kind."""

MAX_PRINTS = 1 << 20
"""Maximum number of row fingerprints in memory, 8 bytes each; of larger data, a half, a quarter, ... is compared."""

TOKEN_STEP = 16
"""Width of a bar in the histogram of tokens per row."""

LONGEST_ROWS = 16
"""Number of longest rows whose texts are kept for exact measurement."""

LONGEST_KEPT = 100_000
"""Maximum number of characters of a row whose texts are kept."""

_WORTH_NUMPY = 300_000
"""Number of values from which importing numpy takes less time than it saves."""

ANSWERS_AT_ONCE = 100
"""Answers that are compared with one another: this many of a block, and all others in batches of 100."""


class Finding(NamedTuple):
    """A flaw and its place, relative to the beginning of the part."""

    flaw: Flaw
    line: int | None
    number: int | None


class Prints:
    """Fingerprints of rows for finding equal rows. If necessary, only a share of all values is kept.

    The share is selected by value, so that equal rows are kept or dropped together.
    """

    def __init__(self) -> None:
        self.values = array("q")
        self.rows = 0
        self.mask = 0

    def extend(self, values: Iterable[int], rows: int) -> None:
        self.rows += rows
        self.values.extend(values if not self.mask else (v for v in values if not v & self.mask))
        while len(self.values) > MAX_PRINTS:
            self._thin(self.mask << 1 | 1)

    def _thin(self, mask: int) -> None:
        if mask != self.mask:
            self.mask = mask
            self.values = array("q", (value for value in self.values if not value & mask))

    def add(self, other: Prints) -> None:
        mask = max(self.mask, other.mask)
        self._thin(mask)
        other._thin(mask)
        self.extend(other.values, other.rows)

    def repeats(self) -> tuple[int, list[tuple[int, int]]]:
        """The number of rows that repeat an earlier row (scaled up from the share), and the first of them.

        Returns:
            The number, and index pairs (earlier, later); there are no pairs if only a share was kept.
        """
        values = self.values
        count = len(values) - _distinct(values)
        if not count or self.mask:
            return count * (self.mask + 1), []
        seen: set[int] = set()
        pairs: list[tuple[int, int]] = []
        for at, value in enumerate(values):
            if value in seen:
                pairs.append((values.index(value), at))
                if len(pairs) == EXAMPLE_ROWS:
                    break
            seen.add(value)
        return count, pairs

    def common(self, other: Prints) -> tuple[int, list[tuple[int, int]]]:
        """The number of rows of `other` that also occur here, and the first index pairs (here, there)."""
        mask = max(self.mask, other.mask)
        self._thin(mask)
        other._thin(mask)
        both = set(other.values).intersection(self.values)
        count = sum(map(both.__contains__, other.values)) if both else 0
        if mask:
            return count * (mask + 1), []
        places = [at for at, value in enumerate(other.values) if value in both][:EXAMPLE_ROWS] if both else []
        return count, [(self.values.index(other.values[at]), at) for at in places]


def _distinct(values: array[int]) -> int:
    """The number of different values; sorting by numpy is ten times as fast as a set, but numpy must be imported."""
    numpy = sys.modules.get("numpy")
    if numpy is None and len(values) > _WORTH_NUMPY:
        numpy = import_module("numpy")
    if numpy is not None and len(values):
        in_order = numpy.sort(numpy.frombuffer(values, numpy.int64))
        return 1 + int(numpy.count_nonzero(in_order[1:] != in_order[:-1]))
    return len(set(values))


@dataclass
class Tally:
    """The findings in a part of a file. Tallies are added in the order of the parts.

    Args:
        rows: number of checked rows.
        bad: number of rows with an error.
        lines: number of lines read.
        size: bytes of the checked rows.
        counts: kind of flaw -> number.
        found: kind of flaw -> the first examples.
        turns: messages per row -> rows.
        tokens: estimated tokens per row in units of `TOKEN_STEP` -> rows; for some of the rows.
        longest: the longest rows by that estimate, as a heap of (tokens, texts).
        answers: answer -> its number among `sampled` answers; only frequent answers.
        sampled: number of compared answers.
        pending: collected answers that have not been compared yet.
        labels: two of the labels of the rows, or the only one.
        prints: fingerprints of the rows.
        near: fingerprints of the first rows without spaces and case, and secrets in these rows.
        total: number of rows of the whole file, if counted or known by better means than the bytes per row.
        whole: whether the part was read to the end.
        cut: whether the part could not be read to the end.
        shape: columns and types of the rows that were checked one by one.
    """

    rows: int = 0
    bad: int = 0
    lines: int = 0
    size: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[Finding]] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    longest: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    pending: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    prints: Prints = field(default_factory=Prints)
    near: Sketch = field(default_factory=Sketch)
    total: int | None = None
    whole: bool = True
    cut: bool = False
    shape: Shape = field(default_factory=Shape)

    def note(self, flaw: Flaw, line: int | None = None, number: int | None = None) -> None:
        self.counts[flaw.kind] += 1
        found = self.found.setdefault(flaw.kind, [])
        if len(found) < EXAMPLE_ROWS:
            found.append(Finding(flaw, line, number))

    def note_length(self, tokens: int, texts: tuple[str, ...], rows: float = 1) -> None:
        """Count a row by its tokens.

        Args:
            tokens: its estimated number of tokens.
            texts: its texts, kept if it is one of the longest rows.
            rows: how many rows it represents.
        """
        self.tokens[tokens // TOKEN_STEP] += round(rows)
        if len(self.longest) < LONGEST_ROWS or tokens > self.longest[0][0]:
            entry = (tokens, texts if sum(map(len, texts)) <= LONGEST_KEPT else ())
            if entry not in self.longest:
                (heapq.heappush if len(self.longest) < LONGEST_ROWS else heapq.heappushpop)(
                    self.longest, entry
                )

    def note_answers(self, answers: list[str]) -> None:
        """Collect these answers; see `settle`."""
        self.pending += answers
        if len(self.pending) >= ANSWERS_AT_ONCE:
            self.settle()

    def note_label(self, label: str) -> None:
        """Keep the label of a row if it is one of the first two."""
        if len(self.labels) < 2:
            self.labels.add(label)

    def settle(self) -> None:
        """Count the most frequent of the collected answers, if they are a substantial share."""
        if self.pending:
            answer, times = Counter(self.pending).most_common(1)[0]
            self.sampled += len(self.pending)
            if times * 4 >= len(self.pending):
                self.answers[answer[:200]] += times
            self.pending = []

    def add(self, other: Tally, near: int | None = None) -> None:
        """Add the tally of the next part; none follows a part that could not be read to the end.

        Args:
            other: the tally of that part.
            near: the byte at which it starts, if it does not directly follow; its flaws are then located by this byte.
        """
        if self.cut:
            return
        for kind, founds in other.found.items():
            mine = self.found.setdefault(kind, [])
            for flaw, line, number in founds[: EXAMPLE_ROWS - len(mine)]:
                if near is not None:
                    mine.append(Finding(flaw._replace(what=f"near byte {near:,}: {flaw.what}"), None, None))
                    continue
                moved = None if line is None else line + self.lines
                mine.append(Finding(flaw, moved, None if number is None else number + self.rows))
        for name in ("rows", "bad", "lines", "size", "sampled"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("counts", "turns", "tokens", "answers"):
            getattr(self, name).update(getattr(other, name))
        self.longest = heapq.nlargest(LONGEST_ROWS, {*self.longest, *other.longest})
        heapq.heapify(self.longest)
        for label in other.labels:
            self.note_label(label)
        self.prints.add(other.prints)
        self.near.add(other.near)
        self.whole = self.whole and other.whole
        self.cut = self.cut or other.cut
        self.shape.merge(other.shape)
