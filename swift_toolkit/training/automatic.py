"""Automatic settings: settings that the user left open and that do not change what is learned."""

from __future__ import annotations

import re
from pathlib import Path

from swift_toolkit.config import rules
from swift_toolkit.config.settings import Config
from swift_toolkit.console.words import counted
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import GIB, cpu_computes_bfloat16, cpu_cores
from swift_toolkit.model import builtin as model_builtin
from swift_toolkit.training.batches import padding
from swift_toolkit.training.batches.batch import Batch
from swift_toolkit.training.memory import estimate, fitting
from swift_toolkit.training.memory import run as memory_run
from swift_toolkit.training.plan import TrainingPlan

MEMORY_SHARE = 0.6
"""Share of a device's memory up to which an estimate counts as fitting; an estimate may be off by a third."""

MOST_ROWS = 64
"""The largest batch on one device that is chosen automatically, in rows."""

MANY_ROWS = 10_000
"""Number of rows from which several processes read the data; fewer are read faster than processes start."""


def fill_automatic(plan: TrainingPlan) -> None:
    """Set the open settings of ``plan``, each with its reason."""
    _fill_for_model(plan.config)
    if plan.device.kind == "cpu":
        _fill_for_cpu(plan)
    elif plan.device.kind == "cuda":
        _fill_for_gpu(plan)
    _spread(plan)
    _share_batch(plan)
    _turn_checkpointing_off(plan)
    _use_cores(plan)


def _fill_for_model(config: Config) -> None:
    model = str(config.get("model"))
    builtin = model_builtin.BUILTIN.get(model)
    if builtin is not None:
        config.fill("model_type", builtin.model_type, "as the embedded model needs it")
        config.fill("template", builtin.template, "as the embedded model needs it")
    if builtin is not None or Path(model).is_dir():
        config.fill("check_model", False, "the model is local, so a hub need not be checked")
    for name in ("ref_model", "teacher_model"):
        other = config.get(name)
        if other in model_builtin.BUILTIN:
            kind = model_builtin.BUILTIN[other].model_type
            config.fill(f"{name}_type", kind, "as the embedded model needs it")
        elif other == model and config.get("model_type"):
            config.fill(f"{name}_type", config.get("model_type"), "the same model")


def _fill_for_cpu(plan: TrainingPlan) -> None:
    config = plan.config
    config.fill("use_cpu", True, plan.device.reason)
    if not cpu_computes_bfloat16():
        reason = "this CPU has no bfloat16 arithmetic; bfloat16 would be many times slower"
        config.fill("torch_dtype", "float32", reason)
    config.warnings += rules.slow_dtype(config, plan.device)
    if plan.world_size > 1:
        config.fill("ddp_backend", "gloo", "processes on CPUs communicate through gloo")
    if config.get("torch_dtype") == "float32" and config.get("deepspeed"):
        reason = "ms-swift would enable fp16 for float32, which DeepSpeed does not support on a CPU"
        for name in ("fp16", "bf16"):
            config.fill(name, False, reason)


_NO_BFLOAT16 = re.compile(
    r"\b([VPK]\d{2,3}|T4G?|M\d{2}|GTX|TITAN|RTX 20\d\d|Quadro (RTX|P|G))\b|Quadro [RGP]"
)
"""Names of GPUs older than Ampere (compute capability below 8.0), from NVIDIA's list of CUDA GPUs."""

_FLASH_ATTENTION = re.compile(
    r"qwen[23](?!\.5|-next)|qwen2\.5|llama|mistral|internvl|glm-?4|yi-", re.IGNORECASE
)
"""Models that flash-attn supports; others have a single attention implementation, or need a different one."""


def _fill_for_gpu(plan: TrainingPlan) -> None:
    config, name = plan.config, plan.device.name
    if _NO_BFLOAT16.search(name):
        config.fill("torch_dtype", "float16", f"{name} has no bfloat16 arithmetic")
        return
    half = config.get("torch_dtype", "bfloat16") in ("bfloat16", "float16")
    if half and _FLASH_ATTENTION.search(str(config.get("model"))) and packages.is_installed("flash_attn"):
        config.fill("attn_impl", "flash_attn", "flash-attn is installed and the model supports it")
        _leave_padding_out(plan)


def _leave_padding_out(plan: TrainingPlan) -> None:
    """With flash attention, concatenate the rows of a micro-batch instead of padding them (ms-swift's
    ``padding_free``): for text models whose loss does not depend on how rows are grouped into micro-batches."""
    config = plan.config
    flash = str(config.get("attn_impl", "")).startswith("flash_")
    text = plan.shape is not None and plan.shape.encoder is None
    forbidden = config.balance is not None and not config.balance.value
    if (
        not flash
        or not text
        or forbidden
        or padding.obstacle(config)
        or padding.padding_kind(config) == "equal"
    ):
        return
    config.fill("padding_free", True, "flash-attn is installed: no computation is wasted on padding")


def _spread(plan: TrainingPlan) -> None:
    """Distribute a model that does not fit on one device."""
    config, device, cluster = plan.config, plan.device, plan.cluster
    taken = any(config.get(name) for name in ("deepspeed", "fsdp", "device_map")) or cluster.started_as
    alone = device.count == 1 and cluster.nodes == 1
    run = None if taken or alone or device.kind == "cpu" else plan.memory_run
    if run is None or not run.device_bytes:
        return
    needed = estimate.estimate(run).total
    if fitting.word_for(needed, run.device_bytes) != "does not fit":
        return
    reason = f"one device would need about {needed / GIB:.0f} GiB and has {run.device_bytes / GIB:.0f}"
    if packages.is_installed("deepspeed") and not run.value("quant_bits"):
        config.fill("deepspeed", "zero3", f"{reason}; its weights are sharded")
    elif device.count > 1 and cluster.nodes == 1:
        config.fill("device_map", "auto", f"{reason}; its layers are distributed")


def _share_batch(plan: TrainingPlan) -> None:
    """Choose batch size and accumulation: for the requested effective batch, or for ms-swift's default batch if nothing
    was requested and the loss does not depend on how the batch is divided."""
    config, wish, feeders = plan.config, plan.config.effective_batch, plan.batch.feeders
    open_names = {"per_device_train_batch_size", "gradient_accumulation_steps"} - config.settings.keys()
    if wish is None:
        if len(open_names - config.left_alone) == 2:
            _keep_own_step(plan)
        return
    rows = wish.value // feeders // config.get("gradient_accumulation_steps", 1)
    if len(open_names) == 2:
        config.fill("per_device_train_batch_size", *_fastest_batch(rows, plan))
    config.fill("per_device_train_batch_size", rows, "effective batch divided by the accumulation")
    batch = config.value("per_device_train_batch_size")
    steps = wish.value // feeders // batch
    reason = f"{batch} × {steps} × {counted(feeders, 'process', 'processes')} = {wish.value}"
    config.fill("gradient_accumulation_steps", steps, reason)


def _keep_own_step(plan: TrainingPlan) -> None:
    """Divide ms-swift's default batch into the fastest micro-batches."""
    config, rows = plan.config, plan.batch
    if config.balance is not None and not config.balance.value:
        return
    if plan.padding is None or padding.padding_kind(config) == "equal":
        return
    batch, reason = _fastest_batch(rows.accumulation, plan)
    if batch > 1:
        steps = rows.accumulation // batch
        config.fill("per_device_train_batch_size", batch, reason)
        config.fill(
            "gradient_accumulation_steps",
            steps,
            f"{batch} × {steps} rows instead of ms-swift's 1 × {rows.accumulation}",
        )


def _fastest_batch(rows: int, plan: TrainingPlan) -> tuple[int, str]:
    """The fastest batch size that divides ``rows`` and fits on a device, and the reason."""
    run = plan.memory_run
    if run is None or not run.device_bytes:
        return 1, "its memory use is unknown"
    if run.rows.images or any(plan.config.get(name) for name in ("packing", "padding_free", "streaming")):
        return _largest_batch(rows, memory_run.filled(run))
    found = [
        _Candidate(plan, batch, rows // batch)
        for batch in range(1, min(rows, MOST_ROWS) + 1)
        if rows % batch == 0
    ]
    first, room = found[0], MEMORY_SHARE * run.device_bytes
    best = min((one for one in found if one is first or one.bytes <= room), key=lambda one: one.time)
    if best.time > LEAST_GAIN * first.time:
        best = first
    memory = f"about {best.bytes / GIB:.1f} of {run.device_bytes / GIB:.1f} GiB"
    return (
        best.rows,
        memory if best is first else f"{best.time / first.time:.0%} of the time with single rows, {memory}",
    )


LEAST_GAIN = 0.97
"""A larger batch is chosen only if it takes at most this share of the time with single rows."""

CHECKPOINTING_TIME = 4 / 3
"""Time of a step with checkpointing relative to one without: one more forward pass (Chen et al. 2016)."""


class _Candidate:
    """A batch size on one device, with its cost.

    Args:
        plan: the plan of the run.
        rows: rows of a micro-batch.
        accumulation: micro-batches of a step on one device.
    """

    def __init__(self, plan: TrainingPlan, rows: int, accumulation: int) -> None:
        self.rows = rows
        found = plan.padding_of(Batch(rows=rows, accumulation=accumulation, feeders=plan.batch.feeders))
        shared = plan.may_balance and (plan.config.balance is not None or found.saves)
        run = plan.memory_run
        assert run is not None
        changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        run = memory_run.filled(run.but(**changes))
        known = plan.padding is not None
        self.run = run.with_sizes(*plan.sizes_of(found, rows, shared)) if known else run
        tokens = found.shared_step if shared else found.own_step
        self.time = (tokens + accumulation * plan.micro_batch_tokens) * self._passes(plan)

    def _passes(self, plan: TrainingPlan) -> float:
        """The time factor for checkpointing, if it is on, or if it is open and the rows do not fit without it."""
        given = plan.config.get("gradient_checkpointing")
        needed = self._bytes(gradient_checkpointing=False) if given is None else 0
        return CHECKPOINTING_TIME if given or needed > MEMORY_SHARE * self.run.device_bytes else 1.0

    @property
    def bytes(self) -> int:
        return self._bytes()

    def _bytes(self, **changes: bool) -> int:
        return estimate.estimate(self.run.but(**changes)).total


def _largest_batch(rows: int, run: memory_run.MemoryRun) -> tuple[int, str]:
    """The largest batch size that divides ``rows`` and fits on a device, and the reason."""
    for batch in range(min(rows, MOST_ROWS), 0, -1):
        if rows % batch == 0:
            needed = estimate.estimate(run.but(per_device_train_batch_size=batch)).total
            if needed <= MEMORY_SHARE * run.device_bytes or batch == 1:
                break
    return batch, f"about {needed / GIB:.1f} of {run.device_bytes / GIB:.1f} GiB"


def _turn_checkpointing_off(plan: TrainingPlan) -> None:
    """Turn checkpointing off if the longest rows fit without it; it takes a third more time."""
    run = plan.memory_run
    if run is None or not run.device_bytes or run.rows.images or run.value("fsdp"):
        return
    if not (run.rows.seen or run.value("packing")):
        return
    needed = estimate.estimate(run.but(gradient_checkpointing=False)).total
    if needed < MEMORY_SHARE * run.device_bytes:
        reason = f"about {needed / GIB:.1f} of {run.device_bytes / GIB:.1f} GiB without it"
        plan.config.fill("gradient_checkpointing", False, reason)


def _use_cores(plan: TrainingPlan) -> None:
    """Use several processes to convert the rows before training and, on a GPU, to open images. On a CPU, loader
    processes would take cores from the training and change the random numbers from the second epoch on."""
    config, rows = plan.config, plan.data.train_rows or 0
    cores = cpu_cores() // max(1, plan.launch.processes)
    if config.get("streaming"):
        return
    if rows >= MANY_ROWS and cpu_cores() > 1:
        reason = f"{rows:,} rows, {cpu_cores()} cores"
        config.fill("dataset_num_proc", min(8, cpu_cores()), reason)
    if config.preset == "multimodal" and plan.device.kind != "cpu" and cores >= 4:
        reason = f"{cores} cores per process, for decoding images"
        config.fill("dataloader_num_workers", min(8, cores // 2), reason)
