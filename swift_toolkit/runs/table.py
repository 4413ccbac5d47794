"""The runs below a directory: what they trained, their progress, whether they can be resumed, what can be removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from swift_toolkit.console import screen
from swift_toolkit.machine.files import size_of
from swift_toolkit.model.checkpoints import training_state
from swift_toolkit.model.checkpoints.find import RUN, checkpoints_of, runs_of
from swift_toolkit.model.files import read_json
from swift_toolkit.runs import lock
from swift_toolkit.runs.history import read_log
from swift_toolkit.runs.record import RESULT, RecordObject
from swift_toolkit.runs.resume import RECORD

State = Literal["running", "done", "stopped", "interrupted", "failed", "killed"]
DEPTH = 3
"""How many levels of directories are searched for runs."""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run, as described by its files.

    Args:
        directory: ``<output_dir>/vN-<time>``.
        started: when its directory was created.
        state: the status in its result; ``running``, or ``killed`` if it ended without writing a result.
        resumable: whether steps remain after its newest complete checkpoint.
        model: the trained model.
        tuner: the tuner, e.g. ``lora``.
        data: the training data, as given.
        step: the last step in its log.
        max_steps: the planned number of steps; 0 if it was not logged.
        best_loss: the lowest evaluation loss, or training loss without evaluation; None before the first log.
        error: why it failed.
    """

    directory: Path
    started: datetime
    state: State
    resumable: bool
    model: str
    tuner: str
    data: str
    step: int
    max_steps: int
    best_loss: float | None
    error: str | None

    def as_dict(self) -> dict[str, object]:
        """The run as plain data."""
        return {**self.__dict__, "directory": str(self.directory), "started": self.started.isoformat(" ")}

    def cells(self) -> tuple[str, ...]:
        """The row of the table, see `TABLE_COLUMNS`."""
        steps = f"{self.step}/{self.max_steps}" if self.max_steps else "0"
        loss = "" if self.best_loss is None else f"{self.best_loss:.4f}"
        state = f"{self.state}, resumable" if self.resumable else self.state
        when = self.started.strftime("%Y-%m-%d %H:%M")
        data = " ".join(Path(name).name for name in self.data.split())
        run = screen.short_path(self.directory)
        return (when, run, Path(self.model).name, self.tuner, data, steps, loss, state)


TABLE_COLUMNS = ("started", "run", "model", "tuner", "data", "steps", "best loss", "state")


def runs_below(directory: Path) -> list[RunEntry]:
    """All runs in and below ``directory``, newest first."""
    found = [directory] if RUN.fullmatch(directory.resolve().name) else [*_directories(directory, DEPTH)]
    return sorted(map(read_run, found), key=lambda run: (run.started, run.directory), reverse=True)


def _directories(directory: Path, depth: int) -> Iterator[Path]:
    runs = runs_of(directory)
    yield from runs
    if depth and directory.is_dir():
        for child in directory.iterdir():
            if child.is_dir() and not child.is_symlink() and child not in runs and child.name[0] != ".":
                yield from _directories(child, depth - 1)


def read_run(directory: Path, running: bool | None = None) -> RunEntry:
    """Read one run from its files.

    Args:
        directory: the run directory.
        running: whether the run is still going; None checks its lock.
    """
    result, request, args = (json_file(directory / name) for name in (RESULT, RECORD, "args.json"))
    given = request.get("given") or {}
    history = read_log(directory)
    running = any(lock.lock_problems(directory)) if running is None else running
    state: State = "running" if running else result.get("status") or "killed"
    return RunEntry(
        directory=directory,
        started=_started(directory),
        state=state,
        resumable=state not in ("running", "done") and _can_go_on(directory, history.max_steps),
        model=str(given.get("model") or args.get("model") or "unknown"),
        tuner=str(given.get("tuner_type") or given.get("train_type") or args.get("tuner_type") or "lora"),
        data=str(given.get("dataset") or " ".join(map(str, args.get("dataset") or []))),
        step=history.step,
        max_steps=history.max_steps,
        best_loss=history.best_loss,
        error=result.get("error"),
    )


def json_file(file: Path) -> RecordObject:
    """The JSON object in ``file``; empty if there is none."""
    content, _ = read_json(file) if file.is_file() else (None, None)
    return content or {}


def _started(directory: Path) -> datetime:
    match = re.fullmatch(r"v\d+-(\d{8}-\d{6})", directory.resolve().name)
    try:
        return datetime.strptime(match[1], "%Y%m%d-%H%M%S") if match else _changed(directory)
    except ValueError:
        return _changed(directory)


def _changed(directory: Path) -> datetime:
    return datetime.fromtimestamp(int(directory.stat().st_mtime))


def _can_go_on(directory: Path, max_steps: int) -> bool:
    for checkpoint in checkpoints_of(directory):
        if not training_state.training_state_problems(checkpoint):
            return not max_steps or training_state.read_state(checkpoint).step < max_steps
    return False


# --- what can be removed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waste:
    """A directory that can be removed.

    Args:
        path: the directory.
        why: the reason, in a few words.
        size: in bytes.
    """

    path: Path
    why: str
    size: int


def waste_of(run: RunEntry) -> Iterator[Waste]:
    """The removable parts of ``run``: all of it if it has no checkpoint, else incomplete and damaged checkpoints."""
    if run.state == "running":
        return
    checkpoints = checkpoints_of(run.directory)
    aside = [path for path in run.directory.glob("damaged-checkpoint-*") if path.is_dir()]
    if not checkpoints and not aside:
        yield _waste(run.directory, f"{run.state} without a checkpoint")
        return
    for path in checkpoints:
        if not (path / training_state.STATE).exists():
            yield _waste(path, "its save was interrupted")
    for path in aside:
        yield _waste(path, "damaged, and the run was resumed from an earlier one")


def _waste(path: Path, why: str) -> Waste:
    return Waste(path, why, size_of(path))


def remove(waste: Waste) -> None:
    """Remove the directory."""
    shutil.rmtree(waste.path)
