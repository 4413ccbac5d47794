"""Judging many rows of plain texts at once.

In most files most rows are right, and plain: messages, or a question and an answer. For these a typed decoder and a
few passes in C over all texts of a block tell that `judge` would find nothing, at the cost of a few microseconds a
row. Whatever is not certainly right is left to `judge`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate, chain, repeat
from operator import attrgetter, itemgetter, rshift, sub
from typing import Any, Literal

from swift_toolkit.dataset.checks import (
    BYTES_PER_TOKEN,
    INVISIBLE,
    MOJIBAKE,
    TINY_ANSWER,
    TOKENS_PER_MESSAGE,
    Rules,
    is_tiny,
    judge,
)
from swift_toolkit.dataset.formats import Layout, layout_of
from swift_toolkit.dataset.scan.shape import Shape
from swift_toolkit.dataset.scan.tally import ANSWERS_AT_ONCE, TOKEN_STEP, Tally

COUNTED = 8
"""Of so many blocks the tokens of one are counted, for the histogram; they stand for those passed before it. Of the
others a row is counted that is longer than all so far: the longest decides about memory."""

FEW_ROWS = 100
"""A smaller block, one of a small file or beside a bad row, is counted in any case."""

_ROLES = Literal["system", "user", "human", "assistant", "gpt", "bot"]
_Texts = tuple[str, ...]
_last: Callable[[_Texts], str] = itemgetter(-1)
_FINE = 4  # bits of a length that its count of tokens does without
_TAGS = ("<image>", "<video>", "<audio>")
_MARKS = ("\ufffd", "\u200b", "\ufeff", "Ã", "â")
_UNSEEN = re.compile(rb"\xe2(?:\x80[\xaa-\xae]|\x81[\xa0\xa6-\xa9])")
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_CONTROL = re.compile(rb"\\(?:u00[01][0-9a-fA-F]|u007[fF]|u00[89][0-9a-fA-F])")


class BlockCheck:
    """Tells of many rows at once whether `judge` would find nothing wrong with any of them.

    A subclass knows how rows of its family give their texts. It may say of right rows that they might be
    wrong, never the opposite.

    Args:
        shape: the columns of the file.
        rules: what the run asks of its rows.
        replace: column -> the type it must have.
    """

    def __init__(self, shape: Shape, rules: Rules, replace: dict[str, Any]) -> None:
        import msgspec

        self.decode = msgspec.json.Decoder(shape.struct(replace)).decode_lines
        self.errors = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
        self.rules = rules
        self.passed_blocks = 0
        self.passed_rows = 0
        self.good: dict[tuple[str, ...], bool] = {}

    @staticmethod
    def of(layout: Layout, shape: Shape, rules: Rules) -> BlockCheck | None:
        """The check for a format, None if its rows must be looked at one by one."""
        used = {name: column for column, name in layout.rename.items() if column not in layout.unused}
        columns = list(shape.fields)
        if not all(column in columns for column in used.values()):
            return None
        places = {name: attrgetter(f"field_{columns.index(column)}") for name, column in used.items()}
        names = used.keys() - {"system"}
        if layout.family == "messages" and names == {"messages"}:
            return _MessageBlocks.for_messages(shape, rules, used["messages"], places)
        if names in ({"query", "response"}, {"instruction", "input", "response"}):
            return _TextBlocks(shape, rules, used, places)
        return None

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        """The texts of each row, system prompt first; None if roles or columns might be wrong."""
        raise NotImplementedError

    def take(self, chunk: bytes, tally: Tally) -> bool:
        """Count the rows of a chunk if they are all right; otherwise count nothing and say so."""
        try:
            rows = self.decode(chunk)
        except self.errors:
            return False
        if len(rows) != chunk.count(b"\n") + (not chunk.endswith(b"\n")):
            return False  # a blank line, or rows that are not one to a line
        texts = self.texts_of(rows)
        if texts is None:
            return False
        contents = list(chain.from_iterable(texts))
        if not all(contents) or any(map(str.isspace, contents)):
            return False
        joined = "".join(contents)
        answers = list(map(_last, texts))
        short = {answer for answer in answers if len(answer) < TINY_ANSWER}
        if any(map(is_tiny, short)) or self._is_odd(chunk, joined):
            return False
        turns = Counter(map(len, texts))
        if self._may_be_too_long(contents, texts, turns, joined):
            return False
        tally.rows += len(rows)
        tally.lines += len(rows)
        tally.turns.update(turns)
        tally.prints.extend(map(hash, texts), len(texts))
        tally.note_answers(answers[:ANSWERS_AT_ONCE])
        self.passed_rows += len(rows)
        self.passed_blocks += 1
        if self.passed_blocks % COUNTED == 1 or len(rows) < FEW_ROWS:
            _count_tokens(tally, _lengths(contents, texts, turns), len(contents), joined, self.passed_rows)
            self.passed_rows = 0
        elif max(map(len, contents)) > max(tally.tokens, default=0) * TOKEN_STEP * BYTES_PER_TOKEN:
            _count_tokens(tally, [max(_lengths(contents, texts, turns))], max(turns), joined, 1)
        return True

    def roles_are_right(self, roles: tuple[str, ...]) -> bool:
        """Whether a row with these roles, and text in all of them, has no flaw."""
        if roles not in self.good:
            row = {"messages": [{"role": role, "content": "text"} for role in roles]}
            self.good[roles] = not judge(row, layout_of(["messages"]), self.rules)[1]
        return self.good[roles]

    def _is_odd(self, chunk: bytes, text: str) -> bool:
        """Whether the text holds what `judge` may warn of: damaged or invisible characters, tags of media."""
        if self.rules.multimodal and any(tag in text for tag in _TAGS):
            return True
        escapes = b"\\" in chunk  # which takes no time
        if text.isascii():
            return escapes and _CONTROL.search(chunk) is not None
        if chunk.isascii() or any(mark in text for mark in _MARKS):
            return bool("\ufffd" in text or MOJIBAKE.search(text) or INVISIBLE.search(text))
        return any(odd.search(chunk) for odd in (_UNSEEN, _C1, *([_CONTROL] if escapes else [])))

    def _may_be_too_long(
        self, contents: list[str], texts: list[_Texts], turns: Counter[int], joined: str
    ) -> bool:
        limit = self.rules.max_length
        if limit is None:
            return False
        most = max(turns)
        limit = (limit - most * TOKENS_PER_MESSAGE) * BYTES_PER_TOKEN // (1 if joined.isascii() else 3)
        if max(map(len, contents)) * most <= limit:
            return False
        return max(_lengths(contents, texts, turns)) > limit


class _MessageBlocks(BlockCheck):
    """Rows of plain messages, with or without a column for the system prompt."""

    def __init__(
        self, shape: Shape, rules: Rules, column: str, message: Any, places: Mapping[str, Any]
    ) -> None:
        super().__init__(shape, rules, {column: list[message]})
        self.messages_of = places["messages"]
        self.system_of = places.get("system")
        self.content_of: Callable[[Any], str] = attrgetter("content")
        self.role_of: Callable[[Any], str] = attrgetter("role")

    @classmethod
    def for_messages(
        cls, shape: Shape, rules: Rules, column: str, places: Mapping[str, Any]
    ) -> _MessageBlocks | None:
        """The check, if all messages in the head of the file are of one plain kind."""
        import msgspec

        items = shape.fields[column].items
        keys = next(iter(items.keys)) if items is not None and len(items.keys) == 1 else frozenset()
        for role, content in (("role", "content"), ("from", "value")):
            if keys == {role, content}:
                fields = [
                    ("role", _ROLES, msgspec.field(name=role)),
                    ("content", str, msgspec.field(name=content)),
                ]
                message = msgspec.defstruct("Message", fields, forbid_unknown_fields=True, gc=False)
                return cls(shape, rules, column, message, places)
        return None

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        talks = list(map(self.messages_of, rows))
        turns = set(map(len, talks))
        if 0 in turns:
            return None
        if len(turns) == 1:  # as most files are; faster than to go through each row
            messages = list(chain.from_iterable(talks))
            texts = list(_in_rows(list(map(self.content_of, messages)), *turns))
            roles = set(_in_rows(list(map(self.role_of, messages)), *turns))
        else:
            texts = list(map(tuple, map(partial(map, self.content_of), talks)))
            roles = set(map(tuple, map(partial(map, self.role_of), talks)))
        if self.system_of is not None:
            systems = list(map(self.system_of, rows))
            if not all(isinstance(system, str) for system in systems):
                return None
            texts = [(system, *text) for system, text in zip(systems, texts, strict=True)]
            roles = {("system", *role) for role in roles}
        return texts if all(map(self.roles_are_right, roles)) else None


def _in_rows(values: list[Any], width: int) -> Iterator[tuple[Any, ...]]:
    """Values in rows of one width."""
    return zip(*(values[at::width] for at in range(width)), strict=True)


class _TextBlocks(BlockCheck):
    """Rows of a question and an answer, with or without a system prompt and Alpaca's input."""

    def __init__(
        self, shape: Shape, rules: Rules, used: Mapping[str, str], places: Mapping[str, Any]
    ) -> None:
        optional = str | None
        types = {column: optional if name == "input" else str for name, column in used.items()}
        super().__init__(shape, rules, types)
        self.order = [places[name] for name in ("system", "query", "instruction", "response") if name in used]
        self.input_of = places.get("input")
        roles = ("system", "user", "assistant") if "system" in used else ("user", "assistant")
        self.right = self.roles_are_right(roles)

    def texts_of(self, rows: list[Any]) -> list[_Texts] | None:
        if not self.right:
            return None
        columns = [list(map(place, rows)) for place in self.order]
        if self.input_of is not None:
            inputs = map(self.input_of, rows)
            pairs = zip(columns[-2], inputs, strict=True)
            columns[-2] = ["\n".join(filter(None, pair)) if pair[1] else pair[0] for pair in pairs]
        return list(zip(*columns, strict=True))


def _lengths(contents: list[str], texts: list[_Texts], turns: Counter[int]) -> list[int]:
    """Characters of each row."""
    sizes = list(map(len, contents))
    if len(turns) == 1:
        return list(map(sum, _in_rows(sizes, *turns)))
    so_far = [0, *accumulate(sizes)]
    bounds = [so_far[end] for end in accumulate(map(len, texts), initial=0)]
    return list(map(sub, bounds[1:], bounds))


def _count_tokens(tally: Tally, lengths: list[int], messages: int, text: str, rows: int) -> None:
    """Count rows by tokens, to within the step of the histogram.

    Args:
        tally: what to add to.
        lengths: characters of each row of a block.
        messages: how many these rows have.
        text: of all of them, from whose beginning the bytes of a character are taken.
        rows: how many rows they stand for.
    """
    sample = text[:20_000]
    width = len(sample.encode()) / len(sample) / BYTES_PER_TOKEN
    marks = TOKENS_PER_MESSAGE * messages / len(lengths)
    for length, times in Counter(map(rshift, lengths, repeat(_FINE))).items():
        tokens = ((length << _FINE) + (1 << _FINE) / 2) * width + marks
        tally.tokens[int(tokens) // TOKEN_STEP] += round(times * rows / len(lengths))
