"""Real training both ways: as ms-swift does it, and with a patch that must not change what is learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from swift_toolkit.machine.msswift import installed

ROOT = Path(__file__).resolve().parents[2]
TUNER = "tuner_type" if installed().line == "v4" else "train_type"


WORDS = "the river bank holds small bright stones and nobody knows why they never move in spring".split()


def write_mixed(path: Path) -> None:
    """Write chats of very different length. Most of the time of a step goes into logits: a word is one token, and a
    fifth of the chats is long."""
    random = Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(120):
            count = random.randint(30, 60) if number % 5 == 0 else random.randint(1, 8)
            answer = " ".join(random.choices(WORDS, k=count))
            turns = [("user", f"Say {count}"), ("assistant", answer)]
            file.write(
                json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n"
            )


def arguments(model: Path, data: Path, tuner: str, *more: str) -> list[str]:
    """Three steps of 16 rows in float32, without dropout, without clipping."""
    settings = {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        TUNER: tuner,
        "dataset": data,
        "torch_dtype": "float32",
        "fp16": "false",
        "bf16": "false",
        "use_cpu": "true",
        "check_model": "false",
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "split_dataset_ratio": 0,
        "seed": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-3,
        "lora_dropout": 0,
        "max_grad_norm": 0,
        "report_to": "none",
        "add_version": "false",
        "gradient_checkpointing": "false",
        "dataloader_num_workers": 0,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), *more]


def compare(
    patch: Literal["shared", "learned", "tokens", "onednn"],
    folder: Path,
    runs: list[dict[str, Any]],
    ranks: int = 1,
    **environment: str,
) -> None:
    """Train both ways; the gradient of the first step (``within`` 1e-6) and all losses (``losses`` 1e-5) must be those
    of ms-swift, with fewer tokens ("shared"), logits ("learned") or inputs of torch's linear function ("tokens",
    "onednn"): at most the share ``computes`` of a run."""
    import torch

    request = folder / "request.json"
    request.write_text(json.dumps({"patch": patch, "runs": runs, "output": str(folder)}))
    counted = {"shared": "computed", "learned": "logits"}.get(patch, "multiplied")
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    )
    command = [sys.executable, *launcher, str(ROOT / "tests/training/gradients.py"), str(request)]
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs:
        computed = [0, 0]
        for rank in range(ranks):
            own, shared = (torch.load(folder / f"{kind}-{run['name']}-{rank}.pt") for kind in ("own", patch))
            assert shared["losses"] == pytest.approx(own["losses"], abs=run.get("losses", 1e-5)), run["name"]
            there, here = (
                torch.cat([one.flatten() for one in found["gradient"].values()]) for found in (own, shared)
            )
            assert (there - here).norm() <= run.get("within", 1e-6) * there.norm(), run["name"]
            computed = [computed[0] + own[counted], computed[1] + shared[counted]]
        assert computed[1] < run.get("computes", 0.75) * computed[0], run["name"]
