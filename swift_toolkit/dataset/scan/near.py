"""Rows that are the same apart from blanks and case, and secrets, among the first rows of each file."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swift_toolkit.dataset.rows.secrets import secret_in

NEAR_ROWS = 10_000
"""Rows of a file that are looked at so, which keeps the time of a scan."""


_BETWEEN = "\0"
_BLANKS = b" \t\n\r\v\f"
_LOWER = bytes(range(256)).lower()


def _plain(text: str) -> bytes:
    """A text without blanks and case, as fast as it can be."""
    if not text.isascii():
        text = text.casefold().replace("\u3000", "").replace("\xa0", "")
    return text.encode("utf-8", "replace").translate(_LOWER, _BLANKS)


class Secret(NamedTuple):
    """A row that holds what looks like a secret, counted from 0 in its file, and what it is."""

    row: int
    what: str


@dataclass
class Sketch:
    """The first rows of a file.

    Args:
        left: rows that are still looked at; 0 in a part behind the beginning of a file.
        plain: a fingerprint of each row without blanks and case.
        exact: a fingerprint of each row.
        secrets: the rows with secrets.
    """

    left: int = 0
    plain: array[int] = field(default_factory=lambda: array("q"))
    exact: array[int] = field(default_factory=lambda: array("q"))
    secrets: list[Secret] = field(default_factory=list)

    def take(self, rows: Sequence[tuple[str, ...]], rest: str = "") -> None:
        """Look at some rows.

        Args:
            rows: the texts of each.
            rest: what else makes a row differ from others with its texts.
        """
        some = rows[: self.left]
        self.left -= len(some)
        begin = len(self.exact)
        rows_as_text = list(map(_BETWEEN.join, some))
        self.exact.extend(hash((text, rest)) for text in rows_as_text)
        self.plain.extend(hash((_plain(text), rest)) for text in rows_as_text)
        joined = "\n".join(rows_as_text)
        if secret_in(joined):
            for at, text in enumerate(rows_as_text, begin):
                if what := secret_in(text):
                    self.secrets.append(Secret(at, what))

    def skip(self, value: int) -> None:
        """Keep the place of a row that cannot be read."""
        if self.left:
            self.left -= 1
            self.exact.append(value)
            self.plain.append(value)

    def add(self, other: Sketch) -> None:
        """Take in the sketch of a later part of the file."""
        begin = len(self.exact)
        self.plain.extend(other.plain)
        self.exact.extend(other.exact)
        self.secrets += [secret._replace(row=secret.row + begin) for secret in other.secrets]


class Seen(NamedTuple):
    """Where a row was seen first: its file and its place there, and its exact fingerprint."""

    file: int
    row: int
    exact: int


def pairs(first: Sequence[Sketch], second: Sequence[Sketch] | None = None) -> Iterator[tuple[Seen, Seen]]:
    """Rows that are the same apart from blanks and case, but not exactly.

    Args:
        first: of the files of a split.
        second: of another split, whose rows are compared with those of the first; without one, each with those before.
    """
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
