"""What a run's processes report, and what is known of the run after each report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.machine.process import Terminated
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs.record import Interrupted
from swift_toolkit.training.monitor.ending import Ending
from swift_toolkit.training.process import events
from swift_toolkit.training.process.events import (
    Begin,
    CheckpointSaved,
    Done,
    End,
    Failed,
    Log,
    RunState,
    Step,
    fold,
)
from tests.training.test_automatic import CPU, config, planned


def state_after(*reported: events.RunEvent) -> RunState:
    """The state after these events went through the pipe as JSON."""
    state = RunState()
    for event in reported:
        state = fold(state, events.decode(json.loads(json.dumps(events.encode_event(event)))))
    return state


BEGUN = (events.Importing(pid=7), events.Loading(), Begin(step=0, max_steps=4, batch=2, time=10.0))


def test_the_state_of_a_run() -> None:
    logs = [Log(step=n, memory=n % 3, logs={"loss": loss, "epoch": 1}) for n, loss in enumerate((3, 1, 2), 1)]
    validated = Log(step=3, memory=0, logs={"eval_loss": 1.5})
    saved = CheckpointSaved(step=3, checkpoint="c-3", best="c-3")
    state = state_after(*BEGUN, *logs, validated, saved, Step(step=4), End(step=4, time=12.5))
    assert (state.pid, state.steps, state.max_steps, state.memory) == (7, 4, 4, 2)
    assert (state.begun, state.ended, state.last, state.best) == (10.0, 12.5, "c-3", "c-3")
    assert state.losses == {"last": 2, "least": 1, "least_eval": 1.5}
    assert state.metrics == {"loss": 2, "epoch": 1, "eval_loss": 1.5}
    later = fold(state, CheckpointSaved(step=4, checkpoint="c-4"))
    assert (later.last, later.best) == ("c-4", "c-3")
    assert state.last == "c-3"  # a state does not change


def test_what_json_does_not_know_becomes_text() -> None:
    done = state_after(Done(global_step=1, train_dataset={"path": Path("a")})).done
    assert done is not None
    assert done.train_dataset == {"path": "a"}


def ending(*reported: events.RunEvent, exit_status: int = 0, **more: Any) -> Ending:
    state, run = state_after(*BEGUN, *reported), Path("run")
    log = run / "train.log"
    return Ending(state=state, exit_status=exit_status, directory=run, log=log, started=0, **more)


FAILED = Failed(rank=0, of=1, time=1.0, type="ValueError", message="odd")


@pytest.mark.parametrize(
    ("end", "settings", "status"),
    [
        (ending(Done(global_step=4)), {}, "done"),
        # asked for while the last step was being saved:
        (ending(Done(global_step=4, stopped=True)), {}, "done"),
        (ending(Done(global_step=2, stopped=True)), {}, "stopped"),
        (ending(Done(global_step=2, stopped=True), interrupt=KeyboardInterrupt()), {}, "stopped"),
        (ending(Done(global_step=2)), {}, "failed"),
        (ending(Done(global_step=2)), {"early_stop_interval": 3, "split_dataset_ratio": 0.1}, "done"),
        (ending(Done(global_step=2)), {"max_epochs": 1}, "done"),
        (ending(FAILED, exit_status=1), {}, "failed"),
        (ending(Step(step=4)), {}, "failed"),  # ms-swift did not return
        (ending(Step(step=2), interrupt=KeyboardInterrupt()), {}, "interrupted"),
    ],
)
def test_the_status(end: Ending, settings: dict[str, Any], status: str) -> None:
    assert end.status(planned(config(**settings), CPU)) == status


@pytest.fixture(autouse=True)
def _run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/train.log").touch()


def test_a_run_whose_directory_was_removed_is_not_done() -> None:
    Path("run/train.log").unlink()
    assert ending(Done(global_step=4)).status(planned(config(), CPU)) == "failed"
    assert "run was removed during the run." in str(raised(ending(Done(global_step=4))))


def raised(end: Ending) -> BaseException:
    """What the caller gets of a run that is not done."""
    plan = planned(config(), CPU)
    with pytest.raises(BaseException) as caught:
        end.raise_if_not_done(end.result(plan), end.reason(plan))
    return caught.value


def test_a_signal_to_the_training_process_is_an_interrupt() -> None:
    error = raised(ending(CheckpointSaved(step=2, checkpoint="c-2"), Done(global_step=2, stopped=True)))
    assert isinstance(error, Interrupted)
    assert isinstance(error.cause, Terminated)  # exit status 143
    assert (error.result.status, error.result.steps) == ("stopped", 2)


def test_a_run_that_ends_too_early_without_a_reason_failed() -> None:
    error = raised(ending(CheckpointSaved(step=2, checkpoint="c-2"), Done(global_step=2)))
    assert isinstance(error, RunError)
    assert str(error).splitlines() == [
        "Training failed: it ended unexpectedly at step 2 of 4. Full log: run/train.log",
        "To resume from c-2, run the same command with --resume.",
    ]


def test_bad_data_is_a_wrong_request() -> None:
    error = raised(ending(refused=[Problem("is bad", key="a.jsonl")]))
    assert isinstance(error, RequestError)
    error = raised(ending(events.Refused(differences=['"a" is 1 here. Do this.'])))
    assert str(error) == '"a" is 1 here. Do this.'


def test_the_error_of_a_process_is_the_reason() -> None:
    assert str(raised(ending(FAILED, exit_status=1))).startswith(
        "Training failed: ValueError: odd. Full log: "
    )
