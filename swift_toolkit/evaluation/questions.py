"""Questions for a model, read one at a time from JSON, JSONL, CSV, any training file, or a list.

A question is a string, or an object ``{id, question | messages, system, reference, category, images, videos,
audios}``. A training row is also a question: everything before its last assistant turn is asked, and that turn is the
reference. A model that scores or classifies gets the whole conversation: a reward model with the answer, a reranker
with each of the row's documents.

    questions = QuestionSet("test_questions.json")
    questions.check()           # reads the set once, raises with all problems
    for question in questions:  # reads the set again, one row in memory at a time
        ...
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from swift_toolkit.config.tasks import TaskOutput
from swift_toolkit.console.words import did_you_mean
from swift_toolkit.dataset.reading.files import look_at, read_records
from swift_toolkit.dataset.rows.flaws import Flaw, FlawError
from swift_toolkit.dataset.rows.formats import MEDIA, RESPONSE_COLUMNS, Layout, layout_of
from swift_toolkit.dataset.rows.media import file_flaw
from swift_toolkit.dataset.rows.messages import Row, standard_row
from swift_toolkit.inference.exchange import ChatMessage, Question
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
        limit: how many of its rows are read; None for all.
        output: what the model gives for a question.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Mapping[str, object]],
        limit: int | None = None,
        output: TaskOutput = "chat",
    ) -> None:
        self.source, self.limit, self.output = source, limit, output
        self.name = str(source) if isinstance(source, (str, Path)) else "questions"

    def __iter__(self) -> Iterator[Question]:
        """Yield every question in order.

        Raises:
            RequestError: at the first row that is not a question.
        """
        index = 0
        for line, row in islice(self._rows(), self.limit):
            try:
                for question in _questions(index, row, self._folder, self.output):
                    yield question
                    index += 1
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
        for line, row in islice(self._rows(), self.limit):
            try:
                for question in _questions(reading.count, row, self._folder, self.output):
                    reading.add(row, question, line)
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
            what = "is not a regular file" if path.exists() else "does not exist"
            what = "is a directory, not a questions file" if path.is_dir() else what
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


class _Asked(NamedTuple):
    """One conversation of a row, with what is known of the answer to it."""

    messages: list[ChatMessage]
    reference: str | None = None
    category: str | None = None


def _questions(index: int, row: Any, folder: Path, output: TaskOutput) -> Iterator[Question]:
    """Yield the questions in a row, numbered from ``index``: one, or one for each answer or document to score.

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
    asked_for = [*_CONVERSATIONS.get(output, _of_a_chat)(standard)]
    extra = {key: standard[key] for key in _PASSED_ON if standard.get(key)}
    for kind in MEDIA:
        if kind in extra:
            extra[kind] = [_medium(item, kind, folder) for item in extra[kind]]
    for number, one in enumerate(asked_for):
        name = own.get("id", str(index + number + 1))
        yield Question(
            index + number,
            f"{name}.{number + 1}" if "id" in own and len(asked_for) > 1 else name,
            tuple(one.messages),
            own.get("reference", one.reference),
            own.get("category", one.category),
            extra,
        )


def _of_a_chat(row: Row) -> Iterator[_Asked]:
    messages = row["messages"]
    answer = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    _check_question(messages)
    yield _Asked(messages, answer)


def _of_a_class(row: Row) -> Iterator[_Asked]:
    _check_question(row["messages"])
    label = row.get("label")
    classes = label if isinstance(label, list) else [label]
    known = classes and all(isinstance(one, int) for one in classes)  # not the number of a regression
    yield _Asked(row["messages"], ", ".join(map(str, classes)) if known else None)


def _of_a_reward(row: Row) -> Iterator[_Asked]:
    messages = row["messages"]
    if not messages or messages[-1]["role"] != "assistant":
        do = 'End "messages" with the answer to score, a turn from "assistant".'
        raise FlawError("no-question", "has no answer to score", do)
    rejected = row.get("rejected_response")
    yield _Asked(messages, category=None if rejected is None else "preferred")
    for answer in [] if rejected is None else rejected if isinstance(rejected, list) else [rejected]:
        yield _Asked([*messages[:-1], {"role": "assistant", "content": str(answer)}], category="rejected")


def _of_a_score(row: Row) -> Iterator[_Asked]:
    messages, found = row["messages"], False
    for name, category in (("positive_messages", "matching"), ("negative_messages", "not matching")):
        for document in row.get(name) or ():
            if not isinstance(document, list) or not all(isinstance(one, Mapping) for one in document):
                raise FlawError("columns", f'"{name}" is not a list of lists of messages')
            found = True
            yield _Asked([*messages, *document], category=category)
    if found:
        return
    if not messages or messages[-1]["role"] != "assistant":
        do = 'Write "positive_messages", or end "messages" with the document, a turn from "assistant".'
        raise FlawError("no-question", "has no document to score", do)
    yield _Asked(messages)


_CONVERSATIONS: Mapping[TaskOutput, Callable[[Row], Iterator[_Asked]]] = {
    "class": _of_a_class,
    "reward": _of_a_reward,
    "score": _of_a_score,
}


def _check_question(messages: Sequence[ChatMessage]) -> None:
    if not messages or messages[-1]["role"] == "system" or not messages[-1]["content"]:
        raise FlawError(
            "no-question", "has no question", 'Write a "question", or "messages" with a turn from "user".'
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
