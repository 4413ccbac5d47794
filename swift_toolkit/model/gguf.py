"""A GGUF file as a checkpoint: transformers reads it and writes it as a model directory for ms-swift."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swift_toolkit.machine.failure import ENDED, child_failure
from swift_toolkit.machine.process import Child
from swift_toolkit.machine.scratch import ScratchFolder
from swift_toolkit.model.files import gguf_in
from swift_toolkit.model.loading import local


@contextmanager
def opened(model: str | None, log: Path) -> Iterator[str | None]:
    """A model that ms-swift can load: an embedded model is unpacked permanently, a GGUF file for this block only.

    Args:
        model: a directory, a hub id or an embedded model.
        log: the output of the process that unpacks.

    Raises:
        RunError: transformers cannot read the file.
    """
    file = None if model is None else gguf_in(Path(model))
    if file is None:
        yield local(model)
        return
    with ScratchFolder() as folder:
        output = folder / file.parent.name
        _unpack(file, output, log)
        yield str(output)


def _unpack(file: Path, output: Path, log: Path) -> None:
    command = [sys.executable, "-m", "swift_toolkit.model.worker"]
    with Child(command, log, listens=True) as child:
        child.send({"unpack": str(file), "output": str(output)})
        events = (event for event in child.events() if event is not None)
        event = next((one for one in events if one["event"] in ("exported", "failed")), ENDED)
        if event["event"] != "exported":
            raise child_failure(event, f"transformers could not read {file}", child, log)
