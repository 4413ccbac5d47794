"""What the data are like, as bars on the terminal and as one page of HTML that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from swift_toolkit import __version__
from swift_toolkit.dataset.verify import DataReport, FileReport, Group

BARS = 20
"""Most bars of a histogram."""


class Bar(NamedTuple):
    """A bar of a histogram: how many rows have a value from `first` to `last`, None for no upper end."""

    first: int
    last: int | None
    rows: int

    @property
    def label(self) -> str:
        if self.last is None:
            return f"{self.first:,} and more"
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}–{self.last:,}"


def bars_of(counts: Mapping[int, int], step: int = 1) -> list[Bar]:
    """At most `BARS` bars of equal width, the highest percent of the rows in a last one.

    Args:
        counts: value -> rows.
        step: the values are multiples of this, each standing for `step` values.
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
    """The value that so large a share of the rows do not exceed, e.g. 0.5 for the median."""
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
    """Median, 95 % and largest in a phrase.

    Args:
        counts: value -> rows.
        step: the values are multiples of this, each standing for `step` values, the last of which is named.
    """
    middling, high, largest = (
        value + step - 1 for value in (middle(counts, 0.5), middle(counts, 0.95), max(counts, default=0))
    )
    up_to = "" if step == 1 else "up to "
    return f"median {up_to}{middling:,}, 95 % up to {high:,}, largest {up_to}{largest:,}"


def write_report(report: DataReport, path: Path) -> None:
    """Write the report as one self-contained page.

    Args:
        report: what `verify` found.
        path: the file to write, replaced as a whole.
    """
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(page(report), encoding="utf-8")
    beside.replace(path)


def page(report: DataReport) -> str:
    """The report as HTML."""
    parts = [
        f"<h1>{_text(report.headline())}</h1>",
        f'<p class="{"good" if report.ok else "bad"}">{report.verdict().capitalize()}. '
        f"Judged for {_text(report.rules.task)}.</p>",
        _files_table(report.files),
    ]
    if report.unchecked:
        names = ", ".join(map(_text, report.unchecked))
        parts.append(f"<p>On a hub, not checked before ms-swift loads them: {names}</p>")
    if report.tokens:
        title = "Tokens per row" + ("" if report.exact_tokens else ", estimated by bytes")
        parts.append(
            _chart(
                title, summary_of(report.tokens, report.token_step), bars_of(report.tokens, report.token_step)
            )
        )
        parts.append(_chart("Messages per row", summary_of(report.turns), bars_of(report.turns)))
    parts += [_problems(group) for group in (*report.errors, *report.warnings)]
    parts.append(f"<footer>swift-toolkit {__version__}, {report.seconds:.1f} s</footer>")
    return _PAGE.format(title=_text(report.headline()), body="\n".join(parts))


def _text(value: object) -> str:
    return html.escape(str(value))


def _files_table(files: Iterable[FileReport]) -> str:
    head = ("file", "for", "format", "rows", "bad", "MB", "columns not used")
    rows = [
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
    ]
    cells = ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    names = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{names}</tr>{"".join(cells)}</table></div>'


_LINE, _LABEL, _LONGEST = 22, 130, 460  # pixels: height of a bar, room for its label, length of the longest


def _chart(title: str, summary: str, bars: list[Bar]) -> str:
    """A histogram of horizontal bars as inline SVG."""
    most = max(bar.rows for bar in bars)
    height = _LINE * len(bars) + 4
    out = []
    for at, bar in enumerate(bars):
        top = at * _LINE
        length = round(bar.rows / most * _LONGEST, 1)
        out.append(
            f'<text x="{_LABEL - 8}" y="{top + 16}" text-anchor="end">{bar.label}</text>'
            f'<rect x="{_LABEL}" y="{top + 3}" width="{length}" height="{_LINE - 5}" rx="2"/>'
            f'<text x="{_LABEL + length + 6}" y="{top + 16}">{bar.rows:,}</text>'
        )
    size = f'viewBox="0 0 {_LABEL + _LONGEST + 90} {height}"'
    drawing = f'<svg {size} role="img" aria-label="{_text(title)}">{"".join(out)}</svg>'
    return f"<h2>{_text(title)}</h2><p>{_text(summary)}</p>{drawing}"


def _problems(group: Group) -> str:
    items = "".join(f"<li>{_text(problem)}</li>" for problem in group.examples)
    more = group.count - len(group.examples)
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    kind = "bad" if group.severity == "error" else "warn"
    return f'<h2 class="{kind}">{_text(group.title)} ({group.count:,})</h2><ul>{items}</ul>{rest}'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --bar: #4a78c2; --bad: #b3261e; --warn: #8a5a00; --good: #1e7a3c; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --bar: #7aa5ea; --bad: #ff8a80; --warn: #ffc266; --good: #7ddc9b; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; }}
li {{ overflow-wrap: anywhere; }}
svg {{ width: 100%; max-width: 42rem; }}
svg text {{ font-size: 13px; fill: currentColor; }}
svg rect {{ fill: var(--bar); }}
.wide {{ overflow-x: auto; }}
.bad {{ color: var(--bad); }}
.warn {{ color: var(--warn); }}
.good {{ color: var(--good); }}
footer {{ margin-top: 3rem; opacity: .6; font-size: .85rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
