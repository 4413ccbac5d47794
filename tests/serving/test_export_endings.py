"""Exports that end early: Ctrl-C, a full disk, a directory that cannot be written, a quantiser that does not load."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import deploy_model
from swift_toolkit.serving.export import gguf
from swift_toolkit.serving.export.run import put_in_place
from tests.adapters import make_adapter
from tests.conftest import ROOT
from tests.disks import fill, mount, small_disk


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "run" / "checkpoint-4", seed=1)


class Running:
    """An export in a process of its own, up to the step that its screen names."""

    def __init__(self, *words: str, until: str) -> None:
        command = [sys.executable, "-u", str(ROOT / "deploy_model.py"), *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        while until not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def children(self) -> list[psutil.Process]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if found := psutil.Process(self.process.pid).children(recursive=True):
                return found
            time.sleep(0.05)
        raise AssertionError("it works without a process of its own")

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, self.said + said


def an_earlier_export(adapter: Path, suffix: str) -> Path:
    earlier = adapter.with_name(f"checkpoint-4-{suffix}")
    earlier.mkdir()
    (earlier / "export.json").write_text("{}")
    return earlier


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_there(adapter: Path, number: signal.Signals) -> None:
    earlier = an_earlier_export(adapter, "merged")
    step = "asking the checkpoint" if number == signal.SIGTERM else "merging the adapter"
    running = Running("--checkpoint", str(adapter), "--export", "merged", until=step)
    children = running.children()
    running.process.send_signal(number)
    assert running.end() == (130 if number == signal.SIGINT else 143, running.said)
    assert not psutil.wait_procs(children, timeout=60)[1]
    left = sorted(one.name for one in adapter.parent.iterdir())
    assert left == ["checkpoint-4", "checkpoint-4-merged", "checkpoint-4-merged.log"]
    assert [one.name for one in earlier.iterdir()] == ["export.json"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a merged ``tiny_model``."""
    with small_disk(tmp_path, "64m") as disk:
        yield disk


@pytest.mark.slow
def test_a_disk_that_others_fill(adapter: Path, disk: Path) -> None:
    words = ("--checkpoint", str(adapter), "--export", "merged", "--output", str(disk / "nova"))
    running = Running(*words, until="merging the adapter")
    fill(disk)
    status, said = running.end()
    assert status == 1
    assert f"cannot write {disk / 'nova'}: no space left on the disk of {disk}" in said
    assert "Unexpected" not in said and "Traceback" not in said
    assert {one.name for one in disk.iterdir()} <= {"others", "nova.log"}


def test_a_disk_that_is_read_only(capsys: pytest.CaptureFixture[str], adapter: Path, disk: Path) -> None:
    mount("-o", "remount,ro", str(disk))
    output = disk / "below" / "nova"
    words = ["--checkpoint", str(adapter), "--export", "merged", "--output", str(output)]
    assert deploy_model.main(words) == 2
    assert f'"--output" cannot write {output}: permission denied.' in capsys.readouterr().err


def test_a_directory_below_a_file(capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["--checkpoint", str(adapter), "--export", "merged", "--output", str(tmp_path / "file/nova")]
    assert deploy_model.main(words) == 2
    assert (
        f"cannot write {tmp_path}/file/nova: {tmp_path}/file is not a directory." in capsys.readouterr().err
    )


def test_an_interrupted_replacement_restores_the_earlier_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    new, path = tmp_path / "partial" / "nova", tmp_path / "nova"
    for folder, text in ((new, "new"), (path, "earlier")):
        folder.mkdir(parents=True)
        (folder / "export.json").write_text(text)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(new, path)
    assert (path / "export.json").read_text() == "earlier"
    monkeypatch.undo()
    put_in_place(new, path)
    assert (path / "export.json").read_text() == "new"


def test_a_quantiser_that_does_not_load(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, adapter: Path, tmp_path: Path
) -> None:
    """A package whose library does not fit this system is as good as none."""
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libllama.so: version GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert gguf.quantiser() is None
    words = ["--checkpoint", str(adapter), "--export", "gguf", "--gguf-type", "q4_k_m", "--dry-run"]
    assert deploy_model.main(words) == 2
    assert '"--gguf-type" is "q4_k_m", which needs llama.cpp\'s quantiser' in capsys.readouterr().err
