"""The devices that a run can use, and their memory."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from swift_toolkit.machine.packages import is_installed


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
        len(list(Path("/dev").glob("davinci[0-9]*"))) if is_installed("torch_npu") else 0,
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
    """Bytes of memory in a GPU's name, such as "NVIDIA A100-SXM4-80GB"; 0 if there are none."""
    found = re.search(r"\b(\d+) ?GB\b", name)
    return int(found[1]) << 30 if found else 0


def _with_memory(gpus: list[Gpu]) -> list[Gpu]:
    """The same GPUs with the memory that nvidia-smi reports, and with their models if the driver does not name them."""
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
            named = f'CUDA_VISIBLE_DEVICES names "{word}", which is not a GPU of this machine'
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
    if len(good) == len(words):
        return Device(kind, len(good), name)
    rest = f'{variable} names "{words[len(good)]}", which is not a device of this machine'
    return Device(kind, len(good), name, rest)


def cpu_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself; True where the system does not tell."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


BFLOAT16_FACTOR = 18
"""How many times as long as float32 bfloat16 takes on a CPU without its arithmetic: a training step of one row of
SmolLM2-135M, 72.6 s against 3.95 s, with AVX2 alone."""


def free_memory() -> int:
    """Bytes of memory this process may still take: what the system has left, or its control group's limit."""
    free = _available_memory()
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free


def _available_memory() -> int:
    """Bytes that the system can still give without swapping."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").is_file() else ""
    if found := re.search(r"^MemAvailable: *(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) << 10
    import psutil

    return int(psutil.virtual_memory().available)


def environment(device: Device) -> dict[str, str]:
    """The variables a process that computes gets in addition to the user's own, which win.

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


GIB = 1 << 30
