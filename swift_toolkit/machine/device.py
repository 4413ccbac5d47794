"""The devices that a run can use, and their memory."""

from __future__ import annotations

import contextlib
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
    """The device that a run computes on.

    Args:
        kind: torch's name for it.
        count: how many are visible to the run.
        name: the model of the first one, empty if not known.
        reason: why this device was chosen.
        memory: bytes of the smallest of them, 0 if not known; for a CPU, the free memory.
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
    """One NVIDIA GPU: its model, its UUID ("GPU-..."), whether it is split into MIG instances, and its memory in bytes
    (0 if not known)."""

    name: str = "NVIDIA GPU"
    uuid: str = ""
    mig: bool = False
    memory: int = 0


@dataclass(frozen=True)
class Hardware:
    """The hardware of this machine, regardless of what the environment hides.

    Args:
        build: what the installed torch is built for: ``cuda``, ``rocm`` or ``cpu``.
        nvidia: the GPUs that the driver lists.
        amd: number of GPUs that the ROCm driver lists.
        amd_memory: bytes of the smallest of them, 0 if not known.
        npus: number of Ascend devices, if torch_npu is installed.
        apple: whether it is a Mac with Apple silicon.
    """

    build: Literal["cuda", "rocm", "cpu"] = "cpu"
    nvidia: Sequence[Gpu] = ()
    amd: int = 0
    amd_memory: int = 0
    npus: int = 0
    apple: bool = False


def hardware() -> Hardware:
    """Detect the hardware of this machine. All other functions work from this result and the environment."""
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
    """The accelerators that this process may use, else the CPU, with the memory of each."""
    device = _find_device()
    return replace(device, memory=free_memory()) if device.kind in ("cpu", "mps") else device


def _find_device() -> Device:
    found = hardware()
    if found.nvidia:
        if found.build == "cpu":
            return Device("cpu", reason="the installed torch is a CPU build and cannot use the GPU")
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
    """What the installed torch is built for, from its version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "cpu"
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text() if version.exists() else ""
    if re.search(r"^hip\b[^=]*= *['\"]", text, re.MULTILINE):
        return "rocm"
    return "cuda" if re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) else "cpu"


def _nvidia_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver lists, in the order of their numbers."""
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
    """The memory in bytes given in a GPU's name, such as "NVIDIA A100-SXM4-80GB"; 0 if there is none."""
    found = re.search(r"\b(\d+) ?GB\b", name)
    return int(found[1]) << 30 if found else 0


def _with_memory(gpus: list[Gpu]) -> list[Gpu]:
    """The same GPUs with the memory that nvidia-smi reports, and with their models if the driver lists none."""
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
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, and why they are fewer than it lists.

    CUDA's rules (CUDA C++ Programming Guide, "CUDA Environment Variables"): entries are numbers and UUIDs, which may be
    abbreviated; the first invalid entry hides itself and all after it; a duplicate entry hides all GPUs. A process sees
    only one MIG instance, and no other GPU with it (NVIDIA MIG User Guide, "CUDA Device Enumeration").
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
    """The GPU that ``word`` refers to, None if there is none; ``unnamed`` if the driver lists no UUIDs."""
    if word.startswith("GPU-") and any(gpu.uuid for gpu in gpus):
        found = [number for number, gpu in enumerate(gpus) if gpu.uuid.startswith(word)]
        return found[0] if len(found) == 1 else None
    number = unnamed if word.startswith("GPU-") else int(word) if word.isdecimal() else len(gpus)
    return number if number < len(gpus) else None


def _visible(kind: Literal["cuda", "npu"], count: int, variable: str, name: str = "") -> Device:
    """``count`` devices, less those that the environment variable hides: it lists numbers, up to the first that is not
    a device (Ascend: CANN environment variables; ROCm: HIP_VISIBLE_DEVICES)."""
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
    """Whether this CPU has bfloat16 instructions; True if the system does not say."""
    words = _cpu_words()
    return not words or bool(words & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def mkl_lacks_avx512() -> bool:
    """Whether this CPU has AVX-512 instructions that MKL does not use, because the CPU is not Intel's."""
    return {"AuthenticAMD", "avx512f"} <= _cpu_words()


def _cpu_words() -> frozenset[str]:
    """The words of Linux's description of the CPU, among them its instruction sets; empty if there is none."""
    with contextlib.suppress(OSError):
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    return frozenset()


BFLOAT16_FACTOR = 18
"""How many times slower bfloat16 is than float32 on a CPU without bfloat16 instructions: a training step of one row of
SmolLM2-135M took 72.6 s instead of 3.95 s on a CPU with AVX2 only."""


def free_memory() -> int:
    """Bytes of memory that this process may still use: what the system has left, or the limit of its control group."""
    free = _available_memory()
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free


def _available_memory() -> int:
    """Bytes that the system can still provide without swapping."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").is_file() else ""
    if found := re.search(r"^MemAvailable: *(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) << 10
    import psutil

    return int(psutil.virtual_memory().available)


SPINS, FEW_SPINS = "GOMP_SPINCOUNT", "2000"
"""GNU OpenMP's variable for how often a waiting thread spins, and a low number: 0.1 ms on an Intel Xeon."""


def environment(device: Device) -> dict[str, str]:
    """The variables that a computing process gets in addition to the user's own, which take precedence.

    On a CPU, GNU OpenMP's threads spin only briefly before they sleep: with the default, two processes that share
    processors block each other. Workers that compute themselves do better, see `threads.spin_while_alone`.

    vLLM spawns its engine instead of forking it, as under its own command: only a spawned process can be made to end
    with its parent (process.end_with_parent).
    """
    always = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if device.kind != "cpu" or {SPINS, "OMP_WAIT_POLICY"} & os.environ.keys():
        return always
    return {**always, SPINS: FEW_SPINS}


GIB = 1 << 30
