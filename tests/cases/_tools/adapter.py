"""adapter.py FOLDER CHANGE: FOLDER/checkpoint-1, a LoRA (rank 8, v_proj) of the embedded model, changed in one way."""

import json
import sys
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from swift_toolkit.model.builtin import materialise

folder, change = Path(sys.argv[1]) / "checkpoint-1", sys.argv[2]
folder.mkdir(parents=True)
random = numpy.random.default_rng(0)
config = {
    "peft_type": {"kind": "IA3", "unknown-kind": "LORAA", "newer-kind": "FUTURE", "no-kind": None}.get(
        change, "LORA"
    ),
    "peft_version": "99.1.0",
    "rank_pattern": {
        "other": {"layers.3.self_attn.v_proj": 16},
        "fitting": {"q_proj": 16, r"5\.\w+\.v_proj": 8},
    }.get(change, {}),
    "alpha_pattern": {
        "path": {"model.decoder.layers.3.self_attn.v_proj": 16},
        "fitting": {"q_proj": 64, "v_proj": 16},
    }.get(change, {}),
    "use_dora": change == "magnitudes",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": str(materialise("builtin/SmolLM2-135M-Instruct")),
    "r": 16 if change == "rank" else 8,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["v_proj"],
    "bias": "none",
    "modules_to_save": ["embed_tokens"] if change == "new-tokens" else None,
}
weights = {}
for layer in range(30):
    name = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
    weights[f"{name}.lora_A.weight"] = random.normal(0, 0.04, (8, 576)).astype("float32")
    weights[f"{name}.lora_B.weight"] = random.normal(0, 0.1, (192, 8)).astype("float32")
if change == "empty":
    weights = {name: numpy.zeros(0, "float32") for name in weights}
elif change == "nan":
    weights = {name: numpy.full_like(weight, numpy.nan) for name, weight in weights.items()}
elif change == "half":
    del weights["base_model.model.model.layers.7.self_attn.v_proj.lora_B.weight"]
elif change == "other-names":
    weights = {name.replace("model.layers", "model.language_model.layers"): weights[name] for name in weights}
elif change == "new-tokens":
    weights["base_model.model.model.embed_tokens.weight"] = numpy.zeros((49160, 576), "float16")
save_file(weights, folder / "adapter_model.safetensors")
(folder / "adapter_config.json").write_text(json.dumps(config))
state = {"global_step": 1, "epoch": 0.04, "max_steps": 1, "log_history": []}
(folder / "trainer_state.json").write_text(json.dumps(state))
