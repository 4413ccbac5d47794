"""What is kept of a run: its result, and links to its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from swift_toolkit.machine import files, packages
from swift_toolkit.runs.directory import link

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
        metrics: ``final_loss``, ``best_loss`` and whatever else ms-swift measured, e.g. ``eval_loss``.
        seconds: wall clock of the parts, ``startup`` and ``training``, and ``total``.
    """

    status: Status
    run_directory: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorder:
    """Writes down what becomes of a run.

    Args:
        directory: of the run, where result.json goes.
        root: where ``last`` and ``best`` are linked.
    """

    directory: Path
    root: Path

    def link(self, last: str | None, best: str | None) -> None:
        """Let ``last`` and ``best`` name these checkpoints; None leaves a link as it is."""
        link(self.root, "last", last)
        link(self.root, "best", best)

    def write(self, result: TrainingResult, error: str, more: Mapping[str, Any]) -> None:
        """Write result.json.

        Args:
            result: of the run.
            error: why it failed; "" if it did not.
            more: further content.

        Raises:
            OSError: it cannot be written.
        """
        content = {**asdict(result), "error": error or None, "versions": packages.versions(), **more}
        files.write_json(self.directory / "result.json", content)


SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""Packages that must be the same on every node."""


class Interrupted(KeyboardInterrupt):
    """A run ended by Ctrl-C or SIGTERM.

    Args:
        result: what it left behind.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause
