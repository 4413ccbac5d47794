"""How much memory a training run takes on each device, estimated before it starts, part by part.

Weights, gradients and optimiser states follow Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", section 3); activations are counted as Korthikanti et al. 2022 ("Reducing Activation
Recomputation in Large Transformer Models", section 4) count them, for the layers of today's models. Nothing is
imported that computes.
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
    """Peak memory of one device, and of the machine where parts are offloaded.

    Args:
        parts: bytes on a device by what takes them, in the order of `PARTS`.
        host: bytes offloaded to the memory of the machine, per process.
        tokens: of a batch on one device, at most.
        peak: ``training`` or ``evaluation``, whichever takes more.
    """

    parts: Mapping[str, int]
    host: int = 0
    tokens: int = 0
    peak: str = "training"

    @property
    def total(self) -> int:
        """Bytes on a device."""
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
    """The peak of ``run`` on its fullest device."""
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
"""What a process takes on a GPU before any tensor: the context and the libraries' kernels and workspaces."""

NCCL_BUFFERS = 0.4 * GIB
"""What its connections to other GPUs take."""

FRAGMENTS, FEW_FRAGMENTS = 0.25, 0.05
"""Of what comes and goes, how much more PyTorch's caching allocator holds: rows of many lengths leave gaps between its
blocks, but for packed rows, all of one length, or with segments that grow (`launch.GROWING`)."""

CPU_PROCESS = 0.7 * GIB
"""Resident bytes of a training process before its model: Python with torch, transformers and ms-swift."""


def _overhead(run: MemoryRun, parts: Mapping[str, float]) -> float:
    moving = sum(parts.get(name, 0) for name in ("activations", "logits"))
    if run.kind == "cpu":
        return CPU_PROCESS
    connections = NCCL_BUFFERS if run.world > 1 else 0
    even = run.value("packing") or run.grows_segments
    return CUDA_CONTEXT + connections + (FEW_FRAGMENTS if even else FRAGMENTS) * moving
