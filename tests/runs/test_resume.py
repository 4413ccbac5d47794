"""Which checkpoint a training goes on from, what is refused, and how its directory is tidied."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.config.settings import Setting, Source
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.problems import RequestError
from swift_toolkit.runs import lock, resume
from tests.training_checkpoints import write_checkpoint

RUN = "v0-20260101-000000"
REQUEST = resume.StoredRequest(
    config="/c.json",
    given={"learning_rate": "1e-4", "save_steps": "2", "model": "m"},
    automatic=("gradient_checkpointing",),
    data={"train": ["1,000 bytes, abc", "all rows"], "val": []},
    base="m",
    processes=1,
    batch=16,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints at steps 1 and 2, and one at step 3 whose save was killed."""
    run = tmp_path / "out" / RUN
    for step in (1, 2, 3):
        write_checkpoint(run / f"checkpoint-{step}")
    (run / "checkpoint-3/trainer_state.json").unlink()
    (run / "checkpoint-3/rng_state.pth").unlink()
    return run


def found(place: Path, wanted: resume.StoredRequest | None = None) -> resume.ResumePoint:
    point = resume.find_resumable(place, wanted)
    assert point is not None
    return point


@pytest.mark.parametrize("place", ["", RUN, f"{RUN}/checkpoint-2"])
def test_the_newest_whole_checkpoint(run: Path, place: str) -> None:
    point = found(run.parent / place)
    assert (point.directory, point.checkpoint, point.step) == (run, run / "checkpoint-2", 2)
    assert list(point.lines()) == [
        f"Skipping a checkpoint: {run}/checkpoint-3 is incomplete: there is no trainer_state.json.",
        f"Resuming from {run}/checkpoint-2, step 2.",
    ]


def test_a_link_to_the_last_checkpoint(run: Path) -> None:
    (run.parent / "last").symlink_to(f"{RUN}/checkpoint-2")
    assert found(run.parent / "last").directory == run


def test_an_earlier_checkpoint_begins_a_new_run(run: Path) -> None:
    point = found(run / "checkpoint-1")
    assert (point.directory, point.checkpoint, point.step) == (None, run / "checkpoint-1", 1)


def test_a_torn_checkpoint_that_is_named(run: Path) -> None:
    with pytest.raises(RequestError, match=r"checkpoint-3 is incomplete: there is no trainer_state\.json"):
        resume.find_resumable(run / "checkpoint-3")


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert resume.find_resumable(tmp_path) is None
    assert resume.find_resumable(tmp_path / "never made") is None


def test_a_run_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / RUN
    run.mkdir()
    point = found(tmp_path)
    assert (point.directory, point.checkpoint, point.step) == (run, None, 0)
    assert list(point.lines()) == [f"{run} has no complete checkpoint: the run starts from the beginning."]


def test_a_run_that_saved_the_model_only(run: Path) -> None:
    for step in (2, 3):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (run / f"checkpoint-{step}" / name).unlink(missing_ok=True)
    with pytest.raises(RequestError, match=r"checkpoint-2 was saved with save_only_model"):
        resume.find_resumable(run)


def test_of_several_runs_the_one_of_this_config(run: Path) -> None:
    REQUEST.write(run)
    other = run.parent / "v1-20260102-000000"
    write_checkpoint(other / "checkpoint-1")
    replace(REQUEST, config="/other.json").write(other)
    assert found(run.parent, REQUEST).directory == run
    assert found(run.parent, replace(REQUEST, config="/other.json")).directory == other
    assert found(run.parent, replace(REQUEST, config="/new.json")).directory == other


def test_what_changed(run: Path) -> None:
    REQUEST.write(run)
    point = found(run)
    assert resume.changes(point, REQUEST) == ([], [])
    given = {"learning_rate": "2e-4", "save_steps": "5", "model": "m", "lora_plus": "1"}
    wanted = replace(REQUEST, given=given, batch=32, data={"train": ["other"], "val": []})
    assert resume.changes(point, wanted) == (
        ['"save_steps" 2 → 5'],
        [
            '"learning_rate" 1e-4 → 2e-4',
            '"lora_plus" not set → 1',
            "rows of an optimiser step: 16 → 32",
            "the data of train",
        ],
    )


def test_no_secret_is_noted(tmp_path: Path) -> None:
    config = load_config({"model": "a/b", "dataset": "a.jsonl"})
    config.settings["hub_token"] = Setting("hf_123", Source("call"), "hub_token")
    resume.request_of(config, {}, 1, 16).write(tmp_path)
    assert "hf_123" not in (tmp_path / resume.RECORD).read_text()
    assert '"model": "a/b"' in (tmp_path / resume.RECORD).read_text()


# --- tidying ------------------------------------------------------------------------------------------------


def test_what_came_after_the_checkpoint_goes(run: Path) -> None:
    write_checkpoint(run / "checkpoint-4")
    (run / "checkpoint-4/optimizer.pt").write_bytes(b"PK")  # damaged after it was whole
    lines = [{"loss": 0.5, "global_step/max_steps": f"{step}/4"} for step in (1, 2, 3, 4)]
    lines += [{"train_runtime": 3, "global_step/max_steps": "2/4"}, {"last_model_checkpoint": "x"}]
    log = "".join(json.dumps(line) + "\n" for line in lines) + '{"loss": 0.'
    (run / "logging.jsonl").write_text(log)
    (run.parent / "last").symlink_to(f"{RUN}/checkpoint-3")
    resume.tidy(found(run), run.parent)
    kept = (run / "logging.jsonl").read_text().splitlines()
    assert [json.loads(line)["global_step/max_steps"] for line in kept] == ["1/4", "2/4"]
    assert sorted(path.name for path in run.glob("*checkpoint*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "damaged-checkpoint-4",
    ]
    assert (run.parent / "last").resolve() == run / "checkpoint-2"


def test_the_curves_end_at_the_checkpoint(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "runs"))
    for step in range(1, 300):
        writer.add_scalar("train/loss", 1 / step, step)
    writer.close()
    (events,) = (run / "runs").iterdir()
    with events.open("ab") as file:
        file.write(b"\x18\0\0\0\0\0\0\0torn")  # a record that a kill cut

    resume.tidy(
        replace(found(run), state=replace(training_state.read_state(run / "checkpoint-2"), step=200)), run
    )
    read = EventAccumulator(str(run / "runs"))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(1, 201))


# --- the lock -----------------------------------------------------------------------------------------------


def test_two_runs_cannot_have_one_directory(tmp_path: Path) -> None:
    said: list[str] = []
    with lock.held(tmp_path, said.append):
        (problem,) = lock.lock_problems(tmp_path)
        assert f"is in use by process {os.getpid()} on {socket.gethostname()}, since " in str(problem)
        with pytest.raises(RequestError, match="is in use by process"), lock.held(tmp_path, said.append):
            pytest.fail("got in")
    assert not list(lock.lock_problems(tmp_path))
    assert said == []


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from swift_toolkit.runs import lock\n"
        "with lock.held(Path(sys.argv[1]), print): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert list(lock.lock_problems(tmp_path))
    holder.kill()
    holder.wait()
    assert not list(lock.lock_problems(tmp_path))
    said: list[str] = []
    with lock.held(tmp_path, said.append):
        assert said == [
            f"{tmp_path} was locked by process {holder.pid} on {socket.gethostname()}, which is no longer running."
        ]


def test_the_lock_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is touched lives; one that stands still is taken over."""
    monkeypatch.setattr(lock, "LOCK_SILENCE_SECONDS", 1.2)
    file = tmp_path / lock.LOCK
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0, "since": "then"}))
    with lock.held(tmp_path, str):
        pass
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0, "since": "then"}))
    code = "import os, sys, time\nfor _ in range(30): os.utime(sys.argv[1]); time.sleep(0.1)"
    beat = subprocess.Popen([sys.executable, "-c", code, str(file)])
    time.sleep(0.3)
    with pytest.raises(RequestError, match="process 1 on elsewhere"), lock.held(tmp_path, str):
        pytest.fail("got in")
    beat.kill()
