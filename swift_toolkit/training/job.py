"""A run that is about to start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swift_toolkit.dataset import copies
from swift_toolkit.runs.resume import ResumePoint
from swift_toolkit.training.checked import CheckedRequest
from swift_toolkit.training.plan import TrainingPlan


@dataclass(frozen=True)
class Job:
    """A checked request that is about to run.

    Args:
        checked: the request.
        plan: the plan, with the run's directory among its settings.
        directory: the run directory; a temporary one for a process that joins a run shown by another process.
        left_out: the skipped bad rows, as reported by `dataset.copies`.
        verbose: also show everything that ms-swift prints.
        point: the checkpoint that it resumes from; None if it starts from the beginning.
    """

    checked: CheckedRequest
    plan: TrainingPlan
    directory: Path
    left_out: copies.PreparedDict
    verbose: bool = False
    point: ResumePoint | None = None
