"""The row formats that ms-swift reads, recognised by their columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

from swift_toolkit.config.tasks import TaskRows
from swift_toolkit.console.words import nearest
from swift_toolkit.dataset.rows.flaws import FlawError

# Format detection

Family = Literal["messages", "alpaca", "response", "preference"]
CONVERTED: frozenset[Family] = frozenset({"preference"})
"""Families that ms-swift does not read; it gets a copy of the file as messages."""

MESSAGE_COLUMNS = ("messages", "conversation", "conversations")
SYSTEM_COLUMNS = ("system", "system_prompt")
QUERY_COLUMNS = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE_COLUMNS = (
    "response", "answer", "output", "targets", "target", "answer_key", "answers", "solution",
    "text", "completion", "content",
)  # fmt: skip
TEXT_COLUMNS = ("text", "content")
"""Columns with the class for a classifier, which ms-swift treats as an answer."""

MEDIA = ("images", "videos", "audios")
MEDIA_COLUMNS = {name: media for media in MEDIA for name in (media, media[:-1])}
OTHER_COLUMNS = (
    *(f"{sort}_{name}" for sort in ("rejected", "positive", "negative") for name in ("messages", *MEDIA)),
    "rejected_response", "rejected_tools", "rejected_objects", "label", "channel", "margin", "tools",
    "objects", "history", "solution", "teacher_prompt", "teacher_images", "chat_template_kwargs",
    "questions", "kinds", "options", "target_probs", "question_ids", "criteria", "ref_audios", "audio_codes",
)  # fmt: skip
"""Columns that ms-swift keeps under their own names (`RowPreprocessor.standard_keys`), and history and solution."""

DECISION_COLUMNS = (
    "questions", "kinds", "options", "target_probs", "state", "question_ids", "criteria", "omnijev_column_keys",
    "omnijev_video",
)  # fmt: skip
"""Columns other than the messages that the task "decision" of ms-swift 4.6 reads."""

KNOWN_COLUMNS = frozenset(
    {*MESSAGE_COLUMNS, *SYSTEM_COLUMNS, *QUERY_COLUMNS, *RESPONSE_COLUMNS, *MEDIA_COLUMNS, *OTHER_COLUMNS}
)


STANDARD_COLUMNS = KNOWN_COLUMNS | {"chosen", "rejected"}
"""Names to which a run may map a column."""


class NoFormatError(FlawError):
    """No known format has the columns of a file."""

    def __init__(self, columns: Sequence[str]) -> None:
        shown = ", ".join(f'"{name}"' for name in columns[:8])
        near = near_name(columns, (*MESSAGE_COLUMNS, *QUERY_COLUMNS, *RESPONSE_COLUMNS))
        do = 'Use "messages", "query" and "response", or "instruction", "input" and "output".'
        if near:
            do += f' Did you mean "{near[1]}" for "{near[0]}"?'
        super().__init__("columns", f"no known format has the columns {shown}", do)


@dataclass(frozen=True)
class Layout:
    """How the columns of one file become messages.

    Args:
        name: name of the format in the report.
        family: the preprocessor of ms-swift that reads it, or one of `CONVERTED`. "preference" is chosen/rejected.
        rename: column in the file -> standard column, for every column of the file.
        unused: columns that training does not use.
        passed_on: columns that only reward functions use.
    """

    name: str
    family: Family
    rename: Mapping[str, str]
    unused: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """The standard names of all columns."""
        return frozenset(self.rename.values())

    @cached_property
    def kept(self) -> Mapping[str, str]:
        """The columns from which rows are built -> their standard names."""
        left = frozenset(self.unused)
        return {column: name for column, name in self.rename.items() if column not in left}

    @property
    def used(self) -> tuple[Family, dict[str, str]]:
        """The columns and names by which rows are read."""
        left = {*self.unused, *self.passed_on}
        return self.family, {column: name for column, name in self.rename.items() if column not in left}


def layout_of(
    columns: Collection[str], mapping: Mapping[str, str] | None = None, rows: TaskRows = "answer"
) -> Layout:
    """Detect the format of a file with these columns, like ms-swift's AutoPreprocessor.

    Args:
        columns: all columns of the file.
        mapping: ms-swift's `columns`, names in the file -> standard names.
        rows: what the task learns from, see `Task.rows`.

    Raises:
        NoFormatError: the format is unknown.
        FlawError: ms-swift would use none of several conflicting columns.
    """
    named = {column: (mapping or {}).get(column, column) for column in columns}
    names = list(named.values())
    family, wanted = _family_of(names, rows)
    renamed, clashes = _renamed(names, wanted)
    if rows == "prompt":
        clashes.pop("response", None)  # nothing is learned from it; reward functions get such columns by name
    for standard, claim in clashes.items():
        if family != "alpaca" or (standard == "response" and "output" not in names):
            raise _clash(standard, claim)
    rename = {column: renamed.get(name, name) for column, name in named.items()}
    known = {*OTHER_COLUMNS, *wanted.values(), *(DECISION_COLUMNS if rows == "decision" else ())}
    if rows == "decision" and set(DECISION_COLUMNS).isdisjoint(names):
        raise _no_questions()
    if family == "alpaca":
        known |= {"instruction", "input", "output"}
    unused = tuple(column for column, name in rename.items() if name not in known)
    if family == "response" and not {"query", "response"} & set(rename.values()):
        raise NoFormatError(unused or list(columns))
    if rows == "prompt":
        return Layout(_format_name(family, names), family, rename, (), unused)
    return Layout(_format_name(family, names), family, rename, unused)


_READ_BY: Mapping[str, tuple[TaskRows, ...]] = {
    "rejected": ("preference",),
    "positive": ("documents",),
    "negative": ("documents",),
    "label": ("judged", "class", "documents"),
}
"""First word of a column -> the kinds of rows that need it."""


def columns_of_other_tasks(layout: Layout, rows: TaskRows) -> list[str]:
    """Columns that ms-swift reads, but that a task with this kind of rows does not use."""
    if rows in ("prompt", "decision"):  # reward functions get every column
        return []
    kept = layout.kept.items()
    return [column for column, name in kept if rows not in _READ_BY.get(name.partition("_")[0], (rows,))]


def _family_of(names: Collection[str], rows: TaskRows) -> tuple[Family, dict[str, str]]:
    """The family, and the names it searches for -> their standard names."""
    system = dict.fromkeys(SYSTEM_COLUMNS, "system")
    has_messages = any(column in names for column in MESSAGE_COLUMNS)
    if {"chosen", "rejected"} <= set(names) and (rows == "preference" or not has_messages):
        kept = {"chosen": "chosen", "rejected": "rejected", "history": "history"}
        return "preference", system | _prompt_columns(names, has_messages) | MEDIA_COLUMNS | kept
    if has_messages:
        return "messages", system | dict.fromkeys(MESSAGE_COLUMNS, "messages") | MEDIA_COLUMNS
    if rows == "class" and not {name.lower() for name in names} & {*QUERY_COLUMNS, "response"}:
        return "response", system | dict.fromkeys(TEXT_COLUMNS, "query") | MEDIA_COLUMNS
    texts = dict.fromkeys(QUERY_COLUMNS, "query") | dict.fromkeys(RESPONSE_COLUMNS, "response")
    family: Family = "alpaca" if {"instruction", "input"} <= set(names) else "response"
    return family, system | texts | MEDIA_COLUMNS


def _prompt_columns(names: Collection[str], has_messages: bool) -> dict[str, str]:
    """The columns of the prompt before the chosen and the rejected answer."""
    if "prompt" in names or not (has_messages or {"instruction", "input"} <= set(names)):
        return dict.fromkeys(QUERY_COLUMNS, "prompt")
    if has_messages:
        return dict.fromkeys(MESSAGE_COLUMNS, "prompt")
    return {"instruction": "instruction", "input": "input"}


def _renamed(names: Sequence[str], wanted: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Rename columns like ms-swift: ignoring case, and none of several columns that map to the same name."""
    by_lower = {name.lower(): name for name in names}
    claims: dict[str, list[str]] = {}
    for lower, standard in wanted.items():
        if lower in by_lower:
            claims.setdefault(standard, []).append(by_lower[lower])
    rename = {claim[0]: standard for standard, claim in claims.items() if len(claim) == 1}
    clashes = {s: claim for s, claim in claims.items() if len(claim) > 1 and s not in claim}
    return rename, clashes


def _clash(standard: str, claim: Sequence[str]) -> FlawError:
    quoted = " and ".join(f'"{name}"' for name in claim)
    return FlawError(
        "columns",
        f'columns {quoted} could all be "{standard}", so ms-swift uses none of them',
        f'Keep one of them, or name it with "columns": {{"{claim[0]}": "{standard}"}}.',
    )


def _format_name(family: Family, names: Collection[str]) -> str:
    if family == "preference":
        return "chosen/rejected"
    if family == "messages":
        return next(name for name in MESSAGE_COLUMNS if name in names)
    if family == "alpaca":
        return "instruction/input/output"
    lower = {name.lower() for name in names}
    query = next((name for name in QUERY_COLUMNS if name in lower), "")
    response = next((name for name in RESPONSE_COLUMNS if name in lower), "")
    return "/".join(filter(None, (query, response)))


def _no_questions() -> FlawError:
    do = 'Add "questions", "kinds", "options" and "target_probs"; see ms-swift\'s ScoringPreprocessor.'
    return FlawError("columns", 'no column contains the questions of the task "decision"', do)


LOOKED_AT = 200
"""Maximum number of names that are compared with the known ones; each one takes time."""


def near_name(names: Iterable[str], known: Sequence[str]) -> tuple[str, str] | None:
    """The first of these names (up to a limit) that is similar to a known name, and that known name."""
    return next(
        ((name, near[0]) for name in islice(names, LOOKED_AT) if (near := nearest(name, known))), None
    )
