"""The plan of a training run: the device, the settings chosen automatically, its size.

Everything is learned from files and the operating system; torch is not imported.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from swift_toolkit.config.request import Config
from swift_toolkit.console.screen import gib
from swift_toolkit.model import builtin as model_builtin
from swift_toolkit.problems import Problem
from swift_toolkit.training import launch
from swift_toolkit.training.memory import estimate as memory_estimate
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.memory import run as memory_run
from swift_toolkit.training.memory.estimate import GIB

if TYPE_CHECKING:
    from swift_toolkit.dataset.verify import DataReport


@dataclass(frozen=True)
class Device:
    """What the run computes on.

    Args:
        kind: as torch names it.
        count: how many are visible to the run.
        name: the model of the first, empty if not known.
        reason: why it is this one.
        memory: bytes of the smallest of them, 0 if not known; of a CPU, what is free.
    """

    kind: Literal["cpu", "cuda", "npu", "mps"]
    count: int = 1
    name: str = ""
    reason: str = ""
    memory: int = 0

    def __str__(self) -> str:
        text = f"{self.count} × {self.kind}" if self.count > 1 else self.kind
        detail = ", ".join(part for part in (self.name, self.reason) if part)
        return f"{text} ({detail})" if detail else text


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its model, its UUID ("GPU-..."), whether it is cut into MIG instances, and its bytes of memory, 0
    if not known."""

    name: str = "NVIDIA GPU"
    uuid: str = ""
    mig: bool = False
    memory: int = 0


@dataclass(frozen=True)
class Hardware:
    """What this machine has, whatever the environment hides of it.

    Args:
        build: what the installed torch is built for: ``cuda``, ``rocm`` or ``cpu``.
        nvidia: the GPUs the driver knows.
        amd: how many GPUs the ROCm driver knows.
        amd_memory: bytes of the smallest of them, 0 if not known.
        npus: how many Ascend devices, if torch_npu is installed.
        apple: whether it is a Mac with Apple's own processor.
    """

    build: Literal["cuda", "rocm", "cpu"] = "cpu"
    nvidia: Sequence[Gpu] = ()
    amd: int = 0
    amd_memory: int = 0
    npus: int = 0
    apple: bool = False


def hardware() -> Hardware:
    """Look at this machine. Everything else about devices follows from what this says and the environment."""
    nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id") if Path("/dev/kfd").exists() else ()
    return Hardware(
        _torch_build(),
        _nvidia_gpus(),
        sum(node.read_text().strip() != "0" for node in nodes),
        min(map(_number_in, Path("/sys/class/drm").glob("card*/device/mem_info_vram_total")), default=0),
        len(list(Path("/dev").glob("davinci[0-9]*"))) if importlib.util.find_spec("torch_npu") else 0,
        sys.platform == "darwin" and os.uname().machine == "arm64",
    )


def find_device() -> Device:
    """The accelerators this process may use, else the CPU, with the memory of each."""
    device = _find_device()
    return replace(device, memory=free_memory()) if device.kind in ("cpu", "mps") else device


def _find_device() -> Device:
    found = hardware()
    if found.nvidia:
        if found.build == "cpu":
            return Device("cpu", reason="the installed torch is a CPU build, the GPU stays unused")
        visible, reason = _visible_nvidia(found.nvidia)
        if visible:
            least = 0 if any(gpu.mig for gpu in visible) else min(gpu.memory for gpu in visible)
            return Device("cuda", len(visible), visible[0].name, reason, least)
        return Device("cpu", reason=reason or "CUDA_VISIBLE_DEVICES hides every GPU")
    if found.build == "rocm" and found.amd:
        names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        variable = next((name for name in names if name in os.environ), names[0])
        return replace(_visible("cuda", found.amd, variable, "ROCm"), memory=found.amd_memory)
    if found.npus:
        return _visible("npu", found.npus, "ASCEND_RT_VISIBLE_DEVICES")
    return Device("mps") if found.apple else Device("cpu", reason="no accelerator found")


def _torch_build() -> Literal["cuda", "rocm", "cpu"]:
    """What torch is built for, from the version file of the installed one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text() if version.exists() else ""
    if re.search(r"^hip\b[^=]*= *['\"]", text, re.MULTILINE):
        return "rocm"
    return "cuda" if re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) else "cpu"


def _nvidia_gpus() -> list[Gpu]:
    """The NVIDIA GPUs the driver knows, in the order of their numbers."""
    gpus = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        told = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.+?)\s*$", information.read_text(), re.MULTILINE))
        instances = Path(f"/proc/driver/nvidia/capabilities/gpu{told.get('Device Minor')}/mig")
        mig = any(instances.glob("gi*"))
        name = told.get("Model", Gpu.name)
        gpus.append(Gpu(name, told.get("GPU UUID", ""), mig, memory_in(name)))
    if not gpus:  # containers without that tree, and WSL
        gpus = [Gpu()] * (len(list(Path("/dev").glob("nvidia[0-9]*"))) or Path("/dev/dxg").exists())
    return _with_memory(gpus) if gpus else []


def memory_in(name: str) -> int:
    """Bytes of memory that a GPU's name tells, such as "NVIDIA A100-SXM4-80GB"; 0 if it does not."""
    found = re.search(r"\b(\d+) ?GB\b", name)
    return int(found[1]) << 30 if found else 0


def _with_memory(gpus: list[Gpu]) -> list[Gpu]:
    """The same with what NVIDIA's own tool tells of their memory, and of their models where the driver tells none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return gpus
    query = [tool, "--query-gpu=memory.total,uuid,name", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            query, capture_output=True, text=True, timeout=5, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return gpus
    lines = [tuple(line.split(", ")) for line in told]
    lines = [line for line in lines if len(line) == 3 and line[0].isdecimal()]
    if len(lines) != len(gpus):
        return gpus
    by_uuid = {uuid: int(mib) << 20 for mib, uuid, _ in lines}
    return [
        replace(
            gpu, memory=by_uuid.get(gpu.uuid, int(mib) << 20), name=name if gpu.name == Gpu.name else gpu.name
        )
        for gpu, (mib, _, name) in zip(gpus, lines, strict=True)
    ]


def _number_in(file: Path) -> int:
    text = file.read_text().strip()
    return int(text) if text.isdecimal() else 0


def _visible_nvidia(gpus: Sequence[Gpu]) -> tuple[list[Gpu], str]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, and why they are fewer than it names.

    As CUDA reads it (CUDA C++ Programming Guide, "CUDA Environment Variables"): numbers and UUIDs, which may be
    abbreviated; the first that means no GPU hides itself and all after it; one named twice hides all. Of MIG
    instances a process sees one only, and no other GPU beside it (NVIDIA MIG User Guide, "CUDA Device Enumeration").
    """
    one_mig = "a process can use only one MIG instance"
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        cut = [gpu for gpu in gpus if gpu.mig]
        return (cut[:1], one_mig) if cut else (list(gpus), "")
    chosen: list[int] = []
    words = [word.strip() for word in value.split(",")]
    for word in words:
        if word.startswith("MIG-"):
            return (
                ([Gpu(gpus[0].name, word, True)], one_mig) if not chosen else ([gpus[n] for n in chosen], "")
            )
        number = _gpu_number(word, gpus, len(chosen))
        if number is None:
            named = f'CUDA_VISIBLE_DEVICES names "{word}", which is no GPU of this machine'
            return [gpus[n] for n in chosen], "" if word in ("", "-1") else named
        if number in chosen:
            return [], f'CUDA_VISIBLE_DEVICES names "{word}" twice, which hides every GPU'
        chosen.append(number)
    return [gpus[n] for n in chosen], ""


def _gpu_number(word: str, gpus: Sequence[Gpu], unnamed: int) -> int | None:
    """The GPU that ``word`` means; ``unnamed`` where the driver does not tell UUIDs. None if there is none."""
    if word.startswith("GPU-") and any(gpu.uuid for gpu in gpus):
        found = [number for number, gpu in enumerate(gpus) if gpu.uuid.startswith(word)]
        return found[0] if len(found) == 1 else None
    number = unnamed if word.startswith("GPU-") else int(word) if word.isdecimal() else len(gpus)
    return number if number < len(gpus) else None


def _visible(kind: Literal["cuda", "npu"], count: int, variable: str, name: str = "") -> Device:
    """``count`` devices but for those the environment variable hides: it lists numbers, up to the first that is
    none (Ascend: CANN environment variables; ROCm: HIP_VISIBLE_DEVICES)."""
    value = os.environ.get(variable)
    words = [str(number) for number in range(count)] if value is None else value.split(",")
    good = list(takewhile(lambda word: word.isdecimal() and int(word) < count, words))
    if not good:
        return Device("cpu", reason=f"{variable} hides every device")
    rest = (
        "" if len(good) == len(words) else f'{variable} names "{words[len(good)]}", which is no device here'
    )
    return Device(kind, len(good), name, rest)


# --- automatic settings -------------------------------------------------------------------------------------

MEMORY_SHARE = 0.6
"""The share of a device's memory that an estimate may take which decides something: it may be a third off."""

MOST_ROWS = 64
"""Most rows of a batch on one device that are chosen automatically."""

MANY_ROWS = 10_000
"""Rows from which on several processes read the data: fewer are read in the time that processes take to start."""


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
    cores = _cores() // max(1, launch.processes(config, device))
    if device.kind == "cpu" or config.get("streaming") or cores < 4:
        return
    many = report is not None and (report.train_rows or 0) >= MANY_ROWS
    if many and report is not None:
        processes = min(8, _cores() // 2)
        config.fill("dataset_num_proc", processes, f"{report.train_rows:,} rows, {_cores()} cores")
    if config.preset == "multimodal":
        config.fill("dataloader_num_workers", min(8, cores // 2), f"{cores} cores a process, to open images")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself; True where the system does not tell."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def free_memory() -> int:
    """Bytes of memory this process may still take: what the system has left, or its control group's limit."""
    import psutil

    free = psutil.virtual_memory().available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return int(free)


# --- size of the run ----------------------------------------------------------------------------------------


def environment(device: Device) -> dict[str, str]:
    """The variables a process that computes gets besides the user's own, which win.

    On a CPU, GNU OpenMP's threads spin for a moment only before they sleep. Two cores, ten steps of the quickstart,
    torch 2.13: 12 s alone, as with the default; beside another busy process 29 s, the default over 140 s. Results are
    the same.

    vLLM spawns its engine and does not fork it, as under its own command: what is spawned can be made to end with its
    parent (process.end_with_parent).
    """
    always = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if device.kind != "cpu" or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return always
    return {**always, "GOMP_SPINCOUNT": "2000"}


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


def default_output_dir(config: Config) -> str:
    """ms-swift's own default, ``output/<last part of the model's name>``."""
    return f"output/{Path(str(config.get('model'))).name}"


def preset_phrase(config: Config) -> str:
    """The preset and what it is for, or the tuner where there is no preset."""
    from swift_toolkit.config.presets import PRESETS

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
