"""Restart a run once with half the micro-batch after the device ran out of memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from swift_toolkit.config.settings import Config, Setting, Source
from swift_toolkit.machine import failure
from swift_toolkit.runs import resume
from swift_toolkit.training.job import Job
from swift_toolkit.training.monitor.ending import Ending
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.resume import resume_from


@dataclass(frozen=True)
class Halved:
    """A batch divided differently: half as many rows at once, twice as often.

    Args:
        rows: of a micro-batch.
        accumulation: micro-batches of a step.
    """

    rows: int
    accumulation: int


def halved(config: Config, lacks_memory: bool, tried: bool) -> Halved | None:
    """How to continue after a run failed; None if it should not restart automatically.

    Only with ``effective_batch_size``: the user then chose the rows of a step, but not how they are divided.

    Args:
        config: the settings of the run that failed.
        lacks_memory: it failed because memory ran out.
        tried: it has already been restarted.
    """
    rows = int(config.value("per_device_train_batch_size"))
    if not lacks_memory or tried or config.effective_batch is None or rows < 2 or rows % 2:
        return None
    return Halved(rows // 2, 2 * int(config.value("gradient_accumulation_steps") or 1))


def lacks_memory(ending: Ending) -> bool:
    """Whether a run ended because a process reported that memory ran out."""
    failures = ending.state.failures
    if not failures or ending.interrupt is not None or ending.refused or ending.alarm:
        return False
    return failure.reason(failures, ending.exit_status, ending.log)[1]


def with_batch(plan: TrainingPlan, batch: Halved) -> TrainingPlan:
    """``plan`` with its batch divided differently."""
    source = Source("automatic", "half the rows at once because memory ran out")
    values = {"per_device_train_batch_size": batch.rows, "gradient_accumulation_steps": batch.accumulation}
    settings = plan.config.settings | {name: Setting(value, source, name) for name, value in values.items()}
    return replace(plan, config=replace(plan.config, settings=settings))


def restarted(job: Job, batch: Halved) -> Job:
    """The run in the same directory, from its newest complete checkpoint, with its batch divided differently."""
    plan = with_batch(job.plan, batch)
    point = resume.find_resumable(job.directory)
    if point is None:
        point = resume.ResumePoint(job.directory)
    resume.tidy(point, job.checked.output.root)
    if point.checkpoint is not None:
        resume_from(plan, point.checkpoint, f"restart from step {point.step}")
    return replace(job, plan=plan, point=point)
