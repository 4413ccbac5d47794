"""Finished answers as a page to look at (HTML, one file, no network) or as a table (Markdown)."""

from __future__ import annotations

import difflib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from swift_toolkit.evaluation.answers import read_results
from swift_toolkit.evaluation.scores import METRICS
from swift_toolkit.evaluation.summary import score_table
from swift_toolkit.machine.files import whole_text

SHOWN = 2_000
"""How many results a report holds; a browser is slow with more, and all are in the answers file."""

DIFFED_WORDS = 2_000
"""Longest answer whose differences are marked; finding them takes quadratic time."""

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+|\s+|.", re.DOTALL)


def write_report(answers: Path, report: Path) -> None:
    """Make ``report``, whole or not at all, from a finished answers file.

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
                *(_told(result, side) for side in sides),
            ]
            for result in islice(results, SHOWN)
        ),
    )
    yield _left_out(summary["asked"], answers)


def _markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |\n|{' --- |' * len(heading)}\n"
    for row in rows:
        yield f"| {' | '.join(_cell(text) for text in row)} |\n"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")


# --- what both say ------------------------------------------------------------------------------------------


def _facts(meta: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
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


def _sides(meta: Mapping[str, Any]) -> list[str]:
    """Who was asked, from left to right."""
    return ["base", "tuned"] if "base" in meta["sides"] else ["tuned"]


def _side(result: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    told: Mapping[str, Any] = result["base"] if side == "base" else result
    return told


def _told(result: Mapping[str, Any], side: str) -> str:
    told = _side(result, side)
    return f"failed: {told['error']}" if told.get("error") is not None else str(told["answer"])


def _left_out(count: int, answers: Path) -> str:
    return f"\nThe other {count - SHOWN} answers are in {answers}.\n" if count > SHOWN else ""


# --- HTML ---------------------------------------------------------------------------------------------------


def _html(answers: Path) -> Iterator[str]:
    meta, summary, results = read_results(answers)
    sides = _sides(meta)
    latencies: dict[str, array[float]] = {side: array("d") for side in sides}
    categories: dict[str, None] = {}
    for result in results:
        categories[result["category"] or ""] = None
        for side in sides:
            if _side(result, side).get("error") is None:
                latencies[side].append(_side(result, side)["seconds"])
    title = f"Answers of {Path(meta['checkpoint']).name}"
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(meta, summary)
    )
    yield _HEAD.replace("TITLE", escape(title))
    yield f"<h1>{escape(title)}</h1><p class=path>{escape(meta['checkpoint'])}</p><dl>{facts}</dl>"
    yield f"<div class=charts>{_score_charts(summary['scores'])}{_latency_chart(latencies)}</div>"
    yield _filter(categories) + "".join(f" <i class='key {side}'></i> {side}" for side in sides)
    for result in islice(read_results(answers)[2], SHOWN):
        yield _article(result, sides)
    yield f"<p>{escape(_left_out(summary['asked'], answers))}</p></main><script>{_SCRIPT}</script></html>\n"


def _filter(categories: Iterable[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in categories if name)
    return f"<label>Category <select id=category><option value=''>all</option>{options}</select></label>"


def _score_charts(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One chart for each metric: a bar for each category and side, from 0 to 100."""
    return "".join(
        _figure(METRICS[metric], f"<table>{''.join(_score_rows(scores, metric))}</table>")
        for metric in (scores["all"]["tuned"] if scores else ())
    )


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{content}</figure>"


def _score_rows(scores: Mapping[str, Mapping[str, Any]], metric: str) -> Iterator[str]:
    for category, of in scores.items():
        yield f"<tr><th colspan=2>{escape(category)} ({of['count']})</th></tr>"
        for side in ("base", "tuned"):
            if side in of:
                value = f"{of[side][metric]:.1f}"
                bar = f"<i class={side} style='width:{value}%'></i>"
                yield f"<tr><td class=bar title={side}>{bar}</td><td>{value}</td></tr>"


def _latency_chart(latencies: Mapping[str, Sequence[float]], bins: int = 24) -> str:
    """A histogram of the seconds per answer, the sides in front of each other."""
    longest = max((value for values in latencies.values() for value in values), default=0.0) or 1.0
    counts = {side: [0] * bins for side in latencies}
    for side, values in latencies.items():
        for value in values:
            counts[side][min(int(value / longest * bins), bins - 1)] += 1
    highest = max(max(of) for of in counts.values()) or 1
    bars = []
    for side, of in counts.items():
        for index, count in enumerate(of):
            height = 100 * count / highest
            said = f"{side}: {count} answers up to {longest * (index + 1) / bins:.2f} s"
            place = f"x={index * 20} y={100 - height:.1f} width=19 height={height:.1f}"
            bars.append(f"<rect class={side} {place}><title>{said}</title></rect>")
    width = bins * 20
    axis = f"<text x=0 y=116>0</text><text x={width} y=116 text-anchor=end>{longest:.2f} s</text>"
    chart = f"<svg viewBox='0 0 {width} 120' role=img>{''.join(bars)}{axis}</svg>"
    return _figure("latency, seconds per answer", chart)


def _article(result: Mapping[str, Any], sides: Sequence[str]) -> str:
    category = escape(result["category"] or "")
    heading = f"{escape(result['id'])} " + (f"<span class=tag>{category}</span>" if category else "")
    question = f"<p class=question>{escape(result['question'])}</p>"
    if result["reference"]:
        question += f"<p class=reference><b>reference</b> {escape(result['reference'])}</p>"
    marked = _marked(result, sides)
    columns = "".join(_column(side, marked[side], _side(result, side)) for side in sides)
    return (
        f'<article data-category="{category}"><h2>{heading}</h2>{_history(result)}{question}'
        f"<div class=columns>{columns}</div></article>"
    )


def _history(result: Mapping[str, Any]) -> str:
    """What came before the question, folded away."""
    turns = result.get("messages", [])[:-1]
    said = "".join(f"<p><b>{escape(turn['role'])}</b> {_text(turn['content'])}</p>" for turn in turns)
    return f"<details><summary>before</summary>{said}</details>" if said else ""


def _text(content: Any) -> str:
    return escape(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))


def _marked(result: Mapping[str, Any], sides: Sequence[str]) -> dict[str, str]:
    """The answers as HTML: marked where the two differ, or where the only one differs from the reference."""
    tuned = _told(result, "tuned")
    if len(sides) == 2:
        return dict(zip(sides, mark_differences(_told(result, "base"), tuned), strict=True))
    return {
        "tuned": mark_differences(result["reference"], tuned)[1] if result["reference"] else escape(tuned)
    }


def _column(side: str, marked: str, told: Mapping[str, Any]) -> str:
    figures = [
        f"{told['completion_tokens']} tokens",
        f"{told['seconds']} s",
        str(told["finish_reason"] or ""),
    ]
    figures += [f"{METRICS[name]} {value:.0f}" for name, value in told.get("scores", {}).items()]
    failed = " failed" if told.get("error") is not None else ""
    footer = f"<small>{' · '.join(part for part in figures if part)}</small>"
    return (
        f"<section class={side}><h3>{side}</h3><div class='answer{failed}'>{marked}</div>{footer}</section>"
    )


def mark_differences(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, with ``<mark>`` around the words that the other does not have in that place."""
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


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>TITLE</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --ground: light-dark(#fff, #16181d); --ink: light-dark(#1c1e21, #e6e6e6);
  --faint: light-dark(#667, #99a); --line: light-dark(#dde, #334); --base: light-dark(#9aa5b8, #64708a);
  --tuned: light-dark(#2f6fde, #6ea3ff); --mark: light-dark(#fff0b8, #5a4a12); }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1rem; margin: 0; } h3 { font-size: .8rem; margin: 0; }
.path, small, h3, dt, .reference { color: var(--faint); } .path { margin-top: 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem; margin: 1.5rem 0; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; }
figure table { width: 100%; border-spacing: 0 1px; } figure th { text-align: left; font-weight: 400;
font-size: .85rem; } td { font-size: .75rem; text-align: right; width: 2.5rem; } td.bar { width: auto; }
.bar i { display: block; height: .7rem; min-width: 1px; border-radius: 2px; }
i.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-left: 1rem; }
i.base { background: var(--base); } i.tuned { background: var(--tuned); }
rect.base { fill: var(--base); } rect.tuned { fill: var(--tuned); opacity: .75; }
svg { width: 100%; max-width: 42rem; } svg text { font-size: 11px; fill: var(--faint); }
select { font: inherit; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.tag { font-weight: 400; font-size: .75rem; border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem; }
.question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.reference { white-space: pre-wrap; margin: .3rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
section { border-left: 3px solid var(--base); padding-left: .8rem; min-width: 0; }
section.tuned { border-color: var(--tuned); }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; } .failed { color: light-dark(#b3261e, #ff8a80); }
mark { background: var(--mark); color: inherit; border-radius: 2px; }
</style><main>
"""

_SCRIPT = """
const select = document.getElementById("category");
select.onchange = () => document.querySelectorAll("article").forEach(
  (article) => { article.hidden = select.value !== "" && article.dataset.category !== select.value; });
"""
