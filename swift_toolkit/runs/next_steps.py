"""What can be done next with a checkpoint, as commands to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from swift_toolkit.config.tasks import TaskOutput
from swift_toolkit.console.screen import short_path
from swift_toolkit.model.checkpoints.recorded import read_arguments


def checkpoint_commands(checkpoint: Path, output: TaskOutput, data: Iterable[str]) -> Iterator[str]:
    """Commands that ask and serve a checkpoint, depending on its model: not every model generates text.

    Args:
        checkpoint: its directory.
        output: what its model gives.
        data: the data of its training, for models that do not answer questions.
    """
    path = shlex.quote(short_path(checkpoint))
    if output == "decision":
        flag = "--adapters" if (checkpoint / "adapter_config.json").is_file() else "--model"
        yield f"swift infer {flag} {path} --val_dataset {_local_file(data)}"
        return
    if output == "chat":
        yield f"python inference_test.py --checkpoint {path}"
    elif output != "embedding":
        yield f"python inference_test.py --checkpoint {path} --questions-file {_local_file(data)}"
    yield f"python deploy_model.py --checkpoint {path}"


def recorded_commands(checkpoint: Path) -> Iterator[str]:
    """The same for a checkpoint that says itself what it was trained for."""
    args, _ = read_arguments([checkpoint])
    yield from checkpoint_commands(checkpoint, args.output, args.data)


def _local_file(data: Iterable[str]) -> str:
    """The first local file of some data; FILE if there is none."""
    files = (Path(one.rpartition("#")[0] if "#" in one else one).expanduser() for one in data)
    return next((shlex.quote(short_path(file)) for file in files if file.is_file()), "FILE")
