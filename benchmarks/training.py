#!/usr/bin/env python3
"""How fast the trainer is, as ratios against raw ms-swift in one run of this script.

    python benchmarks/training.py               # everything; about 20 minutes on two cores
    python benchmarks/training.py checks        # help, a misspelled key, a dry run; a minute
    python benchmarks/training.py training      # whole training processes

Both sides run in turn, so that a machine that changes its speed changes both. Quoted are medians of wall clock, and
for whole trainings of processor time too, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TRAINER = [sys.executable, str(ROOT / "finetune_trainer.py")]
RAW = [str(Path(sys.executable).with_name("swift")), "sft"]
CONFIG = str(ROOT / "configs/quickstart.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["checks", "training"], help="default: both")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each side (default 3)")
    options = parser.parse_args()
    if options.part != "training":
        checks(max(options.runs, 5), options.runs)
    if options.part != "checks":
        training(options.runs)


def seconds(command: list[str], status: int) -> float:
    """Wall clock of ``command``, which must end with ``status``."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != status:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}, not {status}:\n{done.stderr[-2000:]}")
    return took


def cpu_seconds() -> float:
    """Processor time of all processes that this one has started and waited for, their own children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def checks(runs: int, raw_runs: int) -> None:
    """What a user waits for before anything is trained."""
    ours = {
        "--help": ([*TRAINER, "--help"], 0),
        "a misspelled key": ([*TRAINER, "--config", CONFIG, "--lora_rnak", "8"], 2),
        "a correct --dry-run": ([*TRAINER, "--config", CONFIG, "--dry-run"], 0),
    }
    for name, (command, status) in ours.items():
        seconds(command, status)  # fills the caches
        report(name, [seconds(command, status) for _ in range(runs)])
    misspelled = [*RAW, "--model", "none/none", "--lora_rnak", "8"]
    report("raw swift sft, a misspelled key", [seconds(misspelled, 1) for _ in range(raw_runs)])


def training(runs: int) -> None:
    """Whole processes, from the command to its exit."""
    from swift_toolkit.model import builtin

    model = str(builtin.materialise("builtin/SmolLM2-135M-Instruct"))
    settings = json.loads(Path(CONFIG).read_text())
    raw = {**settings, "model": model, "model_type": "llama", "template": "chatml"}
    raw["tuner_type"] = raw.pop("train_type")
    automatic = {"use_cpu": True, "check_model": False, "gradient_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        pair("identical settings", settings, {**raw, **automatic}, Path(folder) / "same", runs)
        pair("automatic settings against raw defaults", settings, raw, Path(folder) / "automatic", runs)


def pair(name: str, ours: dict[str, Any], raw: dict[str, Any], folder: Path, runs: int) -> None:
    """Time both sides in turn, and hold their logged losses against each other."""
    walls: dict[str, list[float]] = {"ours": [], "raw": []}
    processors: dict[str, list[float]] = {"ours": [], "raw": []}
    found: dict[str, list[Any]] = {}
    for number in range(runs):
        sides: list[tuple[str, Callable[[Path], list[str]]]] = [
            ("ours", lambda output: [*TRAINER, *flags({**ours, "output_dir": str(output)})]),
            ("raw", lambda output: [*RAW, *flags({**raw, "output_dir": str(output)})]),
        ]
        for side, command in sides if number % 2 == 0 else reversed(sides):
            output = folder / f"{side}-{number}"
            before = cpu_seconds()
            walls[side].append(seconds(command(output), 0))
            processors[side].append(cpu_seconds() - before)
            found[side] = losses(output)
    print(f"\n{name}")
    for what, times in (("wall clock", walls), ("processor time", processors)):
        for side in times:
            report(f"  {what}, {side}", times[side])
        ratios = [ours / raw for ours, raw in zip(times["ours"], times["raw"], strict=True)]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"  {what}, ratio ours/raw: median {statistics.median(ratios):.3f} of {each}")
    same = "equal, digit for digit" if found["ours"] == found["raw"] else "DIFFERENT"
    print(f"  logged losses of {len(found['raw'])} steps: {same}", flush=True)


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def losses(output: Path) -> list[Any]:
    (log,) = output.glob("v0-*/logging.jsonl")
    return [entry["loss"] for entry in map(json.loads, log.read_text().splitlines()) if "loss" in entry]


def report(name: str, times: list[float]) -> None:
    print(
        f"{name}: median {statistics.median(times):.2f} s, min {min(times):.2f}, max {max(times):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
