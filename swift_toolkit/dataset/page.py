"""Overview of the data, as bars on the terminal and as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from swift_toolkit.console.page import (
    TileStatus,
    bar_chart,
    chart_grid,
    document,
    figure,
    item_list,
    paragraph,
    section,
    table,
    tiles,
)
from swift_toolkit.dataset.report import DataReport, FileReport, Group
from swift_toolkit.machine.files import whole_file

BARS = 20
"""Maximum number of bars of a histogram."""


class Bar(NamedTuple):
    """A bar of a histogram: the number of rows with a value from `first` to `last`; None for no upper limit."""

    first: int
    last: int | None
    rows: int

    @property
    def label(self) -> str:
        if self.last is None:
            return f"{self.first:,} and more"
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}–{self.last:,}"


def bars_of(counts: Mapping[int, int], step: int = 1) -> list[Bar]:
    """At most `BARS` bars of equal width, with the top 1% of the rows in a last bar.

    Args:
        counts: value -> rows.
        step: the values are multiples of this, and each stands for `step` values.
    """
    if not counts:
        return []
    low, high = min(counts), middle(counts, 0.99)
    width = step * next(n for n in _round_numbers() if high // (step * n) - low // (step * n) < BARS)
    first, last = low // width, high // width
    rows = [0] * (last - first + 2)
    for value, count in counts.items():
        rows[min(value // width, last + 1) - first] += count
    bars = [
        Bar((first + at) * width, (first + at + 1) * width - 1, count) for at, count in enumerate(rows[:-1])
    ]
    return [*bars, Bar((last + 1) * width, None, rows[-1])] if rows[-1] else bars


def _round_numbers() -> Iterable[int]:
    """1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def middle(counts: Mapping[int, int], share: float) -> int:
    """The value that the given share of the rows does not exceed, e.g. 0.5 for the median."""
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts, default=0)


def histogram_lines(report: DataReport, width: int = 40) -> list[str]:
    """Tokens per row as bars of text.

    Args:
        report: what was found.
        width: characters of the longest bar.
    """
    bars = bars_of(report.tokens, report.token_step)
    if not bars:
        return []
    label = max(len(bar.label) for bar in bars)
    most = max(bar.rows for bar in bars)
    out = [
        f"tokens per row{'' if report.exact_tokens else ' (estimated)'}: {summary_of(report.tokens, report.token_step)}"
    ]
    for bar in bars:
        length = -(-bar.rows * width // most)
        out.append(f"{bar.label:>{label}}  {'█' * length}{' ' if length else ''}{bar.rows:,}")
    return out


def summary_of(counts: Mapping[int, int], step: int = 1) -> str:
    """Median, 95th percentile and maximum as a phrase.

    Args:
        counts: value -> rows.
        step: the values are multiples of this, and each stands for `step` values, of which the last is shown.
    """
    middling, high, largest = (
        value + step - 1 for value in (middle(counts, 0.5), middle(counts, 0.95), max(counts, default=0))
    )
    up_to = "" if step == 1 else "up to "
    return f"median {up_to}{middling:,}, 95% up to {high:,}, largest {up_to}{largest:,}"


def write_report(report: DataReport, path: Path) -> None:
    """Write the report as a self-contained HTML page.

    Args:
        report: what `verify` found.
        path: the file to write or replace.
    """
    with whole_file(path) as out:
        out.write(page(report).encode())


def page(report: DataReport) -> str:
    """The report as HTML."""
    verdict = f"{report.verdict().capitalize()}. Checked for {report.rules.task.name}."
    status: TileStatus = "bad" if report.errors else "warn" if report.warnings else "good"
    body = tiles(_tiles(report)) + _files_table(report.files) + "".join(_sections(report))
    return document(report.headline(), body, status=(status, verdict), note=f"{report.seconds:.1f} s")


def _sections(report: DataReport) -> Iterator[str]:
    if report.unchecked:
        yield paragraph(f"On a hub, not checked before ms-swift loads them: {', '.join(report.unchecked)}")
    for group in (*report.errors, *report.warnings):
        yield _problems(group)
    if report.tokens:
        yield chart_grid(_charts(report))


def _tiles(report: DataReport) -> Iterator[tuple[str, str, str]]:
    about = "" if report.complete else "about "
    for title, split, rows in (
        ("Training", "train", report.train_rows),
        ("Validation", "val", report.val_rows),
    ):
        files = [file for file in report.files if file.split == split]
        if files:
            bad = sum(file.bad for file in files)
            count = "unknown" if rows is None else f"{about}{rows:,}"
            yield f"{title} rows", count, f"{bad:,} bad" if bad else "all good"
    if report.tokens:
        half, most = middle(report.tokens, 0.5), max(report.tokens)
        estimated = "" if report.exact_tokens else ", estimated"
        yield "Tokens per row", f"{half + report.token_step - 1:,}", f"median{estimated}"
        yield "Longest row", f"{most + report.token_step - 1:,}", f"tokens{estimated}"


def _charts(report: DataReport) -> Iterator[str]:
    title = "Tokens per row" + ("" if report.exact_tokens else " (estimated)")
    yield _chart(title, report.tokens, report.token_step)
    yield _chart("Messages per row", report.turns)
    if report.learned:
        read = report.learned.tokens - report.learned.learned
        bars = bar_chart("What is learned", [("learned", report.learned.learned), ("read only", read)])
        yield figure("What is learned", paragraph(f"{report.learned}.") + bars)


_COLUMNS = ("file", "for", "format", "rows", "bad", "MB", "columns not used")


def _files_table(files: Iterable[FileReport]) -> str:
    rows = (
        (
            file.path,
            "training" if file.split == "train" else "validation",
            file.format or "no known format",
            f"{'' if file.complete else 'about '}{file.rows:,}",
            f"{file.bad:,}" if file.bad else "",
            f"{file.bytes / 1e6:,.1f}",
            ", ".join(file.unused),
        )
        for file in files
    )
    return table(_COLUMNS, rows, numbers=("rows", "bad", "MB"))


def _chart(title: str, counts: Mapping[int, int], step: int = 1) -> str:
    """A histogram of rows."""
    bars = [(bar.label, bar.rows) for bar in bars_of(counts, step)]
    return figure(title, paragraph(summary_of(counts, step)) + bar_chart(title, bars))


def _problems(group: Group) -> str:
    more = group.count - len(group.examples)
    rest = paragraph(f"and {more:,} more") if more > 0 else ""
    status: TileStatus = "bad" if group.severity == "error" else "warn"
    return section(f"{group.title} ({group.count:,})", item_list(group.examples) + rest, status)
