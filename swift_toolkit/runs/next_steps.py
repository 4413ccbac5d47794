"""What can be done next with a checkpoint, as commands to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from swift_toolkit.config.tasks import TaskOutput
from swift_toolkit.console.screen import short_path
from swift_toolkit.model.checkpoints.code import code_in
from swift_toolkit.model.checkpoints.recorded import read_arguments


def checkpoint_commands(checkpoint: Path, output: TaskOutput, data: Iterable[str]) -> Iterator[str]:
    """Commands that ask and serve a checkpoint, depending on its model: not every model generates text.

    Args:
        checkpoint: its directory.
        output: what its model gives.
        data: the data of its training, for models that do not answer questions.
    """
    path, trust = shlex.quote(short_path(checkpoint)), _trust(checkpoint)
    if output == "decision":
        flag = "--adapters" if (checkpoint / "adapter_config.json").is_file() else "--model"
        yield f"swift infer {flag} {path} --val_dataset {_local_file(data)}"
        return
    if output == "chat":
        yield f"python inference_test.py --checkpoint {path}{trust}"
    elif output != "embedding":
        yield f"python inference_test.py --checkpoint {path} --questions-file {_local_file(data)}{trust}"
    yield f"python deploy_model.py --checkpoint {path}{trust}"


def _trust(checkpoint: Path) -> str:
    """The flag for a checkpoint that loads Python code, which its training has run before."""
    base = read_arguments([checkpoint])[0].model
    directories = [checkpoint] if base is None else [checkpoint, Path(base)]
    return " --trust-code" if any(code.needed for code in code_in(directories)) else ""


def recorded_commands(checkpoint: Path) -> Iterator[str]:
    """The same for a checkpoint that says itself what it was trained for."""
    args, _ = read_arguments([checkpoint])
    yield from checkpoint_commands(checkpoint, args.output, args.data)


def _local_file(data: Iterable[str]) -> str:
    """The first local file of some data; FILE if there is none."""
    files = (Path(one.rpartition("#")[0] if "#" in one else one).expanduser() for one in data)
    return next((shlex.quote(short_path(file)) for file in files if file.is_file()), "FILE")
