"""One training run, from the start of its processes to its result.

The processes run `training.process.worker`. Their reports are folded into a `RunState`, which is shown as one live
line, written to ``result.json``, and decides how the run ends.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from swift_toolkit.console import screen
from swift_toolkit.dataset import copies
from swift_toolkit.machine import packages
from swift_toolkit.machine.process import Child
from swift_toolkit.problems import Problem, RunError
from swift_toolkit.runs import lock
from swift_toolkit.runs.record import SAME_VERSIONS, Recorder, RunDetails, TrainingResult
from swift_toolkit.training import preflight
from swift_toolkit.training.checked import CheckedRequest
from swift_toolkit.training.ending import Ending
from swift_toolkit.training.monitor.data_check import DataCheck
from swift_toolkit.training.monitor.progress import NodeLine, TrainingLine
from swift_toolkit.training.plan import TrainingPlan
from swift_toolkit.training.process import events, worker
from swift_toolkit.training.process.events import RunEvent, RunState, fold
from swift_toolkit.training.resume import Resumption

FAILED_FOR = 15.0
"""Seconds after the failure of a process until a run that does not end by itself is ended."""

ONE_PRESS = 0.5
"""Interrupts within this many seconds count as one: a wrapper such as timeout(1) sends each signal twice."""


@dataclass(frozen=True)
class Job:
    """A checked request that is about to run.

    Args:
        checked: the request.
        plan: the plan, with the run's directory among its settings.
        directory: the run directory; a temporary one for a process that joins a run shown elsewhere.
        left_out: the bad rows that are skipped, as `dataset.copies` reports them.
        verbose: also show everything that ms-swift prints.
    """

    checked: CheckedRequest
    plan: TrainingPlan
    directory: Path
    left_out: copies.PreparedDict
    verbose: bool = False


@contextlib.contextmanager
def directory(checked: CheckedRequest) -> Iterator[Path]:
    """The directory where this process writes during the run.

    Raises:
        RunError: it cannot write there.
        RequestError: another run writes there.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not checked.plan.cluster.is_first:
                yield Path(tempfile.mkdtemp(prefix="swift-toolkit-"))
                return
            found = checked.directory or checked.output.claim()
            stack.enter_context(lock.held(found, screen.say))
            checked.begin(found)
            yield found
        except OSError as error:
            where = error.filename or checked.output.root
            raise RunError(f"cannot write {where}: {error.strerror or error}.") from None


def prepare_run(checked: CheckedRequest, plan: TrainingPlan, directory: Path, verbose: bool = False) -> Job:
    """Let the run write to ``directory``, and copy data that ms-swift cannot read as it is.

    Raises:
        RequestError: the data has more bad rows than may be skipped.
    """
    plan.unpack_models()
    plan.write_to(directory)
    given = copies.prepare_data(plan.data, directory / "data", checked.request.skip_bad_rows)
    if given.rejected is not None:
        count = given.left_out.total()
        rows = "1 bad row" if count == 1 else f"{count:,} bad rows"
        screen.say(f"Skipping {rows}, listed with reasons in {given.rejected}")
    plan.config.replace("dataset", given.train)
    plan.config.replace("val_dataset", given.val)
    return Job(checked, plan, directory, given.as_dict(), verbose)


def train(job: Job) -> TrainingResult:
    """Carry out a run that this process shows and records.

    Raises:
        RequestError: the data was refused before the first step.
        RunError: the run failed.
        Interrupted: it was interrupted.
    """
    checked, plan = job.checked, job.plan
    expected = functools.partial(preflight.expected_rows, plan.config)
    recorder = Recorder(job.directory, checked.output.root)
    lost = checked.request.max_lost_rows
    with DataCheck(plan.data, checked.verify_arguments, expected, lost) as check:
        ending = follow(job, TrainingLine(row_tokens=plan.row_tokens), check, recorder)
        plan, rows = replace(plan, data=check.report), check.as_dict()
    result = ending.result(plan)
    reason = ending.reason(plan) if result.status == "failed" else ""
    try:
        recorder.write(result, reason, _details(job, plan, ending.state, rows))
    except OSError as error:
        _say_unwritten(recorder, error, ending, result)
    ending.raise_if_not_done(result, reason)
    return result


def _say_unwritten(recorder: Recorder, error: OSError, ending: Ending, result: TrainingResult) -> None:
    """Say that result.json cannot be written.

    Raises:
        RunError: the run did not fail otherwise.
    """
    what = f"cannot write {recorder.directory / 'result.json'}: {error.strerror}."
    if result.status != "done":
        screen.say(what)
        return
    lines = ending.checkpoint_lines("Make the directory writable.")
    raise RunError("\n".join([f"All {result.steps} steps were taken, but {what}", *lines])) from None


def take_part(job: Job) -> TrainingResult:
    """Carry out this process's part of a run that another process shows and records.

    Raises:
        RequestError: the processes have different requests.
        RunError: the run failed.
        Interrupted: it was interrupted.
    """
    ending = follow(job, NodeLine())
    if ending.state.directory is not None:
        directory = Path(ending.state.directory)
        ending = replace(ending, directory=directory, log=_move_log(job, directory / "logs"))
    result = ending.result(job.plan)
    ending.raise_if_not_done(result, ending.reason(job.plan))
    return result


def _move_log(job: Job, logs: Path) -> Path:
    """Move the log of this process's start to those of the ranks, and remove the temporary directory."""
    before, log = job.directory / "train.log", logs / f"start-{job.plan.cluster.label}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        shutil.move(before, log)
    except OSError as error:
        screen.say(f"cannot write {log}: {error.strerror}. The log stays in {before}.")
        return before
    shutil.rmtree(job.directory, ignore_errors=True)
    return log


def _details(job: Job, plan: TrainingPlan, state: RunState, rows: Mapping[str, object]) -> RunDetails:
    done, settings, estimate = state.done or events.Done(), plan.config.settings, plan.verdict.estimate
    return RunDetails(
        config={name: setting.value for name, setting in settings.items()},
        sources={name: str(setting.source) for name, setting in settings.items()},
        data={**plan.data.as_dict(), "given": job.left_out},
        model_parameters=done.model_parameter_info,
        rows=rows,
        learned=msgspec.to_builtins(state.audit) if state.audit else None,
        tokens_per_row={"train": done.train_dataset, "val": done.val_dataset},
        memory={"peak": state.memory or None, "estimate": estimate.total if estimate else None},
    )


# --- following the processes --------------------------------------------------------------------------------


def follow(
    job: Job, line: TrainingLine, check: DataCheck | None = None, recorder: Recorder | None = None
) -> Ending:
    """Start the processes of a run and follow them to their end.

    Args:
        job: the run.
        line: shows the progress.
        check: the data check that the first step waits for; None if there is none.
        recorder: links the checkpoints; None if another process does.
    """
    log, started, plan = job.directory / "train.log", time.time(), job.plan
    content = msgspec.json.encode(_request(job, check), enc_hook=str).decode()
    environment = {worker.REQUEST_VARIABLE: content, **plan.environment}
    echo = sys.stderr if job.verbose else None
    with Child(plan.launch.command(), log, environment, echo) as child, line:
        if (cluster := plan.cluster).nodes > 1:
            line.note(f"waiting for the other nodes at {cluster.address}:{cluster.port}")
        grace = job.checked.request.stop_grace
        follower = _Follower(child, line, check, recorder, _reached(job.checked.resumption), grace)
        follower.run()
        status = child.process.wait()
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
    )


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
    """The rows that are looked at before the model is loaded."""
    config, rules = job.plan.config, job.plan.data.rules
    data, columns = config.get("dataset") or [], rules.columns or {}
    return events.AuditOrder(task=config.task.name, data=data, columns=columns, multimodal=rules.multimodal)


def _balance(plan: TrainingPlan) -> dict[str, list[str]]:
    """The size limit of a micro-batch, in rows of the longest length, and how many tokens a text has; an argument, so
    that it is the same on all nodes."""
    if not plan.balances:
        return {}
    lengths = plan.data.rules.lengths
    parts = (plan.largest_batch, lengths.letter, lengths.mark, lengths.byte, lengths.message, lengths.row)
    return {"balance": [f"{part:.6g}" for part in parts]}


def _keep_rows(plan: TrainingPlan) -> dict[str, list[str]]:
    """Whether converted rows are kept for later runs, among the arguments."""
    return {"keep_rows": ["true"]} if plan.keeps_rows else {}


def _peers(job: Job) -> events.PeersOrder:
    """What must be the same in every process of the run."""
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


def _reached(resumption: Resumption | None) -> RunState:
    """The state that a resumed training had reached; empty for a new one."""
    state, point = RunState(), resumption.point if resumption else None
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
        child: the process that was started.
        line: shows the progress.
        check: the data check that the first step waits for; None if there is none.
        recorder: links the checkpoints; None if another process does.
        state: what an earlier part of the training reached.
        grace: seconds that a run may take to save after it was asked to stop; None sets no limit.
    """

    def __init__(
        self,
        child: Child,
        line: TrainingLine,
        check: DataCheck | None,
        recorder: Recorder | None,
        state: RunState,
        grace: float | None,
    ) -> None:
        self.child, self.line, self.check, self.recorder = child, line, check, recorder
        self.state, self.grace = state, grace
        self.interrupt: KeyboardInterrupt | None = None
        self.refused: list[Problem] = []
        self._failed = 0.0  # when the first failure was reported
        self._pressed = -ONE_PRESS

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
        self.line.show(event)
        if isinstance(event, events.Audited):
            self.refused += event.errors
        if isinstance(event, events.RewardTried) and event.error is not None:
            self.refused.append(event.error)
        if self.check is not None and (sentence := self.check.take(event)):
            self.line.say(f"{sentence}.")

    def _must_end(self) -> bool:
        """Whether the processes must be ended: bad data, a failed run that hangs, or a stop that takes too long."""
        if self.check is not None and not self.refused:
            self.refused = self.check.problems()
        now = time.monotonic()
        hangs = self.state.failures and now > self._failed + FAILED_FOR
        stops = self.interrupt is not None and self.grace is not None and now > self._pressed + self.grace
        return bool(self.refused or hangs or stops)

    def _ends_now(self, interrupt: KeyboardInterrupt) -> bool:
        """Handle Ctrl-C or SIGTERM. Returns whether the run ends at once, without a last checkpoint."""
        if time.monotonic() - self._pressed < ONE_PRESS:
            return False
        self._pressed = time.monotonic()
        again, self.interrupt = self.interrupt is not None, interrupt
        if again or self.state.begun is None:
            return True
        self.line.note("stopping after this step, then saving (Ctrl-C again ends at once)")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.state.pid, signal.SIGTERM)
        return False
