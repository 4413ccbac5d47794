"""What is looked at before anything heavy starts, beyond what the modules it asks are tested for."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.training import preflight

Usage = namedtuple("Usage", "total used free")


def problems(**settings: Any) -> list[str]:
    config = load_config({"model": "Qwen/Qwen2.5-7B-Instruct", "dataset": "a/b", **settings})
    return [str(problem) for problem in preflight.check(config)]


def test_a_hub_model_is_left_to_ms_swift() -> None:
    assert problems() == []


def test_a_missing_model_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "llama-tiny").mkdir()
    assert problems(model=str(tmp_path / "llama-tniy")) == [
        f'"model" names the directory "{tmp_path}/llama-tniy", which does not exist. '
        f'Did you mean "{tmp_path}/llama-tiny"?'
    ]
    assert problems(model="SmolLM2") == [
        '"model" names the directory "SmolLM2", which does not exist. '
        "Check the path, or name a model of a hub as owner/name."
    ]


def test_an_unknown_builtin() -> None:
    assert problems(model="builtin/SmolLM3") == [
        '"model" "builtin/SmolLM3" is not an embedded model. There is "builtin/SmolLM2-135M-Instruct".'
    ]


def test_files_and_checkpoints_that_settings_name(tmp_path: Path) -> None:
    assert problems(
        adapters=["./no/adapter"], resume_from_checkpoint=str(tmp_path), external_plugins=["plugin.py"]
    ) == [
        '"adapters" names the directory "./no/adapter", which does not exist. Check the path.',
        f'"resume_from_checkpoint" "{tmp_path}" holds no trainer_state.json to go on from. '
        "Name a directory checkpoint-N of a training run.",
        '"external_plugins" names the file "plugin.py", which does not exist. Check the path.',
    ]


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("")
    assert problems(output_dir=str(tmp_path / "output/mine")) == [
        f'"output_dir" "{tmp_path}/output" is a file, not a directory. Choose another.'
    ]


def test_an_output_without_the_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)  # root may write anywhere
    assert problems(output_dir=str(tmp_path)) == [
        f'"output_dir" "{tmp_path}" is not writable. Choose another, or change its rights.'
    ]


def test_a_disk_too_full_for_one_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 10_000_000))
    settings = {
        "model": str(tiny_model),
        "model_type": "llama",
        "template": "chatml",
        "output_dir": str(tmp_path),
    }
    assert problems(**settings) == []  # an adapter is small
    weights = (tiny_model / "model.safetensors").stat().st_size
    assert problems(**settings, train_type="full") == [
        f'"output_dir" has 0.0 GiB free, and one checkpoint takes about {3 * weights / (1 << 30):.1f} GiB. '
        "Free some, or choose another disk."
    ]
    assert problems(**settings, train_type="full", save_only_model=True) != []


def test_packed_and_hub_data_are_not_searched_for_media(tmp_path: Path) -> None:
    assert problems(preset="multimodal") == []
    (tmp_path / "a.jsonl").write_text('{"messages": [], "images": []}')
    assert problems(preset="multimodal", dataset=f"{tmp_path}/a.jsonl#10") == []
