"""Copies: what ms-swift is given, and rows skipped only on the user's request and with a count."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.dataset.copies import bad_rows_allowed, convert, prepare_data
from swift_toolkit.dataset.verify import verify
from swift_toolkit.problems import RequestError

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(question: object, answer: object) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(name: str, *rows: object) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def read(name: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def test_what_ms_swift_reads_is_not_copied() -> None:
    entries = [write("a.jsonl", talk("q", "a")) + "#5", "owner/name#3"]
    given = prepare_data(verify(entries), Path("data"))
    assert given.train == entries
    assert not Path("data").exists()


def test_bad_rows_stop_the_run() -> None:
    report = verify([write("a.jsonl", talk("q", "a"), talk("q", ""))])
    with pytest.raises(RequestError) as caught:
        prepare_data(report, Path("data"))
    assert str(caught.value) == 'a.jsonl:2: the content of message 2 ("assistant") is empty.'
    assert not Path("data").exists()


def test_bad_rows_are_left_out_and_listed() -> None:
    odd = talk("q3", "a3") | {"id": 3}
    train = write("a.jsonl", talk("q", "a"), talk("q2", ""), odd, {"messages": []}, talk("q5", "a5"))
    val = write("b.jsonl", talk("v", "a"), talk("v2", None))
    given = prepare_data(verify([train + "#2"], [val]), Path("run/data"), "")
    assert (given.train, given.val) == (["run/data/a.jsonl#2"], ["run/data/b.jsonl"])
    assert read("run/data/a.jsonl") == [talk("q", "a"), odd, talk("q5", "a5")]
    assert given.as_dict() == {
        "train": ["run/data/a.jsonl#2"],
        "val": ["run/data/b.jsonl"],
        "copies": ["run/data/a.jsonl", "run/data/b.jsonl"],
        "rows_left_out": 3,
        "left_out": {"empty or non-text content": 2, "messages of the wrong shape": 1},
        "rejected": "run/data/rejected.jsonl",
    }
    assert read("run/data/rejected.jsonl")[0] == {
        "file": "a.jsonl",
        "line": 2,
        "row": 2,
        "reasons": ['the content of message 2 ("assistant") is empty.'],
        "value": talk("q2", ""),
    }
    assert [(entry["file"], entry["line"]) for entry in read("run/data/rejected.jsonl")] == [
        ("a.jsonl", 2),
        ("a.jsonl", 4),
        ("b.jsonl", 2),
    ]


def test_broken_lines_are_listed_without_a_value() -> None:
    Path("a.jsonl").write_text(json.dumps(talk("q", "a")) + "\n{broken\n")
    given = prepare_data(verify(["a.jsonl"]), Path("data"), "1")
    assert read("data/a.jsonl") == [talk("q", "a")]
    assert given.rejected is not None
    assert read(given.rejected)[0]["value"] is None


@pytest.mark.parametrize(
    ("text", "rows", "allowed"),
    [("", 7, 7), ("3", 7, 3), ("5%", 1000, 50), ("0.5%", 1000, 5), ("5%", 10, 0), ("0", 9, 0)],
)
def test_how_many_may_be_left_out(text: str, rows: int, allowed: int) -> None:
    assert bad_rows_allowed(text, rows) == allowed


@pytest.mark.parametrize("text", ["many", "-1", "5 percent", "inf", "nan"])
def test_not_a_number_of_rows(text: str) -> None:
    with pytest.raises(ValueError):
        bad_rows_allowed(text, 10)


def test_more_bad_rows_than_allowed() -> None:
    report = verify([write("a.jsonl", talk("q", "a"), talk("q", ""), talk("q", None))])
    with pytest.raises(RequestError) as caught:
        prepare_data(report, Path("data"), "1")
    assert str(caught.value.problems[-1]) == (
        "2 of 3 rows are bad; at most 1 may be skipped. Fix them, or allow more."
    )


def test_bad_rows_behind_the_sample() -> None:
    good = f"q,{'a ' * 5000}\n" * 150  # a block and a half
    Path("a.csv").write_text("query,response\n" + good + "q,\n" + good)
    report = verify(["a.csv"], limit_seconds=0.0)
    assert report.ok and not report.complete
    with pytest.raises(RequestError) as caught:
        prepare_data(report, Path("data"))
    assert str(caught.value) == (
        "1 bad row was found while the data was copied; data/rejected.jsonl lists it. "
        "Fix it, or skip it with --skip-bad-rows."
    )
    assert read("data/rejected.jsonl")[0]["line"] == 152


def test_all_rows_bad_or_file_damaged() -> None:
    with pytest.raises(RequestError):
        prepare_data(verify([write("a.jsonl", talk("q", ""))]), Path("data"), "")
    whole = gzip.compress(b"".join(json.dumps(talk(f"q{at}", "a")).encode() + b"\n" for at in range(3000)))
    Path("b.jsonl.gz").write_bytes(whole[:-500])
    with pytest.raises(RequestError, match="cannot be read to the end"):
        prepare_data(verify(["b.jsonl.gz"]), Path("data"), "")
    with pytest.raises(RequestError, match="no such file"):
        prepare_data(verify([write("c.jsonl", talk("q", "a")), "d.jsonl"]), Path("data"), "")


def test_packed_and_foreign_formats_become_messages() -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(json.dumps(talk("q", "a")).encode()))
    preference = write("p.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad", "system": "s"})
    given = prepare_data(verify(["a.jsonl.gz"]), Path("data"))
    assert given.train == ["data/a.jsonl"] and given.rejected is None
    assert read("data/a.jsonl") == [talk("q", "a")]
    assert not Path("data/rejected.jsonl").exists()
    given = prepare_data(verify([preference], task="dpo"), Path("data2"))
    system = {"role": "system", "content": "s"}
    assert read(given.train[0]) == [
        {
            "messages": [system, *talk("q", "good")["messages"]],
            "rejected_messages": [system, *talk("q", "bad")["messages"]],
        }
    ]


def test_numbers_in_a_table_stay_text() -> None:
    Path("a.csv").write_text("query,response,label\n1+1,2,0\n1+2,3,1\n")
    report = verify(["a.csv"])
    assert report.files[0].copy_reason == "ms-swift would read text as numbers"
    assert read(prepare_data(report, Path("data")).train[0]) == [
        talk("1+1", "2") | {"label": 0},
        talk("1+2", "3") | {"label": 1},
    ]


def test_lists_in_a_table_stay_text_where_text_is_meant() -> None:
    Path("a.csv").write_text('query,response,history\nOnes?,[1],"[[""a"", ""b""]]"\nNone?,{},\n')
    assert [
        [m["content"] for m in row["messages"]]
        for row in read(prepare_data(verify(["a.csv"]), Path("data")).train[0])
    ] == [
        ["a", "b", "Ones?", "[1]"],
        ["None?", "{}"],
    ]
    Path("b.csv").write_text(
        'prompt,chosen,rejected\nOnes?,[1],"[{""role"": ""assistant"", ""content"": ""2""}]"\n'
    )
    (row,) = read(prepare_data(verify(["b.csv"], task="dpo"), Path("data")).train[0])
    assert (row["messages"][-1]["content"], row["rejected_messages"][-1]["content"]) == ("[1]", "2")


def test_dates_in_a_column_stay_text() -> None:
    report = verify(
        [
            write(
                "a.jsonl",
                {"query": "When?", "response": "1999-05-01"},
                {"query": "And?", "response": "2001-01-01"},
            )
        ]
    )
    assert report.files[0].copy_reason == 'ms-swift would read the dates in "response" as numbers'
    assert read(prepare_data(report, Path("data")).train[0])[0] == talk("When?", "1999-05-01")


def test_texts_beside_lists_stay_text() -> None:
    parts = talk([{"type": "text", "text": "6 x 7?"}], "42")
    report = verify([write("a.jsonl", parts, talk("6 x 8?", "48"))])
    assert report.files[0].copy_reason == 'ms-swift would read texts like "42" in "messages" as numbers'
    assert read(prepare_data(report, Path("data")).train[0]) == [talk("6 x 7?", "42"), talk("6 x 8?", "48")]


def test_texts_beside_calls_stay_text() -> None:
    """In positive and negative messages too: a place of texts and objects is decoded, and "true" is then no text."""
    call = {"name": "f", "arguments": {"x": 1}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "tool_call", "content": call},
        {"role": "tool_response", "content": "3"},
        {"role": "assistant", "content": "true"},
    ]
    row = talk("q", "a") | {"positive_messages": [turns], "negative_messages": [turns[:1], turns]}
    given = prepare_data(verify([write("a.jsonl", row)], task="embedding"), Path("data"))
    (copied,) = read(given.train[0])
    lists = [*copied["positive_messages"], *copied["negative_messages"]]
    contents = ["q", '{"name": "f", "arguments": {"x": 1}}', "3", "true"]
    assert [[turn["content"] for turn in turns] for turns in lists] == [contents, ["q"], contents]


def test_rejected_answers_become_messages() -> None:
    """Beside lists a text like "12" would come back as a number."""
    turns = [{"role": "assistant", "content": "bad"}]
    path = write(
        "a.jsonl", *(talk(f"q{n}", "good") | {"rejected_response": r} for n, r in enumerate(("12", turns)))
    )
    given = prepare_data(verify([path], task="dpo"), Path("data"))
    assert read(given.train[0]) == [
        talk("q0", "good") | {"rejected_messages": talk("q0", "12")["messages"]},
        talk("q1", "good") | {"rejected_messages": talk("q1", "bad")["messages"]},
    ]


def test_a_folder_becomes_one_copy() -> None:
    write("shards/train-1.jsonl", talk("q1", "a"), talk("q2", ""))
    write("shards/train-2.jsonl", {"query": "q3", "response": "a"})
    write("shards/test-1.jsonl", talk("t", "a"))
    report = verify(["shards"])
    assert [file.path for file in report.files] == ["shards/train-1.jsonl", "shards/train-2.jsonl"]
    given = prepare_data(report, Path("data"), "50%")
    assert given.train == ["data/shards.jsonl"]
    assert read("data/shards.jsonl") == [talk("q1", "a"), talk("q3", "a")]


def test_copies_of_the_same_name() -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "a.csv").write_text(f"query,response\nq,{folder}\n")
    given = prepare_data(verify(["one/a.csv", "two/a.csv"]), Path("data"))
    assert given.train == ["data/a.jsonl", "data/a-2.jsonl"]
    assert read("data/a-2.jsonl") == [talk("q", "two")]


def test_conversion_row_for_row() -> None:
    rows = [
        {
            "system": "s",
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "id": 7,
        },
        {"conversations": [{"from": "user", "value": "only a question"}]},
    ]
    entries = [write("a.jsonl", *rows), write("b.jsonl", {"instruction": "i", "input": "x", "output": "o"})]
    assert convert(verify(entries), Path("out.jsonl")) == 3
    assert read("out.jsonl") == [
        {"messages": [{"role": "system", "content": "s"}, *talk("q", "a")["messages"]]},
        {"messages": [{"role": "user", "content": "only a question"}]},
        talk("i\nx", "o"),
    ]


def test_conversion_of_unreadable_rows_writes_nothing() -> None:
    report = verify([write("a.jsonl", talk("q", "a"), {"messages": 5})])
    with pytest.raises(RequestError) as caught:
        convert(report, Path("out.jsonl"))
    assert str(caught.value) == 'a.jsonl:2: "messages" is a number, not a list of messages.'
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]


def test_bytes_of_images_become_data_addresses() -> None:
    import pyarrow
    import pyarrow.parquet

    png = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgAAIAAAUAAeImvXoAAAAASUVORK5CYII="
    )
    row = talk("<image>?", "a dot") | {"images": [{"bytes": png, "path": None}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), "a.parquet")
    report = verify(["a.parquet"], multimodal=True)
    assert report.ok, report.problems
    convert(report, Path("out.jsonl"))
    (image,) = read("out.jsonl")[0]["images"]
    assert image.startswith("data:") and base64.b64decode(image.partition(",")[2]) == png
