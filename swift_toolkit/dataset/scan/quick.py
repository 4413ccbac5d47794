"""Check many rows of plain texts at once.

In most files most rows are valid and plain. A few passes in C over all texts of a block show that `judge` would find
nothing, at a few microseconds per row. Rows that are not certainly valid are passed to `judge`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial, reduce
from itertools import accumulate, chain, compress
from operator import add, itemgetter, sub

from swift_toolkit.dataset.rows.checks import TINY_ANSWER, Rules, is_tiny, judge
from swift_toolkit.dataset.rows.formats import layout_of
from swift_toolkit.dataset.rows.marks import Sign, may_be_marked, may_end_in_filler, may_hold_signs, occurs
from swift_toolkit.dataset.scan.tally import ANSWERS_AT_ONCE, Tally
from swift_toolkit.dataset.scan.texts import Roles, Talks, Texts

COUNTED = 8
"""The tokens of every N-th block are counted for the histogram; it also represents the blocks skipped before it."""

COUNTED_ROWS = 128
"""Number of rows counted in such a block, or a few more."""

UTF8 = 4
"""Maximum bytes per character."""

LEAST_ROWS = 100
"""A block smaller than this, for example of a small file or next to a bad row, is always counted."""

_last: Callable[[Texts], str] = itemgetter(-1)
_TAGS = (b"<image>", b"<video>", b"<audio>")
_UNUSUAL = (
    Sign(
        b"\xe2", b"\x80\x81", re.compile(rb"\xe2(?:\x80[\x8b\xaa-\xae]|\x81[\xa0\xa6-\xa9])")
    ),  # invisible characters
    Sign(b"\xc2", bytes(range(0x80, 0xA0)), re.compile(rb"\xc2[\x80-\x9f]")),  # control characters
    Sign(b"\xc3", b"\x83\xa2", re.compile(rb"\xc3(?:\x83|\xa2\xe2\x82\xac)")),  # the beginnings of `MOJIBAKE`
    Sign(b"\xef", b"\xbf\xbb", re.compile(rb"\xef(?:\xbf\xbd|\xbb\xbf)")),  # U+FFFD and U+FEFF
)

_CONTROL = bytes([*range(0x08), 0x0B, *range(0x0E, 0x20), 0x7F])
_MAY_BE_BLANK = bytes(byte <= 0x20 or byte in b"\xc2\xe1\xe2\xe3" for byte in range(256))
"""The first bytes of characters for which `str.isspace` is true, and others."""

_PROBE = 1 << 12
_USUAL = bytes(sorted({*range(0x80)} - {*_CONTROL}))


class QuickCheck:
    """Determines whether `judge` would find no flaw in any of many rows.

    It may classify good rows as doubtful, but never bad rows as good.

    Args:
        rules: what the run asks of its rows.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.passed_blocks = 0
        self.passed_rows = 0
        self.good: dict[Roles, bool] = {}

    def take(self, talks: Talks, tally: Tally) -> bool:
        """Count these rows if all are valid; otherwise count nothing. Returns whether they were counted."""
        texts = talks.texts
        if not all(map(self.roles_are_right, talks.roles)):
            return False
        contents = list(chain.from_iterable(texts))
        sizes = list(map(len, contents))
        if not min(sizes) or _is_any_blank(contents, talks):
            return False
        turns = talks.turns()
        answers = contents[max(turns) - 1 :: max(turns)] if len(turns) == 1 else list(map(_last, texts))
        if min(map(len, answers)) < TINY_ANSWER:
            short = {answer for answer in answers if len(answer) < TINY_ANSWER}
            if any(map(is_tiny, short)):
                return False
        if self._may_be_odd(contents, talks):
            return False
        lengths = _row_lengths(sizes, texts, turns)
        if self._may_be_too_long(lengths, texts, turns):
            return False
        tally.rows += len(texts)
        tally.turns.update(turns)
        tally.prints.extend(map(hash, texts), len(texts))
        tally.note_answers(answers[:ANSWERS_AT_ONCE])
        if tally.near.left:
            tally.near.take(texts)
        self._count(tally, texts, lengths)
        return True

    def roles_are_right(self, roles: Roles) -> bool:
        """Whether a row with these roles, and text in every message, has no flaw."""
        if roles not in self.good:
            row = {"messages": [{"role": role, "content": "text"} for role in roles]}
            self.good[roles] = not judge(row, layout_of(["messages"]), self.rules)[1]
        return self.good[roles]

    def _may_be_odd(self, contents: list[str], talks: Talks) -> bool:
        """Whether any text may contain what `judge` warns about: damaged or invisible characters, media tags, marks."""
        task = self.rules.task
        seeks_marks = task.rows != "text"
        if seeks_marks and _may_end_in_filler(contents, talks):
            return True
        data, marked = talks.data, seeks_marks and (talks.data is None or may_hold_signs(talks.data))
        if data is not None and not marked and not self._is_odd(data, talks.is_json):
            return False
        joined = "".join(contents)
        data = joined.encode("utf-8", "replace")
        if seeks_marks and may_hold_signs(data) and may_be_marked(contents, joined, task.has_answers):
            return True
        return self._is_odd(data, False)

    def _is_odd(self, data: bytes | bytearray, is_json: bool) -> bool:
        """Whether UTF-8 may contain damaged or invisible characters, or media tags."""
        if self.rules.multimodal and any(tag in data for tag in _TAGS):
            return True
        if is_json and data.isascii():
            return b"\x7f" in data  # other control characters are escaped
        if len(data[:_PROBE].translate(None, _USUAL)) * 4 < min(len(data), _PROBE):
            rest = data.translate(None, _USUAL)
            return bool(rest) and _is_unusual(rest) and _is_unusual(data)
        return _is_unusual(data)

    def _may_be_too_long(self, sizes: list[int], texts: list[Texts], turns: Counter[int]) -> bool:
        limit, lengths = self.rules.max_length, self.rules.lengths
        if limit is None:
            return False
        most = max(turns)
        allowed = (limit - most * lengths.message - lengths.row) * lengths.lightest
        if max(sizes) * UTF8 <= allowed:
            return False
        return any(
            size * UTF8 > allowed and lengths.of_texts(row) > limit
            for size, row in zip(sizes, texts, strict=True)
        )

    def _count(self, tally: Tally, texts: list[Texts], sizes: list[int]) -> None:
        """Count tokens: of some rows of some blocks, and of the longest row of each block."""
        self.passed_rows += len(texts)
        self.passed_blocks += 1
        of_texts = self.rules.lengths.of_texts
        if self.passed_blocks % COUNTED == 1 or len(texts) < LEAST_ROWS:
            some = texts[:: max(len(texts) // COUNTED_ROWS, 1)]
            for row in some:
                tally.note_length(of_texts(row), row, self.passed_rows / len(some))
            self.passed_rows = 0
        longest = texts[sizes.index(max(sizes))]
        tally.note_length(of_texts(longest), longest, 0)


def _is_any_blank(contents: list[str], talks: Talks) -> bool:
    if talks.columns is None:
        return any(map(str.isspace, contents))
    some = (compress(texts, firsts.translate(_MAY_BE_BLANK)) for texts, firsts, _ in talks.columns)
    return any(map(str.isspace, chain.from_iterable(some)))


def _may_end_in_filler(contents: list[str], talks: Talks) -> bool:
    if talks.columns is None:
        return may_end_in_filler(contents)
    return any(may_end_in_filler(texts, lasts) for texts, _, lasts in talks.columns)


def _is_unusual(data: bytes | bytearray) -> bool:
    """Whether UTF-8 may contain invisible characters, control characters or mojibake."""
    return any(map(data.__contains__, _CONTROL)) or any(occurs(sign, data) for sign in _UNUSUAL)


def _row_lengths(sizes: list[int], texts: list[Texts], turns: Counter[int]) -> list[int]:
    """The number of characters of each row.

    Args:
        sizes: the number of characters of each message.
        texts: the messages of each row.
        turns: number of messages -> number of rows with it.
    """
    if len(turns) == 1:
        (width,) = turns
        columns: list[Iterable[int]] = [sizes[at::width] for at in range(width)]
        return [*reduce(partial(map, add), columns)]
    so_far = [0, *accumulate(sizes)]
    bounds = [so_far[end] for end in accumulate(map(len, texts), initial=0)]
    return list(map(sub, bounds[1:], bounds))
