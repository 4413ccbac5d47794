"""Lengths estimated from what a text is made of, against three tokenizers on six kinds of text."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from swift_toolkit.dataset import lengths
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
    made = trained(texts[request.param], 3000)
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


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A data set and a tokenizer with which it was checked once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, tokenizer = tmp_path / "rows.jsonl", tmp_path / "tokenizer.json"
    rows = [{"query": query, "response": answer} for query, answer in rows_of("mixed")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained(["prose"], 3000).save(str(tokenizer))
    verify([str(data)], tokenizer=tokenizer)
    return data, tokenizer


def trained(sources_of: list[str], size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([sources()[name][:200_000] for name in sources_of], trainer)
    return made


def test_a_second_check_of_the_same_data_does_not_load_the_tokenizer(
    checked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, tokenizer = checked
    loaded: list[Path] = []
    load = lengths._load
    monkeypatch.setattr(lengths, "_load", lambda path: loaded.append(path) or load(path))
    again = verify([str(data)], tokenizer=tokenizer)
    assert not loaded
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    fresh = verify([str(data)], tokenizer=tokenizer)
    assert loaded
    assert (again.rules.lengths, again.tokens, again.longest) == (
        fresh.rules.lengths,
        fresh.tokens,
        fresh.longest,
    )


def test_a_changed_text_or_tokenizer_is_counted_anew(checked: tuple[Path, Path], tmp_path: Path) -> None:
    """Also a tokenizer whose size and time of modification stay the same."""
    data, tokenizer = checked
    before, times = tokenizer.read_bytes(), tokenizer.stat()
    old = verify([str(data)], tokenizer=tokenizer).rules.lengths
    trained(["chinese"], 400).save(str(tokenizer))
    tokenizer.write_bytes(tokenizer.read_bytes().ljust(len(before)))
    os.utime(tokenizer, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tokenizer.stat().st_size == times.st_size
    new = verify([str(data)], tokenizer=tokenizer).rules.lengths
    assert new.letter > 1.3 * old.letter
    data.write_text(json.dumps({"query": "q", "response": "漢" * 4000}) + "\n")
    assert verify([str(data)], tokenizer=tokenizer).longest["train"] >= 4000


@pytest.mark.parametrize("content", ["", "[]", '{"of": 1}', '{"of": null, "tokens": {"a": "b"}}'])
def test_a_damaged_cache_is_replaced(checked: tuple[Path, Path], tmp_path: Path, content: str) -> None:
    data, tokenizer = checked
    (cache,) = tmp_path.glob("cache/swift-toolkit/tokens-*.json")
    whole = cache.read_text()
    cache.write_text(content)
    assert verify([str(data)], tokenizer=tokenizer).rules.lengths.is_measured
    assert cache.read_text() == whole
