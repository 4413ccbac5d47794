"""The same rows in every layout of a file: the same findings, whole or by a sample, in one process or several."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_toolkit.config.tasks import TaskName
from swift_toolkit.dataset.reading import files, json_text, tables
from swift_toolkit.dataset.reading.files import look_at
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.flaws import FlawError
from swift_toolkit.dataset.scan import part, pool, sample
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Tally
from swift_toolkit.dataset.verify import DataReport, verify

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_text, tables):
        monkeypatch.setattr(module, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(part, "LITTLE", 500)
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 17)
    for module in (files, pool):
        monkeypatch.setattr(module, "SMALL_BYTES", 0)


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Row], separator: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(rows[0])
    for row in rows:
        cells = [json.dumps(cell) if isinstance(cell, list) else cell for cell in map(row.get, rows[0])]
        writer.writerow(cells)
    return text.getvalue().encode()


def parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=90)
    return out.getvalue()


LAYOUTS: dict[str, Callable[[list[Row]], bytes]] = {
    "a.jsonl": lines,
    "a.json": lambda rows: json.dumps(rows).encode(),
    "b.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "c.json": lambda rows: b"\xef\xbb\xbf \n" + json.dumps(rows, separators=(",", ":")).encode(),
    "d.json": lambda rows: "".join(json.dumps(row, indent=1) + "\n" for row in rows).encode(),
    "a.csv": table,
    "a.tsv": lambda rows: table(rows, "\t"),
    "b.csv": lambda rows: table(rows).replace(b"\r\n", b"\n"),
    "a.parquet": parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "a.json.zst": lambda rows: zstandard.compress(json.dumps(rows, indent=4).encode()),
    "a.csv.gz": lambda rows: gzip.compress(table(rows)),
    "a.csv.zst": lambda rows: zstandard.compress(table(rows)),
}


def pairs(count: int) -> list[Row]:
    """Questions and answers with all that separates rows and fields in them, a few of them bad."""
    odd = [
        'say "hi", then\n"bye"',
        "},\n  {",
        '}, {"query": "x"',
        "a,b;c\td",
        "你好，“世界”",
        "\\",
        "é\r\nü",
        '"',
    ]
    rows = [
        {"query": f"{at}: {odd[at % len(odd)]}", "response": f"{odd[at % 7]} {'word ' * (at % 50)}{at}"}
        for at in range(count)
    ]
    rows[count // 3]["response"] = "..."
    rows[count // 2]["response"] = "\u200bhidden"
    rows[-2] = rows[5]
    return rows


def talks(count: int) -> list[Row]:
    """The same as messages, with the same first key inside."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["query"]},
                {"role": "assistant", "content": row["response"]},
            ]
        }
        for row in pairs(count)
    ]


def findings(report: DataReport) -> dict[str, Any]:
    """All that does not depend on the layout."""
    assert report.complete
    return {
        "rows": report.train_rows,
        "turns": report.turns,
        "counts": {kind: group.count for kind, group in report.groups.items()},
    }


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rows", [pairs(400), talks(400)], ids=["pairs", "talks"])
@pytest.mark.usefixtures("small_blocks")
def test_every_layout_has_the_same_findings(
    name: str, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.jsonl").write_bytes(lines(rows))
    Path(name).write_bytes(LAYOUTS[name](rows))
    expected = {"rows": 400, "turns": {2: 400}, "counts": {"tiny-answer": 1, "invisible": 1, "duplicate": 1}}
    assert findings(verify(["rows.jsonl"])) == expected
    assert findings(verify([name])) == expected
    for constant in ("ALONE_BYTES", "RANGE_BYTES", "BATCH_BYTES"):
        monkeypatch.setattr(pool, constant, 8000)
    report = verify([name])
    assert findings(report) == expected
    (example,) = report.groups["duplicate"].examples
    assert str(example).startswith(f"{name}: row 399: is the same as row 6.")


@pytest.mark.parametrize("name", ["a.json", "b.json", "a.csv", "a.jsonl.gz", "d.json", "a.csv.zst"])
@pytest.mark.usefixtures("small_blocks")
def test_flaws_are_found_where_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs(400)
    rows[333] = {"query": "q", "response": ""}
    Path(name).write_bytes(LAYOUTS[name](rows))
    (alone,) = verify([name]).problems
    text = LAYOUTS[name.removesuffix(".gz").removesuffix(".zst")](rows).decode()
    line = text.splitlines()[alone.line - 1] if alone.line is not None else ""
    after = "".join(text.splitlines()[alone.line - 1 :][:3]) if alone.line is not None else ""
    assert name == "a.json" or "q" in line or '"query": "q"' in after
    for constant in ("ALONE_BYTES", "BATCH_BYTES", "RANGE_BYTES"):
        monkeypatch.setattr(pool, constant, 8000)
    (together,) = verify([name]).problems
    assert str(alone) == str(together)


def same_first_key(count: int) -> list[Row]:
    """Rows that begin like the objects in them, so that an array cannot be cut by the bytes between two rows."""
    return [{"role": "a", "messages": [*row["messages"], *row["messages"]]} for row in talks(count)]


def in_one_group(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def in_the_middle(data: bytes, what: bytes, before: bytes) -> bytes:
    at = data.index(before, len(data) // 2)
    return data[:at] + what + data[at:]


HARD_TO_CUT: dict[str, tuple[str, bytes]] = {
    "rows that begin like their parts": ("a.json", json.dumps(same_first_key(400)).encode()),
    "a cut off array": ("a.json", halved(json.dumps(pairs(400)).encode())),
    "a broken item": ("a.json", in_the_middle(json.dumps(pairs(400), indent=1).encode(), b"nonsense ", b"{")),
    "text after the array": ("a.json", json.dumps(pairs(400)).encode() + b" []"),
    "an array without objects": ("a.json", json.dumps([[at] for at in range(9000)]).encode()),
    "a lone quote": ("a.csv", in_the_middle(table(pairs(400)), b'a 5" screen,b\r\n', b"\n5")),
    "an open quote": ("a.csv", table(pairs(400)) + b'"open, it never ends\r\n' * 30),
    "a row with too many fields": ("a.csv", in_the_middle(table(pairs(400)), b"a,b,c\r\n", b"\n5")),
    "a table that is not UTF-8": ("a.csv", in_the_middle(table(pairs(400)), b"\xff", b"word")),
    "lines that are not UTF-8": ("a.jsonl", in_the_middle(lines(pairs(400)), b"\xff", b"word")),
    "text that is not UTF-8": ("a.txt", in_the_middle(lines(pairs(400)), b"\xff", b"word")),
    "text": ("a.txt", lines(pairs(400))),
    "one row group": ("a.parquet", in_one_group(pairs(400))),
    "few row groups": ("a.parquet", parquet(pairs(250))),
    "a row group of messages": ("a.parquet", in_one_group(talks(400))),
}


@pytest.mark.parametrize("case", HARD_TO_CUT)
@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.usefixtures("small_blocks")
def test_several_processes_find_what_one_finds(
    case: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = HARD_TO_CUT[case]
    Path(name).write_bytes(data)
    Path("b.jsonl").write_bytes(lines(pairs(300)))
    task: TaskName = "pt" if name == "a.txt" else "sft"
    alone = verify([name, "b.jsonl"], task=task).as_dict()
    for constant in ("ALONE_BYTES", "BATCH_BYTES", "RANGE_BYTES"):
        monkeypatch.setattr(pool, constant, 8000)
    monkeypatch.setattr(pool, "cpu_cores", lambda: cores)
    together = verify([name, "b.jsonl"], task=task).as_dict()
    for report in (alone, together):
        del report["seconds"], report["tokens"]  # an estimate from some of the rows
    assert alone == together


def test_the_rows_between_two_rows_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 7)
    rows = [{"query": f"{at}", "response": f"a{at}"} for at in range(200)]
    Path("a.parquet").write_bytes(parquet(rows))
    file = look_at(Path("a.parquet"), "a.parquet")
    for start, end in ((0, 200), (0, 1), (5, 5), (89, 91), (90, 180), (181, None), (30, 199), (199, 200)):
        found = [row for (batch,) in tables.batches_between(file, start, end) for row in batch.to_pylist()]
        assert found == rows[start:end]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in {"d.json", "b.csv"}])
def test_the_rows_of_a_sample_are_told_within_two_percent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in pairs(4000) if row["response"] not in {"...", "\u200bhidden"}]
    for module in (json_text, tables):
        monkeypatch.setattr(module, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 20_000)
    monkeypatch.setattr(sample, "BLOCK_BYTES", 20_000)
    Path(name).write_bytes(LAYOUTS[name](rows))
    clock = iter(range(1000))
    monkeypatch.setattr(sample.time, "perf_counter", lambda: next(clock) / 10)  # the same on any machine
    packed = name.endswith((".gz", ".zst"))  # half of the time goes into counting
    report = verify([name], limit_seconds=5.0 if packed else 2.0)
    assert not report.complete and report.ok
    assert report.train_rows is not None
    assert abs(report.train_rows - len(rows)) <= len(rows) * 0.02


def test_a_table_with_lone_quotes_is_read_row_by_row() -> None:
    rows = [f'{at},a 5" screen,"two\nlines, {at}"' for at in range(3000)]
    Path("a.csv").write_text("id,query,response\n" + "\n".join(rows) + "\n")
    report = verify(["a.csv"])
    assert report.ok and report.train_rows == 3000 and not report.warnings


def test_a_table_with_a_quote_at_the_end_of_a_bare_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 500)
    rows = [f'a {at} of 5","two\nlines"' if at % 3 else f"plain {at},text {at}" for at in range(300)]
    Path("a.csv").write_text("query,response\n" + "\n".join(rows) + "\n")
    report = verify(["a.csv"])
    assert report.ok and report.train_rows == 300


values = st.text(st.sampled_from('ab"\\,;{}[]\n\r\t: é你\u200b'), max_size=8)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.fixed_dictionaries({"query": values, "response": values}), min_size=1, max_size=30),
    name=st.sampled_from(["a.json", "b.json", "c.json", "a.csv", "a.tsv", "a.parquet"]),
    block=st.integers(20, 300),
)
def test_any_texts_are_cut_right(tmp_path: Path, rows: list[Row], name: str, block: int) -> None:
    path = tmp_path / name
    path.write_bytes(LAYOUTS[name](rows))
    kept: list[Any] = []

    class Keep:
        wants_rows = True

        def lines(self, chunk: bytes) -> None:
            raise AssertionError

        def row(self, value: Any, *_: object) -> None:
            kept.append(value)

    with pytest.MonkeyPatch.context() as patch:
        for module in (json_text, tables):
            patch.setattr(module, "BLOCK_BYTES", block)
        for module in (files, pool):
            patch.setattr(module, "SMALL_BYTES", 1000)
        patch.setattr(part, "LITTLE", 10)
        try:
            found = find_part(path, name, Rules())
        except FlawError:
            return
        scan_part(found, Keep())
        quick = scan_part(found)
    assert quick.rows == len(rows) == len(kept)
    if not name.endswith("sv"):
        assert kept == rows
    else:
        assert [{key: value or "" for key, value in row.items()} for row in kept] == rows


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "", "é", "你", " ", ",", ",", "\n", "\r\n", "\r"]), max_size=12),
    st.booleans(),
)
def test_cells_without_quotes_are_those_of_the_csv_module(parts: list[str], ends: bool) -> None:
    text = "".join(parts) + "\n" * ends
    columns = tables._columns_without_quotes(text.encode(), ["b", "c"], ",")
    if columns is not None:
        rows = list(zip(columns.texts["b"], columns.texts["c"], strict=True))
        read = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert rows == list(map(tuple, read))
    if "\r" not in text and all(line.count(",") == 1 for line in text.splitlines()) and text.strip("\n"):
        assert columns is not None


@pytest.mark.parametrize("first", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("second", ["b.json", "a.tsv", "a.jsonl.gz", "a.parquet"])
def test_rows_are_found_again_in_another_layout(first: str, second: str) -> None:
    rows = [*pairs(60), {"query": "只有这个？", "response": "“是”的，\U0001f600。"}]
    Path(f"1{first}").write_bytes(LAYOUTS[first](rows))
    Path(f"2{second}").write_bytes(LAYOUTS[second](rows[20:]))
    report = verify([f"1{first}"], [f"2{second}"])
    assert report.groups["leak"].count == len(rows) - 20 and report.groups["duplicate"].count == 1


def test_items_that_look_like_two_are_learned_from() -> None:
    """The end of an item and the start of the next one, as in this file, inside a text at the end of a chunk."""
    talk: list[Row] = [{"query": "q", "response": "a"}]
    between = json_text.between_items(json.dumps(talk * 2).encode()).decode()
    rows = [*talk, {"query": "x" * (part.LITTLE * 2), "response": between + "x" * (1 << 20)}] * 3
    Path("a.json").write_text(json.dumps([*rows, {"query": "q", "response": "a", "score": 1}]))
    found = find_part(Path("a.json"), "a.json", Rules())
    assert list(found.shape.fields) == ["query", "response", "score"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("text", ["a question", 'a "question"'])
@pytest.mark.parametrize("as_talk", [False, True])
def test_cells_that_are_not_utf_8_are_refused(name: str, text: str, as_talk: bool) -> None:
    rows: list[Row] = [{"query": text, "response": f"XXX {at}"} for at in range(200)]
    if as_talk:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": row["query"]},
                    {"role": "assistant", "content": row["response"]},
                ]
            }
            for row in rows
        ]
    data = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), data, compression="none", use_dictionary=False
    )
    content = data.getvalue() if name == "a.parquet" else table(rows)
    Path(name).write_bytes(content.replace(b"XXX 150", b"X\xffX 150"))
    report = verify([name])
    assert "UTF-8" in str(report.problems[0])


def test_what_an_array_holds_behind_its_head_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "HEAD_BYTES", 5000)
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 2000)
    rows: list[Row] = [{"query": f"q {at}", "response": f"answer {at}"} for at in range(400)]
    Path("a.json").write_text(json.dumps([*rows, {"query": "q", "response": "a", "source": "web"}]))
    report = verify(["a.json"])
    assert report.ok and report.files[0].unused == ["source"]
    Path("b.json").write_text(json.dumps([*rows, {"messages": [{"role": "user", "content": "q"}]}]))
    report = verify(["b.json"])
    assert report.files[0].format == "messages"
    assert report.files[0].bad == 401
    Path("c.json").write_text(json.dumps([*rows, {"query": "q", "response": ["a"]}]))
    report = verify(["c.json"])
    assert report.ok
    assert report.files[0].copy_reason == 'ms-swift would read texts like "42" in "response" as numbers'


def test_a_parquet_file_of_many_row_groups_has_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a part, the metadata of all row groups is read."""
    rows = pyarrow.Table.from_pylist(pairs(3000))
    pyarrow.parquet.write_table(rows, "a.parquet", row_group_size=1, compression="none")
    monkeypatch.setattr(pool, "RANGE_BYTES", 1000)
    file = find_part(Path("a.parquet"), "a.parquet", Rules())
    pieces = list(pool._pieces(file, tables.group_rows(file.file)))
    most = pool._processes() * pool.MAX_ROUNDS
    assert most // 2 < len(pieces) <= most + 1
    assert sum(scan_part(piece).rows for piece in pieces if not isinstance(piece, Tally)) == 3000


def test_workers_read_parquet_without_numpy() -> None:
    """It takes longer to import than pyarrow. Times of a nanosecond, which need pandas and so numpy, are still read."""
    rows = pyarrow.Table.from_pylist([*pairs(299), {"query": "q", "response": ""}])
    times = pyarrow.array([1_700_000_000_123_456_789] * 300, pyarrow.timestamp("ns"))
    pyarrow.parquet.write_table(rows, "a.parquet")
    pyarrow.parquet.write_table(rows.append_column("time", times), "b.parquet")
    Path("c.parquet").write_bytes(b"PAR1 and no more")
    out = run_python(
        """
        import sys
        from pathlib import Path
        from swift_toolkit.dataset.scan import pool
        from swift_toolkit.dataset.verify import verify

        def loaded():
            return sorted({"numpy", "pyarrow"} & sys.modules.keys())

        pool.cpu_cores, pool.ALONE_BYTES = lambda: 2, 0
        report = verify(["a.parquet"])
        with pool.Workers() as workers:
            workers.find_part(Path("a.parquet"), "a.parquet", report.rules)
            print(report.files[0].rows, loaded(), workers._call(loaded))
        print(*verify(["b.parquet", "c.parquet"]).problems, sep="\\n")
        """
    )
    modules, broken, bad = out.splitlines()
    assert modules == "300 [] ['pyarrow']"
    assert broken.startswith("c.parquet: cannot be read to the end: ")
    assert bad == 'b.parquet: row 300: the content of message 2 ("assistant") is empty.'


def test_a_small_table_with_quotes_is_read_without_numpy_and_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.csv").write_bytes(table(pairs(300)))
    out = run_python(
        """
        import sys
        from swift_toolkit.dataset.verify import verify

        report = verify(["a.csv"])
        print({"numpy", "pyarrow"} & sys.modules.keys(), report.train_rows, *report.groups)
        """
    )
    assert out == "set() 300 tiny-answer invisible duplicate\n"
    found = verify(["a.csv"])
    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    assert findings(verify(["a.csv"])) == findings(found)


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(pool.__file__).parents[3])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_parquet_file_is_not_kept_in_memory() -> None:
    rows = [{"query": f"{at}", "response": os.urandom(500).hex()} for at in range(20_000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet", row_group_size=500)
    file, memory = look_at(Path("a.parquet"), "a.parquet"), pyarrow.default_memory_pool()
    before = memory.bytes_allocated()
    held = [memory.bytes_allocated() - before for _ in tables.batches(file)]
    assert max(held) < Path("a.parquet").stat().st_size / 4
