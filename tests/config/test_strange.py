"""Requests that nobody writes on purpose: they end in status 2 and a message, in bounded time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune_trainer
from swift_toolkit.config.file import MAX_BYTES, read_config_file
from swift_toolkit.config.request import load_config
from swift_toolkit.problems import RequestError
from tests.clock import processor_seconds

BASE = {"model": "a/b", "dataset": "c/d"}


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": []},
        {"preset": {}},
        {"train_type": {}},
        {"train_type": [[]]},
        {"task": []},
        {"effective_batch_size": "²"},
        {"model": "a" * 300},
        {"output_dir": "x" * 5000},
        {"model": "~nouser/x"},
        {"dataset": "~nouser/x.jsonl"},
        {"adapters": "~nouser"},
        {"model": "\ud800"},
        {"system": "a\0b"},
        {"output_dir": "a\0b"},
        {"external_plugins": ["b" * 300]},
        {"deepspeed": "c" * 300 + ".json"},
        {"learning_rate": 10**400},
        {"lora_rank": "nan"},
        {"\ud800": 1},
        {"": 1},
        {"a" * 300: 1},
    ],
    ids=lambda settings: repr(settings)[:40],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_values(
    settings: dict[str, Any], as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(json.dumps({**BASE, **settings}))
    words = ["--config", str(tmp_path / "c.json"), "--dry-run", *(["--json"] if as_json else [])]
    assert finetune_trainer.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err and "Unexpected" not in captured.err
    if as_json:
        assert json.loads(captured.out)["problems"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (".inf: 1\n0x10: 2\nnull: 3\ntrue: 4\n", [".inf", "0x10", "null", "true"]),
        ("? a b\n: 1\n", ["a b"]),
    ],
)
def test_keys_of_yaml_are_texts(text: str, keys: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    read = read_config_file(tmp_path / "a.yaml")
    assert list(read.values) == list(read.lines) == keys


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_only_regular_files_of_a_config_s_size(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(RequestError, match="is not a regular file"):
        read_config_file(tmp_path / name)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RequestError, match="is over 4 MiB"):
        read_config_file(tmp_path / name)


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"seed": ' + "1" * 5000 + "}")
    with pytest.raises(RequestError, match="holds a number that is too long"):
        read_config_file(tmp_path / "a.json")


def unknown_keys(path: Path, count: int) -> float:
    path.write_text(json.dumps({f"key{number}": 1 for number in range(count)}, indent=1))

    def work() -> None:
        with pytest.raises(RequestError) as caught:
            load_config(path)
        assert len(caught.value.problems) >= count

    return processor_seconds(work)


def items(path: Path, count: int) -> float:
    path.write_text("a:\n" + "  - b\n" * count)
    return processor_seconds(lambda: read_config_file(path))


@pytest.mark.parametrize(("name", "take", "few"), [("a.json", unknown_keys, 100), ("a.yaml", items, 500)])
def test_time_does_not_grow_with_the_square_of_the_length(
    name: str, take: Callable[[Path, int], float], few: int, tmp_path: Path
) -> None:
    file = tmp_path / name
    assert take(file, 8 * few) < 32 * take(file, few)  # the square of 8 is 64
