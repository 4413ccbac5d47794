"""Terminal output: problems, the plan, one live line, the result.

Progress and messages go to stderr, results to stdout. Colours and bars appear only on a terminal; elsewhere the same
text is printed as plain lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from swift_toolkit.console.secrets import masked
from swift_toolkit.problems import Problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn
    from typing_extensions import Self


PLAIN_WIDTH = 160
"""Width of a table that is not shown on a terminal, in columns."""


_HIDDEN = [*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE: dict[int, str] = {
    **{code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _HIDDEN},
}
_VISIBLE |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def visible(text: str) -> str:
    """Text from other sources, made safe for a terminal: control characters, which could write to the clipboard, rename
    the window or hide text, are shown as escapes."""
    return text.translate(_VISIBLE)


def print_problems(problems: Sequence[Problem]) -> None:
    """One line each on stderr."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for problem in problems:
        print(f"{red}{visible(masked(str(problem)))}{plain}", file=sys.stderr)


def say(line: str) -> None:
    """One message line on stderr."""
    print(visible(masked(line)), file=sys.stderr, flush=True)


def console_for(file: IO[str]) -> Console:
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

    cells = [[Text(visible(masked(cell)), overflow="fold") for cell in row] for row in rows]
    table = Table(box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns or [""] * len(cells[0]):
        table.add_column(column, overflow="fold", header_style="bold")
    for row in cells:
        table.add_row(*row)
    console_for(file or sys.stderr).print(table)


def short_path(path: Path) -> str:
    """``path`` as a user would type it here."""
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


def mib(size: float) -> str:
    """Bytes as ``1,500 MiB``."""
    return f"{size / (1 << 20):,.0f} MiB"


class LiveLine:
    """A spinner, a description and more ``columns`` in one line that is removed at the end; nothing without a
    terminal."""

    def __init__(self, description: str, file: IO[str] | None, *columns: ProgressColumn) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn

        self._file = file or sys.stderr
        self._live = self._file.isatty()
        self._progress = Progress(
            *(SpinnerColumn(), TextColumn("{task.description}"), *columns),
            console=console_for(self._file),
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
        """Show the current activity while there is nothing to count."""
        self._progress.update(self._task, description=description)
        if not self._live:
            print(description, file=self._file, flush=True)


def bar_and_words() -> tuple[ProgressColumn, ProgressColumn]:
    from rich.progress import BarColumn, TextColumn

    return BarColumn(20), TextColumn("{task.fields[words]}")


class StartingLine(LiveLine):
    """The live line of a starting server. Use it as a context manager.

    Args:
        file: where it is shown; as a spinner on a terminal, else as a plain line for every step.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.progress import TimeElapsedColumn

        super().__init__("starting", file, TimeElapsedColumn())
