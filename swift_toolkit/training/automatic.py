"""The plan of a training run: the device, the settings chosen automatically, its size.

Everything is learned from files and the operating system; torch is not imported.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from swift_toolkit.config.settings import Config
from swift_toolkit.console.screen import gib
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.device import GIB, Device, cpu_computes_bfloat16, cpu_cores
from swift_toolkit.model import builtin as model_builtin
from swift_toolkit.training import launch
from swift_toolkit.training.batch import feeders
from swift_toolkit.training.memory import estimate as memory_estimate
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.memory import run as memory_run

# --- automatic settings -------------------------------------------------------------------------------------

MEMORY_SHARE = 0.6
"""The share of a device's memory that an estimate may take which decides something: it may be a third off."""

MOST_ROWS = 64
"""Most rows of a batch on one device that are chosen automatically."""

MANY_ROWS = 10_000
"""Rows from which on several processes read the data: fewer are read in the time that processes take to start."""


def fill_automatic(config: Config, device: Device, report: DataReport | None = None) -> None:
    """Choose what the user left open and what does not change what is learned, each with its reason."""
    model = str(config.get("model"))
    builtin = model_builtin.BUILTIN.get(model)
    if builtin is not None:
        config.fill("model_type", builtin.model_type, "known of the embedded model")
        config.fill("template", builtin.template, "known of the embedded model")
    if builtin is not None or Path(model).is_dir():
        config.fill("check_model", False, "the model is local, nothing to look up on a hub")
    if device.kind == "cpu":
        _fill_for_cpu(config, device)
    elif device.kind == "cuda":
        _fill_for_gpu(config, device)
    _spread(config, device, report)
    _share_batch(config, device, report)
    _leave_out_checkpointing(config, device, report)
    _use_cores(config, device, report)


def _fill_for_cpu(config: Config, device: Device) -> None:
    config.fill("use_cpu", True, device.reason)
    if not cpu_computes_bfloat16():
        config.fill(
            "torch_dtype", "float32", "this CPU has no bfloat16 arithmetic and would be many times slower"
        )
    if launch.world_size(config, device) > 1:
        config.fill("ddp_backend", "gloo", "processes on CPUs talk through gloo")
    if config.get("torch_dtype") == "float32" and config.get("deepspeed"):
        for name in ("fp16", "bf16"):
            config.fill(
                name, False, "ms-swift would turn fp16 on for float32, which DeepSpeed cannot do on a CPU"
            )


_NO_BFLOAT16 = re.compile(
    r"\b([VPK]\d{2,3}|T4G?|M\d{2}|GTX|TITAN|RTX 20\d\d|Quadro (RTX|P|G))\b|Quadro [RGP]"
)
"""GPUs older than Ampere (compute capability below 8.0), by their names: NVIDIA's list of CUDA GPUs."""

_FLASH_ATTENTION = re.compile(
    r"qwen[23](?!\.5|-next)|qwen2\.5|llama|mistral|internvl|glm-?4|yi-", re.IGNORECASE
)
"""Models whose attention flash-attn computes; of others the code has one way only, or needs another."""


def _fill_for_gpu(config: Config, device: Device) -> None:
    if _NO_BFLOAT16.search(device.name):
        config.fill("torch_dtype", "float16", f"{device.name} has no bfloat16 arithmetic")
        return
    half = config.get("torch_dtype", "bfloat16") in ("bfloat16", "float16")
    if half and _FLASH_ATTENTION.search(str(config.get("model"))) and importlib.util.find_spec("flash_attn"):
        config.fill("attn_impl", "flash_attn", "flash-attn is installed, and the model knows it")


def _spread(config: Config, device: Device, report: DataReport | None) -> None:
    """Where the model does not fit one device with data of its own: what is divided, and how."""
    taken = any(config.get(name) for name in ("deepspeed", "fsdp", "device_map")) or launch.takes_part()
    alone = device.count == 1 and launch.nodes().count == 1
    run = None if taken or alone or device.kind == "cpu" else memory_run.run_of(config, device, report)
    if run is None or not run.device_bytes:
        return
    needed = memory_estimate.estimate(run).total
    if fitting.word_for(needed, run.device_bytes) != "does not fit":
        return
    reason = f"one device would need about {needed / GIB:.0f} GiB and has {run.device_bytes / GIB:.0f}"
    if importlib.util.find_spec("deepspeed") and not run.get("quant_bits"):
        config.fill("deepspeed", "zero3", f"{reason}: its weights are divided")
    elif device.count > 1 and launch.nodes().count == 1:
        config.fill("device_map", "auto", f"{reason}: its layers are spread")


def _share_batch(config: Config, device: Device, report: DataReport | None) -> None:
    """Rows a device and accumulation steps for the effective batch that was asked for."""
    wish = config.effective_batch
    if wish is None:
        return
    world = feeders(config, device)
    rows = wish.value // world // config.get("gradient_accumulation_steps", 1)
    if "per_device_train_batch_size" not in config.settings:
        batch, reason = _largest_batch(
            rows, "gradient_accumulation_steps" in config.settings, config, device, report
        )
        config.fill("per_device_train_batch_size", batch, reason)
    batch = config.get("per_device_train_batch_size", 1)
    steps = wish.value // world // batch
    config.fill(
        "gradient_accumulation_steps", steps, f"{batch} × {steps} × {world} process(es) = {wish.value}"
    )


def _largest_batch(
    rows: int, fixed: bool, config: Config, device: Device, report: DataReport | None
) -> tuple[int, str]:
    """The largest divisor of ``rows`` that fits a device, and why."""
    if fixed:
        return rows, "what the accumulation leaves"
    run = memory_run.run_of(config, device, report)
    if run is None or not run.device_bytes:
        return 1, "the memory it would take is not known"
    run = memory_run.filled(run)
    for batch in range(min(rows, MOST_ROWS), 0, -1):
        if rows % batch == 0:
            needed = memory_estimate.estimate(run.but(per_device_train_batch_size=batch)).total
            if needed <= MEMORY_SHARE * run.device_bytes or batch == 1:
                break
    return batch, f"about {needed / GIB:.1f} of {run.device_bytes / GIB:.1f} GiB"


def _leave_out_checkpointing(config: Config, device: Device, report: DataReport | None) -> None:
    """Checkpointing costs a third of the time: it goes where the longest rows leave room without it."""
    run = memory_run.run_of(config, device, report)
    if run is None or not run.device_bytes or run.rows.images or run.get("fsdp"):
        return
    if not (run.rows.seen or run.get("packing")):
        return
    needed = memory_estimate.estimate(run.but(gradient_checkpointing=False)).total
    if needed < MEMORY_SHARE * run.device_bytes:
        reason = f"about {needed / GIB:.1f} of {run.device_bytes / GIB:.1f} GiB without it"
        config.fill("gradient_checkpointing", False, reason)


def _use_cores(config: Config, device: Device, report: DataReport | None) -> None:
    """More processes to read the data where cores are idle. On a CPU they compute; none to hand over rows would draw
    other random numbers from the second epoch on."""
    cores = cpu_cores() // max(1, launch.processes(config, device))
    if device.kind == "cpu" or config.get("streaming") or cores < 4:
        return
    many = report is not None and (report.train_rows or 0) >= MANY_ROWS
    if many and report is not None:
        processes = min(8, cpu_cores() // 2)
        config.fill("dataset_num_proc", processes, f"{report.train_rows:,} rows, {cpu_cores()} cores")
    if config.preset == "multimodal":
        config.fill("dataloader_num_workers", min(8, cores // 2), f"{cores} cores a process, to open images")


def suggestions(config: Config, device: Device, report: DataReport | None = None) -> list[str]:
    """What would save time or memory on a GPU and is the user's to decide, with its conditions."""
    run = memory_run.run_of(config, device, report)
    if run is None or device.kind != "cuda":
        return []
    found, estimate = [], memory_estimate.estimate(run)
    whole, logits = estimate.total, estimate.parts.get("logits", 0)
    flash = "" if importlib.util.find_spec("flash_attn") else " (needs flash-attn)"
    trains = config.command == "sft" and not config.get("packing") and not run.rows.images
    if trains and run.rows.seen and (limit := config.get("max_length")) and limit > 4 * run.rows.mean:
        found.append(
            f"--packing true --attn_impl flash_attn{flash}: rows of about {run.rows.mean} tokens fill {limit}; "
            "a step then learns from more rows, so choose the batch anew"
        )
    elif trains and not config.get("padding_free") and config.get("per_device_train_batch_size", 1) > 1:
        found.append(f"--padding_free true --attn_impl flash_attn{flash}: nothing is computed for padding")
    if not config.get("use_liger_kernel") and logits > 0.15 * whole:
        liger = (
            "" if importlib.util.find_spec("liger_kernel") else " (needs liger-kernel, and a model it knows)"
        )
        found.append(f"--use_liger_kernel true{liger}: spares most of {gib(logits)} of logits")
    return found
