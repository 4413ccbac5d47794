"""Follow the processes of a run: show, record and watch their events until they end.

The processes run `training.process.worker`. Their events are folded into a `RunState`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from swift_toolkit.machine import packages
from swift_toolkit.machine.files import size_of
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem
from swift_toolkit.runs.record import SAME_VERSIONS
from swift_toolkit.runs.recorder import Recorder
from swift_toolkit.runs.resume import ResumePoint
from swift_toolkit.runs.storage import free_bytes
from swift_toolkit.training import preflight
from swift_toolkit.training.job import Job
from swift_toolkit.training.monitor.data_check import DataCheck
from swift_toolkit.training.monitor.ending import Ending
from swift_toolkit.training.monitor.progress import TrainingLine
from swift_toolkit.training.monitor.watch import Watch
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process import events, worker
from swift_toolkit.training.process.events import RunEvent, RunState, fold

FAILED_FOR = 15.0
"""Seconds after the failure of a process until a run that does not end by itself is ended."""

ONE_PRESS = 0.5
"""Interrupts within this number of seconds count as one: a wrapper such as timeout(1) sends each signal twice."""

DISK_SECONDS = 10.0
"""Interval between checks of the free disk space, in seconds."""

STACKS_SECONDS = 2.0
"""How long the ranks of a stalled run may take to write their Python stacks, in seconds."""


def follow(
    job: Job,
    line: TrainingLine,
    check: DataCheck | None = None,
    recorder: Recorder | None = None,
    watch: Watch | None = None,
) -> Ending:
    """Start the processes of a run and follow them to their end.

    Args:
        job: the run.
        line: shows the progress.
        check: the data check that the first step waits for; None if there is none.
        recorder: links the checkpoints; None if another process does.
        watch: looks for signs that the run goes wrong; None to ignore them.
    """
    log, started, plan = job.directory / "train.log", time.time(), job.plan
    content = msgspec.json.encode(_request(job, check), enc_hook=str).decode()
    environment = {worker.REQUEST_VARIABLE: content, **plan.environment}
    echo = sys.stderr if job.verbose else None
    with Child(plan.launch.command(), log, environment, echo) as child, line:
        if (cluster := plan.cluster).nodes > 1:
            line.note(f"waiting for the other nodes at {cluster.address}:{cluster.port}")
        follower = _Follower(job, child, line, check, recorder, watch)
        follower.run()
        status = child.process.wait()
        _remove_empty(job.directory / "logs")
        if check is not None and (sentence := check.last_sentence()):
            line.say(f"{sentence}.")
    return Ending(
        state=follower.state,
        exit_status=status,
        directory=job.directory,
        log=log,
        started=started,
        interrupt=follower.interrupt,
        refused=follower.refused,
        watch=follower.watch or Watch(),
        keeps_going=job.checked.request.keep_going,
    )


def _remove_empty(logs: Path) -> None:
    """Remove the stack files that no rank wrote to, and their directory if it is otherwise empty."""
    with contextlib.suppress(
        OSError
    ):  # also where the directory has become read-only: the files are only untidy
        for file in logs.glob("stacks-rank*.txt"):
            if file.stat().st_size == 0:
                file.unlink()
        logs.rmdir()


def _request(job: Job, check: DataCheck | None) -> events.RunOrder:
    """The request for the training process."""
    config = job.plan.config
    return events.RunOrder(
        command=config.command,
        arguments={**config.words(), **_balance(job.plan), **_keep_rows(job.plan)},
        directory=str(job.directory),
        peers=_peers(job) if job.plan.cluster.has_peers else None,
        data_check=events.DataCheckFiles(path=str(check.path), lost=str(check.lost)) if check else None,
        audit=_audit(job) if check else None,
    )


def _audit(job: Job) -> events.AuditOrder:
    """The rows to inspect before the model is loaded."""
    config, rules = job.plan.config, job.plan.data.rules
    return events.AuditOrder(
        task=config.task.name,
        data=config.get("dataset") or [],
        columns=rules.columns or {},
        multimodal=rules.multimodal,
        answers_itself=rules.task != config.task,
    )


def _balance(plan: TrainingPlan) -> dict[str, list[str]]:
    """The size limit of a micro-batch, in rows of the longest length, and the estimate of tokens per text; passed as an
    argument, so that it is the same on all nodes."""
    if not plan.balances:
        return {}
    lengths = plan.data.rules.lengths
    parts = (plan.largest_batch, lengths.letter, lengths.mark, lengths.byte, lengths.message, lengths.row)
    return {"balance": [f"{part:.6g}" for part in parts]}


def _keep_rows(plan: TrainingPlan) -> dict[str, list[str]]:
    """The argument that says whether converted rows are kept for later runs."""
    return {"keep_rows": ["true"]} if plan.keeps_rows else {}


def _peers(job: Job) -> events.PeersOrder:
    """The request that must be the same in every process of the run."""
    plan = job.plan
    settings = plan.config.settings.items()
    return events.PeersOrder(
        own_starter=plan.cluster.started_as is not None,
        automatic=[*(name for name, one in settings if one.source.kind == "automatic"), *_balance(plan)],
        node=f"node {plan.cluster.node} ({socket.gethostname()})",
        given=job.checked.given,
        data=preflight.fingerprints(plan.data),
        versions={name: version for name, version in packages.versions().items() if name in SAME_VERSIONS},
    )


def _reached(point: ResumePoint | None) -> RunState:
    """The state that a resumed training had reached; empty for a new training."""
    state = RunState()
    if point is None or point.state is None or point.directory is None:
        return state
    for logs in point.state.logs:
        numbers = {key: value for key, value in logs.items() if key != "step"}
        state = fold(state, events.Log(step=point.step, memory=0, logs=numbers))
    best = str(point.directory / point.state.best) if point.state.best else None
    return fold(state, events.CheckpointSaved(step=point.step, checkpoint=str(point.checkpoint), best=best))


class _Follower:
    """Handles the reports of a run's processes, and ends the processes when they must not continue.

    Args:
        job: the run.
        child: the process that was started.
        line: shows the progress.
        check: the data check that the first step waits for; None if there is none.
        recorder: links the checkpoints; None if another process does.
        watch: looks for signs that the run goes wrong; None to ignore them.
    """

    def __init__(
        self,
        job: Job,
        child: Child,
        line: TrainingLine,
        check: DataCheck | None,
        recorder: Recorder | None,
        watch: Watch | None,
    ) -> None:
        self.job, self.child, self.line, self.check, self.recorder = job, child, line, check, recorder
        self.watch, self.state, self.grace = watch, _reached(job.point), job.checked.request.stop_grace
        self.interrupt: KeyboardInterrupt | None = None
        self.refused: list[Problem] = []
        self._failed = 0.0  # time of the first reported failure
        self._pressed = -ONE_PRESS
        self._looked = 0.0  # time of the last disk check
        self._checkpoint = 0  # size of the last checkpoint in bytes

    def run(self) -> None:
        """Follow the processes until they end."""
        while True:
            try:
                for event in self._events():
                    if event is not None:
                        self._take(event)
                    if self._must_end():
                        self.child.end(patience=0)
                        return
                return
            except KeyboardInterrupt as interrupt:
                if self._ends_now(interrupt):
                    self.child.end(patience=0)
                    return

    def _events(self) -> Iterator[RunEvent | None]:
        for report in self.child.events():
            yield None if report is None else events.decode(report)

    def _take(self, event: RunEvent) -> None:
        before, self.state = self.state, fold(self.state, event)
        if self.state.failures and not before.failures:
            self._failed = time.monotonic()
        if self.recorder is not None and isinstance(event, (events.CheckpointSaved, events.Done)):
            self.recorder.link(self.state.last, self.state.best)
        if self.recorder is not None and isinstance(event, events.Log):
            self.recorder.measure(event.step, self.state.max_steps, event.memory)
        self.line.show(event)
        if isinstance(event, events.Audited):
            self.refused += event.errors
        if isinstance(event, events.RewardTried) and event.error is not None:
            self.refused.append(event.error)
        if self.check is not None and (sentence := self.check.take(event)):
            self.line.say(f"{sentence}.")
        if self.watch is not None:
            if isinstance(event, events.CheckpointSaved):
                self._checkpoint = size_of(Path(event.checkpoint))
            self._heed(self.watch.after(event, time.monotonic()))

    def _look(self) -> None:
        """Check for problems that no event reports: a stalled run, a disk that fills up."""
        now = time.monotonic()
        if self.watch is not None and self.state.begun is not None and self.state.done is None:
            free = None
            if now > self._looked + DISK_SECONDS:
                self._looked, free = now, free_bytes(self.job.directory)
            self._heed(self.watch.at(now, free, self._checkpoint))

    def _heed(self, watch: Watch) -> None:
        """Show the new alarms of ``watch``."""
        known = len(self.watch.alarms) if self.watch else 0
        self.watch = watch
        for alarm in watch.alarms[known:]:
            self.line.say(f"warning: {alarm}")
            if alarm.kind == "stall":
                self._write_stacks()

    def _write_stacks(self) -> None:
        """Make the ranks of this machine write their Python stacks."""
        for pid in self.state.ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, events.STACKS_SIGNAL)
        time.sleep(STACKS_SECONDS)

    def _must_end(self) -> bool:
        """Whether to end the processes: because of bad data, an alarm, a failed run that hangs, or a slow stop."""
        if self.check is not None and not self.refused:
            self.refused = self.check.problems()
        self._look()
        now = time.monotonic()
        hangs = self.state.failures and now > self._failed + FAILED_FOR
        stops = self.interrupt is not None and self.grace is not None and now > self._pressed + self.grace
        return bool(self.refused or hangs or stops or self._wrong)

    @property
    def _wrong(self) -> bool:
        """Whether an alarm ends the run."""
        keeps = self.job.checked.request.keep_going
        return not keeps and self.watch is not None and any(alarm.stops for alarm in self.watch.alarms)

    def _ends_now(self, interrupt: KeyboardInterrupt) -> bool:
        """Handle Ctrl-C or SIGTERM. Returns whether the run ends immediately, without a last checkpoint."""
        if time.monotonic() - self._pressed < ONE_PRESS:
            return False
        self._pressed = time.monotonic()
        again, self.interrupt = self.interrupt is not None, interrupt
        if again or self.state.begun is None:
            return True
        self.line.note(
            "stopping after this step and saving a checkpoint (press Ctrl-C again to end immediately)"
        )
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.state.pid, signal.SIGTERM)
        return False
