"""Files appear whole or not at all, however the writing ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from swift_toolkit.machine import files

WRITES = """
import sys
from pathlib import Path
from swift_toolkit.machine.files import whole_text
with whole_text(Path(sys.argv[1])) as file:
    file.write("new " * 100_000)
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder's only file."""
    path = tmp_path / "result.json"
    path.write_text("old")
    return path


def only(path: Path) -> bool:
    return list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_and_keeps_its_permissions(old: Path) -> None:
    old.chmod(0o640)
    files.write_json(old, {"a": "ü"})
    assert old.read_text(encoding="utf-8") == '{\n  "a": "ü"\n}\n'
    assert stat.S_IMODE(old.stat().st_mode) == 0o640 and only(old)


def test_an_error_leaves_the_old_file(old: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.whole_text(old) as file:
        file.write("new")
        raise ZeroDivisionError
    assert old.read_text() == "old" and only(old)


def test_ctrl_c_leaves_the_old_file(old: Path) -> None:
    command = [
        sys.executable,
        "-c",
        f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler){WRITES}",
    ]
    with subprocess.Popen(
        [*command, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20)
    assert old.read_text() == "old" and only(old)


def test_a_full_disk_leaves_the_old_file(old: Path) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)){WRITES}"
    done = subprocess.run([sys.executable, "-c", limited, str(old)], capture_output=True, text=True, input="")
    assert "File too large" in done.stderr
    assert old.read_text() == "old" and only(old)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "file.json")
    files.write_json(link, {})
    files.write_json(link, {"a": 1})
    assert link.is_symlink() and link.read_text() == '{\n  "a": 1\n}\n'
    assert only(tmp_path / "real" / "file.json")


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.whole_file(pipe) as file:
        file.write(b"text")
    assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_the_longest_name_that_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("数" * 85)
    files.write_json(path, {})
    assert only(path)


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(ZeroDivisionError), files.written_beside(path) as beside:
        beside.mkdir()
        (beside / "config.json").write_text("{}")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with files.written_beside(path) as beside:
        beside.mkdir()
        (beside / "config.json").write_text("{}")
    assert only(path) and (path / "config.json").read_text() == "{}"
