"""The report of a run: one page without network, nothing in it that an answer could smuggle in."""

import re
from html.parser import HTMLParser

import pytest

from swift_toolkit.evaluation import page as evaluation_page
from swift_toolkit.evaluation.answers import open_answers
from swift_toolkit.evaluation.page import mark_differences, write_answers
from swift_toolkit.evaluation.questions import QuestionSet
from swift_toolkit.evaluation.scores import Scorer
from swift_toolkit.evaluation.summary import Summary
from swift_toolkit.inference.exchange import Answer

META = {
    "checkpoint": "/runs/v0/checkpoint-20",
    "base": "/models/base",
    "train_type": "lora",
    "backend": "pt",
    "device": "cpu",
    "dtype": "float32",
    "template": "chatml",
    "system": "Be <b>brief</b>.",
    "generation": {"max_tokens": 64, "temperature": 0.0},
    "versions": {"ms-swift": "4.6.0"},
    "questions": "q.json",
}
ROWS = [
    {"id": "a", "question": "Who are <you>?", "category": "self", "reference": "I am Robin."},
    {"id": "b", "question": "Say it | twice.", "category": "facts"},
    {
        "id": "c",
        "category": "facts",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello <script>!"},
            {"role": "user", "content": "And now?"},
        ],
    },
]
TUNED = ["I am Robin.", "<script>alert(1)</script>", "line one\nline two"]
BASE = ["I am a model.", "It, it.", "no"]


@pytest.fixture
def answers(tmp_path):
    """A finished answers file with both sides."""
    kept = open_answers(tmp_path / "out.json", tmp_path, {"run": 1}, ("tuned", "base"), 3)
    kept.keep_meta({**META, "sides": ["tuned", "base"]})
    for index, (tuned, base) in enumerate(zip(TUNED, BASE, strict=True)):
        kept.append(index, "tuned", Answer(tuned, "stop", 9, 4, 0.5 + index, 0.5))
        failed = (
            Answer(None, error="ValueError: <no>") if index == 2 else Answer(base, "length", 9, 4, 0.25, 0.5)
        )
        kept.append(index, "base", failed)
    summary = Summary(("tuned", "base"), Scorer())
    kept.finish((summary.add(*pair) for pair in kept.pairs(QuestionSet(ROWS))), summary.figures)
    return kept.output


class Page(HTMLParser):
    """Reads a page: its tags with their attributes, and the text in each article."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.articles, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self.articles.append("")

    def handle_data(self, data):
        if self.articles:
            self.articles[-1] += data

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def page(answers, tmp_path):
    write_answers(answers, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_every_question_with_both_answers(answers, tmp_path):
    text = page(answers, tmp_path)
    read = Page(text)
    assert [attributes["data-category"] for attributes in read.of("article")] == ["self", "facts", "facts"]
    assert "Who are <you>?" in read.articles[0] and "I am a model." in read.articles[0]
    assert "reference I am Robin." in read.articles[0]
    assert "failed: ValueError: <no>" in read.articles[2] and "Hello <script>!" in read.articles[2]
    assert len(read.of("option")) == 3  # all, self, facts
    assert {attributes["class"] for attributes in read.of("i")} >= {"base", "tuned"}  # bars of the scores
    dots = [one["class"] for one in read.of("i") if one.get("style", "").startswith("left:")]
    assert {side: dots.count(side) for side in ("base", "tuned")} == {"base": 2, "tuned": 3}  # one has failed
    assert [float(tick) for tick in re.findall(r">([\d.]+) s</span>", text)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert re.findall(r"<small>(median [\d.]+ s)</small>", text) == ["median 0.25 s", "median 1.50 s"]


def test_the_page_needs_no_network_and_runs_no_answer(answers, tmp_path):
    text = page(answers, tmp_path)
    assert not re.search(r"https?:|//|src=|@import|url\(", text)
    assert text.count("<script>") == 1  # its own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text.replace("<mark>", "").replace("</mark>", "")
    assert "default-src 'none'" in text


def test_markdown_is_one_table_row_for_each_question(answers, tmp_path):
    write_answers(answers, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| a | Who are &lt;you&gt;? | I am Robin. | I am a model. | I am Robin. |\n" in text
    assert "| b | Say it \\| twice. |  | It, it. | &lt;script&gt;alert(1)&lt;/script&gt; |\n" in text
    assert "| c | And now? |  | failed: ValueError: &lt;no&gt; | line one<br>line two |\n" in text
    assert re.search(r"\| self \| 1 \| exact match \| 0.0 \| 100.0 \| \+100.0 \|", text)


def test_an_answer_makes_no_link_and_no_picture_in_markdown(tmp_path):
    kept = open_answers(tmp_path / "out.json", tmp_path, {"run": 1}, ("tuned",), 1)
    kept.keep_meta({**META, "sides": ["tuned"]})
    evil = "[x](javascript:alert(1)) ![p](data:x) `code` \x1b]52;c;aGk=\x07 <javascript:a>"
    kept.append(0, "tuned", Answer(evil, "stop", 9, 4, 0.5, 0.5))
    summary = Summary(("tuned",), None)
    kept.finish((summary.add(*pair) for pair in kept.pairs(QuestionSet(["Hi?"]))), summary.figures)
    write_answers(kept.output, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        r"\[x\](javascript:alert(1)) !\[p\](data:x) \`code\` \\x1b\]52;c;aGk=\\x07 &lt;javascript:a&gt;"
        in text
    )


@pytest.mark.parametrize("longest", [0, 0.003, 0.4, 1, 2.2, 7, 61, 3600])
def test_the_axis_has_a_few_round_numbers_and_room_for_all(longest):
    ticks = evaluation_page._ticks(longest)
    assert ticks[0] == 0 and ticks[-1] >= longest and 2 <= len(ticks) <= 7


def test_differences_are_marked():
    left, right = mark_differences("I am a big model.", "I am a small model.")
    assert left == "I am a <mark>big</mark> model."
    assert right == "I am a <mark>small</mark> model."
    assert mark_differences("我是小明", "我是小红") == ("我是小<mark>明</mark>", "我是小<mark>红</mark>")
    assert mark_differences("a<b", "a<b") == ("a&lt;b", "a&lt;b")


def test_very_long_answers_are_shown_without_marks():
    long = "word " * 3000
    assert mark_differences(long, long + "end") == (long, long + "end")


def test_a_report_has_an_end(answers, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_page, "SHOWN", 2)
    text = page(answers, tmp_path)
    assert text.count("<article") == 2
    assert f"The other 1 answers are in {answers}." in text
