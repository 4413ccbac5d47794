"""Finds rows that are equal except for spaces and case, and secrets: in the first rows of each file, or in all."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swift_toolkit.dataset.rows.secrets import secret_in

NEAR_ROWS = 10_000
"""Number of rows per file that are checked in this way; the limit keeps the scan fast."""

NEAR_CHARACTERS = 1 << 20
"""Number of characters of these rows after which no more are checked, which limits the time for long rows."""

_BETWEEN = "\0"
_BLANKS = b" \t\n\r\v\f"
_LOWER = bytes(range(256)).lower()


def _plain(text: str) -> bytes:
    """A text without spaces and case, computed as fast as possible."""
    if not text.isascii():
        text = text.casefold().replace("\u3000", "").replace("\xa0", "")
    return text.encode("utf-8", "replace").translate(_LOWER, _BLANKS)


class Secret(NamedTuple):
    """The index of a row with a likely secret in its file, and a description of the secret."""

    row: int
    what: str


@dataclass
class Sketch:
    """The first rows of a file, or all rows of a part of it, 16 bytes each.

    Args:
        left: number of rows still to be checked.
        characters: number of characters still to be checked; the block with the last of them is checked whole.
        plain: a fingerprint of each row without spaces and case.
        exact: a fingerprint of each row.
        secrets: the rows with secrets.
    """

    left: int = 0
    characters: int = NEAR_CHARACTERS
    plain: array[int] = field(default_factory=lambda: array("q"))
    exact: array[int] = field(default_factory=lambda: array("q"))
    secrets: list[Secret] = field(default_factory=list)

    def take(self, rows: Sequence[tuple[str, ...]], rest: str = "") -> None:
        """Check some rows.

        Args:
            rows: the texts of each row.
            rest: other content that distinguishes rows with the same texts.
        """
        some = rows[: self.left]
        self.left -= len(some)
        begin = len(self.exact)
        rows_as_text = list(map(_BETWEEN.join, some))
        self.exact.extend(hash((text, rest)) for text in rows_as_text)
        self.plain.extend(hash((_plain(text), rest)) for text in rows_as_text)
        joined = "\n".join(rows_as_text)
        self.characters -= len(joined)
        if self.characters <= 0:
            self.left = 0
        if secret_in(joined):
            for at, text in enumerate(rows_as_text, begin):
                if what := secret_in(text):
                    self.secrets.append(Secret(at, what))

    def skip(self, value: int) -> None:
        """Reserve the index of a row that cannot be read."""
        if self.left:
            self.left -= 1
            self.exact.append(value)
            self.plain.append(value)

    def add(self, other: Sketch) -> None:
        """Append the sketch of a later part of the file."""
        begin = len(self.exact)
        self.plain.extend(other.plain)
        self.exact.extend(other.exact)
        self.secrets += [secret._replace(row=secret.row + begin) for secret in other.secrets]


class Seen(NamedTuple):
    """The first occurrence of a row: its file, its index in the file, and its exact fingerprint."""

    file: int
    row: int
    exact: int


def pairs(first: Sequence[Sketch], second: Sequence[Sketch] | None = None) -> Iterator[tuple[Seen, Seen]]:
    """Rows that are equal except for spaces and case, but not exactly equal.

    Args:
        first: sketches of the files of a split.
        second: sketches of another split, whose rows are compared with the first; if missing, rows are compared with
            earlier ones.
    """
    if not _any_pairs([*first, *(second or ())]):
        return
    seen: dict[int, Seen] = {}
    for file, sketch in enumerate(first):
        for row, (plain, exact) in enumerate(zip(sketch.plain, sketch.exact, strict=True)):
            here = Seen(file, row, exact)
            known = seen.setdefault(plain, here)
            if second is None and known.exact != exact:
                yield known, here
    for file, sketch in enumerate(second or ()):
        for row, (plain, exact) in enumerate(zip(sketch.plain, sketch.exact, strict=True)):
            known_row = seen.get(plain)
            if known_row is not None and known_row.exact != exact:
                yield known_row, Seen(file, row, exact)


def _any_pairs(sketches: Sequence[Sketch]) -> bool:
    """Whether there are any; as equal rows are also equal without spaces and case, numbers of values tell."""
    plain = set().union(*(sketch.plain for sketch in sketches))
    exact = set().union(*(sketch.exact for sketch in sketches))
    return len(plain) < len(exact)
