"""Whether a training run fits in memory, and the smallest change that makes it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from swift_toolkit.console.screen import gib
from swift_toolkit.machine import packages
from swift_toolkit.machine.device import GIB
from swift_toolkit.training.memory import estimate as memory_estimate
from swift_toolkit.training.memory import run as memory_run
from swift_toolkit.training.memory.estimate import Estimate
from swift_toolkit.training.memory.run import MemoryRun

_Word = Literal["fits", "tight", "does not fit", "unknown"]

ROOMY, FULL = 0.85, 0.97
"""Shares of a device's memory: a run up to the first fits, up to the second it is tight."""


@dataclass(frozen=True)
class Change:
    """A change of settings that may reduce memory.

    Args:
        settings: new values by ms-swift's names.
        flags: the command line flags that set them.
    """

    settings: Mapping[str, object]
    flags: Mapping[str, str]


@dataclass(frozen=True)
class Saving:
    """Flags that reduce the memory of a run, and the resulting bytes on a device."""

    flags: Mapping[str, str]
    total: int

    def __str__(self) -> str:
        return " ".join(f"--{name} {value}" for name, value in self.flags.items())


@dataclass(frozen=True)
class Verdict:
    """What is known about a run's memory before it starts.

    Args:
        run: the run of the estimate; None if the size of the model is unknown.
        word: the verdict.
        estimate: the estimate for the longest rows, known or assumed.
        filled: bytes on a device if rows fill ``max_length``; None if the data is known.
        saving: if it does not fit, a change that would make it fit, if there is one.
    """

    run: MemoryRun | None
    word: _Word = "unknown"
    estimate: Estimate | None = None
    filled: int | None = None
    saving: Saving | None = None

    def as_dict(self) -> dict[str, object]:
        """The verdict as plain data; sizes in bytes."""
        if self.run is None or self.estimate is None:
            return {"verdict": self.word}
        rows = self.run.rows
        return {
            "verdict": self.word,
            "estimate": self.estimate.total,
            "device": self.run.device_bytes or None,
            "parts": dict(self.estimate.parts),
            "host": self.estimate.host,
            "filled": self.filled,
            "rows": {
                "longest": rows.longest,
                "longest_val": rows.longest_val,
                "mean": rows.mean,
                "seen": rows.seen,
            },
            "model": {"parameters": self.run.shape.parameters, "source": self.run.shape.source},
            "advice": str(self.saving) if self.saving else None,
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines of the plan, as names and values."""
        if self.run is None or self.estimate is None:
            yield "memory", "unknown: neither a config.json nor the model's name gives its size"
            return
        device = "process" if self.run.kind == "cpu" else "device"
        total = f" of {gib(self.run.device_bytes)}" if self.run.device_bytes else ""
        word = "" if self.word == "unknown" else f", {self.word}"
        yield "memory", f"about {gib(self.estimate.total)}{total} per {device}{word}: {_parts(self.estimate)}"
        if self.estimate.host:
            yield "", f"and {gib(self.estimate.host)} of host memory per process"
        yield "", f"at the peak of {self.estimate.peak}, {self._rows()}"
        if self.word == "does not fit":
            yield (
                "to fit",
                f"{self.saving} (about {gib(self.saving.total)})" if self.saving else "more memory is needed",
            )

    def _rows(self) -> str:
        assert self.run is not None
        longest = max(self.run.rows.longest, self.run.rows.longest_val)
        if self.run.rows.seen:
            return f"with the longest row of the data, about {longest:,} tokens"
        text = f"assuming rows of {longest:,} tokens, because the data is not on this machine"
        return text if self.filled is None else f"{text}; {gib(self.filled)} if they fill max_length"


def _parts(estimate: Estimate) -> str:
    shown = [f"{name} {size / GIB:.1f}" for name, size in estimate.parts.items() if size > 0.05 * GIB]
    return ", ".join(shown)


def judge_memory(run: MemoryRun | None) -> Verdict:
    """Judge whether ``run`` fits; if not, find a change that would make it fit."""
    if run is None:
        return Verdict(None)
    estimate = memory_estimate.estimate(run)
    full = memory_run.filled(run)
    filled = None if full is run else memory_estimate.estimate(full).total
    word = word_for(estimate.total, run.device_bytes)
    saving = smallest(run) if word == "does not fit" else None
    return Verdict(run, word, estimate, filled, saving)


def word_for(size: int, device: int) -> _Word:
    """Whether a run of ``size`` bytes fits on a device with ``device`` bytes (0 if unknown)."""
    if not device:
        return "unknown"
    return "fits" if size <= ROOMY * device else "tight" if size <= FULL * device else "does not fit"


# --- savings ------------------------------------------------------------------------------------------------


def savings(run: MemoryRun) -> list[Saving]:
    """Changes that need less memory, each in addition to the previous ones, least intrusive first."""
    found: list[Saving] = []
    for change in _changes(run):
        smaller = _with(run, [change])
        total = memory_estimate.estimate(smaller).total
        if total < 0.995 * memory_estimate.estimate(run).total:
            run = smaller
            found.append(Saving(change.flags, total))
    return found


def smallest(run: MemoryRun) -> Saving | None:
    """The fewest changes that make ``run`` fit; None if even all of them do not."""
    chosen: list[Change] = []
    for change in _changes(run):
        before = memory_estimate.estimate(_with(run, chosen)).total
        if memory_estimate.estimate(_with(run, [*chosen, change])).total < 0.995 * before:
            chosen.append(change)
        if not _fits(run, chosen):
            continue
        for one in list(chosen):
            rest = [other for other in chosen if other is not one]
            chosen = rest if _fits(run, rest) else chosen
        flags = {name: value for one in chosen for name, value in one.flags.items()}
        return Saving(flags, memory_estimate.estimate(_with(run, chosen)).total)
    return None


def _with(run: MemoryRun, changes: Sequence[Change]) -> MemoryRun:
    return run.but(**{name: value for change in changes for name, value in change.settings.items()})


def _fits(run: MemoryRun, changes: Sequence[Change]) -> bool:
    return word_for(memory_estimate.estimate(_with(run, changes)).total, run.device_bytes) in (
        "fits",
        "tight",
    )


def _changes(run: MemoryRun) -> Iterator[Change]:
    """Changes that need less memory: first those that cost only time, then those that cost precision, then those that
    need more devices or host memory."""
    batch = run.value("per_device_train_batch_size")
    if batch > 1:
        yield _plain(per_device_train_batch_size=1, gradient_accumulation_steps=batch * run.accumulation)
    if run.value("gradient_checkpointing") is False:
        yield _plain(gradient_checkpointing=True)
    if run.tuner == "lora" and not run.value("quant_bits") and run.shape.bits == 16 and not run.shape.encoder:
        yield Change({"quant_bits": 4, "quant_method": "bnb"}, {"train_type": "qlora"})
    shards = run.kind in ("cuda", "npu") and not run.value("fsdp") and not run.value("quant_bits")
    if not (shards and packages.is_installed("deepspeed")):
        if shards and run.devices > 1 and not run.value("device_map"):
            yield _plain(device_map="auto")
        return
    stages = ["zero2", "zero3"] if run.world > 1 else []
    for stage in [*stages, "zero2_offload", "zero3_offload"]:
        if stage == run.value("deepspeed"):
            continue
        change = _plain(deepspeed=stage)
        if stage.startswith("zero3"):  # it cannot divide quantised weights
            change = Change({**change.settings, "quant_bits": None}, change.flags)
        yield change


def _plain(**settings: object) -> Change:
    return Change(settings, {name: str(value).lower() for name, value in settings.items()})
