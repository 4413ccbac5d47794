"""Adapters that do not fit their base, or are no weights at all, are refused before anything is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from swift_toolkit.model.checkpoints.adapter import OWN_BASE, adapter_fit
from swift_toolkit.model.checkpoints.recorded import RecordedArguments
from tests.adapters import make_adapter

PREFIX = "base_model.model.model.layers"
FIRST = f"{PREFIX}.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter", 1)


def change(path: Path, **changes: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | changes))


def rewrite(path: Path, make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = path / "adapter_model.safetensors"
    save_file(make(load_file(file)), file)


def said(path: Path, base: Path, **args: Any) -> list[str]:
    return [str(problem) for problem in adapter_fit(path, base, RecordedArguments(**args))]


def test_an_adapter_of_its_base(adapter: Path, tiny_model: Path) -> None:
    assert said(adapter, tiny_model) == []


def test_layers_of_another_architecture(adapter: Path, tiny_model: Path) -> None:
    rewrite(
        adapter, lambda old: {name.replace(".layers", ".language_model.layers"): old[name] for name in old}
    )
    (problem,) = said(adapter, tiny_model)
    layer = "layers.0.self_attn.q_proj"
    assert problem == (
        f"{adapter} was not trained from {tiny_model}: none of the 4 layers of the adapter, e.g. "
        f"model.language_model.{layer}, is in the model, which has model.{layer}. {OWN_BASE}"
    )


def test_transformers_renames_the_parts_of_a_model_that_sees(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The files of Qwen2.5-VL say model.layers where the loaded model has model.language_model.layers."""
    base = tmp_path / "vl"
    base.mkdir()
    (base / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "x", "vision_config": {"depth": 1}}))
    rewrite(
        adapter, lambda old: {name.replace(".layers", ".language_model.layers"): old[name] for name in old}
    )
    assert said(adapter, base) == []


def test_more_layers_than_the_base_has(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {**old, **{name.replace("layers.1", "layers.2"): old[name] for name in old}})
    (problem,) = said(adapter, tiny_model)
    assert (
        f"model.layers.2.self_attn.q_proj and 1 more of its layers are not in the model. {OWN_BASE}"
        in problem
    )


def test_gpt2_leaves_its_outermost_name_out_of_its_files(tmp_path: Path) -> None:
    base, path = tmp_path / "gpt2", tmp_path / "adapter"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"h.0.attn.c_attn.weight": numpy.zeros((4, 12), "float32")}, base / "model.safetensors")
    path.mkdir()
    layer = "base_model.model.transformer.h.0.attn.c_attn"
    pair = {"lora_A": (8, 4), "lora_B": (12, 8)}
    save_file(
        {f"{layer}.{name}.weight": numpy.ones(shape, "float32") for name, shape in pair.items()},
        path / "adapter_model.safetensors",
    )
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    assert said(path, base) == []


def test_weights_that_zero3_left_empty(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: dict.fromkeys(old, numpy.zeros(0, "float32")))
    (problem,) = said(adapter, tiny_model)
    assert problem == (
        f"{adapter} has empty weights: 8 of its 8 tensors have the shape [0]. They were saved under DeepSpeed ZeRO-3 "
        "without being gathered: use another checkpoint."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_weights_that_are_not_numbers(adapter: Path, tiny_model: Path, value: float, kind: str) -> None:
    rewrite(adapter, lambda old: {name: numpy.full_like(old[name], value, dtype=kind) for name in old})
    (problem,) = said(adapter, tiny_model)
    assert "holds values that are not numbers (NaN or infinite), e.g. in base_model.model." in problem


def test_bfloat16_that_is_not_a_number(tmp_path: Path) -> None:
    for value, count in ((0x7FC0, 1), (0x7F7F, 0)):  # NaN; the largest number
        entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
        header = json.dumps({FIRST: entry}).encode()
        content = struct.pack("<Q", len(header)) + header + struct.pack("<4H", 1, 2, 3, value)
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        assert len(list(adapter_fit(tmp_path, None, RecordedArguments()))) == count


def test_another_rank_than_the_configuration_says(adapter: Path, tiny_model: Path) -> None:
    change(adapter, r=16)
    (problem,) = said(adapter, tiny_model)
    assert problem.startswith(f"{adapter}/adapter_config.json says rank 16, but base_model.model.")
    change(adapter, rank_pattern={"q_proj": 8, "v_proj": 8})
    assert said(adapter, tiny_model) == []


def test_an_embedding_with_more_tokens_than_the_base(adapter: Path, tiny_model: Path) -> None:
    rows = numpy.zeros((49160, 64), "float32")
    rewrite(adapter, lambda old: {**old, "base_model.model.model.embed_tokens.weight": rows})
    (problem,) = said(adapter, tiny_model)
    assert "model.embed_tokens is 49160 x 64 in the adapter and 49152 x 64 in the model" in problem
    assert said(adapter, tiny_model, new_special_tokens=["<a>"]) == []


def test_a_head_that_was_made_for_the_task(adapter: Path, tiny_model: Path) -> None:
    rewrite(adapter, lambda old: {**old, "base_model.model.score.weight": numpy.zeros((2, 64), "float32")})
    assert said(adapter, tiny_model) == []
