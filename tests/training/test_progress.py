"""The live line of a training run: what it says, and that it guesses no time before it has measured some."""

from __future__ import annotations

import io

import pytest

from swift_toolkit.training.monitor import progress
from swift_toolkit.training.process.events import Begin, Log, Step


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def events(line: progress.TrainingLine, clock: Clock, *seconds: float, first: int = 0) -> list[str]:
    """What the line says after each step that took so many seconds."""
    said = []
    line.show(Begin(step=first, max_steps=first + 10, batch=8, time=0))
    for number, took in enumerate(seconds, first + 1):
        clock.now += took
        line.show(Step(step=number))
        said.append(line.words())
    return said


def test_the_time_left_is_measured_after_the_warm_up(clock: Clock) -> None:
    with progress.TrainingLine(io.StringIO()) as line:
        assert events(line, clock, 60, 20, 5, 5) == [
            "step 1/10 · time left unknown",
            "step 2/10 · time left unknown",
            "step 3/10 · 5.00 s/step · 35.0 s left",
            "step 4/10 · 5.00 s/step · 30.0 s left",
        ]


def test_a_resumed_run_warms_up_again(clock: Clock) -> None:
    with progress.TrainingLine(io.StringIO(), row_tokens=100) as line:
        assert events(line, clock, 60, 20, 4, first=5) == [
            "step 6/15 · time left unknown",
            "step 7/15 · time left unknown",
            "step 8/15 · 4.00 s/step · about 200 tokens/s · 28.0 s left",
        ]


def test_a_log_is_one_line_off_a_terminal(clock: Clock) -> None:
    shown = io.StringIO()
    with progress.TrainingLine(shown) as line:
        events(line, clock, 1)
        line.show(Log(step=1, logs={"loss": 0.5, "learning_rate": 1e-4}, memory=3 << 30))
    assert shown.getvalue() == "step 1/10 · loss 0.5000 · lr 1.00e-04 · time left unknown · 3.0 GiB\n"
