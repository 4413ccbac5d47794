"""Rows in layouts that ms-swift does not read: each is named, with how to write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.dataset.verify import verify

Row = dict[str, Any]
Q, A = "What is the capital?", "It is Rome."
USER, ASSISTANT = {"role": "user", "content": Q}, {"role": "assistant", "content": A}

NAMED: dict[str, tuple[str, Row, str]] = {
    "LIMA": ("sft", {"conversations": [Q, A], "source": "x"}, "format of LIMA. Write the texts in turn"),
    "UltraChat": ("sft", {"id": "1", "data": [Q, A]}, "format of UltraChat. Write the texts in turn"),
    "SQuAD": (
        "sft",
        {"context": "Rome.", "question": Q, "answers": {"text": [A], "answer_start": [0]}},
        'Write the context and the question as "query"',
    ),
    "SafeRLHF": ("dpo", {"prompt": Q, "response_0": A, "response_1": "No."}, "format of PKU-SafeRLHF"),
    "UltraFeedback": ("dpo", {"instruction": Q, "completions": [{"response": A}]}, "Write the best completion"),
    "MMLU": ("sft", {"question": Q, "choices": ["a", "b"], "answer": 0}, "Write the question and its choices"),
    "Glaive": ("sft", {"system": "s", "chat": f"USER: {Q} ASSISTANT: {A}"}, "format of Glaive"),
    "MOSS": ("sft", {"chat": {"turn_1": {"Human": Q, "MOSS": A}}}, "format of MOSS"),
    "Gemini": ("sft", {"contents": [{"role": "user", "parts": [{"text": Q}]}]}, "format of Gemini fine-tuning"),
    "XTuner": ("sft", {"conversation": [{"input": Q, "output": A}]}, "format of XTuner"),
    "batch": ("sft", {"custom_id": "1", "body": {"messages": [USER]}}, "format of OpenAI's batch requests"),
    "tokens": ("sft", {"input_ids": [1], "labels": [1]}, "format of tokenised data"),
    "anchors": ("embedding", {"anchor": Q, "positive": A, "negative": "No."}, "format of sentence-transformers"),
    "FlagEmbedding": ("reranker", {"query": Q, "pos": [A], "neg": ["No."]}, "format of FlagEmbedding"),
    "news": ("sft", {"article": Q, "highlights": A}, '{"article": "query", "highlights": "response"}'),
    "summaries": ("sft", {"text": Q, "summary": A}, '{"text": "query", "summary": "response"}'),
    "columns": ("sft", {"user": Q, "assistant": A}, '{"user": "query", "assistant": "response"}'),
    "Chinese": ("sft", {"问题": Q, "回答": A}, '{"问题": "query", "回答": "response"}'),
    "dialog": ("sft", {"dialog": [USER, ASSISTANT]}, '{"dialog": "messages"}'),
    "sentence": ("seq_cls", {"sentence": Q, "label": 1}, '{"sentence": "query"}'),
    "code": ("pt", {"code": Q}, '{"code": "response"}'),
    "OpenRLHF": ("dpo", {"context_messages": [USER], "chosen": A, "rejected": "No."}, '"context_messages": "prompt"'),
    "model": ("sft", {"messages": [USER, ASSISTANT | {"role": "model"}]}, 'role "model". Use "assistant"'),
    "function": (
        "sft",
        {"messages": [USER, {"role": "function", "name": "f", "content": "1"}, ASSISTANT]},
        'role "function". Use "tool_response"',
    ),
    "function_call": (
        "sft",
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
        'has only a "function_call". Write it as {"role": "tool_call"',
    ),
}  # fmt: skip


def problems(path: Path, row: Row, task: str, **options: Any) -> list[str]:
    other = json.loads(json.dumps(row).replace("capital", "king").replace("Rome", "him"))
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n", encoding="utf-8")
    return [str(problem) for problem in verify([str(path)], task=task, **options).problems]


@pytest.mark.parametrize("name", NAMED)
def test_the_way_out_is_named(name: str, tmp_path: Path) -> None:
    task, row, says = NAMED[name]
    found = problems(tmp_path / "rows.jsonl", row, task, **({"num_labels": 2} if task == "seq_cls" else {}))
    assert found and says in found[0], found
    _, _, columns = found[0].partition('Set "columns": ')
    if columns:
        assert not problems(
            tmp_path / "rows.jsonl",
            row,
            task,
            columns=json.loads(columns.removesuffix(".")),
            **({"num_labels": 2} if task == "seq_cls" else {}),
        )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": Q, "Complex_CoT": "r", "answer": A}, "If the model should think, put it at the start"),
        ({"messages": [USER, ASSISTANT], "functions": [{"name": "f"}]}, 'Rename it to "tools"'),
    ],
)
def test_columns_with_a_meaning_are_not_lost_in_silence(tmp_path: Path, row: Row, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    report = verify([str(path)])
    assert report.ok
    assert any(says in str(problem) for group in report.warnings for problem in group.examples)
