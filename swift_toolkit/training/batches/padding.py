"""Simulation of the padding in a run, before it starts, with rows as long as those of its data.

A device computes every row of a micro-batch at the length of the longest. The time of a step therefore depends on how
many rows share a micro-batch, and on the fixed cost per micro-batch: a GPU reads all weights once, however few the
tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from random import Random
from statistics import NormalDist
from typing import Literal

from swift_toolkit.config import tasks
from swift_toolkit.config.settings import Config
from swift_toolkit.machine.device import Device
from swift_toolkit.model.shape import ModelShape
from swift_toolkit.training.batches import balance

PaddingKind = Literal["padded", "equal", "unpadded"]

LEAST_SAVING = 0.05
"""Share of the computed tokens that balancing must save to be enabled automatically."""

_MOST_ROWS, _STEP_ROWS = 512, 256
"""Rows of all simulated steps, and maximum rows of one step: of a larger step only a part is simulated."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """The computation of the steps of a run, in tokens.

    Args:
        own: computed tokens per token of the data, in ms-swift's own order.
        shared: the same with the rows of every step distributed by length.
        largest: tokens of the largest micro-batch with rows distributed by length.
        fullest: the most tokens of a micro-batch without its padding, in either order.
        own_step: tokens of a step on the slowest device, in ms-swift's own order.
        shared_step: the same with rows distributed by length.
    """

    own: float
    shared: float
    largest: int
    fullest: int
    own_step: float
    shared_step: float

    @property
    def saves(self) -> bool:
        """Whether distributing by length pays off: fewer tokens, or less waiting for the slowest device."""
        keeps = 1 - LEAST_SAVING
        return self.shared <= keeps * self.own or self.shared_step <= keeps * self.own_step

    def __str__(self) -> str:
        if self.own == 1:
            times = self.own_step / self.shared_step
            return f"none; with equal work for every device, a step is {times:.1f} times faster"
        return f"{self.own:.0%} → {self.shared:.0%} of the tokens, with the same rows in each step"


@dataclass(frozen=True)
class RowLengths:
    """The distribution of row lengths in the data.

    Args:
        tokens: lengths, shortest first.
        rows: number of rows of about each length.
    """

    tokens: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def seen(cls, tokens: Mapping[int, int], step: int, limit: int) -> RowLengths:
        """From a histogram (tokens, rounded down to a multiple of ``step`` -> rows), capped at ``limit``."""
        bars = sorted(tokens)
        middles = (bar + step // 2 for bar in bars)
        return cls(tuple(min(one, limit or one) for one in middles), tuple(tokens[bar] for bar in bars))

    @classmethod
    def assumed(cls, mean: int, longest: int) -> RowLengths:
        """An assumption for chats of unknown length: log-normal, one row in sixty about as long as the longest."""
        spread = NormalDist(log(mean) - _SPREAD**2 / 2, _SPREAD)
        tokens = [min(longest, max(1, round(exp(spread.inv_cdf(part / 64))))) for part in range(1, 64)]
        return cls((*tokens, longest), (1,) * 64)

    def sample(self, rows: int) -> list[int]:
        """A deterministic sample of ``rows`` lengths, each as frequent as in the data."""
        return Random(0).choices(self.tokens, self.rows, k=rows)


_SPREAD = 0.9
"""Assumed standard deviation of the logarithm of the length of a chat."""


@lru_cache(maxsize=256)
def simulate(
    lengths: RowLengths, ranks: int, batch: int, accumulation: int, hidden: int, kind: PaddingKind = "padded"
) -> Padding:
    """Simulate steps with rows of these lengths.

    Args:
        lengths: row lengths of the data.
        ranks: number of processes with their own rows.
        batch: rows of a micro-batch on one process.
        accumulation: micro-batches of a step on one process.
        hidden: hidden size of the model; 0 if unknown.
        kind: ``equal`` if all micro-batches keep their number of rows, ``unpadded`` with ``padding_free``.
    """
    micro_batches = max(1, min(accumulation, _STEP_ROWS // batch))
    ranks = max(1, min(ranks, _STEP_ROWS // (batch * micro_batches)))
    size = ranks * batch * micro_batches
    steps = max(2, _MOST_ROWS // size)
    sample = lengths.sample(steps * size)
    totals: Counter[str] = Counter()
    largest = fullest = 0
    for at in range(0, len(sample), size):
        rows = sample[at : at + size]
        own = balance.own_order(size, ranks, batch)
        if kind == "unpadded":
            shared = balance.share_out_unpadded(rows, ranks, batch, hidden)
        else:
            shared = balance.share_out(rows, ranks, batch, equal=kind == "equal", hidden=hidden)
        largest = max(largest, *(_computed(part, rows, kind) for share in shared for part in share))
        parts = (part for shares in (own, shared) for share in shares for part in share)
        fullest = max(fullest, *(_computed(part, rows, "unpadded") for part in parts))
        for name, shares in (("own", own), ("shared", shared)):
            work = [sum(_computed(part, rows, kind) for part in share) for share in shares]
            totals[name] += sum(work)
            totals[f"{name}_step"] += max(work)
    scale = accumulation / micro_batches / steps
    return Padding(
        own=totals["own"] / sum(sample),
        shared=totals["shared"] / sum(sample),
        largest=largest,
        fullest=fullest,
        own_step=totals["own_step"] * scale,
        shared_step=totals["shared_step"] * scale,
    )


def _computed(part: balance.RowIndices, rows: list[int], kind: PaddingKind) -> int:
    lengths = [rows[row] for row in part]
    return sum(lengths) if kind == "unpadded" else len(lengths) * max(lengths)


# --- when the rows may be distributed by length -------------------------------------------------------------

_OTHER_ORDER = ("streaming", "packing", "group_by_length")
_OTHER_LOSS = ("label_smoothing_factor", "neftune_noise_alpha", "router_aux_loss_coef", "rpo_alpha")


def obstacle(config: Config) -> str | None:
    """Why the rows of a step cannot be distributed by length, or not without changing what is learned; None if they
    can."""
    task = _task(config)
    if task.loss_over != "tokens" and task.name not in ("dpo", "seq_cls"):
        return f"the loss of {task.name} depends on which rows share a micro-batch"
    if task.loss_over != "tokens" and config.get("padding_free"):
        return f'with "padding_free" the loss of {task.name} has not been verified'
    for name in _OTHER_ORDER:
        if config.get(name):
            return f'"{name}" determines the order of the rows'
    for name in _OTHER_LOSS:
        if config.get(name):
            return f'with "{name}" the loss depends on which rows share a micro-batch'
    if config.get("loss_type", "sigmoid" if task.name == "dpo" else None) not in (
        None,
        "sigmoid",
        ["sigmoid"],
    ):
        return '"loss_type" may depend on which rows share a micro-batch'
    if (config.get("sequence_parallel_size") or 1) > 1 or config.get("tuner_backend") == "unsloth":
        return "sequence parallelism and unsloth order rows themselves"
    return None


def padding_kind(config: Config) -> PaddingKind:
    """How the rows of a step may be distributed: a loss that is the mean over the rows of each micro-batch needs
    micro-batches of equal size; with ``padding_free`` nothing is padded."""
    if config.get("padding_free"):
        return "unpadded"
    return "padded" if _task(config).loss_over == "tokens" else "equal"


def _task(config: Config) -> tasks.Task:
    return tasks.task_of(config.command, config.get("rlhf_type"), config.get("task_type"))


# --- the fixed cost of a micro-batch ---------------------------------------------------------------------

_PEAKS = {
    "B200": (2250, 8.0), "H200": (989, 4.8), "H100 PCIe": (756, 2.0), "H100": (989, 3.35), "H800": (989, 3.35),
    "A100": (312, 2.0), "A800": (312, 2.0), "H20": (148, 4.0), "L40S": (362, 0.86), "L4": (121, 0.3),
    "A10": (125, 0.6), "A6000": (155, 0.77), "4090": (165, 1.01), "3090": (71, 0.94), "V100": (125, 0.9),
    "T4": (65, 0.32),
}  # fmt: skip
"""GPU names -> dense 16-bit TFLOP/s, memory bandwidth in TB/s (NVIDIA's data sheets)."""

_UNKNOWN_PEAK = (200, 1.0)

_CPU_TOKENS = 110

LAYER_SECONDS = 0.01
"""Minimum time per layer and micro-batch on a GPU, forward and backward: Python launches its kernels one by one.

Measured on one H100 (torch 2.11, transformers 5.17, LoRA in bfloat16): 16 ms in a Llama with 20 layers and 10 ms in one
with 32, both with 200 and with 1,000 tokens. A step of 16 rows took 1.3 s in micro-batches of 4, and 0.45 s in one.
"""

UTILISATION = 0.4
"""The share of a GPU's peak that training reaches: 0.46 at best (PaLM, Chowdhery et al. 2022, table 3)."""


def tokens_of_a_micro_batch(device: Device, shape: ModelShape | None = None, trains_all: bool = False) -> int:
    """The fixed cost of a micro-batch, in tokens.

    On a GPU it is the larger of two costs. By the roofline model (Williams, Waterman, Patterson 2009), each weight of 2
    bytes is read once for 2 operations per token, so that with fewer tokens than operations per byte reading takes all
    the time. And launching the kernels takes `LAYER_SECONDS` per layer. On a CPU it was measured (SmolLM2-135M, LoRA,
    float32, two cores of an Intel Xeon): 16 chats of mixed length take 6.9 s in 8 micro-batches with 1.03 times the
    tokens, and 6.1 s in 4 with 1.19 times, most of which are not computed (`machine.cpu`).

    Args:
        device: the device that computes.
        shape: dimensions of the model; without them only the roofline counts.
        trains_all: whether every weight is trained, with 6 operations per weight and token instead of 4.
    """
    if device.kind == "cpu":
        return _CPU_TOKENS
    known = (
        peak for name, peak in _PEAKS.items() if re.search(rf"(?<![A-Za-z0-9]){name}(?![0-9])", device.name)
    )
    teraflops, terabytes = next(known, _UNKNOWN_PEAK)
    if shape is None:
        return round(teraflops / terabytes)
    tokens_a_second = UTILISATION * teraflops * 1e12 / (shape.parameters * (6 if trains_all else 4))
    return round(max(teraflops / terabytes, shape.text.layers * LAYER_SECONDS * tokens_a_second))
