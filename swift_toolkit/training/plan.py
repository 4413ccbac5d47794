"""What a run will be, decided before anything heavy starts."""

from __future__ import annotations

from pathlib import Path

from swift_toolkit.config.presets import PRESETS
from swift_toolkit.config.settings import Config
from swift_toolkit.console.screen import gib
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import Device
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.memory import run as memory_run


def default_output_dir(config: Config) -> str:
    """ms-swift's own default, ``output/<last part of the model's name>``."""
    return f"output/{Path(str(config.get('model'))).name}"


def preset_phrase(config: Config) -> str:
    """The preset and what it is for, or the tuner where there is no preset."""
    return PRESETS[config.preset].says if config.preset else config.tuner


def judge(config: Config, device: Device, report: DataReport | None = None) -> fitting.Verdict:
    """Whether the run fits the memory of its devices."""
    return fitting.judge(memory_run.run_of(config, device, report))


def memory_advice(config: Config, device: Device, report: DataReport | None = None) -> list[str]:
    """What to change when memory ran out, the gentlest first, in this run's own numbers."""
    run = memory_run.run_of(config, device, report)
    advice = [f"{one} (about {gib(one.total)})" for one in fitting.savings(run)] if run else []
    if (length := config.get("max_length")) and length > 512:
        advice.append(f"--max_length {length // 2}")
    if config.preset == "full":
        advice.append("--train_type lora (without the settings of full training)")
    return advice or ["a machine with more memory"]
