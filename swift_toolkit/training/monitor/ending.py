"""The end of a training run: its result, the reason for a failure, and the exception."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swift_toolkit.console import screen
from swift_toolkit.machine import failure
from swift_toolkit.machine.process import Terminated
from swift_toolkit.problems import Problem, RequestError, RunError
from swift_toolkit.runs import storage
from swift_toolkit.runs.record import Interrupted, Status, TrainingResult
from swift_toolkit.training.monitor.watch import Alarm, Watch
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process.events import RunState

ENDS_EARLY = ("early_stop_interval", "max_epochs", "callbacks", "external_plugins", "deepspeed_elastic")
"""Settings with which ms-swift may stop before the last planned step."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The outcome of the processes of a run.

    Args:
        state: the state that they reported.
        exit_status: of the started process; a negative value is the number of a signal.
        directory: the run directory.
        log: the file with all their output.
        started: when the process was started, in seconds since the epoch.
        interrupt: Ctrl-C or SIGTERM that ended the run.
        refused: problems of the data.
        watch: signs that the run went wrong.
        keeps_going: whether the run continues after alarms.
    """

    state: RunState
    exit_status: int
    directory: Path
    log: Path
    started: float
    interrupt: KeyboardInterrupt | None = None
    refused: Sequence[Problem] = ()
    watch: Watch = field(default_factory=Watch)
    keeps_going: bool = False

    @property
    def alarm(self) -> Alarm | None:
        """The alarm that ended the run, or would have ended it."""
        stopping = (alarm for alarm in self.watch.alarms if alarm.stops)
        return None if self.keeps_going else next(stopping, None)

    @property
    def is_complete(self) -> bool:
        """Whether the last step is done."""
        return self.state.done is not None and self.state.steps >= self.state.max_steps

    def status(self, plan: TrainingPlan) -> Status:
        """The status of the run."""
        if self.alarm is not None or not self.log.exists():  # without its log, the run directory was removed
            return "failed"
        if self.state.done is None:
            return "interrupted" if self.interrupt is not None else "failed"
        if self.is_complete and self.interrupt is None:
            return "done"
        if self.state.done.stopped:
            return "stopped"
        return "done" if self.is_complete or any(map(plan.config.get, ENDS_EARLY)) else "failed"

    def result(self, plan: TrainingPlan) -> TrainingResult:
        """The result for the user."""
        state, now = self.state, time.time()
        seconds = {"startup": (state.begun or now) - self.started, "total": now - self.started}
        seconds["training"] = (state.ended or now) - state.begun if state.begun else 0.0
        metrics = {key: value for key, value in state.metrics.items() if key not in ("loss", "epoch")}
        if "last" in (losses := state.losses):
            best = losses.get("least_eval", losses["least"])
            metrics |= {"final_loss": losses["last"], "best_loss": best}
        return TrainingResult(
            self.status(plan),
            self.directory,
            Path(state.last) if state.last else None,
            Path(state.best) if state.best else None,
            state.steps,
            metrics,
            {key: round(value, 2) for key, value in seconds.items()},
        )

    def reason(self, plan: TrainingPlan, what: str = "Training") -> str:
        """Why the run failed and what to do, in one or more lines.

        Args:
            plan: the plan of the run, whose settings the advice refers to.
            what: what failed.
        """
        if self.state.differences:
            return "\n".join(self.state.differences)
        if self.refused:
            return "\n".join(map(str, self.refused))
        return "\n".join(self._reason(plan, what))

    def _reason(self, plan: TrainingPlan, what: str) -> Iterator[str]:
        if (alarm := self.alarm) is not None:
            yield f"{what} failed at step {alarm.step}: {alarm.what}. Full log: {self.log}"
            yield f"{alarm.do} To continue despite this, add --keep-going."
            if self.state.last:
                yield self._resume_line(self.state.last)
            return
        said = "\n".join(f"{one.type}: {one.message}" for one in self.state.failures)
        if trouble := storage.trouble(self.directory, self.log, said):
            cause, do = trouble
            yield f"{what} failed: {cause}." + (f" Full log: {self.log}" if self.log.exists() else "")
            yield from self.checkpoint_lines(do)
            return
        cause, lacks_memory = self._cause(plan)
        yield f"{what} failed: {cause}. Full log: {self.log}"
        if lacks_memory:
            yield "Out of memory? In this order, try:"
            yield from (f"  {line}" for line in plan.memory_advice)
        elif self.state.last:
            yield self._resume_line(self.state.last)

    @staticmethod
    def _resume_line(checkpoint: str) -> str:
        return f"To resume from {screen.short_path(Path(checkpoint))}, run the same command with --resume."

    def checkpoint_lines(self, do: str) -> Iterator[str]:
        """The existing checkpoints, and how to continue after the user has followed ``do``."""
        found = storage.checkpoints(self.directory)
        if found.torn:
            yield f"Incomplete checkpoints, to be deleted: {_listed(found.torn)}"
        if not found.whole:
            yield f"No complete checkpoint was saved. {do}"
            return
        yield f"Complete checkpoints: {_listed(found.whole)}"
        yield f"{do} Then run the same command with --resume."

    def _cause(self, plan: TrainingPlan) -> tuple[str, bool]:
        """The cause in one line, and whether memory ran out."""
        state, cluster = self.state, plan.cluster
        if not state.pid and cluster.nodes > 1:
            return f"the nodes could not connect to each other at {cluster.address}:{cluster.port}", False
        if state.done is not None:
            return f"it ended unexpectedly at step {state.steps} of {state.max_steps}", False
        return failure.reason(state.failures, self.exit_status, self.log)

    def raise_if_not_done(self, result: TrainingResult, reason: str) -> None:
        """Raise an exception if the run did not finish.

        Raises:
            RequestError: the data or the request was rejected.
            RunError: the run failed.
            Interrupted: it was interrupted, by the user or by a signal to the training process.
        """
        if self.state.differences:
            raise RequestError([Problem(line.removesuffix(".")) for line in self.state.differences])
        if self.refused:
            raise RequestError(list(self.refused))
        if result.status == "failed":
            raise RunError(reason)
        if self.interrupt is not None or result.status == "stopped":
            raise Interrupted(result, self.interrupt or Terminated()) from None


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(screen.short_path, paths))
