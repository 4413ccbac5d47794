"""Batch arithmetic: rows, processes, accumulation, steps."""

from __future__ import annotations

import math

from swift_toolkit.config.settings import Config
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import Device
from swift_toolkit.problems import Problem
from swift_toolkit.training import launch
from swift_toolkit.training.memory import run as memory_run


def problems(config: Config, device: Device) -> list[Problem]:
    """What is wrong with the size of the batch that was asked for."""
    wish = config.effective_batch
    if wish is None:
        return []
    batch, steps = config.get("per_device_train_batch_size"), config.get("gradient_accumulation_steps")
    fixed = feeders(config, device) * (batch or 1) * (steps or 1)
    if wish.value % fixed == 0 and (wish.value == fixed or not (batch and steps)):
        return []
    parts = [f"{feeders(config, device)} process(es)"]
    parts += [f"{batch} rows a device"] if batch else []
    parts += [f"{steps} accumulated"] if steps else []
    if batch and steps:
        return [
            wish.problem(f"is {wish.value}, but {' × '.join(parts)} are {fixed}", "Leave one of them out.")
        ]
    near = max(1, round(wish.value / fixed)) * fixed
    return [wish.problem(f"is {wish.value}, which {' × '.join(parts)} cannot share", f"Use {near}.")]


def accumulation(config: Config, device: Device) -> int:
    """Gradient accumulation steps; ms-swift's default makes the effective batch at least 16
    (``TrainArgumentsMixin.__post_init__``)."""
    batch = config.get("per_device_train_batch_size", 1) * launch.world_size(config, device)
    return int(config.get("gradient_accumulation_steps") or max(1, math.ceil(16 / batch)))


def feeders(config: Config, device: Device) -> int:
    """Processes that each take rows of their own; with sequence parallelism several share a row."""
    return max(1, launch.world_size(config, device) // (config.get("sequence_parallel_size") or 1))


def effective_batch_size(config: Config, device: Device) -> int:
    """Rows per optimiser step, over all processes of all nodes."""
    batch = config.get("per_device_train_batch_size", 1)
    return int(batch * accumulation(config, device) * feeders(config, device))


def step_count(config: Config, rows: int | None, device: Device) -> int | None:
    """Optimiser steps of the run, None if the number of rows is not known.

    As transformers.Trainer counts: ``ceil(epochs * ceil(batches / accumulation))``.
    """
    if (steps := config.get("max_steps", -1)) > 0:
        return int(steps)
    if rows is None or config.get("streaming") or config.get("packing"):
        return None
    batch = config.get("per_device_train_batch_size", 1) * feeders(config, device)
    batches: int = math.ceil(rows / batch)
    per_epoch = max(1, math.ceil(batches / accumulation(config, device)))
    epochs: float = config.get("max_epochs") or config.get("num_train_epochs", 3.0)
    return math.ceil(epochs * per_epoch)


def row_tokens(report: DataReport) -> int | None:
    """About how many tokens a row has; None where data is not here."""
    return memory_run.rows_of(report).mean if report.tokens and not report.unchecked else None


def tokens_phrase(config: Config, device: Device, steps: int | None, report: DataReport) -> str:
    """About how many tokens the run goes through; the time they take is not known before a few steps are measured."""
    tokens = row_tokens(report)
    known = tokens is not None and steps is not None and not config.get("packing")
    if not known or tokens is None or steps is None:
        return "unknown; the time left is measured from the first steps on"
    count = steps * effective_batch_size(config, device) * tokens
    return f"about {count:,}; the time left is measured from the first steps on"
