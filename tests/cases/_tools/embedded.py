"""A copy of the embedded model of which one JSON file differs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swift_toolkit.model.builtin import materialise


def with_other(name: str, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Link the files of the embedded model into a new folder, but ``name``, which ``change`` changes."""
    base = materialise("builtin/SmolLM2-135M-Instruct")
    folder.mkdir()
    for file in base.iterdir():
        if file.name != name:
            (folder / file.name).symlink_to(file)
    content = json.loads((base / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
