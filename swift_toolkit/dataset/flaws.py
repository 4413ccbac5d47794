"""What can be wrong with data: the kinds of flaw, how bad each is and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of flaw.

    Args:
        severity: an error stops a run, a warning does not.
        title: its heading in the report.
        do: what to do about it, whole sentences; "" where each flaw says it for itself.
    """

    severity: Severity
    title: str
    do: str = ""


KINDS: dict[str, Kind] = {
    # the file
    "no-file": Kind("error", "file not found"),
    "unreadable": Kind("error", "file cannot be read"),
    "empty-file": Kind("error", "no rows", "Put at least one row into it."),
    "broken": Kind("error", "broken syntax"),
    "encoding": Kind("error", "not UTF-8", "Save the file as UTF-8."),
    "not-a-row": Kind("error", "not a row", 'Each row must be an object such as {"messages": [...]}.'),
    "columns": Kind("error", "unknown or unclear columns"),
    "late": Kind("error", "columns that change after the first 10 MB", "Shuffle the file, or mend the row."),
    "mixed-formats": Kind("error", "mixed formats in one file", "Put each format into a file of its own."),
    # the conversation
    "messages": Kind("error", "messages of the wrong shape"),
    "role": Kind("error", "unknown role"),
    "content": Kind("error", "empty or non-text content"),
    "order": Kind("error", "roles out of order"),
    "no-answer": Kind("error", "no answer"),
    "no-question": Kind("error", "no question"),
    # the task
    "rejected": Kind("error", "rejected answer missing or useless"),
    "label": Kind("error", "label missing or wrong"),
    "pairs": Kind("error", "positive or negative messages missing"),
    # what goes with the conversation
    "media-file": Kind("error", "media missing or unreadable"),
    "media-count": Kind("error", "tags and media do not match"),
    "objects": Kind("error", "objects of the wrong shape"),
    "tools": Kind("error", "tools or tool calls of the wrong shape"),
    "value": Kind("error", "value of the wrong type"),
    "template": Kind("error", "refused by the model's template", "ms-swift would leave it out."),
    # worth a look
    "near-column": Kind("warning", "columns that may be misspelled"),
    "same-role": Kind(
        "warning", "same role twice in a row", "ms-swift joins the two texts with nothing between them."
    ),
    "lost-key": Kind("warning", "keys of messages that are dropped"),
    "marks": Kind(
        "warning",
        "marks of a chat template in the text",
        "The template puts its marks around each message once more; keep the plain text only.",
    ),
    "tiny-answer": Kind("warning", "near-empty answers", "Check that they are meant."),
    "too-long": Kind(
        "warning", "longer than max_length", "Raise max_length, shorten the row, or set truncation_strategy."
    ),
    "replacement": Kind("warning", "replacement characters", "Text was lost; save it again from its source."),
    "mojibake": Kind("warning", "text read in the wrong encoding", "Save it again from its source as UTF-8."),
    "invisible": Kind("warning", "invisible control characters", "Remove them unless they are meant."),
    "duplicate": Kind("warning", "exact duplicates", "Remove them, unless the weight is meant."),
    "leak": Kind("warning", "validation rows that are also trained on", "Remove them from one of the two."),
    "same-answer": Kind("warning", "one answer makes up most of the data", "The model will learn to say it."),
    "near-name": Kind("warning", "a local file has a similar name"),
}


class Flaw(NamedTuple):
    """One thing that is wrong.

    Args:
        kind: key of `KINDS`.
        what: what is wrong, without a full stop.
        do: what to do, where the kind has no fixed advice.
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
    """Something cannot be read at all because of a flaw.

    Args:
        kind: key of `KINDS`.
        what: what is wrong, without a full stop.
        do: what to do, where the kind has no fixed advice.
    """

    def __init__(self, kind: str, what: str, do: str = "") -> None:
        super().__init__(what)
        self.flaw = Flaw(kind, what, do)


def kind_of(value: object) -> str:
    """What a decoded value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else "an object"
