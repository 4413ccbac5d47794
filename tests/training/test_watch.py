"""What is said of a run that goes wrong, and that nothing is said of one that goes well."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer import FineTuner
from swift_toolkit.problems import RunError
from swift_toolkit.training import run
from swift_toolkit.training.monitor import watch as monitor_watch
from swift_toolkit.training.monitor.watch import LEAST_DISK, Watch, WatchLimits
from swift_toolkit.training.process.events import (
    Begin,
    CheckpointSaved,
    Done,
    End,
    Evaluating,
    Log,
    RunEvent,
    Step,
)
from tests.test_finetune_trainer import tiny

GIB = 1 << 30
BEGIN = Begin(step=0, max_steps=1000, batch=1, time=0.0)


def log(step: int, memory: int = 0, **logs: float) -> Log:
    return Log(step=step, memory=memory, logs=logs)


def after(*events: RunEvent, seconds: float = 1.0, **limits: Any) -> Watch:
    """The watch after events that come one a second."""
    watch = Watch(limits=WatchLimits(**limits))
    for number, event in enumerate([BEGIN, *events]):
        watch = watch.after(event, number * seconds)
    return watch


def said(watch: Watch) -> list[str]:
    return [f"{alarm.step} {alarm.kind}: {alarm.what}" for alarm in watch.alarms]


def losses(*values: float, gradient: float = 1.0) -> list[RunEvent]:
    return [log(step, loss=loss, grad_norm=gradient) for step, loss in enumerate(values, 1)]


# --- a run that goes well -----------------------------------------------------------------------------------


@given(
    start=st.floats(0.5, 12),
    least=st.floats(1e-6, 0.4),
    noise=st.lists(st.floats(0.6, 1.6), min_size=60, max_size=60),
    gradients=st.lists(st.floats(1e-6, 50), min_size=60, max_size=60),
    seconds=st.floats(0.01, 200),
)
def test_a_run_that_learns_has_no_alarm(
    start: float, least: float, noise: list[float], gradients: list[float], seconds: float
) -> None:
    """The loss falls, noisily; the peak of memory grows while the longest rows come, up to a full device."""
    events: list[RunEvent] = []
    for step in range(1, 61):
        loss = (least + (start - least) * math.exp(-step / 15)) * noise[step - 1]
        memory = int(GIB * (8 - 3 / step))
        events += [Step(step=step), log(step, memory, loss=loss, grad_norm=gradients[step - 1], epoch=0.0)]
        if step % 20 == 0:
            events += [Evaluating(step=step), log(step, eval_loss=loss)]
            events += [CheckpointSaved(step=step, checkpoint=f"checkpoint-{step}")]
    watch = after(*events, End(step=60, time=0.0), Done(global_step=60), seconds=seconds, memory=9 * GIB)
    assert said(watch.at(1e9, 100 * GIB, GIB)) == []


def test_one_hard_batch_and_losses_near_zero_are_no_jumps() -> None:
    assert said(after(*losses(*[1.0] * 20, 9.0, 8.0, *[1.0] * 5))) == []
    assert said(after(*losses(*[0.001] * 20, *[0.2] * 20))) == []


def test_rewards_that_are_rare_at_first_are_not_yet_nothing() -> None:
    """GRPO's loss is 0 as long as the policy is the one that wrote the answers."""
    rare = [log(step, loss=0.0, grad_norm=0.0, frac_reward_zero_std=1.0) for step in range(1, 15)]
    assert said(after(*rare, log(15, loss=0.0, grad_norm=0.3, frac_reward_zero_std=0.5), Done())) == []


def test_loss_scaling_skips_steps_at_first() -> None:
    skipped = [log(step, loss=2.0, grad_norm=math.inf) for step in range(1, 17)]
    assert said(after(*skipped, log(17, loss=2.0, grad_norm=1.0), scales_loss=True)) == []
    assert [alarm.kind for alarm in after(*skipped).alarms] == ["not a number"]


# --- a run that goes wrong ----------------------------------------------------------------------------------


@given(good=st.lists(st.floats(0.1, 5), max_size=30), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_a_number(good: list[float], bad: float) -> None:
    step = len(good) + 1
    one = ({"loss": bad, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": bad}, {"eval_loss": bad})
    for logs in (*one, {"loss": bad, "grad_norm": bad}):
        watch = after(*losses(*good), log(step, **logs))
        alarm = watch.alarms[-1]  # a good loss may be three times the median of those before it
        assert (alarm.kind, alarm.step, alarm.stops) == ("not a number", step, True)
        assert next(iter(name for name, value in logs.items() if value != 1.0)) in alarm.what
    assert after(*losses(*good), log(step, loss=bad)).finite == len(good)


@given(logs=st.integers(5, 40))
def test_a_run_that_learns_nothing(logs: int) -> None:
    for zero in ({"loss": 0.7, "grad_norm": 0.0}, {"loss": 0.0}):
        watch = after(*[log(step, **zero) for step in range(1, logs + 1)])
        assert said(watch) == ["5 learns nothing: the gradient has been zero since the first step"]
        assert watch.alarms[0].stops


def test_a_short_run_that_learned_nothing() -> None:
    assert [alarm.kind for alarm in after(log(1, loss=0.0, grad_norm=0.0), Done()).alarms] == [
        "learns nothing"
    ]
    assert said(after(Done())) == []  # nothing was logged


def test_a_run_that_stops_learning_goes_on() -> None:
    watch = after(*losses(1.0), *[log(step, loss=0.0, grad_norm=0.0) for step in range(2, 12)], Done())
    assert said(watch) == ["6 zero gradient: the gradient was zero in the last 5 logs"]
    assert not watch.alarms[0].stops


def test_a_loss_that_jumps() -> None:
    watch = after(*losses(*[1.0] * 20, *[4.0] * 3))
    assert said(watch) == ["23 loss jump: the loss is 4, more than 3 times its median 1"]
    assert not watch.alarms[0].stops


def test_memory_that_grows_towards_the_limit() -> None:
    peaks = [log(step, memory=int(GIB * (9 + step / 100)), loss=1.0, grad_norm=1.0) for step in range(1, 80)]
    assert said(after(*peaks, memory=10 * GIB)) == [
        "21 memory: 9.2 GiB of 10.0 GiB memory are in use, and usage is still growing"
    ]
    assert said(after(*peaks, memory=20 * GIB)) == said(after(*peaks)) == []


def test_a_stall() -> None:
    steps = after(*[Step(step=step) for step in range(1, 11)], seconds=2.0)
    assert said(steps.at(20 + 300)) == []
    (alarm,) = steps.at(20 + 301).alarms
    assert (alarm.kind, alarm.step, alarm.stops) == ("stall", 10, True)
    assert alarm.what == "no progress for 5:01; a step takes 2.0 s"
    assert said(after(*[Step(step=step) for step in range(1, 11)], seconds=60.0).at(600 + 500)) == []


def test_neither_a_save_nor_the_start_nor_the_end_is_a_stall() -> None:
    steps = [Step(step=step) for step in range(1, 11)]
    assert said(after(*steps[:4]).at(3000)) == []
    saves = after(*steps[:9], Step(step=10, saves=True))
    assert said(saves.at(3000)) == []
    saved = saves.after(CheckpointSaved(step=10, checkpoint="checkpoint-10"), 3000)
    assert said(saved.at(3300)) == []
    assert [alarm.kind for alarm in saved.at(3400).alarms] == ["stall"]
    assert said(after(*steps, End(step=10, time=0.0)).at(3000)) == []


def test_a_disk_that_is_nearly_full() -> None:
    begun = after(Step(step=1))
    assert said(begun.at(0, LEAST_DISK)) == []
    assert said(begun.at(0, 2 * GIB, 2 * GIB)) == [
        "1 disk: the disk has 2.0 GiB free; a checkpoint takes 2.0 GiB"
    ]


def test_each_kind_is_said_once() -> None:
    watch = after(*[log(step, loss=math.nan) for step in range(1, 20)])
    assert len(watch.at(0, 0).at(1, 0).alarms) == 2


# --- real runs ----------------------------------------------------------------------------------------------

PLUGIN = """
import time
from transformers import TrainerCallback, trainer

class Breaks(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 8:
            break_here(model)

def break_here(model):
    {line}

trainer.DEFAULT_CALLBACKS.append(Breaks)
"""
HANGS, NOT_A_NUMBER = (
    "time.sleep(600)",
    "[one.data.fill_(float('nan')) for one in model.parameters() if one.requires_grad]",
)


def broken(model: Path, folder: Path, line: str) -> dict[str, Any]:
    """Settings of a run that executes ``line`` before step 9."""
    (folder / "breaks.py").write_text(PLUGIN.format(line=line))
    return tiny(model, folder / "out", max_steps=40, external_plugins=[str(folder / "breaks.py")])


@pytest.mark.slow
def test_a_real_run_with_a_loss_that_is_not_a_number(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step of it is resumed from: its last checkpoints hold no numbers."""
    settings = broken(tiny_model, tmp_path, NOT_A_NUMBER) | {"save_steps": 1}
    with pytest.raises(RunError) as caught:
        FineTuner(settings).run_training()
    (directory,) = (tmp_path / "out").glob("v*-*")
    result = json.loads((directory / "result.json").read_text())
    (alarm,) = result["alarms"]
    step = alarm["step"]
    assert (step, alarm["what"]) == (9, "loss is nan")
    assert f"warning: step {step}: {alarm['what']}" in capsys.readouterr().err
    assert str(caught.value).startswith(f"Training failed at step {step}: {alarm['what']}. Full log: ")
    assert result["status"] == "failed"
    assert (tmp_path / "out/last").resolve() == (directory / "checkpoint-8").resolve()
    assert result["last_checkpoint"] == f"{directory}/checkpoint-8"


@pytest.mark.slow
def test_a_real_run_that_stalls(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WatchLimits", functools.partial(monitor_watch.WatchLimits, least_stall=3.0))
    with pytest.raises(RunError, match="Training failed at step 8: no progress for "):
        FineTuner(broken(tiny_model, tmp_path, HANGS)).run_training()
    (directory,) = (tmp_path / "out").glob("v*-*")
    assert "break_here" in (directory / "logs/stacks-rank0.txt").read_text()
    assert [alarm["kind"] for alarm in json.loads((directory / "result.json").read_text())["alarms"]] == [
        "stall"
    ]
    assert [path.name for path in (directory / "logs").iterdir()] == ["stacks-rank0.txt"]
