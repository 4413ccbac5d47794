"""Rows as the model sees them, by the real template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.tasks import TASKS
from swift_toolkit.dataset.preview import Piece, ShownRow, TemplateView
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.verify import verify

SETTINGS = {"model_type": "llama", "template": "chatml"}
TALK = {
    "messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*rows: Any) -> str:
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "a.jsonl"


def test_lines_of_a_row() -> None:
    pieces = (Piece("Q: ", 2, False, False), Piece("yes", 1, True, False), Piece(" and no", 2, True, True))
    row = ShownRow("a.jsonl:3", "chosen", pieces, "longer than max_length 3, cut on the right")
    heading = "a.jsonl:3 (chosen): 5 tokens, 1 learned; longer than max_length 3, cut on the right"
    assert row.lines(colour=False) == [heading, "Q: [[yes]][[cut:  and no]]"]
    assert row.lines(colour=True) == [heading, "Q: \033[32myes\033[0m\033[31m and no\033[0m"]


@pytest.mark.slow
def test_what_is_learned(tiny_model: Path) -> None:
    view = TemplateView(str(tiny_model), Rules(), {**SETTINGS, "system": "Be brief."})
    (first, second) = view.rows([write(TALK, {"messages": []}, TALK)], 2)
    assert first.lines(colour=False) == [
        "a.jsonl:1: 26 tokens, 5 learned",
        "<|im_start|>system",
        "Be brief.<|im_end|>",
        "<|im_start|>user",
        "Who are you?<|im_end|>",
        "<|im_start|>assistant",
        "[[A model.<|im_end|>",
        "]]",
    ]
    assert second.lines(colour=False) == ["a.jsonl:2: not rendered; cannot be read, see --verify-data"]


@pytest.mark.slow
def test_what_is_cut(tiny_model: Path) -> None:
    rules = Rules(max_length=12)
    (row,) = TemplateView(str(tiny_model), rules, {**SETTINGS, "truncation_strategy": "right"}).rows(
        [write(TALK)], 1
    )
    assert row.note == "longer than max_length 12, cut on the right"
    assert sum(piece.tokens for piece in row.pieces if not piece.cut) == 12
    (row,) = TemplateView(str(tiny_model), rules, SETTINGS).rows(["a.jsonl"], 1)
    assert row.note == "longer than max_length 12, skipped"
    assert not any(piece.cut for piece in row.pieces)


@pytest.mark.slow
def test_both_answers_of_a_preference(tiny_model: Path) -> None:
    view = TemplateView(str(tiny_model), Rules(TASKS["dpo"]), SETTINGS)
    rows = list(view.rows([write(TALK | {"rejected_response": "A cat."})], 1))
    assert [row.name for row in rows] == ["chosen", "rejected"]
    assert [piece.text for row in rows for piece in row.pieces if piece.learned] == [
        "A model.<|im_end|>\n",
        "A cat.<|im_end|>\n",
    ]


@pytest.mark.slow
def test_a_row_that_the_template_refuses(tiny_model: Path) -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    (row,) = TemplateView(str(tiny_model), Rules(), SETTINGS).rows(
        [write({"messages": [TALK["messages"][0], call]})], 1
    )
    assert row.note.startswith("ms-swift skips it: Failed to automatically match an agent_template")


@pytest.mark.slow
def test_exact_tokens(tiny_model: Path) -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    refused = {"messages": [TALK["messages"][0], call]}
    long = {"messages": [TALK["messages"][0], {"role": "assistant", "content": "word " * 20}]}
    rules = Rules(max_length=30)
    report = verify([write(TALK, refused, TALK, long)], max_length=rules.max_length)
    TemplateView(str(tiny_model), rules, SETTINGS).audit(report)
    assert report.exact_tokens and report.tokens == {18: 2, 36: 1}
    assert str(report.groups["template"].examples[0]).startswith(
        "a.jsonl:2: the template rejects it: Failed to automatically match an agent_template"
    )
    assert list(map(str, report.groups["too-long"].examples)) == [
        "a.jsonl:4: row has 36 tokens, more than max_length 30. "
        "Raise max_length, shorten the row, or set truncation_strategy."
    ]


@pytest.mark.slow
def test_plain_text_is_learned_whole(tiny_model: Path) -> None:
    view = TemplateView(str(tiny_model), Rules(TASKS["pt"]), SETTINGS)
    (row,) = view.rows([write({"text": "One two three."})], 1)
    assert row.lines(colour=False)[1:] == ["One[[ two three.<|im_end|>]]"]
