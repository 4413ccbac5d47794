"""checkpoints.py: checkpoint-2 of a LoRA of rank 8, in whole/, cut/ and model_only/."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.training_checkpoints import write_checkpoint

whole = write_checkpoint(Path("whole/checkpoint-2"), width=576)
cut, model_only = (Path(shutil.copytree(whole, f"{name}/checkpoint-2")) for name in ("cut", "model_only"))
weights = cut / "adapter_model.safetensors"
weights.write_bytes(weights.read_bytes()[:1000])
for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
    (model_only / name).unlink()
