"""What a part of a file was found to hold: counts, the first flaws, fingerprints to find equal rows by."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.scan.near import Sketch
from swift_toolkit.dataset.scan.shape import Shape

EXAMPLES = 5
"""Flaws kept of each kind."""

MAX_PRINTS = 1 << 20
"""Fingerprints of rows held at once, 8 bytes each; of larger data a half, a quarter, ... is compared."""

TOKEN_STEP = 16
"""Width of a bar of the histogram of tokens per row."""

LONGEST_ROWS = 16
"""Longest rows whose texts are kept, to be measured exactly."""

LONGEST_KEPT = 100_000
"""Characters of a row beyond which its texts are not kept."""

ANSWERS_AT_ONCE = 100
"""Answers compared with one another: this many of a block, and all others a hundred at a time."""


class Finding(NamedTuple):
    """A flaw and its place, counted from the beginning of the part."""

    flaw: Flaw
    line: int | None
    number: int | None


class Prints:
    """Fingerprints of rows, to find equal ones. If need be only a share of all values is kept.

    The share is chosen by value, so that equal rows are kept or dropped together.
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
        """How many rows repeat an earlier one (scaled up from the share), and where the first ones are.

        Returns:
            The number, and pairs of indices (earlier, later), none if only a share was kept.
        """
        values = self.values.tolist()
        seen = set(values)
        count = len(values) - len(seen)
        if not count or self.mask:
            return count * (self.mask + 1), []
        seen.clear()
        pairs: list[tuple[int, int]] = []
        for at, value in enumerate(values):
            if value in seen:
                pairs.append((values.index(value), at))
                if len(pairs) == EXAMPLES:
                    break
            seen.add(value)
        return count, pairs

    def common(self, other: Prints) -> tuple[int, list[tuple[int, int]]]:
        """How many rows of `other` are here too, and the first pairs (index here, index there)."""
        mask = max(self.mask, other.mask)
        self._thin(mask)
        other._thin(mask)
        both = set(other.values).intersection(self.values)
        count = sum(map(both.__contains__, other.values)) if both else 0
        if mask:
            return count * (mask + 1), []
        places = [at for at, value in enumerate(other.values) if value in both][:EXAMPLES] if both else []
        return count, [(self.values.index(other.values[at]), at) for at in places]


@dataclass
class Tally:
    """What a part of a file holds. Parts add up in their order.

    Args:
        rows: rows looked at.
        bad: those with an error.
        lines: lines passed.
        size: bytes of the rows looked at.
        counts: kind of flaw -> how many.
        found: kind of flaw -> the first few.
        turns: messages in a row -> rows.
        tokens: estimated tokens of a row by `TOKEN_STEP` -> rows, of some of the rows.
        longest: the longest rows by that estimate, a heap of (tokens, texts).
        answers: answer -> how often it was seen among `sampled` answers; only frequent ones.
        sampled: answers that were compared.
        pending: answers noted and not yet compared.
        prints: fingerprints of the rows.
        near: what the first rows are without blanks and case, and secrets in them.
        total: rows of the whole file, where they were counted or are known from more than the bytes of a row.
        whole: the part was read to its end.
        cut: it could not be read to its end.
        shape: columns and types of the rows that were looked at one by one.
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
    prints: Prints = field(default_factory=Prints)
    near: Sketch = field(default_factory=Sketch)
    total: int | None = None
    whole: bool = True
    cut: bool = False
    shape: Shape = field(default_factory=Shape)

    def note(self, flaw: Flaw, line: int | None = None, number: int | None = None) -> None:
        self.counts[flaw.kind] += 1
        found = self.found.setdefault(flaw.kind, [])
        if len(found) < EXAMPLES:
            found.append(Finding(flaw, line, number))

    def note_length(self, tokens: int, texts: tuple[str, ...], rows: float = 1) -> None:
        """Count a row by its tokens.

        Args:
            tokens: how many it has, by an estimate.
            texts: its texts, to be kept if it is one of the longest.
            rows: how many rows it stands for.
        """
        self.tokens[tokens // TOKEN_STEP] += round(rows)
        if len(self.longest) < LONGEST_ROWS or tokens > self.longest[0][0]:
            entry = (tokens, texts if sum(map(len, texts)) <= LONGEST_KEPT else ())
            if entry not in self.longest:
                (heapq.heappush if len(self.longest) < LONGEST_ROWS else heapq.heappushpop)(
                    self.longest, entry
                )

    def note_answers(self, answers: list[str]) -> None:
        """Take these answers into account; see `settle`."""
        self.pending += answers
        if len(self.pending) >= ANSWERS_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Count the most frequent of the answers noted since, if a good share of them."""
        if self.pending:
            answer, times = Counter(self.pending).most_common(1)[0]
            self.sampled += len(self.pending)
            if times * 4 >= len(self.pending):
                self.answers[answer[:200]] += times
            self.pending = []

    def add(self, other: Tally, near: int | None = None) -> None:
        """Add the part that follows; nothing follows one that could not be read to its end.

        Args:
            other: the tally of that part.
            near: the byte it begins at, if its lines do not follow on ours; this then places its flaws.
        """
        if self.cut:
            return
        for kind, founds in other.found.items():
            mine = self.found.setdefault(kind, [])
            for flaw, line, number in founds[: EXAMPLES - len(mine)]:
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
        self.prints.add(other.prints)
        self.near.add(other.near)
        self.whole = self.whole and other.whole
        self.cut = self.cut or other.cut
        self.shape.merge(other.shape)
