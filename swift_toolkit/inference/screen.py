"""What is shown while a model loads and answers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import IO, Any

from swift_toolkit.console.screen import LiveLine, bar_and_words, console_for, duration, say, visible
from swift_toolkit.inference.engine import Engine
from swift_toolkit.inference.exchange import Answer

SHOWN_OF_A_QUESTION = 400
"""How many characters of a question are shown above its answer."""


class AnsweringLine(LiveLine):
    """The one live line of a batch of questions. Use it as a context manager.

    Args:
        file: where it is shown; a bar on a terminal, else a plain line now and then.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__("", file, *bar_and_words())
        self._began: float | None = None
        self._first = self._tokens = 0
        self._said = 0.0

    def loading(self, engine: Engine) -> None:
        """Show what goes on until the engine is ready."""
        said = ""
        for state in engine.loading():
            if state != said:
                said = state
                self._progress.update(self._task, description=_LOADING[state])
                if not self._live:
                    say(_LOADING[state])

    def show(self, done: int, total: int, answer: Answer | None) -> None:
        """Take in the newest answer, None for none; ``done`` of ``total`` are there."""
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
    """Show what goes on until the engine is ready, and nothing after."""
    with AnsweringLine() as line:
        line.loading(engine)


def print_answers(results: Iterable[Mapping[str, Any]], file: IO[str]) -> None:
    """One block for each result: the question, and the answer or, with a base, both answers side by side."""
    from rich.table import Table
    from rich.text import Text

    console = console_for(file)
    for result in results:
        table = Table(
            box=None, show_header="base" in result, pad_edge=False, padding=(0, 3, 0, 0), expand=True
        )
        sides = [("base", result["base"]), ("tuned", result)] if "base" in result else [("", result)]
        for name, _ in sides:
            table.add_column(name, ratio=1, overflow="fold", header_style="dim")
        answers = [
            side["answer"] if side.get("error") is None else f"failed: {side['error']}" for _, side in sides
        ]
        table.add_row(*(Text(visible(answer)) for answer in answers))
        question = result["question"]
        if len(question) > SHOWN_OF_A_QUESTION:
            question = f"{question[:SHOWN_OF_A_QUESTION]} ..."
        console.print(Text(visible(f"[{result['id']}] {question}"), style="bold"))
        console.print(table)
        console.print()
