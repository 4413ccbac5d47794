"""Good exports raise no alarm: checkpoints of every kind, as PEFT and transformers write them, go through the export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import deploy_model
from swift_toolkit.machine import packages
from swift_toolkit.machine.msswift import export_function
from swift_toolkit.model import merge
from swift_toolkit.serving.export import gguf
from swift_toolkit.serving.proof import prove
from swift_toolkit.serving.proof.worker import reader_of

pytestmark = pytest.mark.slow

LLAMA = {"model_type": "llama", "template": "chatml", "system": "You are a helpful assistant."}
LLAVA = {"model_type": "llava1_5_hf", "template": "llava1_5_hf"}
ATTENTION = ["q_proj", "v_proj"]
LINEAR = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are asked, and ms-swift merges, in this process: ms-swift is imported once for all tests."""
    monkeypatch.setattr(prove, "run", lambda order, *_: reader_of(order).side())
    monkeypatch.setattr(merge, "run_export", lambda arguments, *_: export_function()(arguments))


def disturb(model: Any) -> None:
    """Change every trainable weight a little, as training does."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))


def record(path: Path, **args: Any) -> Path:
    """Write the args.json of a training."""
    known = {"swift_version": "4.6.0", "task_type": "causal_lm", "torch_dtype": "float32"}
    (path / "args.json").write_text(json.dumps({**known, **args}))
    return path


def load(base: Path, dtype: str = "float32") -> Any:
    import transformers

    sees = "Llava" in (base / "config.json").read_text()
    loader = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    return loader.from_pretrained(base, dtype=dtype)


def lora(base: Path, path: Path, args: dict[str, Any], dtype: str = "float32", **settings: Any) -> Path:
    """Write an adapter of ``base`` as PEFT does, with changed weights."""
    from peft import LoraConfig, get_peft_model

    model = load(base, dtype)
    if tokens := args.get("new_special_tokens"):
        rows = model.get_input_embeddings().weight.shape[0] + len(tokens)
        model.resize_token_embeddings(-(-rows // 128) * 128)  # ms-swift rounds up
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **settings}
    )
    tuned = get_peft_model(model, config)
    disturb(tuned)
    tuned.save_pretrained(path)
    return record(path, tuner_type="lora", model=str(base), **{**LLAMA, "torch_dtype": dtype, **args})


ADAPTERS: dict[str, dict[str, Any]] = {
    "every linear layer": {"target_modules": LINEAR},
    "rslora": {"use_rslora": True, "r": 8},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.*v_proj": 3}},
    "one end of tied embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "one whole end of tied embeddings": {"modules_to_save": ["embed_tokens"]},
    "both ends of tied embeddings, each in its own way": {"target_modules": ["embed_tokens", "lm_head"]},
    "modules_to_save": {"modules_to_save": ["model.norm"]},
    "both ends of tied embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "new tokens": {
        "modules_to_save": ["embed_tokens", "lm_head"],
        "args": {"new_special_tokens": ["<think>", "</think>"]},
    },
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    settings = {"args": {}, **ADAPTERS[name]}
    base = tiny_model
    if settings.get("dtype"):
        base = tmp_path / "base"
        shutil.copytree(tiny_model, base)
        load(tiny_model, settings["dtype"]).save_pretrained(base)
    adapter = lora(base, tmp_path / "run" / "checkpoint-4", **settings)
    verdict, faults = exported(capsys, adapter, "merged")
    assert faults == []
    assert verdict == "same" or (verdict == "close" and settings.get("dtype"))


def exported(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: str) -> tuple[str, list[str]]:
    """Export a checkpoint; the verdict and the faults."""
    questions = checkpoint.parent / "questions.json"
    questions.write_text('["Who are you?", "Name 3 colours."]')
    asked = ("--checkpoint", str(checkpoint), "--questions-file", str(questions), "--json")
    status = deploy_model.main([*asked, "--export", *words])
    out, err = capsys.readouterr()
    assert out, err
    proof = json.loads(out.splitlines()[-1])["proof"]
    assert status == (proof["verdict"] == "different")
    return proof["verdict"], [one["what"] for one in proof["faults"]]


def test_a_vision_adapter(capsys: pytest.CaptureFixture[str], tiny_llava: Path, tmp_path: Path) -> None:
    """Its language model, vision tower and projector were trained."""
    adapter = lora(
        tiny_llava / "model",
        tmp_path / "run" / "checkpoint-4",
        {**LLAVA, "system": None},
        target_modules=[*ATTENTION, "linear_1", "linear_2", "fc1"],
    )
    assert exported(capsys, adapter, "merged") == ("same", [])
    merged = adapter.with_name("checkpoint-4-merged")
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        assert (merged / name).read_bytes() == (tiny_llava / "model" / name).read_bytes()


@pytest.mark.skipif(not packages.is_installed("bitsandbytes"), reason="bitsandbytes is not installed")
def test_an_adapter_of_a_quantised_base(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    """It is merged into the unquantised base, which answers nearly the same."""
    args = {"quant_method": "bnb", "quant_bits": 4}
    adapter = lora(tiny_model, tmp_path / "run" / "checkpoint-4", args)
    verdict, faults = exported(capsys, adapter, "merged")
    assert (verdict in ("same", "close"), faults) == (True, [])
    merged = adapter.with_name("checkpoint-4-merged")
    record = json.loads((merged / "export.json").read_text())
    assert record["proof"]["mean_kl"] > 1e-6  # the checkpoint was asked on its quantised base
    assert "quantization_config" not in (merged / "config.json").read_text()
    assert json.loads((merged / "args.json").read_text())["quant_method"] is None
    assert sorted(one.name for one in adapter.parent.iterdir() if one.is_dir()) == [adapter.name, merged.name]


@pytest.mark.skipif(gguf.converter() is None, reason="llama.cpp's converter is not installed")
def test_a_full_checkpoint(capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-4"
    shutil.copytree(tiny_model, checkpoint)
    model = load(tiny_model)
    disturb(model)
    model.save_pretrained(checkpoint)
    record(checkpoint, tuner_type="full", model=str(tiny_model), **LLAMA)
    verdict, faults = exported(capsys, checkpoint, "gguf", "--gguf-type", "f16")
    assert (verdict in ("same", "close"), faults) == (True, [])
    made = json.loads((checkpoint.with_name("checkpoint-4-gguf") / "export.json").read_text())
    assert made["proof"]["mean_kl"] < 1e-3
