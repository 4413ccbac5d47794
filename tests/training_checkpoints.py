"""Training checkpoints, written by torch and safetensors themselves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from swift_toolkit.machine.msswift import installed
from swift_toolkit.model.checkpoints import training_state

_LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_checkpoint(
    path: Path, processes: int = 1, max_steps: int = 4, width: int = 64, **args: Any
) -> Path:
    """The LoRA checkpoint ``checkpoint-N`` after N steps of AdamW, with the files that transformers writes; the base has
    layers of this width."""
    import numpy
    import torch
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    steps = int(path.name.partition("-")[2])
    first, second = torch.nn.Parameter(torch.randn(8, width)), torch.nn.Parameter(torch.randn(width, 8))
    optimizer = torch.optim.AdamW([first, second])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps):
        (second @ first).square().sum().backward()
        optimizer.step()
        scheduler.step()
    weights = {"lora_A": first.detach(), "lora_B": second.detach()}
    tensors = {f"{_LAYER}.{name}.weight": weight for name, weight in weights.items()}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    tuner = "tuner_type" if installed().line == "v4" else "train_type"
    args = {tuner: "lora", "global_world_size": processes, **args}
    (path / "args.json").write_text(json.dumps(args))
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    torch.save(scheduler.state_dict(), path / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.get_rng_state()}
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in names:
        torch.save(states, path / name)
    logs = [{"loss": 1 / step, "step": step} for step in range(1, steps + 1)]
    state = {"global_step": steps, "max_steps": max_steps, "log_history": logs}
    (path / "trainer_state.json").write_text(json.dumps(state))
    training_state.write_checksums(path)
    return path
