"""Progress and answers on the screen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from swift_toolkit.console.screen import LiveLine, bar_and_words, console_for, duration, say, visible
from swift_toolkit.inference.exchange import Answer

if TYPE_CHECKING:
    from swift_toolkit.inference.engine import Engine

SHOWN_OF_A_QUESTION = 400
"""Most characters of a question that are shown above its answer."""


class AnsweringLine(LiveLine):
    """The live line of a batch of questions. Use it as a context manager.

    Args:
        file: where it is shown: a bar on a terminal, otherwise a plain line from time to time.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__("", file, *bar_and_words())
        self._began: float | None = None
        self._first = self._tokens = 0
        self._said = 0.0

    def loading(self, engine: Engine) -> None:
        """Show the state until the engine is ready."""
        said = ""
        for state in engine.loading():
            if state != said:
                said = state
                self._progress.update(self._task, description=_LOADING[state])
                if not self._live:
                    say(_LOADING[state])

    def show(self, done: int, total: int, answer: Answer | None) -> None:
        """Add the newest answer, None for none, and show that ``done`` of ``total`` are complete."""
        if self._began is None:
            self._began, self._first = time.monotonic(), done - (answer is not None)
        if answer is None:
            return
        self._tokens += answer.completion_tokens
        seconds = time.monotonic() - self._began
        words = f"{done}/{total} · {self._tokens / max(seconds, 0.001):.1f} tokens/s"
        if done - self._first > 0:
            words += f" · {duration(seconds / (done - self._first) * (total - done))} left"
        self._progress.update(self._task, description="asking", completed=done, total=total, words=words)
        if not self._live and (time.monotonic() - self._said > 5 or done == total):
            self._said = time.monotonic()
            say(words)


_LOADING = {"importing": "importing ms-swift", "loading": "loading the model"}


def loading_line(engine: Engine) -> None:
    """Show the state until the engine is ready, then clear the line."""
    with AnsweringLine() as line:
        line.loading(engine)


@dataclass(frozen=True)
class AnswerBlock:
    """One question and its answers to print.

    Args:
        id: id of the question.
        question: text of the question.
        answers: text of the answer by side; a single answer has the side "".
    """

    id: str
    question: str
    answers: Mapping[str, str]


def print_answers(blocks: Iterable[AnswerBlock], file: IO[str]) -> None:
    """Print questions, each with its answer, or with the answers of both sides next to each other."""
    from rich.table import Table
    from rich.text import Text

    console = console_for(file)
    for block in blocks:
        named = "" not in block.answers
        table = Table(box=None, show_header=named, pad_edge=False, padding=(0, 3, 0, 0), expand=True)
        for name in block.answers:
            table.add_column(name, ratio=1, overflow="fold", header_style="dim")
        table.add_row(*(Text(visible(answer)) for answer in block.answers.values()))
        question = block.question
        if len(question) > SHOWN_OF_A_QUESTION:
            question = f"{question[:SHOWN_OF_A_QUESTION]} ..."
        console.print(Text(visible(f"[{block.id}] {question}"), style="bold"))
        console.print(table)
        console.print()
