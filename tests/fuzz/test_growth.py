"""The time for strange data grows with their size and not faster; where it is limited, about that limit is kept."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swift_toolkit.dataset.verify import verify
from swift_toolkit.problems import RequestError
from tests.clock import processor_seconds

TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def different_keys(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({**TALK, f"key{number}": 1}) + "\n" for number in range(count)))
    return path


def columns(path: Path, count: int) -> Path:
    names = ",".join(f"c{number}" for number in range(count))
    path.write_text(f"query,response,{names}\n" + ("a,b" + ",1" * count + "\n") * 3)
    return path.rename(path.with_suffix(".csv"))


@pytest.mark.parametrize(("make", "count"), [(different_keys, 2000), (columns, 4000)])
def test_time_grows_with_the_size(make: Callable[[Path, int], Path], count: int, tmp_path: Path) -> None:
    few, many = make(tmp_path / "few.jsonl", count), make(tmp_path / "many.jsonl", 8 * count)
    once = processor_seconds(lambda: verify([str(few)]))
    eight = processor_seconds(lambda: verify([str(many)]), times=1)
    assert eight < 32 * max(once, 0.02)  # the square of 8 is 64


def test_much_of_nothing_is_looked_at_for_the_time_allowed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"\n" * (1 << 20))
    with gzip.open(tmp_path / "b.json.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    for name in ("a.jsonl.gz", "b.json.gz"):
        report = verify([str(tmp_path / name)], limit_seconds=1)
        assert not report.ok and report.seconds < 5


def test_a_file_that_was_not_read_to_its_end_is_not_called_empty(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(32):
            file.write(b"\n" * (1 << 20))
    (flaw,) = verify([str(tmp_path / "a.jsonl.gz")], limit_seconds=0.001).problems
    assert "the file has no rows in the part that was read. Add at least one row." in str(flaw)


@pytest.mark.parametrize("folder", ["/", "/usr"])
def test_a_folder_of_everything_is_refused_soon(folder: str) -> None:
    started = time.monotonic()
    try:
        found = list(verify([folder], limit_seconds=1).problems)
    except RequestError as error:
        found = error.problems
    assert found and time.monotonic() - started < 10
