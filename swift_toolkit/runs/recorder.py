"""Writes the record of a run: its plan, measurements, result, report, and the links to its checkpoints."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from swift_toolkit.console import screen
from swift_toolkit.machine import files, packages
from swift_toolkit.problems import first_line
from swift_toolkit.runs import page
from swift_toolkit.runs.directory import link, unlink_missing
from swift_toolkit.runs.record import MEASURED, PLAN, RESULT, RunDetails, RunPlan, TrainingResult


class Recorder:
    """Writes the record of a run.

    Args:
        directory: the run directory.
        root: directory of the links ``last`` and ``best``.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory, self.root = directory, root
        self._reported = 0.0  # time of the last report
        self._failed = self._ended = False

    def begin(self, plan: RunPlan) -> None:
        """Write plan.json, and remove the result of an earlier part of the run.

        Raises:
            OSError: it cannot be written.
        """
        (self.directory / RESULT).unlink(missing_ok=True)
        files.write_json(self.directory / PLAN, asdict(plan))

    def link(self, last: str | None, best: str | None) -> None:
        """Point ``last`` and ``best`` to these checkpoints; None leaves a link unchanged."""
        link(self.root, "last", last)
        link(self.root, "best", best)

    def unlink_missing(self) -> None:
        """Remove links whose checkpoint no longer exists."""
        unlink_missing(self.root)

    def measure(self, step: int, max_steps: int, memory: int) -> None:
        """Append a measurement, and write the report if the last one is old.

        Args:
            step: the step that ended.
            max_steps: the planned steps.
            memory: peak memory of a device in bytes; 0 if unknown.
        """
        line = {
            "global_step/max_steps": f"{step}/{max_steps}",
            "time": round(time.time(), 3),
            "memory": memory,
        }
        with suppress(OSError), (self.directory / MEASURED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if time.monotonic() > self._reported + page.REFRESH_SECONDS:
            self.report()

    def report(self) -> None:
        """Write the report. A failure never ends the run; the run itself reports disk problems."""
        try:
            with suppress(OSError):
                page.write_run_report(self.directory, running=not self._ended)
        except Exception as error:  # no failure of the report may end the run
            if not self._failed:
                screen.say(f"cannot write the report of {self.directory}: {first_line(error)}")
            self._failed = True
        self._reported = time.monotonic()

    def write(self, result: TrainingResult, error: str, details: RunDetails) -> None:
        """Write result.json.

        Args:
            result: the result of the run.
            error: why it failed; "" if it did not.
            details: everything else.

        Raises:
            OSError: the file cannot be written.
        """
        content = {
            **asdict(result),
            "error": error or None,
            "versions": packages.versions(),
            **asdict(details),
        }
        self._ended = True
        files.write_json(self.directory / RESULT, content)
