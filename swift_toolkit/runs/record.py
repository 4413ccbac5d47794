"""What is kept of a run: its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["done", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Args:
        status: ``done``; ``stopped`` on request after a last checkpoint; ``interrupted`` at once; ``failed``.
        run_directory: ``<output_dir>/vN-<time>``, with ``train.log`` and ``result.json``.
        last_checkpoint: the newest checkpoint, None if there is none.
        best_checkpoint: the one with the best evaluation, None without evaluation.
        steps: optimiser steps done.
        metrics: ``final_loss``, ``best_loss`` and what ms-swift measured besides, e.g. ``eval_loss``.
        seconds: wall clock of the parts, ``startup`` and ``training``, and ``total``.
    """

    status: Status
    run_directory: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Interrupted(KeyboardInterrupt):
    """A run ended by Ctrl-C or SIGTERM.

    Args:
        result: what it left behind.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause
