"""The plan of a training run: the device, the settings chosen automatically, its size.

Everything is learned from files and the operating system; torch is not imported.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from swift_toolkit import demo_model, launch
from swift_toolkit.config import Config


@dataclass(frozen=True)
class Device:
    """What the run computes on.

    Args:
        kind: as torch names it.
        count: how many are visible to the run.
        name: the model of the first, empty if not known.
        reason: why it is this one.
    """

    kind: Literal["cpu", "cuda", "npu", "mps"]
    count: int = 1
    name: str = ""
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.count} × {self.kind}" if self.count > 1 else self.kind
        detail = ", ".join(part for part in (self.name, self.reason) if part)
        return f"{text} ({detail})" if detail else text


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its model, its UUID ("GPU-..."), and whether it is cut into MIG instances."""

    name: str = "NVIDIA GPU"
    uuid: str = ""
    mig: bool = False


@dataclass(frozen=True)
class Hardware:
    """What this machine has, whatever the environment hides of it.

    Args:
        build: what the installed torch is built for: ``cuda``, ``rocm`` or ``cpu``.
        nvidia: the GPUs the driver knows.
        amd: how many GPUs the ROCm driver knows.
        npus: how many Ascend devices, if torch_npu is installed.
        apple: whether it is a Mac with Apple's own processor.
    """

    build: Literal["cuda", "rocm", "cpu"] = "cpu"
    nvidia: Sequence[Gpu] = ()
    amd: int = 0
    npus: int = 0
    apple: bool = False


def hardware() -> Hardware:
    """Look at this machine. Everything else about devices follows from what this says and the environment."""
    nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id") if Path("/dev/kfd").exists() else ()
    return Hardware(
        _torch_build(),
        _nvidia_gpus(),
        sum(node.read_text().strip() != "0" for node in nodes),
        len(list(Path("/dev").glob("davinci[0-9]*"))) if importlib.util.find_spec("torch_npu") else 0,
        sys.platform == "darwin" and os.uname().machine == "arm64",
    )


def find_device() -> Device:
    """The accelerators this process may use, else the CPU."""
    found = hardware()
    if found.nvidia:
        if found.build == "cpu":
            return Device("cpu", reason="the installed torch is a CPU build, the GPU stays unused")
        visible, reason = _visible_nvidia(found.nvidia)
        if visible:
            return Device("cuda", len(visible), visible[0].name, reason)
        return Device("cpu", reason=reason or "CUDA_VISIBLE_DEVICES hides every GPU")
    if found.build == "rocm" and found.amd:
        names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        variable = next((name for name in names if name in os.environ), names[0])
        return _visible("cuda", found.amd, variable, "ROCm")
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
        gpus.append(Gpu(told.get("Model", Gpu.name), told.get("GPU UUID", ""), mig))
    if not gpus:  # containers without that tree, and WSL
        return [Gpu()] * (len(list(Path("/dev").glob("nvidia[0-9]*"))) or Path("/dev/dxg").exists())
    return gpus


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

GIB = 1 << 30
MEMORY_SHARE = 0.6
"""The share of the free memory that the estimate may take before gradient checkpointing stays on."""


def fill_automatic(config: Config, device: Device) -> None:
    """Choose what the user left open and what does not change what is learned, each with its reason."""
    model = str(config.get("model"))
    builtin = demo_model.BUILTIN.get(model)
    if builtin is not None:
        config.fill("model_type", builtin.model_type, "known of the embedded model")
        config.fill("template", builtin.template, "known of the embedded model")
    if builtin is not None or Path(model).is_dir():
        config.fill("check_model", False, "the model is local, nothing to look up on a hub")
    if device.kind != "cpu":
        return
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
    if config.preset == "multimodal":
        return
    needed, free = activation_bytes(config), free_memory()
    if needed is not None and needed < MEMORY_SHARE * free:
        reason = f"activations need about {needed / GIB:.1f} GiB, {free / GIB:.0f} GiB are free"
        config.fill("gradient_checkpointing", False, reason)


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


def activation_bytes(config: Config) -> int | None:
    """Upper estimate of the bytes of activations and logits that one training step keeps without checkpointing.

    Per layer ``s * b * h * (34 + 5 * a * s / h)`` bytes at 2 bytes a number (Korthikanti et al. 2022, "Reducing
    Activation Recomputation in Large Transformer Models", eq. 1), doubled for 4 bytes a number, plus four
    float32 copies of the logits (``4 * 4 * b * s * v``). None if the model is not local or its config.json lacks
    a size.
    """
    sizes = _model_sizes(str(config.get("model")))
    hidden, layers, heads = (
        sizes.get(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    length = config.get("max_length") or sizes.get("max_position_embeddings")
    vocabulary = sizes.get("vocab_size")
    if not (hidden and layers and heads and length and vocabulary):
        return None
    tokens = length * config.get("per_device_train_batch_size", 1)
    per_layer = 2 * tokens * hidden * (34 + 5 * heads * length / hidden)
    return int(layers * per_layer + 16 * tokens * vocabulary)


def _model_sizes(model: str) -> Mapping[str, Any]:
    if model in demo_model.BUILTIN:
        return demo_model.BUILTIN[model].sizes
    try:
        sizes = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


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


def effective_batch_size(config: Config, device: Device) -> int:
    """Rows per optimiser step, over all processes of all nodes."""
    batch = config.get("per_device_train_batch_size", 1)
    return int(batch * accumulation(config, device) * launch.world_size(config, device))


def step_count(config: Config, rows: int | None, device: Device) -> int | None:
    """Optimiser steps of the run, None if the number of rows is not known.

    As transformers.Trainer counts: ``ceil(epochs * ceil(batches / accumulation))``.
    """
    if (steps := config.get("max_steps", -1)) > 0:
        return int(steps)
    if rows is None or config.get("streaming") or config.get("packing"):
        return None
    batch = config.get("per_device_train_batch_size", 1) * launch.world_size(config, device)
    batches: int = math.ceil(rows / batch)
    per_epoch = max(1, math.ceil(batches / accumulation(config, device)))
    epochs: float = config.get("max_epochs") or config.get("num_train_epochs", 3.0)
    return math.ceil(epochs * per_epoch)


def default_output_dir(config: Config) -> str:
    """ms-swift's own default, ``output/<last part of the model's name>``."""
    return f"output/{Path(str(config.get('model'))).name}"


def preset_phrase(config: Config) -> str:
    """The preset and what it is for, or the tuner where there is no preset."""
    from swift_toolkit.presets import PRESETS

    return PRESETS[config.preset].says if config.preset else config.tuner


def memory(config: Config) -> dict[str, int | None]:
    """Bytes: what is free, and what activations take at most without checkpointing where it can be told."""
    return {"free": free_memory(), "activations": activation_bytes(config)}


def memory_advice(config: Config, device: Device) -> list[str]:
    """What to change when memory ran out, the gentlest first, in this run's own numbers."""
    batch, steps = config.get("per_device_train_batch_size", 1), accumulation(config, device)
    advice = []
    if batch > 1:
        half = batch // 2
        more = math.ceil(batch * steps / half)
        advice.append(f"--per_device_train_batch_size {half} --gradient_accumulation_steps {more}")
    if config.get("gradient_checkpointing") is False:
        advice.append("--gradient_checkpointing true")
    if (length := config.get("max_length")) and length > 512:
        advice.append(f"--max_length {length // 2}")
    if config.preset == "lora":
        advice.append("--train_type qlora")
    elif config.preset == "full":
        advice.append("--train_type lora (without the settings of full training)")
    if device.kind == "cuda" and config.preset != "qlora" and not config.get("deepspeed"):
        advice.append("--deepspeed zero2 (zero3 shards the weights as well)")
    return advice or ["a machine with more memory"]
