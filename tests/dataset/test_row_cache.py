"""Rows that are kept for later runs: used again for the same data and settings, and for no others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit import __main__
from swift_toolkit.dataset import row_cache
from swift_toolkit.machine.msswift import installed

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"q": f"What is <thing> {at}?", "a": f"It is THE answer {at}. " * (at + 1)} for at in range(6)]
CALLS = [
    {
        "tools": [
            {"type": "function", "function": {"name": "clock", "description": "time", "parameters": {}}}
        ],
        "messages": [
            {"role": "user", "content": "What time is it?"},
            {"role": "tool_call", "content": '{"name": "clock", "arguments": {}}'},
            {"role": "tool_response", "content": "noon"},
            {"role": "assistant", "content": "Noon."},
        ],
    }
] * 4
COLUMNS = '--columns={"q": "query", "a": "response"}'

PLUGIN = """try:
    from swift.loss_scale.base import LossScale
    from swift.loss_scale.mapping import loss_scale_map
except ImportError:  # ms-swift 3
    from swift.plugin.loss_scale.loss_scale import LossScale, loss_scale_map


class Half(LossScale):
    def get_loss_scale(self, context, **kwargs):
        return [context], [1.0]


loss_scale_map["half"] = Half
"""


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def changed(**values: str) -> str:
    return lines([{**ROWS[0], **values}, *ROWS[1:]])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A directory with data, a model of its own, a plugin and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    (tmp_path / "calls.jsonl").write_text(lines(CALLS))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return tmp_path


def encode(place: Path, cases: list[dict[str, Any]], before: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What a process finds that encodes the rows of these cases."""
    request = {
        "arguments": [
            f"--model={place / 'model'}", "--model_type=llama", "--check_model=false", "--torch_dtype=float32",
            "--use_cpu=true", "--bf16=false", "--fp16=false", f"--output_dir={place / 'output'}", "--add_version=false",
        ],
        "cases": cases,
    }  # fmt: skip
    here = Path(tempfile.mkdtemp(dir=place))
    file = here / "request.json"
    file.write_text(json.dumps(request))
    script = str(ROOT / "tests/dataset/encodings.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*before, sys.executable, script, str(file)],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def data(*more: str, file: str = "rows.jsonl", template: str = "chatml") -> list[str]:
    return [
        f"--dataset=../{file}",
        f"--template={template}",
        *([COLUMNS] if file == "rows.jsonl" else []),
        *more,
    ]


@pytest.mark.slow
def test_only_the_same_data_and_settings_find_kept_rows(place: Path) -> None:
    tokenizer = place / "model" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    spelled = {"type": "Replace", "pattern": {"String": "answer"}, "content": "a n s w e r"}
    other_tokens = json.dumps({**content, "normalizer": spelled})
    swapped = '--columns={"a": "query", "q": "response"}'
    shutil.copy(place / "rows.jsonl", place / "other.jsonl")
    plugin, half = f"--external_plugins={place / 'plugin.py'}", "--loss_scale=half"
    cases: dict[str, dict[str, Any]] = {
        "first": {"arguments": data()},
        "again": {"arguments": data()},
        "another learning rate": {"arguments": data("--learning_rate=0.5")},
        "two processes": {"arguments": data("--dataset_num_proc=2")},
        "another file": {"arguments": [*data(file="other.jsonl"), COLUMNS]},
        "a changed row": {
            "write": {"../rows.jsonl": changed(a="No.")},
            "arguments": data(),
        },
        "the rows as before": {"write": {"../rows.jsonl": lines(ROWS)}, "arguments": data()},
        "column mapping": {"arguments": [*data()[:-1], swapped]},
        "template": {"arguments": data(template="zephyr")},
        "system prompt": {"arguments": data("--system=You are a pirate.")},
        "max_length": {"arguments": data("--max_length=40")},
        "truncation": {"arguments": data("--max_length=40", "--truncation_strategy=right")},
        "added token": {"arguments": data("--new_special_tokens=<thing>")},
        "loss_scale": {"arguments": data("--loss_scale=all")},
        "agent template": {"arguments": data("--agent_template=react_en", file="calls.jsonl")},
        "another agent template": {"arguments": data("--agent_template=hermes", file="calls.jsonl")},
        "plugin": {"arguments": data(plugin, half)},
        "plugin again": {"arguments": data(plugin, half)},
        "another plugin": {
            "write": {"../plugin.py": PLUGIN.replace("[1.0]", "[0.5]")},
            "arguments": data(plugin, half),
        },
        "tokenizer file": {"write": {str(tokenizer): other_tokens}, "arguments": data()},
    }
    found = dict(zip(cases, encode(place, list(cases.values())), strict=True))
    known = {"again", "another learning rate", "the rows as before", "plugin again"}
    if installed().line == "v4":  # an older `datasets` keeps rows for each number of processes
        known.add("two processes")
    assert {name for name, case in found.items() if not case["encoded"]} == known
    assert all(case["kept"] for case in found.values())
    first = found["first"]
    for name, case in found.items():
        assert case["lengths"] == case["tokens"], name  # what is noted is what is trained on
        assert f"max={max(case['tokens']):.6f}, size={len(case['tokens'])}" in case["shows"], name
    for name in ("again", "another learning rate", "the rows as before"):
        assert found[name] == {**first, "encoded": 0}
    parts = ("tokens", "learned")
    same = {"another file", "another learning rate", "two processes", "first", "again", "the rows as before"}
    for name in cases.keys() - same - {"plugin", "plugin again", "another plugin"}:
        assert [found[name][part] for part in parts] != [first[part] for part in parts], name
    assert found["agent template"]["tokens"] != found["another agent template"]["tokens"]


@pytest.mark.slow
def test_a_run_finds_the_rows_of_another_run_s_copy(place: Path) -> None:
    def run(name: str, content: str, **before: str) -> dict[str, Any]:
        (place / name / "data").mkdir(parents=True)
        file = place / name / "data" / "rows.jsonl"
        own = [f"--output_dir={place / name}", f"--dataset={file}#4", "--template=chatml", COLUMNS]
        return {"write": {str(file): content}, "arguments": own, **before}

    first, again, other = encode(
        place, [run("v0", lines(ROWS)), run("v1", lines(ROWS)), run("v2", changed(a="No."))]
    )
    assert first["encoded"] and first["kept"] and other["encoded"]
    assert again == {**first, "encoded": 0}
    assert other["tokens"] != first["tokens"]
    (place / "v0" / "data" / "rows.jsonl").write_text(changed(a="Never."))  # the user's own file, perhaps
    later = [run("v4", lines(ROWS)), run("v3", lines(ROWS), remove=str(place / "v0"))]
    assert encode(place, later) == [again] * 2


@pytest.mark.slow
def test_a_full_disk_means_that_rows_are_not_kept(place: Path) -> None:
    shell = 'mount -t tmpfs -o size=64k tmpfs "$XDG_CACHE_HOME/swift-toolkit/rows" && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("needs a file system of its own")
    row_cache.root().mkdir(parents=True)
    (place / "rows.jsonl").write_text(lines(ROWS * 200))
    case = {"arguments": data()}
    cases = [{**case, "spare": spare} for spare in (-(1 << 40), 256 << 20)]
    full, too_full = encode(place, cases, [*alone, "sh", "-c", shell, "sh"])
    (fresh,) = encode(place, [case])
    assert fresh["kept"] and not full["kept"] and not too_full["kept"]
    assert full["tokens"] == too_full["tokens"] == fresh["tokens"]


@pytest.mark.slow
def test_two_runs_at_once_find_the_same_rows(place: Path) -> None:
    (place / "rows.jsonl").write_text(lines(ROWS * 100))
    case = {"arguments": [f"--dataset={place / 'rows.jsonl'}", *data()[1:]]}
    found: list[dict[str, Any]] = []
    both = [threading.Thread(target=lambda: found.extend(encode(place, [case, case]))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [one["tokens"] for one in found] == [found[0]["tokens"]] * 4
    assert sum(one["encoded"] == 0 for one in found) >= 2
    assert [entry.path.parent for entry in row_cache.entries()] == [row_cache.root()]


# without ms-swift


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("a")
    one, time = row_cache.identity(file), file.stat().st_mtime_ns
    file.write_text("b")
    os.utime(file, ns=(time, time))
    assert row_cache.identity(file) != one
    file.write_text("a")
    assert row_cache.identity(file) == one


def test_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b#3.jsonl", "shards/2.jsonl", "shards/1.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert row_cache.data_files(["a.jsonl#5", "b#3.jsonl"]) == [Path("a.jsonl"), Path("b#3.jsonl")]
    assert row_cache.data_files(["shards"]) == [Path("shards/1.jsonl"), Path("shards/2.jsonl")]
    assert row_cache.data_files(["a.jsonl", "AI-ModelScope/alpaca-gpt4-data-zh#500"]) is None


def entry(name: str, used: int, size: int = 1000) -> Path:
    path = row_cache.root() / name
    path.mkdir(parents=True)
    (path / "rows.arrow").write_bytes(b"x" * size)
    lock = path.with_name(f"{name}.lock")
    lock.touch()
    os.utime(lock, (used, used))
    return path


def test_an_entry_in_use_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old, new = entry("old", 1), entry("new", 2)
    assert [one.path.name for one in row_cache.entries()] == ["new", "old"]
    keeper = row_cache.RowKeeper()
    keeper._hold(old)
    assert [row_cache.clear(one) for one in row_cache.entries()] == [False, True]
    assert old.is_dir() and not new.exists()
    del keeper
    assert [row_cache.clear(one) for one in row_cache.entries()] == [True]
    assert list(row_cache.root().iterdir()) == []


def test_the_cache_keeps_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(row_cache, "MOST_BYTES", 2500)
    for at in range(4):
        entry(f"entry{at}", at)
    row_cache._shrink()
    assert {one.path.name for one in row_cache.entries()} == {"entry2", "entry3"}


def test_reasons_of_skipped_rows_are_kept_with_them(tmp_path: Path) -> None:
    keeper, lost = row_cache.RowKeeper(), tmp_path / "lost"
    keeper.note_skipped(lost)  # of rows that are not kept
    keeper.folder = tmp_path / "entry"
    keeper.folder.mkdir()
    lost.write_text('"too long for max_length"\n')
    keeper.note_skipped(lost)
    again = tmp_path / "again"
    again.touch()
    keeper.note_skipped(again)
    assert again.read_text() == lost.read_text()


def test_the_cache_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert __main__.main(["cache"]) == 0
    assert capsys.readouterr().out == f"0.0 MiB in 0 entries: {row_cache.root()}\n"
    used = entry("used", 1, 3 << 20)
    entry("unused", 2, 5 << 20)
    keeper = row_cache.RowKeeper()
    keeper._hold(used)
    assert __main__.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == (
        f"Removed 5.0 MiB of kept rows.\n3.0 MiB in 1 entry, in use: {row_cache.root()}\n"
    )
    assert __main__.main(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found["entries"]] == [str(used)]
