"""Verification of data sets: what is accepted, what is refused, and in which words."""

import json
from pathlib import Path

import pytest

from swift_toolkit.dataset import DatasetSpec, verify
from swift_toolkit.dataset_flaws import FlawError

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: object) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_good_file() -> None:
    report = verify([write("train.jsonl", GOOD, GOOD | {"id": 7})])
    assert report.ok and report.complete
    assert report.train_rows == 2
    assert report.summary()[0] == "train.jsonl: messages, 2 rows, not used: id"
    assert report.as_dict()["files"][0]["format"] == "messages"


def test_row_without_answer() -> None:
    report = verify([write("data/train.jsonl", GOOD, GOOD, {"messages": GOOD["messages"][:1]})])
    assert [str(p) for p in report.problems] == [
        'data/train.jsonl:3: row has no answer: the last message must be from "assistant".'
    ]


def test_missing_file_names_the_near_one() -> None:
    write("data/train.jsonl", GOOD)
    assert [str(p) for p in verify(["data/trian.jsonl"]).problems] == [
        'data/trian.jsonl: no such file. Did you mean "data/train.jsonl"?'
    ]


def test_hub_id_is_left_to_ms_swift() -> None:
    report = verify(["AI-ModelScope/alpaca-gpt4-data-zh#1000"])
    assert report.ok
    assert report.unchecked == ["AI-ModelScope/alpaca-gpt4-data-zh#1000"]


def test_spec_forms() -> None:
    write("data/a.jsonl", GOOD)
    write("we#ird.jsonl", GOOD)
    assert DatasetSpec.parse("data/a.jsonl#5") == DatasetSpec("data/a.jsonl#5", "data/a.jsonl", "file", 5)
    assert DatasetSpec.parse("we#ird.jsonl").sample is None
    assert DatasetSpec.parse("data").kind == "folder"
    assert DatasetSpec.parse("HF::owner/name#5").kind == "hub"
    assert DatasetSpec.parse("data/none.jsonl").kind == "missing"
    with pytest.raises(FlawError, match='"#0" is not a number of rows'):
        DatasetSpec.parse("data/a.jsonl#0")


def test_many_of_one_kind_are_counted() -> None:
    report = verify([write("t.jsonl", *[{"messages": [{"role": "bot!", "content": "x"}]}] * 9)])
    assert str(report.problems[-1]) == "4 more of this kind: unknown role."
    assert report.files[0].bad == 9


BAD_DATA = Path(__file__).parent / "bad_data"
EXPECTED = json.loads((BAD_DATA / "expected.json").read_text(encoding="utf-8"))


def test_every_bad_file_is_in_the_list() -> None:
    assert {path.name for path in BAD_DATA.iterdir()} - {"expected.json"} == set(EXPECTED)
    assert len(EXPECTED) >= 60


@pytest.mark.parametrize("name", EXPECTED)
def test_bad_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD_DATA)
    options = dict(EXPECTED[name])
    says = options.pop("says")
    report = verify([name], **options)
    assert [str(p) for group in report.groups.values() for p in group.examples] == says
    assert report.ok == name.startswith("warn_")
