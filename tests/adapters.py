"""Adapters of random weights: each answers in its own way, and none has to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGETS = ("q_proj", "v_proj")
LAYERS = 2


def make_adapter(base: Path, path: Path, seed: int, rank: int = 8, **args: Any) -> Path:
    """Write an adapter of the Llama in ``base`` as ms-swift 4 lays a checkpoint out."""
    import numpy
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    random = numpy.random.default_rng(seed)
    hidden, widths = _sizes(base)
    weights = {}
    for layer in range(LAYERS):
        for name, width in zip(TARGETS, widths, strict=True):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{module}.lora_A.weight"] = random.normal(0, 1, (rank, hidden)).astype("float32")
            weights[f"{module}.lora_B.weight"] = random.normal(0, 1, (width, rank)).astype("float32")
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps(adapter))
    recorded = {
        "swift_version": "4.6.0",
        "tuner_type": "lora",
        "model": str(base),
        "model_type": "llama",
        "template": "chatml",
        "system": "You are a helpful assistant.",
        "task_type": "causal_lm",
        "torch_dtype": "float32",
        "output_dir": str(path.parent),
        **args,
    }
    (path / "args.json").write_text(json.dumps(recorded))
    return path


def _sizes(base: Path) -> tuple[int, tuple[int, int]]:
    """The width of the model, and those of its queries and values."""
    config = json.loads((base / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    return hidden, (heads * head, config["num_key_value_heads"] * head)
