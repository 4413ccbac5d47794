"""Scanning: many rows at once must say what one by one says, in any number of parts and processes, in bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_toolkit.config.tasks import TASKS, TaskName
from swift_toolkit.dataset import verify as dataset_verify
from swift_toolkit.dataset.reading import files, json_text
from swift_toolkit.dataset.reading.streams import BLOCK_BYTES, Chunk
from swift_toolkit.dataset.rows import flaws
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.dataset.rows.marks import may_hold_signs
from swift_toolkit.dataset.scan import part as part_module
from swift_toolkit.dataset.scan import pool, sample, talks
from swift_toolkit.dataset.scan import rows as scan_rows
from swift_toolkit.dataset.scan import tally as scan_tally
from swift_toolkit.dataset.scan.blocks import LineBlock
from swift_toolkit.dataset.scan.part import find_part
from swift_toolkit.dataset.scan.rows import scan_part
from swift_toolkit.dataset.scan.tally import Prints, Tally
from swift_toolkit.dataset.scan.texts import PlainTexts
from swift_toolkit.dataset.verify import BackgroundVerify, DataReport, verify

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talk(question: object, answer: object) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return name


def many_rows(count: int) -> list[Row]:
    some = random.Random(1)
    words = [
        "the",
        "a",
        "of",
        "and",
        "to",
        "in",
        "is",
        "you",
        "that",
        "it",
        "he",
        "was",
        "for",
        "on",
        "are",
        "as",
        "with",
        "his",
        "they",
        "at",
        "你好",
        "été",
    ]
    return [
        talk(" ".join(some.choices(words, k=8)) + f" {at}?", " ".join(some.choices(words, k=20)))
        for at in range(count)
    ]


# Blocks against single rows


class Everything:
    """A sink that makes the scan look at each row by itself."""

    wants_rows = True

    def lines(self, chunk: bytes) -> None:
        raise AssertionError

    def row(self, *_: object) -> None:
        pass


def verdict(tally: Tally) -> tuple[Any, ...]:
    places = {
        kind: [(found.line, found.flaw.what) for found in founds] for kind, founds in tally.found.items()
    }
    return tally.rows, tally.bad, tally.lines, tally.turns, tally.counts, places, tally.prints.values


ODD_TEXTS = [
    "ok", "a\ufffdb", "Ã©", "â€™", "€", "x\u200b", "\u2060", "\ufeff", "\u202a", "\u2069", "\x07", "\x7f", "\x85",
    "\x9f", "\u2028", "\u00ad", "...", " ", "<image>", "<audio>", "é", "你好", "x" * 60, "你" * 30,
    "<|im_end|>", "[INST]", "<<SYS>>", "<start_of_turn>", "<｜User｜>", "<_Bot>", "<Bot>", "<[_Human]>",
    "Human: a\nAssistant: b", "### User：a\n### Assistant：b", "a\nAssistant: b",
]  # fmt: skip
"""Texts next to each check on texts: what it finds, and what only looks like that."""

texts = st.text(max_size=12) | st.sampled_from(ODD_TEXTS)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"]), "content": texts}
    ),
    max_size=4,
)
plain_rows = st.one_of(
    st.builds(talk, texts, texts),
    st.builds(lambda value: {"messages": value}, messages),
    st.builds(lambda value, system: {"messages": value, "system": system}, messages, texts | st.none()),
    st.fixed_dictionaries({"query": texts, "response": texts}),
    st.fixed_dictionaries({"instruction": texts, "input": texts | st.none(), "output": texts}),
    st.fixed_dictionaries({"messages": messages, "id": st.integers(0, 9)}),
)


def as_lines(rows: list[Row], ascii_only: bool) -> bytes:
    return b"".join(
        json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + b"\n" for row in rows
    )


def as_array(rows: list[Row], ascii_only: bool) -> bytes:
    return json.dumps(rows, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(plain_rows, min_size=1, max_size=12),
    multimodal=st.booleans(),
    max_length=st.none() | st.integers(5, 20),
    ascii_only=st.booleans(),
    task=st.sampled_from(sorted(TASKS)),
    written=st.sampled_from([as_lines, as_array]),
)
def test_blocks_say_what_single_rows_say(
    tmp_path: Path,
    rows: list[Row],
    multimodal: bool,
    max_length: int | None,
    ascii_only: bool,
    task: TaskName,
    written: Callable[[list[Row], bool], bytes],
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(written(rows, ascii_only))
    rules = Rules(TASKS[task], multimodal=multimodal, max_length=max_length)
    try:
        part = find_part(path, "rows.json", rules)
    except flaws.FlawError:
        return
    assert verdict(scan_part(part)) == verdict(scan_part(part, Everything()))


@pytest.mark.skipif(sys.platform != "linux", reason="about the C library of Linux")
def test_blocks_use_the_same_memory() -> None:
    """Memory returned to the kernel and taken again for each block is a fifth of the time for long rows."""
    some = random.Random(1)
    rows = (f"{at} {'好' * some.randrange(120)},{'很' * some.randrange(1, 500)}\n" for at in range(60_000))
    Path("rows.csv").write_text("query,response\n" + "".join(rows), encoding="utf-8")
    code = """
import resource
from swift_toolkit.dataset.verify import verify
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    verify(["rows.csv"], limit_seconds=60)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(dataset_verify.__file__).parents[2])}
    faults = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    blocks = Path("rows.csv").stat().st_size // BLOCK_BYTES
    assert blocks > 50 and int(faults) < 50 * blocks


@pytest.mark.parametrize("written", [as_lines, as_array])
def test_escaped_text_is_read_by_another_decoder(written: Callable[[list[Row], bool], bytes]) -> None:
    rows = [talk(f"{at}: 你好，世界" * 9, f"很好{at}。\U0001f600" * 9) for at in range(3000)]
    rows[1234] = talk("问", "藏\u200b着" * 9)
    Path("rows.json").write_bytes(written(rows, True))
    part = find_part(Path("rows.json"), "rows.json", Rules())
    data = Path("rows.json").read_bytes()
    plain = PlainTexts(part.layout, part.shape)
    assert plain.decoder.is_left_to_orjson(data)
    talks = (plain.of_lines if written is as_lines else plain.of_array)(data)
    assert talks is not None and talks.data is None
    assert talks.texts == [tuple(message["content"] for message in row["messages"]) for row in rows]
    for spoilt in (
        data.replace(b'"user"', b'"User"', 1),
        data.replace(b'"content"', b'"Content"', 1),
        data.replace(b"\\u4f60", b"\\ud83d", 1),
        data.replace(b'"messages"', b'"id": 1, "messages"', 1),
        data[:-30],
    ):
        assert (plain.of_lines if written is as_lines else plain.of_array)(spoilt) is None
    counts = {kind: group.count for kind, group in verify(["rows.json"]).groups.items()}
    assert counts == {"invisible": 1}


def test_only_texts_are_left_to_orjson() -> None:
    Path("rows.jsonl").write_bytes(as_lines([talk("问", "答") | {"id": 2**70}], True))
    part = find_part(Path("rows.jsonl"), "rows.jsonl", Rules())
    assert not PlainTexts(part.layout, part.shape).decoder.is_left_to_orjson(Path("rows.jsonl").read_bytes())


BROKEN_LINES = {
    "two rows on a line": lambda one, two: [one + two],
    "two rows with a comma on a line": lambda one, two: [one + b"," + two],
    "three rows with zeros between them on a line": lambda one, two: [one + b",0," + two + b",0," + one],
    "a row on two lines": lambda one, two: [one.replace(b"}, {", b"},\n{", 1), two],
    "a row on two lines without its comma": lambda one, two: [one.replace(b"}, {", b"}\n{", 1), two],
    "a line break in a text": lambda one, two: [one.replace(b"\\u4f60", b"\\u4f60\n", 1), two],
    "a blank line": lambda one, two: [one, b"", two],
    "a number": lambda one, two: [one, b"0", two],
    "a comma at the end": lambda one, two: [one + b",", two],
    "two lines of a row, and two rows on one": lambda one, two: [
        one.replace(b"}, {", b"},\n{", 1),
        one + b"," + two,
    ],
}


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("broken", BROKEN_LINES.values(), ids=list(BROKEN_LINES))
def test_escaped_rows_are_one_on_each_line(broken: Callable[[bytes, bytes], list[bytes]], end: bytes) -> None:
    one, two = as_lines([talk("你好，世界" * 9, "很好" * 9), talk("再见" * 9, "慢走" * 9)], True).splitlines()
    Path("rows.jsonl").write_bytes(b"\n".join([one, two, one]) + end)
    part = find_part(Path("rows.jsonl"), "rows.jsonl", Rules())
    plain = PlainTexts(part.layout, part.shape)
    assert plain.decoder.is_left_to_orjson(one)
    good, bad = (
        LineBlock(Chunk(b"\n".join(lines) + end)) for lines in ([one, two, one], [two, *broken(one, two)])
    )
    talks = good.all_texts(plain)
    assert talks is not None and len(talks.texts) == 3
    assert bad.all_texts(plain) is None


# Parts and processes


def same_findings(one: DataReport, other: DataReport) -> None:
    first, second = one.as_dict(), other.as_dict()
    for report in (first, second):
        del report["seconds"], report["tokens"]  # an estimate by some of the rows
    assert first == second


def test_parts_in_several_processes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = many_rows(3000)
    rows[7] = talk("x", "")
    rows[2500] = talk(None, "y")
    rows[2900] = rows[3]
    train, val = write("train.jsonl", rows), write("val.jsonl", [*many_rows(20)[-2:], talk("other", "row")])
    alone = verify([train], [val])
    for name in ("ALONE_BYTES", "RANGE_BYTES", "BATCH_BYTES"):
        monkeypatch.setattr(pool, name, 100_000)
    together = verify([train], [val])
    same_findings(alone, together)
    assert {kind: group.count for kind, group in alone.groups.items()} == {
        "content": 2,
        "duplicate": 1,
        "leak": 2,
    }
    assert [str(problem) for problem in together.problems] == [
        'train.jsonl:8: the content of message 2 ("assistant") is empty.',
        'train.jsonl:2501: the content of message 1 ("user") is null, not text.',
    ]
    assert str(together.groups["duplicate"].examples[0]) == (
        "train.jsonl: row 2,901: is the same as row 4. Remove them, unless the extra weight is intended."
    )
    assert str(together.groups["leak"].examples[0]) == (
        "val.jsonl: row 1: is the same as row 19 of train.jsonl. Remove them from one of the two."
    )


@pytest.mark.usefixtures("many_open_files")
def test_parts_in_several_processes_of_a_program_with_many_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "cpu_cores", lambda: 2)
    for name in ("ALONE_BYTES", "RANGE_BYTES", "BATCH_BYTES"):
        monkeypatch.setattr(pool, name, 100_000)
    report = verify([write("train.jsonl", many_rows(3000))])
    assert (report.complete, report.problems) == (True, [])


def test_a_large_file_is_sampled_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many_rows(20_000)
    rows[-1] = talk("the last", "")
    train = write("train.jsonl", rows)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 20_000)
    report = verify([train], limit_seconds=0.0)
    (file,) = report.files
    assert not report.complete and 0 < file.checked < 20_000
    assert abs(file.rows - 20_000) < 1_000
    assert str(report.problems[0]).startswith("train.jsonl: near byte ")
    assert str(report.problems[0]).endswith(': the content of message 2 ("assistant") is empty.')
    assert "about" in report.summary()[0]


def test_sampled_blocks_are_spread_evenly() -> None:
    size = sample.SAMPLE_BYTES
    order = [at / size for at in sample.spread(size * 16 + 5)]
    assert order[0] == 15 + 5 / size
    assert order[1:8] == [8, 4, 12, 2, 6, 10, 14]
    assert len(order) == len(set(order)) == 15


def test_verification_beside_other_work() -> None:
    train = write("train.jsonl", [talk("a", "b"), talk("a", "")])
    with BackgroundVerify([train], task="sft") as check:
        report = check.report(timeout=60)
    assert report is not None
    assert report.files[0].bad == 1


def test_verification_beside_other_work_can_be_stopped() -> None:
    train = write("train.jsonl", many_rows(50_000))
    check = BackgroundVerify([train])
    assert check.report() is None
    check.stop()
    assert check._process.returncode == -9


# Equal rows


def test_verification_beside_other_work_ends_with_its_starter() -> None:
    call = {"role": "tool_call", "content": {"name": "f", "arguments": {}}}
    row = {"messages": [{"role": "user", "content": "q"}, call]}
    Path("slow.jsonl").write_text((json.dumps(row) + "\n") * 500_000)
    code = (
        "import time; from swift_toolkit.dataset.verify import BackgroundVerify;"
        "print(BackgroundVerify(['slow.jsonl'])._process.pid, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(dataset_verify.__file__).parents[2])}
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert starter.stdout is not None
    scan = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.wait()
    scan.wait(timeout=5)


def test_a_share_of_the_prints_is_kept_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_tally, "MAX_PRINTS", 1000)
    prints = Prints()
    values = [hash((f"row {at % 8000}",)) for at in range(16_000)]
    prints.extend(values, len(values))
    count, places = prints.repeats()
    assert len(prints.values) <= 1000
    assert 6_000 < count < 10_000 and places == []


@pytest.mark.parametrize("is_loaded", [True, False])
def test_equal_rows_are_counted_with_and_without_numpy(
    is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    if is_loaded:
        monkeypatch.setitem(sys.modules, "numpy", numpy)
    prints = Prints()
    assert prints.repeats() == (0, [])
    prints.extend([5, -(1 << 63), 7, 5, 5, -(1 << 63), (1 << 63) - 1], 7)
    assert prints.repeats() == (3, [(0, 3), (0, 4), (1, 5)])


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("before", [0, 1, 255, 256, 257, 1000])
def test_a_mark_after_any_number_of_brackets_is_found(
    before: int, is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    if is_loaded:
        monkeypatch.setitem(sys.modules, "numpy", numpy)
    text = "1 < 2, a[0] " * before
    assert not may_hold_signs(text.encode())
    for mark in ("<|im_end|>", "[/INST]"):
        assert may_hold_signs(f"{text}{mark}".encode())
        assert may_hold_signs(f"{mark}{text}".encode())


@pytest.mark.parametrize(
    "cell", ["nan", "#N/A", " ", "\u3000", " \u3000", "\u2028", "\x85", "\x1c", "。", "é!"]
)
@pytest.mark.parametrize("kind", ["quoted", "small", "plain", "parquet"])
def test_a_blank_filler_or_tiny_answer_among_cells_is_found(
    cell: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "small":
        for module in (files, pool):
            monkeypatch.setattr(module, "SMALL_BYTES", 0)
    mark, question = ('"', "a question, number {}") if kind in ("quoted", "small") else ("", "a question {}")
    rows = [(question.format(at), f"answer {at}") for at in range(300)]
    rows.append((question.format("301"), cell))
    if kind == "parquet":
        columns = dict(zip(("query", "response"), map(list, zip(*rows, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), "train.csv")
    else:
        lines = [f"{mark}{query}{mark},{mark}{answer}{mark}\n" for query, answer in rows]
        Path("train.csv").write_text("query,response\n" + "".join(lines), "utf-8", newline="")
    file = Path("train.csv").rename(f"train.{'parquet' if kind == 'parquet' else 'csv'}")
    report = verify([file.name])
    assert report.files[0].checked == 301
    found = [str(problem) for group in report.groups.values() for problem in group.examples]
    place = f"{file.name}: row 301" if kind == "parquet" else f"{file.name}:302"
    assert bool(found) == (cell != "é!") and all(problem.startswith(place) for problem in found)


def test_every_blank_character_begins_with_a_byte_of_the_table() -> None:
    blanks = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert all(talks._MAY_BE_BLANK[blank.encode()[0]] for blank in blanks)


def test_the_same_content_in_another_format_is_a_leak() -> None:
    train = write("train.jsonl", [talk("What is it?", "A cat.")])
    val = write("val.jsonl", [{"query": "What is it?", "response": "A cat."}])
    assert verify([train], [val]).groups["leak"].count == 1


def test_rows_that_differ_only_in_their_images_are_not_the_same() -> None:
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(PNG)
    rows = [talk("<image>What is it?", "A cat.") | {"images": [name]} for name in ("a.png", "b.png")]
    assert not verify([write("train.jsonl", rows)]).groups


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


def test_a_damaged_image_header() -> None:
    Path("a.png").write_bytes(PNG[:20])
    Path("b.png").write_bytes(b"not an image")
    Path("c.png").write_bytes(PNG)
    rows = [talk("<image>?", f"{name}") | {"images": [name]} for name in ("a.png", "b.png", "c.png")]
    assert [str(problem) for problem in verify([write("t.jsonl", rows)]).problems] == [
        't.jsonl:1: "a.png" has a damaged header: Truncated File Read. Replace the file.',
        't.jsonl:2: "b.png" is not a readable image. Replace the file.',
    ]


# Columns that the head of a large file fixes


@pytest.mark.parametrize("packed", [False, True])
def test_columns_that_change_late(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    for module in (part_module, scan_rows):
        monkeypatch.setattr(module, "HEAD_BYTES", 50_000)
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 10_000)
    rows = [row | {"id": at} for at, row in enumerate(many_rows(1000))]
    late_column = talk("q", "a") | {"id": 1, "source": "web"}
    late_type = talk("q2", "a") | {"id": "two"}
    late_key = {
        "messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "a", "loss": True}]
    }
    train = write("train.jsonl", [*rows, late_column, late_type, late_key])
    if packed:
        Path(train).write_bytes(gzip.compress(Path(train).read_bytes()))
    report = verify([train])
    assert [str(problem) for problem in report.problems] == [
        'train.jsonl:1001: "source" does not occur in the first 10 MB of the file. Shuffle the file, or fix the row.',
        'train.jsonl:1002: "id" changes its type after the first 10 MB of the file. Shuffle the file, or fix the row.',
        'train.jsonl:1003: "loss" does not occur in the first 10 MB of the file. Shuffle the file, or fix the row.',
    ]


# Anything at all in a file


def says(name: str) -> list[str]:
    return [str(problem) for problem in verify([name]).problems]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst"])
def test_packed_files_larger_than_a_block(name: str) -> None:
    rows = many_rows(20_000)
    text = json.dumps(rows) if name.startswith("a.json.") else "".join(json.dumps(row) + "\n" for row in rows)
    assert len(text) > 2 * BLOCK_BYTES
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    Path(name).write_bytes(pack(b"\xef\xbb\xbf" + text.encode()))
    report = verify([name])
    assert report.ok, report.problems
    assert report.train_rows == 20_000


def test_damaged_archives() -> None:
    text = "".join(json.dumps(row) + "\n" for row in many_rows(5000)).encode()
    packed, zipped = gzip.compress(text), zstandard.compress(text)
    Path("cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    Path("flipped.jsonl.gz").write_bytes(packed[:5000] + bytes(100) + packed[5100:])
    Path("cut.jsonl.zst").write_bytes(zipped[: len(zipped) // 2])
    Path("end.jsonl.zst").write_bytes(zipped[:-1])
    Path("head.json.zst").write_bytes(zipped[:6])
    for name in ("cut.jsonl.gz", "cut.jsonl.zst", "end.jsonl.zst", "head.json.zst"):
        assert says(name)[-1].endswith("cannot be read to the end: the file is truncated.")
    assert "cannot be read to the end" in says("flipped.jsonl.gz")[-1]


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("a.jsonl")
    assert says("a.jsonl") == ["a.jsonl: is not a regular file. Write the rows to a file."]


def test_no_parquet() -> None:
    Path("a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    assert len(says("a.parquet")) == 1
    assert says("a.parquet")[0].startswith("a.parquet: cannot be read to the end: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":' * 100_000, "a.jsonl:1: row is nested too deeply. Write the inner part as text."),
        (b"[" * 100_000, "a.jsonl:1: row is nested too deeply. Write the inner part as text."),
        (b"\x00" * 1000, "a.jsonl:1: row is not valid JSON."),
        (b'{"messages": "\x00"}', "a.jsonl:1: text contains a raw NUL character."),
        (
            b'{"id": ' + b"[" * 70 + b"]" * 70 + b"}",
            "a.jsonl: a row is nested more than 60 levels deep. Write the inner part as text.",
        ),
    ],
)
def test_hostile_bytes(data: bytes, message: str) -> None:
    Path("a.jsonl").write_bytes(data)
    assert says("a.jsonl") == [message]


@pytest.mark.parametrize(
    ("name", "begin", "says"),
    [
        ("long.jsonl", '{"messages": "', "long.jsonl: a row is longer than 32 MB. Split it."),
        ("long.json", '[{"messages": "', "long.json:1: row is longer than 32 MB. Split it."),
        ("long.csv", "query,response\n", "long.csv: a line is longer than 8 MB. Split it."),
        (
            "quote.csv",
            'query,response\n"\n',
            "quote.csv: cannot be read to the end: a field is longer than 8 MB.",
        ),
    ],
)
def test_a_line_of_100_mb_takes_little_memory(name: str, begin: str, says: str) -> None:
    with Path(name).open("w") as out:
        out.write(begin)
        for _ in range(100):
            out.write("x" * 999_999 + ("\n" if name == "quote.csv" else "x"))
    code = (
        "import re; from pathlib import Path; from swift_toolkit.dataset.verify import verify;"
        f"print(*verify([{name!r}]).problems, sep='\\n');"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    root = Path(dataset_verify.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root)},
        check=True,
    )
    message, kilobytes = done.stdout.splitlines()
    assert message == says
    assert int(kilobytes) < 250_000


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".json.zst"]),
    data=st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text('[]{}",:\\u0d8 \n1e.-ntf', max_size=60).map(str.encode),
)
def test_any_bytes_get_an_answer(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(data)
    report = verify([str(path)])
    assert report.summary()
    json.dumps(report.as_dict())
