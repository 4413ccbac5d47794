"""The checkpoints of a run on disk, and the reasons why a run cannot write."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.console.screen import gib
from swift_toolkit.model.checkpoints import training_state


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a run's directory, oldest first.

    Args:
        whole: complete checkpoints.
        torn: checkpoints whose save was interrupted.
    """

    whole: tuple[Path, ...] = ()
    torn: tuple[Path, ...] = ()


def checkpoints(directory: Path) -> Checkpoints:
    """Find the checkpoints in ``directory``; there are none if it does not exist."""
    found = [path for path in directory.glob("checkpoint-*") if path.name[11:].isdecimal() and path.is_dir()]
    found.sort(key=lambda path: int(path.name[11:]))
    whole = tuple(path for path in found if _is_whole(path))
    return Checkpoints(whole, tuple(path for path in found if path not in whole))


def _is_whole(path: Path) -> bool:
    if (path / training_state.STATE).is_file() and training_state.is_model_only(path):
        return not training_state.weight_problems(path)
    return not training_state.training_state_problems(path)


def free_bytes(directory: Path) -> int | None:
    """Free bytes on the disk of ``directory``; None if the directory no longer exists."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


LEAST_BYTES = 1 << 20
"""A disk with less free space than this, in bytes, counts as full."""

_FULL = re.compile(r"no space left|(Errno|os error) (28|122)\b|disk quota|file write failed", re.IGNORECASE)
_READ_ONLY = re.compile(r"read-only file system|(Errno|os error) 30\b|permission denied", re.IGNORECASE)


def trouble(directory: Path, log: Path, said: str) -> tuple[str, str] | None:
    """Why a run cannot write to its directory, and what to do; None if it can.

    Args:
        directory: the run directory.
        log: a file in it that existed at the start.
        said: the error messages of its processes.
    """
    if not log.exists():
        return f"{directory} was removed during the run", "Do not remove it while it is in use."
    if _FULL.search(said) or shutil.disk_usage(directory).free < LEAST_BYTES:
        place = _place(directory, said)
        return f"the disk of {place} is full ({gib(shutil.disk_usage(place).free)} free)", "Free some space."
    if not os.access(directory, os.W_OK | os.X_OK) or (_READ_ONLY.search(said) and not _can_write(directory)):
        return f"cannot write to {directory}: it became read-only", "Make it writable again."
    return None


def _place(directory: Path, said: str) -> Path:
    """The directory whose disk is full; an error may name a file on another disk, such as a cache."""
    named = re.search(r"'(/[^']+)'", said)
    if not _FULL.search(said) or named is None or Path(named[1]).is_relative_to(directory):
        return directory
    return next(path for path in Path(named[1]).parents if path.is_dir())


def _can_write(directory: Path) -> bool:
    probe = directory / f".writable-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
