"""Whether the name of a model is a path on this machine or an id on a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift_toolkit.model.loading import is_on_hub


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", True),
        ("someone/my-adapter", True),
        ("output/quikstart", False),  # nothing was trained yet, so there is no such directory
        ("checkpoints/nova", False),
        ("runs/v0", False),  # a directory of that name is here
        ("run/v0", False),  # misspelled
        ("someone/checkpoint-14", False),
        ("./someone/my-adapter", False),
        ("builtin/SmolLM2-135M-Instruct", False),
    ],
)
def test_a_name_is_a_path_or_an_id(
    name: str, on_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_on_hub(name) is on_hub
