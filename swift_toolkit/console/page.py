"""One look for every HTML page: a file of its own that needs no network, light and dark, on screen and on paper.

    body = facts([("rows", "1,200")]) + section("Tokens per row", bar_chart("Tokens per row", [("0–15", 3)]))
    text = document("data/train.jsonl", body, subtitle="1,200 rows", status=("good", "No errors."))

Arguments that are plain text are escaped here; those called `body`, `content` or `html` are HTML already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from swift_toolkit import __version__

TileStatus = Literal["good", "warn", "bad"]


def head(
    title: str,
    *,
    subtitle: str = "",
    status: tuple[TileStatus, str] | None = None,
    style: str = "",
    script: bool = False,
) -> str:
    """The page down to its header, for pages that are written piece by piece; `foot` ends them.

    Args:
        title: name of the page, in its header and in the browser's tab.
        subtitle: a line below the title, e.g. a path.
        status: the verdict, and the colour it is shown in.
        style: CSS of this page alone.
        script: the page runs a script, which it hands to `foot`.
    """
    scripts = "; script-src 'unsafe-inline'" if script else ""
    below = f'<p class="path">{escape(subtitle)}</p>' if subtitle else ""
    verdict = f'<p class="status {status[0]}">{escape(status[1])}</p>' if status else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{scripts}\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1>{below}{verdict}</header>\n"
    )


def foot(note: str = "", script: str = "") -> str:
    """The end of a page.

    Args:
        note: said beside the version, e.g. "0.9 s".
        script: JavaScript of this page.
    """
    said = f"swift-toolkit {__version__}" + (f", {escape(note)}" if note else "")
    run = f"<script>{script}</script>\n" if script else ""
    return f"<footer>{said}</footer>\n</main>\n{run}</body>\n</html>\n"


def document(
    title: str,
    body: str,
    *,
    subtitle: str = "",
    status: tuple[TileStatus, str] | None = None,
    note: str = "",
    style: str = "",
) -> str:
    """A whole page; arguments as in `head` and `foot`."""
    return head(title, subtitle=subtitle, status=status, style=style) + body + foot(note)


def section(title: str, content: str, status: TileStatus | None = None) -> str:
    """A heading and what stands below it."""
    colour = f' class="{status}"' if status else ""
    return f"<section>\n<h2{colour}>{escape(title)}</h2>\n{content}\n</section>\n"


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>\n"


def table(names: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A table that scrolls by itself where the window is narrow.

    Args:
        names: headings of the columns.
        rows: the cells, one for each name.
        numbers: names of the columns that hold numbers, which stand to the right.
    """
    classes = [' class="number"' if name in numbers else "" for name in names]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(classes, names, strict=True))
    lines = (
        "<tr>"
        + "".join(f"<td{kind}>{escape(str(cell))}</td>" for kind, cell in zip(classes, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>\n'


def item_list(items: Iterable[object]) -> str:
    """Plain texts as a list."""
    return f"<ul>{''.join(f'<li>{escape(str(item))}</li>' for item in items)}</ul>"


_LINE, _LABEL, _LONGEST, _COUNT = 22, 130, 440, 80
"""Pixels: height of a bar, room for its label, length of the longest, room for its number."""


def bar_chart(title: str, bars: Sequence[tuple[str, float]], shown: Sequence[str] | None = None) -> str:
    """Horizontal bars as an SVG drawing.

    Args:
        title: read aloud in place of the drawing.
        bars: label and value of each, from top to bottom.
        shown: how the values are written; in thousands by default.
    """
    most = max((value for _, value in bars), default=0) or 1
    written = shown or [f"{value:,}" for _, value in bars]
    out = []
    for at, ((label, value), text) in enumerate(zip(bars, written, strict=True)):
        top, length = at * _LINE, round(value / most * _LONGEST, 1)
        out.append(
            f'<text x="{_LABEL - 8}" y="{top + 16}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{_LABEL}" y="{top + 3}" width="{length}" height="{_LINE - 5}" rx="2"/>'
            f'<text x="{_LABEL + length + 6}" y="{top + 16}">{escape(text)}</text>'
        )
    size = f"0 0 {_LABEL + _LONGEST + _COUNT} {_LINE * len(bars) + 4}"
    return f'<svg viewBox="{size}" role="img" aria-label="{escape(title)}">{"".join(out)}</svg>'


_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1e21; --faint: #5b6472; --line: #d9dde3; --soft: #f5f6f8;
  --bar: #3f6fc0; --other: #93a0b5; --mark: #fff0b8; --good: #1b7038; --warn: #855400; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181d; --ink: #e6e8eb; --faint: #9aa4b2; --line: #323844; --soft: #1e2229;
    --bar: #7aa5ea; --other: #66738c; --mark: #5a4a12; --good: #7ddc9b; --warn: #ffc266; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: auto; padding: 1.5rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: .8rem; margin-bottom: 1.2rem; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; margin: 2rem 0 .4rem; } h2::first-letter { text-transform: uppercase; }
p { margin: .4rem 0; }
.path, dt, th, footer { color: var(--faint); }
.path { overflow-wrap: anywhere; }
.status { font-weight: 600; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: .85rem; }
td, th { text-align: left; padding: .3rem 1.2rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
.number { text-align: right; }
ul { padding-left: 1.2rem; } li { overflow-wrap: anywhere; margin: .15rem 0; }
svg { width: 100%; max-width: 42rem; display: block; }
svg text { font-size: 13px; fill: currentColor; } svg rect { fill: var(--bar); }
footer { margin-top: 3rem; font-size: .85rem; }
@media print {
  :root { color-scheme: light; --ground: #fff; --ink: #000; --faint: #444; --line: #bbb; --soft: #fff; --bar: #3f6fc0;
    --other: #93a0b5; --mark: #fff0b8; --good: #1b7038; --warn: #855400; --bad: #b3261e; }
  body { font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .wide { overflow: visible; }
  h2 { break-after: avoid; } svg, tr, li, figure, article { break-inside: avoid; }
}
"""
