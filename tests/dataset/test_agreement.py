"""Files and data sets that are read together: copied in one type where that fixes it, else an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.tasks import Task
from swift_toolkit.dataset import agreement
from swift_toolkit.dataset.copies import prepare_data
from swift_toolkit.dataset.verify import verify

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(**more: Any) -> Row:
    return {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good answer"}]
    } | more


def write(name: str, *rows: Row) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def given(*entries: str, task: Task = "sft") -> list[str]:
    report = verify(entries, task=task)
    assert report.ok, report.problems
    return prepare_data(report, Path("data")).train


@pytest.mark.parametrize(
    ("task", "name", "values", "written"),
    [
        ("kto", "label", (True, 1), True),
        ("seq_cls", "label", ("1", 1), 1),
        ("embedding", "label", (1, 0.5), None),
        ("rm", "margin", (1, 0.5), None),
        ("sft", "channel", ("a", 1), None),
    ],
)
def test_types_that_differ_between_data_sets(
    task: Task, name: str, values: tuple[Any, Any], written: Any
) -> None:
    more: Row = {"positive_messages": [[{"role": "user", "content": "p"}]]} if task == "embedding" else {}
    more |= {"rejected_response": "bad"} if task == "rm" else {}
    entries = [write(f"{n}.jsonl", talk(**more | {name: value})) for n, value in enumerate(values)]
    assert given(*entries[:1], task=task) == entries[:1]
    copies = [read(path)[0] for path in given(*entries, task=task)]
    assert len({type(row[name]) for row in copies}) == 1
    if written is not None:
        assert [row[name] for row in copies] == [written, written]


def test_rejected_answers_given_in_several_ways() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]
    entries = [
        write("text.jsonl", talk(rejected_response="bad")),
        write("list.jsonl", talk(rejected_response=turns[1:])),
        write("messages.jsonl", talk(rejected_messages=turns)),
    ]
    assert given(entries[0], task="dpo") == entries[:1]
    copies = given(*entries, task="dpo")
    assert [read(path) for path in copies] == [[talk(rejected_messages=turns)]] * 3
    plain = write("plain.jsonl", talk())
    assert [read(path) for path in given(entries[0], plain)] == [[talk()], [talk()]]


def test_pairs_without_negatives_beside_others() -> None:
    positive = {"positive_messages": [[{"role": "user", "content": "p"}]]}
    negative = {"negative_messages": [[{"role": "user", "content": "n"}]]}
    entries = [
        write("both.jsonl", talk(**positive, **negative)),
        write("one.jsonl", talk(**positive)),
    ]
    assert given(entries[1], task="embedding") == entries[1:]
    copies = given(*entries, task="embedding")
    assert [read(path)[0]["negative_messages"] for path in copies] == [negative["negative_messages"], []]


def test_pairs_that_the_task_does_not_use() -> None:
    path = write("a.jsonl", talk(positive_messages=[[{"role": "user", "content": "p"}]]), talk())
    (copy,) = given(path)
    assert read(copy) == [talk(), talk()]


def test_a_copy_may_lead_to_others() -> None:
    """The margins of the first two differ; their copies hold rejected messages, so the third must too."""
    entries = [
        write("a.jsonl", talk(margin=1, rejected_response="bad")),
        write("b.jsonl", talk(margin=0.5, rejected_response="bad")),
        write("c.jsonl", talk(rejected_response="bad")),
    ]
    assert given(*entries, task="rm") == ["data/a.jsonl", "data/b.jsonl", "data/c.jsonl"]


def test_a_copy_of_one_does_not_lead_to_copies_of_all() -> None:
    Path("a.csv").write_text("query,response\nq,good answer\n")
    assert given("a.csv", write("b.jsonl", talk())) == ["data/a.jsonl", "b.jsonl"]


def test_types_that_no_copy_can_fix() -> None:
    report = verify([write("a.jsonl", talk(solution="4")), write("b.jsonl", talk(solution=4))], task="grpo")
    assert list(map(str, report.problems)) == [
        'b.jsonl: "solution" has a different type in a.jsonl. Use the same type in both.'
    ]


def test_a_folder_whose_later_files_lack_columns() -> None:
    write("shards/train-0.jsonl", talk(id=1))
    write("shards/train-1.jsonl", talk())
    assert given("shards") == ["shards"]


@pytest.mark.parametrize(
    "later", [talk(id=1), {"query": "q2", "response": "r2"}, talk(tools=[{"name": "f"}])]
)
def test_a_folder_of_files_that_differ_becomes_one_copy(later: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    write("shards/train-0.jsonl", talk())
    write("shards/train-1.jsonl", later)
    assert given("shards") == ["data/shards.jsonl"]
    assert [len(row["messages"]) for row in read("data/shards.jsonl")] == [2, 2]
    monkeypatch.setattr(agreement, "HEAD_BYTES", 10)  # as if the files were large
    expected = (
        [
            'shards/train-1.jsonl: "tools" is missing or has a different type in shards/train-0.jsonl. '
            'List the files one by one in "dataset".'
        ]
        if "tools" in later
        else []
    )
    assert list(map(str, verify(["shards"]).problems)) == expected
