"""Check many rows of plain texts at once.

In most files most rows are valid and plain. A few passes in C over all texts of a block show that `judge` would find
nothing, at a few microseconds per row. Rows that are not certainly valid are passed to `judge`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, chain
from operator import itemgetter, sub

from swift_toolkit.dataset.rows.checks import (
    MARKS,
    MOJIBAKE,
    TINY_ANSWER,
    Rules,
    is_tiny,
    judge,
    may_hold_marks,
)
from swift_toolkit.dataset.rows.formats import layout_of
from swift_toolkit.dataset.scan.tally import ANSWERS_AT_ONCE, Tally
from swift_toolkit.dataset.scan.texts import Roles, Talks, Texts, in_rows

COUNTED = 8
"""The tokens of every N-th block are counted for the histogram; it also represents the blocks skipped before it."""

COUNTED_ROWS = 256
"""Number of rows counted in such a block, or a few more."""

UTF8 = 4
"""Maximum bytes per character."""

LEAST_ROWS = 100
"""A block smaller than this, for example of a small file or next to a bad row, is always counted."""

_last: Callable[[Texts], str] = itemgetter(-1)
_TAGS = ("<image>", "<video>", "<audio>")
_MARKS = ("\ufffd", "\u200b", "\u2060", "\ufeff")
_UNSEEN = re.compile(rb"\xe2(?:\x80[\xaa-\xae]|\x81[\xa6-\xa9])")
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_CONTROL = bytes([*range(0x08), 0x0B, *range(0x0E, 0x20), 0x7F])


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
        if not all(contents) or any(map(str.isspace, contents)):
            return False
        joined = "".join(contents)
        answers = list(map(_last, texts))
        short = {answer for answer in answers if len(answer) < TINY_ANSWER}
        if any(map(is_tiny, short)) or self._is_odd(joined, talks.controls):
            return False
        turns = Counter(map(len, texts))
        if self._may_be_too_long(contents, texts, turns):
            return False
        tally.rows += len(texts)
        tally.turns.update(turns)
        tally.prints.extend(map(hash, texts), len(texts))
        tally.note_answers(answers[:ANSWERS_AT_ONCE])
        if tally.near.left:
            tally.near.take(texts)
        self._count(tally, texts, contents, turns)
        return True

    def roles_are_right(self, roles: Roles) -> bool:
        """Whether a row with these roles, and text in every message, has no flaw."""
        if roles not in self.good:
            row = {"messages": [{"role": role, "content": "text"} for role in roles]}
            self.good[roles] = not judge(row, layout_of(["messages"]), self.rules)[1]
        return self.good[roles]

    def _is_odd(self, text: str, controls: bool) -> bool:
        """Whether the text contains anything `judge` may warn about: damaged or invisible characters, media tags."""
        if self.rules.multimodal and any(tag in text for tag in _TAGS):
            return True
        if self.rules.task.rows != "text" and may_hold_marks(text) and MARKS.search(text):
            return True
        if text.isascii() and not controls:
            return False
        data = text.encode("utf-8", "replace")
        if controls and len(data.translate(None, _CONTROL)) != len(data):
            return True
        if text.isascii():
            return False
        if any(mark in text for mark in _MARKS) or _UNSEEN.search(data) or _C1.search(data):
            return True
        return ("Ã" in text or "â€" in text) and MOJIBAKE.search(text) is not None

    def _may_be_too_long(self, contents: list[str], texts: list[Texts], turns: Counter[int]) -> bool:
        limit, lengths = self.rules.max_length, self.rules.lengths
        if limit is None:
            return False
        most = max(turns)
        allowed = (limit - most * lengths.message - lengths.row) * lengths.lightest
        if max(map(len, contents)) * most * UTF8 <= allowed:
            return False
        sizes = _lengths(contents, texts, turns)
        return any(
            size * UTF8 > allowed and lengths.of_texts(row) > limit
            for size, row in zip(sizes, texts, strict=True)
        )

    def _count(self, tally: Tally, texts: list[Texts], contents: list[str], turns: Counter[int]) -> None:
        """Count tokens: of some rows of some blocks, and of the longest row of each block."""
        self.passed_rows += len(texts)
        self.passed_blocks += 1
        of_texts = self.rules.lengths.of_texts
        if self.passed_blocks % COUNTED == 1 or len(texts) < LEAST_ROWS:
            some = texts[:: max(len(texts) // COUNTED_ROWS, 1)]
            for row in some:
                tally.note_length(of_texts(row), row, self.passed_rows / len(some))
            self.passed_rows = 0
        sizes = _lengths(contents, texts, turns)
        longest = texts[sizes.index(max(sizes))]
        tally.note_length(of_texts(longest), longest, 0)


def _lengths(contents: list[str], texts: list[Texts], turns: Counter[int]) -> list[int]:
    """The number of characters of each row."""
    sizes = list(map(len, contents))
    if len(turns) == 1:
        return list(map(sum, in_rows(sizes, *turns)))
    so_far = [0, *accumulate(sizes)]
    bounds = [so_far[end] for end in accumulate(map(len, texts), initial=0)]
    return list(map(sub, bounds[1:], bounds))
