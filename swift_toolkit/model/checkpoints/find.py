"""Finds the checkpoint that a path refers to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from swift_toolkit.model.files import (
    adapter_problems,
    checkpoint_kind,
    gguf_in,
    gguf_problems,
    missing,
    model_problems,
    read_json,
)
from swift_toolkit.problems import Problem, RequestError

RUN = re.compile(r"v(\d+)-\d{8}-\d{6}")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Found(NamedTuple):
    """A checkpoint that was found: its directory, and a short reason why it was chosen."""

    path: Path
    why: str


def find_checkpoint(path: Path) -> Found:
    """The checkpoint that ``path`` refers to.

    Args:
        path: a checkpoint; a run directory, which contains checkpoint-N; an output directory, which contains runs
            (vN-<time>), for the best checkpoint of the newest run, or else the last; or
            ``<output>/checkpoint-N``, which is searched for in those runs.

    Raises:
        RequestError: there is none; names similar paths.
    """
    with readable(path):
        return _find(path)


def _find(path: Path) -> Found:
    runs = runs_of(path if path.exists() else path.parent)
    if not path.exists():
        for run in runs:
            if CHECKPOINT.fullmatch(path.name) and (run / path.name).is_dir():
                return Found(run / path.name, f"in {run.name}, the newest run that has it")
        raise RequestError([Problem(*missing(path))])
    if checkpoint_kind(path) is not None or CHECKPOINT.fullmatch(path.name):
        return Found(path.resolve(), f"where {path} points") if path.is_symlink() else Found(path, "as given")
    for run in runs:
        found = _choose(run)
        if found is not None:
            newest = "newest run" if run == runs[0] else "newest run with a complete checkpoint,"
            return Found(found.path, f"{newest} {run.name}, {found.why}")
    found = _choose(path)
    if found is not None:
        return found
    damaged = [checkpoint for run in [*runs, path] for checkpoint in checkpoints_of(run)]
    raise RequestError(damage(damaged[0]) if damaged else [_no_checkpoint(path)])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a RequestError."""
    try:
        yield
    except OSError as error:
        raise RequestError([Problem(f"{error.filename or path} cannot be read: {error.strerror}")]) from error


def runs_of(path: Path) -> list[Path]:
    """The runs in an output directory, newest first."""
    return _numbered(path, RUN)


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, last step first."""
    return _numbered(run, CHECKPOINT)


def step_of(checkpoint: Path) -> int:
    """The optimiser step of a directory ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def _numbered(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    if not path.is_dir():
        return []
    found = [
        (match, child)
        for child in path.iterdir()
        if (match := pattern.fullmatch(child.name)) and child.is_dir()
    ]
    return [
        child
        for match, child in sorted(found, key=lambda pair: (int(pair[0][1]), pair[1].name), reverse=True)
    ]


def _choose(run: Path) -> Found | None:
    """The best checkpoint of ``run`` that is complete, or else the last."""
    checkpoints = checkpoints_of(run)
    best = _best(run, checkpoints)
    if best is not None and not damage(best):
        return Found(best, "best checkpoint")
    for index, checkpoint in enumerate(checkpoints):
        if not damage(checkpoint):
            skipped = ", ".join(damaged.name for damaged in checkpoints[:index])
            return Found(
                checkpoint,
                f"last complete checkpoint (incomplete: {skipped})" if skipped else "last checkpoint",
            )
    return None


def _best(run: Path, checkpoints: list[Path]) -> Path | None:
    """The checkpoint that a ``best`` link in the run or next to it points to, or that the trainer recorded as best."""
    names = [
        link.resolve().name
        for link in (run / "best", run.parent / "best")
        if link.resolve().parent == run.resolve()
    ]
    if checkpoints:
        state, _ = read_json(checkpoints[0] / "trainer_state.json")
        names.append(Path((state or {}).get("best_model_checkpoint") or "").name)
    return next((checkpoint for name in names for checkpoint in checkpoints if checkpoint.name == name), None)


def damage(path: Path) -> list[Problem]:
    if (gguf := gguf_in(path)) is not None:
        return gguf_problems(gguf)
    return adapter_problems(path) if checkpoint_kind(path) == "lora" else model_problems(path)


def _no_checkpoint(path: Path) -> Problem:
    """``path`` exists but holds nothing usable; suggests paths one level below."""
    below = (
        sorted(
            child
            for child in path.iterdir()
            if runs_of(child) or checkpoints_of(child) or (child.is_dir() and checkpoint_kind(child))
        )
        if path.is_dir()
        else []
    )
    near = f"Did you mean {' or '.join(map(str, below[:3]))}?" if below else ""
    return Problem(
        f"{path} holds no checkpoint",
        near or "Give a checkpoint directory, a run directory (v0-<time>) or an output directory.",
    )
