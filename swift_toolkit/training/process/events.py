"""The request for a training process, the events that it reports, and the state of a run, folded from its events.

Each event is a JSON object on one line; "event" names its type.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import msgspec

from swift_toolkit.config.tasks import TASKS, TaskName
from swift_toolkit.console.words import counted
from swift_toolkit.dataset.report import Split
from swift_toolkit.dataset.rows.checks import Rules
from swift_toolkit.problems import Problem
from swift_toolkit.runs.record import RecordObject


class PeersOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What processes that were started separately must agree on.

    Args:
        own_starter: each process has its own starter, as under torchrun.
        automatic: names of the automatic settings; all processes use those of rank 0.
        node: name of this machine.
        given: the user's settings, as text.
        data: fingerprints of the data files.
        versions: versions of the packages that must be the same.
    """

    own_starter: bool
    automatic: Sequence[str]
    node: str
    given: Mapping[str, str]
    data: Mapping[str, str]
    versions: Mapping[str, str]


class DataCheckFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Files of the data check: the first step waits for ``path``; each dropped row adds a line to ``lost``."""

    path: str
    lost: str


class AuditOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The request to inspect some rows before the model is loaded.

    Args:
        task: the training task.
        data: the entries of ``dataset``.
        columns: ms-swift's ``columns``.
        multimodal: the model takes media.
        answers_itself: the model generates the answers, so the rows need none.
    """

    task: TaskName
    data: Sequence[str]
    columns: Mapping[str, str] = {}
    multimodal: bool = False
    answers_itself: bool = False

    @property
    def rules(self) -> Rules:
        """The requirements of the run for its rows."""
        task = TASKS[self.task]
        task = replace(task, rows="prompt") if self.answers_itself else task
        return Rules(task, self.multimodal, columns=self.columns)


class RunOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a training process.

    Args:
        command: ms-swift's command.
        arguments: the command line words of each argument, by name.
        directory: the run directory.
        peers: what the processes must agree on; None if one starter starts all of them.
        data_check: files of the data check; None if the first step does not wait for it.
        audit: the rows to inspect; None to inspect none.
    """

    command: str
    arguments: Mapping[str, list[str]]
    directory: str
    peers: PeersOrder | None = None
    data_check: DataCheckFiles | None = None
    audit: AuditOrder | None = None


# --- events -------------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """Base class of the events."""


class Importing(_Event, frozen=True, kw_only=True):
    """The process has started; ``pid`` is that of the reporting process, not of a launcher."""

    pid: int


class Ready(_Event, frozen=True, kw_only=True):
    """The process ``pid`` of ``rank`` writes its Python stacks to a file on the signal `STACKS_SIGNAL`."""

    rank: int
    pid: int


STACKS_SIGNAL = signal.SIGUSR2


class Agreed(_Event, frozen=True, kw_only=True):
    """All processes have the same request; the run writes to ``directory``."""

    directory: str


class Refused(_Event, frozen=True, kw_only=True):
    """The processes have different requests."""

    differences: Sequence[str]


class Loading(_Event, frozen=True, kw_only=True):
    """ms-swift starts loading the model and the data."""


class Audited(_Event, frozen=True, kw_only=True):
    """The template encoded some rows before the model was loaded.

    Args:
        rows: number of inspected rows.
        tokens: number of tokens in the rows that are trained on.
        learned: number of tokens that count for the loss; None if the task learns no tokens.
        errors: why the run would be useless.
        warnings: what may be unintended, each with its number of rows.
    """

    rows: int
    tokens: int
    learned: int | None
    errors: Sequence[Problem] = ()
    warnings: Sequence[tuple[Problem, int]] = ()

    def sentences(self) -> Iterator[str]:
        """The result as lines for the user."""
        for problem, count in self.warnings:
            yield f"warning: {problem}" + (
                f" ({count:,} of {self.rows:,} inspected rows)" if count > 1 else ""
            )
        if self.learned is not None and self.tokens and not self.errors:
            yield f"{self.learned / self.tokens:.0%} of the tokens of {counted(self.rows, 'row')} are learned."


NO_ANSWER = "I do not know."
"""An answer that every reward function should score low."""


class RewardTried(_Event, frozen=True, kw_only=True):
    """A reward function was tried on a few rows before the model was loaded.

    Args:
        name: name of the function.
        own: its scores for the answers in the rows; empty if the rows have no answers.
        other: its scores for `NO_ANSWER`.
        error: why it cannot be used.
    """

    name: str
    own: Sequence[float] = ()
    other: Sequence[float] = ()
    error: Problem | None = None

    def sentence(self) -> str:
        """The result as a line for the user."""
        told = ((self.own, "the rows' own answers"), (self.other, f'"{NO_ANSWER}"'))
        parts = [f"{sum(scores) / len(scores):.2f} for {whose}" for scores, whose in told if scores]
        rows = counted(max(len(self.own), len(self.other)), "row")
        same = self.own and list(self.own) == list(self.other)
        apart = "; it does not distinguish them" if same else ""
        return f'reward "{self.name}" on {rows}: {", ".join(parts) or "no score"}{apart}'


class RowsCounted(_Event, frozen=True, kw_only=True):
    """Rows of each split that ms-swift read, and that it tokenized; None if it does so during training."""

    loaded: Mapping[Split, int | None]
    used: Mapping[Split, int | None]


class Waiting(_Event, frozen=True, kw_only=True):
    """The first step waits for the data check."""


class Begin(_Event, frozen=True, kw_only=True):
    """The first step is about to start; each step learns from ``batch`` rows."""

    step: int
    max_steps: int
    batch: int
    time: float


class Step(_Event, frozen=True, kw_only=True):
    """An optimiser step is done; ``saves`` if a checkpoint follows it."""

    step: int
    saves: bool = False


class Evaluating(_Event, frozen=True, kw_only=True):
    """An evaluation batch is done."""

    step: int


class Log(_Event, frozen=True, kw_only=True):
    """Numbers that ms-swift logs; ``memory`` is the peak memory so far, in bytes."""

    step: int
    memory: int
    logs: Mapping[str, float]


class CheckpointSaved(_Event, frozen=True, kw_only=True):
    """A checkpoint was saved; ``best`` is the best checkpoint so far, None without evaluation."""

    step: int
    checkpoint: str
    best: str | None = None


class End(_Event, frozen=True, kw_only=True):
    """The last step has ended."""

    step: int
    time: float


class Done(_Event, frozen=True, kw_only=True):
    """ms-swift has returned.

    Args:
        global_step: optimiser steps done.
        stopped: SIGTERM asked the run to stop.
        best_model_checkpoint: None without evaluation.
        model_parameter_info: of the model, in ms-swift's words.
        train_dataset: tokens per row, in ms-swift's words.
        val_dataset: the same for the validation data.
    """

    global_step: int | None = None
    stopped: bool = False
    best_model_checkpoint: str | None = None
    model_parameter_info: Any = None
    train_dataset: Any = None
    val_dataset: Any = None


class Failed(_Event, frozen=True, kw_only=True):
    """A process failed; ``cause`` is the reason if another process ended the run."""

    rank: int
    of: int
    time: float
    type: str
    message: str
    cause: str | None = None


RunEvent: TypeAlias = (
    Importing | Ready | Agreed | Refused | Loading | Audited | RewardTried | RowsCounted | Waiting | Begin | Step
    | Evaluating | Log | CheckpointSaved | End | Done | Failed
)  # fmt: skip


def decode(report: Mapping[str, object]) -> RunEvent:
    """Decode an event that a training process reported."""
    return msgspec.convert(report, RunEvent)  # type: ignore[no-any-return]


def encode_event(event: RunEvent) -> RecordObject:
    """The event as plain data; values that JSON cannot represent become text."""
    return msgspec.to_builtins(event, enc_hook=str)  # type: ignore[no-any-return]


# --- state --------------------------------------------------------------------------------------------------


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run, folded from its events.

    Args:
        pid: of the reporting process; 0 before the first event.
        ranks: the process ID of each rank on this machine.
        steps: optimiser steps done.
        resumed: the step that it started from.
        max_steps: planned number of steps; 0 before the first step.
        memory: peak memory of one device, in bytes.
        begun: when the first step started.
        ended: when the last step ended.
        last: the newest checkpoint.
        best: the checkpoint with the best evaluation.
        losses: the last and the lowest training loss, and the lowest evaluation loss.
        metrics: the last value of every logged number.
        done: what ms-swift returned.
        failures: failures of all processes, in order of arrival.
        differences: how the requests of the processes differ.
        directory: the run directory of rank 0, once they agreed.
        audit: the result of inspecting some rows; None if none were inspected.
    """

    pid: int = 0
    ranks: Mapping[int, int] = {}
    steps: int = 0
    resumed: int = 0
    max_steps: int = 0
    memory: int = 0
    begun: float | None = None
    ended: float | None = None
    last: str | None = None
    best: str | None = None
    losses: Mapping[str, float] = {}
    metrics: Mapping[str, float] = {}
    done: Done | None = None
    failures: tuple[Failed, ...] = ()
    differences: tuple[str, ...] = ()
    audit: Audited | None = None
    directory: str | None = None


def fold(state: RunState, event: RunEvent) -> RunState:
    """The state after ``event``."""
    change = functools.partial(msgspec.structs.replace, state)
    match event:
        case Importing(pid=pid):
            return change(pid=pid)
        case Ready(rank=rank):
            return change(ranks={**state.ranks, rank: event.pid})
        case Agreed(directory=directory):
            return change(directory=directory)
        case Refused(differences=differences):
            return change(differences=tuple(differences))
        case Audited():
            return change(audit=event)
        case Begin():
            return change(steps=event.step, resumed=event.step, max_steps=event.max_steps, begun=event.time)
        case Log():
            return _logged(state, event)
        case CheckpointSaved():
            return change(steps=event.step, last=event.checkpoint, best=event.best or state.best)
        case End():
            return change(steps=event.step, ended=event.time)
        case Done():
            steps = state.steps if event.global_step is None else event.global_step
            return change(done=event, steps=steps, best=event.best_model_checkpoint or state.best)
        case Failed():
            return change(failures=(*state.failures, event))
        case Step(step=step) | Evaluating(step=step):
            return change(steps=step)
    return state


def _logged(state: RunState, event: Log) -> RunState:
    losses = dict(state.losses)
    if (loss := event.logs.get("loss")) is not None:
        losses |= {"last": loss, "least": min(loss, losses.get("least", loss))}
    if (loss := event.logs.get("eval_loss")) is not None:
        losses["least_eval"] = min(loss, losses.get("least_eval", loss))
    return msgspec.structs.replace(
        state,
        steps=event.step,
        memory=max(state.memory, event.memory),
        losses=losses,
        metrics={**state.metrics, **event.logs},
    )
