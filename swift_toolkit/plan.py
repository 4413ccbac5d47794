"""The plan of a training run: the device, the settings chosen automatically, how the run is launched.

Everything is learned from files and the operating system; torch is not imported.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swift_toolkit import demo_model
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


def find_device() -> Device:
    """The accelerators this process may use, else the CPU."""
    build = _torch_build()
    gpus = _nvidia_gpus()
    if gpus:
        visible = _visible("CUDA_VISIBLE_DEVICES", len(gpus))
        if build == "cpu":
            return Device("cpu", reason="the installed torch is a CPU build, the GPU stays unused")
        if visible:
            return Device("cuda", visible, gpus[0])
        return Device("cpu", reason="CUDA_VISIBLE_DEVICES hides every GPU")
    if build == "rocm" and Path("/dev/kfd").exists():
        nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
        count = sum(node.read_text().strip() != "0" for node in nodes)
        return Device("cuda", _visible("HIP_VISIBLE_DEVICES", count) or 1, "ROCm")
    npus = len(list(Path("/dev").glob("davinci[0-9]*")))
    if npus and importlib.util.find_spec("torch_npu"):
        return Device("npu", _visible("ASCEND_RT_VISIBLE_DEVICES", npus))
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        return Device("mps")
    return Device("cpu", reason="no accelerator found")


def _torch_build() -> str:
    """``cuda``, ``rocm`` or ``cpu``, from the version file of the installed torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text() if version.exists() else ""
    for build, variable in (("rocm", "hip"), ("cuda", "cuda")):
        if re.search(rf"^{variable}\b[^=]*= *['\"]", text, re.MULTILINE):
            return build
    return "cpu"


def _nvidia_gpus() -> list[str]:
    """The model name of each NVIDIA GPU the driver knows."""
    names = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+?)\s*$", information.read_text(), re.MULTILINE)
        names.append(found[1] if found else "NVIDIA GPU")
    if not names:  # containers without that tree, and WSL
        names = ["NVIDIA GPU"] * len(list(Path("/dev").glob("nvidia[0-9]*")))
    return names or ["NVIDIA GPU"] * Path("/dev/dxg").exists()


def _visible(variable: str, count: int) -> int:
    """How many of ``count`` devices the environment variable leaves visible."""
    value = os.environ.get(variable)
    if value is None:
        return count
    return len([part for part in value.split(",") if part.strip() and part.strip() != "-1"])


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
    if processes(config, device) > 1:
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


def processes(config: Config, device: Device) -> int:
    """How many training processes run on this machine, from NPROC_PER_NODE or the engine that is asked for."""
    asked = os.environ.get("NPROC_PER_NODE", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return device.count if config.get("deepspeed") or config.get("fsdp") else 1


def needs_launcher(config: Config) -> bool:
    """Whether the run goes through torch.distributed.run."""
    variables = ("NPROC_PER_NODE", "NNODES")
    return any(os.environ.get(name) for name in variables) or bool(
        config.get("deepspeed") or config.get("fsdp")
    )


def launch_command(config: Config, device: Device) -> list[str]:
    """The command that starts the training process or processes."""
    module = ["-m", "swift_toolkit.training"]
    if not needs_launcher(config):
        return [sys.executable, *module]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes(config, device)}"]
    given = [name for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)]
    command += [f"--{name.lower()}={os.environ[name]}" for name in given]
    return [*command, *([] if given else ["--standalone"]), *module]  # alone: any free port will do


def environment(device: Device) -> dict[str, str]:
    """The variables a training process gets besides the user's own, which win.

    On a CPU, GNU OpenMP's threads spin for a moment only before they sleep. Two cores, ten steps of the quickstart,
    torch 2.13: 12 s alone, as with the default; beside another busy process 29 s, the default over 140 s. Results are
    the same.
    """
    if device.kind != "cpu" or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return {}
    return {"GOMP_SPINCOUNT": "2000"}


def accumulation(config: Config, device: Device) -> int:
    """Gradient accumulation steps; ms-swift's default makes the effective batch at least 16
    (``TrainArgumentsMixin.__post_init__``)."""
    batch = config.get("per_device_train_batch_size", 1) * processes(config, device)
    return int(config.get("gradient_accumulation_steps") or max(1, math.ceil(16 / batch)))


def effective_batch_size(config: Config, device: Device) -> int:
    """Rows per optimiser step, over all processes of this machine."""
    batch = config.get("per_device_train_batch_size", 1)
    return int(batch * accumulation(config, device) * processes(config, device))


def step_count(config: Config, rows: int | None, device: Device) -> int | None:
    """Optimiser steps of the run, None if the number of rows is not known.

    As transformers.Trainer counts: ``ceil(epochs * ceil(batches / accumulation))``.
    """
    if (steps := config.get("max_steps", -1)) > 0:
        return int(steps)
    if rows is None or config.get("streaming") or config.get("packing"):
        return None
    batches: int = math.ceil(
        rows / (config.get("per_device_train_batch_size", 1) * processes(config, device))
    )
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
