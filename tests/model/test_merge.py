"""Adapters that cannot be merged, or that would answer differently once merged, are refused before anything loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import deploy_model
import inference_test
from swift_toolkit.inference.backend import BACKENDS
from swift_toolkit.model.checkpoints.checkpoint import read_checkpoint
from swift_toolkit.model.merge import unmergeable
from tests.adapters import make_adapter


def changed(path: Path, **changes: Any) -> Path:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def adapted(base: Path, path: Path, *modules: str) -> Path:
    """An adapter that also adapts these modules, of 64 x 49152."""
    make_adapter(base, path, 1)
    file = path / "adapter_model.safetensors"
    weights = load_file(file)
    for module in modules:
        name = f"base_model.model.{module}"
        if module.endswith("embed_tokens"):
            weights[f"{name}.lora_embedding_A"] = numpy.ones((8, 49152), "float32")
            weights[f"{name}.lora_embedding_B"] = numpy.ones((64, 8), "float32")
        else:
            weights[f"{name}.lora_A.weight"] = numpy.ones((8, 64), "float32")
            weights[f"{name}.lora_B.weight"] = numpy.ones((49152, 8), "float32")
    save_file(weights, file)
    targets = ["q_proj", "v_proj", *(module.rpartition(".")[2] for module in modules)]
    return changed(path, target_modules=targets)


def why_not(adapter: Path) -> list[str]:
    return [problem.what for problem in unmergeable(read_checkpoint(adapter))]


def test_plain_lora_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    assert why_not(make_adapter(tiny_model, tmp_path / "a", 1)) == []


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_a_change_of_weights_that_two_layers_share(tiny_model: Path, tmp_path: Path, module: str) -> None:
    """It is merged into one of the two; `tests.serving.test_good_exports` compares the answers."""
    assert why_not(adapted(tiny_model, tmp_path / "a", module)) == []


def test_biases_and_repeated_layers(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "a", 1)
    assert why_not(changed(adapter, lora_bias=True)) == [
        f'cannot merge {adapter}: it has biases ("lora_bias"), and model.layers.0.self_attn.q_proj of its base has none'
    ]
    changed(adapter, lora_bias=False, layer_replication=[[0, 2]])
    assert why_not(adapter) == [
        f'cannot merge {adapter}: it repeats layers of its base ("layer_replication")'
    ]


def test_virtual_tokens(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "a", 1)
    save_file({"prompt_embeddings": numpy.ones((4, 64), "float32")}, adapter / "adapter_model.safetensors")
    changed(adapter, peft_type="PROMPT_TUNING", num_virtual_tokens=4)
    what = f"cannot merge {adapter}: PEFT cannot merge PROMPT_TUNING"
    for main, words in (
        (inference_test.main, ["--question", "Hi?", "--merge-lora"]),
        (deploy_model.main, ["--port", "0", "--merge-lora"]),
        (deploy_model.main, ["--export", "merged"]),
    ):
        assert main(["--checkpoint", str(adapter), "--dry-run", *words]) == 2
        assert what in capsys.readouterr().err
    monkeypatch.setattr(BACKENDS["vllm"], "is_installed", lambda: True, raising=False)
    for main, words in ((inference_test.main, ["--question", "Hi?"]), (deploy_model.main, ["--port", "0"])):
        assert main(["--checkpoint", str(adapter), "--dry-run", "--infer-backend", "vllm", *words]) == 2


def test_a_base_whose_weights_are_packed(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "packed"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    adapter = make_adapter(base, tmp_path / "a", 1)
    assert why_not(adapter) == [f"cannot merge {adapter}: the weights of its base are packed (gptq)"]


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({}, True),
        ({"init_lora_weights": "gaussian"}, True),
        ({"init_lora_weights": "pissa"}, False),
        ({"init_lora_weights": "olora"}, False),
        ({"lora_bias": True}, False),
        ({"trainable_token_indices": [5]}, False),
        ({"use_dora": True}, False),
    ],
)
def test_what_vllm_loads(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], served: bool) -> None:
    checkpoint = read_checkpoint(make_adapter(tiny_model, tmp_path / "a", 1))
    changed(tmp_path / "a", **changes)
    assert BACKENDS["vllm"].serves_adapter(checkpoint) is served
