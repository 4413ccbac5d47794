"""A trained LoRA checkpoint laid out as each generation of ms-swift writes one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = "v0-20240102-101500"
ALPHA = 4096
"""So much weight is given to the adapter that the model answers in another way even after a few steps."""


def lay_out(generation: str, trained: Path, model: Path, folder: Path) -> Path:
    """Write the checkpoint ``trained`` of a Llama in ``model`` to ``folder`` as ``generation`` did; its new place."""
    run = folder / generation.replace(".", "_") / RUN
    checkpoint = run / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    shutil.copy(trained / "adapter_model.safetensors", checkpoint)
    config = json.loads((trained / "adapter_config.json").read_text()) | {"lora_alpha": ALPHA}
    write_json(checkpoint / "adapter_config.json", config)
    args = json.loads((trained / "args.json").read_text())
    LAYOUTS[generation](checkpoint, args, str(model))
    return checkpoint


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def _v4(checkpoint: Path, args: dict[str, Any], model: str) -> None:
    tuner = args.pop("train_type", None) or args["tuner_type"]
    write_json(checkpoint / "args.json", args | {"tuner_type": tuner, "swift_version": "4.6.0"})


def _v3(checkpoint: Path, args: dict[str, Any], model: str) -> None:
    tuner = args.pop("tuner_type", None) or args["train_type"]
    args.pop("swift_version", None)
    write_json(checkpoint / "args.json", args | {"train_type": tuner, "overwrite_output_dir": False})


def _sft_args(args: dict[str, Any], model: str) -> dict[str, Any]:
    """What every 1.x and 2.x wrote into sft_args.json of what matters here."""
    return {
        "model_type": "llama2-7b-chat",
        "model_id_or_path": model,
        "model_revision": None,
        "sft_type": "lora",
        "template_type": "chatml",
        "system": args["system"],
        "dtype": "fp32",
        "quantization_bit": 0,
        "lora_target_modules": ["q_proj", "v_proj"],
    }


def _v2(checkpoint: Path, args: dict[str, Any], model: str) -> None:
    old = _sft_args(args, model) | {"tuner_backend": "peft", "custom_register_path": None}
    write_json(checkpoint / "sft_args.json", old)
    write_json(checkpoint.parent / "sft_args.json", old)
    adapter = {"model_id_or_path": model, "sft_type": "lora", "tuner_backend": "peft"}
    write_json(checkpoint / "configuration.json", {"adapter_cfg": adapter})


def _v1(checkpoint: Path, args: dict[str, Any], model: str, key: str = "{0}.default.weight") -> None:
    """ms-swift's own form: names without PEFT's prefix, pickled, in the folder ``default``."""
    import torch
    from safetensors.torch import load_file

    weights, config = checkpoint / "adapter_model.safetensors", checkpoint / "adapter_config.json"
    tensors = {}
    for name, tensor in load_file(weights).items():
        layer, matrix = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        tensors[f"{layer}.{key.format(matrix)}"] = tensor
    (checkpoint / "default").mkdir()
    torch.save(tensors, checkpoint / "default" / "adapter_model.bin")
    peft = json.loads(config.read_text())
    own = {name: peft[name] for name in ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")}
    own |= {"swift_type": "LORA", "use_qa_lora": False, "use_merged_linear": False, "enable_lora": None}
    own |= {"lora_dtype": None, "lr_ratio": None, "fan_in_fan_out": False}
    write_json(checkpoint / "default" / "adapter_config.json", own)
    weights.unlink()
    config.unlink()
    write_json(checkpoint / "configuration.json", {})
    write_json(checkpoint.parent / "sft_args.json", _sft_args(args, model))


def _v1_1(checkpoint: Path, args: dict[str, Any], model: str) -> None:
    _v1(checkpoint, args, model, key="loramodule_default.{0}")


LAYOUTS: dict[str, Callable[[Path, dict[str, Any], str], None]] = {
    "1.1": _v1_1,
    "1.7": _v1,
    "2.6": _v2,
    "3.12": _v3,
    "4.6": _v4,
}
