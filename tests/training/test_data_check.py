"""The first step waits until the data are known: every row looked at, and as many used as were found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import FineTuner
from swift_toolkit.config.request import read_request
from swift_toolkit.dataset.scan import sample
from swift_toolkit.dataset.verify import Split, verify
from swift_toolkit.problems import RequestError
from swift_toolkit.training import preflight
from swift_toolkit.training.monitor.data_check import DataCheck


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


@pytest.fixture
def check() -> Iterator[DataCheck]:
    """Of a run on 20 rows, of which one may get lost."""
    report = verify([write("a.jsonl", *(talk(f"a{n}") for n in range(20)))])
    expected: dict[Split, int | None] = {"train": 20, "val": 0}
    with DataCheck(report, {}, lambda report: expected, "5%") as check:
        yield check


def lose(check: DataCheck, *reasons: str) -> None:
    check.lost.write_text("".join(json.dumps(reason) + "\n" for reason in reasons))


def test_it_opens_when_ms_swift_has_counted(check: DataCheck) -> None:
    assert check.problems() == [] and not check.path.exists()
    check.count({"train": 20, "val": 0}, {"train": 20, "val": 0})
    assert check.problems() == [] and check.path.exists()
    assert check.sentence() == ""


def test_a_few_rows_may_get_lost_and_are_explained(check: DataCheck) -> None:
    lose(check, "too long for max_length")
    check.count({"train": 20, "val": 0}, {"train": 19, "val": 0})
    assert check.problems() == [] and check.path.exists()
    assert check.sentence() == "ms-swift trains on 19 of 20 rows: 1 too long for max_length"
    lose(check, "too long for max_length", "ValueError: bad image")
    assert check.as_dict() == {
        "train": {"found": 20, "loaded": 20, "used": 19},
        "val": {"found": 0, "loaded": 0, "used": 0},
        "not_used": {"too long for max_length": 1},
        "replaced_while_training": {"ValueError: bad image": 1},
    }


def test_rows_to_validate_are_counted_too() -> None:
    expected: dict[Split, int | None] = {"train": 4, "val": 4}
    with DataCheck(verify([write("a.jsonl", talk("a"))]), {}, lambda report: expected, "5%") as check:
        lose(check, "too long for max_length", "too long for max_length")
        check.count({"train": 4, "val": 4}, {"train": 4, "val": 2})
        assert check.sentence() == "ms-swift validates on 2 of 4 rows: 2 too long for max_length"
        assert check.problems() == [] and check.path.exists()


def test_it_stays_shut_when_too_many_get_lost(check: DataCheck) -> None:
    lose(check, "ValueError: odd")
    check.count({"train": 18, "val": 0}, {"train": 17, "val": 0})
    assert list(map(str, check.problems())) == [
        "ms-swift trains on 17 of 20 rows: 2 were not read by ms-swift, see train.log, 1 ValueError: odd; at most 5% "
        "may be dropped. Allow it with --max-lost-rows 15%."
    ]
    assert not check.path.exists()


def test_rows_read_while_training_are_not_counted(check: DataCheck) -> None:
    check.count({"train": None, "val": None}, {"train": None, "val": None})
    assert check.problems() == [] and check.path.exists()


def test_rows_that_ms_swift_does_not_count(check: DataCheck) -> None:
    check.count({}, {})
    assert check.problems() == [] and check.path.exists()
    assert (check.sentence(), check.as_dict()["train"]) == ("", {"found": 20, "loaded": None, "used": None})


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, {"train": 10, "val": 0}),
        ({"dataset": ["a.jsonl#25", "a.jsonl#3"]}, {"train": 28, "val": 0}),
        ({"split_dataset_ratio": 0.25}, {"train": 8, "val": 2}),
        ({"split_dataset_ratio": 0.01}, {"train": 9, "val": 1}),
        ({"split_dataset_ratio": 0.5, "dataset": "a.jsonl#30"}, {"train": 25, "val": 5}),
        ({"split_dataset_ratio": 0.5, "val_dataset": "a.jsonl#4"}, {"train": 10, "val": 4}),
        ({"dataset": ["a.jsonl", "owner/name"]}, {"train": None, "val": None}),
    ],
)
def test_rows_that_ms_swift_should_come_to(settings: dict[str, Any], rows: dict[str, int | None]) -> None:
    write("a.jsonl", *(talk(f"a{n}") for n in range(10)))
    config, problems = read_request({"model": "a/b", "dataset": "a.jsonl"} | settings, {})
    assert not problems
    assert preflight.expected_rows(config, preflight.check_data(config)) == rows


def test_numbers_of_rows_that_cannot_be() -> None:
    write("a.jsonl", talk("a"), talk("b"))
    write("one.jsonl", talk("a"))
    with pytest.raises(RequestError) as caught:
        FineTuner(model="a/b", dataset="a.jsonl", val_dataset="a.jsonl#3")
    assert (
        str(caught.value) == '"val_dataset" requests 3 rows of "a.jsonl", which has 2. '
        "ms-swift repeats training rows only."
    )
    with pytest.raises(RequestError) as caught:
        FineTuner(model="a/b", dataset="one.jsonl", split_dataset_ratio=0.1)
    assert (
        str(caught.value) == '"split_dataset_ratio" leaves no training row of "one.jsonl". '
        'Name validation data as "val_dataset" instead.'
    )


@pytest.mark.parametrize("name", ["skip_bad_rows", "max_lost_rows"])
def test_a_number_that_is_none(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        FineTuner(model="a/b", dataset=write("a.jsonl", talk("a")), **{name: "some"})
    assert str(caught.value) == f'"{name}" is "some". Write a number of rows, or a share such as "5%".'


# --- real training ------------------------------------------------------------------------------------------


def tuner(model: Path, dataset: str, **settings: Any) -> FineTuner:
    """Of a run of one step."""
    given = {"model": str(model), "model_type": "llama", "template": "chatml", "dataset": dataset}
    return FineTuner(
        given | {"train_type": "lora", "output_dir": "out", "max_steps": 1, "report_to": "none"} | settings
    )


def result(output: str = "out") -> dict[str, Any]:
    (path,) = Path(output).glob("v0-*/result.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.slow
def test_a_run_that_loses_too_many_rows_takes_no_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that finds the rows of an earlier run; before loading, the rows are not long enough to be certain."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    long = "word " * 56
    path = write("a.jsonl", *(talk(f"a{n}") for n in range(18)), talk(f"{long}1"), talk(f"{long}2"))
    for name in ("new", "known"):
        asked = tuner(tiny_model, path, max_length=64, load_from_cache_file=True, output_dir=name)
        with pytest.raises(RequestError) as caught:
            asked.run_training()
        assert str(caught.value) == (
            "ms-swift trains on 18 of 20 rows: 2 too long for max_length; at most 5% may be dropped. "
            'Raise "max_length", or set "truncation_strategy" to "left" or "right". '
            "Allow it with --max-lost-rows 10%."
        )
        assert (result(name)["status"], result(name)["steps"]) == ("failed", 0)
        assert result(name)["rows"] == {
            "train": {"found": 20, "loaded": 20, "used": 18},
            "val": {"found": 0, "loaded": 0, "used": 0},
            "not_used": {"too long for max_length": 2},
            "replaced_while_training": {},
        }
        (log,) = Path(name).glob("v0-*/train.log")
        text = log.read_text(encoding="utf-8", errors="replace")
        assert bool(re.search(r"Map( \(num_proc=\d+\))?:", text)) == (name == "new")


@pytest.fixture
def looked_at_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are treated like large ones: only head and tail are looked at before the run."""
    monkeypatch.setattr(preflight, "DATA_SECONDS", 0.0)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 200)


@pytest.mark.slow
def test_an_error_found_beside_the_loading_stops_the_run(tiny_model: Path, looked_at_by_sample: None) -> None:
    rows = [talk(f"a{n}") for n in range(20)]
    asked = tuner(tiny_model, write("a.jsonl", *rows[:10], talk(""), *rows[10:]))
    assert asked.data.ok and not asked.data.complete
    with pytest.raises(RequestError) as caught:
        asked.run_training()
    assert str(caught.value) == 'a.jsonl:11: the content of message 2 ("assistant") is empty.'
    assert (result()["status"], result()["steps"]) == ("failed", 0)
    assert result()["data"]["complete"]


@pytest.mark.slow
def test_rows_that_get_lost_while_training_are_counted(
    tiny_model: Path, looked_at_by_sample: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write("a.jsonl", *(talk(f"a{n}") for n in range(19)), talk("word " * 200))
    asked = tuner(tiny_model, path, max_length=64, lazy_tokenize=True, max_steps=2)
    assert not asked.data.complete
    assert asked.run_training().steps == 2
    rows = result()["rows"]
    assert rows["train"] == {"found": 20, "loaded": 20, "used": None}
    times = rows["replaced_while_training"].pop("too long for max_length")
    assert times and not rows["replaced_while_training"]
    said = f"ms-swift replaced rows that it could not use: {times} too long for max_length."
    assert said in capfd.readouterr().err
    assert result()["data"]["complete"]
