"""Models that are stored quantised: what is refused, and what their memory is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swift_toolkit.config.request import load_config
from swift_toolkit.machine.device import Device
from swift_toolkit.machine.msswift import installed
from swift_toolkit.model import quantized
from swift_toolkit.model.shape import from_config
from swift_toolkit.training.memory.run import MemoryRun, Rows
from swift_toolkit.training.memory.weights import weight_bytes

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
H100, A100 = (Device("cuda", name=f"NVIDIA {name}") for name in ("H100 80GB HBM3", "A100-SXM4-80GB"))
CPU = Device("cpu")


def model(path: Path, quantization: dict[str, Any] | None) -> str:
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "quantization_config": quantization,
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def problems(path: Path, quantization: dict[str, Any], device: Device, **given: object) -> list[str]:
    config = load_config(
        {"model": model(path, quantization), "dataset": "d/d", "train_type": "lora", **given}
    )
    return [problem.what for problem in quantized.quantization_problems(config, device)]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (FP8, quantized.Quantized("fp8", None)),
        ({"quant_method": "gptq", "bits": 4}, quantized.Quantized("gptq", 4)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, quantized.Quantized("bnb", 8)),
        ({"load_in_4bit": True}, quantized.Quantized("bnb", 4)),
        (None, None),
    ],
)
def test_how_weights_are_stored(config: Any, found: Any, tmp_path: Path) -> None:
    assert quantized.stored(model(tmp_path, config)) == found


def test_flags_of_bitsandbytes_on_a_quantised_model(tmp_path: Path) -> None:
    found = problems(tmp_path, FP8, H100, quant_method="bnb", quant_bits=4)
    assert found == [f'is "bnb" with 4 bits, but {tmp_path} is already quantised: fp8']
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert problems(tmp_path, stored, H100, quant_method="bnb", quant_bits=4) == []
    (found,) = problems(tmp_path, stored, H100, quant_method="bnb", quant_bits=8)
    assert found == f'is "bnb" with 8 bits, but {tmp_path} is already quantised: bnb with 4 bits'


def test_quantised_weights_are_not_trained_whole(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, FP8, H100, train_type="full")
    assert found == f'is "full", but {tmp_path} is quantised (fp8), and its weights stay frozen'
    assert problems(tmp_path, FP8, A100, train_type="full") == []  # dequantised to bf16 there
    assert problems(tmp_path, FP8, H100) == []


def test_a_method_needs_its_package(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, {"quant_method": "gptq", "bits": 4}, H100)
    assert found == f'names "{tmp_path}", which is quantised with gptq and needs the package gptqmodel'


@pytest.mark.parametrize(("device", "unpacked"), [(H100, False), (A100, True), (CPU, True)])
def test_fp8_takes_twice_its_files_where_the_device_has_none(
    device: Device, unpacked: bool, tmp_path: Path
) -> None:
    config = load_config({"model": model(tmp_path, FP8), "dataset": "d/d", "train_type": "lora"})
    assert bool(list(quantized.quantization_warnings(config, device))) is unpacked


@pytest.mark.parametrize(
    "name", ["L40S", "RTX 4090", "GeForce RTX 5090", "RTX 6000 Ada Generation", "H20", "B200", "L4"]
)
def test_gpus_that_compute_in_fp8(name: str) -> None:
    assert not quantized.is_unpacked(quantized.Quantized("fp8", None), Device("cuda", name=f"NVIDIA {name}"))


def test_stored_methods_never_become_bitsandbytes() -> None:
    for given in ({"quant_method": "gptq", "quant_bits": 4}, {"quant_method": "awq", "quantization_bit": 4}):
        config = load_config({"model": "m/m", "dataset": "d/d", "train_type": "lora", **given})
        assert (config.get("quant_method"), config.get("quant_bits"), config.preset) == (None, None, "lora")


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm"])
@pytest.mark.parametrize("tuner", ["lora", "qlora"])
def test_a_stored_method_needs_a_model_that_is_stored_so(tmp_path: Path, method: str, tuner: str) -> None:
    given = {"dataset": "d/d", "train_type": tuner, "quant_method": method, "quant_bits": 4}
    config = load_config({"model": model(tmp_path, None), **given})
    (problem,) = quantized.quantization_problems(config, CPU)
    assert str(problem) == (
        f'"quant_method" is "{method}", but {tmp_path} is not quantised, and a run cannot quantise it to {method}. '
        f'Give a model that is stored as {method}, or set "quant_method" to "bnb" and "quant_bits" to 4.'
    )
    on_a_hub = load_config({"model": "m/m", **given})  # what it holds is not known
    assert list(quantized.quantization_problems(on_a_hub, CPU)) == []
    overridden = load_config({"model": model(tmp_path, None), **given}, {"quant_method": "bnb"})
    assert list(quantized.quantization_problems(overridden, CPU)) == []


QWEN3_30B = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.skipif(installed().line == "v3", reason="transformers 4 quantises each expert")
def test_fused_experts_stay_as_they_are_under_bitsandbytes() -> None:
    shape = from_config(QWEN3_30B, "Qwen3-30B-A3B", None)
    assert shape is not None and 30e9 < shape.parameters < 31e9
    settings = {"quant_method": "bnb", "quant_bits": 8, "tuner_type": "lora", "command": "sft"}
    run = MemoryRun(settings, shape, Rows(512, 512), "cuda", 1, 1, 80 << 30)
    assert sum(weight_bytes(run)) / 2**30 == pytest.approx(56, abs=1)
