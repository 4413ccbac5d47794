"""Estimate of the memory that a training run needs on each device, part by part, before it starts.

Weights, gradients and optimiser states follow Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", section 3). Activations are counted as in Korthikanti et al. 2022 ("Reducing Activation
Recomputation in Large Transformer Models", section 4), for the layers of current models. torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from swift_toolkit.machine.device import GIB
from swift_toolkit.training.memory.activations import (
    batch_tokens,
    eval_logits,
    generation_bytes,
    image_tokens,
    logit_bytes,
    moving_bytes,
)
from swift_toolkit.training.memory.run import MemoryRun
from swift_toolkit.training.memory.weights import (
    frozen_bytes,
    sharing,
    state_bytes,
    trained_parts,
    weight_bytes,
)


@dataclass(frozen=True)
class Estimate:
    """Peak memory of one device, and of the host for offloaded parts.

    Args:
        parts: bytes on a device by purpose, in the order of `PARTS`.
        host: bytes offloaded to host memory, per process.
        tokens: tokens of the largest batch on one device.
        peak: ``training`` or ``evaluation``, whichever takes more memory.
    """

    parts: Mapping[str, int]
    host: int = 0
    tokens: int = 0
    peak: str = "training"

    @property
    def total(self) -> int:
        """Total bytes on one device."""
        return sum(self.parts.values())


PARTS = (
    *(
        "weights",
        "quantisation",
        "other models",
        "adapter",
        "gradients",
        "optimiser",
        "activations",
        "logits",
    ),
    *("generation", "overhead"),
)


def estimate(run: MemoryRun) -> Estimate:
    """The peak memory of ``run`` on its fullest device."""
    share = sharing(run)
    trained, adapter = trained_parts(run)
    if run.task.has_values:
        trained = replace(trained, own=2 * trained.own, added=2 * trained.added)
    states = state_bytes(run, trained, share)
    tokens = batch_tokens(run, run.longest_rows, run.rows.longest, image_tokens(run))
    training = {**moving_bytes(run, tokens, trained), "logits": logit_bytes(run)}
    evaluation = {"activations": 0.0, "logits": eval_logits(run)}
    peak = "training" if sum(training.values()) >= sum(evaluation.values()) else "evaluation"
    parts = {
        **frozen_bytes(run, share),
        **states.device,
        **(training if peak == "training" else evaluation),
        "adapter": adapter // share.weights,
        "generation": generation_bytes(run, sum(training.values())),
    }
    parts["overhead"] = _overhead(run, parts)
    host = states.host + (weight_bytes(run)[0] if share.offloads_weights else 0)
    return Estimate({name: int(parts[name]) for name in PARTS if parts.get(name)}, int(host), tokens, peak)


# --- overhead -----------------------------------------------------------------------------------------------

CUDA_CONTEXT = 0.6 * GIB
"""GPU memory of a process without tensors: its context, and the kernels and workspaces of libraries."""

NCCL_BUFFERS = 0.4 * GIB
"""GPU memory of a process for its connections to other GPUs."""

FRAGMENTS, FEW_FRAGMENTS = 0.25, 0.05
"""Additional share of temporary memory that PyTorch's caching allocator holds. Rows of varying length leave gaps
between its blocks; packed rows, which have equal length, and expandable segments (`launch.GROWING`) leave few."""

CPU_PROCESS = 0.7 * GIB
"""Resident memory of a training process without the model: Python with torch, transformers and ms-swift."""


def _overhead(run: MemoryRun, parts: Mapping[str, float]) -> float:
    moving = sum(parts.get(name, 0) for name in ("activations", "logits"))
    if run.kind == "cpu":
        return CPU_PROCESS
    connections = NCCL_BUFFERS if run.world > 1 else 0
    even = run.value("packing") or run.grows_segments
    return CUDA_CONTEXT + connections + (FEW_FRAGMENTS if even else FRAGMENTS) * moving
