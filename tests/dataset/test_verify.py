"""Verification of data sets: what is accepted, what is refused, and in which words."""

import json
from pathlib import Path

import pytest

from swift_toolkit.config.tasks import task_of
from swift_toolkit.dataset import spec
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.verify import DatasetSpec, verify

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


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("owner/name", "hub"),
        ("owner/name:one/two#9", "hub"),
        ("self-cognition#9", "hub"),
        ("MS::owner/name", "hub"),
        ("./name", "missing"),
        ("/data/name", "missing"),
        ("data/sub/name", "missing"),
        ("name.parquet", "missing"),
    ],
)
def test_what_is_a_path_and_what_a_hub_id(text: str, kind: str) -> None:
    assert DatasetSpec.parse(text).kind == kind


def test_a_hub_id_beside_a_file_of_that_name() -> None:
    write("data/train.jsonl", GOOD)
    report = verify(["data/trainn"])
    assert report.ok
    assert [str(p) for p in report.groups["near-name"].examples] == [
        '"data/trainn" is used as a hub ID, but there is a local "data/train.jsonl". '
        "Correct the name if you meant that."
    ]


def test_rows_of_a_run() -> None:
    train = write("a.jsonl", GOOD, GOOD | {"id": 1})
    report = verify([train, f"{train}#5", "owner/name#7"], [train])
    assert (report.train_rows, report.val_rows) == (14, 2)
    assert report.headline() == "3 data sets, 14 rows (messages), 2 to validate"
    assert verify(["owner/name"]).train_rows is None
    assert verify([train]).headline() == "a.jsonl, 2 rows (messages)"


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        (("sft",), "sft"),
        (("pt",), "pt"),
        (("rlhf",), "dpo"),
        (("rlhf", "kto"), "kto"),
        (("sft", None, "seq_cls"), "seq_cls"),
        (("sft", None, "causal_lm"), "sft"),
        (("rlhf", "rm", "seq_cls"), "rm"),
    ],
)
def test_task_of(settings: tuple[str, ...], task: str) -> None:
    assert task_of(*settings).name == task


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match="unknown task 'divination'"):
        task_of("sft", None, "divination")


def test_columns_of_the_run() -> None:
    train = write("a.jsonl", {"q": "one", "a": "two"})
    assert not verify([train]).ok
    report = verify([train], columns={"q": "query", "a": "response"})
    assert report.ok and report.files[0].format == "query/response"


def test_folder_without_data() -> None:
    Path("folder/.hidden").mkdir(parents=True)
    write("folder/.hidden/a.jsonl", GOOD)
    assert [str(p) for p in verify(["folder"]).problems] == [
        "folder: contains no data file. Add data files to it."
    ]


def test_unreadable_file() -> None:
    Path("a.jsonl").mkdir()
    Path("broken-link.jsonl").symlink_to("nowhere.jsonl")
    assert [str(p) for p in verify(["a.jsonl", "broken-link.jsonl"]).problems] == [
        "a.jsonl: contains no data file. Add data files to it.",
        "broken-link.jsonl: no such file. Check the path.",
    ]


def test_report_as_plain_data() -> None:
    report = verify([write("a.jsonl", GOOD, {"messages": []})], ["owner/name"])
    data = json.loads(json.dumps(report.as_dict()))
    assert data["ok"] is False and data["complete"] is True
    assert data["unchecked"] == ["owner/name"]
    assert data["files"][0] | {"bytes": 0} == {
        "path": "a.jsonl", "split": "train", "entry": 0, "format": "messages", "bytes": 0, "rows": 2, "checked": 2,
        "bad": 1, "complete": True, "unusable": False, "unused": [], "columns": ["messages"], "copy_reason": "",
    }  # fmt: skip
    assert data["errors"] == [
        {
            "kind": "messages",
            "title": "messages of the wrong shape",
            "count": 1,
            "examples": ['a.jsonl:2: "messages" is empty.'],
        }
    ]


def test_the_longest_row_of_each_split_is_found_wherever_it_is(tmp_path: Path) -> None:
    for name, count, long_one, words in (("train", 40_000, 31_234, 3000), ("val", 50, 7, 500)):
        rows = (
            {
                "messages": [
                    {"role": "user", "content": f"q{number}"},
                    {"role": "assistant", "content": f"w{number} " * (words if number == long_one else 5)},
                ]
            }
            for number in range(count)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = verify([str(tmp_path / "train.jsonl")], [str(tmp_path / "val.jsonl")])
    assert 5000 < report.longest["train"] < 7000
    assert 300 < report.longest["val"] < 1000


def test_what_save_to_disk_wrote_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("saved").mkdir()
    for name in ("state.json", "dataset_info.json"):
        Path("saved", name).write_text('{"_data_files": []}')
    assert [str(problem) for problem in verify(["saved"]).problems] == [
        "saved: was written by save_to_disk, which ms-swift does not read. "
        'Write it as JSON Lines: datasets.load_from_disk("saved").to_json("train.jsonl").'
    ]


def test_a_folder_of_very_many_files_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spec, "MOST_FILES", 50)
    Path("many").mkdir()
    for at in range(60):
        Path("many", f"{at}.jsonl").touch()
    (problem,) = verify(["many"]).problems
    assert str(problem).startswith("many: contains more than 50 files.")


def test_columns_of_any_name() -> None:
    row = {'a"b': 1, "c\\d": 2, "e\nf\x07": {'g"': 1}, "": 4, "field_0": 5}
    report = verify([write("odd.jsonl", *[GOOD | row] * 3, GOOD | {"id": {'"': 2}})])
    assert report.ok and report.train_rows == 4
    Path("odd.csv").write_text('"a""b",c\\d,query,response\n1,2,q,r\n')
    assert verify(["odd.csv"]).ok


@pytest.mark.parametrize("text", ["{{}}", "[{{}}]", "[{}, {1: {}}]"])
def test_messages_as_odd_text(text: str) -> None:
    assert not verify([write("odd.jsonl", {"messages": text})]).ok


def test_rows_of_ever_new_keys_take_bounded_time() -> None:
    rows = [{"query": f"q {at}", "response": "a", f"key {at}": 1} for at in range(3000)]
    report = verify([write("keys.jsonl", *rows)], limit_seconds=2.0)
    assert report.ok and report.seconds < 20  # hours, if time grew by the square


def test_a_table_of_line_ends() -> None:
    Path("ends.csv").write_bytes(b"query,response\n" + b"\n" * 5_000_000)
    assert [str(problem) for problem in verify(["ends.csv"]).problems] == [
        "ends.csv: the file has no rows. Add at least one row."
    ]


def test_a_question_of_typed_parts_is_not_a_list_of_messages() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1?"}]
    assert verify([write("parts.jsonl", {"query": parts, "response": "1"})]).ok
    image = {"type": "image", "image": "https://example.com/a.png"}
    assert verify([write("image.jsonl", {"query": [image, *parts], "response": "1"})]).ok
    for wrong in ([*parts, 5], [{"type": "text", "text": 5}], [{"text": "no type"}]):
        report = verify([write("wrong.jsonl", {"query": wrong, "response": "1"})])
        assert list(report.groups) == ["content"], wrong
    turns = [{"role": "user", "content": "What?"}]
    assert list(verify([write("turns.jsonl", {"query": turns, "response": "1"})]).groups) == ["messages"]
