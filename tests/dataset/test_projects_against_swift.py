"""Rows in the layouts of other projects: what is passed is learned, and what is refused ms-swift does not learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift_toolkit.dataset.verify import verify
from tests.dataset.project_layouts import LAYOUTS, file_of
from tests.dataset.test_against_swift import Swift, _the_same_examples_everywhere, check, swift

__all__ = ["_the_same_examples_everywhere", "swift"]
pytestmark = pytest.mark.slow

ROWS = 92


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_each_layout(name: str, swift: Swift, tmp_path: Path) -> None:
    check(swift, tmp_path / "rows.jsonl", file_of(name, ROWS, seed=16), LAYOUTS[name][0])


@pytest.mark.parametrize("task", ["sft", "pt"])
def test_columns_named_as_the_message_advises(task: str, swift: Swift, tmp_path: Path) -> None:
    rows = [{"article": f"What is {at}?", "highlights": f"It is {at}."} for at in range(3)]
    if task == "pt":
        rows = [{"code": f"x = {at}"} for at in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"channel": f"row {at}"}) + "\n" for at, row in enumerate(rows)))
    (problem, *_) = verify([str(path)], task=task).problems
    columns = json.loads(problem.do.removeprefix('Set "columns": ').removesuffix("."))
    learned = swift.learned([str(path)], task, columns=columns)
    last_words = [str(list(row.values())[-1]).split()[-1] for row in rows]
    assert [word in learned[f"row {at}"] for at, word in enumerate(last_words)] == [True] * 3
