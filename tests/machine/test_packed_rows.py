"""Rows without padding on a CPU: every family of models gives what it gives with padding, or is given padded rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.machine import cpu

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def compared(folder: Path, models: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """What packed_rows.py finds, for each model."""
    request = folder / "request.json"
    request.write_text(json.dumps(models))
    command = [sys.executable, str(ROOT / "tests/machine/packed_rows.py"), str(request)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return [(kind, each) for (kind, _), each in zip(models, found, strict=True)]


def test_models_give_the_same_without_padding(tmp_path: Path) -> None:
    models: list[tuple[str, dict[str, Any]]] = [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 9}),
        ("gemma2", {"sliding_window": 9}),
        ("phi3", {}),
        ("glm4", {}),
        ("olmo2", {}),
        ("gpt2", {}),
        ("gpt_neox", {"num_key_value_heads": 4}),
        ("starcoder2", {}),
    ]
    for kind, found in compared(tmp_path, models):
        assert found["computed"] == [9, 4, 7], kind  # nothing for padding
        assert found["furthest"] < 1e-5, kind


def test_models_that_need_padded_rows_get_them(tmp_path: Path) -> None:
    models: list[tuple[str, dict[str, Any]]] = [
        ("llama", {"attention": "eager"}),
        ("bert", {}),  # tokens see those after them
        ("bloom", {"n_head": 4}),  # positions in the mask
        ("doge", {}),  # more than positions in the mask
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba", {}),
        ("recurrent_gemma", {"num_hidden_layers": 3}),
    ]
    for kind, found in compared(tmp_path, models):
        assert found == {"longest": 0}, kind
    ((kind, found),) = compared(tmp_path, [("mistral", {"sliding_window": 8})])
    assert found == {"longest": 8}, kind  # the rows have up to 9 tokens


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],  # padding at the beginning
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1]],  # a gap
        [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]],  # too little padding
    ],
)
def test_micro_batches_that_are_computed_as_they_are(mask: list[list[int]]) -> None:
    import torch

    assert cpu._Rows.of(torch.tensor(mask), 1000) is None
