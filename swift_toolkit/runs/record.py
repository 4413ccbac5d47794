"""The record of a run: its result and the links to its checkpoints."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from swift_toolkit.model.files import read_json

RecordObject: TypeAlias = dict[str, Any]
"""The JSON object in a file of a run, such as args.json."""

MEASURED = "measured.jsonl"
"""File with time and memory at each log of a run, one JSON object per line."""

RESULT = "result.json"
"""The result of a run."""

PLAN, SETTINGS, REPORT = "plan.json", "settings.json", "report.html"
"""The plan of a run, its settings as a config file, and its report."""

Status = Literal["done", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Args:
        status: ``done``; ``stopped`` on request, after saving a checkpoint; ``interrupted`` at once; ``failed``.
        run_directory: ``<output_dir>/vN-<time>``, with ``train.log`` and ``result.json``.
        last_checkpoint: the newest checkpoint; None if there is none.
        best_checkpoint: the checkpoint with the best evaluation; None without evaluation.
        steps: optimiser steps done.
        metrics: ``final_loss``, ``best_loss`` and everything else that ms-swift measured, e.g. ``eval_loss``.
        seconds: wall-clock time of ``startup`` and ``training``, and the ``total``.
    """

    status: Status
    run_directory: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """A commit of a git repository.

    Args:
        id: its hash.
        changed: whether the working tree differs from it.
    """

    id: str
    changed: bool


def commit_of(directory: Path) -> Commit | None:
    """The commit of the repository that contains ``directory``; None without a repository or git."""
    git = ["git", "-C", str(directory)]
    with suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], **_QUIET)
        files_changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **_QUIET)
        return Commit(head.stdout.strip(), bool(files_changed.stdout.strip()))
    return None


_QUIET: Any = {"capture_output": True, "text": True, "check": True, "timeout": 10}


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The contents of plan.json, which is written before a run starts.

    Args:
        facts: names and values of the plan, as displayed.
        settings: ``value`` as text, and ``source``, of each setting.
        command: the command line, without secrets; empty if the run was started from Python.
        commit: of the git repository in the working directory; None without one.
        fingerprints: what identifies the data of each split.
        versions: of the packages.
    """

    facts: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    command: Sequence[str] = ()
    commit: Commit | None = None
    fingerprints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """The contents of result.json in addition to the result.

    Args:
        config: every setting by name.
        sources: where each value comes from.
        data: what was found in the data.
        model_parameters: the size of the model, as reported by ms-swift.
        rows: numbers of found, loaded and used rows of each split.
        learned: how many tokens of some rows are learned, by the template; None if this was not checked.
        tokens_per_row: of the training and validation data, as reported by ms-swift.
        memory: bytes on a device: the peak and the estimate.
        alarms: the alarms that the run raised.
        planned: steps, tokens and memory as planned.
        measured: the same as measured, with seconds per step.
        commit: of the git repository in the working directory; None without one.
        command: the command line, without secrets; empty if the run was started from Python.
        fingerprints: what identifies the data of each split.
        seed: of the random numbers.
        devices: kind, name and number of devices, and the number of processes.
    """

    config: Mapping[str, object]
    sources: Mapping[str, str]
    data: Mapping[str, object]
    model_parameters: object
    rows: Mapping[str, object]
    learned: object
    tokens_per_row: Mapping[str, object]
    memory: Mapping[str, int | None]
    alarms: Sequence[Mapping[str, object]]
    planned: Mapping[str, float | None]
    measured: Mapping[str, float | None]
    commit: Commit | None
    command: Sequence[str]
    fingerprints: Mapping[str, Sequence[str]]
    seed: int
    devices: Mapping[str, object]


# --- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Memory of a device in bytes, measured and estimated; None if unknown."""

    peak: int | None = None
    estimate: int | None = None


@dataclass(frozen=True, kw_only=True)
class AlarmRecord:
    """An alarm that a run raised: at which step, what was wrong, and what to do."""

    step: int
    what: str
    do: str


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """What the table and the pages need of result.json; see `TrainingResult` and `RunDetails`."""

    status: Status | None = None
    error: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: MemoryRecord = MemoryRecord()
    alarms: Sequence[AlarmRecord] = ()
    model_parameters: object = None
    versions: Mapping[str, str] = field(default_factory=dict)


_Record = TypeVar("_Record")


def read_record(file: Path, kind: type[_Record]) -> tuple[_Record | None, str | None]:
    """The record in a JSON file, and why it cannot be read; both None if there is no file.

    Args:
        file: the file.
        kind: the dataclass of its contents; other keys in the file are ignored.
    """
    import msgspec

    if not file.is_file():
        return None, None
    content, fault = read_json(file)
    if content is None:
        return None, fault[0] if fault else f"{file} is a Git LFS pointer"
    try:
        return msgspec.convert(content, kind), None
    except msgspec.ValidationError as error:
        return None, f"{file} is not a record of a run: {error}"


SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""Packages that must be the same on every node."""


class Interrupted(KeyboardInterrupt):
    """A run was ended by Ctrl-C or SIGTERM.

    Args:
        result: the result of the run.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause
