"""Questions for a model, read one at a time from JSON, JSONL, CSV, any training file, or a list.

A question is a string, or an object ``{id, question | messages, system, reference, category, images, videos,
audios}``. A training row is also a question: everything before its last assistant turn is asked, and that turn is the
reference.

    questions = QuestionSet("test_questions.json")
    questions.check()           # reads the set once, raises with all problems
    for question in questions:  # reads the set again, one row in memory at a time
        ...
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from swift_toolkit.console.words import did_you_mean
from swift_toolkit.dataset.reading.files import look_at, read_records
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.formats import MEDIA, RESPONSE_COLUMNS, Layout, layout_of
from swift_toolkit.dataset.rows.media import file_flaw
from swift_toolkit.dataset.rows.messages import standard_row
from swift_toolkit.inference.exchange import Question
from swift_toolkit.problems import Problem, RequestError

KEYS = ("id", "question", "messages", "system", "reference", "category", *MEDIA)
"""The keys of a question."""

_OWN_KEYS = ("id", "reference", "category")  # the other keys are read as in a training row
_PASSED_ON = (*MEDIA, "tools", "objects", "chat_template_kwargs")
_ALLOWED = {*KEYS, *RESPONSE_COLUMNS, *_PASSED_ON, "image", "video", "audio", "history", "system_prompt"}

SHOWN_PROBLEMS = 20
"""Most problems of one set that are printed; the others are counted."""


@dataclass(frozen=True)
class Overview:
    """A summary of a set of questions.

    Args:
        count: number of questions.
        digest: SHA-256 of the questions as read; identifies the set.
        references: number of questions with a reference.
        media: number of questions with images, video or audio.
        categories: number of questions per category, in the order of their first appearance.
    """

    count: int
    digest: str
    references: int
    media: int
    categories: Mapping[str, int]


class QuestionSet:
    """A set of questions that is read again, one question at a time, on every iteration.

    Args:
        source: a file, or a list of strings and objects.
        limit: how many of them are read; None for all.
    """

    def __init__(
        self, source: str | Path | Sequence[str | Mapping[str, object]], limit: int | None = None
    ) -> None:
        self.source, self.limit = source, limit
        self.name = str(source) if isinstance(source, (str, Path)) else "questions"

    def __iter__(self) -> Iterator[Question]:
        """Yield every question in order.

        Raises:
            RequestError: at the first row that is not a question.
        """
        for index, (line, row) in enumerate(islice(self._rows(), self.limit)):
            try:
                yield _question(index, row, self._folder)
            except FlawError as error:
                raise RequestError([self._problem(line, error.flaw)]) from None

    def check(self) -> Overview:
        """Read the whole set once.

        Raises:
            RequestError: with all problems: the file, rows that are not questions, media files that do not exist,
                duplicate ids.
        """
        reading = _Reading()
        problems: list[Problem] = []
        more = 0
        for index, (line, row) in enumerate(islice(self._rows(), self.limit)):
            try:
                reading.add(row, _question(index, row, self._folder), line)
            except FlawError as error:
                if len(problems) < SHOWN_PROBLEMS:
                    problems.append(self._problem(line, error.flaw))
                else:
                    more += 1
        if more:
            problems.append(Problem(f"has {more} more problems", file=self.name))
        if not reading.count and not problems:
            problems.append(Problem("does not contain any questions", file=self.name))
        if problems:
            raise RequestError(problems)
        return reading.overview()

    def _rows(self) -> Iterator[tuple[int | None, Any]]:
        """Yield every row with its line number; a row that cannot be read is yielded as a `Flaw`."""
        if not isinstance(self.source, (str, Path)):
            yield from enumerate(self.source, start=1)
            return
        path = Path(self.source).expanduser()
        if not path.is_file():
            what = "is a directory, not a questions file" if path.is_dir() else "does not exist"
            raise RequestError([Problem(what, file=self.name)])
        try:
            file = look_at(path, self.name)
        except FlawError as error:
            raise RequestError([Problem(error.flaw.what, error.flaw.advice, file=self.name)]) from None
        for record in read_records(file):
            yield record.line or record.number, record.value

    def _problem(self, line: int | None, flaw: Flaw) -> Problem:
        return Problem(flaw.what, flaw.advice, file=self.name, line=line)

    @property
    def _folder(self) -> Path:
        return Path(self.source).expanduser().parent if isinstance(self.source, (str, Path)) else Path()


class _Reading:
    """Collects the summary of a set while it is read."""

    def __init__(self) -> None:
        self.count = self.references = self.media = 0
        self.digest = hashlib.sha256()
        self.categories: Counter[str] = Counter()
        self.lines_of_ids: dict[str, int | None] = {}  # only of ids given in the file

    def add(self, row: Any, question: Question, line: int | None) -> None:
        if question.id in self.lines_of_ids:
            first = self.lines_of_ids[question.id]
            raise FlawError(
                "columns", f'the id "{question.id}" is already used in line {first}', "Use unique ids."
            )
        if isinstance(row, Mapping) and row.get("id") is not None:
            self.lines_of_ids[question.id] = line
        self.digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        self.count += 1
        self.references += question.reference is not None
        self.media += any(question.extra.get(kind) for kind in MEDIA)
        if question.category is not None:
            self.categories[question.category] += 1

    def overview(self) -> Overview:
        return Overview(
            self.count, self.digest.hexdigest(), self.references, self.media, dict(self.categories)
        )


# --- rows into questions ------------------------------------------------------------------------------------


def _question(index: int, row: Any, folder: Path) -> Question:
    """Read the question in a row.

    Raises:
        FlawError: the row is not a question.
    """
    if isinstance(row, Flaw):
        raise FlawError(*row)
    if isinstance(row, str):
        row = {"question": row}
    if not isinstance(row, Mapping):
        raise FlawError("not-a-row", "is neither text nor an object", 'Write text or {"question": ...}.')
    own = {key: _text(row[key], key) for key in _OWN_KEYS if row.get(key) is not None}
    asked = {key: value for key, value in row.items() if key not in _OWN_KEYS}
    if "question" in asked:
        _refuse_other_keys(asked)
    if not asked:
        raise FlawError("no-question", "has no question", 'Write a "question" or "messages".')
    standard = standard_row(asked, _layout(tuple(asked)))
    messages = standard["messages"]
    answer = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    if not messages or messages[-1]["role"] == "system" or not messages[-1]["content"]:
        raise FlawError(
            "no-question", "has no question", 'Write a "question", or "messages" with a turn from "user".'
        )
    extra = {key: standard[key] for key in _PASSED_ON if standard.get(key)}
    for kind in MEDIA:
        if kind in extra:
            extra[kind] = [_medium(item, kind, folder) for item in extra[kind]]
    return Question(
        index,
        own.get("id", str(index + 1)),
        tuple(messages),
        own.get("reference", answer),
        own.get("category"),
        extra,
    )


@lru_cache(maxsize=256)
def _layout(columns: tuple[str, ...]) -> Layout:
    return layout_of(columns)


def _refuse_other_keys(row: Mapping[str, object]) -> None:
    """Refuse unknown keys in a question: a misspelled key would be ignored silently."""
    if "messages" in row:
        raise FlawError("columns", 'has both "question" and "messages"', "Keep one of them.")
    for key in row:
        if key not in _ALLOWED:
            do = did_you_mean(key, KEYS, f"The keys of a question are {', '.join(KEYS)}.")
            raise FlawError("columns", f'"{key}" is not a key of a question', do)


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    raise FlawError("content", f'"{key}" must be text')


def _medium(item: Any, kind: str, folder: Path) -> Any:
    """An image, video or audio: a URL, the content itself, or a local file relative to the working directory or to the
    questions file.
    """
    if not isinstance(item, str) or "://" in item or item.startswith("data:") or len(item) > 4096:
        return item
    for path in (Path(item).expanduser(), folder / item):
        if path.is_file():
            if flaw := file_flaw(str(path), kind == "images"):
                raise FlawError(*flaw)
            return str(path)
    raise FlawError("media-file", f'"{kind}" names {item}, which does not exist', "Correct the path.")
