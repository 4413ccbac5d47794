"""The directory of one run: claimed for it alone, with links to its checkpoints and a result file.

The layout is ms-swift's own, ``<output_dir>/v0-<time>/checkpoint-N``. Claiming the directory before ms-swift starts
gives the log a place from the first byte, and no two runs the same one.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.problems import RunError


@dataclass(frozen=True)
class Output:
    """Where runs write.

    Args:
        root: the directory that the user named.
        own: a run writes into ``root`` itself (``add_version`` false), not into a new directory below it.
    """

    root: Path
    own: bool = False

    def next(self) -> Path:
        """The directory the next run would write to; nothing is made."""
        return self.root if self.own else next_run_directory(self.root)

    def claim(self) -> Path:
        """Make the directory of a run.

        Raises:
            RunError: it cannot be made.
        """
        try:
            if not self.own:
                return claim_run_directory(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.root}: cannot make the run directory ({error.strerror}).") from None
        return self.root


def next_run_directory(output_dir: Path) -> Path:
    """The name ms-swift would give the next run in ``output_dir``; nothing is made."""
    taken = [-1]
    if output_dir.is_dir():
        taken += [
            int(found[1]) for entry in output_dir.iterdir() if (found := re.match(r"v(\d+)-", entry.name))
        ]
    return output_dir / f"v{max(taken) + 1}-{time.strftime('%Y%m%d-%H%M%S')}"


def claim_run_directory(output_dir: Path) -> Path:
    """Make the next run's directory, which nobody else gets.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        directory = next_run_directory(output_dir)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory


def link(output_dir: Path, name: str, checkpoint: str | Path | None) -> None:
    """Make ``<output_dir>/<name>`` a relative link to ``checkpoint``, replacing an older link in one step.

    Something else of that name, or a file system without links, is left as it is.
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
