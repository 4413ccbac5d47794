"""The inputs of the memory estimate: a run's settings, the size of its model, the length of its rows.

The length of rows on a hub is assumed from known figures of public data sets (hub_datasets.json).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from swift_toolkit.config import fields
from swift_toolkit.config.tasks import Task, task_of
from swift_toolkit.dataset.rows.media import SPEAKS_OF_MEDIA
from swift_toolkit.dataset.verify import DataReport
from swift_toolkit.machine.msswift import Command, SwiftInstall, installed
from swift_toolkit.model.shape import ModelShape
from swift_toolkit.training.batches.batch import BatchSettings, batch_of

UNSEEN_LONGEST, UNSEEN_MEAN, UNSEEN_LABELLED = 1024, 160, 256
"""Assumed text tokens of hub data: of the longest and the average row, typical of public chat data (Alpaca), and of the
longest labelled text, between the usual 128 of GLUE and the 512 of encoders."""


@dataclass(frozen=True)
class Rows:
    """Length of the rows of the data.

    Args:
        longest: text tokens of the longest training row.
        mean: text tokens of the average training row.
        longest_val: text tokens of the longest validation row.
        images: the maximum number of images in a row.
        seen: whether these numbers come from the data; otherwise they are assumed.
    """

    longest: int = UNSEEN_LONGEST
    mean: int = UNSEEN_MEAN
    longest_val: int = UNSEEN_LONGEST
    images: int = 0
    seen: bool = False


def rows_of_run(settings: BatchSettings, report: DataReport, sees: bool) -> Rows:
    """The length of the rows of a run, measured, or assumed if the rows are not on this machine.

    Args:
        settings: the settings of the run.
        report: what was found in its data.
        sees: whether the model takes images or sound.
    """
    rows = _rows(report, settings)
    return replace(rows, images=1) if sees and (not rows.seen or _has_media(report)) else rows


def _rows(report: DataReport, settings: BatchSettings) -> Rows:
    if not report.tokens:
        return _assumed(settings)
    seen = rows_of(report)
    if seen.seen:
        return seen
    assumed = _assumed(settings)
    longest, longest_val = max(seen.longest, assumed.longest), max(seen.longest_val, assumed.longest_val)
    return replace(assumed, longest=longest, longest_val=longest_val)


def rows_of(report: DataReport) -> Rows:
    """The measured length of the rows."""
    count = report.tokens.total()
    mean = (
        sum(tokens * rows for tokens, rows in report.tokens.items()) // max(count, 1) + report.token_step // 2
    )
    longest = report.longest["train"]
    return Rows(longest, mean, report.longest["val"] or longest, seen=not report.unchecked)


def _has_media(report: DataReport) -> bool:
    """Whether the beginning of a file mentions images, videos or sound."""
    for file in report.files:
        with Path(file.path).expanduser().open("rb") as beginning:
            if SPEAKS_OF_MEDIA.search(beginning.read(1 << 16)):
                return True
    return False


def _assumed(settings: BatchSettings) -> Rows:
    """The assumed length of rows that are not on this machine.

    The figures of ms-swift's documentation for its data sets (hub_datasets.json: mean and longest, counted with
    Qwen2.5's tokenizer, without system prompts and not always with images) can only increase the longest.
    """
    task = task_of(
        settings.value("command") or "sft", settings.value("rlhf_type"), settings.value("task_type")
    )
    labelled = task.output in ("class", "embedding")
    longest = UNSEEN_LABELLED if labelled else UNSEEN_LONGEST
    known = json.loads(Path(__file__).with_name("hub_datasets.json").read_text(encoding="utf-8"))
    names = [str(name) for key in ("dataset", "val_dataset") for name in settings.value(key) or []]
    ids = [re.sub(r"^(HF|MS)::|[#:].*$", "", name) for name in names]
    found = [known[name] for name in ids if name in known]
    longest = max([longest, *(most for _, most in found)])
    return Rows(longest, max((mean for mean, _ in found), default=UNSEEN_MEAN), longest)


@dataclass(frozen=True)
class MemoryRun:
    """The inputs of the memory estimate of a run.

    Args:
        settings: values by ms-swift's names; the tuner is ``tuner_type``, ms-swift's command is ``command``.
        shape: dimensions of the model.
        rows: length of the rows.
        kind: kind of device, by torch's name.
        devices: number of used devices of this machine.
        world: number of processes on all machines, each with its own batch.
        device_bytes: memory of one device; 0 if unknown.
        others: parameters of other models: reference, reward, teacher.
        grows_segments: whether PyTorch's allocator leaves no gaps, see `launch.Launch.grows_segments`.
        largest: size of the largest micro-batch, in rows of the longest length; 0 if it can be the whole batch, because
            the rows of a step are not distributed by length.
        fullest: the most tokens of a micro-batch without its padding; 0 if they can be as many as with it.
        install: the installed ms-swift.
    """

    settings: Mapping[str, object]
    shape: ModelShape
    rows: Rows
    kind: Literal["cpu", "cuda", "npu", "mps"] = "cuda"
    devices: int = 1
    world: int = 1
    device_bytes: int = 0
    others: int = 0
    grows_segments: bool = False
    largest: float = 0.0
    fullest: int = 0
    install: SwiftInstall = field(default_factory=installed)

    def value(self, name: str) -> Any:
        """A setting, or ms-swift's default."""
        if name in self.settings:
            return self.settings[name]
        return fields.default(name, self.command, self.install)

    def but(self, **changes: object) -> MemoryRun:
        """The same run with other settings."""
        run = replace(self, settings={**self.settings, **changes})
        return run.with_sizes(0.0, 0) if "per_device_train_batch_size" in changes else run

    def with_sizes(self, largest: float, fullest: int) -> MemoryRun:
        """The same run with other micro-batches."""
        return replace(self, largest=largest, fullest=fullest)

    @property
    def command(self) -> Command:
        """ms-swift's command."""
        return cast("Command", self.settings.get("command", "sft"))

    @property
    def width(self) -> int:
        """Bytes per number in the computation type."""
        return 4 if self.value("torch_dtype") == "float32" else 2

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps."""
        return batch_of(self, self.world).accumulation

    @property
    def longest_rows(self) -> float:
        """Size of the largest batch on one device, in rows of the longest length."""
        return self.largest or float(self.value("per_device_train_batch_size"))

    @property
    def task(self) -> Task:
        return task_of(self.value("command") or "sft", self.value("rlhf_type"), self.value("task_type"))

    @property
    def tuner(self) -> str:
        return str(self.value("tuner_type") or "lora")

    @property
    def whole(self) -> bool:
        """Whether the tuner changes the model's own weights."""
        return self.tuner in ("full", "lisa", "llamapro")


def filled(run: MemoryRun) -> MemoryRun:
    """The same run with rows that fill ``max_length``, if the length of the rows is unknown."""
    limit = run.value("max_length") or 0
    if run.rows.seen or run.value("packing") or limit <= run.rows.longest:
        return run
    return replace(run, rows=replace(run.rows, longest=limit, mean=limit, longest_val=limit))
