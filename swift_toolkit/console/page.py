"""The parts of every HTML page: one file without network access, in light and dark, on screen and on paper.

    body = facts([("rows", "1,200")]) + section("Tokens per row", bar_chart("Tokens per row", [("0–15", 3)]))
    text = document("data/train.jsonl", body, subtitle="1,200 rows", status=("good", "No errors."))

Plain text is escaped here; arguments named `body`, `content` or `html` must be HTML.

Curves are drawn by uPlot (https://github.com/leeoniya/uPlot, MIT licence, 51 KB, inlined): hovering, zooming and a
shared cursor would double the code in SVG, and long curves stay smooth on a canvas. Bars are SVG.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
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
    charts: bool = False,
    refresh: int = 0,
) -> str:
    """The page up to its header, for pages that are written piece by piece; `foot` ends them.

    Args:
        title: name of the page, in its header and in the browser's tab.
        subtitle: a line below the title, e.g. a path.
        status: the verdict, and its colour.
        style: CSS of this page only.
        script: whether the page runs a script, which is passed to `foot`.
        charts: whether the page has charts made by `line_chart`; `foot` must get the same value.
        refresh: seconds after which the browser reloads the page; 0 for never.
    """
    scripts = "; script-src 'unsafe-inline'" if script or charts else ""
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    style = (_asset("uPlot.min.css") if charts else "") + style
    below = f'<p class="path">{escape(subtitle)}</p>' if subtitle else ""
    verdict = f'<p class="status {status[0]}">{escape(status[1])}</p>' if status else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{scripts}\">\n"
        f"{again}<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1>{below}{verdict}</header>\n"
    )


def foot(note: str = "", script: str = "", charts: bool = False) -> str:
    """The end of a page.

    Args:
        note: shown after the version, e.g. "0.9 s".
        script: JavaScript of this page.
        charts: whether the page has charts made by `line_chart`.
    """
    said = f"swift-toolkit {__version__}" + (f", {escape(note)}" if note else "")
    if charts:
        script = (
            f"/*\n{_asset('uPlot.LICENSE')}*/\n{_asset('uPlot.iife.min.js')}\n{_asset('charts.js')}{script}"
        )
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
    charts: bool = False,
    refresh: int = 0,
) -> str:
    """A complete page; for the arguments see `head` and `foot`."""
    top = head(title, subtitle=subtitle, status=status, style=style, charts=charts, refresh=refresh)
    return top + body + foot(note, charts=charts)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def section(title: str, content: str, status: TileStatus | None = None) -> str:
    """A heading and its content."""
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
    """A table that scrolls on its own if the window is narrow.

    Args:
        names: headings of the columns.
        rows: the cells, one per name.
        numbers: names of the columns that hold numbers, which are right-aligned.
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


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """The most important figures in large type: a name, a value and a note for each."""
    boxes = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in figures
    )
    return f'<div class="tiles">{"".join(boxes)}</div>\n'


def command(words: str) -> str:
    """A command to copy."""
    return f"<pre>{escape(words)}</pre>"


def folded(title: str, content: str) -> str:
    """Content that is shown after a click; on paper it is always shown."""
    return f"<details><summary>{escape(title)}</summary>\n{content}</details>\n"


# --- charts -------------------------------------------------------------------------------------------------

MOST_POINTS = 1_200
"""Largest number of points of a curve in a page; of longer curves, the minima and maxima of stretches are kept."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        label: its name in the legend.
        points: step -> value; values that are not finite leave a gap.
        dashed: drawn dashed, to distinguish it from another line of the same colour.
        color: the number of its colour, counted from 0; there are six.
    """

    label: str
    points: Mapping[int, float]
    dashed: bool = False
    color: int = 0


def line_chart(title: str, curves: Sequence[Curve], unit: str = "", from_zero: bool = False) -> str:
    """Curves over the steps of a run, with hovering and zooming; "" if there are no points.

    Args:
        title: heading of the chart.
        curves: the curves.
        unit: unit of the values, e.g. "GiB".
        from_zero: whether the axis of the values starts at 0.
    """
    curves = [replace(one, points=_thinned(one.points)) for one in curves if one.points]
    steps = sorted({step for one in curves for step in one.points})
    if not steps:
        return ""
    series = [
        {
            "label": one.label,
            "dashed": one.dashed,
            "color": one.color % 6 + 1,
            "values": [_number(one.points.get(step)) for step in steps],
        }
        for one in curves
    ]
    spec = {"x": steps, "series": series, "unit": unit, "zero": from_zero}
    data = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    drawn = f'<div class="plot"><script type="application/json">{data}</script></div>'
    named = f"{title}, {unit}" if unit else title
    return figure(named, drawn)


def figure(title: str, content: str) -> str:
    """A heading and a drawing, for a `chart_grid`."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{content}</figure>\n"


def chart_grid(charts: Iterable[str]) -> str:
    """Charts side by side, as many as fit in the window."""
    return f'<div class="charts">{"".join(charts)}</div>\n'


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _thinned(points: Mapping[int, float]) -> Mapping[int, float]:
    """At most `MOST_POINTS` points: the minimum and maximum of each stretch of steps and, at the end, the last
    point."""
    if len(points) <= MOST_POINTS:
        return points
    steps, stretch = sorted(points), -(-2 * len(points) // MOST_POINTS)
    kept = {steps[-1]}
    for at in range(0, len(steps), stretch):
        part = steps[at : at + stretch]
        kept |= {min(part, key=points.__getitem__), max(part, key=points.__getitem__)}
    return {step: points[step] for step in sorted(kept)}


def item_list(items: Iterable[object]) -> str:
    """Plain strings as a list."""
    return f"<ul>{''.join(f'<li>{escape(str(item))}</li>' for item in items)}</ul>"


_LINE, _LABEL, _LONGEST, _COUNT = 22, 130, 440, 80
"""In pixels: height of a bar, width of its label, length of the longest bar, width of its number."""


def bar_chart(title: str, bars: Sequence[tuple[str, float]], shown: Sequence[str] | None = None) -> str:
    """Horizontal bars as an SVG drawing.

    Args:
        title: read aloud by screen readers.
        bars: label and value of each, from top to bottom.
        shown: formats a value; by default with thousands separators.
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
:root { color-scheme: light dark; --ground: #fbfbfc; --card: #fff; --ink: #1a1d21; --faint: #5b6472; --line: #e1e4ea;
  --soft: #f2f4f7; --bar: #3867c4; --other: #93a0b5; --mark: #fff0b8; --good: #1b7038; --warn: #855400; --bad: #b3261e;
  --c1: #3867c4; --c2: #d9631e; --c3: #1f8a5b; --c4: #8a4fbf; --c5: #c23b6b; --c6: #7a6a1c; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121419; --card: #191c22; --ink: #e8eaed; --faint: #9aa4b2; --line: #2d333d; --soft: #22262e;
    --bar: #7aa5ea; --other: #66738c; --mark: #5a4a12; --good: #7ddc9b; --warn: #ffc266; --bad: #ff8a80;
    --c1: #7aa5ea; --c2: #f29a5c; --c3: #5fcf9b; --c4: #bf94ec; --c5: #ef85aa; --c6: #d3c063; } }
:root[data-print] { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #ccc;
  --c1: #3867c4; --c2: #d9631e; --c3: #1f8a5b; --c4: #8a4fbf; --c5: #c23b6b; --c6: #7a6a1c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: auto; padding: 1.6rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: .9rem; margin-bottom: 1.3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; letter-spacing: -.01em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; margin: 2.2rem 0 .5rem; } h2::first-letter { text-transform: uppercase; }
p { margin: .4rem 0; }
.path, dt, th, footer, figcaption, .tile span, .tile small { color: var(--faint); }
.path { overflow-wrap: anywhere; }
.status { font-weight: 600; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: .85rem; }
td, th { text-align: left; padding: .35rem 1.2rem .35rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; } .number { text-align: right; }
ul { padding-left: 1.2rem; } li { overflow-wrap: anywhere; margin: .15rem 0; }
pre { background: var(--soft); border-radius: 6px; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile span, .tile b, .tile small { display: block; } .tile small { font-size: .8rem; min-height: 1.2em; }
.tile b { font-size: 1.35rem; line-height: 1.35; font-weight: 650; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1rem;
  margin: 1.4rem 0; }
figure { margin: 0; min-width: 0; }
.charts figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }
.u-legend td, .u-legend th { border: 0; padding: .1rem .3rem; }
.plot { min-height: 248px; } .uplot { font: inherit; } .u-legend { font-size: 12.5px; }
.u-select { background: color-mix(in srgb, var(--c1) 18%, transparent); }
.u-hz .u-cursor-x, .u-hz .u-cursor-y { border-color: var(--faint); }
svg { width: 100%; max-width: 42rem; display: block; }
svg text { font-size: 13px; fill: currentColor; } svg rect { fill: var(--bar); }
footer { margin-top: 3rem; font-size: .85rem; }
@media (max-width: 40rem) { main { padding: 1rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #bbb; --soft: #fff;
    --bar: #3867c4; --other: #93a0b5; --mark: #fff0b8; --good: #1b7038; --warn: #855400; --bad: #b3261e; }
  body { font-size: 11px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .wide { overflow: visible; }
  .charts { grid-template-columns: 1fr 1fr; } .plot { min-height: 0; }
  .plot .uplot, .plot .u-wrap { width: 100% !important; height: auto !important; }
  .plot canvas { height: auto !important; } .plot .u-over, .plot .u-under { display: none; }
  details::details-content { content-visibility: visible; height: auto; }
  h2 { break-after: avoid; } svg, tr, li, figure, article, .tile { break-inside: avoid; }
}
"""
