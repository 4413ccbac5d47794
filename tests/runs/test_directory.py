"""Run directories: claimed once, linked in one step, results written whole."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swift_toolkit.machine import files
from swift_toolkit.runs import directory as runs_directory


def test_the_next_directory_has_ms_swifts_name(tmp_path: Path) -> None:
    assert re.fullmatch(r"v0-\d{8}-\d{6}", runs_directory.next_run_directory(tmp_path / "new").name)
    (tmp_path / "v4-20260101-000000").mkdir()
    (tmp_path / "notes").mkdir()
    assert runs_directory.next_run_directory(tmp_path).name.startswith("v5-")


def test_no_two_runs_get_the_same_directory(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: runs_directory.claim_run_directory(tmp_path), range(64)))
    assert len(set(claimed)) == 64
    assert all(directory.is_dir() for directory in claimed)


def test_a_link_is_relative_and_replaces_an_older_one(tmp_path: Path) -> None:
    first, second = tmp_path / "v0-x/checkpoint-1", tmp_path / "v1-x/checkpoint-2"
    for checkpoint in (first, second):
        checkpoint.mkdir(parents=True)
        runs_directory.link(tmp_path, "last", checkpoint)
        assert (tmp_path / "last").readlink() == checkpoint.relative_to(tmp_path)
    runs_directory.link(tmp_path, "last", tmp_path / "never/made")
    assert (tmp_path / "last").resolve() == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "v0-x", "v1-x"]


def test_a_users_own_directory_called_last_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "checkpoint-1").mkdir()
    runs_directory.link(tmp_path, "last", tmp_path / "checkpoint-1")
    assert not (tmp_path / "last").is_symlink()


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"a": "ü", "path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü", "path": str(tmp_path)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
