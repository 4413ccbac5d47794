"""Batch arithmetic: rows, processes, accumulation, steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from swift_toolkit.config import requirements
from swift_toolkit.config.settings import Config
from swift_toolkit.config.tasks import Task
from swift_toolkit.problems import Problem

_LEAST_ROWS = 16
"""Rows of a step that ms-swift accumulates by default (``TrainArgumentsMixin.__post_init__``)."""


class BatchSettings(Protocol):
    """Settings by ms-swift's names, and the training task."""

    @property
    def task(self) -> Task: ...

    def value(self, name: str, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one optimiser step.

    Args:
        rows: rows of a micro-batch on one device.
        accumulation: micro-batches of an optimiser step on one device.
        feeders: processes with their own rows; with sequence parallelism several processes share a row.
    """

    rows: int
    accumulation: int
    feeders: int

    @property
    def effective(self) -> int:
        """Rows of an optimiser step across all processes of all nodes."""
        return self.rows * self.accumulation * self.feeders

    def steps(self, rows: int, epochs: float, *, drops_last: bool = False) -> int:
        """Number of optimiser steps for ``epochs`` over ``rows``.

        Counted as in transformers.Trainer: ``ceil(epochs * ceil(batches / accumulation))``.

        Args:
            rows: rows of an epoch.
            epochs: as given.
            drops_last: an incomplete batch at the end of an epoch is dropped.
        """
        whole = rows / (self.rows * self.feeders)
        batches = math.floor(whole) if drops_last else math.ceil(whole)
        return math.ceil(epochs * max(1, math.ceil(batches / self.accumulation)))


def batch_of(settings: BatchSettings, world: int) -> Batch:
    """The batch of a run with ``world`` processes."""
    rows = int(settings.value("per_device_train_batch_size"))
    given = settings.value("gradient_accumulation_steps")
    least = _LEAST_ROWS if settings.task.batch_of == "rows" else 1
    accumulation = int(given or max(1, math.ceil(least / (rows * world))))
    return Batch(rows=rows, accumulation=accumulation, feeders=feeders(settings, world))


def feeders(settings: BatchSettings, world: int) -> int:
    """How many of ``world`` processes have their own rows."""
    return max(1, world // (settings.value("sequence_parallel_size") or 1))


def batch_problems(config: Config, world: int) -> Iterator[Problem]:
    """Problems of the requested batch size with ``world`` processes."""
    wish = config.effective_batch
    if wish is None:
        return
    batch, steps = config.get("per_device_train_batch_size"), config.get("gradient_accumulation_steps")
    sharing = feeders(config, world)
    fixed = sharing * (batch or 1) * (steps or 1)
    if wish.value % fixed == 0 and (wish.value == fixed or not (batch and steps)):
        return
    parts = [f"{sharing} process(es)"]
    parts += [f"{batch} rows per device"] if batch else []
    parts += [f"{steps} accumulated"] if steps else []
    product = " × ".join(parts)
    if batch and steps:
        yield wish.problem(f"is {wish.value}, but {product} are {fixed}", "Remove one of them.")
        return
    near = max(1, round(wish.value / fixed)) * fixed
    yield wish.problem(f"is {wish.value}, which is not a multiple of {product}", f"Use {near}.")


def rows_of_no_step(config: Config, world: int, rows: int | None) -> Iterator[Problem]:
    """A problem if the rows do not fill one batch: ms-swift drops them, and trains nothing.

    That holds for the answers of GRPO, and for the rows of GKD in ms-swift 4.
    """
    if rows is not None and config.task.batch_of == "answers":
        yield from _answers_of_no_batch(config, feeders(config, world), rows)
    if rows is None or config.task.name != "gkd" or not config.install.drops_rows_of_gkd:
        return
    wanted = config.effective_batch.value if config.effective_batch else batch_of(config, world).effective
    if rows < wanted:
        what = (
            f"makes a step of {wanted} rows, but there are {rows}, and ms-swift drops a step that is not full"
        )
        yield config.problem("gradient_accumulation_steps", what, "Use a smaller one, or more rows.")


def _answers_of_no_batch(config: Config, sharing: int, prompts: int) -> Iterator[Problem]:
    wanted, count = requirements.generation_batch(config, sharing), config.value("num_generations")
    if 0 < prompts * count < wanted:
        what = (
            f"is {count}, and {prompts} prompts make {prompts * count} answers: less than a batch of {wanted}"
        )
        do = "Use more rows, or a smaller per_device_train_batch_size or gradient_accumulation_steps."
        yield config.problem("num_generations", what, do)


def step_count(config: Config, batch: Batch, rows: int | None) -> int | None:
    """Optimiser steps of the run; None if the number of rows is unknown."""
    steps, most = config.value("max_steps"), config.get("max_epochs")
    is_counted = rows is not None and not config.get("streaming") and not config.get("packing")
    if steps > 0 and not (most and is_counted):
        return int(steps)
    if rows is None or not is_counted:
        return None
    if steps > 0:  # the run ends with the first of the two
        return min(int(steps), batch.steps(rows, most, drops_last=bool(config.get("dataloader_drop_last"))))
    epochs: float = min(config.value("num_train_epochs"), most or math.inf)
    if config.task.name == "ppo":  # TRL counts whole batches of answers
        return math.ceil(int(epochs * rows) / batch.effective)
    if config.task.batch_of == "answers":
        return math.ceil(epochs * _answer_steps(config, batch, rows))
    return batch.steps(rows, epochs, drops_last=bool(config.get("dataloader_drop_last")))


def _answer_steps(config: Config, batch: Batch, prompts: int) -> int:
    """Optimiser steps of one epoch of GRPO, whose batches contain answers: ``num_generations`` per prompt.

    Counted as in TRL's RepeatSampler: an incomplete generation batch is dropped, and each batch is trained on in
    ``steps_per_generation`` parts, ``num_iterations`` times.
    """
    generated = requirements.generation_batch(config, batch.feeders)
    parts = max(1, generated // (batch.rows * batch.feeders))
    rounds: int = prompts * config.value("num_generations") // generated
    return int(max(1, rounds * parts * config.value("num_iterations") // batch.accumulation))
