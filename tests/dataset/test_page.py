"""The data as bars of text and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from swift_toolkit.dataset.page import Bar, bars_of, histogram_lines, middle, page, write_report
from swift_toolkit.dataset.verify import DataReport, verify


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataReport:
    monkeypatch.chdir(tmp_path)
    rows = [("<b>short</b>", "yes"), ("q", "word " * 100), ("q2", "word " * 100), ("empty", "")]
    text = ""
    for question, answer in rows:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text += json.dumps({"messages": turns, "<id>": 1}) + "\n"
    Path("a&b.jsonl").write_text(text)
    return verify(["a&b.jsonl", "owner/name"])


def test_bars_are_few_equal_and_lose_no_row() -> None:
    counts = dict.fromkeys(range(1000), 1) | {50_000: 1}
    bars = bars_of(counts)
    assert len(bars) <= 21
    assert sum(bar.rows for bar in bars) == 1001
    assert {bar.last - bar.first for bar in bars if bar.last is not None} == {49}
    assert bars[-1] == Bar(1000, None, 1)
    assert [bar.label for bar in (bars[0], bars[-1])] == ["0–49", "1,000 and more"]


def test_bars_of_few_values() -> None:
    assert bars_of({}) == []
    assert bars_of({2: 5, 4: 1}) == [Bar(2, 2, 5), Bar(3, 3, 0), Bar(4, 4, 1)]
    assert bars_of({16: 5, 32: 1}, 16) == [Bar(16, 31, 5), Bar(32, 47, 1)]


def test_middle() -> None:
    assert middle({1: 50, 2: 45, 9: 5}, 0.5) == 1
    assert middle({1: 50, 2: 45, 9: 5}, 0.95) == 2
    assert middle({}, 0.5) == 0


def test_histogram_of_text(report: DataReport) -> None:
    assert histogram_lines(report, width=10) == [
        "tokens per row (estimated): median up to 15, 95% up to 143, largest up to 143",
        "   0–15  ██████████ 2",
        "  16–31  0",
        "  32–47  0",
        "  48–63  0",
        "  64–79  0",
        "  80–95  0",
        " 96–111  0",
        "112–127  0",
        "128–143  ██████████ 2",
    ]


def test_page_needs_nothing_else_and_escapes(report: DataReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "data.html")
    text = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert text == page(report)
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert "a&amp;b.jsonl" in text and "&lt;id&gt;" in text
    assert "1 error, no warnings. Checked for sft." in text
    assert "the content of message 2 (&quot;assistant&quot;) is empty." in text
    assert "On a hub, not checked before ms-swift loads them: owner/name" in text
    assert text.count("<svg") == 2
