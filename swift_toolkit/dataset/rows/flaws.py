"""The kinds of flaws in data, with their severity and advice."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class FlawKind(NamedTuple):
    """A kind of flaw.

    Args:
        severity: an error stops a run, a warning does not.
        title: its heading in the report.
        do: advice in full sentences; "" if each flaw has its own advice.
    """

    severity: Severity
    title: str
    do: str = ""


KINDS: dict[str, FlawKind] = {
    # the file
    "no-file": FlawKind("error", "file not found"),
    "unreadable": FlawKind("error", "file cannot be read"),
    "empty-file": FlawKind("error", "no rows", "Add at least one row."),
    "broken": FlawKind("error", "broken syntax"),
    "encoding": FlawKind("error", "not UTF-8", "Save the file as UTF-8."),
    "not-a-row": FlawKind("error", "not a row", 'Each row must be an object such as {"messages": [...]}.'),
    "columns": FlawKind("error", "unknown or unclear columns"),
    "late": FlawKind(
        "error", "columns that change after the first 10 MB", "Shuffle the file, or fix the row."
    ),
    "mixed-formats": FlawKind("error", "mixed formats in one file", "Use a separate file for each format."),
    # the conversation
    "messages": FlawKind("error", "messages of the wrong shape"),
    "role": FlawKind("error", "unknown role"),
    "content": FlawKind("error", "empty or non-text content"),
    "order": FlawKind("error", "roles out of order"),
    "no-answer": FlawKind("error", "no answer"),
    "no-question": FlawKind("error", "no question"),
    # the task
    "rejected": FlawKind("error", "rejected answer missing or unusable"),
    "label": FlawKind("error", "label missing or wrong"),
    "pairs": FlawKind("error", "positive or negative messages missing"),
    # parts of a row other than the conversation
    "media-file": FlawKind("error", "media missing or unreadable"),
    "media-count": FlawKind("error", "tags and media do not match"),
    "objects": FlawKind("error", "objects of the wrong shape"),
    "tools": FlawKind("error", "tools or tool calls of the wrong shape"),
    "value": FlawKind("error", "value of the wrong type"),
    "template": FlawKind("error", "rejected by the model's template", "ms-swift would skip it."),
    # learned tokens, by the model's template
    "nothing-learned": FlawKind("error", "nothing is learned"),
    "nothing-used": FlawKind("error", "no row can be trained on"),
    "no-learned": FlawKind(
        "warning", "rows without a token to learn", "They cost time and teach nothing; remove them."
    ),
    "few-learned": FlawKind("warning", "few tokens are learned"),
    "cut-answer": FlawKind(
        "warning",
        "answers truncated by max_length",
        "Raise max_length: without an end, the model does not learn to stop.",
    ),
    "no-end": FlawKind(
        "warning",
        "the end of answers is not learned",
        "The model may not stop by itself. Use the template that the model was trained with.",
    ),
    "same-pair": FlawKind(
        "warning", "pairs whose answers are the same tokens", "They teach nothing; remove them."
    ),
    "mixed-thinking": FlawKind("warning", "answers with and without thinking"),
    "lost-thinking": FlawKind(
        "warning",
        "thinking that the template removes",
        'The rest of that answer is learned without it. Set "loss_scale" to "last_round" to learn the last answer '
        "alone.",
    ),
    "tool-calls": FlawKind("warning", "tool calls that are not learned", "Check loss_scale."),
    "tool-results": FlawKind(
        "warning",
        "tool results that are learned",
        'Set "loss_scale" to "default": the model should not invent them.',
    ),
    "special": FlawKind(
        "warning",
        "special tokens in the text",
        "The model reads it as a special token, not as text. Remove it, or spell it differently.",
    ),
    # possible mistakes
    "near-column": FlawKind("warning", "columns that may be misspelled"),
    "same-role": FlawKind(
        "warning", "same role twice in a row", "ms-swift joins the two texts without a separator."
    ),
    "unanswered": FlawKind(
        "warning",
        "conversations that end with a question",
        "The answers before it are learned; nothing after them is.",
    ),
    "lost-key": FlawKind("warning", "keys of messages that are dropped"),
    "lost-text": FlawKind(
        "warning", "text that the template drops", "The model is trained without it; choose another template."
    ),
    "marks": FlawKind(
        "warning",
        "marks of a chat template in the text",
        "The template adds its own marks to each message; keep only the plain text.",
    ),
    "half-thinking": FlawKind(
        "warning",
        "thinking without its beginning or end",
        'The answer may have been cut off. Write all of the thinking between "<think>" and "</think>".',
    ),
    "no-thinking": FlawKind(
        "warning",
        "answers without thinking for a model that always thinks",
        'Write the thinking between "<think>" and "</think>", or choose a model that answers without it.',
    ),
    "filler": FlawKind(
        "warning", "a missing value written as text", "Leave the value out, or remove the row."
    ),
    "bad-answer": FlawKind(
        "warning", "answers labelled as bad", 'Remove such rows, or set "rlhf_type" to "kto".'
    ),
    "no-negatives": FlawKind(
        "warning",
        "queries without documents that do not match",
        "A reranker learns by comparison: add documents of other queries.",
    ),
    "one-label": FlawKind(
        "warning", "one label for every row", "There is nothing to tell apart; add rows with other labels."
    ),
    "turns": FlawKind(
        "warning",
        "several turns in one text",
        'The template marks the text as one question. Write each turn as a message: {"messages": [{"role": "user", '
        '"content": ...}, {"role": "assistant", "content": ...}]}.',
    ),
    "tiny-answer": FlawKind("warning", "near-empty answers", "Check that this is intended."),
    "too-long": FlawKind(
        "warning", "longer than max_length", "Raise max_length, shorten the row, or set truncation_strategy."
    ),
    "replacement": FlawKind(
        "warning", "replacement characters", "Text was lost; export it again from its source."
    ),
    "mojibake": FlawKind(
        "warning", "text read in the wrong encoding", "Export it again from its source as UTF-8."
    ),
    "invisible": FlawKind("warning", "invisible control characters", "Remove them unless they are intended."),
    "duplicate": FlawKind("warning", "exact duplicates", "Remove them, unless the extra weight is intended."),
    "leak": FlawKind(
        "warning", "validation rows that are also trained on", "Remove them from one of the two."
    ),
    "near-duplicate": FlawKind(
        "warning",
        "duplicates except for spaces and case",
        "Remove them, unless the extra weight is intended.",
    ),
    "near-leak": FlawKind(
        "warning",
        "validation rows that are also trained on, except for spaces and case",
        "Remove them from one of the two.",
    ),
    "secret": FlawKind(
        "warning", "likely secrets", "The model may reproduce it: remove it, and revoke it if it is real."
    ),
    "same-answer": FlawKind(
        "warning", "one answer makes up most of the data", "The model will learn to repeat it."
    ),
    "near-name": FlawKind("warning", "a local file has a similar name"),
}


class Flaw(NamedTuple):
    """A problem of a row or a file.

    Args:
        kind: key of `KINDS`.
        what: what is wrong, without a full stop.
        do: advice, if the kind has none of its own.
    """

    kind: str
    what: str
    do: str = ""

    @property
    def is_error(self) -> bool:
        return KINDS[self.kind].severity == "error"

    @property
    def advice(self) -> str:
        return self.do or KINDS[self.kind].do


class FlawError(Exception):
    """A flaw that prevents further reading.

    Args:
        kind: key of `KINDS`.
        what: what is wrong, without a full stop.
        do: advice, if the kind has none of its own.
    """

    def __init__(self, kind: str, what: str, do: str = "") -> None:
        super().__init__(what)
        self.flaw = Flaw(kind, what, do)


def json_kind(value: object) -> str:
    """A description of the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else "an object"
