"""Advice on how to save memory, or how to train faster with the available memory."""

from __future__ import annotations

from collections.abc import Iterator

from swift_toolkit.config.settings import Config
from swift_toolkit.console.screen import gib
from swift_toolkit.machine import packages
from swift_toolkit.training.memory import fitting
from swift_toolkit.training.memory.estimate import estimate
from swift_toolkit.training.memory.run import MemoryRun


def when_memory_ran_out(run: MemoryRun | None, config: Config) -> list[str]:
    """Changes to try, least intrusive first, with the numbers of this run.

    Args:
        run: what determines its memory; None if unknown.
        config: the settings.
    """
    advice = [f"{one} (about {gib(one.total)})" for one in fitting.savings(run)] if run else []
    if (length := config.get("max_length")) and length > 512:
        advice.append(f"--max_length {length // 2}")
    if config.preset == "full":
        advice.append("--train_type lora (without the settings of full training)")
    return advice or ["a machine with more memory"]


LOGITS_SHARE = 0.15
"""Share of the memory above which reducing the logits pays off."""


def suggestions(run: MemoryRun | None) -> Iterator[str]:
    """Changes that would save time or memory on a GPU, with their conditions; the user decides."""
    if run is None or run.kind != "cuda":
        return
    yield from _fuller_batches(run)
    expected = estimate(run)
    logits = expected.parts.get("logits", 0)
    if not run.value("use_liger_kernel") and logits > LOGITS_SHARE * expected.total:
        needs = (
            " (needs liger-kernel and a model it supports)"
            if packages.not_installed(["liger_kernel"])
            else ""
        )
        yield f"--use_liger_kernel true{needs}: saves most of the {gib(logits)} of logits"


def _fuller_batches(run: MemoryRun) -> Iterator[str]:
    """Advice to save padding with flash attention."""
    if run.value("command") != "sft" or run.value("packing") or run.rows.images:
        return
    flash = "--attn_impl flash_attn" + (
        " (needs flash-attn)" if packages.not_installed(["flash_attn"]) else ""
    )
    limit = run.value("max_length")
    if run.rows.seen and limit and limit > 4 * run.rows.mean:
        yield (
            f"--packing true {flash}: packs rows of about {run.rows.mean} tokens into sequences of {limit}; "
            "a step then learns from more rows, so adjust the batch size"
        )
    elif not run.value("padding_free") and run.value("per_device_train_batch_size") > 1:
        yield f"--padding_free true {flash}: no computation is wasted on padding"
