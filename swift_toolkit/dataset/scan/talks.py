"""The texts of many rows, and what `QuickCheck` asks of all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import accumulate, chain, compress
from operator import add, itemgetter, sub
from typing import Any

from swift_toolkit.dataset.reading.tables import Cells
from swift_toolkit.dataset.rows.marks import may_end_in_filler

Texts = tuple[str, ...]
Roles = tuple[str, ...]

_MAY_BE_BLANK = bytes(byte <= 0x20 or byte in b"\xc2\xe1\xe2\xe3" for byte in range(256))
"""The first bytes of characters for which `str.isspace` is true, and others."""

_first: Callable[[bytes], int] = itemgetter(0)
_last: Callable[[Any], Any] = itemgetter(-1)


@dataclass
class Talks:
    """The texts of rows.

    Args:
        texts: the texts of each row, system prompt first: as str, or as bytes in UTF-8.
        roles: the distinct sequences of roles in the rows.
        data: the bytes of the rows, if each character of the texts that `judge` may warn about is in them unescaped.
        is_json: whether these are JSON, which contains no control characters except U+007F.
        in_utf8: whether the texts are bytes; sizes are then numbers of bytes, otherwise of characters.
    """

    texts: list[tuple[Any, ...]]
    roles: set[Roles]
    data: bytes | bytearray | None = None
    is_json: bool = False
    in_utf8: bool = False

    def read(self, texts: Iterable[Any]) -> list[str]:
        """Some of the texts as str."""
        return list(map(bytes.decode, texts) if self.in_utf8 else texts)

    def read_rows(self, rows: Sequence[tuple[Any, ...]]) -> Sequence[Texts]:
        """Some of the rows with their texts as str."""
        return [tuple(self.read(row)) for row in rows] if self.in_utf8 else rows

    @cached_property
    def turns(self) -> Counter[int]:
        """The number of messages of a row -> the number of rows."""
        if len(self.roles) == 1:  # the case for most files
            return Counter({len(roles): len(self.texts) for roles in self.roles})
        return Counter(map(len, self.texts))

    @cached_property
    def contents(self) -> list[Any]:
        """The texts of all messages."""
        return list(chain.from_iterable(self.texts))

    @cached_property
    def sizes(self) -> list[int]:
        """The sizes of all messages."""
        return list(map(len, self.contents))

    @cached_property
    def answers(self) -> list[Any]:
        """The last message of each row."""
        most = max(self.turns)
        return self.contents[most - 1 :: most] if len(self.turns) == 1 else list(map(_last, self.texts))

    def shortest_answer(self) -> int:
        """The size of the shortest of the last messages."""
        return min(map(len, self.answers))

    def is_any_blank(self) -> bool:
        """Whether a message is empty or consists of spaces."""
        if not min(self.sizes):
            return True
        if not self.in_utf8:
            return any(map(str.isspace, self.contents))
        return is_any_blank(self.contents, bytes(map(_first, self.contents)))

    def may_end_in_filler(self) -> bool:
        """See `marks.may_end_in_filler`; no message is empty."""
        return may_end_in_filler(self.contents, bytes(map(_last, self.contents)) if self.in_utf8 else None)

    @cached_property
    def row_sizes(self) -> Sequence[int]:
        """The size of each row."""
        if len(self.turns) == 1:
            (width,) = self.turns
            columns: list[Iterable[int]] = [self.sizes[at::width] for at in range(width)]
            return [*reduce(partial(map, add), columns)]
        so_far = [0, *accumulate(self.sizes)]
        bounds = [so_far[end] for end in accumulate(map(len, self.texts), initial=0)]
        return list(map(sub, bounds[1:], bounds))

    @cached_property
    def longest(self) -> int:
        """The index of the longest row."""
        return self.row_sizes.index(max(self.row_sizes))


@dataclass
class TableTalks(Talks):
    """The texts of rows whose cells have been measured.

    Args:
        columns: the cells, by message of a row.
    """

    columns: Sequence[Cells] = ()

    def shortest_answer(self) -> int:
        return int(self.columns[-1].sizes.min())

    def is_any_blank(self) -> bool:
        if not all(cells.sizes.all() for cells in self.columns):
            return True
        return any(is_any_blank(cells.texts, cells.firsts) for cells in self.columns)

    def may_end_in_filler(self) -> bool:
        return any(may_end_in_filler(cells.texts, cells.lasts) for cells in self.columns)

    @cached_property
    def answers(self) -> list[Any]:
        return self.columns[-1].texts

    @cached_property
    def row_sizes(self) -> Sequence[int]:
        sizes: Sequence[int] = sum(cells.sizes for cells in self.columns)
        return sizes

    @cached_property
    def longest(self) -> int:
        sizes: Any = self.row_sizes
        return int(sizes.argmax())


def is_any_blank(texts: Sequence[bytes], firsts: bytes) -> bool:
    """Whether one of some texts consists of spaces.

    Args:
        texts: texts in UTF-8, none of them empty.
        firsts: the first byte of each of them.
    """
    some = (text.lstrip() for text in compress(texts, firsts.translate(_MAY_BE_BLANK)))
    return any(not text or (_MAY_BE_BLANK[text[0]] and text.decode().isspace()) for text in some)


def encoded(row: Texts) -> tuple[bytes, ...]:
    """The texts of a row in UTF-8."""
    return tuple(text.encode("utf-8", "surrogatepass") for text in row)
