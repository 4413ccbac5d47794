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
from swift_toolkit.model.checkpoints.find import RUN, checkpoints_of, step_of
from swift_toolkit.model.files import read_json
from swift_toolkit.runs import lock
from swift_toolkit.runs.history import read_progress
from swift_toolkit.runs.record import RESULT, RecordObject, ResultRecord, read_record
from swift_toolkit.runs.resume import RECORD, StoredRequest

State = Literal["running", "done", "stopped", "interrupted", "failed", "killed", "unknown"]
DEPTH = 3
"""How many levels of directories are searched for runs."""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run, as described by its files.

    Args:
        directory: ``<output_dir>/vN-<time>``.
        started: when its directory was created.
        state: the status in its result; ``running``; ``killed`` if it ended without writing a result; ``unknown`` if
            its result cannot be read.
        resumable: whether steps remain after its newest complete checkpoint.
        model: the trained model.
        task: the training task, e.g. ``sft``.
        tuner: the tuner, e.g. ``lora``.
        data: the training data, as given.
        step: the last step in its log.
        max_steps: the planned number of steps; 0 if it was not logged.
        best_loss: the lowest evaluation loss, or training loss without evaluation; None before the first log.
        error: why it failed.
        faults: which of its files cannot be read, and why.
    """

    directory: Path
    started: datetime
    state: State
    resumable: bool
    model: str
    task: str
    tuner: str
    data: str
    step: int
    max_steps: int
    best_loss: float | None
    error: str | None
    faults: tuple[str, ...] = ()

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
        return (when, run, Path(self.model).name, f"{self.task} {self.tuner}", data, steps, loss, state)


TABLE_COLUMNS = ("started", "run", "model", "task", "data", "steps", "best loss", "state")


@dataclass(frozen=True)
class Listing:
    """The runs below a directory.

    Args:
        runs: the runs, newest first.
        faults: which files and directories cannot be read, and why.
    """

    runs: tuple[RunEntry, ...]
    faults: tuple[str, ...]


def runs_below(directory: Path) -> Listing:
    """All runs in and below ``directory``."""
    own = RUN.fullmatch(directory.resolve().name) is not None
    found = [directory] if own else [*_directories(directory, DEPTH)]
    read = [_read(one) if isinstance(one, Path) else one for one in found]
    runs = [one for one in read if isinstance(one, RunEntry)]
    runs.sort(key=lambda run: (run.started, run.directory), reverse=True)
    faults = [one for one in read if isinstance(one, str)]
    return Listing(tuple(runs), (*faults, *(fault for run in runs for fault in run.faults)))


def _directories(directory: Path, depth: int) -> Iterator[Path | str]:
    """The runs in and below ``directory``, and why directories cannot be read."""
    try:
        children = [child for child in directory.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError as error:
        yield f"{directory} cannot be read: {error.strerror}"
        return
    for child in children:
        if RUN.fullmatch(child.name):
            yield child
        elif depth and child.name[0] != ".":
            yield from _directories(child, depth - 1)


def _read(directory: Path) -> RunEntry | str:
    """The run, or why it cannot be read: a lack of permission, or it was removed in the meantime."""
    try:
        return read_run(directory)
    except OSError as error:
        return f"{error.filename or directory} cannot be read: {error.strerror}"


def read_run(directory: Path, running: bool | None = None) -> RunEntry:
    """Read one run from its files.

    Args:
        directory: the run directory.
        running: whether the run is still going; None checks its lock.

    Raises:
        OSError: the directory cannot be read.
    """
    result, bad_result = read_record(directory / RESULT, ResultRecord)
    request, bad_request = read_record(directory / RECORD, StoredRequest)
    progress, trained = read_progress(directory), _trained(directory, request)
    running = any(lock.lock_problems(directory)) if running is None else running
    state: State = "running" if running else (result and result.status) or "killed"
    state = "unknown" if bad_result and not running else state
    return RunEntry(
        directory=directory,
        started=_started(directory),
        state=state,
        resumable=state not in ("running", "done") and _can_go_on(directory, progress.max_steps),
        model=trained.model,
        task=trained.task,
        tuner=trained.tuner,
        data=trained.data,
        step=progress.step,
        max_steps=progress.max_steps,
        best_loss=progress.best_loss,
        error=result.error if result else None,
        faults=tuple(fault for fault in (bad_result, bad_request) if fault),
    )


@dataclass(frozen=True)
class _Trained:
    """What a run trains: the model, the task, the tuner, the data as given."""

    model: str
    task: str
    tuner: str
    data: str


def _trained(directory: Path, request: StoredRequest | None) -> _Trained:
    """By the request or, for a run that ms-swift started itself, by its args.json."""
    if request is not None:
        given = request.given
        tuner = given.get("tuner_type") or given.get("train_type") or "lora"
        return _Trained(given.get("model") or "unknown", request.task, tuner, given.get("dataset") or "")
    args = json_file(directory / "args.json")
    data = args.get("dataset")
    names = data if isinstance(data, list) else [data or ""]
    tuner = args.get("tuner_type") or args.get("train_type") or "lora"
    task = args.get("rlhf_type") or args.get("task_type") or "sft"
    task = "sft" if task == "causal_lm" else task
    return _Trained(str(args.get("model") or "unknown"), str(task), str(tuner), " ".join(map(str, names)))


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
        if training_state.seems_complete(checkpoint):
            return not max_steps or step_of(checkpoint) < max_steps
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
