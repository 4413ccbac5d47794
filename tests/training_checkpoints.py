"""Training checkpoints, written by torch and safetensors themselves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from swift_toolkit.machine.msswift import installed
from swift_toolkit.model.checkpoints import training_state


def write_checkpoint(path: Path, processes: int = 1, max_steps: int = 4, **args: Any) -> Path:
    """The LoRA checkpoint ``checkpoint-N`` after N steps of AdamW, with the files that transformers writes."""
    import numpy
    import torch
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    steps = int(path.name.partition("-")[2])
    weight = torch.nn.Parameter(torch.randn(64, 8))
    optimizer = torch.optim.AdamW([weight])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps):
        weight.square().sum().backward()
        optimizer.step()
        scheduler.step()
    save_file({"layer.lora_A.weight": weight.detach()}, path / "adapter_model.safetensors")
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
