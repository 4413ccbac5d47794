"""docs/contributing.md names files that exist, and draws the layers that are enforced."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w./-]+(?:/|\.(?:py|json|md|txt|toml)))`", PAGE)))


def test_every_file_and_folder_named_exists() -> None:
    assert len(NAMED) > 30
    relative = ("plan.py", "worker.py", "page.py", "memory/")
    assert [name for name in NAMED if name not in relative and not (ROOT / name).exists()] == []


def test_every_folder_is_described() -> None:
    folders = [path.parent.name for path in (ROOT / "swift_toolkit").glob("*/__init__.py")]
    assert [name for name in folders if f"`swift_toolkit/{name}/`" not in PAGE] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML")
def test_the_layers_are_those_that_lint_enforces() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.split(" | ") for layer in contracts[0]["layers"] if not layer.startswith("(")]
    picture = PAGE.split("```")[1].strip().splitlines()[1:]
    drawn = [re.findall(r"\b([a-z]+)(?:/|\.py)(?=\s|$)", line) for line in picture]
    assert drawn == layers
