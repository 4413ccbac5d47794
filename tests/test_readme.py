"""What the READMEs say of the code is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swift_toolkit.config.presets import PRESETS
from swift_toolkit.config.settings import OWN_KEYS


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_every_preset_and_own_key_is_in_a_table(readme: str) -> None:
    named = re.findall(r"^\| `(\w+)` \|", Path(readme).read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted([*PRESETS, *OWN_KEYS])


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_tree_has_one_line_for_each_folder_of_the_package_and_nothing_else(readme: str) -> None:
    text = Path(readme).read_text(encoding="utf-8")
    tree = text[text.index("swift_toolkit/          ") :]
    tree = tree[: tree.index("```")]
    entries = [
        path for path in Path("swift_toolkit").iterdir() if path.name not in ("__init__.py", "__pycache__")
    ]
    folders = [f"{path.name}/" for path in entries if path.is_dir()]
    modules = [path.name for path in entries if path.suffix == ".py"]
    assert sorted(re.findall(r"^    (\w+(?:/|\.py)) ", tree, re.MULTILINE)) == sorted([*folders, *modules])


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_every_file_it_names_exists(readme: str) -> None:
    text = Path(readme).read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:configs|data)/\w+\.\w+", text)) - {
        "configs/mine.json",
        "data/train.jsonl",
        "data/trian.jsonl",
    }:
        assert Path(name).is_file(), name
