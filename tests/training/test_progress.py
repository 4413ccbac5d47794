"""The live line of a training run: what it says, and that it guesses no time before it has measured some."""

from __future__ import annotations

import io

import pytest

from swift_toolkit.problems import Problem
from swift_toolkit.training.monitor import progress
from swift_toolkit.training.process.events import Audited, Begin, Log, RewardTried, Step


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


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (
            {"loss": 0.0, "reward": 0.5, "reward_std": 0.1, "learning_rate": 1e-4},
            "reward 0.500 · lr 1.00e-04",
        ),
        (
            {"loss": 0.6931, "rewards/margins": 0.25, "rewards/accuracies": 0.75},
            "loss 0.6931 · margin 0.250 · accuracy 75%",
        ),
        ({"objective/scores": -0.125, "lr": 1e-6, "loss/policy_avg": 0.1}, "score -0.125 · lr 1.00e-06"),
    ],
    ids=["grpo", "dpo", "ppo"],
)
def test_what_tells_that_a_task_learns(logs: dict[str, float], words: str) -> None:
    shown = io.StringIO()
    with progress.TrainingLine(shown) as line:
        line.show(Begin(step=0, max_steps=2, batch=8, time=0))
        line.show(Log(step=1, memory=0, logs=logs))
    assert f" · {words} · " in shown.getvalue()


def test_what_was_seen_before_the_model_is_said(clock: Clock) -> None:
    shown = io.StringIO()
    warning = (Problem("row has no token to learn", "Remove it.", file="a.jsonl", line=3), 2)
    with progress.TrainingLine(shown) as line:
        line.show(Audited(rows=40, tokens=1000, learned=250, warnings=[warning]))
        line.show(RewardTried(name="sum", own=[1.0, 0.5], other=[0.0, 0.0]))
        line.show(RewardTried(name="same", own=[1.0], other=[1.0]))
    assert shown.getvalue().splitlines()[-4:] == [
        "warning: a.jsonl:3: row has no token to learn. Remove it. (2 of 40 inspected rows)",
        "25% of the tokens of 40 rows are learned.",
        """reward "sum" on 2 rows: 0.75 for the rows' own answers, 0.00 for "I do not know.\"""",
        """reward "same" on 1 row: 1.00 for the rows' own answers, 1.00 for "I do not know."; it does not distinguish them""",
    ]
