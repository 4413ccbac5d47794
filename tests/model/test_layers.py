"""The parts of a model by the names in its files, against what PEFT and ms-swift make of the same names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swift_toolkit.model.builtin import weight_names
from swift_toolkit.model.files import safetensors_header
from swift_toolkit.model.layers import Layers, layers_of
from tests.conftest import SMOLLM2


def test_names_of_the_embedded_model_are_those_of_its_files(demo_model: Path) -> None:
    header = safetensors_header(demo_model / "model.safetensors")
    assert header is not None
    assert sorted(weight_names(SMOLLM2)) == sorted(header.tensors)
    assert layers_of(str(demo_model)) is not None


def test_an_index_is_enough(tmp_path: Path) -> None:
    weights = {"model.layers.0.self_attn.qkv_proj.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (tmp_path / "config.json").write_text("{}")
    found = layers_of(str(tmp_path))
    assert found is not None and found.named("qkv_proj") == 1 and not found.renamed


def test_models_made_of_several_have_other_names_when_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"visual.a.weight": "a"}}')
    (tmp_path / "config.json").write_text(
        '{"text_config": {"hidden_size": 8}, "vision_config": {"hidden_size": 8}}'
    )
    found = layers_of(str(tmp_path))
    assert found is not None and found.renamed


@pytest.mark.slow
def test_counts_are_those_of_peft(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = layers_of(str(tiny_model))
    assert isinstance(found, Layers)
    for name in ("q_proj", "self_attn.v_proj", "down_proj", "model.layers.1.mlp.up_proj"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        tuned = get_peft_model(model, LoraConfig(target_modules=[name], task_type="CAUSAL_LM"))
        assert found.named(name) == sum(part.endswith(".lora_A") for part, _ in tuned.named_modules())
