"""How large a model is, by its config.json or by its name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from swift_toolkit.model import shape as model_shape
from swift_toolkit.model import size


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-0.5B", 0.5),
        ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4", 72),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44),
        ("meta-llama/Llama-3.2-1B", 1),
        ("LLM-Research/Meta-Llama-3.1-70B-Instruct", 70),
        ("HuggingFaceTB/SmolLM2-360M", 0.36),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7),
        ("some/Mix-4x7b", 23.24),
        ("deepseek-ai/DeepSeek-R1", 671),
        ("deepseek-ai/DeepSeek-V3-0324", 671),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 8),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14.8),
        ("OpenBMB/MiniCPM-V-2_6", 8.3),
        ("google/gemma-3-27b-it", 27),
        ("llava-hf/llava-1.5-7b-hf", 7),
        ("moonshotai/Kimi-VL-A3B-Instruct", 16.4),
    ],
)
def test_sizes_by_name(name: str, billions: float) -> None:
    shape = size.find_shape(name)
    assert shape is not None
    assert shape.parameters == pytest.approx(billions * 1e9)


@pytest.mark.parametrize("name", ["owner/no-size-here", "owner/v2.5-chat", "owner/model-2b2"])
def test_names_that_tell_no_size(name: str) -> None:
    assert size.find_shape(name) is None


def test_what_else_a_name_tells() -> None:
    moe = size.find_shape("Qwen/Qwen3-30B-A3B")
    assert moe is not None
    assert moe.text.hidden == 2048  # as that of a dense model of 3B
    assert moe.experts > 0.8 * moe.parameters
    sees = size.find_shape("Qwen/Qwen2.5-VL-7B-Instruct-AWQ")
    assert sees is not None
    assert sees.encoder is not None
    assert 0.6e9 < sees.encoder_parameters < 0.7e9
    assert sees.bits == 4.16


# config.json of published models -> their weights by their cards, in billions
QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "tie_word_embeddings": False, "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_30B_A3B = {
    **QWEN3_8B, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
QWEN2_VL_2B = {
    "model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16,
                      "patch_size": 14, "spatial_merge_size": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions"), [(QWEN3_8B, 8.19), (QWEN3_30B_A3B, 30.5), (QWEN2_VL_2B, 2.21)]
)
def test_weights_counted_from_a_config(config: dict[str, object], billions: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = size.find_shape(str(tmp_path))
    assert shape is not None
    assert shape.parameters == pytest.approx(billions * 1e9, rel=0.02)
    assert shape.source == "config.json"


def test_the_parts_of_a_multimodal_config(tmp_path: Path) -> None:
    text = {key: value for key, value in QWEN3_8B.items() if key != "vocab_size"}
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
              "image_size": 336, "patch_size": 14}  # fmt: skip
    config = {"text_config": text, "vision_config": vision, "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = size.find_shape(str(tmp_path))
    assert shape is not None
    assert (shape.vocabulary, shape.text.hidden, shape.patches) == (32064, 4096, 576)
    assert shape.encoder == model_shape.Stack(24, 1024, 4096, 1024, 1024, 16, gated=False)


def test_the_files_of_weights_are_the_measure_where_they_are(tiny_model: Path) -> None:
    shape = size.find_shape(str(tiny_model))
    assert shape is not None
    stored = (tiny_model / "model.safetensors").stat().st_size
    assert shape.parameters == stored // 4  # float32


def test_a_snapshot_in_a_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--owner--some-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(QWEN3_8B))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shape = size.find_shape("owner/some-model")
    assert shape is not None
    assert shape.text.layers == 36


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"hidden_size": "x"}', '{"hidden_size": 8, "num_hidden_layers": 1}']
)
def test_a_config_that_tells_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert size.find_shape(str(tmp_path)) is None


_ODD = some.one_of(
    some.none(), some.integers(-3, 9), some.text(max_size=3), some.lists(some.integers(-3, 9), max_size=2)
)
_NAMES = some.sampled_from(
    [*QWEN3_30B_A3B, "vision_config", "text_config", "image_size", "patch_size", "quantization_config"]
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.dictionaries(_NAMES, _ODD | some.dictionaries(_NAMES, _ODD)))
def test_no_config_is_too_odd(odd: dict[str, object]) -> None:
    for config in (odd, {**QWEN3_8B, **odd}, {**QWEN2_VL_2B, **odd}):
        shape = model_shape.from_config(config, "odd", None)
        assert shape is None or shape.parameters > 0


# --- encoders: against the modules that transformers builds ---------------------------------------------------

CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
WHISPER = {"encoder_layers": 32, "d_model": 1280, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20}
QWEN25 = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32}


@pytest.mark.parametrize(
    ("family", "config", "model", "sizes"),
    [
        ("clip", "CLIPVisionConfig", "CLIPVisionModel", CLIP),
        ("siglip", "SiglipVisionConfig", "SiglipVisionModel", SIGLIP),
        ("pixtral", "PixtralVisionConfig", "PixtralVisionModel", {}),
        ("qwen2_vl", "Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel", {}),
        ("qwen2_5_vl", "Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel", QWEN25),
        ("qwen3_vl", "Qwen3VLVisionConfig", "Qwen3VLVisionModel", {}),
        ("glm4v", "Glm4vVisionConfig", "Glm4vVisionModel", {}),
        ("whisper", "WhisperConfig", "WhisperEncoder", WHISPER),
    ],
)
def test_the_linear_layers_of_an_encoder_are_counted_exactly(
    family: str, config: str, model: str, sizes: dict[str, int]
) -> None:
    import torch

    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    settings = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    chosen = getattr(settings, config)(**sizes)
    with torch.device("meta"):
        built = getattr(code, model)(chosen)
    layers = [part for name, part in built.named_modules() if name.rpartition(".")[2] in ("layers", "blocks")]
    linear = [part for part in layers[0].modules() if isinstance(part, torch.nn.Linear)]
    found = model_shape._encoder(model_shape.ModelConfig(json.loads(chosen.to_json_string(use_diff=False))))
    assert found is not None
    assert found.linear == sum(part.weight.numel() for part in linear)
