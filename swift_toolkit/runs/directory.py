"""The directory of a run, which no other run shares, and the links to its checkpoints.

The layout is that of ms-swift: ``<output_dir>/v0-<time>/checkpoint-N``. The directory is created before ms-swift
starts, so that the log is complete and two runs never share a directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.problems import RunError


@dataclass(frozen=True)
class Output:
    """Where runs write.

    Args:
        root: the directory that the user named.
        own: a run writes directly to ``root`` (``add_version`` false), not to a new directory in it.
    """

    root: Path
    own: bool = False

    def next(self) -> Path:
        """The directory of the next run; it is not created."""
        return self.root if self.own else next_run_directory(self.root)

    def claim(self) -> Path:
        """Create the directory of a run.

        Raises:
            RunError: it cannot be created.
        """
        try:
            if not self.own:
                return claim_run_directory(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.root}: cannot create the run directory ({error.strerror}).") from None
        return self.root


def next_run_directory(output_dir: Path) -> Path:
    """The name that ms-swift would give the next run in ``output_dir``; it is not created."""
    taken = [-1]
    if output_dir.is_dir():
        taken += [
            int(found[1]) for entry in output_dir.iterdir() if (found := re.match(r"v(\d+)-", entry.name))
        ]
    return output_dir / f"v{max(taken) + 1}-{time.strftime('%Y%m%d-%H%M%S')}"


def claim_run_directory(output_dir: Path) -> Path:
    """Create the directory of the next run, for this process only.

    Raises:
        OSError: it cannot be created.
    """
    while True:
        directory = next_run_directory(output_dir)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint to ``damaged-checkpoint-N``, so that no run resumes from it. Returns its new path."""
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    return checkpoint.rename(target)


def unlink_missing(output_dir: Path) -> None:
    """Remove ``last`` and ``best`` in ``output_dir`` if they point to nothing."""
    for name in ("last", "best"):
        place = output_dir / name
        if place.is_symlink() and not place.exists():
            place.unlink()


def link(output_dir: Path, name: str, checkpoint: str | Path | None) -> None:
    """Make ``<output_dir>/<name>`` a relative link to ``checkpoint``; an older link is replaced in one step.

    Nothing happens if something else has that name, or if the file system does not support links.
    """
    place = output_dir / name
    if checkpoint is None or not Path(checkpoint).is_dir() or (place.exists() and not place.is_symlink()):
        return
    beside = output_dir / f".{name}-{os.urandom(4).hex()}"
    try:
        beside.symlink_to(os.path.relpath(checkpoint, output_dir), target_is_directory=True)
        beside.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
