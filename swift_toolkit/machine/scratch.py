"""Temporary folders that do not accumulate: a process that needs one removes those that killed processes left.

The process that makes a folder locks it (flock). The system releases the lock however that process ends. Process
numbers are not used, because containers that share a disk number their processes separately.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "swift-toolkit-scratch-"
NEW_SECONDS = 3600
"""A folder that is still not locked after this time has no owner."""


class ScratchFolder:
    """A new folder that is removed by `cleanup`, at the end of a ``with`` block, or else by a later process.

    Args:
        under: the parent folder; by default the system's folder for temporary files.
        prefix: the start of its name.
    """

    def __init__(self, under: Path | None = None, prefix: str = PREFIX) -> None:
        folder = Path(tempfile.gettempdir()) if under is None else under
        sweep(folder, prefix)
        new = Path(tempfile.mkdtemp(prefix=f".new-{prefix}", dir=folder))
        self._lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = new.with_name(new.name.removeprefix(".new-"))
        new.rename(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove the folder if it still exists."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep(folder: Path, prefix: str = PREFIX) -> None:
    """Remove the folders in ``folder`` that processes of this user left under that prefix when they ended."""
    with suppress(OSError):
        found = [one for one in os.scandir(folder) if one.name.removeprefix(".new-").startswith(prefix)]
        for one in found:
            with suppress(OSError):  # it was just removed, or belongs to another user
                if _is_left_behind(Path(one.path), is_new=one.name.startswith(".new-")):
                    shutil.rmtree(one.path, ignore_errors=True)


def _is_left_behind(path: Path, is_new: bool) -> bool:
    state = path.lstat()
    if state.st_uid != os.getuid() or (is_new and time.time() - state.st_mtime < NEW_SECONDS):
        return False
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
