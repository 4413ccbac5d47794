"""The words that messages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift_toolkit.config.fields import fields
from swift_toolkit.console import words
from swift_toolkit.problems import first_line


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lora_rnak", "lora_rank"),
        ("learning-rate", "learning_rate"),
        ("LORA_RANK", "lora_rank"),
        ("lorarank", "lora_rank"),
        ("qwertyuiop", None),
        ("", None),
    ],
)
def test_the_nearest_setting(name: str, found: str | None) -> None:
    assert words.nearest(name, fields("sft")) == ([found] if found else [])


def test_a_name_that_begins_others_stands_for_them() -> None:
    assert words.nearest("flash", ["sdpa", "flash_attn", "flash_attention_2"], most=3) == [
        "flash_attn",
        "flash_attention_2",
    ]
    assert words.did_you_mean("Qwen2.5", ["Qwen2.5-7B-Instruct"]) == 'Did you mean "Qwen2.5-7B-Instruct"?'


def test_the_nearest_file(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.json", ".train"):
        (tmp_path / name).touch()
    assert words.near_path(tmp_path / "trian.jsonl") == tmp_path / "train.jsonl"
    wanted = f'Did you mean "{tmp_path / "train.json"}"?'
    assert words.did_you_mean_path(tmp_path / "trian.jsonl", suffixes=(".json",)) == wanted
    assert words.did_you_mean_path(tmp_path / "no" / "trian.jsonl", "Check the path.") == "Check the path."


def test_a_value_shown_short() -> None:
    assert words.shown("数" * 70) == f'"{"数" * 57}..."'
    assert words.shown({"a": None, "b": [1]}) == '{"a": null, "b": [1]}'
    assert len(words.shown(list(range(100)))) <= words.WIDTH
    assert words.short("x" * 60) == "x" * 60
    assert (
        words.short("one word and another one that makes it too long for one line", 30)
        == "one word and another one..."
    )


def test_lists_and_counts() -> None:
    assert words.listed("abcde") == "a, b, c and 2 more"
    assert words.listed("abc") == "a, b, c"
    assert words.counted(1, "row") == "1 row"
    assert words.counted(1500, "row") == "1,500 rows"
    assert words.counted(2, "process", "processes") == "2 processes"


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n a \nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
    assert first_line("") == ""
