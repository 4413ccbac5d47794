"""Settings out of the cells of a notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import finetune_trainer
from swift_toolkit.config.scripts import script

INSTALL = "!pip install ms-swift\n"


def write(path: Path, *cells: str) -> Path:
    content = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["swift sft"]}, *content]}))
    return path


@pytest.mark.parametrize(
    "cells",
    [
        [INSTALL, "!CUDA_VISIBLE_DEVICES=0 swift sft \\\n  --model a/b \\\n  --dataset c.jsonl\n"],
        [INSTALL, "%%bash\nexport CUDA_VISIBLE_DEVICES=0\nswift sft --model a/b --dataset c.jsonl"],
        [
            INSTALL + "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'",
            "from swift import sft_main, SftArguments",
            "%time\nsft_main(SftArguments(model='a/b', dataset='c.jsonl'))",
        ],
        ["from swift import sft_main", "!CUDA_VISIBLE_DEVICES=0 swift sft --model a/b --dataset c.jsonl"],
    ],
)
def test_the_command_of_a_notebook(tmp_path: Path, cells: list[str]) -> None:
    notebook = str(write(tmp_path / "train.ipynb", *cells))
    found = script.from_command(script.text_of(notebook), ["sft"], notebook)
    assert found.values == {"model": "a/b", "dataset": "c.jsonl"}
    assert found.env == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("flag", "name", "text", "message"),
    [
        ("--config", "a.ipynb", "{}", "has an unknown extension. Use .json, .yaml or .yml, or pass a script with --from-script."),
        ("--from-script", "a.ipynb", "{}", "is not a Jupyter notebook. Check the file."),
        ("--from-script", "a.ipynb", "no", "is not a Jupyter notebook. Check the file."),
        ("--from-script", "a.yaml", "base_model: a/b", "contains no command of ms-swift. Pass a file of settings with --config."),
    ],
)  # fmt: skip
def test_files_that_hold_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    assert finetune_trainer.main([flag, str(tmp_path / name), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
