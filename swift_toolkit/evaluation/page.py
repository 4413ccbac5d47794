"""Reports of finished answers: a page (HTML, one file, no network) or a table (Markdown)."""

from __future__ import annotations

import difflib
import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path

from swift_toolkit.console import page
from swift_toolkit.console.screen import visible
from swift_toolkit.evaluation.answers import read_results
from swift_toolkit.evaluation.results import Figures, Meta, Result, Scores, SideResult, shown_answer, side_of
from swift_toolkit.evaluation.scores import METRICS
from swift_toolkit.evaluation.summary import score_table
from swift_toolkit.inference.exchange import Side
from swift_toolkit.machine.files import whole_text

SHOWN = 2_000
"""Most results in a report; browsers are slow with more, and the answers file contains all."""

DIFFED_WORDS = 2_000
"""Most words of an answer in which differences are marked; finding them takes quadratic time."""

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+|\s+|.", re.DOTALL)


def write_answers(answers: Path, report: Path) -> None:
    """Write ``report`` atomically from a finished answers file.

    Args:
        answers: the answers file.
        report: an ``.html`` or ``.md`` file.
    """
    make = _html if report.suffix == ".html" else _markdown
    report.parent.mkdir(parents=True, exist_ok=True)
    with whole_text(report) as file:
        file.writelines(make(answers))


# --- Markdown -----------------------------------------------------------------------------------------------


def _markdown(answers: Path) -> Iterator[str]:
    meta, summary, results = read_results(answers)
    yield f"# Answers of {_cell(meta['checkpoint'])}\n\n"
    yield from _markdown_table(["", ""], _facts(meta, summary))
    if summary["scores"]:
        yield "\n## Scores\n\n"
        yield from _markdown_table(*score_table(summary["scores"]))
    yield "\n## Answers\n\n"
    sides = _sides(meta)
    yield from _markdown_table(
        ["id", "question", "reference", *sides],
        (
            [
                result["id"],
                result["question"],
                result["reference"] or "",
                *(shown_answer(side_of(result, side)) for side in sides),
            ]
            for result in islice(results, SHOWN)
        ),
    )
    yield _left_out(summary["asked"], answers)


def _markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |\n|{' --- |' * len(heading)}\n"
    for row in rows:
        yield f"| {' | '.join(_cell(text) for text in row)} |\n"


_MARKUP = re.compile(
    r"([\\`*_\[\]|])"
)  # characters that Markdown reads as emphasis, code, links, images, columns


def _cell(text: str) -> str:
    """Escape Markdown and HTML in a text, so that an answer cannot create links or images."""
    return _MARKUP.sub(r"\\\1", escape(visible(text), quote=False)).replace("\n", "<br>")


# --- content of both formats --------------------------------------------------------------------------------


def _facts(meta: Meta, summary: Figures) -> list[tuple[str, str]]:
    generation = ", ".join(f"{name} {value}" for name, value in meta["generation"].items())
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    facts = [
        ("base", meta["base"]),
        ("trained as", meta["train_type"]),
        ("backend", f"{meta['backend']} on {meta['device']}, {meta['dtype']}"),
        ("template", meta["template"]),
        ("system prompt", meta["system"]),
        ("generation", generation),
        ("versions", versions),
        ("questions", f"{summary['asked']} from {meta['questions']}, {summary['failed']} failed"),
        ("speed", f"{summary['tokens_out']} tokens, {summary['tokens_per_second']} tokens/s"),
        ("latency", f"{summary['latency_p50']} s (p95 {summary['latency_p95']} s)"),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _sides(meta: Meta) -> list[Side]:
    """The sides that were asked, from left to right."""
    return [side for side in _SIDES if side in meta["sides"]]


def _left_out(count: int, answers: Path) -> str:
    return f"\nThe other {count - SHOWN} answers are in {answers}.\n" if count > SHOWN else ""


# --- HTML ---------------------------------------------------------------------------------------------------


def _html(answers: Path) -> Iterator[str]:
    meta, summary, results = read_results(answers)
    sides = _sides(meta)
    latencies: dict[Side, array[float]] = {side: array("d") for side in sides}
    categories: dict[str, None] = {}
    for result in results:
        categories[result["category"] or ""] = None
        for side in sides:
            if side_of(result, side).get("error") is None:
                latencies[side].append(side_of(result, side)["seconds"])
    title = f"Answers of {Path(meta['checkpoint']).name}"
    yield page.head(title, subtitle=str(meta["checkpoint"]), style=_STYLE, script=True)
    yield page.tiles(_tiles(summary))
    yield page.facts(_facts(meta, summary))
    yield f'<div class="charts">{_score_charts(summary["scores"])}{_latency_chart(latencies)}</div>'
    yield _filter(categories) + "".join(f' <i class="key {side}"></i> {side}' for side in sides)
    for result in islice(read_results(answers)[2], SHOWN):
        yield _article(result, sides)
    yield page.paragraph(_left_out(summary["asked"], answers).strip()) + page.foot(script=_SCRIPT)


def _tiles(summary: Figures) -> Iterator[tuple[str, str, str]]:
    failed = summary["failed"]
    yield "Questions", f"{summary['asked']:,}", f"{failed:,} failed" if failed else "all answered"
    of_all = (summary["scores"] or {}).get("all") or {}
    for metric, value in (of_all.get("tuned") or {}).items():
        before = (of_all.get("base") or {}).get(metric)
        yield METRICS[metric], f"{value:.1f}", "of 100" if before is None else f"base {before:.1f}"
    yield "Latency", f"{summary['latency_p50']} s", f"95% within {summary['latency_p95']} s"
    yield "Speed", f"{summary['tokens_per_second']:,}", "tokens per second"


def _filter(categories: Iterable[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in categories if name)
    return f'<label>Category <select id="category"><option value="">all</option>{options}</select></label>'


_SIDES: tuple[Side, ...] = ("base", "tuned")


def _score_charts(scores: Scores) -> str:
    """One chart per metric, with a bar from 0 to 100 for each category and side."""
    return "".join(
        _figure(METRICS[metric], f"<table>{''.join(_score_rows(scores, metric))}</table>")
        for metric in (scores["all"]["tuned"] if scores else ())
    )


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{content}</figure>"


def _score_rows(scores: Scores, metric: str) -> Iterator[str]:
    for category, of in scores.items():
        yield f'<tr><th colspan="2">{escape(category)} ({of["count"]})</th></tr>'
        for side in _SIDES:
            if side in of:
                value = f"{of[side][metric]:.1f}"
                bar = f'<i class="{side}" style="width:{value}%"></i>'
                yield f'<tr><td class="bar" title="{side}">{bar}</td><td>{value}</td></tr>'


DOTS = 400
"""Most answers of a side in the latency chart, chosen evenly from all of them."""


def _latency_chart(latencies: Mapping[Side, Sequence[float]]) -> str:
    """A dot for each answer and a line at the median, over an axis in seconds; one row per side."""
    ticks = _ticks(max((value for values in latencies.values() for value in values), default=0.0))
    rows = "".join(
        _latency_row(side, sorted(values), ticks) for side, values in latencies.items() if len(values)
    )
    axis = "".join(f'<span style="left:{tick / ticks[-1]:.2%}">{tick:g} s</span>' for tick in ticks)
    drawing = f'{rows}<div class="strip axis"><b></b><div>{axis}</div><small></small></div>'
    return f'<figure class="latency"><figcaption>seconds per answer</figcaption>{drawing}</figure>'


def _latency_row(side: str, values: Sequence[float], ticks: Sequence[float]) -> str:
    shown = values[:: -(-len(values) // DOTS)]
    dots = "".join(
        f'<i class="{side}" style="left:{value / ticks[-1]:.2%}" title="{value:.2f} s"></i>'
        for value in shown
    )
    lines = "".join(f'<s style="left:{tick / ticks[-1]:.2%}"></s>' for tick in ticks)
    middle = values[(len(values) - 1) // 2]
    median = f'<u style="left:{middle / ticks[-1]:.2%}" title="median {middle:.2f} s"></u>'
    return f'<div class="strip"><b>{side}</b><div>{lines}{dots}{median}</div><small>median {middle:.2f} s</small></div>'


def _ticks(longest: float) -> list[float]:
    """Round numbers from 0 to at least ``longest``, four to six of them."""
    step = 10.0 ** math.floor(math.log10(longest / 5)) if longest > 0 else 0.2
    step *= next((factor for factor in (1, 2, 5) if longest / (step * factor) <= 5), 10)
    return [round(step * number, 9) for number in range(math.ceil(longest / step) + 1 if longest else 6)]


def _article(result: Result, sides: Sequence[Side]) -> str:
    category = escape(result["category"] or "")
    heading = f"{escape(result['id'])} " + (f'<span class="tag">{category}</span>' if category else "")
    question = f'<p class="question">{escape(result["question"])}</p>'
    if result["reference"]:
        question += f'<p class="reference"><b>reference</b> {escape(result["reference"])}</p>'
    marked = _marked(result, sides)
    columns = "".join(_column(side, marked[side], side_of(result, side)) for side in sides)
    return (
        f'<article data-category="{category}"><h2>{heading}</h2>{_history(result)}{question}'
        f'<div class="columns">{columns}</div></article>'
    )


def _history(result: Result) -> str:
    """The messages before the question, collapsed."""
    turns = result.get("messages", [])[:-1]
    said = "".join(f"<p><b>{escape(turn['role'])}</b> {_text(turn['content'])}</p>" for turn in turns)
    return f"<details><summary>before</summary>{said}</details>" if said else ""


def _text(content: object) -> str:
    return escape(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))


def _marked(result: Result, sides: Sequence[Side]) -> dict[Side, str]:
    """The answers as HTML, with marks where the two differ, or where a single one differs from the reference."""
    tuned = shown_answer(result)
    if len(sides) == 2:
        left, right = mark_differences(shown_answer(result["base"]), tuned)
        return {"base": left, "tuned": right}
    return {
        "tuned": mark_differences(result["reference"], tuned)[1] if result["reference"] else escape(tuned)
    }


def _column(side: str, marked: str, answer: SideResult) -> str:
    figures = [
        f"{answer['completion_tokens']} tokens",
        f"{answer['seconds']} s",
        str(answer["finish_reason"] or ""),
    ]
    figures += [f"{METRICS[name]} {value:.0f}" for name, value in answer.get("scores", {}).items()]
    failed = " failed" if answer.get("error") is not None else ""
    footer = f"<small>{' · '.join(part for part in figures if part)}</small>"
    return (
        f'<section class="{side}"><h3>{side}</h3><div class="answer{failed}">{marked}</div>{footer}</section>'
    )


def mark_differences(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, with ``<mark>`` around the words that differ."""
    words = [_WORD.findall(text) for text in (left, right)]
    if max(map(len, words)) > DIFFED_WORDS:
        return escape(left), escape(right)
    parts: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    for kind, *ends in matcher.get_opcodes():
        for index in (0, 1):
            text = escape("".join(words[index][ends[2 * index] : ends[2 * index + 1]]))
            parts[index].append(f"<mark>{text}</mark>" if kind != "equal" and text.strip() else text)
    return "".join(parts[0]), "".join(parts[1])


_STYLE = """
:root { --base: var(--other); --tuned: var(--bar); }
h3 { font-size: .8rem; margin: 0; color: var(--faint); } small, .reference { color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; }
figure table { width: 100%; border-collapse: separate; border-spacing: 0 1px; }
figure td, figure th { border: 0; padding: 0; font-weight: 400; }
figure td { font-size: .75rem; line-height: 1rem; text-align: right; vertical-align: middle; width: 2.5rem; }
figure td.bar { width: auto; }
.bar i { display: block; height: .7rem; min-width: 1px; border-radius: 2px; }
i.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-left: 1rem; }
i.base { background: var(--base); } i.tuned { background: var(--tuned); }
.charts .latency { grid-column: 1 / -1; }
.strip { display: grid; grid-template-columns: 3.5rem 1fr 7rem; align-items: center; gap: .6rem; font-size: .85rem; }
.strip > b { font-weight: 400; text-align: right; color: var(--faint); }
.strip > div { position: relative; height: 2rem; } .strip.axis > div { height: 1.4rem; }
.strip i, .strip s, .strip u, .strip span { position: absolute; }
.strip i { width: .6rem; height: .6rem; margin: .7rem -.3rem; border-radius: 50%; opacity: .6; }
.strip s { top: 0; bottom: 0; border-left: 1px solid var(--line); }
.strip u { top: .3rem; bottom: .3rem; border-left: 2px solid var(--ink); }
.strip span { transform: translateX(-50%); color: var(--faint); font-size: .75rem; white-space: nowrap; }
@media (max-width: 40rem) { .strip { grid-template-columns: 2.6rem 1fr; } .strip small { display: none; }
  .strip span:nth-child(even) { display: none; } }
select { font: inherit; }
article { border-top: 1px solid var(--line); padding: 1rem 0; } article h2 { font-size: 1rem; margin: 0; }
.tag { font-weight: 400; font-size: .75rem; border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem; }
.question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.reference { white-space: pre-wrap; margin: .3rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
section { border-left: 3px solid var(--base); padding-left: .8rem; min-width: 0; }
section.tuned { border-color: var(--tuned); }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; } .failed { color: var(--bad); }
mark { background: var(--mark); color: inherit; border-radius: 2px; }
"""

_SCRIPT = """
const select = document.getElementById("category");
select.onchange = () => document.querySelectorAll("article").forEach(
  (article) => { article.hidden = select.value !== "" && article.dataset.category !== select.value; });
"""
