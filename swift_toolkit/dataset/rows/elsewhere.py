"""Layouts of other projects that ms-swift does not read, with how to write them for it.

``elsewhere.json`` is a list of

    of        the project, or the kind of data
    columns   column -> what it holds: "text", "texts" (a list), "number", "object", "objects" (a list), "objects with
              KEY", or "" for anything; a row has this layout if it has them all
    do        what to write instead
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

from swift_toolkit.dataset.rows.formats import OTHER_COLUMNS

QUESTIONS = (
    "question", "query", "prompt", "instruction", "input", "inputs", "q", "user", "human", "source", "src", "article",
    "problem", "problem_statement", "question_text", "user_query", "user_input", "user_message", "document",
    "dialogue", "passage", "context", "sentence", "text", "content", "问题", "提问", "输入",
)  # fmt: skip
ANSWERS = (
    "answer", "response", "output", "outputs", "a", "assistant", "bot", "gpt", "target", "targets", "tgt", "reply",
    "generated_solution", "generation", "response_text", "answer_text", "model_answer", "model_output", "final_answer",
    "expected_answer", "ideal", "highlights", "summary", "caption", "回答", "答案", "输出",
)  # fmt: skip
"""Names that people give to the text that is asked and to the one that is learned, most usual first."""

_TURNS = ({"role", "content"}, {"from", "value"})


class Elsewhere(TypedDict):
    """One entry of ``elsewhere.json``; the module's docstring explains each field."""

    of: str
    columns: dict[str, str]
    do: str


@cache
def _table() -> list[Elsewhere]:
    found: list[Elsewhere] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def layout_elsewhere(row: Mapping[str, object]) -> tuple[str, str] | None:
    """The project whose layout a row has, and how to write it for ms-swift; None for any other row."""
    for entry in _table():
        if all(name in row and _holds(row[name], kind) for name, kind in entry["columns"].items()):
            return entry["of"], entry["do"]
    return None


def _holds(value: object, kind: str) -> bool:
    if kind.startswith("objects"):
        key = kind.removeprefix("objects with ") if " " in kind else ""
        items = value if isinstance(value, list) else []
        return bool(items) and all(isinstance(item, dict) and (not key or key in item) for item in items)
    if kind == "texts":
        return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return not kind or isinstance(value, {"text": str, "object": dict}[kind])


def renaming(row: Mapping[str, object], rows: str) -> str:
    """How to name the columns of a file for ms-swift; "" if that cannot be guessed.

    Args:
        row: a row of the file.
        rows: what the task learns from, see `Task.rows`.
    """
    if turns := [name for name, value in row.items() if _is_conversation(value)]:
        meant = "prompt" if row.keys() >= {"chosen", "rejected"} else "messages"
        if turns[0] == meant:  # the run maps it to another name
            return f'Leave "{meant}" out of "columns".'
        return f'Set "columns": {{"{turns[0]}": "{meant}"}}.'
    texts = [name for name, value in row.items() if isinstance(value, str) and name not in OTHER_COLUMNS]
    lower = {name.lower(): name for name in texts}
    asked = next((lower[name] for name in QUESTIONS if name in lower), None)
    answer = next((lower[name] for name in ANSWERS if name in lower), None)
    if rows in ("class", "prompt") and asked:
        return f'Set "columns": {{"{asked}": "query"}}.'
    if rows == "preference":
        return _renaming_of_pairs(list(row))
    if rows == "answer" and asked and answer:
        return f'Set "columns": {{"{asked}": "query", "{answer}": "response"}}.'
    if rows == "text" and len(lower) == 1:
        return f'Set "columns": {{"{next(iter(lower.values()))}": "response"}}.'
    return ""


_BETTER = re.compile(r"chosen|prefer|accept|better|win(?:ner|ning)?\b", re.IGNORECASE)
_WORSE = re.compile(r"reject|dispref|worse|los(?:e|er|ing)\b", re.IGNORECASE)


def _renaming_of_pairs(names: list[str]) -> str:
    """How to name the columns of two answers; "" if there are not exactly two such columns."""
    worse = [name for name in names if _WORSE.search(name)]
    better = [name for name in names if _BETTER.search(name) and name not in worse]
    if len(worse) != 1 or len(better) != 1 or (better, worse) == (["chosen"], ["rejected"]):
        return ""
    meant = zip((*better, *worse), ("chosen", "rejected"), strict=True)
    renamed = ", ".join(f'"{name}": "{new}"' for name, new in meant if name != new)
    return f'Set "columns": {{{renamed}}}.'


def _is_conversation(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(keys <= first.keys() for keys in _TURNS)
