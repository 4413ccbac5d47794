"""Lengths estimated from what a text is made of, against three tokenizers on six kinds of text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from swift_toolkit.dataset.lengths import Lengths, token_counts
from swift_toolkit.dataset.verify import MARKS_OF_A_MESSAGE, verify

TEXTS = Path(__file__).parent / "texts"
"""Fixed texts: a README in two languages as it was once, and Python code."""


@cache
def sources() -> dict[str, str]:
    english, chinese, code = (
        (TEXTS / name).read_text(encoding="utf-8") for name in ("english.md", "chinese.md", "code.py.txt")
    )
    return {
        "prose": " ".join(re.findall(r"[A-Za-z ,.]{40,}", code + english)),
        "markdown": english,
        "chinese": "".join(re.findall("[\u4e00-\u9fff，。、]+", chinese)),
        "chinese markdown": chinese,
        "code": code,
        "mixed": "",
    }


@pytest.fixture(scope="module", params=["english", "chinese", "both"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte pair encoding that knows English, Chinese or both."""
    texts = {"english": ["prose"], "chinese": ["chinese markdown"], "both": ["markdown", "chinese", "code"]}
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([sources()[name][:200_000] for name in texts[request.param]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def rows_of(kind: str) -> Iterator[list[str]]:
    some = random.Random(kind)
    for at in range(250):
        source = sources()[kind if kind != "mixed" else some.choice(["prose", "chinese", "code"])]
        begin = some.randrange(max(len(source) - 1500, 1))
        text = source[begin : begin + some.randrange(100, 1500)]
        yield [f"{at} {text[:200]}", text[200:] or "yes"]


@pytest.mark.parametrize("kind", list(sources()))
def test_lengths_are_within_ten_percent(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    rows = list(rows_of(kind))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": q, "response": a}) + "\n" for q, a in rows))
    encode = Tokenizer.from_file(str(tokenizer)).encode
    true = [sum(len(encode(text).ids) for text in row) + 2 * int(MARKS_OF_A_MESSAGE) for row in rows]
    report = verify([str(path)], tokenizer=tokenizer)
    told = sum((bar + 8) * count for bar, count in report.tokens.items())
    assert report.rules.lengths.is_measured
    assert told == pytest.approx(sum(true), rel=0.10)
    assert max(true) * 0.9 <= report.longest["train"] <= max(true) + 16
    assert max(report.tokens) <= max(true)


def test_without_a_tokenizer_four_bytes_are_a_token(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"query": "x" * 80, "response": "y" * 80}) + "\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    report = verify([str(path)], tokenizer=tmp_path / "tokenizer.json")
    assert not report.rules.lengths.is_measured
    assert report.tokens == {48: 1}  # 40 of the text and 4 of each message


def test_what_a_text_is_made_of() -> None:
    assert token_counts("ab c1;é你") == (4, 2, 5)
    assert Lengths(1.0, 10.0, 100.0, 0.5).of_texts(["ab1", "é"]) == 213
