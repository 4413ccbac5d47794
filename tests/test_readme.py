"""What the READMEs say of the code is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swift_toolkit.config import OWN_KEYS
from swift_toolkit.presets import PRESETS


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_every_preset_and_own_key_is_in_a_table(readme: str) -> None:
    named = re.findall(r"^\| `(\w+)` \|", Path(readme).read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted([*PRESETS, *OWN_KEYS])


def test_the_tree_names_every_module_and_nothing_else() -> None:
    text = Path("README.md").read_text(encoding="utf-8")
    tree = text[text.index("swift_toolkit/          ") :]
    tree = tree[: tree.index("```")]
    modules = {path.name for path in Path("swift_toolkit").glob("*.py")} - {"__init__.py"}
    data = {name for name in modules if name.startswith("dataset")}
    assert all(
        f" {name.removeprefix('dataset').removesuffix('.py')}" in tree for name in data - {"dataset.py"}
    )
    assert set(re.findall(r"\b(\w+\.py)\b", tree)) - data == modules - data


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_every_file_it_names_exists(readme: str) -> None:
    text = Path(readme).read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:configs|data)/\w+\.\w+", text)) - {
        "configs/mine.json",
        "data/train.jsonl",
        "data/trian.jsonl",
    }:
        assert Path(name).is_file(), name
