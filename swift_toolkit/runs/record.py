"""The record of a run: its result and the links to its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from swift_toolkit.machine import files, packages
from swift_toolkit.runs.directory import link

JsonObject: TypeAlias = dict[str, Any]
"""An object in a JSON file of a run, such as args.json."""

Status = Literal["done", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Args:
        status: ``done``; ``stopped`` on request, after saving a checkpoint; ``interrupted`` at once; ``failed``.
        run_directory: ``<output_dir>/vN-<time>``, with ``train.log`` and ``result.json``.
        last_checkpoint: the newest checkpoint; None if there is none.
        best_checkpoint: the checkpoint with the best evaluation; None without evaluation.
        steps: optimiser steps done.
        metrics: ``final_loss``, ``best_loss`` and everything else that ms-swift measured, e.g. ``eval_loss``.
        seconds: wall-clock time of ``startup`` and ``training``, and the ``total``.
    """

    status: Status
    run_directory: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """What result.json holds besides the result.

    Args:
        config: every setting by name.
        sources: where each value comes from.
        data: what was found in the data.
        model_parameters: the size of the model, in ms-swift's words.
        rows: rows of each split as found, loaded and used.
        learned: what the template said of some rows before the model was loaded; None if it was not asked.
        tokens_per_row: of the training and validation data, in ms-swift's words.
        memory: bytes on a device: the peak and the estimate.
    """

    config: Mapping[str, object]
    sources: Mapping[str, str]
    data: Mapping[str, object]
    model_parameters: object
    rows: Mapping[str, object]
    learned: object
    tokens_per_row: Mapping[str, object]
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class Recorder:
    """Writes the record of a run.

    Args:
        directory: the run directory, where result.json is written.
        root: where ``last`` and ``best`` are linked.
    """

    directory: Path
    root: Path

    def link(self, last: str | None, best: str | None) -> None:
        """Point ``last`` and ``best`` to these checkpoints; None keeps a link as it is."""
        link(self.root, "last", last)
        link(self.root, "best", best)

    def write(self, result: TrainingResult, error: str, details: RunDetails) -> None:
        """Write result.json.

        Args:
            result: the result of the run.
            error: why it failed; "" if it did not.
            details: everything else.

        Raises:
            OSError: the file cannot be written.
        """
        content = {**asdict(result), "error": error or None, "versions": packages.versions(), **vars(details)}
        files.write_json(self.directory / "result.json", content)


SAME_VERSIONS = ("swift-toolkit", "ms-swift", "torch", "transformers", "peft", "accelerate", "deepspeed")
"""Packages that must be the same on every node."""


class Interrupted(KeyboardInterrupt):
    """A run was ended by Ctrl-C or SIGTERM.

    Args:
        result: the result of the run.
        cause: the interrupt that ended it.
    """

    def __init__(self, result: TrainingResult, cause: KeyboardInterrupt) -> None:
        super().__init__()
        self.result, self.cause = result, cause
