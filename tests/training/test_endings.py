"""What a run says that lost its disk, or its directory, and two runs that want the same one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import FineTuner, Interrupted
from swift_toolkit.machine import files
from swift_toolkit.problems import RequestError
from swift_toolkit.runs import lock, storage
from tests.disks import fill, mount, small_disk
from tests.test_finetune_trainer import Started, flags, leftovers, run, tiny


def test_of_runs_that_start_at_once_one_gets_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_json

    def slowly(path: Path, content: dict[str, Any]) -> None:
        time.sleep(0.2)
        write(path, content)

    def start(_: int) -> bool:
        try:
            with lock.held(tmp_path, str):
                time.sleep(1)
        except RequestError:
            return False
        return True

    monkeypatch.setattr(lock.files, "write_json", slowly)
    with ThreadPoolExecutor(4) as runs:
        assert sum(runs.map(start, range(4))) == 1


@pytest.mark.slow
def test_a_second_run_in_the_same_directory_and_sigterm_to_the_first(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = tiny(tiny_model, tmp_path / "out", max_steps=5000, add_version="false")
    first = Started(settings)
    done = run(*flags(settings))
    first.process.terminate()
    assert first.wait() == 143
    assert json.loads((first.run_directory / "result.json").read_text())["status"] == "stopped"
    assert not leftovers(first.run_directory)
    assert done.returncode == 2
    assert f"{tmp_path}/out is in use by process {first.process.pid} on " in done.stderr.splitlines()[-1]


STOPS_IN_A_LONG_STEP = """
import os, signal, time
from transformers import TrainerCallback, trainer

class Stops(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(600)

trainer.DEFAULT_CALLBACKS.append(Stops)
"""


@pytest.mark.slow
def test_a_step_that_takes_longer_than_a_stop_may(tiny_model: Path, tmp_path: Path) -> None:
    """``stop_grace`` from Python: Ctrl-C in a step of ten minutes."""
    (tmp_path / "stops.py").write_text(STOPS_IN_A_LONG_STEP)
    plugins = [str(tmp_path / "stops.py")]
    settings = tiny(tiny_model, tmp_path / "out", max_steps=8, save_steps=1, external_plugins=plugins)
    began = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        FineTuner(settings, stop_grace=0.5).run_training()
    assert time.monotonic() - began < 300
    result = caught.value.result
    assert result.status == "interrupted"
    assert result.last_checkpoint == result.run_directory / "checkpoint-2"


@pytest.mark.parametrize("grace", [-1, float("nan"), "5", True])
def test_a_stop_that_may_take_no_such_time(tiny_model: Path, tmp_path: Path, grace: Any) -> None:
    settings = tiny(tiny_model, tmp_path / "out")
    with pytest.raises(RequestError) as caught:
        FineTuner(settings, stop_grace=grace)
    assert str(caught.value).startswith('"stop_grace" must be a number of seconds, at least 0, not ')
    done = run(*flags(settings), "--stop-grace", "-1", "--dry-run")
    assert done.returncode == 2
    assert '"--stop-grace" must be a number of seconds, at least 0, not -1' in done.stderr


# --- the disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a few checkpoints of a full fine-tuning of ``tiny_model``."""
    with small_disk(tmp_path, "256m") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk(tiny_model: Path, disk: Path) -> None:
    settings = tiny(tiny_model, disk / "out", train_type="full", max_steps=5000, save_total_limit=2)
    started = Started(settings)
    fill(disk)
    assert started.wait() == 1
    directory = started.run_directory
    found, said = storage.checkpoints(directory), started.errors.read_text()
    lines = said[said.index("Training failed") :].splitlines()
    assert lines[0].startswith(f"Training failed: the disk of {directory} is full (0.0 GiB free). Full log: ")
    assert found.whole
    assert f"Complete checkpoints: {', '.join(map(str, found.whole))}" in lines
    assert (
        not found.torn or f"Incomplete checkpoints, to be deleted: {', '.join(map(str, found.torn))}" in lines
    )
    assert "Free some space. Then run the same command with --resume." in lines
    assert "Unexpected" not in said


def test_a_checkpoint_that_was_not_written_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole = (tiny_checkpoint / "last").resolve()
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-11", "other"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "checkpoint-10/trainer_state.json").unlink()
    weights = tmp_path / "checkpoint-11/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found = storage.checkpoints(tmp_path)
    assert [path.name for path in found.whole] == ["checkpoint-2"]
    assert [path.name for path in found.torn] == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.slow
def test_a_directory_that_is_removed_meanwhile(tiny_model: Path, tmp_path: Path) -> None:
    started = Started(tiny(tiny_model, tmp_path / "out", max_steps=40, save_steps=1000))
    shutil.rmtree(started.run_directory)
    assert started.wait() == 1
    said = started.errors.read_text()
    assert "Unexpected" not in said
    assert f"{started.run_directory} was removed during the run." in said


@pytest.mark.slow
def test_a_directory_that_becomes_read_only(tiny_model: Path, disk: Path) -> None:
    started = Started(tiny(tiny_model, disk / "out", max_steps=5000, save_steps=2))
    mount("--bind", str(disk), str(disk))
    mount("-o", "remount,bind,ro", str(disk))
    assert started.wait() == 1
    said = started.errors.read_text()
    assert "Unexpected" not in said
    assert (
        f"Training failed: cannot write to {started.run_directory}: it became read-only. Full log: " in said
    )
    last = storage.checkpoints(started.run_directory).whole[-1]
    assert str(last) in said[said.index("Complete checkpoints: ") :]
    assert "Make it writable again. Then run the same command with --resume." in said
    assert f"cannot write {started.run_directory}/result.json: Read-only file system." in said


def test_the_disk_that_an_error_names(tmp_path: Path) -> None:
    log = tmp_path / "run/train.log"
    log.parent.mkdir()
    log.touch()
    cache = tmp_path / "cache"
    cache.mkdir()
    said = f"OSError: [Errno 28] No space left on device: '{cache}/blobs/1'"
    found = storage.trouble(log.parent, log, said)
    assert found is not None
    assert found[0].startswith(f"the disk of {cache} is full (")
    assert storage.trouble(log.parent, log, "ValueError: odd") is None
