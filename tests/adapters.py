"""Adapters of random weights for the tiny model: each answers in its own way, and none has to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HIDDEN = 64
TARGETS = ("q_proj", "v_proj")


def make_adapter(base: Path, path: Path, seed: int, rank: int = 8, **args: Any) -> Path:
    """Write an adapter of ``base`` (see ``tiny_model``) as ms-swift 4 lays a checkpoint out."""
    import numpy
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    random = numpy.random.default_rng(seed)
    weights = {}
    for layer in range(2):
        for name in TARGETS:
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{module}.lora_A.weight"] = random.normal(0, 1, (rank, HIDDEN)).astype("float32")
            weights[f"{module}.lora_B.weight"] = random.normal(0, 1, (HIDDEN, rank)).astype("float32")
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
