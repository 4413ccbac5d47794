"""Check many rows of plain texts at once.

In most files most rows are valid and plain. A few passes in C over all texts of a block show that `judge` would find
nothing, at a few microseconds per row. Rows that are not certainly valid are passed to `judge`.
"""

from __future__ import annotations

import re
from itertools import compress

from swift_toolkit.dataset.rows.checks import TINY_ANSWER, Rules, is_tiny, judge
from swift_toolkit.dataset.rows.formats import layout_of
from swift_toolkit.dataset.rows.marks import Sign, may_be_marked, may_hold_signs, occurs
from swift_toolkit.dataset.scan.talks import Roles, Talks, encoded
from swift_toolkit.dataset.scan.tally import ANSWERS_AT_ONCE, Tally

COUNTED = 8
"""The tokens of every N-th block are counted for the histogram; it also represents the blocks skipped before it."""

COUNTED_ROWS = 128
"""Number of rows counted in such a block, or a few more."""

UTF8 = 4
"""Maximum bytes per character."""

LEAST_ROWS = 100
"""A block smaller than this, for example of a small file or next to a bad row, is always counted."""

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
_PROBE = 1 << 12
_USUAL = bytes(sorted({*range(0x80)} - {*_CONTROL}))


class QuickCheck:
    """Determines whether `judge` would find no flaw in any of many rows.

    It may classify good rows as doubtful, but never bad rows as good.

    Args:
        rules: what the run asks of its rows.
        as_utf8: see `Part`.
    """

    def __init__(self, rules: Rules, as_utf8: bool) -> None:
        self.rules = rules
        self.as_utf8 = as_utf8
        self.passed_blocks = 0
        self.passed_rows = 0
        self.good: dict[Roles, bool] = {}

    def take(self, talks: Talks, tally: Tally) -> bool:
        """Count these rows if all are valid; otherwise count nothing. Returns whether they were counted."""
        if not all(map(self.roles_are_right, talks.roles)) or talks.is_any_blank():
            return False
        tiny = TINY_ANSWER * (UTF8 if talks.in_utf8 else 1)
        if talks.shortest_answer() < tiny:
            short = {answer for answer in talks.answers if len(answer) < tiny}
            if any(map(is_tiny, talks.read(short))):
                return False
        if self._may_be_odd(talks) or self._may_be_too_long(talks):
            return False
        texts = talks.texts
        tally.rows += len(texts)
        tally.turns.update(talks.turns)
        rows = map(encoded, texts) if self.as_utf8 and not talks.in_utf8 else texts
        tally.prints.extend(map(hash, rows), len(texts))
        tally.note_answers(talks.read(talks.answers[:ANSWERS_AT_ONCE]))
        if tally.near.left:
            tally.near.take(talks.read_rows(texts[: tally.near.left]))
        self._count(tally, talks)
        return True

    def roles_are_right(self, roles: Roles) -> bool:
        """Whether a row with these roles, and text in every message, has no flaw."""
        if roles not in self.good:
            row = {"messages": [{"role": role, "content": "text"} for role in roles]}
            self.good[roles] = not judge(row, layout_of(["messages"]), self.rules)[1]
        return self.good[roles]

    def _may_be_odd(self, talks: Talks) -> bool:
        """Whether any text may contain what `judge` warns about: damaged or invisible characters, media tags, marks."""
        task = self.rules.task
        seeks_marks = task.rows != "text"
        if seeks_marks and talks.may_end_in_filler():
            return True
        data, marked = talks.data, seeks_marks and (talks.data is None or may_hold_signs(talks.data))
        if data is not None and not marked and not self._is_odd(data, talks.is_json):
            return False
        contents = talks.read(talks.contents)
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

    def _may_be_too_long(self, talks: Talks) -> bool:
        limit, lengths = self.rules.max_length, self.rules.lengths
        if limit is None:
            return False
        most = max(talks.turns)
        allowed = (limit - most * lengths.message - lengths.row) * lengths.lightest
        allowed /= 1 if talks.in_utf8 else UTF8
        sizes = talks.row_sizes
        if sizes[talks.longest] <= allowed:
            return False
        long = list(compress(talks.texts, (size > allowed for size in sizes)))
        return any(lengths.of_texts(row) > limit for row in talks.read_rows(long))

    def _count(self, tally: Tally, talks: Talks) -> None:
        """Count tokens: of some rows of some blocks, and of the longest row of each block."""
        rows = talks.texts
        self.passed_rows += len(rows)
        self.passed_blocks += 1
        of_texts = self.rules.lengths.of_texts
        if self.passed_blocks % COUNTED == 1 or len(rows) < LEAST_ROWS:
            some = talks.read_rows(rows[:: max(len(rows) // COUNTED_ROWS, 1)])
            for row in some:
                tally.note_length(of_texts(row), row, self.passed_rows / len(some))
            self.passed_rows = 0
        (longest,) = talks.read_rows([rows[talks.longest]])
        tally.note_length(of_texts(longest), longest, 0)


def _is_unusual(data: bytes | bytearray) -> bool:
    """Whether UTF-8 may contain invisible characters, control characters or mojibake."""
    return any(map(data.__contains__, _CONTROL)) or any(occurs(sign, data) for sign in _UNUSUAL)
