"""What the user sees: problems, the plan, one live line, the result.

Progress and messages go to stderr, results to stdout. Colours and bars are only for a terminal; elsewhere the same
words come as plain lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from swift_toolkit.problems import Problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn
    from typing_extensions import Self

    from swift_toolkit.evaluation.answers import Answer
    from swift_toolkit.inference.engine import Engine

PLAIN_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""

SHOWN_OF_A_QUESTION = 400
"""How many characters of a question are shown above its answer."""


def print_problems(problems: Sequence[Problem]) -> None:
    """One line each on stderr."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for problem in problems:
        print(f"{red}{problem}{plain}", file=sys.stderr)


def say(line: str) -> None:
    """One message line on stderr."""
    print(line, file=sys.stderr, flush=True)


def _console(file: IO[str]) -> Console:
    from rich.console import Console

    width = None if file.isatty() else PLAIN_WIDTH
    return Console(file=file, width=width, highlight=False, soft_wrap=False)


def print_facts(facts: Iterable[tuple[str, str]], file: IO[str] | None = None) -> None:
    """A table of names and values without lines."""
    _print_table([], facts, file)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], file: IO[str] | None = None) -> None:
    """A table with a heading."""
    _print_table(columns, rows, file)


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], file: IO[str] | None) -> None:
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(cell, overflow="fold") for cell in row] for row in rows]
    table = Table(box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns or [""] * len(cells[0]):
        table.add_column(column, overflow="fold", header_style="bold")
    for row in cells:
        table.add_row(*row)
    _console(file or sys.stderr).print(table)


def short_path(path: Path) -> str:
    """``path`` as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``7.25`` as ``7.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def gib(size: float) -> str:
    """Bytes as ``1.5 GiB``."""
    return f"{size / (1 << 30):.1f} GiB"


class _LiveLine:
    """A spinner, a description and more ``columns`` in one line that is gone at the end; nothing off a terminal."""

    def __init__(self, description: str, file: IO[str] | None, *columns: ProgressColumn) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn

        self._file = file or sys.stderr
        self._live = self._file.isatty()
        self._progress = Progress(
            *(SpinnerColumn(), TextColumn("{task.description}"), *columns),
            console=_console(self._file),
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task(description, total=None, words="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, description: str) -> None:
        """Say what is going on while there is nothing to count."""
        self._progress.update(self._task, description=description)
        if not self._live:
            print(description, file=self._file, flush=True)


def _bar_and_words() -> tuple[ProgressColumn, ProgressColumn]:
    from rich.progress import BarColumn, TextColumn

    return BarColumn(20), TextColumn("{task.fields[words]}")


WARM_UP = 2
"""Steps after which the time of a step is measured: in the first ones memory is claimed and kernels are chosen."""


class TrainingLine(_LiveLine):
    """The one live line of a training run, fed with the events of training.py.

    Use it as a context manager.

    Args:
        file: where it is shown; a bar on a terminal, else a plain line at every log of the run.
        row_tokens: about how many tokens a row has, None if that is not known.
    """

    def __init__(self, file: IO[str] | None = None, row_tokens: int | None = None) -> None:
        super().__init__("starting", file, *_bar_and_words())
        self._step, self._total, self._first = 0, 0, 0
        self._warm: float | None = None
        self._row_tokens, self._batch = row_tokens, 0
        self._words: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        """One message line that stays."""
        if self._live:
            self._progress.console.print(sentence, markup=False)
        else:
            print(sentence, file=self._file, flush=True)

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        kind = event["event"]
        if kind == "importing":
            self.note("importing ms-swift")
        elif kind == "loading":
            self.note("loading the model and the data")
        elif kind == "waiting":
            self.note("waiting until every row of the data is looked at")
        elif kind == "begin":
            self._first, self._total, self._batch = event["step"], event["max_steps"], event["batch"]
            self._step, self._warm = self._first, None
            self._progress.update(self._task, description="training", total=self._total)
        elif kind == "step":
            self._step = event["step"]
            if self._step - self._first == WARM_UP:
                self._warm = time.monotonic()
            self._progress.update(
                self._task, completed=self._step, description="training", words=self.words()
            )
        elif kind == "evaluating":
            self._progress.update(self._task, description="evaluating")
        elif kind == "log":
            self._log(event)

    def _log(self, event: dict[str, Any]) -> None:
        logs = event["logs"]
        for name, key, pattern in (
            ("loss", "loss", "loss {:.4f}"),
            ("eval", "eval_loss", "eval loss {:.4f}"),
            ("rate", "learning_rate", "lr {:.2e}"),
        ):
            if key in logs:
                self._words[name] = pattern.format(logs[key])
        self._words["memory"] = gib(event["memory"])
        if self._live:
            self._progress.update(self._task, words=self.words())
        elif "loss" in logs or "eval_loss" in logs:
            print(self.words(), file=self._file, flush=True)

    def words(self) -> str:
        """The line without its bar: step, losses, learning rate, speed, time left once measured, memory."""
        parts = [f"step {self._step}/{self._total}"]
        parts += [self._words[name] for name in ("loss", "eval", "rate") if name in self._words]
        done = self._step - self._first - WARM_UP
        if self._warm is not None and done > 0:
            pace = (time.monotonic() - self._warm) / done
            parts.append(f"{pace:.2f} s/step")
            if self._row_tokens:
                parts.append(f"about {self._row_tokens * self._batch / max(pace, 0.001):,.0f} tokens/s")
            parts.append(f"{duration(pace * (self._total - self._step))} left")
        elif self._step < self._total:
            parts.append("time left unknown")
        if "memory" in self._words:
            parts.append(self._words["memory"])
        return " · ".join(parts)


class AnsweringLine(_LiveLine):
    """The one live line of a batch of questions. Use it as a context manager.

    Args:
        file: where it is shown; a bar on a terminal, else a plain line now and then.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__("", file, *_bar_and_words())
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

    console = _console(file)
    for result in results:
        table = Table(
            box=None, show_header="base" in result, pad_edge=False, padding=(0, 3, 0, 0), expand=True
        )
        sides = [("base", result["base"]), ("tuned", result)] if "base" in result else [("", result)]
        for name, _ in sides:
            table.add_column(name, ratio=1, overflow="fold", header_style="dim")
        told = [
            side["answer"] if side.get("error") is None else f"failed: {side['error']}" for _, side in sides
        ]
        table.add_row(*(Text(answer) for answer in told))
        question = result["question"]
        if len(question) > SHOWN_OF_A_QUESTION:
            question = f"{question[:SHOWN_OF_A_QUESTION]} ..."
        console.print(Text(f"[{result['id']}] {question}", style="bold"))
        console.print(table)
        console.print()


class StartingLine(_LiveLine):
    """The one live line of a server that starts. Use it as a context manager.

    Args:
        file: where it is shown; a spinner on a terminal, else a plain line for every step.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.progress import TimeElapsedColumn

        super().__init__("starting", file, TimeElapsedColumn())
