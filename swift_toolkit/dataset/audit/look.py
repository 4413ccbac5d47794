"""Find problems of a row by its tokens and labels."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from swift_toolkit.console.words import short
from swift_toolkit.dataset.audit.encoded import IGNORED, Encoded, encode_row, unlimited
from swift_toolkit.dataset.rows.checks import Rules, text_of
from swift_toolkit.dataset.rows.flaws import Flaw
from swift_toolkit.dataset.rows.marks import MARKS, may_hold_marks
from swift_toolkit.dataset.rows.messages import ASSISTANT_ROLES, TOOL_ANSWERS, Message, Row
from swift_toolkit.dataset.rows.secrets import secret_in
from swift_toolkit.machine.msswift import TemplateFacts, template_facts
from swift_toolkit.problems import first_line

Thought = Literal["thinks", "empty", "none", ""]
"""Whether an answer has a thinking block, an empty one, or none; "" if that does not apply."""

LEARNS = frozenset({"answer", "text", "preference", "judged"})
"""Kinds of rows whose tokens are learned."""

_SAID = 40  # characters with which a text is searched in the learned text


@dataclass(frozen=True)
class Look:
    """The result of the audit of a row.

    Args:
        length: tokens of its longest sequence before truncation.
        tokens: tokens of all its sequences after truncation.
        learned: number of these tokens that count for the loss.
        is_used: whether ms-swift trains on it.
        thought: the thinking block of its last answer.
        flaws: its problems.
    """

    length: int = 0
    tokens: int = 0
    learned: int = 0
    is_used: bool = False
    thought: Thought = ""
    flaws: tuple[Flaw, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Looker:
    """Judges rows by ms-swift's template.

    Args:
        template: ms-swift's own template, not shared with other code.
        rules: the requirements of the run for its rows.
        limit: the maximum length of a row in tokens; None for no limit.
        truncation: what happens to longer rows: ms-swift's ``truncation_strategy``.
        added: special tokens that the run adds, so texts may contain them.
        knows_marks: whether chat template marks have already been searched for, without a tokenizer.
    """

    template: Any
    rules: Rules
    limit: int | None
    truncation: str = "delete"
    added: Collection[str] = field(default=())
    knows_marks: bool = False

    @cached_property
    def facts(self) -> TemplateFacts:
        """Properties of the template."""
        return template_facts(self.template)

    @cached_property
    def learns(self) -> bool:
        """Whether the task learns tokens of the rows."""
        return self.rules.task.output == "chat" and self.rules.task.rows in LEARNS

    def look(self, row: Row) -> Look:
        """Judge a row."""
        try:
            with unlimited(self.template):
                whole = encode_row(self.template, row)
        except Exception as error:  # ms-swift skips the row on any exception of the template
            reason = short(first_line(error).rstrip("."), 200)
            return Look(flaws=(Flaw("template", f"the template rejects it: {reason}"),))
        length = max((len(one.tokens) for one in whole), default=0)
        used, flaws = whole, []
        if self.limit is not None and length > self.limit:
            flaws.append(_too_long(length, self.limit))
            if self.truncation not in ("left", "right", "split"):
                return Look(length=length, flaws=tuple(flaws))
            used, flaws = self._cut(row), []
        if self.learns:
            flaws += self._learning_flaws(row, whole, used)
        flaws += self._text_flaws(row)
        return Look(
            length=length,
            tokens=sum(len(one.tokens) for one in used),
            learned=sum(one.learned for one in used) if self.learns else 0,
            is_used=True,
            thought=self._thought(row),
            flaws=tuple(flaws),
        )

    def _cut(self, row: Row) -> list[Encoded]:
        """The row as ms-swift truncates it."""
        self.template.max_length, self.template.truncation_strategy = self.limit, self.truncation
        return encode_row(self.template, row)

    # --- learned tokens -----------------------------------------------------------------------------------

    def _learning_flaws(self, row: Row, whole: Sequence[Encoded], used: Sequence[Encoded]) -> Iterator[Flaw]:
        before, learned = sum(one.learned for one in whole), sum(one.learned for one in used)
        if learned < before and self.truncation != "split":
            what = f"{before - learned:,} of {before:,} tokens to learn are truncated at max_length {self.limit:,}"
            yield Flaw("cut-answer", what)
        if not learned:
            yield Flaw("no-learned", "row has no token to learn")
            return
        if len(used) > 1 and self.rules.task.rows == "preference" and used[0].tokens == used[1].tokens:
            yield Flaw("same-pair", "both answers become the same tokens")
        if not _has_loss_off(row["messages"][-1]) and not all(map(self._has_end, whole)):
            yield Flaw("no-end", "the end token after the answer is not learned")
        yield from self._dialogue_flaws(row, whole[0])

    def _has_end(self, sequence: Encoded) -> bool:
        labels, end = sequence.labels or [], self.facts.end
        if end and tuple(labels[-len(end) :]) == end:
            return True
        last = labels[-4:]
        if IGNORED in labels[-1:] or not labels:
            return False
        return not self.facts.stops.isdisjoint(last) or self._ends_with_text(labels)

    def _ends_with_text(self, labels: Sequence[int]) -> bool:
        """Whether the end is encoded differently: a mark that is not a special token may merge with earlier text."""
        decode, count = self.template.tokenizer.decode, len(self.facts.end)
        tail = [label for label in labels[-count - 8 :] if label != IGNORED]
        return bool(count) and decode(tail).strip().endswith(decode(list(self.facts.end)).strip())

    def _dialogue_flaws(self, row: Row, sequence: Encoded) -> Iterator[Flaw]:
        """Flaws of thinking in earlier turns, of tool calls and of tool results."""
        messages = row["messages"]
        roles = {message["role"] for message in messages}
        thoughts = [(at, found) for at, one in enumerate(messages, 1) if (found := _thinking_of(one))]
        has_tools = bool(roles & TOOL_ANSWERS) or "tool_call" in roles
        if not has_tools and len(thoughts) < 2 and not any(at < len(messages) for at, _ in thoughts):
            return
        decode = self.template.tokenizer.decode
        text, labels = decode(sequence.tokens), sequence.labels or []
        learned = decode([label for label in labels if label != IGNORED])
        for at, thinking in thoughts:
            answer = text_of(messages[at - 1]).rpartition("</think>")[2].strip()[:_SAID]
            if thinking[:_SAID] not in text and answer and answer in learned:
                yield Flaw("lost-thinking", f"the template removes the thinking of message {at}")
                break
        if has_tools:
            yield from _tool_flaws(messages, learned)

    # --- texts --------------------------------------------------------------------------------------------

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        meant = {*self.added, *_MEANT}
        words = sorted(set(self.facts.specials) - meant, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    @cached_property
    def _begins(self) -> str:
        return "".join({"<", "[", *(word[0] for word in self.facts.specials if word)})

    def _text_flaws(self, row: Row) -> Iterator[Flaw]:
        """Secrets, special tokens of this model, and marks of other models' templates; the first of a row."""
        secrets = () if self.knows_marks else (secret_in(content) for _, content in _texts(row))
        yield from (Flaw("secret", f"holds {secret}") for secret in islice(filter(None, secrets), 1))
        if self.rules.task.rows == "text":  # plain text may contain marks between documents
            return
        for name, content in _texts(row):
            if not any(mark in content for mark in self._begins):
                continue
            found = self._specials.search(content)
            other = MARKS.search(content) if may_hold_marks(content) else None
            if self.knows_marks and other:
                return
            if found:
                what = f'{name} contains "{found[0]}", which the tokenizer reads as a special token'
                yield Flaw("special", what)
                return
            if other:
                yield Flaw("marks", f'{name} contains "{other[0]}", a mark of the template of another model')
                return

    def _thought(self, row: Row) -> Thought:
        last, asked = row["messages"][-1], "".join(_switches(row["messages"]))
        if not self.learns or last["role"] not in ASSISTANT_ROLES or asked:
            return ""
        content = text_of(last)
        if "</think>" not in content:
            return "none"
        return "thinks" if _thinking_of(last) else "empty"


_MEANT = "<think> </think> <image> <video> <audio> <bbox> <ref-object> <image_soft_token>".split()
"""Special tokens of some tokenizers that texts may contain."""


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """The texts of a row, with their names in messages to the user."""
    for at, message in enumerate(row["messages"], 1):
        yield f"message {at}", text_of(message)
    if isinstance(rejected := row.get("rejected_response"), str):
        yield "the rejected answer", rejected
    for at, message in enumerate(row.get("rejected_messages") or (), 1):
        yield f"rejected message {at}", text_of(message)


def _switches(messages: Sequence[Message]) -> Iterator[str]:
    """Instructions in a row that switch thinking on or off."""
    for message in messages[:-1]:
        if message["role"] in ("user", "system"):
            yield from re.findall(r"/(?:no_)?think\b", text_of(message))


def _too_long(length: int, limit: int) -> Flaw:
    return Flaw("too-long", f"row has {length:,} tokens, more than max_length {limit:,}")


def _has_loss_off(message: Message) -> bool:
    return message.get("loss") in (False, 0) or message.get("loss_scale") == 0


def _thinking_of(message: Message) -> str:
    """The content of the thinking block of an answer."""
    if message["role"] not in ASSISTANT_ROLES or not isinstance(content := message["content"], str):
        return ""
    before, mark, _ = content.partition("</think>")
    return before.replace("<think>", "").strip() if mark else ""


def _tool_flaws(messages: Sequence[Message], learned: str) -> Iterator[Flaw]:
    calls = [one for one in messages if one["role"] == "tool_call" and not _has_loss_off(one)]
    names = [name for one in calls for name in _called(one["content"])]
    if names and not any(name in learned for name in names):
        yield Flaw("tool-calls", f'the call of "{short(names[0])}" is not learned')
    said = " ".join(text_of(one) for one in messages if one["role"] in ASSISTANT_ROLES)
    for at, message in enumerate(messages, 1):
        result = text_of(message).strip()[:_SAID]
        if message["role"] in TOOL_ANSWERS and len(result) > 8 and result in learned and result not in said:
            yield Flaw("tool-results", f"message {at}, a tool result, is learned")
            return


def _called(content: object) -> Iterator[str]:
    """The names of the functions in a tool call."""
    if isinstance(content, str):
        with contextlib.suppress(ValueError):
            content = json.loads(content)
    for call in content if isinstance(content, list) else [content]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            yield inner["name"]
