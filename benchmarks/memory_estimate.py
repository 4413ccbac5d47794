#!/usr/bin/env python3
"""Accuracy of the memory estimate, compared with figures in ms-swift's own examples and with real runs on this CPU.

    python benchmarks/memory_estimate.py               # 39 published figures, one line each; 1 second
    python benchmarks/memory_estimate.py cpu           # trains SmolLM2 with many settings; half an hour on two cores
    python benchmarks/memory_estimate.py cpu --quick   # four of these runs

published_memory.jsonl: GiB on each GPU as stated in the comments of examples/ in ms-swift 4.5.2, with the settings of
each command that affect memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PUBLISHED = Path(__file__).with_name("published_memory.jsonl")


class Figure(NamedTuple):
    """The measured and the estimated memory of a run, in GiB."""

    name: str
    real: float
    estimated: float
    parts: dict[str, float]

    @property
    def off(self) -> float:
        """The error of the estimate, as a share of the measured memory."""
        return self.estimated / self.real - 1


def published() -> Iterator[Figure]:
    """The estimates for the published commands."""
    from swift_toolkit.config.request import read_request
    from swift_toolkit.dataset.report import DataReport
    from swift_toolkit.dataset.rows.checks import Rules
    from swift_toolkit.machine import device
    from swift_toolkit.machine.device import Device
    from swift_toolkit.training.memory import estimate as memory_estimate
    from swift_toolkit.training.plan import TrainingPlan
    from swift_toolkit.training.process.launch import LaunchRequest

    for line in PUBLISHED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        settings, gpus = dict(row["settings"]), row["gpus"]
        if gpus > 1 and "NPROC_PER_NODE" not in row["environment"]:
            settings["device_map"] = "auto"  # ms-swift's own choice
        before = dict(os.environ)
        os.environ.update(row["environment"])
        try:
            config, _ = read_request(settings)  # requirements that this machine lacks do not matter here
            cluster = LaunchRequest().cluster()
            run = TrainingPlan(config, Device("cuda", gpus), DataReport(Rules()), cluster).memory_run
            estimate = memory_estimate.estimate(run) if run else None
        finally:
            os.environ.clear()
            os.environ.update(before)
        parts = {name: size / device.GIB for name, size in estimate.parts.items()} if estimate else {}
        yield Figure(row["source"], row["gib"], sum(parts.values()), parts)


TUNERS: dict[str, dict[str, Any]] = {
    "lora": {"train_type": "lora"},
    "qlora, 4 bits": {"train_type": "qlora"},
    "qlora, 8 bits": {"train_type": "qlora", "quant_bits": 8},
    "full": {"train_type": "full"},
}
LENGTHS = (128, 512, 1024)
QUICK = [("lora", False, 512), ("lora", True, 1024), ("qlora, 4 bits", True, 512), ("full", False, 512)]


def measured(folder: Path, quick: bool) -> Iterator[Figure]:
    """The estimates for short runs on this CPU, and the peak resident memory of each run."""
    cases = QUICK if quick else itertools.product(TUNERS, (False, True), LENGTHS)
    for number, (tuner, checkpointing, length) in enumerate(cases):
        name = f"{tuner}, checkpointing {'on' if checkpointing else 'off'}, 2 rows of {length}"
        yield measure(name, folder / str(number), length, checkpointing, TUNERS[tuner])


def measure(name: str, folder: Path, length: int, checkpointing: bool, tuner: dict[str, Any]) -> Figure:
    """A run of SmolLM2 with two steps of two rows with ``length`` tokens each."""
    from finetune_trainer import FineTuner
    from swift_toolkit.machine import device

    folder.mkdir(parents=True)
    answer = " ".join(f"w{number % 97} the cat sat" for number in range(length))
    row = {"messages": [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": answer}]}
    rows = folder / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 4)
    settings = {
        "model": "builtin/SmolLM2-135M-Instruct",
        "dataset": str(rows),
        "torch_dtype": "bfloat16" if device.cpu_computes_bfloat16() else "float32",
        "max_length": length,
        "truncation_strategy": "right",
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(folder / "output"),
        **tuner,
    }
    told = FineTuner(settings).describe()["memory"]
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    trainer = [sys.executable, str(ROOT / "finetune_trainer.py"), *flags]
    done = subprocess.run(trainer, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    (result,) = (folder / "output").glob("v0-*/result.json")
    peak = json.loads(result.read_text())["memory"]["peak"] / device.GIB
    parts = {part: size / device.GIB for part, size in told["parts"].items()}
    return Figure(name, peak, sum(parts.values()), parts)


def within(figures: list[Figure], share: float) -> float:
    """The share of ``figures`` with an error of at most ``share``."""
    return sum(abs(figure.off) <= share for figure in figures) / len(figures)


def show(figures: list[Figure]) -> None:
    """Print a line for each figure, and the share of accurate ones."""
    print(f"{'real':>7} {'estimate':>8} {'off':>6}  run, parts in GiB")
    for figure in figures:
        parts = ", ".join(f"{name} {size:.1f}" for name, size in figure.parts.items())
        print(
            f"{figure.real:7.2f} {figure.estimated:8.2f} {figure.off:+6.0%}  {figure.name}: {parts}",
            flush=True,
        )
    near, far = within(figures, 0.25), within(figures, 0.5)
    print(f"{len(figures)} runs: {near:.0%} within ±25%, {far:.0%} within ±50%")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part", nargs="?", choices=["published", "cpu"], default="published", help="default: published"
    )
    parser.add_argument("--quick", action="store_true", help="with cpu: four runs only")
    options = parser.parse_args()
    show(list(published()))
    if options.part == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            show(list(measured(Path(folder), options.quick)))


if __name__ == "__main__":
    main()
